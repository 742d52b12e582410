"""Builds the roles of a process on a stack of ports."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.services.completions import Completions
from internal_transfer.services.courier import Courier, CourierBounds
from internal_transfer.services.driver import Driver
from internal_transfer.services.follower import Follower, FollowerBounds
from internal_transfer.services.gateway import Gateway, GatewayBounds
from internal_transfer.services.inquiry import Inquiry
from internal_transfer.services.node_lease import NodeLease
from internal_transfer.services.operators.api_keys import ApiKeys
from internal_transfer.services.operators.audit import AuditTrail
from internal_transfer.services.operators.cash import Teller
from internal_transfer.services.operators.evidence import Examiner
from internal_transfer.services.operators.policy import PolicyEditor
from internal_transfer.services.operators.stuck_transfers import Desk
from internal_transfer.services.policy_in_force import PolicyInForce
from internal_transfer.services.pressure import Pressure
from internal_transfer.services.readiness import Readiness
from internal_transfer.services.reconciliation.reconciliation import Reconciliation
from internal_transfer.services.restore.check import RestoreCheck
from internal_transfer.services.restore.restored_keys import RestoredKeys
from internal_transfer.services.restore.systems import RestoredSystems
from internal_transfer.services.retry_times import RetryTimes
from internal_transfer.services.scanner import Scanner, ScannerBounds
from internal_transfer.services.settler import Settler, SettlerBounds
from internal_transfer.services.start_checks import StartChecks
from internal_transfer.settings.data_directory import DataDirectory
from internal_transfer.settings.settings import Settings
from internal_transfer.telemetry import Telemetry
from internal_transfer.wiring.adapters import open_stack
from internal_transfer.wiring.service import ROLES, Role, Service
from internal_transfer.wiring.stack import Interpose, Stack

SHARING_BATCHES = 4
"""How many batches a gateway has under way at once if its calls wait for other systems."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleBounds:
    """The bounds of each role: sizes of batches and queues, pauses, leases, ages. `page_most` bounds a page that
    reconciliation and repairs read.
    """

    times: RetryTimes
    gateway: GatewayBounds
    settler: SettlerBounds
    scanner: ScannerBounds
    follower: FollowerBounds
    courier: CourierBounds
    page_most: int = 200


def bounds_of(settings: Settings) -> RoleBounds:
    """Returns the bounds that the settings give."""
    times = settings.transfers
    return RoleBounds(
        times=RetryTimes(
            acting_seconds=times.lease_seconds,
            first_seconds=settings.retries.first_seconds,
            longest_seconds=settings.retries.longest_seconds,
            expiry_seconds=times.expiry_seconds,
        ),
        gateway=GatewayBounds(
            queue_most=times.queue_max,
            batch_most=times.batch_max,
            # With one shared commit a batch never waits; otherwise others go on while one waits for an answer.
            batches_at_once=1 if settings.systems.shares_a_commit else SHARING_BATCHES,
            acting_seconds=times.lease_seconds,
        ),
        settler=SettlerBounds(batch_most=times.batch_max),
        scanner=ScannerBounds(
            interval_seconds=settings.scanner.interval_seconds,
            batch_most=settings.scanner.batch_max,
            lease_seconds=settings.scanner.lease_seconds,
            stuck_seconds=settings.alerts.stuck_seconds,
            alert_seconds=settings.alerts.alert_seconds,
            critical_seconds=settings.alerts.critical_seconds,
        ),
        follower=FollowerBounds(open_seconds=settings.scanner.interval_seconds),
        courier=CourierBounds(),
    )


def build(
    settings: Settings,
    directory: DataDirectory,
    stack: Stack,
    *,
    roles: frozenset[Role] = ROLES,
    bounds: RoleBounds | None = None,
) -> Service:
    """Builds the service on an open stack; `bounds` are those of the settings unless others are given."""
    ports, rules = stack.ports, settings.rules
    bounds = bounds or bounds_of(settings)
    completions, policies = Completions(), PolicyInForce(ports)
    pressure = Pressure(
        ports, open_most=settings.transfers.open_max, silence_seconds=settings.transfers.core_silence_seconds
    )
    driver = Driver(ports, rules, bounds.times, completions=completions, pressure=pressure)
    keys, audit = RestoredKeys(ports, rules), AuditTrail(ports)
    reconciliation = Reconciliation(ports, rules, driver=driver, page_most=bounds.page_most)
    systems = RestoredSystems(ports, rules, driver, page_most=bounds.page_most)
    restore = RestoreCheck(systems, audit=audit, reconciliation=reconciliation)
    return Service(
        settings=settings,
        directory=directory,
        stack=stack,
        roles=roles,
        start_checks=StartChecks(ports, settings, directory.path, restore),
        readiness=Readiness(
            ports,
            pressure,
            cores=frozenset(kind.core for kind in rules.account_types.values() if kind.core),
            probes=not settings.systems.shares_a_commit,
            failures=stack.failures,
        ),
        lease=NodeLease(ports),
        completions=completions,
        pressure=pressure,
        policies=policies,
        driver=driver,
        gateway=Gateway(
            ports,
            rules,
            bounds.gateway,
            keys=keys,
            driver=driver,
            policies=policies,
            pressure=pressure,
            completions=completions,
        ),
        settler=Settler(ports, bounds.settler, driver=driver, pressure=pressure),
        scanner=Scanner(ports, bounds.scanner, driver=driver, pressure=pressure, policies=policies),
        follower=Follower(ports, bounds.follower, completions=completions, policies=policies, pressure=pressure),
        courier=None if ports.publisher is None else Courier(ports, ports.publisher, bounds.courier),
        inquiry=Inquiry(ports, rules, keys=keys, policies=policies),
        audit=audit,
        desk=Desk(
            ports,
            examiner=Examiner(ports, driver),
            driver=driver,
            audit=audit,
            stuck_seconds=bounds.scanner.stuck_seconds,
        ),
        teller=Teller(ports, rules, driver=driver, audit=audit),
        policy_editor=PolicyEditor(ports, rules, policies=policies, audit=audit),
        reconciliation=reconciliation,
        restore=restore,
        restored_keys=keys,
        api_keys=ApiKeys(ports, audit=audit, tiers=settings.tiers, draw=secrets.token_bytes),
    )


@asynccontextmanager
async def open_service(
    settings: Settings, data: Path, roles: frozenset[Role] = ROLES, *, interpose: Interpose | None = None
) -> AsyncIterator[Service]:
    """Opens the service on a data directory that no other process holds; raises `StartRefusedError`."""
    directory = DataDirectory(data)
    directory.acquire()
    try:
        async with open_stack(
            settings,
            directory,
            clock=SystemClock(),
            telemetry=Telemetry(),
            settles=Role.SETTLER in roles,
            interpose=interpose,
        ) as stack:
            yield build(settings, directory, stack, roles=roles)
    finally:
        directory.release()
