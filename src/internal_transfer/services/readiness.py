"""Whether requests should come to this process now."""

import asyncio
from collections.abc import Callable, Sequence

from internal_transfer.domain.identifier import TransferId, hold_id
from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.errors import OperatingFailureError, System
from internal_transfer.services.pressure import Pressure

PROBE_SECONDS = 2.0
"""How long a probe of a system may take: a load balancer does not wait as long as a transfer does."""

_NOBODY = TransferId(1)


class Readiness:
    """Tells why requests should not come here: from what is known and, with `probes`, by asking store and ledger.

    Each of `failures` returns why an adapter does not work at present, as far as it knows without asking, or None.
    """

    def __init__(
        self,
        ports: Ports,
        pressure: Pressure,
        *,
        cores: frozenset[str],
        probes: bool,
        failures: Sequence[Callable[[], str | None]],
    ) -> None:
        self._ports = ports
        self._pressure = pressure
        self._cores = sorted(cores)
        self._probes = probes
        self._failures = failures

    async def unready(self) -> str | None:
        """Returns the reason why requests should not come here now, or None."""
        try:
            self._ports.clock.new_ids(1)
        except OperatingFailureError as error:
            return str(error)
        if self._probes:
            failure = await self._probe()
            if failure is not None:
                return failure
        silent = next((core for core in self._cores if self._pressure.is_silent(core)), None)
        return None if silent is None else f"the trading core {silent!r} does not answer"

    async def _probe(self) -> str | None:
        """Asks the store and the ledger for something that does not exist, then the adapters for what they know."""
        system = System.STORE
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self._ports.store.get([_NOBODY])
            system = System.LEDGER
            async with asyncio.timeout(PROBE_SECONDS):
                await self._ports.ledger.lookup_transfers([hold_id(_NOBODY)])
        except OperatingFailureError as error:
            return str(error)
        except TimeoutError:
            return f"{system}: no answer in {PROBE_SECONDS:g} s"
        return next((failure for tell in self._failures if (failure := tell()) is not None), None)
