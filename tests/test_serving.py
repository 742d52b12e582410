import asyncio

import pytest
from structlog.testing import capture_logs

from internal_transfer.adapters.clock.system import SystemClock
from internal_transfer.api.server import listen
from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.serving import ServiceFailedError, _listen_when_free, _reason


def test_a_refused_start_among_other_failures():
    """Where a start is refused, that is what is said, however deep it lies and whatever else failed with it."""
    refused = StartRefusedError("this is why")
    group = ExceptionGroup("", [ValueError("1"), ExceptionGroup("", [ExceptionGroup("", [refused])])])
    assert _reason(group) is refused


def test_parts_that_fail():
    """Each part that failed gets one entry in the log, and the one that was first is named to the operator."""
    group = ExceptionGroup("", [ExceptionGroup("", [ValueError("disk")]), KeyError("x")])
    with capture_logs() as logs:
        reason = _reason(group)
    assert isinstance(reason, ServiceFailedError)
    assert "ValueError('disk')" in str(reason)
    assert [(entry["event"], entry["error"]) for entry in logs] == [
        ("service_failed", "ValueError('disk')"),
        ("service_failed", "KeyError('x')"),
    ]


async def test_a_port_that_becomes_free():
    """A port that is still held, as by a worker of a server that was just killed, is waited for."""
    holder = listen("127.0.0.1", 0)
    port = holder.getsockname()[1]
    asyncio.get_running_loop().call_later(0.1, holder.close)
    with await _listen_when_free("127.0.0.1", port, SystemClock(), option="--port") as listener:
        assert listener.getsockname()[1] == port


async def test_an_address_that_is_none():
    """Any other failure is refused at once."""

    class NoTime(SystemClock):
        async def sleep(self, _):
            raise AssertionError

    with pytest.raises(StartRefusedError, match=r"cannot listen on 192\.0\.2\.1"):
        await _listen_when_free("192.0.2.1", 8080, NoTime(), option="--port")
