"""Our own ledgers against the model, the embedded one also with turns that are taken back."""

from copy import deepcopy

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from contracts.ledgers import EmbeddedLedgerHarness, TigerBeetleHarness
from internal_transfer.conformance.ledger.against_model import LedgerAgainstModel, LedgerMachine, accounts, batches
from internal_transfer.ports.errors import Unavailable
from real_servers import need


class EmbeddedLedgerMachine(LedgerMachine):
    """The embedded ledger, whose turns may also be taken back."""

    @initialize(each_call=st.booleans(), remembered=st.sampled_from((None, 0, 2)), usual=st.booleans())
    def start(self, each_call, remembered, usual):
        """Opens a ledger with one kind of commit and cache."""
        self.each_call = each_call
        self.open_ledger(type(self).new_harness(each_call=each_call, remembered=remembered), usual=usual)

    @rule(turn=st.lists(batches, max_size=2), new_accounts=st.lists(accounts, max_size=2))
    def take_a_turn_back(self, turn, new_accounts):
        """A call fails: where calls share a commit the whole turn is taken back, else that call alone."""

        async def fail():
            before = deepcopy(self.model)
            await self.send_accounts(new_accounts)
            await self.send(turn)
            with pytest.raises(ZeroDivisionError), self.harness.database.call():
                _ = 1 // 0
            if self.each_call:
                return
            self.model = before
            with pytest.raises(Unavailable, match="took a turn back"):
                await self.harness.durable()

        self.run(fail())


class TestEmbeddedLedger(LedgerAgainstModel):
    """The embedded ledger, with every kind of commit and cache."""

    machine = EmbeddedLedgerMachine
    examples = 120

    @pytest.fixture
    def new_harness(self, tmp_path_factory):
        return lambda **kind: EmbeddedLedgerHarness(tmp_path_factory.mktemp("ledger") / "ledger.db", **kind)


class TestTigerBeetle(LedgerAgainstModel):
    """TigerBeetle, with a session for each history."""

    examples = 25

    @pytest.fixture
    def new_harness(self):
        place = need("tigerbeetle")
        return lambda: TigerBeetleHarness(place.address, place.cluster)
