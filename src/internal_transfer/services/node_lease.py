"""The lease of the node number under which this process draws transfer ids."""

import uuid

import structlog

from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.errors import OperatingFailureError

LEASE_SECONDS = 60.0
MARGIN_SECONDS = 10.0
"""Ids are no longer drawn this long before the lease ends."""

_log = structlog.get_logger(__name__)


class NodeLease:
    """Leases a node number from the store and renews it in time."""

    def __init__(self, ports: Ports) -> None:
        self._store = ports.store
        self._durability = ports.durability
        self._clock = ports.clock
        self._holder = uuid.uuid4().hex

    async def take(self) -> None:
        """Leases a number or renews the lease, whose time counts from before the store was asked.

        Raises `Unavailable` or `OutcomeUnknown`; an earlier lease then stays as it was.
        """
        asked = self._clock.monotonic()
        node = await self._store.lease_node(
            self._holder, now_ms=self._clock.now_ms(), lease_ms=int(LEASE_SECONDS * 1000)
        )
        self._clock.lease(node, asked + LEASE_SECONDS - MARGIN_SECONDS)

    async def keep(self) -> None:
        """Renews the lease until cancelled; after a failure it tries again while ids can still be drawn."""
        while True:
            await self._clock.sleep(LEASE_SECONDS / 4)
            try:
                await self.take()
                await self._durability.durable()
            except OperatingFailureError as error:
                _log.warning("worker_lease_not_renewed", error=str(error))
