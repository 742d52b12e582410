"""Keeps a process up to date with what other processes do: policy, open transfers, and how awaited transfers end."""

import asyncio

import structlog
from msgspec import Struct

from internal_transfer.domain.transfer import OPEN
from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.errors import OperatingFailureError
from internal_transfer.services.completions import Completions
from internal_transfer.services.policy_in_force import PolicyInForce
from internal_transfer.services.pressure import Pressure

LOOKED_AT_MAX = 1000

_log = structlog.get_logger(__name__)


class FollowerBounds(Struct, frozen=True, kw_only=True):
    """How often it looks, in seconds: at awaited transfers, at the policy, and at open transfers."""

    look_seconds: float = 0.01
    policy_seconds: float = 1.0
    open_seconds: float = 5.0


class Follower:
    """The role of every process that shares its record with others."""

    def __init__(
        self,
        ports: Ports,
        bounds: FollowerBounds,
        *,
        completions: Completions,
        policies: PolicyInForce,
        pressure: Pressure,
    ) -> None:
        self._store = ports.store
        self._clock = ports.clock
        self._completions = completions
        self._policies = policies
        self._pressure = pressure
        self._bounds = bounds

    async def run(self) -> None:
        """Looks until cancelled; a look that fails is counted, and the next one follows."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_transfers())
            tasks.create_task(self._follow_policy())
            tasks.create_task(self._follow_pressure())

    async def _follow_transfers(self) -> None:
        """Wakes callers in this process whose transfers another process finished, with one look for all of them."""
        while True:
            await self._completions.awaited()
            await self._clock.sleep(self._bounds.look_seconds)
            try:
                await self.look()
            except OperatingFailureError as error:
                _warn(error)
                await self._clock.sleep(self._bounds.policy_seconds)

    async def look(self) -> None:
        """Looks once at the awaited transfers, and wakes the callers whose transfer is final."""
        ids = self._completions.waiting(LOOKED_AT_MAX)
        if not ids:
            return
        transfers = await self._store.get(ids)
        self._completions.announce(
            transfer.id for transfer in transfers if transfer is not None and transfer.status not in OPEN
        )

    async def _follow_policy(self) -> None:
        while True:
            try:
                await self._policies.refresh()
            except OperatingFailureError as error:
                _warn(error)
            await self._clock.sleep(self._bounds.policy_seconds)

    async def _follow_pressure(self) -> None:
        while True:
            try:
                self._pressure.refresh(await self._store.open_summary())
                told = self._pressure.in_question()
                if told:
                    self._pressure.seen(await self._store.get(told))
            except OperatingFailureError as error:
                _warn(error)
            await self._clock.sleep(self._bounds.open_seconds)


def _warn(error: OperatingFailureError) -> None:
    _log.warning("following_failed", error=str(error))
