"""The composition root: chooses the adapters, builds the roles, and runs them."""

import asyncio
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from internal_transfer.adapters.clock.system import SystemClock
from internal_transfer.adapters.event_bus.memory import MemoryEventBus
from internal_transfer.adapters.ledger.sqlite import SqliteLedger
from internal_transfer.adapters.operations.sqlite import SqliteOperations
from internal_transfer.adapters.rate_limiter.memory import MemoryRateLimiter
from internal_transfer.adapters.trading_core.sqlite import ReferenceCore
from internal_transfer.adapters.transfer_store.sqlite import SqliteTransferStore
from internal_transfer.embedded.database import Database
from internal_transfer.embedded.directory import DataDirectory
from internal_transfer.ports.errors import OperatingFailureError, StartRefusedError
from internal_transfer.ports.ledger import Ledger
from internal_transfer.ports.trading_core import TradingCore
from internal_transfer.ports.transfer_store import TransferStore
from internal_transfer.services.acts import AuditTrail
from internal_transfer.services.api_keys import ApiKeys
from internal_transfer.services.cash import CashDesk
from internal_transfer.services.completions import Completions
from internal_transfer.services.desk import Desk
from internal_transfer.services.driver import Driver, Timing
from internal_transfer.services.evidence import Examiner
from internal_transfer.services.gateway import Gateway, GatewayBounds
from internal_transfer.services.inquiry import Inquiry
from internal_transfer.services.policy_board import PolicyBoard
from internal_transfer.services.policy_desk import PolicyDesk
from internal_transfer.services.pressure import Pressure
from internal_transfer.services.reconciliation import Reconciliation
from internal_transfer.services.scanner import Scanner, ScannerBounds
from internal_transfer.services.settler import Settler, SettlerBounds
from internal_transfer.settings import Settings, check_pins, pins
from internal_transfer.telemetry import Telemetry

