"""The contract of `ports/transfer_store.py`, run on every adapter."""

import pytest
from msgspec.structs import replace

from internal_transfer.adapters.cassandra.transfer_store import history as cassandra_history
from internal_transfer.adapters.postgresql import transfer_store as postgresql
from internal_transfer.adapters.sqlite import transfer_store as sqlite
from internal_transfer.conformance.transfer_store.transfers import (
    ADAPTERS,
    DAY,
    EMBEDDED,
    GUARDED,
    NOON,
    asked,
    close_store,
    open_embedded,
    open_store,
    proposal,
    step,
    transfer,
    with_state,
)
from internal_transfer.domain.account import Account
from internal_transfer.domain.identifier import MILLISECONDS_PER_DAY, snowflake
from internal_transfer.domain.leg import Leg, LegState, Side
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.transfer import Decision, IllegalTransition, Need, Status
from internal_transfer.ports.errors import Unavailable
from internal_transfer.ports.transfer_store import (
    Accepted,
    Change,
    DailyLimitExceeded,
    HistoryQuery,
    IdTaken,
    KeyTaken,
    RegisteredAccount,
)

REQUESTING, PENDING, SUCCESS, FAILED = Status.REQUESTING, Status.PENDING, Status.SUCCESS, Status.FAILED


@pytest.fixture(params=sorted(ADAPTERS))
async def stack(request, tmp_path):
    opened = await open_store(request.param, tmp_path)
    yield opened
    await close_store(opened)


@pytest.fixture
def store(stack):
    """The port alone, for tests that never reopen."""
    return stack.store


async def accepted(store, *transfers):
    """Accepts transfers, all of which must be new, and answers them."""
    assert await store.accept([proposal(each) for each in transfers]) == [Accepted()] * len(transfers)
    return list(transfers)


async def taken(store, before, *statuses, failure=None):
    """Takes a transfer through some statuses."""
    for status in statuses:
        (before,) = await store.record([step(before, status, failure=failure if status is FAILED else None)])
        assert before is not None
    return before


# Keys and ids.


async def test_an_accepted_transfer_is_read_back_as_it_was(store):
    """What is accepted is found by id and by key at once, field by field."""
    memo = "für Ada 💶"
    (first,) = await accepted(store, transfer(amount=2**112 - 1, memo=memo, legs=()))
    assert await store.get([first.id]) == [first]
    assert await store.by_keys([("ada", first.key)]) == [KeyTaken(first, b"content")]


async def test_unknown_ids_and_keys_are_none(store):
    """Answers keep the order asked, with None for what is not on record."""
    first, second = await accepted(store, transfer(1), transfer(2))
    assert await store.get([second.id, 77, first.id, second.id]) == [second, None, first, second]
    asked_keys = [("ada", second.key), ("ada", "other"), ("bob", first.key), ("ada", first.key)]
    found = await store.by_keys(asked_keys)
    assert found == [KeyTaken(second, b"content"), None, None, KeyTaken(first, b"content")]


async def test_a_used_key_answers_its_transfer_and_records_nothing(store):
    """The second claim of a key gets the first's transfer, as it is now, and its fingerprint (G6)."""
    (first,) = await accepted(store, transfer(1, key="k"))
    pending = await taken(store, first, PENDING)
    again = transfer(2, key="k", amount=5)
    assert await store.accept([proposal(again, fingerprint=b"other")]) == [KeyTaken(pending, b"content")]
    assert await store.get([again.id]) == [None]
    assert await store.daily_used("ada", "USDT", DAY) == 100
    assert len(await store.feed(0, 10)) == 2


async def test_a_key_is_claimed_once_within_a_batch(store):
    """Of two proposals with one key in a batch the first wins, and another owner's same key is another key."""
    first, second, other = transfer(1, key="k"), transfer(2, key="k"), transfer(3, key="k", owner="bob")
    outcomes = await store.accept([proposal(first), proposal(second, fingerprint=b"x"), proposal(other)])
    assert outcomes == [Accepted(), KeyTaken(first, b"content"), Accepted()]
    assert await store.get([first.id, second.id, other.id]) == [first, None, other]


