"""Ledgers against the plainest model of them, over random histories with restarts and turns that are taken back."""

import asyncio
import tempfile
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

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
from internal_transfer.conformance.ledger.world import (
    EmbeddedLedgerServer,
    LedgerServer,
    TigerBeetleServer,
    balances,
    replay,
)
from internal_transfer.ports.errors import Unavailable
from internal_transfer.ports.ledger import BATCH_MAX, LedgerAccount, LedgerTransfer
from real_servers import need

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
    """Every result, balance and row of the ledger is the model's, after every turn.

    What is drawn are small ids; the ledger and the model get them from the server's base on.
    """

    server: LedgerServer

    def __init__(self) -> None:
        super().__init__()
        self.model = LedgerModel()
        self.runner = asyncio.Runner()

    def teardown(self):
        """Closes the ledger."""
        self.runner.run(self.server.close())
        self.runner.close()

    def open_usual_accounts(self) -> None:
        """Mostly there are good accounts."""
        self.create_accounts([LedgerAccount(id=number, ledger=1, code=1) for number in ACCOUNT_IDS])

    def at(self, number: int) -> int:
        """The ledger's id for one that was drawn; 0 stays what it is."""
        return (self.server.id_base + number) % 2**128 if number else 0

    def moved(self, batch: list[LedgerTransfer]) -> list[LedgerTransfer]:
        """The transfers with the ledger's ids."""
        names = ("id", "pending_id", "debit_account_id", "credit_account_id")
        return [replace(event, **{name: self.at(getattr(event, name)) for name in names}) for event in batch]

    async def send(self, turn: list[list[LedgerTransfer]]) -> None:
        """Gives batches to the ledger and to the model, and compares the results."""
        for batch in map(self.moved, turn):
            outcomes = await self.server.ledger.create_transfers(batch)
            assert [outcome.status for outcome in outcomes] == self.model.create_transfers(batch)

    async def send_accounts(self, drawn: list[LedgerAccount]) -> None:
        """Gives a batch of accounts to the ledger and to the model, and compares the results."""
        batch = [replace(account, id=self.at(account.id)) for account in drawn]
        outcomes = await self.server.ledger.create_accounts(batch)
        assert [outcome.status for outcome in outcomes] == self.model.create_accounts(batch)

    @rule(batch=st.lists(accounts, max_size=5))
    def create_accounts(self, batch):
        """A turn with one batch of accounts."""

        async def create():
            await self.send_accounts(batch)
            await self.server.settle()

        self.runner.run(create())

    @rule(turn=st.lists(batches, min_size=1, max_size=3))
    def create_transfers(self, turn):
        """A turn with some batches of transfers."""

        async def create():
            await self.send(turn)
            await self.server.settle()

        self.runner.run(create())

    @invariant()
    def agrees_with_the_model(self):
        """Look-ups and history are the model's, and the history replayed gives the balances."""
        if not hasattr(self, "server"):
            return
        transfer_ids = [self.at(number) for number in TRANSFER_IDS]

        async def look():
            ledger = self.server.ledger
            found = await ledger.lookup_accounts([self.at(number) for number in ACCOUNT_IDS])
            transfers = await ledger.lookup_transfers(transfer_ids)
            history = await ledger.transfers_after(self.server.history_start, BATCH_MAX)
            newest = await ledger.newest_transfers(100)
            await self.server.settle()
            return found, transfers, history, newest

        found, transfers, history, newest = self.runner.run(look())
        # Others may use the same server.
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


class EmbeddedLedgerMachine(LedgerMachine):
    """The embedded ledger, which also forgets turns that are taken back."""

    server: EmbeddedLedgerServer

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()

    @initialize(each_call=st.booleans(), remembered=st.sampled_from((None, 0, 2)), usual=st.booleans())
    def start(self, each_call, remembered, usual):
        """Opens a ledger of one kind or another."""

        async def open_server():
            path = Path(self.directory.name) / "ledger.db"
            self.server = EmbeddedLedgerServer(path, each_call=each_call, remembered=remembered)

        self.each_call = each_call
        self.runner.run(open_server())
        if usual:
            self.open_usual_accounts()

    def teardown(self):
        """Closes the ledger and removes its file."""
        super().teardown()
        self.directory.cleanup()

    @rule()
    def restart(self):
        """The ledger is closed and opened again."""
        self.runner.run(self.server.reopen())

    @rule(turn=st.lists(batches, max_size=2), new_accounts=st.lists(accounts, max_size=2))
    def take_a_turn_back(self, turn, new_accounts):
        """Where each call commits, only the call that fails is taken back, and it did nothing."""

        async def fail():
            before = deepcopy(self.model)
            await self.send_accounts(new_accounts)
            await self.send(turn)
            with pytest.raises(ZeroDivisionError), self.server.database.call():
                _ = 1 // 0
            if self.each_call:
                return
            self.model = before
            with pytest.raises(Unavailable, match="took a turn back"):
                await self.server.settle()

        self.runner.run(fail())


class TigerBeetleLedgerMachine(LedgerMachine):
    """TigerBeetle, in a session for each history."""

    @initialize(usual=st.booleans())
    def start(self, usual):
        """Connects."""
        place = need("tigerbeetle")
        self.server = self.runner.run(TigerBeetleServer.open(place.address, place.cluster))
        if usual:
            self.open_usual_accounts()


class TestLedgerAgainstModel(EmbeddedLedgerMachine.TestCase):
    """G15: whatever is sent in whatever order, the embedded ledger and the model do not differ."""

    settings = settings(
        max_examples=120,
        stateful_step_count=14,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


class TestTigerBeetleAgainstModel(TigerBeetleLedgerMachine.TestCase):
    """G15: whatever is sent in whatever order, TigerBeetle and the model do not differ."""

    settings = settings(
        max_examples=25,
        stateful_step_count=14,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )

    @classmethod
    def setUpClass(cls):
        """Skips before anything is drawn where there is no server."""
        super().setUpClass()
        need("tigerbeetle")
