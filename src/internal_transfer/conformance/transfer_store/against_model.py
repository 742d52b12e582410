"""The transfer stores against a model of plain dictionaries, with restarts and, where there are turns, lost ones."""

import asyncio
import contextvars
import shutil
import tempfile
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

import real_servers
from contracts.cassandra_stores import CassandraStore
from contracts.postgresql_schemas import PostgresqlSchema
from internal_transfer.conformance.transfer_store.transfers import (
    DAY,
    NOON,
    EmbeddedStore,
    PostgresqlStore,
    proposal,
    transfer,
)
from internal_transfer.domain.account import Account
from internal_transfer.domain.identifier import MILLISECONDS_PER_DAY, day_of
from internal_transfer.domain.leg import LegState
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.transfer import IllegalTransition, Need, Status, with_leg
from internal_transfer.ports.errors import OutcomeUnknown, Unavailable
from internal_transfer.ports.transfer_store import (
    Accepted,
    Change,
    DailyLimitExceeded,
    Event,
    HistoryQuery,
    IdTaken,
    KeyTaken,
)

LEGAL = {
    (Status.REQUESTING, Status.PENDING),
    (Status.REQUESTING, Status.FAILED),
    (Status.PENDING, Status.SUCCESS),
    (Status.PENDING, Status.FAILED),
}
OPEN = {Status.REQUESTING, Status.PENDING}
OWNERS = ("ada", "bob")
LATE = (DAY + 1) * MILLISECONDS_PER_DAY - 1
"""Ids of this time with an even number, and of one millisecond later with an odd one, are of two days."""

PROPOSALS = st.builds(
    lambda number, owner, key, amount, limit, due: proposal(
        transfer(number, at=LATE + number % 2, owner=owner, key=key, amount=amount, due_at=NOON + due),
        fingerprint=f"{key}/{amount}".encode(),
        daily_units=limit,
    ),
    number=st.integers(0, 11),
    owner=st.sampled_from(OWNERS),
    key=st.sampled_from("abcdefgh"),
    amount=st.sampled_from((1, 10, 2**64, 2**112 - 1)),
    limit=st.sampled_from((25, 2**64 + 15, 2**120)),
    due=st.integers(0, 9),
)
STAY, GO_ON, FAIL, ANYTHING = "stay", "go on", "fail", "anything"
CHANGES = st.fixed_dictionaries(
    {
        "place": st.integers(0, 11),
        "move": st.sampled_from((STAY, GO_ON, GO_ON, FAIL, ANYTHING)),
        "status": st.sampled_from(list(Status)),
        "missed": st.sampled_from((0, 0, 0, 0, 1)),
        "due": st.integers(0, 9),
        "need": st.sampled_from((None, None, Need.HOLD_MISSING)),
        "leg_state": st.sampled_from(list(LegState)),
    }
)
NEXT = {Status.REQUESTING: Status.PENDING, Status.PENDING: Status.SUCCESS}


class Model:
    """What a store remembers, the plain way."""

    def __init__(self):
        self.transfers = {}
        self.accept_order = []
        self.keys = {}
        self.used = {}
        self.events = []
        self.accounts = []

    def accept(self, each):
        new = each.transfer
        key, use = (new.owner, new.key), (new.owner, new.source.asset, day_of(new.id))
        if key in self.keys:
            transfer_id, fingerprint = self.keys[key]
            return KeyTaken(self.transfers[transfer_id], fingerprint)
        if new.id in self.transfers:
            return IdTaken()
        if self.used.get(use, 0) + new.amount > each.daily_units:
            return DailyLimitExceeded(max(0, each.daily_units - self.used.get(use, 0)))
        self.used[use] = self.used.get(use, 0) + new.amount
        self.keys[key] = (new.id, each.fingerprint)
        self.transfers[new.id] = new
        self.accept_order.append(new.id)
        self.events.append(Event(new.id, 1, new.status, new.created_at, None))
        return Accepted()

    def record(self, change):
        after = change.after
        before = self.transfers.get(after.id)
        if before is None or before.revision != change.revision:
            return None
        if before.status not in OPEN or (
            after.status is not before.status and (before.status, after.status) not in LEGAL
        ):
            raise IllegalTransition
        after = self.transfers[after.id] = replace(after, revision=before.revision + 1)
        if after.status is not before.status:
            self.events.append(Event(after.id, after.version, after.status, after.updated_at, after.failure))
        if after.status is Status.FAILED:
            self.used[after.owner, after.source.asset, day_of(after.id)] -= after.amount
        return after

    def open(self):
        return [each for each in self.transfers.values() if each.status in OPEN]


