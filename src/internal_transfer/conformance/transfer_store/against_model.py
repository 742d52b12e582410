"""Compares a transfer store with a model of plain dictionaries over random histories with restarts."""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from copy import deepcopy
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from msgspec.structs import replace

from internal_transfer.conformance.suites import ContractTests
from internal_transfer.conformance.transfer_store.harness import StoreHarness
from internal_transfer.conformance.transfer_store.model import OPEN, StoreModel
from internal_transfer.conformance.transfer_store.transfers import ADA, BOB, DAY, NOON, proposal, transfer
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import MILLISECONDS_PER_DAY
from internal_transfer.domain.leg import LegState
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.transfer import IllegalTransition, Need, Status, with_leg
from internal_transfer.ports.transfer_store import Change, Event, HistoryQuery, KeyTaken, Proposal

T = TypeVar("T")

OWNERS = (ADA, BOB)
LATE = (DAY + 1) * MILLISECONDS_PER_DAY - 1
"""The last millisecond of a day. Even numbers get ids of this time, odd ones of the next day's first millisecond."""

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


class StoreMachine(RuleBasedStateMachine):
    """Drives a store and the model side by side; `model` holds what the store should return now."""

    new_harness: ClassVar[Callable[[], StoreHarness]]
    harness: StoreHarness

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.context = contextvars.copy_context()
        self.model = StoreModel()
        self.clock = NOON

    @initialize()
    def start(self) -> None:
        """Opens a new store."""
        harness = type(self).new_harness()
        self.outside(harness.open())
        self.harness = harness

    def teardown(self) -> None:
        """Looks at everything once more and closes the store."""
        if hasattr(self, "harness"):
            self.look()
            self.outside(self.harness.close())
        self.runner.close()

    def inside(self, call: Coroutine[Any, Any, T]) -> T:
        """Makes a call to the store and returns its result."""
        return self.outside(call)

    def outside(self, call: Coroutine[Any, Any, T]) -> T:
        """Runs the event loop until a coroutine has its result."""
        return self.runner.run(call, context=self.context)

    @rule(batch=st.lists(PROPOSALS, min_size=1, max_size=4))
    def accept(self, batch: list[Proposal]) -> None:
        """Accepts transfers; the key, id or limit of some is refused."""
        assert self.inside(self.harness.store.accept(batch)) == [self.model.accept(each) for each in batch]

    @rule(batch=st.lists(CHANGES, min_size=1, max_size=4))
    def record(self, batch: list[dict[str, Any]]) -> None:
        """Records changes; some are of an older revision, and some are illegal."""
        changes = [self.change(**each) for each in batch]
        expected = deepcopy(self.model)
        try:
            results = [expected.record(change) for change in changes]
        except IllegalTransition:
            with pytest.raises(IllegalTransition):
                self.inside(self.harness.store.record(changes))
        else:
            assert self.inside(self.harness.store.record(changes)) == results
            self.model = expected

    def change(
        self,
        *,
        place: int,
        move: str,
        status: Status,
        missed: int,
        due: int,
        need: Need | None,
        leg_state: LegState,
    ) -> Change:
        """Returns the drawn change, of one of the transfers on record."""
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
    def lease_due(self, most: int, late: int) -> None:
        """Leases due transfers, the oldest due first."""
        now = NOON + late
        due = sorted(
            (each for each in self.model.open() if each.due_at <= now), key=lambda each: (each.due_at, each.id)
        )
        leased = [replace(each, due_at=now + 4) for each in due[:most]]
        assert self.inside(self.harness.store.lease_due(now_ms=now, lease_ms=4, most=most)) == leased
        self.model.replace(leased)

    @rule()
    def make_due(self) -> None:
        """Makes all open transfers due."""
        assert self.inside(self.harness.store.make_due(now_ms=NOON + 3)) == len(self.model.open())
        self.model.replace([replace(each, due_at=min(each.due_at, NOON + 3)) for each in self.model.open()])

    @rule(owners=st.lists(st.sampled_from(OWNERS), min_size=1, max_size=3), kind=st.sampled_from(("spot", "earn")))
    def register(self, owners: list[Owner], kind: str) -> None:
        """Registers accounts, which are numbered in the order in which they are first seen."""
        accounts = [Account(owner, kind, "USDT") for owner in owners]
        for account in accounts:
            if account not in self.model.accounts:
                self.model.accounts.append(account)
        numbers = [each.number for each in self.inside(self.harness.store.register(accounts))]
        assert numbers == [self.model.accounts.index(account) + 1 for account in accounts]

    @rule()
    def commit(self) -> None:
        """Makes all results so far durable."""
        self.outside(self.harness.durable())

    @rule()
    def restart(self) -> None:
        """Closes the store and opens it again."""
        self.commit()
        self.outside(self.harness.reopen())

    @invariant()
    def time_passes(self) -> None:
        """Gives every change a time of its own."""
        self.clock += 1

    @rule(number=st.integers(0, 11), key=st.sampled_from("abcdefgh"), owner=st.sampled_from(OWNERS))
    def look_up(self, number: int, key: str, owner: Owner) -> None:
        """Reads by id and key, which a store must answer even from work it has not written yet."""
        store, model = self.harness.store, self.model
        transfer_id = transfer(number, at=LATE + number % 2).id
        assert self.inside(store.get([transfer_id])) == [model.transfers.get(transfer_id)]
        claim = model.keys.get((owner, key))
        expected = None if claim is None else KeyTaken(model.transfers[claim[0]], claim[1])
        assert self.inside(store.by_keys([(owner, key)])) == [expected]
        for day in (DAY, DAY + 1):
            assert self.inside(store.daily_used(owner, "USDT", day)) == model.used.get((owner, "USDT", day), 0)

    @rule()
    def look(self) -> None:
        """Reads everything, through every call that lists."""
        store, model = self.harness.store, self.model
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

    def compare_feed(self, events: list[Event]) -> None:
        """Compares the feed with the model's: the same events, in order within each transfer or altogether."""
        if self.harness.has_one_feed:
            assert events == self.model.events
            return
        by_place = {(event.transfer_id, event.version): event for event in self.model.events}
        places = [(event.transfer_id, event.version) for event in events]
        for transfer_id in self.model.transfers:
            versions = [version for each, version in places if each == transfer_id]
            assert versions == sorted(versions)
        assert sorted(places) == sorted(by_place)
        assert events == [by_place[place] for place in places]

    def look_at_what_is_open(self) -> None:
        """Reads the summary, the stuck transfers and the largest ledger timestamp."""
        store, opened = self.harness.store, self.model.open()
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


class StoreAgainstModel(ContractTests):
    """The whole contract, shown by random histories."""

    machine: ClassVar[type[StoreMachine]] = StoreMachine
    examples: ClassVar[int] = 50
    """How many histories are tried."""

    def test_any_history_gives_what_the_model_gives(self, new_harness: Callable[[], StoreHarness]) -> None:
        """Whatever is called, in whatever order, the store and the model agree (G6, G8, G11, G13, G15)."""
        machine = type(self.machine.__name__, (self.machine,), {"new_harness": staticmethod(new_harness)})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=self.examples,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            ),
        )