async def test_a_key_outlives_its_failed_transfer(stack):
    """What failed stays failed under its key, also after a restart."""
    (first,) = await accepted(stack.store, transfer(key="k"))
    failed = await taken(stack.store, first, FAILED, failure=Code.INSUFFICIENT_BALANCE)
    await stack.reopen()
    assert await stack.store.accept([proposal(transfer(9, key="k"))]) == [KeyTaken(failed, b"content")]


async def test_a_taken_id_is_refused_and_its_key_stays_free(stack):
    """An id is inserted only if absent: within a batch, later, and after a restart; the key can be used again."""
    first = transfer(1)
    clash = transfer(1, key="k", owner="bob", amount=7)
    assert await stack.store.accept([proposal(first), proposal(clash)]) == [Accepted(), IdTaken()]
    assert await stack.store.accept([proposal(clash)]) == [IdTaken()]
    await stack.reopen()
    await accepted(stack.store, transfer(5))
    assert await stack.store.accept([proposal(clash)]) == [IdTaken()]
    assert await stack.store.get([first.id]) == [first]
    assert await stack.store.daily_used("bob", "USDT", DAY) == 0
    await accepted(stack.store, replace(clash, id=transfer(2).id))


async def test_the_key_is_looked_at_before_the_id_and_the_id_before_the_limit(store):
    """A retry finds its transfer whatever else is wrong, and an id that is taken is said before a limit."""
    (first,) = await accepted(store, transfer(1, key="k"))
    outcomes = await store.accept([proposal(first, daily_units=0), proposal(transfer(1, key="l"), daily_units=0)])
    assert outcomes == [KeyTaken(first, b"content"), IdTaken()]


# Daily limits (G13).


async def test_a_daily_limit_is_exact(store):
    """The last unit can be used and not one more; what is left is told, and a refusal leaves nothing behind."""
    await accepted(store, transfer(1, amount=60))
    over = transfer(2, amount=41, key="k")
    assert await store.accept([proposal(over, daily_units=100)]) == [DailyLimitExceeded(40)]
    assert await store.by_keys([("ada", "k")]) == [None]
    assert await store.get([over.id]) == [None]
    assert await store.accept([proposal(replace(over, amount=40), daily_units=100)]) == [Accepted()]
    assert await store.accept([proposal(transfer(3, amount=1), daily_units=100)]) == [DailyLimitExceeded(0)]
    assert await store.accept([proposal(transfer(3, amount=1), daily_units=50)]) == [DailyLimitExceeded(0)]
    assert await store.daily_used("ada", "USDT", DAY) == 100


async def test_a_daily_limit_holds_within_a_batch(store):
    """Proposals of one batch see what those before them used, and a smaller one may fit after a larger did not."""
    batch = [proposal(transfer(n, amount=amount), daily_units=100) for n, amount in enumerate((60, 50, 30, 20, 10))]
    outcomes = await store.accept(batch)
    assert outcomes == [Accepted(), DailyLimitExceeded(40), Accepted(), DailyLimitExceeded(10), Accepted()]


async def test_a_daily_limit_is_by_owner_asset_and_day(store):
    """Other owners, assets and UTC days have sums of their own; the day is that of the id's time."""
    midnight = (DAY + 1) * MILLISECONDS_PER_DAY
    batch = [
        transfer(amount=100, at=midnight - 1),
        transfer(amount=100, at=midnight),
        transfer(1, amount=100, owner="bob"),
        transfer(2, amount=100, asset="BTC"),
    ]
    assert await store.accept([proposal(each, daily_units=100) for each in batch]) == [Accepted()] * 4
    assert [await store.daily_used("ada", "USDT", DAY + n) for n in (-1, 0, 1, 2)] == [0, 100, 100, 0]
    assert await store.daily_used("bob", "USDT", DAY) == 100
    assert await store.daily_used("ada", "BTC", DAY) == 100


async def test_a_daily_limit_survives_a_restart(stack):
    """Sums beyond 64 bits are exact after reopening."""
    await accepted(stack.store, transfer(1, amount=2**112 - 1), transfer(2, amount=2**112 - 1))
    await stack.reopen()
    assert await stack.store.daily_used("ada", "USDT", DAY) == 2**113 - 2
    (outcome,) = await stack.store.accept([proposal(transfer(3, amount=2), daily_units=2**113 - 1)])
    assert outcome == DailyLimitExceeded(1)


