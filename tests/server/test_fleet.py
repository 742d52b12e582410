import pytest

from internal_transfer.simulation.scenarios.server_process import run_program


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 1, 'systems.store: is "embedded", which only one process can use; --processes needs a store that'),
        (("--roles", "ledger"), 2, "the ledger is one process"),
    ],
)
async def test_a_fleet_that_cannot_share(tmp_path, words, code, said):
    """Several processes on what only one can hold are refused, naming the option and the rule; nothing is made."""
    data = tmp_path / "data"
    ran = await run_program("serve", "--processes", "2", "--data", str(data), *words)
    assert (ran.exit_code, ran.output) == (code, "")
    assert said in " ".join(ran.errors.replace("│", "").split())
    assert not data.exists()
