"""Takes the verdicts of trading cores from the event bus, and finishes their transfers."""

from collections.abc import Sequence

import structlog
from msgspec import Struct

from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Verdict
from internal_transfer.domain.transfer import OPEN, Facts, Hold, Status
from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.errors import OperatingFailureError, System
from internal_transfer.ports.event_bus import Delivery
from internal_transfer.services.after_failures import leave_failed_turn
from internal_transfer.services.driver import Driver, Work
from internal_transfer.services.pressure import Pressure

LOST_AGAIN_MAX = 4
"""After another process was faster this many times, the transfer is left to it, or to the scanner when it is due."""

_log = structlog.get_logger(__name__)


class SettlerBounds(Struct, frozen=True, kw_only=True):
    """How many confirmations are taken at once, and how long to wait after a failure."""

    batch_most: int = 512
    failure_seconds: float = 1.0


class Settler:
    """The role that finishes."""

    def __init__(self, ports: Ports, bounds: SettlerBounds, *, driver: Driver, pressure: Pressure) -> None:
        self._bus = ports.bus
        self._store = ports.store
        self._durability = ports.durability
        self._clock = ports.clock
        self._telemetry = ports.telemetry
        self._driver = driver
        self._pressure = pressure
        self._bounds = bounds

    async def run(self) -> None:
        """Works until cancelled; a delivery that fails is tried again until it succeeds."""
        while True:
            try:
                delivery = await self._bus.take(self._bounds.batch_most)
            except OperatingFailureError as error:
                await self._put_off(error)
                continue
            for work in (self._settle_all, self._acknowledge):
                while (failure := await work(delivery)) is not None:
                    await self._put_off(failure)

    async def _put_off(self, error: OperatingFailureError) -> None:
        _log.warning("settling_failed", error=str(error))
        await leave_failed_turn(self._durability)
        await self._clock.sleep(self._bounds.failure_seconds)

    async def _acknowledge(self, delivery: Delivery) -> OperatingFailureError | None:
        try:
            await self._bus.acknowledge(delivery)
        except OperatingFailureError as error:
            return error
        return None

    async def _settle_all(self, delivery: Delivery) -> OperatingFailureError | None:
        """Settles a delivery as one batch or, if a bug makes that fail, one verdict at a time."""
        try:
            await self.settle(delivery.verdicts)
        except OperatingFailureError as error:
            return error
        except Exception as error:  # noqa: BLE001 - the role's outermost loop: a bug must neither end it nor hide.
            self._report(error)
        else:
            return None
        await leave_failed_turn(self._durability)
        for verdict in delivery.verdicts:
            try:
                await self.settle([verdict])
            except OperatingFailureError as error:
                return error
            except Exception as error:  # noqa: BLE001 - the same; the scanner asks about this transfer again.
                self._report(error, request_id=str(verdict.transfer_id))
                await leave_failed_turn(self._durability)
        return None

    def _report(self, error: Exception, **about: str) -> None:
        self._telemetry.failures.labels("settler", type(error).__name__).inc()
        _log.error("settling_broke", exc_info=error, **about)

    async def settle(self, verdicts: Sequence[Verdict]) -> None:
        """Goes on with the transfers that these verdicts are about; safe to repeat.

        A verdict about a final transfer, or one that was heard before, changes nothing. No working core gives a verdict
        about an unknown transfer, or about one whose hold is not on record yet: such a verdict is counted. If another
        process recorded a change in the meantime, the verdict is applied to the new record, since the core will not
        send it again.
        """
        for _ in range(LOST_AGAIN_MAX):
            verdicts = await self._settle_once(verdicts)
            if not verdicts:
                return

    async def _settle_once(self, verdicts: Sequence[Verdict]) -> Sequence[Verdict]:
        """Returns the verdicts about transfers that another process went on with."""
        by_id: dict[TransferId, list[Verdict]] = {}
        for verdict in verdicts:
            by_id.setdefault(verdict.transfer_id, []).append(verdict)
        transfers = await self._store.get(list(by_id))
        works = []
        for transfer_id, transfer in zip(by_id, transfers, strict=True):
            if transfer is None or transfer.status is Status.REQUESTING:
                self._telemetry.unexpected.labels(System.CORE, "verdict_without_order").inc()
                _log.error("verdict_without_order", request_id=str(transfer_id))
                continue
            sides = {verdict.side for verdict in by_id[transfer_id]}
            for leg in transfer.legs:
                if leg.side in sides:
                    self._pressure.heard(leg.core)
            if transfer.status not in OPEN:
                continue
            work = Work(transfer, Facts(Hold.HELD))
            for verdict in by_id[transfer_id]:
                self._driver.hear(work, verdict)
            works.append(work)
        await self._driver.drive(works)
        return [verdict for work in works if work.lost for verdict in by_id[work.transfer.id]]
