"""The composition root: builds the roles of a process on a stack of adapters, and runs them."""

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import structlog

from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.domain.identifier import TransferId, hold_id
from internal_transfer.ports.durability import Durability
from internal_transfer.ports.errors import OperatingFailureError, StartRefusedError, System, Unavailable
from internal_transfer.ports.ledger import Ledger
from internal_transfer.ports.trading_core import TradingCore
from internal_transfer.ports.transfer_store import TransferStore
from internal_transfer.services.completions import Completions
from internal_transfer.services.courier import Courier, CourierBounds
from internal_transfer.services.deadline import deadline
from internal_transfer.services.driver import Driver, Timing
from internal_transfer.services.follower import Follower, FollowerBounds
from internal_transfer.services.gateway import Gateway, GatewayBounds
from internal_transfer.services.inquiry import Inquiry
from internal_transfer.services.operators.audit import AuditTrail
from internal_transfer.services.operators.cash import Teller
from internal_transfer.services.operators.desk import Desk
from internal_transfer.services.operators.evidence import Examiner
from internal_transfer.services.operators.keys import ApiKeys
from internal_transfer.services.operators.policy import PolicyEditor
from internal_transfer.services.policy_in_force import PolicyInForce
from internal_transfer.services.pressure import Pressure
from internal_transfer.services.reconciliation.reconciliation import Reconciliation
from internal_transfer.services.restore.check import RestoreCheck
from internal_transfer.services.restore.keys import RestoredKeys
from internal_transfer.services.restore.reach import Reach
from internal_transfer.services.scanner import Scanner, ScannerBounds
from internal_transfer.services.settler import Settler, SettlerBounds
from internal_transfer.settings.data_directory import DataDirectory
from internal_transfer.settings.pins import check_pins, pins
from internal_transfer.settings.settings import Settings
from internal_transfer.telemetry import Telemetry
from internal_transfer.wiring.opening import Stack, open_stack

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


class Role(StrEnum):
    """What a process does. Any process may do several, and any number of processes each."""

    GATEWAY = "gateway"
    SETTLER = "settler"
    SCANNER = "scanner"
    COURIER = "courier"


ROLES = frozenset(Role)

