"""Our own stores against the model, the embedded one also with turns that are lost."""

import asyncio
from copy import deepcopy

import pytest
from hypothesis.stateful import precondition, rule

import real_servers
from contracts.transfer_stores import CassandraHarness, EmbeddedStore, PostgresqlStore
from internal_transfer.conformance.transfer_store.against_model import StoreAgainstModel, StoreMachine
from internal_transfer.ports.errors import OutcomeUnknown, Unavailable


class EmbeddedStoreMachine(StoreMachine):
    """The embedded store with a turn that stays open over several calls; `safe` is what is on disk.

    The store never suspends, so its calls are made one by one inside an open turn, and the event loop runs only when a
    rule ends the turn.
    """

    turns = "shared"

    def __init__(self):
        super().__init__()
        self.safe = deepcopy(self.model)

    def teardown(self):
        self.commit()
        super().teardown()

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

    @rule()
    def commit(self):
        super().commit()
        self.safe = deepcopy(self.model)

    @precondition(lambda self: self.turns == "shared")
    @rule()
    def lose_the_turn(self):
        self.inside(self.harness.store.get([]))  # Opens a turn if there is none.
        self.harness.database.connection.set_commit_hook(lambda: True)
        with pytest.raises(OutcomeUnknown):
            self.outside(self.harness.durable())
        self.harness.database.connection.set_commit_hook(None)
        self.model = deepcopy(self.safe)

    @precondition(lambda self: self.turns == "shared")
    @rule()
    def break_the_turn(self):
        with pytest.raises(Unavailable):
            self.inside(self.broken())
        with pytest.raises(Unavailable):
            self.outside(self.harness.durable())
        self.model = deepcopy(self.safe)

    async def broken(self):
        self.harness.break_turn()


class EachCallMachine(EmbeddedStoreMachine):
    """The embedded store where every call commits."""

    turns = "calls"


class TestEmbeddedStore(StoreAgainstModel):
    """The embedded store, whose calls share a commit."""

    machine = EmbeddedStoreMachine
    examples = 100

    @pytest.fixture
    def new_harness(self, tmp_path_factory):
        return lambda: EmbeddedStore(tmp_path_factory.mktemp("store") / "store.db", self.machine.turns)


class TestEmbeddedStoreBesideForeignSystems(TestEmbeddedStore):
    """The embedded store, whose every call commits."""

    machine = EachCallMachine


class TestPostgresql(StoreAgainstModel):
    """A real PostgreSQL; a restart takes new connections."""

    examples = 20

    @pytest.fixture
    def new_harness(self):
        real_servers.need("postgresql")
        return PostgresqlStore


class TestCassandra(StoreAgainstModel):
    """A real Cassandra; a restart forgets what the process knew."""

    examples = 12

    @pytest.fixture
    def new_harness(self):
        real_servers.need("cassandra")
        return CassandraHarness