DIRECTORY_KIND = "directory.kind"
"""The name under which it is pinned what a data directory is for."""
DEMO, REAL = "demo", "real"
_OTHER_KIND = {
    DEMO: "was first used without --demo, and made-up money must not come to real money: "
    "start without --demo, or give --data another directory",
    REAL: "was first used with --demo, and its money is made up: start with --demo, or give --data another directory",
}
WORKER_LEASE_SECONDS = 60.0
WORKER_LEASE_MARGIN_SECONDS = 10.0
CHECKPOINT_SECONDS = 1.0
LOG_BYTES_MAX = 64 * 1024 * 1024

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Service:
    """The embedded service: every part of it, and the loops that keep it going."""

    settings: Settings
    directory: DataDirectory
    database: Database
    telemetry: Telemetry
    clock: SystemClock
    ledger: Ledger
    store: TransferStore
    core: ReferenceCore
    operations: SqliteOperations
    bus: MemoryEventBus
    policies: PolicyBoard
    pressure: Pressure
    driver: Driver
    gateway: Gateway
    settler: Settler
    scanner: Scanner
    inquiry: Inquiry
    audit: AuditTrail
    desk: Desk
    cash: CashDesk
    policy_desk: PolicyDesk
    reconciliation: Reconciliation
    api_keys: ApiKeys

    async def prepare(self, *, demo: bool | None) -> None:
        """Checks what is pinned, leases a worker id, burns the fence's hold, and makes what was left open due.

        A server's first start, with `demo` or without, decides for good what the directory is for. None is for work
        without a server, which needs one that was started before, and pins nothing. Raises `StartRefusedError` where
        the directory is for the other, or the settings are not those that the data was made with.
        """
        if demo is None:
            await self._check_pins()
        else:
            await self._pin(DEMO if demo else REAL)
        await self._lease()
        await self.driver.prepare()
        await self.policies.refresh()
        reopened = await self.store.make_due(now_ms=self.clock.now_ms())
        await self.database.durable()
        if reopened:
            _log.info("open_transfers_found", count=reopened)

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, then finishes what was accepted."""
        async with asyncio.TaskGroup() as tasks:
            gateway = tasks.create_task(self.gateway.run())
            loops = [
                tasks.create_task(loop)
                for loop in (self.settler.run(), self.scanner.run(), self._renew(), self._checkpoint())
            ]
            await stop.wait()
            self.gateway.close()
            await gateway
            for task in loops:
                task.cancel()

    async def unready(self) -> str | None:
        """Why requests should not come here now, or None."""
        try:
            self.clock.new_ids(1)
        except OperatingFailureError as error:
            return str(error)
        silent = [name for name in sorted(self._cores()) if self.pressure.is_silent(name)]
        if silent:
            return f"the trading core {silent[0]!r} does not answer"
        return None

    def _cores(self) -> set[str]:
        return {kind.core for kind in self.settings.rules.account_types.values() if kind.core}

    def close(self) -> None:
        """Commits what is open and lets the directory go."""
        self.database.close()
        self.directory.release()

    async def _pin(self, kind: str) -> None:
        pinned = await self.operations.pins()
        if pinned.get(DIRECTORY_KIND, kind) != kind:
            raise StartRefusedError(f"the data directory {self.directory.path} {_OTHER_KIND[kind]}")
        wanted = pins(self.settings) | {DIRECTORY_KIND: kind}
        check_pins(wanted, pinned)
        check_pins(wanted, await self.operations.pin(wanted))

    async def _check_pins(self) -> None:
        pinned = await self.operations.pins()
        if not pinned:
            raise StartRefusedError(f"{self.directory.path}: no server has started on it yet")
        wanted = pins(self.settings)
        advice = "without a server a command needs its settings: give --config FILE of the server"
        try:
            check_pins(wanted, pinned)
        except StartRefusedError as error:
            raise StartRefusedError(f"{error}; {advice}") from error
        new = sorted(wanted.keys() - pinned.keys())
        if new:
            raise StartRefusedError(f"{', '.join(new)}: no server has started with this yet; {advice}")

    async def _lease(self) -> None:
        """Leases the worker id under which transfer ids are drawn; counted from before the store was asked."""
        asked = self.clock.monotonic()
        worker = await self.store.lease_worker(
            _HOLDER, now_ms=self.clock.now_ms(), lease_ms=int(WORKER_LEASE_SECONDS * 1000)
        )
        self.clock.lease(worker, asked + WORKER_LEASE_SECONDS - WORKER_LEASE_MARGIN_SECONDS)

    async def _renew(self) -> None:
        while True:
            await self.clock.sleep(WORKER_LEASE_SECONDS / 4)
            try:
                await self._lease()
                await self.database.durable()
            except OperatingFailureError as error:
                _log.warning("worker_lease_not_renewed", error=str(error))

    async def _checkpoint(self) -> None:
        """Keeps the database's log short without stopping the loop for the bulk of the work."""
        while True:
            await self.clock.sleep(CHECKPOINT_SECONDS)
            try:
                await asyncio.to_thread(self.database.checkpoint)
                if self.database.log_bytes > LOG_BYTES_MAX:
                    self.database.restart_log()
            except OperatingFailureError as error:
                _log.warning("checkpoint_failed", error=str(error))


_HOLDER = uuid.uuid4().hex
"""This process, as the holder of leases."""


@dataclass(frozen=True, slots=True)
class Interposed:
    """What is put in front of the ports, so that services hold no code for faults."""

    store: Callable[[TransferStore], TransferStore]
    ledger: Callable[[Ledger], Ledger]
    core: Callable[[TradingCore], TradingCore]