class StoreMachine(RuleBasedStateMachine):
    """Drives a store and the model side by side; `model` is what the store should answer now, `safe` what is on disk.

    The embedded store never suspends, so its calls are made one by one inside an open turn, and the event loop runs
    only when a rule ends the turn.
    """

    turns = "shared"

    @initialize()
    def start(self):
        self.directory = Path(tempfile.mkdtemp())
        self.runner = asyncio.Runner()
        self.context = contextvars.copy_context()
        self.stack = EmbeddedStore(self.directory / "store.db", self.turns)
        self.model = Model()
        self.safe = Model()
        self.clock = NOON

    def teardown(self):
        self.commit()
        self.look()
        self.outside(self.stack.durable())
        self.stack.close()
        self.runner.close()
        shutil.rmtree(self.directory)

    def inside(self, call):
        """Makes a call that does not suspend, without letting the event loop end the turn."""
        asyncio.events._set_running_loop(self.runner.get_loop())
        try:
            self.context.run(call.send, None)
        except StopIteration as answer:
            return answer.value
        finally:
            asyncio.events._set_running_loop(None)
        pytest.fail("the embedded store suspended")

    def outside(self, call):
        """Lets the event loop run, which ends the turn."""
        return self.runner.run(call, context=self.context)

    @rule(batch=st.lists(PROPOSALS, min_size=1, max_size=4))
    def accept(self, batch):
        assert self.inside(self.stack.store.accept(batch)) == [self.model.accept(each) for each in batch]

    @rule(batch=st.lists(CHANGES, min_size=1, max_size=4))
    def record(self, batch):
        changes = [self.change(**each) for each in batch]
        expected = deepcopy(self.model)
        try:
            answers = [expected.record(change) for change in changes]
        except IllegalTransition:
            with pytest.raises(IllegalTransition):
                self.inside(self.stack.store.record(changes))
        else:
            assert self.inside(self.stack.store.record(changes)) == answers
            self.model = expected

    def change(self, *, place, move, status, missed, due, need, leg_state):
        candidates = self.model.open()
        if move == ANYTHING or not candidates:
            candidates = [*self.model.transfers.values(), transfer()]
        before = candidates[place % len(candidates)]
        match move:
            case "stay":
                status = before.status
            case "go on":
                status = NEXT.get(before.status, before.status)
            case "fail":
                status = Status.FAILED
        after = replace(
            with_leg(before, replace(before.legs[0], state=leg_state)),
            status=status,
            version=before.version + (status is not before.status),
            failure=Code.CORE_REFUSED if status is Status.FAILED else None,
            needs_person=need,
            due_at=NOON + due,
            attempts=before.attempts + 1,
            updated_at=self.clock,
            ledger_timestamp=before.ledger_timestamp + 1,
        )
        return Change(before.revision - missed, after)

    @rule(most=st.integers(1, 4), late=st.integers(0, 12))
    def lease_due(self, most, late):
        now = NOON + late
        due = sorted(
            (each for each in self.model.open() if each.due_at <= now), key=lambda each: (each.due_at, each.id)
        )
        leased = [replace(each, due_at=now + 4) for each in due[:most]]
        assert self.inside(self.stack.store.lease_due(now_ms=now, lease_ms=4, most=most)) == leased
        self.model.transfers.update({each.id: each for each in leased})

    @rule()
    def make_due(self):
        assert self.inside(self.stack.store.make_due(now_ms=NOON + 3)) == len(self.model.open())
        self.model.transfers.update(
            {each.id: replace(each, due_at=min(each.due_at, NOON + 3)) for each in self.model.open()}
        )

    @rule(owners=st.lists(st.sampled_from(OWNERS), min_size=1, max_size=3), kind=st.sampled_from(("spot", "earn")))
    def register(self, owners, kind):
        accounts = [Account(owner, kind, "USDT") for owner in owners]
        for account in accounts:
            if account not in self.model.accounts:
                self.model.accounts.append(account)
        numbers = [each.number for each in self.inside(self.stack.store.register(accounts))]
        assert numbers == [self.model.accounts.index(account) + 1 for account in accounts]

    @rule()
    def commit(self):
        self.outside(self.stack.durable())
        self.safe = deepcopy(self.model)

    @rule()
    def restart(self):
        self.commit()
        self.outside(self.stack.reopen())

    @precondition(lambda self: self.turns == "shared")
    @rule()
    def lose_the_turn(self):
        self.inside(self.stack.store.get([]))  # Opens a turn if there is none.
        self.stack.database.connection.set_commit_hook(lambda: True)
        with pytest.raises(OutcomeUnknown):
            self.outside(self.stack.durable())
        self.stack.database.connection.set_commit_hook(None)
        self.model = deepcopy(self.safe)

    @precondition(lambda self: self.turns == "shared")
    @rule()
    def break_the_turn(self):
        with pytest.raises(Unavailable):
            self.inside(self.broken())
        with pytest.raises(Unavailable):
            self.outside(self.stack.durable())
        self.model = deepcopy(self.safe)

    async def broken(self):
        self.stack.break_turn()

    @invariant()
    def time_passes(self):
        self.clock += 1

    @rule(number=st.integers(0, 11), key=st.sampled_from("abcdefgh"), owner=st.sampled_from(OWNERS))
    def look_up(self, number, key, owner):
        """Reads that do not have to write first what the turn holds back."""
        store, model = self.stack.store, self.model
        transfer_id = transfer(number, at=LATE + number % 2).id
        assert self.inside(store.get([transfer_id])) == [model.transfers.get(transfer_id)]
        claim = model.keys.get((owner, key))
        expected = None if claim is None else KeyTaken(model.transfers[claim[0]], claim[1])
        assert self.inside(store.by_keys([(owner, key)])) == [expected]
        for day in (DAY, DAY + 1):
            assert self.inside(store.daily_used(owner, "USDT", day)) == model.used.get((owner, "USDT", day), 0)

    @rule()
    def look(self):
        """Reads everything through every call that lists."""
        store, model = self.stack.store, self.model
        feed = self.inside(store.feed(0, 1_000))
        self.compare_feed([event for _, event in feed])
        ids = list(model.transfers)
        expected = [[event for event in model.events if event.transfer_id == each] for each in ids]
        assert self.inside(store.events(ids)) == expected
        assert self.inside(store.get(ids)) == list(model.transfers.values())
        for status in Status:
            listed = sorted((each for each in model.transfers.values() if each.status is status), key=lambda t: t.id)
            assert self.inside(store.by_status(status, after=None, most=99)) == listed
        for owner in OWNERS:
            newest = [model.transfers[each] for each in reversed(model.accept_order)]
            newest = [each for each in newest if each.owner == owner]
            assert self.inside(store.history(HistoryQuery(owner=owner, most=99))).transfers == newest
            page = self.inside(store.history(HistoryQuery(owner=owner, most=1, statuses=frozenset(OPEN))))
            assert page.transfers == [each for each in newest if each.status in OPEN][:1]
            registered = [(n, each) for n, each in enumerate(model.accounts, 1) if each.owner == owner]
            assert [(each.number, each.account) for each in self.inside(store.registered(owner))] == registered
        self.look_at_what_is_open()

    def compare_feed(self, events):
        assert events == self.model.events

    def look_at_what_is_open(self):
        store, opened = self.stack.store, self.model.open()
        summary = self.inside(store.open_summary())
        for status in OPEN:
            created = [each.created_at for each in opened if each.status is status]
            assert summary.by_status[status] == len(created)
            assert summary.oldest_open_ms.get(status) == min(created, default=None)
        needing = [each for each in opened if each.needs_person is not None]
        assert sum(summary.needs_person.values()) == len(needing)
        owed = any(
            each.needs_person is None and each.legs[0].state in {LegState.ASKED, LegState.REVERSING} for each in opened
        )
        assert set(summary.oldest_asked_ms) == ({"engine"} if owed else set())
        stuck = self.inside(store.stuck(open_before_ms=LATE + 1, most=99))
        expected = [each for each in opened if each.created_at < LATE + 1 or each.needs_person is not None]
        assert stuck == sorted(expected, key=lambda each: (each.created_at, each.id))
        highest = max((each.ledger_timestamp for each in self.model.transfers.values()), default=0)
        assert self.inside(store.ledger_seen()) == highest


