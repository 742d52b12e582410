"""What `doctor` says of a server that runs."""

from internal_transfer.simulation.scenarios.catalogue import ONE_PROCESS, STANDARD, new_server
from internal_transfer.simulation.scenarios.expectation import until
from internal_transfer.simulation.scenarios.server_process import run_program
from internal_transfer.simulation.scenarios.surroundings import StackKind


async def examined(server, *words):
    """The checks of `doctor` by name, and its exit code."""
    ran = await run_program("doctor", "--data", str(server.data), "--json", *words)
    return {check["name"]: (check["ok"], check["message"]) for check in ran.object()["checks"]}, ran.exit_code


async def test_a_server_that_runs(server):
    """The server is asked for its ports, so that the command needs nothing but its directory and settings."""
    await server.start()
    checks, code = await examined(server, "--config", str(server.config))
    assert [name for name, (ok, _) in checks.items() if not ok] == []
    assert code == 0
    assert checks["server"][1].endswith(f"a demonstration: ready on {server.address.removeprefix('http://')}")
    assert checks["port"][1] == f"{server.address.removeprefix('http://')} answers"
    assert checks["admin_port"][1] == f"127.0.0.1:{server.admin_port} answers"


async def test_other_settings_than_the_servers(server):
    """Settings that the running server does not have fail, and it says with which it was started."""
    await server.start()
    checks, code = await examined(server)
    assert code == 1
    assert not checks["settings"][0]
    assert f"it was started with --config {server.config.resolve()}" in checks["settings"][1]
    server.config.write_text(server.config.read_text() + "[assets.ADA]\nclosed = true\n")
    checks, code = await examined(server, "--config", str(server.config))
    assert (code, checks["settings"][0]) == (1, False)
    assert "restart the server if the file has changed since" in checks["settings"][1]


async def test_a_server_that_is_not_ready(place):
    """A server whose core is silent is not ready: the check fails with the reason that /readyz gives."""
    async with new_server(place, ONE_PROCESS._replace(core_silence_seconds=0.3)) as server:
        await server.start()
        alice = await server.fund("alice", "10")
        await server.steer_core("withhold")
        await alice.move("funding", "spot", "1", key="k", wait_seconds=0)

        async def is_unready():
            return None if (await server.operators.get("/server")).json()["ready"] else True

        await until("the core is found silent", is_unready)
        checks, code = await examined(server, "--config", str(server.config))
    assert code == 1
    assert [name for name, (ok, _) in checks.items() if not ok] == ["server"]
    assert "running, but not ready: the trading core 'core' does not answer" in checks["server"][1]


async def test_processes_on_real_systems(place, environment):
    """A service that keeps nothing itself, and the ledger's process beside it, are found well."""
    environment(StackKind.POSTGRESQL)
    async with new_server(place, STANDARD, StackKind.POSTGRESQL) as server:
        await server.start()
        surroundings = server.surroundings.environment
        for data in (server.data, place / "ledger"):
            words = ("--data", str(data), "--config", str(server.config), "--json")
            ran = await run_program("doctor", *words, environment=surroundings)
            checks = {check["name"]: (check["ok"], check["message"]) for check in ran.object()["checks"]}
            assert [check for check in checks.items() if not check[1][0]] == []
            assert ran.exit_code == 0
        assert "serves" in checks["server"][1]
