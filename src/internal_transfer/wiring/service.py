"""One process of the service: its roles, its start, and its loops."""

import asyncio
from dataclasses import dataclass
from enum import StrEnum

import structlog

from internal_transfer.ports.all_ports import Ports
from internal_transfer.services.completions import Completions
from internal_transfer.services.courier import Courier
from internal_transfer.services.driver import Driver
from internal_transfer.services.follower import Follower
from internal_transfer.services.gateway import Gateway
from internal_transfer.services.inquiry import Inquiry
from internal_transfer.services.node_lease import NodeLease
from internal_transfer.services.operators.api_keys import ApiKeys
from internal_transfer.services.operators.audit import AuditTrail
from internal_transfer.services.operators.cash import Teller
from internal_transfer.services.operators.policy import PolicyEditor
from internal_transfer.services.operators.stuck_transfers import Desk
from internal_transfer.services.policy_in_force import PolicyInForce
from internal_transfer.services.pressure import Pressure
from internal_transfer.services.readiness import Readiness
from internal_transfer.services.reconciliation.reconciliation import Reconciliation
from internal_transfer.services.restore.check import RestoreCheck
from internal_transfer.services.restore.restored_keys import RestoredKeys
from internal_transfer.services.scanner import Scanner
from internal_transfer.services.settler import Settler
from internal_transfer.services.start_checks import StartChecks
from internal_transfer.settings.data_directory import DataDirectory
from internal_transfer.settings.settings import Settings
from internal_transfer.wiring.stack import Stack

_log = structlog.get_logger(__name__)


class Role(StrEnum):
    """What a process does. A process may have several roles, and any number of processes may have each."""

    GATEWAY = "gateway"
    SETTLER = "settler"
    SCANNER = "scanner"
    COURIER = "courier"


ROLES = frozenset(Role)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One process of the service, built on its ports. `courier` is None if events are not published."""

    settings: Settings
    directory: DataDirectory
    stack: Stack
    roles: frozenset[Role]
    start_checks: StartChecks
    readiness: Readiness
    lease: NodeLease
    completions: Completions
    pressure: Pressure
    policies: PolicyInForce
    driver: Driver
    gateway: Gateway
    settler: Settler
    scanner: Scanner
    follower: Follower
    courier: Courier | None
    inquiry: Inquiry
    audit: AuditTrail
    desk: Desk
    teller: Teller
    policy_editor: PolicyEditor
    reconciliation: Reconciliation
    restore: RestoreCheck
    restored_keys: RestoredKeys
    api_keys: ApiKeys

    @property
    def ports(self) -> Ports:
        """The ports that the roles are built on."""
        return self.stack.ports

    async def prepare(self, *, demo: bool | None) -> None:
        """Checks that this process may start, leases a node, burns the fence's hold, and makes open transfers due.

        `demo` says which kind of server starts; None is for a command that works without a server. Raises
        `StartRefusedError` if the data or the settings are not right (`StartChecks`), and `Unavailable` or
        `OutcomeUnknown` if a system does not answer.
        """
        if demo is None:
            await self.start_checks.for_command()
        else:
            await self.start_checks.for_server(demo=demo)
        await self.restored_keys.refresh()
        await self.lease.take()
        await self.driver.prepare()
        await self.policies.refresh()
        if self.settings.systems.is_alone:
            reopened = await self.ports.store.make_due(now_ms=self.ports.clock.now_ms())
            if reopened:
                _log.info("open_transfers_found", count=reopened)
        await self.ports.durability.durable()

    async def run(self, stop: asyncio.Event) -> None:
        """Works in its roles until `stop` is set, then finishes what was accepted."""
        loops = [self.lease.keep, *self.stack.tending]
        if Role.SETTLER in self.roles:
            loops.append(self.settler.run)
        if Role.SCANNER in self.roles:
            loops.append(self.scanner.run)
        if Role.COURIER in self.roles and self.courier is not None:
            loops.append(self.courier.run)
        if not self.settings.systems.is_alone:
            loops.append(self.follower.run)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(loop()) for loop in loops]
            gateway = tasks.create_task(self.gateway.run())
            await stop.wait()
            self.gateway.close()
            await gateway
            for task in running:
                task.cancel()
