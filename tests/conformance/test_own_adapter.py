"""The contract suites show an adapter outside this repository as the guide says, and name the rule that is broken."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from internal_transfer.conformance.ledger.contract import LedgerContract
from internal_transfer.conformance.transfer_store.contract import StoreContract

GUIDE = (Path(__file__).parents[2] / "docs/guides/own-adapter.md").read_text()
[LEDGER_TESTS, STORE_TESTS] = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)

LEDGER = """
from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.ledger import SqliteLedger
from internal_transfer.adapters.system.clock import SystemClock


class AcmeLedger(SqliteLedger):
    def __init__(self, path):
        self.file = Database(path, each_call=True)
        super().__init__(self.file, SystemClock())

    def close(self):
        self.file.close()
"""

RESOLVES_TWICE = """
    async def create_transfers(self, transfers):
        from msgspec.structs import replace
        from internal_transfer.ports.ledger import TransferResult

        outcomes = await super().create_transfers(transfers)
        again = TransferResult.PENDING_TRANSFER_ALREADY_POSTED
        return [replace(each, status=TransferResult.CREATED) if each.status is again else each for each in outcomes]
"""

STORE = """
from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.transfer_store import SqliteTransferStore


class AcmeStore(SqliteTransferStore):
    def __init__(self, path):
        self.file = Database(path, each_call=True)
        super().__init__(self.file)

    def close(self):
        self.file.close()
"""

FORGETS_READERS = """
    async def move_reader(self, reader, position):
        pass
"""


def run_pytest(directory, adapter, tests, *options):
    """Runs a project of two files with pytest, with no settings at all, and returns what it printed."""
    [module] = re.findall(r"^from (acme_\w+) import", tests, re.MULTILINE)
    (directory / f"{module}.py").write_text(adapter)
    (directory / f"test_{module}.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={directory}", "-rf", *options]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "tests", "contract"),
    [(LEDGER, LEDGER_TESTS, LedgerContract), (STORE, STORE_TESTS, StoreContract)],
    ids=["ledger", "store"],
)
def test_an_adapter_that_keeps_the_contract_passes_the_guides_file(tmp_path, adapter, tests, contract):
    """The guide's file passes on a good adapter, with every rule of the contract run; few histories are enough here."""
    run = run_pytest(tmp_path, adapter, f"{tests}\n    examples = 5\n", "-v")
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr
    passed = set(re.findall(r"::(test_\w+)\S* PASSED", re.sub(r"\[.*?\]", "", run.stdout)))
    assert passed == {name for name in dir(contract) if name.startswith("test_")}
    assert re.search(r"=+ \d+ passed in", run.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "tests", "rule"),
    [
        (LEDGER + RESOLVES_TWICE, LEDGER_TESTS, "TestAcmeLedger::test_a_hold_is_resolved_once"),
        (STORE + FORGETS_READERS, STORE_TESTS, "TestAcmeStore::test_a_reader_of_the_feed_finds_its_place_again"),
    ],
    ids=["ledger", "store"],
)
def test_an_adapter_that_breaks_a_rule_fails_the_test_named_after_it(tmp_path, adapter, tests, rule):
    """The rule's name is in the summary, and the failed assertion shows what was returned and what was promised."""
    run = run_pytest(tmp_path, adapter, tests, "-k", rule.rpartition("::")[2])
    assert run.returncode == 1
    assert re.search(rf"^FAILED .*::{rule}", run.stdout, re.MULTILINE), run.stdout[-3000:] + run.stderr
    assert re.search(r"^E +At index \d diff: ", run.stdout, re.MULTILINE), run.stdout[-3000:]


def python(program):
    """Runs a program and returns what it printed."""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return run.stdout + run.stderr


@pytest.mark.parametrize("missing", ["hypothesis", "pytest", "pytest_asyncio"])
def test_without_what_the_suites_need_they_say_what_to_install(missing):
    """Each package that is missing is named, with the extra that brings it."""
    program = f"import sys; sys.modules[{missing!r}] = None; import internal_transfer.conformance.ledger.contract"
    assert f"the contract suites need {missing}: pip install 'internal-transfer[conformance]'" in python(program)


def test_the_service_needs_none_of_them():
    """Neither the command line nor the kit for trading cores imports pytest or hypothesis."""
    program = (
        "import sys, internal_transfer.cli, internal_transfer.conformance.check\n"
        "print(sorted({'pytest', 'hypothesis', 'pytest_asyncio'} & set(sys.modules)))"
    )
    assert python(program) == "[]\n"
