"""Opens the adapters that the settings choose, and closes them together."""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, assert_never

import structlog
from msgspec.structs import replace

from internal_transfer.adapters.in_process.event_bus import MemoryEventBus
from internal_transfer.adapters.in_process.rate_limiter import MemoryRateLimiter
from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.ledger import SqliteLedger
from internal_transfer.adapters.sqlite.operations import SqliteOperations
from internal_transfer.adapters.sqlite.trading_core import CoreMode, ReferenceCore
from internal_transfer.adapters.sqlite.transfer_store import SqliteTransferStore
from internal_transfer.adapters.sqlite.write_ahead_log import keep_log_short
from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.domain.identifier import NODES_MAX
from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import OperatingFailureError, StartRefusedError, Unavailable
from internal_transfer.ports.event_bus import EventBus
from internal_transfer.ports.event_publisher import EventPublisher
from internal_transfer.ports.finding import Finding
from internal_transfer.ports.ledger import Ledger
from internal_transfer.ports.operations import Operations
from internal_transfer.ports.rate_limiter import RateLimiter
from internal_transfer.ports.trading_core import TradingCore
from internal_transfer.ports.transfer_store import TransferStore
from internal_transfer.settings.data_directory import DataDirectory
from internal_transfer.settings.settings import Settings
from internal_transfer.settings.systems import CoreSystem, EventsSystem, LedgerSystem, LimiterSystem, StoreSystem
from internal_transfer.telemetry import Telemetry
from internal_transfer.wire.core_questions import AskBounds
from internal_transfer.wiring.bounded import bounded_ports
from internal_transfer.wiring.client_settings import (
    HALF,
    SOONER,
    aeron_connection,
    cql_settings,
    extra,
    kafka_connection,
    postgresql_settings,
    tigerbeetle_settings,
    valkey_settings,
)
from internal_transfer.wiring.stack import AtOnce, Interpose, SetCoreMode, Stack

CHECK_SECONDS = 3600.0
"""How long ids may be drawn for a check of a core."""

_log = structlog.get_logger(__name__)


class Foreign(Protocol):
    """An adapter for a system outside this process."""

    async def start(self) -> None:
        """Connects."""
        ...

    async def close(self) -> None:
        """Disconnects."""
        ...


@asynccontextmanager
async def open_stack(
    settings: Settings,
    directory: DataDirectory,
    *,
    clock: Clock,
    telemetry: Telemetry,
    settles: bool = True,
    interpose: Interpose | None = None,
) -> AsyncIterator[Stack]:
    """Opens what the settings name, on a directory that the caller has acquired; raises `StartRefusedError`.

    Only a process that `settles` takes confirmations; another would keep them from those that do.
    """
    async with AsyncExitStack() as closing:
        yield await Opening(settings, directory, clock, telemetry, closing, settles=settles).open(interpose)


async def open_core(settings: Settings, closing: AsyncExitStack) -> tuple[TradingCore, EventBus, Clock]:
    """Opens only the way to the trading cores, until `closing` ends, and returns it with a clock that may draw ids.

    Raises `StartRefusedError`, also if the core is embedded, since it is part of the service's process then.
    """
    if settings.systems.core is CoreSystem.EMBEDDED:
        raise StartRefusedError(
            'systems.core: must be "kafka" or "aeron"; the embedded core cannot be reached from outside'
        )
    clock = SystemClock()
    # The ids of the highest node, since the store leases the lowest ones first.
    clock.lease(NODES_MAX - 1, clock.monotonic() + CHECK_SECONDS)
    # A separate consumer group, so that settlers still get the verdicts that they have not heard yet.
    group = f"core-check-{int(clock.jitter() * 2**48):x}"
    opening = Opening(settings, DataDirectory(Path()), clock, Telemetry(), closing, settles=True, group=group)
    core, bus, _ = await opening.open_core()
    return core, bus, clock


