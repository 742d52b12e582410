"""Servers that are killed at every named step of a transfer's life, and at a random moment under load."""

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import NamedTuple

import httpx

from internal_transfer.domain.refusal import Code
from internal_transfer.simulation.failpoints import Failpoint
from internal_transfer.simulation.scenarios.expectation import CLOCK, expect, expect_problem, expect_status
from internal_transfer.simulation.scenarios.server_process import ServerProcess
from internal_transfer.simulation.scenarios.user import User

KEY = "survivor"
CLIENTS = 24
ACKNOWLEDGED_LEAST = 200
ACKNOWLEDGED_SPREAD = 600
_FUNDS = Decimal(100)

Crash = Callable[[ServerProcess, Failpoint], Awaitable[None]]


class WayToDie(NamedTuple):
    """How a failpoint is reached, the transfer that it interrupts, and how that transfer must end."""

    crash: Crash
    source: str
    target: str
    failure: Code | None = None


async def _die_moving(server: ServerProcess, failpoint: Failpoint, way: "WayToDie", *, mode: str | None = None) -> None:
    """Asks for the transfer, and gets no answer because the server dies."""
    await server.start(failpoint=failpoint)
    user = await server.fund("survivor", str(_FUNDS))
    if way.source != "funding":
        expect_status(await user.move("funding", way.source, str(_FUNDS), key="before"), 201)
    if mode is not None:
        await server.steer_core(mode)
    await _lose_answer(user.move(way.source, way.target, "10", key=KEY))
    await server.died()


async def _lose_answer(request: Awaitable[httpx.Response]) -> None:
    try:
        response = await request
    except httpx.TransportError:
        return
    expect(holds=False, seen=f"the server lived to answer {response.status_code}: {response.text}")


async def _die_normally(server: ServerProcess, failpoint: Failpoint) -> None:
    await _die_moving(server, failpoint, WAYS[failpoint])


async def _die_refusing(server: ServerProcess, failpoint: Failpoint) -> None:
    await _die_moving(server, failpoint, WAYS[failpoint], mode="refuse")


async def _die_reversing(server: ServerProcess, failpoint: Failpoint) -> None:
    await _die_moving(server, failpoint, WAYS[failpoint], mode="refuse-credits")


async def _die_cancelling(server: ServerProcess, failpoint: Failpoint) -> None:
    """The core owes its answer, an operator voids, and the server dies between the core's cancel and its record."""
    await server.start(failpoint=failpoint)
    user = await server.fund("survivor", str(_FUNDS))
    await server.steer_core("withhold")
    pending = expect_status(await user.move("funding", "spot", "10", key=KEY, wait_seconds=0), 202)
    await _lose_answer(
        server.operators.post(f"transfers/{pending['request_id']}/void", json={"reason": "the core owes its answer"})
    )
    await server.died()


async def _die_fencing(server: ServerProcess, failpoint: Failpoint) -> None:
    """The server dies before the hold, is started again when the transfer has expired, and dies while fencing it."""
    await _die_moving(server, Failpoint.BEFORE_HOLD, WAYS[failpoint])
    settings = server.config.read_text()
    server.config.write_text(settings.replace("[transfers]\n", "[transfers]\nexpiry_seconds = 0.001\n"))
    await server.launch(failpoint=failpoint)
    await server.died()
    server.config.write_text(settings)


WAYS: dict[Failpoint, WayToDie] = {
    Failpoint.BEFORE_ACCEPT: WayToDie(_die_normally, "funding", "spot"),
    Failpoint.AFTER_ACCEPT: WayToDie(_die_normally, "funding", "spot"),
    Failpoint.BEFORE_HOLD: WayToDie(_die_normally, "funding", "spot"),
    Failpoint.AFTER_HOLD: WayToDie(_die_normally, "funding", "spot"),
    Failpoint.AFTER_PENDING: WayToDie(_die_normally, "funding", "spot"),
    Failpoint.BEFORE_TELL: WayToDie(_die_normally, "funding", "spot"),
    Failpoint.AFTER_TELL: WayToDie(_die_normally, "funding", "spot"),
    # A leg is on record as applied only while another one is asked, which takes two cores.
    Failpoint.AFTER_LEG: WayToDie(_die_normally, "spot", "futures"),
    Failpoint.AFTER_CANCEL: WayToDie(_die_cancelling, "funding", "spot", Code.VOIDED_BY_OPERATOR),
    Failpoint.AFTER_REVERSE: WayToDie(_die_reversing, "spot", "futures", Code.CORE_REFUSED),
    Failpoint.BEFORE_POST: WayToDie(_die_normally, "funding", "spot"),
    Failpoint.AFTER_POST: WayToDie(_die_normally, "funding", "spot"),
    Failpoint.BEFORE_VOID: WayToDie(_die_refusing, "funding", "spot", Code.CORE_REFUSED),
    Failpoint.AFTER_VOID: WayToDie(_die_refusing, "funding", "spot", Code.CORE_REFUSED),
    Failpoint.AFTER_FENCING: WayToDie(_die_fencing, "funding", "spot", Code.EXPIRED),
    Failpoint.AFTER_FENCE: WayToDie(_die_fencing, "funding", "spot", Code.EXPIRED),
    Failpoint.AFTER_SUCCESS: WayToDie(_die_normally, "funding", "spot"),
    Failpoint.AFTER_FAILED: WayToDie(_die_refusing, "funding", "spot", Code.CORE_REFUSED),
}
"""Every failpoint. Without a `failure` the transfer reaches SUCCESS after the crash."""


