"""All ports of a process, as one value that its roles are built on."""

from dataclasses import dataclass

from internal_transfer.ports.clock import Clock
from internal_transfer.ports.durability import Durability
from internal_transfer.ports.event_bus import EventBus
from internal_transfer.ports.event_publisher import EventPublisher
from internal_transfer.ports.ledger import Ledger
from internal_transfer.ports.operations import Operations
from internal_transfer.ports.rate_limiter import RateLimiter
from internal_transfer.ports.trading_core import TradingCore
from internal_transfer.ports.transfer_store import TransferStore
from internal_transfer.telemetry import Telemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The ports, each behind its bound, and where roles count and measure what they do.

    Without a `publisher` nobody outside is told of events.
    """

    store: TransferStore
    ledger: Ledger
    core: TradingCore
    operations: Operations
    bus: EventBus
    limiter: RateLimiter
    publisher: EventPublisher | None
    durability: Durability
    clock: Clock
    telemetry: Telemetry
