"""The processes that speak HTTP for the service: what happens when they, or the service itself, are killed."""

import asyncio
import os
import signal
from pathlib import Path

import httpx
import pytest

from internal_transfer.domain.refusal import Code
from internal_transfer.simulation.failpoints import Failpoint
from internal_transfer.simulation.scenarios.expectation import expect_problem, until

needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux: /proc names the children")


def _workers(server):
    """The ids of the server's child processes."""
    return [int(pid) for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()]


def _is_alive(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@needs_proc
async def test_a_killed_worker_is_replaced(server):
    """A worker that is killed is replaced, and what its clients ask again under their keys is one transfer each."""
    await server.start()
    user = await server.fund("loader", "1000")
    [worker] = _workers(server)
    answers = asyncio.gather(
        *(user.move("funding", "spot", "1", key=f"load-{number}") for number in range(50)), return_exceptions=True
    )
    os.kill(worker, signal.SIGKILL)
    assert all(isinstance(answer, httpx.Response | httpx.TransportError) for answer in await answers)

    async def replaced():
        return True if [pid for pid in _workers(server) if pid != worker and _is_alive(pid)] else None

    await until("the worker is replaced", replaced)
    for number in range(50):
        retried = await user.move("funding", "spot", "1", key=f"load-{number}")
        assert retried.status_code in {200, 201}
    await user.expect_balances(funding="950", spot="50")
    await server.expect_clean()


@needs_proc
async def test_workers_end_with_a_killed_service(server):
    """When the service is killed its workers end by themselves, and nobody listens at its port any more."""
    await server.start()
    address = server.address
    [worker] = _workers(server)
    await server.kill()

    async def ended():
        return None if _is_alive(worker) else True

    await until("the worker ends", ended)
    async with httpx.AsyncClient(base_url=address, trust_env=False) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("/")


async def test_a_service_that_dies_leaves_no_false_answer(server):
    """A worker whose service died after the post says that the outcome is unknown, or nothing; never that it failed."""
    await server.start(failpoint=Failpoint.AFTER_POST)
    user = await server.fund("unsure", "100")
    try:
        response = await user.move("funding", "spot", "10", key="posted")
    except httpx.TransportError:
        pass
    else:
        assert expect_problem(response, 503, Code.TIMEOUT)["recorded"] is None
    await server.died()
    await server.start()
    assert (await user.move("funding", "spot", "10", key="posted")).status_code == 200
    await user.expect_balances(funding="90", spot="10")
    await server.expect_clean()
