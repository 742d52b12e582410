"""The adapters that the settings choose, opened together and closed together."""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog

from internal_transfer.adapters.event_bus.memory import MemoryEventBus
from internal_transfer.adapters.ledger.sqlite import SqliteLedger
from internal_transfer.adapters.operations.sqlite import SqliteOperations
from internal_transfer.adapters.rate_limiter.memory import MemoryRateLimiter
from internal_transfer.adapters.trading_core.sqlite import CoreMode, ReferenceCore
from internal_transfer.adapters.transfer_store.sqlite import SqliteTransferStore
from internal_transfer.embedded.database import Database
from internal_transfer.embedded.directory import DataDirectory
from internal_transfer.embedded.log import keep_log_short
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.durability import Durability
from internal_transfer.ports.errors import OperatingFailureError
from internal_transfer.ports.event_bus import EventBus
from internal_transfer.ports.ledger import Ledger
from internal_transfer.ports.operations import Operations
from internal_transfer.ports.rate_limiter import RateLimiter
from internal_transfer.ports.trading_core import TradingCore
from internal_transfer.ports.transfer_store import TransferStore
from internal_transfer.settings import Settings
from internal_transfer.systems import CoreSystem, LedgerSystem, LimiterSystem, StoreSystem
from internal_transfer.telemetry import Telemetry

Check = tuple[str, bool, str]
"""What was looked at, whether it is as it must be, and what was found."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Stack:
    """The ports, each with the adapter that the settings chose for it.

    `tending` is what has to run as long as the stack is used. `set_core_mode` is for demonstrations.
    """

    store: TransferStore
    ledger: Ledger
    core: TradingCore
    operations: Operations
    bus: EventBus
    limiter: RateLimiter
    durability: Durability
    set_core_mode: Callable[[str], Awaitable[None]]
    tending: list[Callable[[], Coroutine[Any, Any, None]]] = field(default_factory=list)
    checks: list[Callable[[], Awaitable[list[Check]]]] = field(default_factory=list)


class AtOnce:
    """The durability of systems that have made durable what they answer."""

    async def durable(self) -> None:
        """Returns at once."""


@asynccontextmanager
async def open_stack(
    settings: Settings, directory: DataDirectory, *, clock: Clock, telemetry: Telemetry
) -> AsyncIterator[Stack]:
    """Opens what the settings name, on a directory that the caller has acquired; raises `StartRefusedError`."""
    async with AsyncExitStack() as closing:
        opening = _Opening(settings, directory, clock, telemetry, closing)
        yield await opening.open()


class _Opening:
    """The opening of one stack."""

    def __init__(
        self,
        settings: Settings,
        directory: DataDirectory,
        clock: Clock,
        telemetry: Telemetry,
        closing: AsyncExitStack,
    ) -> None:
        self._settings = settings
        self._systems = settings.systems
        self._directory = directory
        self._clock = clock
        self._telemetry = telemetry
        self._closing = closing
        self._tending: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._database: Database | None = None

    async def open(self) -> Stack:
        store, operations = await self._open_store()
        ledger = await self._open_ledger()
        core, bus, set_core_mode = await self._open_core()
        return Stack(
            store=store,
            operations=operations,
            ledger=ledger,
            core=core,
            bus=bus,
            set_core_mode=set_core_mode,
            limiter=await self._open_limiter(),
            durability=self._database if self._systems.shares_a_commit and self._database is not None else AtOnce(),
            tending=self._tending,
        )

    async def _open_store(self) -> tuple[TransferStore, Operations]:
        match self._systems.store:
            case StoreSystem.EMBEDDED:
                return SqliteTransferStore(self._embedded()), SqliteOperations(self._embedded())
            case _:
                raise NotImplementedError

    async def _open_ledger(self) -> Ledger:
        match self._systems.ledger:
            case LedgerSystem.EMBEDDED:
                return SqliteLedger(self._embedded(), self._clock)
            case _:
                raise NotImplementedError

    async def _open_core(self) -> tuple[TradingCore, EventBus, Callable[[str], Awaitable[None]]]:
        match self._systems.core:
            case CoreSystem.EMBEDDED:
                core = ReferenceCore(self._embedded())

                async def set_mode(mode: str) -> None:
                    core.mode = CoreMode(mode)

                return core, MemoryEventBus(), set_mode
            case _:
                raise NotImplementedError

    async def _open_limiter(self) -> RateLimiter:
        limit = self._settings.rate_limit
        local = MemoryRateLimiter(self._clock, per_minute=limit.per_minute, burst=limit.burst)
        match self._systems.rate_limiter:
            case LimiterSystem.EMBEDDED:
                return local
            case _:
                raise NotImplementedError

    def _embedded(self) -> Database:
        """The database in the data directory; with foreign systems beside it, each call commits by itself."""
        if self._database is None:

            def count_failure(error: OperatingFailureError) -> None:
                self._telemetry.failures.labels(error.system, type(error).__name__).inc()
                _log.error("database_failed", error=str(error))

            database = self._database = Database(
                self._directory.database, on_failure=count_failure, each_call=not self._systems.shares_a_commit
            )
            self._closing.callback(database.close)
            self._tending.append(lambda: keep_log_short(database, self._clock))
        return self._database
