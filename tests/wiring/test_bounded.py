"""The bound in front of every port: how long a call may take, what a late one means, and what is measured."""

import asyncio
import dataclasses
import inspect

import pytest
from msgspec.structs import replace

from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.bounds import WAITS, WALKS
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable
from internal_transfer.ports.event_bus import EventBus
from internal_transfer.ports.event_publisher import EventPublisher
from internal_transfer.ports.ledger import Ledger
from internal_transfer.ports.operations import Operations
from internal_transfer.ports.rate_limiter import RateLimiter
from internal_transfer.ports.trading_core import TradingCore
from internal_transfer.ports.transfer_store import TransferStore
from internal_transfer.settings.load import load
from internal_transfer.settings.settings import PortBounds
from internal_transfer.telemetry import Telemetry
from internal_transfer.wiring.bounded import bounded_ports

PORTS = {
    "store": TransferStore,
    "ledger": Ledger,
    "core": TradingCore,
    "operations": Operations,
    "bus": EventBus,
    "limiter": RateLimiter,
    "publisher": EventPublisher,
}
SYSTEMS = {"publisher": System.BUS} | {name: System(name) for name in PORTS if name != "publisher"}
READING = {
    "store": {
        "get", "events", "history", "by_status", "stuck", "daily_used", "open_summary", "feed",
        "reader_position", "registered", "registered_by_number", "ledger_seen",
    },
    "ledger": {"lookup_accounts", "lookup_transfers", "transfers_after", "newest_transfers"},
    "core": {"verdicts", "balances", "entries_after"},
    "operations": {"pins", "policy", "audit", "audit_about", "verify_audit", "api_keys", "last_report"},
}  # fmt: skip
UNLIKE = [("bus", "take"), ("operations", "verify_audit")]
CALLS = [
    (port, name)
    for port, protocol in PORTS.items()
    for name, declared in vars(protocol).items()
    if inspect.iscoroutinefunction(declared)
]


class Silent:
    """A port whose methods never return."""

    def __getattr__(self, name):
        async def method(*_, **__):
            await asyncio.Event().wait()

        return method


class Failing:
    """A port whose methods all fail in the same way."""

    def __init__(self, error):
        self.error = error

    def __getattr__(self, name):
        async def method(*_, **__):
            raise self.error

        return method


def ports_on(port, seconds):
    ports = Ports(**dict.fromkeys([*PORTS, "durability"], port), clock=SystemClock(), telemetry=Telemetry())
    return bounded_ports(ports, PortBounds(*(seconds for _ in PortBounds.__struct_fields__)))


def failures(ports, system, kind):
    return ports.telemetry.registry.get_sample_value(
        "internal_transfer_operating_failures_total", {"system": system, "kind": kind}
    )


@pytest.mark.parametrize(("port", "method"), [call for call in CALLS if call not in UNLIKE])
async def test_a_late_call_is_unavailable_where_it_only_reads_and_unknown_elsewhere(port, method):
    """Every method of every port has a deadline, and what a late one means is written out here."""
    ports = ports_on(Silent(), 0.001)
    kind = Unavailable if method in READING.get(port, ()) else OutcomeUnknown
    with pytest.raises(kind, match=f"no answer to {method} in 0.001 s") as failed:
        await getattr(getattr(ports, port), method)()
    assert failed.value.system is SYSTEMS[port]
    assert failures(ports, SYSTEMS[port], kind.__name__) == 1


async def test_waiting_for_confirmations_has_no_deadline():
    """They come when they come."""
    ports = ports_on(Silent(), 0.001)
    waiting = asyncio.ensure_future(ports.bus.take(1))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    waiting.cancel()
    unbounded = [(port, name) for port, name in CALLS if hasattr(vars(PORTS[port])[name], WAITS)]
    assert unbounded == [("bus", "take")]


async def test_a_walk_over_everything_may_take_an_hour(monkeypatch):
    """Verifying a long audit chain is a read like others, and not cut off by the bound of a single call."""
    monkeypatch.setattr("internal_transfer.wiring.bounded.WALK_SECONDS", 0.01)
    with pytest.raises(Unavailable, match=r"no answer to verify_audit in 0\.01 s"):
        await ports_on(Silent(), 0.001).operations.verify_audit()
    assert [call for call in CALLS if hasattr(vars(PORTS[call[0]])[call[1]], WALKS)] == [("operations", "verify_audit")]


async def test_failures_pass_and_are_counted_and_calls_are_measured():
    """An adapter's own failure says more than the bound's; a bug is no failure of a system."""
    ports = ports_on(Failing(Unavailable(System.LEDGER, "away")), 10.0)
    with pytest.raises(Unavailable, match="away"):
        await ports.ledger.create_transfers([])
    assert failures(ports, "ledger", "Unavailable") == 1
    measured = ports.telemetry.registry.get_sample_value(
        "internal_transfer_port_call_duration_seconds_count", {"port": "ledger", "method": "create_transfers"}
    )
    assert measured == 1
    ports = ports_on(Failing(KeyError("bug")), 10.0)
    with pytest.raises(KeyError):
        await ports.store.get([])
    assert failures(ports, "store", "KeyError") is None


class Working:
    """A store whose look-up waits several times, and notes how it was ended."""

    def __init__(self):
        self.ended = None
        self.step = asyncio.Event()

    def __getattr__(self, name):
        async def method(number=0, **_):
            try:
                await asyncio.sleep(0)
                if number < 0:
                    raise Unavailable(System.STORE, "away")
                await self.step.wait()
                return number + await asyncio.sleep(0, result=1)
            except asyncio.CancelledError:
                self.ended = "cancelled"
                raise

        return method


async def test_a_call_that_waits_returns_raises_and_is_cancelled_as_without_a_bound():
    """Whatever the call waits for, its result, its failure and a cancellation from outside pass."""
    port = Working()
    ports = ports_on(port, 10.0)
    with pytest.raises(Unavailable, match="away"):
        await ports.store.get(-1)
    waiting = asyncio.ensure_future(ports.store.get(1))
    await asyncio.sleep(0.001)
    assert not waiting.done()
    port.step.set()
    assert await waiting == 2
    port.step.clear()
    waiting = asyncio.ensure_future(ports.store.get(1))
    await asyncio.sleep(0.001)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert port.ended == "cancelled"


async def test_only_what_the_port_declares_can_be_called():
    """What an adapter has besides is out of reach for roles."""
    ports = ports_on(Silent(), 10.0)
    with pytest.raises(AttributeError):
        ports.store.pool  # noqa: B018


def test_each_port_has_its_setting():
    """Ten seconds as shipped, one for the limiter, without which requests go on; none is left out."""
    shipped = load(None, {}).bounds
    assert shipped == replace(PortBounds(*(10.0 for _ in PortBounds.__struct_fields__)), rate_limiter_seconds=1.0)
    assert {field.name for field in dataclasses.fields(Ports)} == {*PORTS, "durability", "clock", "telemetry"}
