import asyncio

import pytest

from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.server.sockets import listen, listen_when_free


async def test_a_port_that_becomes_free():
    """A port that is still held, as by a worker of a server that was just killed, is waited for."""
    holder = listen("127.0.0.1", 0)
    port = holder.getsockname()[1]
    asyncio.get_running_loop().call_later(0.1, holder.close)
    with await listen_when_free("127.0.0.1", port, SystemClock(), option="--port") as listener:
        assert listener.getsockname()[1] == port


async def test_an_address_that_is_none():
    """Any other failure is refused at once."""

    class NoTime(SystemClock):
        async def sleep(self, _):
            raise AssertionError

    with pytest.raises(StartRefusedError, match=r"cannot listen on 192\.0\.2\.1"):
        await listen_when_free("192.0.2.1", 8080, NoTime(), option="--port")


def test_address_in_use():
    """A start on an address that is taken is refused, naming it."""
    taken = listen("127.0.0.1", 0)
    port = taken.getsockname()[1]
    with pytest.raises(StartRefusedError, match=f"127.0.0.1 port {port}"):
        listen("127.0.0.1", port)
    taken.close()