def build(
    settings: Settings, directory: DataDirectory, *, interpose: Callable[[Database], Interposed] | None = None
) -> Service:
    """Builds the embedded service on a directory that the caller has acquired; raises `StartRefusedError`.

    `interpose` makes what stands in front of the ports; it is given the database, to make durable what was done.
    """
    telemetry = Telemetry()

    def count_failure(error: OperatingFailureError) -> None:
        telemetry.failures.labels(error.system, type(error).__name__).inc()
        _log.error("database_failed", error=str(error))

    clock = SystemClock()
    database = Database(directory.database, on_failure=count_failure)
    ledger: Ledger = SqliteLedger(database, clock)
    store: TransferStore = SqliteTransferStore(database)
    reference_core = ReferenceCore(database)
    core: TradingCore = reference_core
    if interpose is not None:
        front = interpose(database)
        store, ledger, core = front.store(store), front.ledger(ledger), front.core(core)
    operations = SqliteOperations(database)
    bus = MemoryEventBus()
    limiter = MemoryRateLimiter(clock, per_minute=settings.rate_limit.per_minute, burst=settings.rate_limit.burst)
    completions = Completions()
    policies = PolicyBoard(operations)
    times = settings.transfers
    pressure = Pressure(
        clock=clock,
        telemetry=telemetry,
        open_most=times.open_max,
        silence_seconds=times.core_silence_seconds,
    )
    driver = Driver(
        ledger=ledger,
        store=store,
        core=core,
        durability=database,
        clock=clock,
        completions=completions,
        pressure=pressure,
        telemetry=telemetry,
        assets=settings.rules.assets,
        account_types=settings.rules.account_types,
        timing=Timing(
            call_seconds=times.deadline_seconds / 2,
            acting_seconds=times.lease_seconds,
            backoff_first_seconds=settings.retries.first_seconds,
            backoff_most_seconds=settings.retries.longest_seconds,
            expiry_seconds=times.expiry_seconds,
        ),
    )
    gateway = Gateway(
        store=store,
        limiter=limiter,
        driver=driver,
        durability=database,
        clock=clock,
        rules=settings.rules,
        policies=policies,
        pressure=pressure,
        completions=completions,
        telemetry=telemetry,
        bounds=GatewayBounds(
            queue_most=times.queue_max,
            batch_most=times.batch_max,
            call_seconds=times.deadline_seconds / 2,
            acting_seconds=times.lease_seconds,
        ),
    )
    settler = Settler(
        bus=bus,
        store=store,
        driver=driver,
        pressure=pressure,
        durability=database,
        clock=clock,
        telemetry=telemetry,
        bounds=SettlerBounds(batch_most=times.batch_max),
    )
    scanner = Scanner(
        store=store,
        driver=driver,
        pressure=pressure,
        policies=policies,
        durability=database,
        clock=clock,
        telemetry=telemetry,
        bounds=ScannerBounds(
            interval_seconds=settings.scanner.interval_seconds,
            batch_most=settings.scanner.batch_max,
            lease_seconds=settings.scanner.lease_seconds,
            stuck_seconds=settings.alerts.stuck_seconds,
            alert_seconds=settings.alerts.alert_seconds,
            critical_seconds=settings.alerts.critical_seconds,
        ),
    )
    inquiry = Inquiry(
        store=store,
        ledger=ledger,
        core=core,
        durability=database,
        clock=clock,
        rules=settings.rules,
        policies=policies,
        call_seconds=times.deadline_seconds / 2,
    )
    audit = AuditTrail(operations=operations, clock=clock)
    desk = Desk(
        examiner=Examiner(store=store, ledger=ledger, core=core, driver=driver, durability=database),
        store=store,
        driver=driver,
        audit=audit,
        durability=database,
        clock=clock,
        stuck_seconds=settings.alerts.stuck_seconds,
    )
    cash = CashDesk(
        ledger=ledger,
        driver=driver,
        audit=audit,
        durability=database,
        rules=settings.rules,
        telemetry=telemetry,
    )
    policy_desk = PolicyDesk(
        operations=operations,
        policies=policies,
        audit=audit,
        durability=database,
        rules=settings.rules,
    )
    reconciliation = Reconciliation(
        store=store,
        ledger=ledger,
        core=core,
        operations=operations,
        driver=driver,
        durability=database,
        clock=clock,
        rules=settings.rules,
        telemetry=telemetry,
    )
    api_keys = ApiKeys(
        operations=operations,
        audit=audit,
        durability=database,
        clock=clock,
        tiers=settings.tiers,
        draw=secrets.token_bytes,
    )
    return Service(
        settings=settings,
        directory=directory,
        database=database,
        telemetry=telemetry,
        clock=clock,
        ledger=ledger,
        store=store,
        core=reference_core,
        operations=operations,
        bus=bus,
        policies=policies,
        pressure=pressure,
        driver=driver,
        gateway=gateway,
        settler=settler,
        scanner=scanner,
        inquiry=inquiry,
        audit=audit,
        desk=desk,
        cash=cash,
        policy_desk=policy_desk,
        reconciliation=reconciliation,
        api_keys=api_keys,
    )
