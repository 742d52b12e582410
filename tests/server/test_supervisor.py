from structlog.testing import capture_logs

from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.server.supervisor import ServiceFailedError, reason_of


def test_a_refused_start_among_other_failures():
    """Where a start is refused, that is what is said, however deep it lies and whatever else failed with it."""
    refused = StartRefusedError("this is why")
    group = ExceptionGroup("", [ValueError("1"), ExceptionGroup("", [ExceptionGroup("", [refused])])])
    assert reason_of(group) is refused


def test_parts_that_fail():
    """Each part that failed gets one entry in the log, and the one that was first is named to the operator."""
    group = ExceptionGroup("", [ExceptionGroup("", [ValueError("disk")]), KeyError("x")])
    with capture_logs() as logs:
        reason = reason_of(group)
    assert isinstance(reason, ServiceFailedError)
    assert "ValueError('disk')" in str(reason)
    assert [(entry["event"], entry["error"]) for entry in logs] == [
        ("service_failed", "ValueError('disk')"),
        ("service_failed", "KeyError('x')"),
    ]
