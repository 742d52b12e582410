"""When the service takes no more: too many open transfers, or a trading core that has fallen silent."""

from collections import deque
from collections.abc import Sequence

from msgspec import Struct

from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Leg
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.domain.transfer import Transfer
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.transfer_store import OpenSummary
from internal_transfer.telemetry import Telemetry

ORDERS_KEPT = 16
"""How many of this process's orders to a core are kept in mind, spread over the time after which it is silent."""


class Order(Struct, frozen=True):
    """An order that this process gave to a core: for which transfer, for its leg as it was then, and when."""

    transfer_id: TransferId
    leg: Leg
    given_ms: int


class Pressure:
    """Decides before anything is recorded whether a request is shed.

    A core is silent when an order has waited `silence_seconds` and no answer was heard of since. What
    was asked before this process began does not count, since it cannot know what was answered before. One request
    every `probe_seconds` is let through to a silent core, so that its return is noticed without a scan's back-off.

    Where another process hears a core's answers, the record tells that there was one: a leg leaves the state in which
    it was ordered only by an answer. So some of the orders given here are kept, and who follows the record looks at
    them (`in_question`, `seen`) when the core could be taken for silent.
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
        # Whatever is asked in this very millisecond is asked afterwards.
        self._began_ms = clock.now_ms() - 1
        self._heard_ms: dict[str, int] = {}
        self._orders: dict[str, deque[Order]] = {}
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

    def ordered(self, transfer_id: TransferId, leg: Leg) -> None:
        """Notes that the core of this leg was given an order; of many within a short time the first is kept."""
        now = self._clock.now_ms()
        orders = self._orders.setdefault(leg.core, deque(maxlen=ORDERS_KEPT))
        if not orders or abs(now - orders[-1].given_ms) * ORDERS_KEPT >= self._silence_seconds * 1000:
            orders.append(Order(transfer_id, leg, now))

    def in_question(self) -> list[TransferId]:
        """The transfers whose record could tell that a core answers of which nothing was heard for half the time after
        which it is silent. Half, so that a core is not taken for silent before anybody has looked.
        """
        return [
            order.transfer_id
            for core, orders in self._orders.items()
            if self._quiet_ms(core) > self._silence_seconds * 500
            for order in orders
        ]

    def seen(self, transfers: Sequence[Transfer | None]) -> None:
        """Takes what the record says of transfers: an order that was answered was answered after it was given."""
        by_id = {transfer.id: transfer for transfer in transfers if transfer is not None}
        for core, orders in self._orders.items():
            for order in orders:
                transfer = by_id.get(order.transfer_id)
                if transfer is not None and _is_answered(order, transfer):
                    self._heard_ms[core] = max(self._last_heard_ms(core), order.given_ms)

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
        return self._quiet_ms(core) > self._silence_seconds * 1000

    def _quiet_ms(self, core: str) -> int:
        """For how long a core has owed an answer and given none; 0 where it owes none that was asked since its last.

        The record knows the oldest order. One that is owed for good hides those after it, of which this process knows
        its own.
        """
        asked = self._asked_ms.get(core)
        if asked is None:
            return 0
        heard = self._last_heard_ms(core)
        since = [asked, *(order.given_ms for order in self._orders.get(core, ()))]
        return self._clock.now_ms() - min((each for each in since if each > heard), default=self._clock.now_ms())

    def _last_heard_ms(self, core: str) -> int:
        return self._heard_ms.get(core, self._began_ms)


def _is_answered(order: Order, transfer: Transfer) -> bool:
    return any(leg.side is order.leg.side and leg.state is not order.leg.state for leg in transfer.legs)
