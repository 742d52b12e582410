"""When the service takes no more: too many open transfers, or a trading core that has fallen silent."""

from internal_transfer.domain.leg import Leg
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.transfer_store import OpenSummary
from internal_transfer.telemetry import Telemetry


class Pressure:
    """Decides before anything is recorded whether a request is shed.

    A core is silent when its oldest order has waited `silence_seconds` and it has answered nothing since. One request
    every `probe_seconds` is let through to a silent core, so that its return is noticed without a scan's back-off.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        telemetry: Telemetry,
        open_most: int,
        silence_seconds: float = 60.0,
        probe_seconds: float = 5.0,
    ) -> None:
        self._clock = clock
        self._telemetry = telemetry
        self._open_most = open_most
        self._silence_seconds = silence_seconds
        self._probe_seconds = probe_seconds
        self._open = 0
        self._asked_ms: dict[str, int] = {}
        self._heard_ms: dict[str, int] = {}
        self._probed: dict[str, float] = {}

    def refresh(self, summary: OpenSummary) -> None:
        """Takes the figures of a scan."""
        self._open = sum(summary.by_status.values())
        self._asked_ms = dict(summary.oldest_asked_ms)

    def accepted(self, count: int) -> None:
        """Counts transfers that were accepted since the last scan."""
        self._open += count

    def finished(self, count: int) -> None:
        """Counts transfers that became final since the last scan."""
        self._open = max(0, self._open - count)

    def heard(self, core: str) -> None:
        """Notes that a core gave a verdict."""
        self._heard_ms[core] = self._clock.now_ms()

    def shed(self, legs: tuple[Leg, ...], ahead: int = 0) -> Refusal | None:
        """The refusal for a request with these legs, or None if it may go on; `ahead` are others that just may."""
        if self._open + ahead >= self._open_most:
            self._telemetry.sheds.labels("open_transfers").inc()
            return Refusal(Code.SYSTEM_OVERLOADED, "too many transfers are open", retry_after_seconds=5.0)
        for leg in legs:
            if self.is_silent(leg.core):
                now = self._clock.monotonic()
                if now - self._probed.get(leg.core, float("-inf")) >= self._probe_seconds:
                    self._probed[leg.core] = now
                    continue
                self._telemetry.sheds.labels("core_silent").inc()
                return Refusal(
                    Code.CORE_UNAVAILABLE, f"the trading core {leg.core!r} does not answer", retry_after_seconds=5.0
                )
        return None

    def is_silent(self, core: str) -> bool:
        """Tells whether a core owes an answer for too long."""
        asked = self._asked_ms.get(core)
        if asked is None:
            return False
        since = max(asked, self._heard_ms.get(core, 0))
        return self._clock.now_ms() - since > self._silence_seconds * 1000
