"""When the service takes no more requests: too many transfers are open, or a trading core has fallen silent."""

from collections import deque
from collections.abc import Sequence

from msgspec import Struct

from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Leg
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.domain.transfer import Transfer
from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.transfer_store import OpenSummary

COMMANDS_KEPT = 16
"""How many of this process's commands to one core are remembered, spread over the time after which it is silent."""


class Told(Struct, frozen=True):
    """A command that this process sent to a core: for which transfer, its leg at that moment, and when."""

    transfer_id: TransferId
    leg: Leg
    at_ms: int


class Pressure:
    """Decides, before anything is recorded, whether a request is shed.

    A core is silent when it has owed an answer for `silence_seconds` and has given none since. Commands from before
    this process began do not count, because it cannot know which of them were answered. Every `probe_seconds` one
    request is let through to a silent core, so that its return is noticed before a scan comes round.

    Another process may be the one that hears the core. The record shows it: only an answer moves a leg out of the state
    in which its core was told. So this process remembers a few of its own commands, and while the core looks silent
    the follower reads their transfers (`in_question`, `seen`).
    """

    def __init__(
        self, ports: Ports, *, open_most: int, silence_seconds: float = 60.0, probe_seconds: float = 5.0
    ) -> None:
        self._clock = ports.clock
        self._telemetry = ports.telemetry
        self._open_most = open_most
        self._silence_seconds = silence_seconds
        self._probe_seconds = probe_seconds
        self._open = 0
        self._asked_ms: dict[str, int] = {}
        # One millisecond early, so that a command sent in this very millisecond counts as sent afterwards.
        self._began_ms = ports.clock.now_ms() - 1
        self._heard_ms: dict[str, int] = {}
        self._told: dict[str, deque[Told]] = {}
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

    def told(self, transfer_id: TransferId, leg: Leg) -> None:
        """Notes that the core of this leg was sent a command; of many within a short time only the first is kept."""
        now = self._clock.now_ms()
        kept = self._told.setdefault(leg.core, deque(maxlen=COMMANDS_KEPT))
        if not kept or abs(now - kept[-1].at_ms) * COMMANDS_KEPT >= self._silence_seconds * 1000:
            kept.append(Told(transfer_id, leg, now))

    def in_question(self) -> list[TransferId]:
        """Returns the transfers whose record could show that a quiet core does answer.

        A core is quiet here after half of the time that makes it silent, so that the record is read before the core
        is taken for silent.
        """
        return [
            each.transfer_id
            for core, kept in self._told.items()
            if self._quiet_ms(core) > self._silence_seconds * 500
            for each in kept
        ]

    def seen(self, transfers: Sequence[Transfer | None]) -> None:
        """Takes what the record says of these transfers: a core that answered a command was alive after it was sent."""
        by_id = {transfer.id: transfer for transfer in transfers if transfer is not None}
        for core, kept in self._told.items():
            for each in kept:
                transfer = by_id.get(each.transfer_id)
                if transfer is not None and _is_answered(each, transfer):
                    self._heard_ms[core] = max(self._last_heard_ms(core), each.at_ms)

    def shed(self, legs: tuple[Leg, ...], ahead: int = 0) -> Refusal | None:
        """Returns the refusal for a request with these legs, or None if it may go on.

        `ahead` counts requests of the same batch that were just let through.
        """
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
        """Tells whether a core has owed an answer for too long."""
        return self._quiet_ms(core) > self._silence_seconds * 1000

    def _quiet_ms(self, core: str) -> int:
        """Returns how long a core has owed an answer without giving one; 0 if it has owed none since it was last heard.

        The record knows only the oldest command that is open. If that one was sent before the core was last heard, the
        commands that this process remembers tell whether a later one is unanswered too.
        """
        asked = self._asked_ms.get(core)
        if asked is None:
            return 0
        heard = self._last_heard_ms(core)
        since = [asked, *(each.at_ms for each in self._told.get(core, ()))]
        return self._clock.now_ms() - min((each for each in since if each > heard), default=self._clock.now_ms())

    def _last_heard_ms(self, core: str) -> int:
        return self._heard_ms.get(core, self._began_ms)


def _is_answered(told: Told, transfer: Transfer) -> bool:
    return any(leg.side is told.leg.side and leg.state is not told.leg.state for leg in transfer.legs)
