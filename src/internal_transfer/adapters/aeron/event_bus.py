"""The event bus over Aeron: every settler hears every verdict, and the record's revision decides which one goes on.

Aeron keeps nothing: a verdict that was sent while nobody listened, or for which a process had no room, is lost until
the scanner asks the core, which repeats it. So an acknowledgement only ends a delivery in this process.
"""

from collections.abc import Callable, Sequence

import structlog

from internal_transfer.adapters.aeron.client import AeronClient
from internal_transfer.adapters.aeron.settings import VERDICTS, untethered
from internal_transfer.domain.leg import Verdict
from internal_transfer.ports.deliveries import Deliveries, HandedOut
from internal_transfer.ports.errors import System, Unavailable
from internal_transfer.ports.event_bus import Delivery
from internal_transfer.ports.finding import Finding
from internal_transfer.wire.core_messages import UndecodableError, decode_verdict, encode_verdict

_log = structlog.get_logger(__name__)


class AeronEventBus:
    """Implements `EventBus`; several consumers may take at the same time, see `ports/deliveries.py`.

    Create it before its client is started. Only a core sends verdicts, so `sends` is for its side. At most
    `verdicts_most` are decoded and not acknowledged; more wait in the client, then in Aeron, and then are lost.
    `on_poison` is told why a message could not be decoded.
    """

    def __init__(
        self,
        client: AeronClient,
        *,
        sends: bool = False,
        verdicts_most: int = 10_000,
        on_poison: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._client = client
        self._verdicts_most = verdicts_most
        self._on_poison = on_poison
        self._owed = 0
        self._deliveries: Deliveries[Verdict] = Deliveries(lambda verdict: verdict)
        connection = client.connection
        heard_on = untethered(connection.heard_on or connection.verdicts)
        self._inlet = client.inlet(heard_on, VERDICTS, self._receive)
        self._outlet = client.outlet(connection.verdicts, VERDICTS, System.BUS, exclusive=True) if sends else None

    @property
    def failure(self) -> str | None:
        """Why no confirmations come, as far as is known; for readiness."""
        if self._client.failure is not None:
            return self._client.failure
        return None if self._inlet.sources else "no core sends confirmations"

    @property
    def owed(self) -> int:
        """How many confirmations are not acknowledged yet."""
        return self._owed

    async def check(self) -> list[Finding]:
        """The findings of `doctor`."""
        if self._client.failure is not None:
            return [Finding("aeron verdicts", False, self._client.failure)]
        cores = self._inlet.sources
        return [
            Finding("aeron verdicts", cores == 1, f"{cores} cores send on {self._inlet.channel}; there has to be one")
        ]

    async def publish(self, verdicts: Sequence[Verdict]) -> None:
        """Sends confirmations to all settlers that listen now.

        Raises `Unavailable` where none was sent, also when nobody listens, and `OutcomeUnknown` where some were.
        """
        if self._outlet is None:
            raise Unavailable(System.BUS, "only a trading core sends confirmations over Aeron")
        await self._client.offer(self._outlet, [encode_verdict(verdict) for verdict in verdicts])

    async def take(self, most: int) -> Delivery:
        """Waits for at most this many confirmations, of transfers that no consumer in this process has in hand.

        Goes on waiting while the media driver is away, since the client connects again by itself; see `failure`.
        """
        return await self._deliveries.take(most)

    async def acknowledge(self, delivery: Delivery) -> None:
        """Ends a delivery; one that was handed out again meanwhile stays unacknowledged."""
        assert isinstance(delivery, HandedOut), "a delivery of this bus"
        if self._deliveries.settle(delivery):
            self._owed -= len(delivery.verdicts)
            self._receive()

    def redeliver(self) -> None:
        """Hands out again everything that is not acknowledged; for consumers that are restarted."""
        self._deliveries.redeliver()

    def _receive(self) -> None:
        verdicts = []
        for message in self._inlet.pop(self._verdicts_most - self._owed):
            try:
                verdicts.append(decode_verdict(message))
            except UndecodableError as poison:
                _log.error("aeron_poison", reason=str(poison), message=message[:1000].decode(errors="replace"))
                self._on_poison(str(poison))
        self._owed += len(verdicts)
        if verdicts:
            self._deliveries.add(verdicts)
