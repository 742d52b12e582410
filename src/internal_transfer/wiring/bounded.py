"""The bound of a port: a deadline for every call, and a measure of how long each took and how it failed."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.bounds import READS, WAITS
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.durability import Durability
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, System, Unavailable
from internal_transfer.ports.event_bus import EventBus
from internal_transfer.ports.event_publisher import EventPublisher
from internal_transfer.ports.ledger import Ledger
from internal_transfer.ports.operations import Operations
from internal_transfer.ports.rate_limiter import RateLimiter
from internal_transfer.ports.trading_core import TradingCore
from internal_transfer.ports.transfer_store import TransferStore
from internal_transfer.settings.settings import PortBounds
from internal_transfer.telemetry import Telemetry

Port = TypeVar("Port")


def bounded_ports(ports: Ports, bounds: PortBounds) -> Ports:
    """Returns the same ports, each behind its bound. Waiting for a commit has the store's bound."""

    def bound(system: System, seconds: float, *, counted: bool = True) -> Bound:
        return Bound(system, seconds, ports.clock, ports.telemetry, counted)

    publisher = ports.publisher
    if publisher is not None:
        publisher = bound(System.BUS, bounds.events_seconds).around(publisher, EventPublisher)
    return replace(
        ports,
        store=bound(System.STORE, bounds.store_seconds).around(ports.store, TransferStore),
        ledger=bound(System.LEDGER, bounds.ledger_seconds).around(ports.ledger, Ledger),
        core=bound(System.CORE, bounds.core_seconds).around(ports.core, TradingCore),
        operations=bound(System.OPERATIONS, bounds.operations_seconds).around(ports.operations, Operations),
        bus=bound(System.BUS, bounds.bus_seconds).around(ports.bus, EventBus),
        limiter=bound(System.LIMITER, bounds.rate_limiter_seconds).around(ports.limiter, RateLimiter),
        publisher=publisher,
        # A commit fails once, and its database counts that; but everyone who waits for it is told.
        durability=bound(System.STORE, bounds.store_seconds, counted=False).around(ports.durability, Durability),
    )


@dataclass(frozen=True, slots=True)
class Bound:
    """How long a call of one port may take, and whether its failures are `counted`."""

    system: System
    seconds: float
    clock: Clock
    telemetry: Telemetry
    counted: bool

    def around(self, port: Port, protocol: type) -> Port:
        """Returns the port with only the methods of its protocol, each of which may take `seconds` at most.

        A call that takes longer is cancelled; it raises `Unavailable` if the method only reads, else `OutcomeUnknown`.
        Durations are observed by port (the name of its module) and method, failures are counted by system and kind.
        """
        front = _Bounded()
        for name, declared in vars(protocol).items():
            if inspect.iscoroutinefunction(declared):
                call = getattr(port, name)
                setattr(front, name, call if hasattr(declared, WAITS) else self._bounded(call, protocol, declared))
        return cast("Port", front)  # It has every method that the protocol declares.

    def _bounded(
        self, call: Callable[..., Awaitable[Any]], protocol: type, declared: Any
    ) -> Callable[..., Awaitable[Any]]:
        name, seconds, monotonic = declared.__name__, self.seconds, self.clock.monotonic
        observe = self.telemetry.port_call.labels(protocol.__module__.rpartition(".")[2], name).observe

        async def method(*args: Any, **kwargs: Any) -> Any:
            started = monotonic()
            try:
                async with asyncio.timeout(seconds):
                    return await call(*args, **kwargs)
            except TimeoutError as error:
                kind = Unavailable if hasattr(declared, READS) else OutcomeUnknown
                late = kind(self.system, f"no answer to {name} in {seconds:g} s")
                self._count(late)
                raise late from error
            except OperatingFailureError as error:
                self._count(error)
                raise
            finally:
                observe(monotonic() - started)

        return method

    def _count(self, failure: OperatingFailureError) -> None:
        if self.counted:
            self.telemetry.failures.labels(failure.system, type(failure).__name__).inc()


class _Bounded:
    """A port behind its bound."""