async def test_a_failed_transfer_gives_its_share_back_once_to_its_own_day(stack):
    """FAILED after midnight, and after a restart, gives back to the day of the id, and a lost race gives nothing."""
    store = stack.store
    late = transfer(amount=70, at=(DAY + 1) * MILLISECONDS_PER_DAY - 1)
    early = transfer(amount=30, at=(DAY + 1) * MILLISECONDS_PER_DAY)
    await accepted(store, late, early)
    (pending,) = await store.record([step(late, PENDING)])
    await stack.reopen()
    store = stack.store
    change = step(pending, FAILED, failure=Code.CORE_REFUSED)
    assert [each is None for each in await store.record([change, change])] == [False, True]
    assert await store.record([change]) == [None]
    assert [await store.daily_used("ada", "USDT", DAY + n) for n in (0, 1)] == [0, 30]
    await stack.reopen()
    assert [await stack.store.daily_used("ada", "USDT", DAY + n) for n in (0, 1)] == [0, 30]
    assert await stack.store.accept([proposal(transfer(5, amount=70), daily_units=70)]) == [Accepted()]


async def test_success_keeps_its_share(store):
    """A transfer that ended well still counts against its day."""
    (first,) = await accepted(store, transfer(amount=70))
    await taken(store, first, PENDING, SUCCESS)
    assert await store.daily_used("ada", "USDT", DAY) == 70


# Changes.


async def test_every_field_of_a_change_is_recorded(stack):
    """All that a change may write is read back, with the store's own count of revisions."""
    (first,) = await accepted(stack.store, transfer(memo="m"))
    after = step(
        first,
        PENDING,
        legs=(Leg(Side.TARGET, "engine", LegState.REFUSED, 'because "x", ü'),),
        due_at=NOON + 9,
        attempts=3,
        fencing=True,
        decision=Decision.VOID,
        needs_person=Need.CORE_CONTRADICTION,
        post_attempt=4,
        void_attempt=5,
        ledger_timestamp=2**62,
        revision=99,
    )
    (recorded,) = await stack.store.record([after])
    assert recorded == replace(after.after, revision=2)
    await stack.reopen()
    assert await stack.store.get([first.id]) == [recorded]
    (failed,) = await stack.store.record([step(recorded, FAILED, failure=Code.VOIDED_BY_OPERATOR)])
    await stack.reopen()
    assert await stack.store.get([first.id]) == [failed]
    assert (failed.revision, failed.version, failed.failure) == (3, 3, Code.VOIDED_BY_OPERATOR)


async def test_a_change_of_an_older_revision_is_answered_with_none(store):
    """Whoever did not see the last write changes nothing, also within a batch, and the others of the batch go on."""
    first, other = await accepted(store, transfer(1), transfer(2))
    stale = Change(1, replace(first, attempts=9))
    (renewed,) = await store.record([Change(1, replace(first, attempts=1))])
    assert renewed.revision == 2
    results = await store.record([stale, step(other, PENDING), step(other, PENDING), Change(7, renewed)])
    assert [each and each.id for each in results] == [None, other.id, None, None]
    assert await store.get([first.id]) == [renewed]


async def test_a_batch_may_change_a_transfer_twice(store):
    """Each change of a batch sees those before it."""
    (first,) = await accepted(store, transfer())
    pending = step(first, PENDING)
    success = step(replace(pending.after, revision=2), SUCCESS)
    results = await store.record([pending, success])
    assert [(each.status, each.revision) for each in results] == [(PENDING, 2), (SUCCESS, 3)]
    assert [event.status for event in (await store.events([first.id]))[0]] == [REQUESTING, PENDING, SUCCESS]


async def test_a_change_of_a_transfer_that_does_not_exist_is_answered_with_none(store):
    """No record has the expected revision, so nothing is written."""
    assert await store.record([step(transfer(), PENDING)]) == [None]
    assert await store.get([transfer().id]) == [None]
    assert await store.feed(0, 10) == []


LEGAL = {(REQUESTING, PENDING), (REQUESTING, FAILED), (PENDING, SUCCESS), (PENDING, FAILED)}
WAYS = {REQUESTING: (), PENDING: (PENDING,), SUCCESS: (PENDING, SUCCESS), FAILED: (FAILED,)}