PROBE_SECONDS = 2.0
SHARING_WORKERS = 4
"""So many batches of a gateway are on their way at once where calls wait for other systems."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Service:
    """One process of the service: every part of it, and the loops of its roles."""

    settings: Settings
    directory: DataDirectory
    stack: Stack
    roles: frozenset[Role]
    telemetry: Telemetry
    clock: SystemClock
    store: TransferStore
    policies: PolicyInForce
    pressure: Pressure
    driver: Driver
    gateway: Gateway
    settler: Settler
    scanner: Scanner
    restore: RestoreCheck
    restored_keys: RestoredKeys
    follower: Follower
    courier: Courier | None
    inquiry: Inquiry
    audit: AuditTrail
    desk: Desk
    cash: Teller
    policy_editor: PolicyEditor
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
        disagreement = await self.restore.disagreement()
        if disagreement is not None and demo is not None:
            raise StartRefusedError(disagreement)
        await self.restored_keys.refresh()
        await self._lease()
        await self.driver.prepare()
        await self.policies.refresh()
        if self.settings.systems.is_alone:
            reopened = await self.store.make_due(now_ms=self.clock.now_ms())
            if reopened:
                _log.info("open_transfers_found", count=reopened)
        await self.stack.durability.durable()

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, then finishes what was accepted."""
        async with asyncio.TaskGroup() as tasks:
            loops = [self._renew(), *(tend() for tend in self.stack.tending)]
            if Role.SETTLER in self.roles:
                loops.append(self.settler.run())
            if Role.SCANNER in self.roles:
                loops.append(self.scanner.run())
            if Role.COURIER in self.roles and self.courier is not None:
                loops.append(self.courier.run())
            if not self.settings.systems.is_alone:
                loops.append(self.follower.run())
            running = [tasks.create_task(loop) for loop in loops]
            gateway = tasks.create_task(self.gateway.run())
            await stop.wait()
            self.gateway.close()
            await gateway
            for task in running:
                task.cancel()

    async def unready(self) -> str | None:
        """Why requests should not come here now, or None."""
        try:
            self.clock.new_ids(1)
        except OperatingFailureError as error:
            return str(error)
        if not self.settings.systems.shares_a_commit:
            failure = await self._failure()
            if failure is not None:
                return failure
        silent = [name for name in sorted(self._cores()) if self.pressure.is_silent(name)]
        if silent:
            return f"the trading core {silent[0]!r} does not answer"
        return None

    async def _failure(self) -> str | None:
        """What of the systems outside does not work now; store and ledger are asked for something that is not there."""
        nothing = TransferId(1)
        try:
            async with deadline(PROBE_SECONDS, Unavailable(System.STORE, f"no answer in {PROBE_SECONDS:g} s")):
                await self.store.get([nothing])
            async with deadline(PROBE_SECONDS, Unavailable(System.LEDGER, f"no answer in {PROBE_SECONDS:g} s")):
                await self.stack.ledger.lookup_transfers([hold_id(nothing)])
        except OperatingFailureError as error:
            return str(error)
        return next((failure for tell in self.stack.failures if (failure := tell()) is not None), None)

    def _cores(self) -> set[str]:
        return {kind.core for kind in self.settings.rules.account_types.values() if kind.core}

    async def _pin(self, kind: str) -> None:
        pinned = await self.stack.operations.pins()
        if pinned.get(DIRECTORY_KIND, kind) != kind:
            raise StartRefusedError(f"the data directory {self.directory.path} {_OTHER_KIND[kind]}")
        wanted = pins(self.settings) | {DIRECTORY_KIND: kind}
        check_pins(wanted, pinned)
        check_pins(wanted, await self.stack.operations.pin(wanted))

    async def _check_pins(self) -> None:
        pinned = await self.stack.operations.pins()
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
        worker = await self.store.lease_node(
            _HOLDER, now_ms=self.clock.now_ms(), lease_ms=int(WORKER_LEASE_SECONDS * 1000)
        )
        self.clock.lease(worker, asked + WORKER_LEASE_SECONDS - WORKER_LEASE_MARGIN_SECONDS)

    async def _renew(self) -> None:
        while True:
            await self.clock.sleep(WORKER_LEASE_SECONDS / 4)
            try:
                await self._lease()
                await self.stack.durability.durable()
            except OperatingFailureError as error:
                _log.warning("worker_lease_not_renewed", error=str(error))


_HOLDER = uuid.uuid4().hex
"""This process, as the holder of leases."""


@dataclass(frozen=True, slots=True)
class Interposed:
    """What is put in front of the ports, so that services hold no code for faults."""

    store: Callable[[TransferStore], TransferStore]
    ledger: Callable[[Ledger], Ledger]
    core: Callable[[TradingCore], TradingCore]


