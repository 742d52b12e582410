"""Compares a ledger with a simple model of one over random histories with restarts."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from msgspec.structs import replace

from internal_transfer.conformance.ledger.harness import LedgerHarness
from internal_transfer.conformance.ledger.model import (
    CREDITS_LIMITED,
    DEBITS_LIMITED,
    LINKED,
    MAX,
    PENDING,
    POST,
    VOID,
    LedgerModel,
    fields_of,
)
from internal_transfer.conformance.ledger.world import balances, replay
from internal_transfer.conformance.suites import ContractTests
from internal_transfer.ports.ledger import BATCH_MAX, LedgerAccount, LedgerTransfer

T = TypeVar("T")

ACCOUNT_IDS = (1, 2, 3, 4)
TRANSFER_IDS = (*range(1, 9), 2**64, 2**127, 2**128 - 2)
SAME_LEDGER = st.sampled_from((1, 1, 1, 1, 1, 2))
AMOUNTS = st.one_of(st.integers(0, 12), st.sampled_from((MAX, MAX - 5, 2**127)))
RARELY_LINKED = st.sampled_from((0, 0, 0, LINKED))
RARELY_SET = st.sampled_from((0, 0, 0, 1, 2))

accounts = st.builds(
    lambda linked, limits, **fields: LedgerAccount(flags=linked | limits, **fields),
    linked=RARELY_LINKED,
    limits=st.sampled_from((0, 0, DEBITS_LIMITED, CREDITS_LIMITED, DEBITS_LIMITED | CREDITS_LIMITED)),
    id=st.sampled_from(ACCOUNT_IDS),
    ledger=SAME_LEDGER,
    code=st.sampled_from((1, 1, 1, 0)),
    user_data_64=st.sampled_from((0, 0, 0, 2**64 - 1)),
)
movements = st.builds(
    lambda linked, kind, **fields: LedgerTransfer(flags=linked | kind, **fields),
    linked=RARELY_LINKED,
    kind=st.sampled_from((0, PENDING, PENDING)),
    id=st.sampled_from(TRANSFER_IDS),
    debit_account_id=st.sampled_from(ACCOUNT_IDS),
    credit_account_id=st.sampled_from(ACCOUNT_IDS),
    amount=AMOUNTS,
    ledger=SAME_LEDGER,
    code=st.sampled_from((1, 1, 1, 1, 2)),
    user_data_128=RARELY_SET,
    user_data_64=RARELY_SET,
)
resolutions = st.builds(
    lambda linked, kind, **fields: LedgerTransfer(flags=linked | kind, **fields),
    linked=RARELY_LINKED,
    kind=st.sampled_from((POST, POST, VOID, VOID, POST | VOID)),
    id=st.sampled_from(TRANSFER_IDS),
    pending_id=st.sampled_from((*TRANSFER_IDS, 0)),
    amount=AMOUNTS,
    debit_account_id=st.sampled_from((0, 0, 0, 0, 1)),
    credit_account_id=st.sampled_from((0, 0, 0, 0, 2)),
    code=RARELY_SET,
    user_data_128=RARELY_SET,
    user_data_32=RARELY_SET,
)
batches = st.lists(st.one_of(movements, resolutions), max_size=6)


class LedgerMachine(RuleBasedStateMachine):
    """After every turn, every result, balance and row of the ledger is the model's.

    Hypothesis draws small ids; the ledger and the model both get them with the harness's `id_base` added.
    """

    new_harness: ClassVar[Callable[[], LedgerHarness]]
    harness: LedgerHarness

    def __init__(self) -> None:
        super().__init__()
        self.model = LedgerModel()
        self.runner = asyncio.Runner()

    @initialize(usual=st.booleans())
    def start(self, *, usual: bool) -> None:
        """Opens a new ledger, in half of the histories with good accounts in it."""
        self.open_ledger(type(self).new_harness(), usual=usual)

    def open_ledger(self, harness: LedgerHarness, *, usual: bool) -> None:
        """Opens a harness's ledger; `usual` puts good accounts into it."""
        self.run(harness.open())
        self.harness = harness
        if usual:
            self.create_accounts([LedgerAccount(id=number, ledger=1, code=1) for number in ACCOUNT_IDS])

    def teardown(self) -> None:
        """Closes the ledger."""
        if self.is_open:
            self.run(self.harness.close())
        self.runner.close()

    @property
    def is_open(self) -> bool:
        """Tells whether `start` has opened a ledger."""
        return hasattr(self, "harness")

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine and returns its result."""
        return self.runner.run(call)

    def at(self, number: int) -> int:
        """Returns the ledger's id for a drawn one; 0 stays 0."""
        return (self.harness.id_base + number) % 2**128 if number else 0

    def moved(self, batch: Sequence[LedgerTransfer]) -> list[LedgerTransfer]:
        """Returns the transfers with the ledger's ids in place of the drawn ones."""
        names = ("id", "pending_id", "debit_account_id", "credit_account_id")
        return [replace(event, **{name: self.at(getattr(event, name)) for name in names}) for event in batch]

    async def send(self, turn: Sequence[Sequence[LedgerTransfer]]) -> None:
        """Sends batches to the ledger and to the model, and compares the results."""
        for batch in map(self.moved, turn):
            outcomes = await self.harness.ledger.create_transfers(batch)
            assert [outcome.status for outcome in outcomes] == self.model.create_transfers(batch)

    async def send_accounts(self, drawn: Sequence[LedgerAccount]) -> None:
        """Sends a batch of accounts to the ledger and to the model, and compares the results."""
        batch = [replace(account, id=self.at(account.id)) for account in drawn]
        outcomes = await self.harness.ledger.create_accounts(batch)
        assert [outcome.status for outcome in outcomes] == self.model.create_accounts(batch)

    @rule(batch=st.lists(accounts, max_size=5))
    def create_accounts(self, batch: list[LedgerAccount]) -> None:
        """Sends one batch of accounts as a turn."""

        async def create() -> None:
            await self.send_accounts(batch)
            await self.harness.durable()

        self.run(create())

    @rule(turn=st.lists(batches, min_size=1, max_size=3))
    def create_transfers(self, turn: list[list[LedgerTransfer]]) -> None:
        """Sends up to three batches of transfers as a turn."""

        async def create() -> None:
            await self.send(turn)
            await self.harness.durable()

        self.run(create())

    @rule()
    def restart(self) -> None:
        """Closes the ledger and opens it again."""
        self.run(self.harness.reopen())

    @invariant()
    def agrees_with_the_model(self) -> None:
        """Look-ups and history match the model, and replaying the history gives the balances."""
        if not self.is_open:
            return
        account_ids = [self.at(number) for number in ACCOUNT_IDS]
        transfer_ids = [self.at(number) for number in TRANSFER_IDS]

        async def look() -> tuple[list[LedgerAccount], list[list[LedgerTransfer]]]:
            ledger = self.harness.ledger
            found = await ledger.lookup_accounts(account_ids)
            transfers = await ledger.lookup_transfers(transfer_ids)
            history = await ledger.transfers_after(self.harness.history_start, BATCH_MAX)
            newest = await ledger.newest_transfers(100)
            await self.harness.durable()
            return found, [transfers, history, newest]

        found, (transfers, history, newest) = self.run(look())
        # Others may use the same ledger.
        history = [transfer for transfer in history if transfer.id in transfer_ids]
        newest = [transfer for transfer in newest if transfer.id in transfer_ids]
        assert {account.id: fields_of(account) for account in found} == self.model.accounts
        assert {transfer.id: fields_of(transfer) for transfer in transfers} == {
            number: fields | {"timeout": 0} for number, fields in self.model.transfers.items()
        }
        assert newest == history[::-1]
        assert sorted(transfers, key=lambda transfer: transfer.timestamp) == history
        nothing = {account.id: (0, 0, 0, 0) for account in found}
        replayed = {number: tuple(sums) for number, sums in replay(history).items()}
        assert nothing | replayed == {account.id: balances(account) for account in found}


class LedgerAgainstModel(ContractTests):
    """The whole contract, shown by random histories."""

    machine: ClassVar[type[LedgerMachine]] = LedgerMachine
    examples: ClassVar[int] = 50
    """How many histories are tried."""

    def test_any_history_gives_what_the_model_gives(self, new_harness: Callable[..., LedgerHarness]) -> None:
        """Whatever is sent, in whatever order, the ledger and the model agree (G15)."""
        machine = type(self.machine.__name__, (self.machine,), {"new_harness": staticmethod(new_harness)})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=self.examples,
                stateful_step_count=14,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            ),
        )