@pytest.mark.parametrize(("before", "after"), [(one, two) for one in Status for two in Status if one is not two])
async def test_only_changes_of_the_table_are_recorded(stack, before, after):
    """Each pair of statuses is either legal or raises; then nothing of the batch is recorded, and others' work is
    kept (G8).
    """
    store = stack.store
    first, other = await accepted(store, transfer(1), transfer(2))
    first = await taken(store, first, *WAYS[before])
    wanted = Change(first.revision, replace(first, status=after, version=first.version + 1))
    if (before, after) in LEGAL:
        (recorded,) = await store.record([wanted])
        assert recorded.status is after
    else:
        with pytest.raises(IllegalTransition):
            await store.record([step(other, PENDING), wanted])
        await stack.reopen()
        assert await stack.store.get([first.id, other.id]) == [first, other]
        assert [len(events) for events in await stack.store.events([first.id, other.id])] == [first.version, 1]


@pytest.mark.parametrize("final", [SUCCESS, FAILED])
async def test_a_final_transfer_takes_no_change_at_all(stack, final):
    """Not even a change that keeps the status touches a final record (G8)."""
    (first,) = await accepted(stack.store, transfer())
    ended = await taken(stack.store, first, *WAYS[final])
    with pytest.raises(IllegalTransition):
        await stack.store.record([Change(ended.revision, replace(ended, attempts=1))])
    await stack.reopen()
    assert await stack.store.get([first.id]) == [ended]


@pytest.mark.parametrize("stack", sorted(GUARDED), indirect=True)
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
async def test_the_database_itself_refuses_to_rewrite_history(stack, statement):
    """A statement past the store cannot change a final transfer, a key, an event or the registry."""
    (first,) = await accepted(stack.store, transfer())
    await taken(stack.store, first, FAILED)
    await stack.store.register([first.source])
    await stack.durable()
    with pytest.raises(stack.refusal):
        await stack.write(statement)


# Events and the feed (G11).


async def test_every_transition_has_exactly_one_event(stack):
    """Changes of status have one event each, with its version, time and code; other changes have none."""
    store = stack.store
    (first,) = await accepted(store, transfer())
    (renewed,) = await store.record([Change(1, replace(first, attempts=1, updated_at=NOON + 500))])
    pending = await taken(store, renewed, PENDING)
    (pending,) = await store.record([Change(pending.revision, replace(pending, due_at=NOON + 99))])
    await taken(store, pending, FAILED, failure=Code.CORE_REFUSED)
    await stack.reopen()
    events, none = await stack.store.events([first.id, 77])
    assert [(event.transfer_id, event.version, event.status, event.at, event.code) for event in events] == [
        (first.id, 1, REQUESTING, NOON, None),
        (first.id, 2, PENDING, NOON + 1_500, None),
        (first.id, 3, FAILED, NOON + 2_500, Code.CORE_REFUSED),
    ]
    assert none == []
    assert [event for _, event in await stack.store.feed(0, 10)] == events


async def test_a_reader_of_the_feed_never_skips(stack):
    """A reader that goes on from its last number, between writes and restarts, gets every event once, in order."""
    seen, after = [], 0
    for number in range(12):
        (each,) = await accepted(stack.store, transfer(number))
        if number % 2:
            await taken(stack.store, each, PENDING, SUCCESS)
        for sequence, event in await stack.store.feed(after, 3):
            assert sequence > after
            after = sequence
            seen.append(event)
        if number % 5 == 4:
            await stack.reopen()
    while page := await stack.store.feed(after, 3):
        after = page[-1][0]
        seen.extend(event for _, event in page)
    ids = [transfer(number).id for number in range(12)]
    assert sorted(seen, key=lambda event: (event.transfer_id, event.version)) == [
        event for events in await stack.store.events(ids) for event in events
    ]


async def test_a_reader_of_the_feed_finds_its_place_again(stack):
    """Each reader has a position of its own, 0 at first, which survives a restart and never goes back."""
    store = stack.store
    assert await store.reader_position("publisher") == 0
    await store.move_reader("publisher", 7)
    await store.move_reader("webhooks", 3)
    await store.move_reader("publisher", 5)
    assert [await store.reader_position(each) for each in ("publisher", "webhooks", "other")] == [7, 3, 0]
    await stack.reopen()
    await stack.store.move_reader("publisher", 7)
    assert await stack.store.reader_position("publisher") == 7
    await stack.store.move_reader("publisher", 8)
    assert await stack.store.reader_position("publisher") == 8