class EachCallMachine(StoreMachine):
    """The same, with a commit after every call."""

    turns = "calls"


class PostgresqlMachine(StoreMachine):
    """The same on a real PostgreSQL, where every call suspends and commits, and a restart takes new connections."""

    turns = "postgresql"

    @initialize()
    def start(self):
        self.runner = asyncio.Runner()
        self.context = contextvars.copy_context()
        self.stack = self.outside(self.opened())
        self.model = Model()
        self.safe = Model()
        self.clock = NOON

    async def opened(self):
        return await PostgresqlStore(await PostgresqlSchema.emptied()).start()

    def teardown(self):
        self.look()
        self.outside(self.stack.close())
        self.runner.close()

    def inside(self, call):
        """Lets the event loop run until the call has its answer."""
        return self.outside(call)


class CassandraMachine(PostgresqlMachine):
    """The same on a real Cassandra, whose feed is ordered within a transfer, and otherwise about as things happened."""

    turns = "cassandra"

    async def opened(self):
        return await CassandraStore.opened()

    def compare_feed(self, events):
        places = [(event.transfer_id, event.version) for event in events]
        for transfer_id in self.model.transfers:
            versions = [version for each, version in places if each == transfer_id]
            assert versions == sorted(versions)
        assert sorted(zip(places, events, strict=True)) == sorted(
            ((event.transfer_id, event.version), event) for event in self.model.events
        )


@pytest.mark.parametrize(
    ("machine", "examples"),
    [(StoreMachine, 100), (EachCallMachine, 100), (PostgresqlMachine, 20), (CassandraMachine, 12)],
)
def test_the_store_does_what_the_model_does(machine, examples):
    """Any history of calls, commits, restarts and lost turns gives the model's answers (G6, G8, G11, G13, G15)."""
    if machine is PostgresqlMachine or machine is CassandraMachine:
        real_servers.need(machine.turns)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
