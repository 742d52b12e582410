"""What tests put before a port to make it behave as a real one may, and the embedded one never does."""

from internal_transfer.adapters.sqlite.trading_core import CoreMode
from internal_transfer.ports.ledger import TransferOutcome


class _Front:
    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)


class Moods:
    """Gives each of several cores a mode of its own; `modes` is by name, and `silent` cores answer over the bus."""

    def __init__(self):
        self.modes = {}
        self.silent = set()
        self.said = []
        self.adapter = None

    def __call__(self, core, _database):
        """Stands before the cores."""
        front = _Front(core)
        self.adapter = core._inner.target

        async def tell(commands):
            answers = []
            for command in commands:
                self.adapter.mode = self.modes.get(command.core, CoreMode.NORMAL)
                [verdict] = await core.tell([command])
                self.said.append(verdict)
                answers.append(None if command.core in self.silent else verdict)
            self.adapter.mode = CoreMode.NORMAL
            return answers

        front.tell = tell
        return front


class Twisted:
    """Replaces the ledger's status for chosen transfers by another one."""

    def __init__(self):
        self.statuses = {}

    def __call__(self, ledger):
        """Stands before the ledger."""
        front = _Front(ledger)

        async def create_transfers(transfers):
            outcomes = await ledger.create_transfers(transfers)
            return [
                TransferOutcome(self.statuses.get(sent.id, outcome.status), outcome.timestamp)
                for sent, outcome in zip(transfers, outcomes, strict=True)
            ]

        front.create_transfers = create_transfers
        return front


class Unsettled:
    """A store whose unsettled look-ups find no key, as a shared one's may not while an accept of it is in doubt."""

    def __call__(self, store):
        """Stands before the store."""
        front = _Front(store)

        async def by_keys(keys, *, settled=True):
            return await store.by_keys(keys, settled=True) if settled else [None] * len(keys)

        front.by_keys = by_keys
        return front


class Broken:
    """Cores whose adapter has a bug: it fails for commands for which `is_broken` is true."""

    def __init__(self):
        self.is_broken = lambda _: False

    def __call__(self, core, _database):
        """Stands before the cores."""
        front = _Front(core)

        async def tell(commands):
            assert not self.is_broken(commands), "a bug"
            return await core.tell(commands)

        front.tell = tell
        return front