# History.


async def walk(store, *, most=2, meanwhile=None, **query):
    """All transfers of a history, page by page, with something done after each page."""
    met, after, until = [], None, None
    while True:
        page = await store.history(HistoryQuery(owner="ada", most=most, after=after, until=until, **query))
        assert len(page.transfers) <= most
        met.extend(page.transfers)
        if page.next_after is None:
            return met
        after, until = page.next_after, page.until
        if meanwhile is not None:
            await meanwhile()


async def test_history_shows_the_newest_accepted_first(store):
    """The order is that of acceptance, not of ids or times, and other owners' transfers are left out."""
    ids = [3, 9, 1, 7, 5]
    for number in ids:
        await accepted(store, transfer(number, at=NOON - number), transfer(number, owner="bob", at=NOON + number + 1))
    expected = [transfer(number, at=NOON - number) for number in reversed(ids)]
    assert await walk(store) == expected
    assert await walk(store, most=5) == expected
    assert await walk(store, most=100) == expected


async def test_a_walk_meets_what_was_committed_before_it_exactly_once(stack):
    """While others accept transfers, with ids above and below, and statuses change, a walk neither skips nor
    repeats, and shows each transfer as it is when its page is read.
    """
    before = [transfer(number) for number in (50, 10, 90, 30, 70)]
    await accepted(stack.store, *before)
    await stack.durable()
    numbers = iter((20, 95, 1, 60, 99, 2))

    async def meanwhile():
        await accepted(stack.store, transfer(next(numbers)))
        (oldest,) = await stack.store.get([before[0].id])
        if oldest.status is REQUESTING:
            await taken(stack.store, oldest, PENDING)
        await stack.durable()

    met = await walk(stack.store, meanwhile=meanwhile)
    assert [each.id for each in met] == [each.id for each in reversed(before)]
    assert [each.status for each in met] == [REQUESTING] * 4 + [PENDING]


MOVES = [
    # number, asset, route, created, statuses taken
    (1, "USDT", ("funding", "spot"), NOON, (PENDING, SUCCESS)),
    (2, "BTC", ("spot", "funding"), NOON + 10, (PENDING,)),
    (3, "USDT", ("spot", "margin"), NOON + 20, (FAILED,)),
    (4, "USDT", ("margin", "spot"), NOON + 30, ()),
    (5, "BTC", ("funding", "earn"), NOON + 40, (PENDING, SUCCESS)),
]


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
async def test_history_filters(store, query, numbers):
    """Each filter, and several together, show exactly what fits, on pages of every size."""
    for number, asset, route, created_at, statuses in MOVES:
        (each,) = await accepted(store, transfer(number, asset=asset, route=route, created_at=created_at))
        await taken(store, each, *statuses)
    for most in (1, 2, 10):
        met = await walk(store, most=most, **query)
        assert [each.id for each in met] == [transfer(number).id for number in numbers]


async def test_a_filtered_walk_over_many_rows_finds_what_is_far_away(stack, monkeypatch):
    """A page that looked at its share of rows ends early with a cursor, and the walk still meets everything."""
    for adapter in (sqlite, postgresql, cassandra_history):
        monkeypatch.setattr(adapter, "HISTORY_SCAN_MAX", 3)
    batch = [transfer(number, asset="BTC" if number in {0, 4, 10} else "USDT") for number in range(11)]
    await accepted(stack.store, *batch)
    page = await stack.store.history(HistoryQuery(owner="ada", most=2, asset="BTC"))
    assert ([each.id for each in page.transfers], page.next_after is not None) == ([batch[10].id], True)
    assert [each.id for each in await walk(stack.store, asset="BTC")] == [batch[n].id for n in (10, 4, 0)]
    assert len(await walk(stack.store)) == 11


# What the scanner and the operators ask for.


