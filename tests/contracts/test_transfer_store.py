"""Our own stores keep the contract of `ports/transfer_store.py`; and what is their own."""

import pytest
from msgspec.structs import replace

from contracts.transfer_stores import (
    ADAPTERS,
    EMBEDDED,
    GUARDED,
    CassandraHarness,
    EmbeddedStore,
    PostgresqlStore,
    open_embedded,
)
from internal_transfer.adapters.cassandra.transfer_store import history as cassandra_history
from internal_transfer.adapters.postgresql import transfer_store as postgresql
from internal_transfer.adapters.sqlite import transfer_store as sqlite
from internal_transfer.conformance.transfer_store.contract import StoreExamples
from internal_transfer.conformance.transfer_store.history import walk
from internal_transfer.conformance.transfer_store.transfers import (
    DAY,
    FAILED,
    PENDING,
    accepted,
    proposal,
    step,
    taken,
    transfer,
)
from internal_transfer.domain.account import Account
from internal_transfer.domain.refusal import Code
from internal_transfer.ports.errors import Unavailable
from internal_transfer.ports.transfer_store import HistoryQuery


@pytest.fixture(params=sorted(ADAPTERS))
def new_harness(request, tmp_path):
    match request.param:
        case "postgresql":
            return PostgresqlStore
        case "cassandra":
            return CassandraHarness
        case adapter:
            return lambda: EmbeddedStore(tmp_path / "store.db", EMBEDDED[adapter])


class TestTransferStore(StoreExamples):
    """Every rule, on every store."""

    @pytest.mark.parametrize("new_harness", sorted(GUARDED), indirect=True)
    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE transfer SET updated_at = 0",
            "DELETE FROM transfer",
            "UPDATE transfer_key SET transfer_id = 0",
            "DELETE FROM transfer_key",
            "UPDATE transfer_event SET at = 0",
            "DELETE FROM transfer_event",
            "UPDATE registered_account SET owner = 'eve'",
            "DELETE FROM registered_account",
        ],
    )
    async def test_the_database_itself_refuses_to_rewrite_history(self, harness, statement):
        """A statement run past the store cannot change a final transfer, a key, an event or the registry."""
        [first] = await accepted(harness.store, transfer())
        await taken(harness.store, first, FAILED)
        await harness.store.register([first.source])
        await harness.durable()
        with pytest.raises(harness.refusal):
            await harness.write(statement)

    async def test_a_filtered_walk_over_many_rows_finds_what_is_far_away(self, harness, monkeypatch):
        """A filtered page that reaches its bound of rows ends early with a cursor; the walk still finds everything."""
        for adapter in (sqlite, postgresql, cassandra_history):
            monkeypatch.setattr(adapter, "HISTORY_SCAN_MAX", 3)
        batch = [transfer(number, asset="BTC" if number in {0, 4, 10} else "USDT") for number in range(11)]
        await accepted(harness.store, *batch)
        page = await harness.store.history(HistoryQuery(owner="ada", most=2, asset="BTC"))
        assert ([each.id for each in page.transfers], page.next_after is not None) == ([batch[10].id], True)
        assert [each.id for each in await walk(harness.store, asset="BTC")] == [batch[n].id for n in (10, 4, 0)]
        assert len(await walk(harness.store)) == 11


@pytest.mark.parametrize("adapter", sorted(EMBEDDED))
async def test_a_turn_taken_back_leaves_nothing(adapter, tmp_path):
    """After a failed commit, keys, ids, sums, events, numbers and timestamps are as before, and can be used again."""
    harness = await open_embedded(adapter, tmp_path)
    [kept] = await accepted(harness.store, transfer(1))
    await harness.store.register([Account("ada", "funding", "USDT")])
    await harness.durable()
    lost = transfer(2, key="k")
    failing = step(kept, FAILED, ledger_timestamp=900, failure=Code.EXPIRED)
    account = Account("ada", "spot", "USDT")
    await harness.lose(
        ("accept", ([proposal(lost)],)),
        ("record", ([failing],)),
        ("register", ([account],)),
    )
    store = harness.store
    assert await store.get([kept.id, lost.id]) == [kept, None]
    assert await store.by_keys([("ada", "k")]) == [None]
    assert await store.daily_used("ada", "USDT", DAY) == 100
    assert await store.ledger_seen() == 0
    assert [event.transfer_id for _, event in await store.feed(0, 10)] == [kept.id]
    assert await walk(store) == [kept]
    await accepted(store, lost)
    assert await store.record([failing]) == [replace(failing.after, revision=2)]
    assert [event.transfer_id for _, event in await store.feed(0, 10)] == [kept.id, lost.id, kept.id]
    [registered] = await store.register([account])
    assert await store.registered_by_number([registered.number]) == [account]
    await harness.reopen()
    assert await harness.store.daily_used("ada", "USDT", DAY) == 100
    assert [each.id for each in await walk(harness.store)] == [lost.id, kept.id]
    await harness.close()


async def test_a_turn_that_breaks_before_its_end_leaves_nothing(tmp_path):
    """When another adapter's call fails, what the store noted in the same turn is forgotten, not written later."""
    harness = await open_embedded("embedded-shared", tmp_path)
    [kept] = await accepted(harness.store, transfer(1))
    await harness.durable()
    await accepted(harness.store, transfer(2))
    await taken(harness.store, kept, PENDING)
    with pytest.raises(Unavailable):
        harness.break_turn()
    with pytest.raises(Unavailable):
        await harness.store.get([kept.id])
    with pytest.raises(Unavailable):
        await harness.durable()
    await accepted(harness.store, transfer(3))
    await harness.durable()
    assert await harness.store.get([kept.id, transfer(2).id]) == [kept, None]
    assert await harness.store.daily_used("ada", "USDT", DAY) == 200
    await accepted(harness.store, transfer(2))
    await harness.reopen()
    assert await walk(harness.store) == [transfer(2), transfer(3), kept]
    await harness.close()