class Opening:
    """The opening of one stack."""

    def __init__(
        self,
        settings: Settings,
        directory: DataDirectory,
        clock: Clock,
        telemetry: Telemetry,
        closing: AsyncExitStack,
        *,
        settles: bool,
        group: str | None = None,
    ) -> None:
        self._group = group
        self._settings = settings
        self._systems = settings.systems
        self._directory = directory
        self._clock = clock
        self._telemetry = telemetry
        self._closing = closing
        self._settles = settles
        self._tending: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self.checks: list[Callable[[], Awaitable[list[Finding]]]] = []
        self._failures: list[Callable[[], str | None]] = []
        self._database: Database | None = None

    async def open(self, interpose: Interpose | None) -> Stack:
        """Opens everything that the settings name."""
        store, operations = await self.open_store()
        ledger = await self.open_ledger()
        core, bus, set_core_mode = await self.open_core()
        durability = self._embedded() if self._systems.shares_a_commit else AtOnce()
        if interpose is not None:
            front = interpose(durability)
            store, ledger, core = front.store(store), front.ledger(ledger), front.core(core)
        ports = Ports(
            store=store,
            ledger=ledger,
            core=core,
            operations=operations,
            bus=bus,
            limiter=await self.open_limiter(),
            publisher=await self.open_publisher(),
            durability=durability,
            clock=self._clock,
            telemetry=self._telemetry,
        )
        return Stack(
            ports=bounded_ports(ports, self._settings.bounds),
            set_core_mode=set_core_mode,
            tending=self._tending,
            checks=self.checks,
            failures=self._failures,
        )

    async def open_store(self) -> tuple[TransferStore, Operations]:
        """Opens the store, and the operators' records beside it."""
        match self._systems.store:
            case StoreSystem.EMBEDDED:
                return SqliteTransferStore(self._embedded()), SqliteOperations(self._embedded())
            case StoreSystem.POSTGRESQL:
                return await self._open_postgresql()
            case StoreSystem.CASSANDRA:
                return await self._open_cassandra()
            case _:
                assert_never(self._systems.store)

    async def _open_postgresql(self) -> tuple[TransferStore, Operations]:
        with extra("postgresql"):
            from internal_transfer.adapters.postgresql.operations import PostgresqlOperations  # noqa: PLC0415
            from internal_transfer.adapters.postgresql.pool import Pool  # noqa: PLC0415
            from internal_transfer.adapters.postgresql.transfer_store import PostgresqlTransferStore  # noqa: PLC0415
        pool = Pool(postgresql_settings(self._settings))
        await self._start(pool, "PostgreSQL")
        store, operations = PostgresqlTransferStore(pool), PostgresqlOperations(pool)
        await store.start()
        await operations.start()
        self.checks.append(store.check)
        self._failures.append(lambda: pool.failure)
        return store, operations

    async def _open_cassandra(self) -> tuple[TransferStore, Operations]:
        with extra("cassandra"):
            from internal_transfer.adapters.cassandra.operations import CassandraOperations  # noqa: PLC0415
            from internal_transfer.adapters.cassandra.session import Cql  # noqa: PLC0415
            from internal_transfer.adapters.cassandra.transfer_store.store import CassandraTransferStore  # noqa: PLC0415
        cql = Cql(cql_settings(self._settings), self._clock)
        await self._start(cql, "Cassandra")
        # Processes that start at once would get in each other's way if each created the tables.
        store = await CassandraTransferStore.open(cql, migrating=False)
        self.checks.append(store.check)
        operations = await CassandraOperations.open(cql, migrating=False)
        self.checks.append(operations.check)
        return store, operations

    async def open_ledger(self) -> Ledger:
        """Opens the ledger."""
        match self._systems.ledger:
            case LedgerSystem.EMBEDDED:
                return SqliteLedger(self._embedded(), self._clock)
            case LedgerSystem.TIGERBEETLE:
                with extra("tigerbeetle"):
                    from internal_transfer.adapters.tigerbeetle.ledger import TigerBeetleLedger  # noqa: PLC0415
                tigerbeetle = TigerBeetleLedger(tigerbeetle_settings(self._settings))
                await self._start(tigerbeetle, "TigerBeetle")
                self.checks.append(tigerbeetle.check)
                return tigerbeetle
            case LedgerSystem.SOCKET:
                from internal_transfer.adapters.ledger_socket.ledger import SocketLedger, SocketLedgerSettings  # noqa: PLC0415

                path = DataDirectory(Path(self._settings.ledger_socket.data)).ledger_socket
                ledger = SocketLedger(
                    SocketLedgerSettings(path=path, deadline_seconds=SOONER * self._settings.bounds.ledger_seconds)
                )
                await self._start(ledger, "the process with the role ledger")
                self.checks.append(ledger.check)
                return ledger
            case _:
                assert_never(self._systems.ledger)

    async def open_core(self) -> tuple[TradingCore, EventBus, SetCoreMode | None]:
        """Opens the way to the cores, and back from them."""
        match self._systems.core:
            case CoreSystem.EMBEDDED:
                core = ReferenceCore(self._embedded())

                async def set_mode(mode: str) -> None:
                    core.mode = CoreMode(mode)

                return core, MemoryEventBus(), set_mode
            case CoreSystem.KAFKA:
                return await self._open_kafka_core()
            case CoreSystem.AERON:
                return await self._open_aeron_core()
            case _:
                assert_never(self._systems.core)

    async def _open_kafka_core(self) -> tuple[TradingCore, EventBus, SetCoreMode | None]:
        connection = kafka_connection(self._settings)
        from internal_transfer.adapters.kafka.event_bus import GROUP, KafkaEventBus  # noqa: PLC0415
        from internal_transfer.adapters.kafka.topics import Topics  # noqa: PLC0415
        from internal_transfer.adapters.kafka.trading_core import BOUNDS, KafkaTradingCore  # noqa: PLC0415

        topics = Topics(self._settings.kafka.prefix)
        core = KafkaTradingCore(connection, topics, clock=self._clock, bounds=self._asking(BOUNDS))
        await self._start(core, "Kafka")
        self.checks.append(core.check)
        self._failures.append(lambda: core.failure)

        if not self._settles:
            return core, MemoryEventBus(), None
        bus = KafkaEventBus(
            connection, topics, clock=self._clock, group=self._group or GROUP, on_poison=self._count_poison
        )
        self._failures.append(lambda: bus.failure)
        await self._start(bus, "Kafka")
        return core, bus, None

    async def _open_aeron_core(self) -> tuple[TradingCore, EventBus, SetCoreMode | None]:
        from internal_transfer.adapters.aeron.client import AeronClient  # noqa: PLC0415
        from internal_transfer.adapters.aeron.event_bus import AeronEventBus  # noqa: PLC0415
        from internal_transfer.adapters.aeron.trading_core import BOUNDS, AeronTradingCore  # noqa: PLC0415

        client = AeronClient(aeron_connection(self._settings), clock=self._clock)
        core = AeronTradingCore(client, clock=self._clock, bounds=self._asking(BOUNDS))
        bus = AeronEventBus(client, on_poison=self._count_poison) if self._settles else None
        await self._start(client, "Aeron")
        self.checks.append(core.check)
        self._failures.append(lambda: core.failure)
        if bus is not None:
            self.checks.append(bus.check)
            self._failures.append(lambda: bus.failure)
        return core, bus or MemoryEventBus(), None

    def _asking(self, bounds: AskBounds) -> AskBounds:
        """Returns the bounds of questions to a core, within the bound of its port."""
        return replace(bounds, answer_seconds=HALF * self._settings.bounds.core_seconds)

    async def open_limiter(self) -> RateLimiter:
        """Opens the rate limiter; a shared one that does not answer does not stop the start."""
        limit = self._settings.rate_limit
        local = MemoryRateLimiter(self._clock, per_minute=limit.per_minute, burst=limit.burst)
        match self._systems.rate_limiter:
            case LimiterSystem.EMBEDDED:
                if not self._systems.is_alone:
                    _log.warning("rate_limits_count_per_process", advice='share them: systems.rate_limiter = "valkey"')
                return local
            case LimiterSystem.VALKEY:
                return await self._open_valkey(local)
            case _:
                assert_never(self._systems.rate_limiter)

    async def _open_valkey(self, local: RateLimiter) -> RateLimiter:
        with extra("valkey"):
            from internal_transfer.adapters.in_process.rate_limiter_fallback import FallbackRateLimiter  # noqa: PLC0415
            from internal_transfer.adapters.valkey.rate_limiter import ValkeyRateLimiter  # noqa: PLC0415
        limit = self._settings.rate_limit
        shared = ValkeyRateLimiter(valkey_settings(self._settings), per_minute=limit.per_minute, burst=limit.burst)
        self._closing.push_async_callback(shared.close)
        try:
            await shared.start()
        except Unavailable as error:
            # Money is as safe without it. Until it is back, each process counts alone.
            _log.warning("rate_limiter_away", error=str(error))
        self.checks.append(shared.check)
        return FallbackRateLimiter(shared, local, self._clock, self._count_fallback)

    async def open_publisher(self) -> EventPublisher | None:
        """Opens the way to other programs that read events, if the settings name one."""
        match self._systems.events:
            case EventsSystem.NONE:
                return None
            case EventsSystem.KAFKA:
                connection = kafka_connection(self._settings)
                from internal_transfer.adapters.kafka.event_publisher import KafkaEventPublisher  # noqa: PLC0415
                from internal_transfer.adapters.kafka.topics import Topics  # noqa: PLC0415

                publisher = KafkaEventPublisher(connection, Topics(self._settings.kafka.prefix))
                await self._start(publisher, "Kafka")
                self.checks.append(publisher.check)
                return publisher
            case _:
                assert_never(self._systems.events)

    async def _start(self, adapter: Foreign, name: str) -> None:
        """Starts an adapter, which closes with the stack; raises `StartRefusedError` if its system does not answer."""
        self._closing.push_async_callback(adapter.close)
        try:
            await adapter.start()
        except OperatingFailureError as error:
            raise StartRefusedError(
                f"{name} cannot be used: {error.message}; start it, or correct the settings"
            ) from error

    def _embedded(self) -> Database:
        """Returns the database in the data directory; if not all systems are embedded, each call commits alone."""
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

    def _count_poison(self, reason: str) -> None:
        self._telemetry.unexpected.labels("bus", "poison_message").inc()
        _log.error("poison_message", reason=reason)

    def _count_fallback(self, error: OperatingFailureError, names: int) -> None:
        self._telemetry.failures.labels(error.system, type(error).__name__).inc()
        _log.warning("rate_limiter_fallback", error=str(error), names=names)