async def test_due_transfers_are_claimed_once_and_oldest_first(stack):
    """A lease keeps a row from others until it ends; final rows and rows not yet due are never claimed."""
    store = stack.store
    batch = await accepted(store, *[transfer(n, due_at=NOON + due) for n, due in enumerate((30, 10, 20, 40, 0))])
    await taken(store, batch[4], FAILED)
    claimed = await store.lease_due(now_ms=NOON + 30, lease_ms=100, most=2)
    assert claimed == [replace(batch[n], due_at=NOON + 130) for n in (1, 2)]
    assert await store.get([batch[1].id]) == [claimed[0]]
    assert [each.id for each in await store.lease_due(now_ms=NOON + 30, lease_ms=100, most=5)] == [batch[0].id]
    assert await store.lease_due(now_ms=NOON + 30, lease_ms=100, most=5) == []
    await stack.reopen()
    again = await stack.store.lease_due(now_ms=NOON + 130, lease_ms=100, most=9)
    assert [each.id for each in again] == [batch[n].id for n in (3, 0, 1, 2)]


async def test_a_lease_is_no_revision(store):
    """Whoever read the transfer before it was leased can still record its next state."""
    (first,) = await accepted(store, transfer(due_at=NOON))
    (leased,) = await store.lease_due(now_ms=NOON, lease_ms=50, most=1)
    assert leased.revision == first.revision
    (recorded,) = await store.record([step(first, PENDING, due_at=NOON + 10)])
    assert [each.id for each in await store.lease_due(now_ms=NOON + 10, lease_ms=50, most=1)] == [recorded.id]


async def test_a_restart_makes_all_open_transfers_due(stack):
    """All open transfers become due, and only those, and none is put off by it."""
    batch = await accepted(stack.store, *[transfer(n, due_at=NOON + due) for n, due in enumerate((-5, 50, 60))])
    await taken(stack.store, batch[2], FAILED)
    await stack.reopen()
    assert await stack.store.make_due(now_ms=NOON) == 2
    assert [each.due_at for each in await stack.store.get([each.id for each in batch[:2]])] == [NOON - 5, NOON]
    claimed = await stack.store.lease_due(now_ms=NOON, lease_ms=50, most=9)
    assert [each.id for each in claimed] == [batch[0].id, batch[1].id]


@pytest.mark.parametrize("status", list(Status))
async def test_transfers_are_listed_by_status(stack, status):
    """A status lists its transfers by rising id, page by page, whatever order they were accepted in."""
    expected = []
    for number in (8, 2, 6, 4):
        for offset, other in enumerate(Status):
            (each,) = await accepted(stack.store, transfer(number * 10 + offset))
            each = await taken(stack.store, each, *WAYS[other])
            expected += [each] if other is status else []
    await stack.reopen()
    expected.sort(key=lambda each: each.id)
    assert await stack.store.by_status(status, after=None, most=3) == expected[:3]
    assert await stack.store.by_status(status, after=expected[2].id, most=3) == expected[3:]
    assert await stack.store.by_status(status, after=expected[3].id, most=3) == []


async def test_stuck_transfers_are_old_or_need_a_person(store):
    """Open transfers from before the time, and those that need a person, oldest first; never final ones."""
    batch = await accepted(store, *[transfer(n, created_at=NOON + at) for n, at in enumerate((50, 10, 90, 20, 95))])
    await store.record([Change(1, replace(batch[2], needs_person=Need.HOLD_COLLISION))])
    await taken(store, batch[3], PENDING, SUCCESS)
    stuck = await store.stuck(open_before_ms=NOON + 50, most=9)
    assert [each.id for each in stuck] == [batch[1].id, batch[2].id]
    assert stuck[1].needs_person is Need.HOLD_COLLISION
    assert [each.id for each in await store.stuck(open_before_ms=NOON + 51, most=2)] == [batch[1].id, batch[0].id]


async def test_the_summary_counts_what_is_open(stack):
    """Counts, ages and reasons are those of open transfers; both open statuses are always named."""
    empty = await stack.store.open_summary()
    assert (empty.by_status, empty.oldest_open_ms) == ({REQUESTING: 0, PENDING: 0}, {})
    assert (empty.oldest_asked_ms, empty.needs_person) == ({}, {})
    batch = await accepted(stack.store, *[transfer(n, created_at=NOON + at) for n, at in enumerate((50, 10, 20, 5))])
    await taken(stack.store, batch[3], FAILED)
    await stack.store.record([step(batch[1], PENDING), step(batch[2], PENDING, needs_person=Need.HOLD_MISSING)])
    await stack.reopen()
    summary = await stack.store.open_summary()
    assert summary.by_status == {REQUESTING: 1, PENDING: 2}
    assert summary.oldest_open_ms == {REQUESTING: NOON + 50, PENDING: NOON + 10}
    assert summary.needs_person == {"hold_missing": 1}


