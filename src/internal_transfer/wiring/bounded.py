"""The bound of a port: a deadline for every call, and a measure of how long each took and how it failed."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar, cast

from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.bounds import READS, WAITS, WALKS
from internal_transfer.ports.clock import Clock
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

WALK_SECONDS = 3600.0
"""How long a method that reads everything, such as the whole audit chain, may take."""

Port = TypeVar("Port")


def bounded_ports(ports: Ports, bounds: PortBounds) -> Ports:
    """Returns the ports behind their bounds; durability has none, since it ends with the turn that it waits for."""

    def bound(system: System, seconds: float) -> Bound:
        return Bound(system, seconds, ports.clock, ports.telemetry)

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
    )


@dataclass(frozen=True, slots=True)
class Bound:
    """How long a call of one port may take, and whose failure a late one is."""

    system: System
    seconds: float
    clock: Clock
    telemetry: Telemetry

    def around(self, port: Port, protocol: type) -> Port:
        """Returns the port behind its bound: only the methods of its protocol, each for this long at most.

        A call that takes longer is cancelled; it raises `Unavailable` if the method only reads, else
        `OutcomeUnknown`. Durations are observed by port (its module's name) and method, failures are counted by system
        and kind.
        """
        front = _Bounded()
        for name, declared in vars(protocol).items():
            if inspect.iscoroutinefunction(declared):
                call = getattr(port, name)
                setattr(front, name, call if hasattr(declared, WAITS) else self._bounded(call, protocol, declared))
        return cast("Port", front)  # It has every method that the protocol declares.

    def _bounded(
        self, call: Callable[..., Coroutine[Any, Any, Any]], protocol: type, declared: Any
    ) -> Callable[..., Coroutine[Any, Any, Any]]:
        name, monotonic = declared.__name__, self.clock.monotonic
        seconds = max(self.seconds, WALK_SECONDS) if hasattr(declared, WALKS) else self.seconds
        observe = self.telemetry.port_call.labels(protocol.__module__.rpartition(".")[2], name).observe
        failures = self.telemetry.failures

        async def method(*args: Any, **kwargs: Any) -> Any:
            started = monotonic()
            try:
                work = call(*args, **kwargs)
                try:
                    awaited = work.send(None)
                except StopIteration as done:
                    return done.value  # Calls of embedded ports never wait, so they need no timer.
                async with asyncio.timeout(seconds):
                    return await _Begun(work, awaited)
            except TimeoutError as error:
                kind = Unavailable if hasattr(declared, READS) else OutcomeUnknown
                failures.labels(self.system, kind.__name__).inc()
                raise kind(self.system, f"no answer to {name} in {seconds:g} s") from error
            except OperatingFailureError as error:
                failures.labels(error.system, type(error).__name__).inc()
                raise
            finally:
                observe(monotonic() - started)

        return method


class _Bounded:
    """A port behind its bound."""


class _Begun:
    """A coroutine whose first step was taken, and what it waits for; awaiting this takes the other steps."""

    def __init__(self, work: Coroutine[Any, Any, Any], awaited: Any) -> None:
        self._work = work
        self._awaited = awaited

    def __await__(self) -> Generator[Any, Any, Any]:
        """Does what `yield from` does, from the second step on."""
        awaited = self._awaited
        while True:
            try:
                sent = yield awaited
            except BaseException as error:  # noqa: BLE001 - among others the cancellation, which the work has to see.
                take = partial(self._work.throw, error)
            else:
                take = partial(self._work.send, sent)
            try:
                awaited = take()
            except StopIteration as done:
                return done.value
