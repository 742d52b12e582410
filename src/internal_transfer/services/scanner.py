"""Finds open transfers that nobody works on any more, asks what happened, and goes on with them."""

import structlog
from msgspec import Struct

from internal_transfer.domain.transfer import OPEN, Facts, Transfer
from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.errors import OperatingFailureError
from internal_transfer.services.after_failures import leave_failed_turn
from internal_transfer.services.driver import Driver, Work
from internal_transfer.services.policy_in_force import PolicyInForce
from internal_transfer.services.pressure import Pressure

SET_BACK_MS = 5_000
"""Smaller steps back are waited out, as they are when ids are drawn."""

_log = structlog.get_logger(__name__)


class ScannerBounds(Struct, frozen=True, kw_only=True):
    """How often it scans, how many transfers it leases at once and for how long, and the ages that raise an alert."""

    interval_seconds: float = 5.0
    batch_most: int = 512
    lease_seconds: float = 30.0
    stuck_seconds: float = 60.0
    alert_seconds: float = 1800.0
    critical_seconds: float = 7200.0


class Scanner:
    """The role that recovers."""

    def __init__(
        self, ports: Ports, bounds: ScannerBounds, *, driver: Driver, pressure: Pressure, policies: PolicyInForce
    ) -> None:
        self._store = ports.store
        self._durability = ports.durability
        self._clock = ports.clock
        self._telemetry = ports.telemetry
        self._driver = driver
        self._pressure = pressure
        self._policies = policies
        self._bounds = bounds
        self._scanned_at: tuple[int, float] | None = None

    async def run(self) -> None:
        """Scans until cancelled; a scan that fails is counted, and the next one follows."""
        while True:
            try:
                await self.scan()
            except OperatingFailureError as error:
                _log.warning("scan_failed", error=str(error))
            except Exception as error:  # noqa: BLE001 - the role's outermost loop: a bug must neither end it nor hide.
                self._report(error)
            await leave_failed_turn(self._durability)
            await self._clock.sleep(self._bounds.interval_seconds)

    async def scan(self) -> int:
        """Works on all transfers that are due, and returns how many there were."""
        worked_on = 0
        await self._follow_the_clock()
        while due := await self._lease_due():
            worked_on += len(due)
            try:
                await self.recover(due)
            except OperatingFailureError:
                raise
            except Exception as error:  # noqa: BLE001 - a bug that one transfer shows must not hold up the others.
                self._report(error)
                # The failure rolled back its turn; the single recoveries begin their own.
                await leave_failed_turn(self._durability)
                await self._recover_singly(due)
        await self._measure()
        self._telemetry.scanner_runs.inc()
        await self._policies.refresh()
        return worked_on

    async def _follow_the_clock(self) -> None:
        """Makes all transfers due if the wall clock was set back, since their due times are then too far ahead."""
        wall_ms, monotonic = self._clock.now_ms(), self._clock.monotonic()
        if self._scanned_at is not None:
            before_ms, before = self._scanned_at
            set_back_ms = int((monotonic - before) * 1000) - (wall_ms - before_ms)
            if set_back_ms > SET_BACK_MS:
                made_due = await self._store.make_due(now_ms=wall_ms)
                _log.warning("clock_set_back", milliseconds=set_back_ms, made_due=made_due)
        self._scanned_at = (wall_ms, monotonic)

    async def _lease_due(self) -> list[Transfer]:
        # A transfer that was leased or worked on is due later, so the scan ends.
        due = await self._store.lease_due(
            now_ms=self._clock.now_ms(),
            lease_ms=int(self._bounds.lease_seconds * 1000),
            most=self._bounds.batch_most,
        )
        # A lease that was rolled back together with the work on it would be taken again, without end.
        await self._durability.durable()
        return due

    async def _recover_singly(self, transfers: list[Transfer]) -> None:
        for transfer in transfers:
            try:
                await self.recover([transfer])
            except OperatingFailureError:
                raise
            except Exception as error:  # noqa: BLE001 - as above; the transfer is due again when its lease ends.
                self._report(error, request_id=str(transfer.id))
                await leave_failed_turn(self._durability)

    def _report(self, error: Exception, **about: str) -> None:
        self._telemetry.failures.labels("scanner", type(error).__name__).inc()
        _log.error("scan_broke", exc_info=error, **about)

    async def recover(self, transfers: list[Transfer]) -> list[Work]:
        """Asks the ledger and the cores about open transfers, and goes on from what they say."""
        works = [
            Work(transfer, Facts(expired=self._driver.is_expired(transfer)), scanned=True) for transfer in transfers
        ]
        await self._driver.drive(works)
        for work in works:
            if work.lost:
                action = "left_to_another"
            elif work.transfer.status not in OPEN:
                action = work.transfer.status.lower()
            elif work.failure is not None:
                action = "put_off"
            else:
                action = "waiting"
            self._telemetry.recoveries.labels(action).inc()
        return works

    async def _measure(self) -> None:
        summary = await self._store.open_summary()
        self._pressure.refresh(summary)
        now = self._clock.now_ms()
        bounds = self._bounds
        worries = (
            ("critical", bounds.critical_seconds),
            ("alert", bounds.alert_seconds),
            ("stuck", bounds.stuck_seconds),
        )
        self._telemetry.open_transfers.clear()
        for status in OPEN:
            count = summary.by_status.get(status, 0)
            oldest = summary.oldest_open_ms.get(status, now)
            age = next((name for name, seconds in worries if now - oldest > seconds * 1000), "fresh")
            self._telemetry.open_transfers.labels(status, age).set(count)
        self._telemetry.needs_person.clear()
        for reason, count in summary.needs_person.items():
            self._telemetry.needs_person.labels(reason).set(count)