async def test_the_summary_tells_since_when_each_core_owes_an_answer(stack):
    """The time is that of the asking: retries do not renew it, an answer ends it, another order starts it again, and
    nothing is owed to a final transfer or one that waits for a person.
    """
    legs = (Leg(Side.SOURCE, "one"), Leg(Side.TARGET, "two"))
    first, second = await accepted(stack.store, transfer(1, legs=legs), transfer(2, legs=legs))
    (first,) = await stack.store.record([step(first, PENDING, legs=asked(first))])
    await stack.reopen()
    (second,) = await stack.store.record([step(replace(second, updated_at=NOON + 50), PENDING, legs=asked(second))])
    retried = replace(first, attempts=1, updated_at=NOON + 7_000)
    (first,) = await stack.store.record([Change(first.revision, retried)])
    await stack.reopen()
    assert (await stack.store.open_summary()).oldest_asked_ms == {"one": NOON + 1_000}
    both = (with_state(first, LegState.APPLIED)[0], replace(legs[1], state=LegState.ASKED))
    (first,) = await stack.store.record([Change(first.revision, replace(first, legs=both, updated_at=NOON + 8_000))])
    assert (await stack.store.open_summary()).oldest_asked_ms == {"one": NOON + 1_050, "two": NOON + 8_000}
    undoing = (replace(both[0], state=LegState.REVERSING), replace(both[1], state=LegState.REFUSED))
    (first,) = await stack.store.record([Change(first.revision, replace(first, legs=undoing, updated_at=NOON + 9_000))])
    (third,) = await accepted(stack.store, transfer(3, legs=legs))
    (third,) = await stack.store.record([step(third, PENDING, legs=asked(third), decision=Decision.POST)])
    await taken(stack.store, third, SUCCESS)
    doubted = replace(second, needs_person=Need.CORE_CONTRADICTION)
    await stack.store.record([Change(second.revision, doubted)])
    assert (await stack.store.open_summary()).oldest_asked_ms == {"one": NOON + 9_000}


# The registry, worker leases and the ledger's mark.


async def test_registered_numbers_are_stable_and_unique(stack):
    """An account keeps its number for ever, within a batch, between batches and after a restart."""
    one, two, three = Account("ada", "funding", "USDT"), Account("ada", "spot", "USDT"), Account("bob", "spot", "BTC")
    assert await stack.store.register([two, one, two]) == [
        RegisteredAccount(1, two),
        RegisteredAccount(2, one),
        RegisteredAccount(1, two),
    ]
    await stack.reopen()
    assert [each.number for each in await stack.store.register([one, three, two])] == [2, 3, 1]
    assert await stack.store.registered("ada") == [RegisteredAccount(1, two), RegisteredAccount(2, one)]
    assert await stack.store.registered("eve") == []
    assert await stack.store.registered_by_number([3, 9, 1, 3]) == [three, None, two, three]


async def test_worker_leases_are_exclusive(stack):
    """Holders get different workers, a holder renews its own, and only an ended lease passes to another."""
    first = await stack.store.lease_node("a", now_ms=NOON, lease_ms=100)
    second = await stack.store.lease_node("b", now_ms=NOON, lease_ms=100)
    assert first != second
    await stack.reopen()
    assert await stack.store.lease_node("a", now_ms=NOON + 50, lease_ms=100) == first
    third = await stack.store.lease_node("c", now_ms=NOON + 120, lease_ms=100)
    assert third != first


async def test_worker_ids_run_out_and_ended_leases_are_taken_over(stack):
    """With all ids leased a newcomer is refused, until the lease that ended longest ago becomes free."""
    workers = [await stack.store.lease_node(f"h{n}", now_ms=NOON + n, lease_ms=2_000) for n in range(1024)]
    assert sorted(workers) == list(range(1024))
    with pytest.raises(Unavailable):
        await stack.store.lease_node("late", now_ms=NOON + 1_999, lease_ms=2_000)
    assert await stack.store.lease_node("h0", now_ms=NOON + 1_999, lease_ms=2_000) == workers[0]
    assert await stack.store.lease_node("late", now_ms=NOON + 2_500, lease_ms=2_000) == workers[1]
    assert await stack.store.lease_node("h1", now_ms=NOON + 2_500, lease_ms=2_000) == workers[2]


