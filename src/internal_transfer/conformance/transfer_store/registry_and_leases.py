"""The registry of accounts, the leases of nodes, and the largest ledger timestamp."""

import pytest

from internal_transfer.conformance.transfer_store.harness import StoreHarness
from internal_transfer.conformance.transfer_store.transfers import (
    ADA,
    BOB,
    NOON,
    PENDING,
    StoreTests,
    accepted,
    step,
    transfer,
)
from internal_transfer.domain.account import Account, Owner
from internal_transfer.ports.errors import Unavailable
from internal_transfer.ports.transfer_store import RegisteredAccount


class RegistryAndLeases(StoreTests):
    """The registry of accounts, the leases of nodes, and the largest ledger timestamp."""

    async def test_registered_numbers_are_stable_and_unique(self, harness: StoreHarness) -> None:
        """An account keeps its number within a batch, between batches and after a restart."""
        one, two, three = Account(ADA, "funding", "USDT"), Account(ADA, "spot", "USDT"), Account(BOB, "spot", "BTC")
        assert await harness.store.register([two, one, two]) == [
            RegisteredAccount(1, two),
            RegisteredAccount(2, one),
            RegisteredAccount(1, two),
        ]
        await harness.reopen()
        assert [each.number for each in await harness.store.register([one, three, two])] == [2, 3, 1]
        assert await harness.store.registered(ADA) == [RegisteredAccount(1, two), RegisteredAccount(2, one)]
        assert await harness.store.registered(Owner("eve")) == []
        assert await harness.store.registered_by_number([3, 9, 1, 3]) == [three, None, two, three]

    async def test_node_leases_are_exclusive(self, harness: StoreHarness) -> None:
        """Holders get different nodes, a holder renews its own, and only an ended lease passes to another."""
        first = await harness.store.lease_node("a", now_ms=NOON, lease_ms=100)
        second = await harness.store.lease_node("b", now_ms=NOON, lease_ms=100)
        assert first != second
        await harness.reopen()
        assert await harness.store.lease_node("a", now_ms=NOON + 50, lease_ms=100) == first
        third = await harness.store.lease_node("c", now_ms=NOON + 120, lease_ms=100)
        assert third != first

    async def test_nodes_run_out_and_ended_leases_are_taken_over(self, harness: StoreHarness) -> None:
        """With all nodes leased a newcomer is refused, until it gets the one whose lease ended longest ago."""
        nodes = [await harness.store.lease_node(f"h{n}", now_ms=NOON + n, lease_ms=2_000) for n in range(1024)]
        assert sorted(nodes) == list(range(1024))
        with pytest.raises(Unavailable):
            await harness.store.lease_node("late", now_ms=NOON + 1_999, lease_ms=2_000)
        assert await harness.store.lease_node("h0", now_ms=NOON + 1_999, lease_ms=2_000) == nodes[0]
        assert await harness.store.lease_node("late", now_ms=NOON + 2_500, lease_ms=2_000) == nodes[1]
        assert await harness.store.lease_node("h1", now_ms=NOON + 2_500, lease_ms=2_000) == nodes[2]

    async def test_the_largest_ledger_timestamp_is_remembered(self, harness: StoreHarness) -> None:
        """The largest timestamp rises with the records, never falls, and survives a restart."""
        assert await harness.store.ledger_seen() == 0
        first, second = await accepted(harness.store, transfer(1), transfer(2))
        await harness.store.record(
            [step(first, PENDING, ledger_timestamp=900), step(second, PENDING, ledger_timestamp=500)]
        )
        assert await harness.store.ledger_seen() == 900
        await harness.reopen()
        assert await harness.store.ledger_seen() == 900
