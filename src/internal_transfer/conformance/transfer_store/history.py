"""An owner's transfers, read page by page."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from internal_transfer.conformance.transfer_store.harness import StoreHarness
from internal_transfer.conformance.transfer_store.transfers import (
    ADA,
    BOB,
    FAILED,
    NOON,
    PENDING,
    REQUESTING,
    SUCCESS,
    StoreTests,
    accepted,
    as_recorded,
    taken,
    transfer,
)
from internal_transfer.domain.transfer import Transfer
from internal_transfer.ports.transfer_store import HistoryQuery, TransferStore


async def walk(
    store: TransferStore, *, most: int = 2, meanwhile: Callable[[], Awaitable[None]] | None = None, **query: Any
) -> list[Transfer]:
    """Returns an owner's whole history, read page by page; `meanwhile` is called between pages."""
    met: list[Transfer] = []
    after, until = None, None
    while True:
        page = await store.history(HistoryQuery(owner=ADA, most=most, after=after, until=until, **query))
        assert len(page.transfers) <= most
        met.extend(page.transfers)
        if page.next_after is None:
            return met
        after, until = page.next_after, page.until
        if meanwhile is not None:
            await meanwhile()


MOVES = [
    # number, asset, route, created, statuses taken
    (1, "USDT", ("funding", "spot"), NOON, (PENDING, SUCCESS)),
    (2, "BTC", ("spot", "funding"), NOON + 10, (PENDING,)),
    (3, "USDT", ("spot", "margin"), NOON + 20, (FAILED,)),
    (4, "USDT", ("margin", "spot"), NOON + 30, ()),
    (5, "BTC", ("funding", "earn"), NOON + 40, (PENDING, SUCCESS)),
]


class History(StoreTests):
    """An owner's transfers, read page by page."""

    async def test_history_shows_the_newest_accepted_first(self, store: TransferStore) -> None:
        """Transfers come in order of acceptance, not of ids or times, and other owners' are left out."""
        ids = [3, 9, 1, 7, 5]
        for number in ids:
            await accepted(store, transfer(number, at=NOON - number), transfer(number, owner=BOB, at=NOON + number + 1))
        expected = [transfer(number, at=NOON - number) for number in reversed(ids)]
        assert await walk(store) == expected
        assert await walk(store, most=5) == expected
        assert await walk(store, most=100) == expected

    async def test_a_walk_meets_what_was_committed_before_it_exactly_once(self, harness: StoreHarness) -> None:
        """While others accept and change transfers, a walk shows each one committed before it began exactly once, in
        its state when its page is read.
        """
        before = [transfer(number) for number in (50, 10, 90, 30, 70)]
        await accepted(harness.store, *before)
        await harness.durable()
        numbers = iter((20, 95, 1, 60, 99, 2))

        async def meanwhile() -> None:
            await accepted(harness.store, transfer(next(numbers)))
            [oldest] = await as_recorded(harness.store, before[0])
            if oldest.status is REQUESTING:
                await taken(harness.store, oldest, PENDING)
            await harness.durable()

        met = await walk(harness.store, meanwhile=meanwhile)
        assert [each.id for each in met] == [each.id for each in reversed(before)]
        assert [each.status for each in met] == [REQUESTING] * 4 + [PENDING]

    @pytest.mark.parametrize(
        ("query", "numbers"),
        [
            ({}, [5, 4, 3, 2, 1]),
            ({"statuses": frozenset({SUCCESS})}, [5, 1]),
            ({"statuses": frozenset({PENDING, FAILED})}, [3, 2]),
            ({"asset": "BTC"}, [5, 2]),
            ({"account_type": "spot"}, [4, 3, 2, 1]),
            ({"account_type": "spot", "direction": "in"}, [4, 1]),
            ({"account_type": "spot", "direction": "out"}, [3, 2]),
            ({"from_ms": NOON + 20}, [5, 4, 3]),
            ({"to_ms": NOON + 20}, [2, 1]),
            ({"from_ms": NOON + 10, "to_ms": NOON + 40}, [4, 3, 2]),
            ({"asset": "USDT", "account_type": "spot", "direction": "in", "statuses": frozenset({SUCCESS})}, [1]),
            ({"asset": "EUR"}, []),
        ],
    )
    async def test_history_filters(self, store: TransferStore, query: dict[str, Any], numbers: list[int]) -> None:
        """Each filter, alone or with others, shows exactly the matching transfers, on pages of every size."""
        for number, asset, route, created_at, statuses in MOVES:
            [each] = await accepted(store, transfer(number, asset=asset, route=route, created_at=created_at))
            await taken(store, each, *statuses)
        for most in (1, 2, 10):
            met = await walk(store, most=most, **query)
            assert [each.id for each in met] == [transfer(number).id for number in numbers]
