import pytest
import typer

from internal_transfer.cli.exits import FAILED, UNREACHABLE, failures_end
from internal_transfer.ports.errors import OutcomeUnknown, StartRefusedError, System, Unavailable
from internal_transfer.server.supervisor import ServiceFailedError

FAILURES = [
    StartRefusedError("this is what to do"),
    ServiceFailedError("a part failed"),
    Unavailable(System.STORE, "it is away"),
    OutcomeUnknown(System.LEDGER, "it did not answer"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_failure_ends_the_command_with_its_message(failure, capsys):
    """Whatever refuses or fails ends a command with 1 and one line on standard error, and never with a traceback."""
    with pytest.raises(typer.Exit) as ended, failures_end():
        raise failure
    assert ended.value.exit_code == FAILED == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", f"internal-transfer: {failure}\n")


def test_a_command_with_failures_of_its_own():
    """A command may name one more kind of failure, its own exit code, and where the message goes."""
    told = []
    with pytest.raises(typer.Exit) as ended, failures_end(UNREACHABLE, tell=told.append, also=(ValueError,)):
        raise ValueError("not a number")
    assert ended.value.exit_code == UNREACHABLE == 3
    assert told == ["not a number"]


def test_a_bug_is_not_hidden():
    """What is no failure of operation goes on up, so that a bug shows its traceback."""
    with pytest.raises(AssertionError, match="a bug"), failures_end():
        raise AssertionError("a bug")
