"""The transfers that the tests put on record, and short ways to do so."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace

from internal_transfer.conformance.suites import ContractTests
from internal_transfer.conformance.transfer_store.harness import StoreHarness
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import EPOCH_MS, MILLISECONDS_PER_DAY, snowflake
from internal_transfer.domain.leg import Leg, LegState, Side
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.transfer import Status, Transfer, advance, with_leg
from internal_transfer.ports.transfer_store import Accepted, Change, Proposal, TransferStore

NO_LIMIT = 2**120
DAY = EPOCH_MS // MILLISECONDS_PER_DAY + 500
NOON = DAY * MILLISECONDS_PER_DAY + MILLISECONDS_PER_DAY // 2

ADA, BOB = Owner("ada"), Owner("bob")

REQUESTING, PENDING, SUCCESS, FAILED = Status.REQUESTING, Status.PENDING, Status.SUCCESS, Status.FAILED
LEGAL = {(REQUESTING, PENDING), (REQUESTING, FAILED), (PENDING, SUCCESS), (PENDING, FAILED)}
"""All legal changes of status."""
WAYS: dict[Status, tuple[Status, ...]] = {
    REQUESTING: (),
    PENDING: (PENDING,),
    SUCCESS: (PENDING, SUCCESS),
    FAILED: (FAILED,),
}
"""The statuses that take an accepted transfer to each status."""


def transfer(
    number: int = 0,
    *,
    owner: Owner = ADA,
    key: str | None = None,
    at: int = NOON,
    route: tuple[str, str] = ("funding", "spot"),
    asset: str = "USDT",
    amount: int = 100,
    **more: Any,
) -> Transfer:
    """Returns a transfer whose id has this number within its millisecond; by default its key is its own."""
    values: dict[str, Any] = {
        "id": snowflake(at_ms=at, node=1, counter=number),
        "owner": owner,
        "key": key or f"key-{at}-{number}",
        "source": Account(owner, route[0], asset),
        "target": Account(owner, route[1], asset),
        "amount": amount,
        "memo": None,
        "legs": (Leg(Side.TARGET, "engine"),),
        "created_at": at,
        "updated_at": at,
        "due_at": at + 3_000,
    }
    return Transfer(**(values | more))


def proposal(of: Transfer, *, fingerprint: bytes = b"content", daily_units: int = NO_LIMIT) -> Proposal:
    """Returns the proposal to accept a transfer."""
    return Proposal(of, fingerprint, daily_units)


def step(before: Transfer, status: Status, *, failure: Code | None = None, **more: Any) -> Change:
    """Returns the change that takes a transfer to its next status, a second after its last one."""
    after = advance(before, status, failure=failure)
    return Change(before.revision, replace(after, updated_at=before.updated_at + 1_000, **more))


def with_state(before: Transfer, state: LegState) -> tuple[Leg, ...]:
    """Returns the transfer's legs with its first one in another state."""
    return with_leg(before, replace(before.legs[0], state=state)).legs


def asked(before: Transfer) -> tuple[Leg, ...]:
    """Returns the transfer's legs with its first one asked."""
    return with_state(before, LegState.ASKED)


async def accepted(store: TransferStore, *transfers: Transfer) -> list[Transfer]:
    """Accepts transfers, all of which must be new, and returns them."""
    assert await store.accept([proposal(each) for each in transfers]) == [Accepted()] * len(transfers)
    return list(transfers)


async def changed(store: TransferStore, *changes: Change) -> list[Transfer]:
    """Records changes, none of which may be of an older revision, and returns the transfers as recorded."""
    results = [each for each in await store.record(changes) if each is not None]
    assert len(results) == len(changes)
    return results


async def as_recorded(store: TransferStore, *transfers: Transfer) -> list[Transfer]:
    """Returns the current state of transfers, all of which must be on record."""
    found = [each for each in await store.get([each.id for each in transfers]) if each is not None]
    assert len(found) == len(transfers)
    return found


async def taken(store: TransferStore, before: Transfer, *statuses: Status, failure: Code | None = None) -> Transfer:
    """Takes a transfer through some statuses and returns it as last recorded."""
    for status in statuses:
        [before] = await changed(store, step(before, status, failure=failure if status is FAILED else None))
    return before


class StoreTests(ContractTests):
    """A part of the contract."""

    @pytest_asyncio.fixture(loop_scope="function")
    async def harness(self, new_harness: Callable[[], StoreHarness]) -> AsyncIterator[StoreHarness]:
        """A new harness with its store open, for one test."""
        harness = new_harness()
        await harness.open()
        yield harness
        await harness.close()

    @pytest.fixture
    def store(self, harness: StoreHarness) -> TransferStore:
        """The port alone, for tests that never reopen."""
        return harness.store
