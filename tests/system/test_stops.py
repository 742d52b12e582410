"""Clean stops: what was accepted is finished or kept, and the process ends with 0."""

import asyncio
import signal

import httpx
import pytest

from internal_transfer.simulation.scenarios.expectation import until

CLIENTS = 16


async def test_stop_under_load(server):
    """Told to stop under load, it answers what it accepted, ends with 0, and leaves nothing open behind."""
    await server.start()
    users = [await server.fund(f"loader-{number}", "1000000") for number in range(CLIENTS)]
    answered = {}
    unanswered = []
    enough = asyncio.Event()

    async def work(number):
        count = 0
        while True:
            key = f"load-{count}"
            try:
                response = await users[number].move("funding", "spot", "1", key=key)
            except httpx.TransportError:
                unanswered.append((number, key))
                return
            if response.status_code == 503:
                unanswered.append((number, key))
                return
            assert response.status_code == 201, response.text
            answered[number, key] = response.json()["request_id"]
            count += 1
            if len(answered) >= 300:
                enough.set()

    async def stop():
        await enough.wait()
        server.signal(signal.SIGTERM)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(stop())
        for number in range(CLIENTS):
            tasks.create_task(work(number))
    assert await server.end() == 0, server.log_end()
    for status in ("REQUESTING", "PENDING"):
        assert (await server.admin("list", "--status", status)).object()["transfers"] == []
    await server.start()
    for (number, _), request_id in answered.items():
        assert (await users[number].transfer(request_id))["status"] == "SUCCESS"
    for number, key in unanswered:
        assert (await users[number].move("funding", "spot", "1", key=key)).status_code in {200, 201}
    for number, user in enumerate(users):
        keys = sum(1 for client, _ in [*answered, *unanswered] if client == number)
        await user.expect_balances(funding=str(1_000_000 - keys), spot=str(keys))
    await server.expect_clean()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_stop_with_an_open_transfer(server, number):
    """A transfer that waits for its core does not delay the stop, and goes on with the next start."""
    await server.start()
    user = await server.fund("waiting", "100")
    await server.steer_core("pause")
    pending = await user.move("funding", "spot", "10", key="slow", wait_seconds=0)
    assert pending.status_code == 202
    server.signal(number)
    assert await server.end() == 0, server.log_end()
    await server.start()
    retried = await user.move("funding", "spot", "10", key="slow")
    assert (retried.status_code, retried.json()["request_id"]) == (200, pending.json()["request_id"])
    await user.expect_balances(funding="90", spot="10")
    await server.expect_clean()


async def test_stop_answers_who_waits(server):
    """A client that waits for a transfer's end is answered, not cut off, when the server stops."""
    await server.start()
    user = await server.fund("waiting", "100")
    await server.steer_core("withhold")
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(user.move("funding", "spot", "10", key="slow", wait_seconds=2))

        async def accepted():
            return True if await user.is_recorded("slow") else None

        await until("the transfer is accepted", accepted)
        server.signal(signal.SIGTERM)
    assert waiting.result().status_code == 202
    assert await server.end() == 0, server.log_end()
