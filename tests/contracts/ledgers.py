"""Our own ledgers, opened for the contract suite."""

from pathlib import Path

from contracts.ledger_hosts import SocketLedgerServer
from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.ledger import SqliteLedger
from internal_transfer.adapters.tigerbeetle.ledger import TigerBeetleLedger, TigerBeetleSettings
from internal_transfer.conformance.ledger.harness import LedgerHarness, new_id_base


class SettableClock:
    """Wall time that stands where it is put."""

    def __init__(self, now_ms: int = 1_800_000_000_000) -> None:
        self.ms = now_ms

    def now_ms(self) -> int:
        """Returns the wall time in milliseconds."""
        return self.ms


class EmbeddedLedgerHarness(LedgerHarness):
    """The embedded ledger on a file; with `remembered` it keeps that many rows of each kind in memory."""

    def __init__(self, path: Path, *, each_call: bool, remembered: int | None = None) -> None:
        self._path = path
        self._each_call = each_call
        self._bounds = (
            {}
            if remembered is None
            else {"accounts_max": remembered, "holds_max": remembered, "recent_ids_max": remembered}
        )
        self.clock = SettableClock()

    async def open(self) -> None:
        """Opens the file."""
        self.database = Database(self._path, each_call=self._each_call)
        self.ledger = SqliteLedger(self.database, self.clock, **self._bounds)

    async def durable(self) -> None:
        """Ends the turn."""
        await self.database.durable()

    async def close(self) -> None:
        """Ends the turn and closes the file."""
        await self.durable()
        self.database.close()


class SocketLedgerHarness(LedgerHarness):
    """The embedded ledger behind its socket; the client stays while the host is stopped and started again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def open(self) -> None:
        """Starts the host and connects."""
        self._server = await SocketLedgerServer.open(self._path)
        self.ledger = self._server.ledger

    async def reopen(self) -> None:
        """Stops the host and starts it again; the client finds it by itself."""
        await self._server.reopen()

    async def close(self) -> None:
        """Disconnects and stops the host."""
        await self._server.close()


class TigerBeetleHarness(LedgerHarness):
    """A session of one's own with a cluster that others use too."""

    def __init__(self, address: str, cluster_id: int, **settings) -> None:
        self.settings = TigerBeetleSettings(cluster_id=cluster_id, addresses=(address,), **settings)
        self.id_base = new_id_base()
        self._is_new = True

    async def open(self) -> None:
        """Begins a session."""
        self.ledger = TigerBeetleLedger(self.settings)
        await self.ledger.start()
        if self._is_new:
            newest = await self.ledger.newest_transfers(1)
            self.history_start = newest[0].timestamp if newest else 0
            self._is_new = False

    async def close(self) -> None:
        """Ends the session."""
        await self.ledger.close()