async def killed_at(server: ServerProcess, failpoint: Failpoint) -> str:
    """A server killed at the failpoint and started again finishes the transfer once; the client's retry finds it."""
    way = WAYS[failpoint]
    await way.crash(server, failpoint)
    await server.start()
    user = server.user("survivor")
    survived = await user.is_recorded(KEY)
    expect(survived is not (failpoint is Failpoint.BEFORE_ACCEPT), f"the transfer is on record: {survived}")
    request_id = await _retry(user, way, is_first=not survived)
    expect(await _retry(user, way, is_first=False) == request_id, "two retries found two transfers")
    made = [transfer for transfer in await user.history() if transfer["request_id"] == request_id]
    everything = await user.history(account_type=way.target, direction="in")
    expect(len(made) == len(everything) == 1, f"the retries left {len(everything)} transfers")
    await user.expect_balances(
        **{way.source: str(_FUNDS), way.target: "0"}
        if way.failure is not None
        else {way.source: str(_FUNDS - 10), way.target: "10"}
    )
    ending = f"FAILED {way.failure}, nothing moved" if way.failure else "SUCCESS, moved once"
    return f"{ending}; {'the retry finds it' if survived else 'it was not on record, the retry makes it'}"


async def _retry(user: User, way: WayToDie, *, is_first: bool) -> str:
    """Retries under the same key, waits until the transfer is final, and returns its id."""
    response = await user.move(way.source, way.target, "10", key=KEY)
    if way.failure is not None:
        return str(expect_problem(response, 422, way.failure)["request_id"])
    transfer = expect_status(response, 201 if is_first else 200)
    expect(transfer["status"] == "SUCCESS", f"it is {transfer['status']}")
    return str(transfer["request_id"])


async def killed_under_load(server: ServerProcess) -> str:
    """After a kill at a random moment under load, everything acknowledged is there, and every key is one transfer."""
    users = [await server.fund(f"loader-{number}", "1000000") for number in range(CLIENTS)]
    acknowledged: dict[tuple[int, str], str] = {}
    asked: list[tuple[int, str]] = []
    enough = asyncio.Event()
    kill_after = ACKNOWLEDGED_LEAST + int(CLOCK.jitter() * ACKNOWLEDGED_SPREAD)

    async def work(number: int) -> None:
        """Moves money until the server is gone; the last request of each client gets no answer."""
        count = 0
        while True:
            key = f"load-{count}"
            asked.append((number, key))
            try:
                response = await users[number].move("funding", "spot", "1", key=key)
            except httpx.TransportError:
                return
            if response.status_code == 503:
                # The HTTP worker outlives the service for a moment, and must not say that nothing happened.
                problem = expect_problem(response, 503, Code.TIMEOUT)
                expect(problem["recorded"] is None, f"recorded is {problem['recorded']} after the crash")
                return
            acknowledged[number, key] = expect_status(response, 201)["request_id"]
            count += 1
            if len(acknowledged) >= kill_after:
                enough.set()

    async def kill() -> None:
        await enough.wait()
        await server.kill()

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(kill())
        for number in range(CLIENTS):
            tasks.create_task(work(number))
    await server.start()
    for (number, key), request_id in acknowledged.items():
        transfer = await users[number].transfer(request_id)
        expect(transfer["status"] == "SUCCESS", f"{key} of client {number} was SUCCESS and is {transfer['status']}")
    for number, key in asked:
        response = await users[number].move("funding", "spot", "1", key=key)
        retried = expect_status(response, 200 if (number, key) in acknowledged else response.status_code)
        expect(retried["status"] == "SUCCESS", f"{key} of client {number} is {retried['status']}")
        known = acknowledged.get((number, key), retried["request_id"])
        expect(retried["request_id"] == known, f"{key} of client {number} is two transfers")
    for number, user in enumerate(users):
        keys = sum(1 for client, _ in asked if client == number)
        history = await user.history()
        expect(len(history) == keys, f"client {number} used {keys} keys and has {len(history)} transfers")
        await user.expect_balances(funding=str(1_000_000 - keys), spot=str(keys))
    return f"{len(acknowledged)} acknowledged, all SUCCESS; {len(asked)} keys retried, each one transfer; sums right"