async def test_the_largest_ledger_timestamp_is_remembered(stack):
    """The mark rises with the records, never falls, and survives a restart."""
    assert await stack.store.ledger_seen() == 0
    first, second = await accepted(stack.store, transfer(1), transfer(2))
    await stack.store.record([step(first, PENDING, ledger_timestamp=900), step(second, PENDING, ledger_timestamp=500)])
    assert await stack.store.ledger_seen() == 900
    await stack.reopen()
    assert await stack.store.ledger_seen() == 900


# What is lost is lost whole.


@pytest.mark.parametrize("adapter", sorted(EMBEDDED))
async def test_a_turn_taken_back_leaves_nothing(adapter, tmp_path):
    """After a commit that failed, keys, ids, sums, events, numbers and marks are as before, and all can be used."""
    stack = open_embedded(adapter, tmp_path)
    (kept,) = await accepted(stack.store, transfer(1))
    await stack.store.register([Account("ada", "funding", "USDT")])
    await stack.durable()
    lost = transfer(2, key="k")
    failing = step(kept, FAILED, ledger_timestamp=900, failure=Code.EXPIRED)
    account = Account("ada", "spot", "USDT")
    await stack.lose(
        ("accept", ([proposal(lost)],)),
        ("record", ([failing],)),
        ("register", ([account],)),
    )
    store = stack.store
    assert await store.get([kept.id, lost.id]) == [kept, None]
    assert await store.by_keys([("ada", "k")]) == [None]
    assert await store.daily_used("ada", "USDT", DAY) == 100
    assert await store.ledger_seen() == 0
    assert [event.transfer_id for _, event in await store.feed(0, 10)] == [kept.id]
    assert await walk(store) == [kept]
    await accepted(store, lost)
    assert await store.record([failing]) == [replace(failing.after, revision=2)]
    assert [event.transfer_id for _, event in await store.feed(0, 10)] == [kept.id, lost.id, kept.id]
    (registered,) = await store.register([account])
    assert await store.registered_by_number([registered.number]) == [account]
    await stack.reopen()
    assert await stack.store.daily_used("ada", "USDT", DAY) == 100
    assert [each.id for each in await walk(stack.store)] == [lost.id, kept.id]
    await close_store(stack)


async def test_a_turn_that_breaks_before_its_end_leaves_nothing(tmp_path):
    """When another adapter's call fails, what the store noted in the same turn is forgotten, not written later."""
    stack = open_embedded("embedded-shared", tmp_path)
    (kept,) = await accepted(stack.store, transfer(1))
    await stack.durable()
    await accepted(stack.store, transfer(2))
    await taken(stack.store, kept, PENDING)
    with pytest.raises(Unavailable):
        stack.break_turn()
    with pytest.raises(Unavailable):
        await stack.store.get([kept.id])
    with pytest.raises(Unavailable):
        await stack.durable()
    await accepted(stack.store, transfer(3))
    await stack.durable()
    assert await stack.store.get([kept.id, transfer(2).id]) == [kept, None]
    assert await stack.store.daily_used("ada", "USDT", DAY) == 200
    await accepted(stack.store, transfer(2))
    await stack.reopen()
    assert await walk(stack.store) == [transfer(2), transfer(3), kept]
    await stack.durable()
    stack.close()


async def test_a_refusal_that_raises_takes_nobody_elses_work_back(stack):
    """A bug in one caller's batch leaves what others did in the same turn on record."""
    first, second = await accepted(stack.store, transfer(1), transfer(2))
    with pytest.raises(IllegalTransition):
        await stack.store.record([Change(1, replace(first, status=SUCCESS, version=2))])
    pending = await taken(stack.store, second, PENDING)
    await stack.reopen()
    assert await stack.store.get([first.id, second.id]) == [first, pending]


async def test_ids_need_not_rise(stack):
    """An id below the highest is accepted when it is free, in the same turn and after a restart."""
    await accepted(stack.store, transfer(9), transfer(3))
    await stack.reopen()
    low = transfer(1, id=snowflake(at_ms=NOON - 5, worker=0, counter=0))
    await accepted(stack.store, low)
    assert await stack.store.get([low.id]) == [low]
