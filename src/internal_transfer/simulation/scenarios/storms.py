"""Load by several users while processes die, and what must hold once they are back."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx

from internal_transfer.simulation.scenarios.expectation import CLOCK, expect
from internal_transfer.simulation.scenarios.server_process import ServerProcess
from internal_transfer.simulation.scenarios.user import User

CLIENTS = 6
FUNDS = 100_000
RECOVERY_SECONDS = 60.0
"""Everything must be final this long after the faults have stopped (G10)."""
_AGAIN_SECONDS = 0.05

Disturb = Callable[[], Awaitable[None]]


class _Client:
    """Moves money back and forth, and remembers each key with the answer."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.told: dict[str, str] = {}
        """By key: the id of the transfer, or empty until an answer names it."""
        self.final: dict[str, str] = {}
        """By key: SUCCESS or FAILED, once an answer says so."""

    async def move(self, key: str, *, wait_seconds: int = 2) -> bool:
        """Asks once with a key, and tells whether the transfer is final; raises where answers contradict each other."""
        try:
            # Every third goes the other way, so that both directions meet the faults.
            ends = ("spot", "funding") if int(key) % 3 == 2 else ("funding", "spot")
            response = await self.user.move(*ends, "1", key=key, wait_seconds=wait_seconds)
        except (httpx.TransportError, httpx.TimeoutException):
            self.told.setdefault(key, "")
            return False
        body = response.json()
        if "request_id" not in body:
            self.told.setdefault(key, "")
            refused = response.status_code in {429, 503} or body.get("code") == "INTERNAL"
            expect(refused, f"{key} was answered {response.status_code}: {response.text}")
            return False
        known = self.told.get(key) or body["request_id"]
        expect(known == body["request_id"], f"{key} of {self.user.name} is two transfers: {known}, {response.text}")
        self.told[key] = known
        if response.status_code == 202 or response.status_code >= 500:
            return False
        status = "FAILED" if response.status_code == 422 else body["status"]
        before = self.final.setdefault(key, status)
        expect(before == status, f"{key} of {self.user.name} was {before} and is {status}")
        return True


async def storm(server: ServerProcess, disturb: Disturb, *, seconds: float = 6.0, name: str = "storm") -> str:
    """Loads the server, disturbs it in the middle, and expects one final transfer for every key, with all sums right.

    `disturb` restores what it broke before it returns. `name` begins the names of the users, and is new for each storm
    on a server.
    """
    clients = [_Client(await server.fund(f"{name}-{number}", str(FUNDS))) for number in range(CLIENTS)]
    stop = asyncio.Event()

    async def load(client: _Client) -> None:
        number = 0
        while not stop.is_set():
            if not await client.move(str(number)):
                await CLOCK.sleep(_AGAIN_SECONDS)
            number += 1

    async with asyncio.TaskGroup() as tasks:
        for client in clients:
            tasks.create_task(load(client))
        await CLOCK.sleep(seconds / 2)
        await disturb()
        await CLOCK.sleep(seconds / 2)
        stop.set()
    started = CLOCK.monotonic()
    async with asyncio.timeout(RECOVERY_SECONDS), asyncio.TaskGroup() as tasks:
        for client in clients:
            tasks.create_task(_finish(client))
    took = CLOCK.monotonic() - started
    for client in clients:
        await _expect_right(client)
    asked = sum(len(client.told) for client in clients)
    succeeded = sum(status == "SUCCESS" for client in clients for status in client.final.values())
    expect(succeeded > 0, "no transfer succeeded at all")
    return f"{asked} keys, {succeeded} SUCCESS, all final after {took:.1f} s; each is one transfer, sums right"


async def _finish(client: _Client) -> None:
    for key in client.told:
        while key not in client.final:
            if not await client.move(key, wait_seconds=10):
                await CLOCK.sleep(_AGAIN_SECONDS)


async def _expect_right(client: _Client) -> None:
    history = await client.user.history()
    ids = [transfer["request_id"] for transfer in history]
    expect(
        sorted(ids) == sorted(client.told.values()),
        f"{client.user.name} used {len(client.told)} keys and has {len(history)} transfers",
    )
    wrong = [each for each in history if client.final[_key_of(client, each["request_id"])] != each["status"]]
    expect(not wrong, f"what was told is not on record: {wrong[:3]}")
    moved = sum(
        {"funding": 1, "spot": -1}[transfer["from_account"]["account_type"]]
        for transfer in history
        if transfer["status"] == "SUCCESS"
    )
    await client.user.expect_balances(funding=str(FUNDS - moved), spot=str(moved))


def _key_of(client: _Client, request_id: str) -> str:
    return next(key for key, known in client.told.items() if known == request_id)