def build(
    settings: Settings,
    directory: DataDirectory,
    stack: Stack,
    *,
    clock: SystemClock,
    telemetry: Telemetry,
    roles: frozenset[Role] = ROLES,
    interpose: Callable[[Durability], Interposed] | None = None,
) -> Service:
    """Builds the roles on an open stack.

    `interpose` makes what stands in front of the ports; it is given what makes durable what was done.
    """
    store, ledger, core = stack.store, stack.ledger, stack.core
    if interpose is not None:
        front = interpose(stack.durability)
        store, ledger, core = front.store(store), front.ledger(ledger), front.core(core)
    durability, operations = stack.durability, stack.operations
    completions = Completions()
    policies = PolicyInForce(operations)
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
        durability=durability,
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
    restored_keys = RestoredKeys(store=store, operations=operations, rules=settings.rules)
    gateway = Gateway(
        store=store,
        restored_keys=restored_keys,
        limiter=stack.limiter,
        driver=driver,
        durability=durability,
        clock=clock,
        rules=settings.rules,
        policies=policies,
        pressure=pressure,
        completions=completions,
        telemetry=telemetry,
        bounds=GatewayBounds(
            queue_most=times.queue_max,
            batch_most=times.batch_max,
            # Alone, all of a batch is done without waiting; elsewhere others go on while one waits for an answer.
            workers=1 if settings.systems.shares_a_commit else SHARING_WORKERS,
            call_seconds=times.deadline_seconds / 2,
            acting_seconds=times.lease_seconds,
        ),
    )
    settler = Settler(
        bus=stack.bus,
        store=store,
        driver=driver,
        pressure=pressure,
        durability=durability,
        clock=clock,
        telemetry=telemetry,
        bounds=SettlerBounds(batch_most=times.batch_max),
    )
    scanner = Scanner(
        store=store,
        driver=driver,
        pressure=pressure,
        policies=policies,
        durability=durability,
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
    follower = Follower(
        store=store,
        completions=completions,
        policies=policies,
        pressure=pressure,
        clock=clock,
        telemetry=telemetry,
        bounds=FollowerBounds(open_seconds=settings.scanner.interval_seconds),
    )
    courier = None
    if stack.publisher is not None:
        courier = Courier(
            store=store,
            publisher=stack.publisher,
            durability=durability,
            clock=clock,
            telemetry=telemetry,
            bounds=CourierBounds(),
        )
    inquiry = Inquiry(
        store=store,
        restored_keys=restored_keys,
        ledger=ledger,
        core=core,
        durability=durability,
        clock=clock,
        rules=settings.rules,
        policies=policies,
        call_seconds=times.deadline_seconds / 2,
    )
    audit = AuditTrail(operations=operations, clock=clock)
    desk = Desk(
        examiner=Examiner(store=store, ledger=ledger, core=core, driver=driver, durability=durability),
        store=store,
        driver=driver,
        audit=audit,
        durability=durability,
        clock=clock,
        stuck_seconds=settings.alerts.stuck_seconds,
    )
    cash = Teller(
        ledger=ledger,
        driver=driver,
        audit=audit,
        durability=durability,
        rules=settings.rules,
        telemetry=telemetry,
    )
    policy_editor = PolicyEditor(
        operations=operations,
        policies=policies,
        audit=audit,
        durability=durability,
        rules=settings.rules,
    )
    reconciliation = Reconciliation(
        store=store,
        ledger=ledger,
        core=core,
        operations=operations,
        driver=driver,
        durability=durability,
        clock=clock,
        rules=settings.rules,
        telemetry=telemetry,
    )
    restore = RestoreCheck(
        Reach(
            store=store,
            ledger=ledger,
            core=core,
            operations=operations,
            driver=driver,
            durability=durability,
            clock=clock,
            rules=settings.rules,
        ),
        audit=audit,
        reconciliation=reconciliation,
    )
    api_keys = ApiKeys(
        operations=operations,
        audit=audit,
        durability=durability,
        clock=clock,
        tiers=settings.tiers,
        draw=secrets.token_bytes,
    )
    return Service(
        settings=settings,
        directory=directory,
        stack=stack,
        roles=roles,
        telemetry=telemetry,
        clock=clock,
        store=store,
        policies=policies,
        pressure=pressure,
        driver=driver,
        gateway=gateway,
        settler=settler,
        scanner=scanner,
        restore=restore,
        restored_keys=restored_keys,
        follower=follower,
        courier=courier,
        inquiry=inquiry,
        audit=audit,
        desk=desk,
        cash=cash,
        policy_editor=policy_editor,
        reconciliation=reconciliation,
        api_keys=api_keys,
    )


@asynccontextmanager
async def open_service(
    settings: Settings,
    data: Path,
    roles: frozenset[Role] = ROLES,
    *,
    interpose: Callable[[Durability], Interposed] | None = None,
) -> AsyncIterator[Service]:
    """The service on a data directory that nobody else holds; raises `StartRefusedError`."""
    directory = DataDirectory(data)
    directory.acquire()
    try:
        clock, telemetry = SystemClock(), Telemetry()
        settles = Role.SETTLER in roles
        async with open_stack(settings, directory, clock=clock, telemetry=telemetry, settles=settles) as stack:
            yield build(settings, directory, stack, clock=clock, telemetry=telemetry, roles=roles, interpose=interpose)
    finally:
        directory.release()
