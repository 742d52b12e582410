"""What a process checks before it works, how it keeps its node, and whether requests should come to it."""

import asyncio

import pytest
from msgspec.structs import replace

from internal_transfer.domain.account import Asset
from internal_transfer.domain.leg import Leg, Side
from internal_transfer.ports.errors import StartRefusedError, System, Unavailable
from internal_transfer.ports.transfer_store import OpenSummary
from internal_transfer.services.node_lease import LEASE_SECONDS, NodeLease
from internal_transfer.services.readiness import Readiness
from internal_transfer.services.start_checks import StartChecks
from internal_transfer.simulation.faults import FailBefore, NeverAnswer
from services.stack import RULES, settings_of


class Agreement:
    """Store, ledger and cores that agree, or what is said of them."""

    def __init__(self, disagreement=None):
        self.said = disagreement

    async def disagreement(self):
        return self.said


def checks(stack, *, settings=None, disagreement=None):
    return StartChecks(stack.ports, settings or settings_of(RULES), stack.path.parent, Agreement(disagreement))


def with_asset(scale):
    """Settings with one more asset of this scale."""
    return settings_of(replace(RULES, assets=RULES.assets | {"NEW": Asset("NEW", 9, scale, 0)}))


def readiness_of(stack, *, probes=True, failures=()):
    pressure = stack.service.pressure
    return Readiness(stack.ports, pressure, cores=frozenset({"alpha"}), probes=probes, failures=failures)


@pytest.mark.parametrize("demo", [True, False])
async def test_the_first_start_decides_what_a_directory_is_for(stack, demo):
    """It starts again as the same kind, and is refused as the other one, in words that say what to do."""
    await checks(stack).for_server(demo=demo)
    await checks(stack).for_server(demo=demo)
    with pytest.raises(StartRefusedError, match="first used with" + ("" if demo else "out") + " --demo"):
        await checks(stack).for_server(demo=not demo)


async def test_a_start_with_other_settings_is_refused(stack):
    """What was pinned with one scale is not used with another."""
    await checks(stack, settings=with_asset(2)).for_server(demo=False)
    with pytest.raises(StartRefusedError, match=r"assets\.NEW\.scale"):
        await checks(stack, settings=with_asset(4)).for_server(demo=False)


async def test_a_start_on_parts_of_different_times_is_refused(stack):
    """The reason is what the comparison says."""
    with pytest.raises(StartRefusedError, match="the ledger is older"):
        await checks(stack, disagreement="the ledger is older").for_server(demo=False)


async def test_a_command_without_a_server_needs_its_settings(stack):
    """No server has started yet, or with other settings, or without this asset: each is refused and pins nothing."""
    with pytest.raises(StartRefusedError, match="no server has started on it yet"):
        await checks(stack).for_command()
    await checks(stack, settings=with_asset(2)).for_server(demo=False)
    await checks(stack, settings=with_asset(2)).for_command()
    with pytest.raises(StartRefusedError, match="a command needs its settings"):
        await checks(stack, settings=with_asset(4)).for_command()
    more = replace(RULES, assets=with_asset(2).rules.assets | {"MORE": Asset("MORE", 10, 0, 0)})
    with pytest.raises(StartRefusedError, match=r"assets\.MORE\.number.*no server has started with this yet"):
        await checks(stack, settings=settings_of(more)).for_command()


async def test_a_node_is_leased_and_renewed(stack):
    """Ids can be drawn while the lease is kept, also past a failure to renew it, and not after it."""
    lease = NodeLease(stack.ports)
    await lease.take()
    keeping = asyncio.ensure_future(lease.keep())
    await stack.clock.settle()
    stack.scripts[System.STORE].add("lease_node", None, FailBefore())
    await stack.pass_time(3 * LEASE_SECONDS)
    assert stack.clock.new_ids(1)
    keeping.cancel()
    await stack.pass_time(LEASE_SECONDS)
    with pytest.raises(Unavailable, match="lease"):
        stack.clock.new_ids(1)


async def test_a_process_is_ready_when_everything_answers(stack):
    """Nothing is said against it, with and without asking the systems."""
    assert await readiness_of(stack).unready() is None
    assert await readiness_of(stack, probes=False).unready() is None


async def test_a_process_without_a_lease_is_not_ready(stack):
    """It could accept nothing, since it draws no ids."""
    stack.clock.lease(0, stack.clock.monotonic())
    assert "lease" in await readiness_of(stack).unready()


@pytest.mark.parametrize(("system", "method"), [(System.STORE, "get"), (System.LEDGER, "lookup_transfers")])
async def test_a_system_that_fails_or_is_silent_makes_it_unready(stack, system, method):
    """The reason names the system; a silent one is not waited for longer than a probe may take."""
    stack.scripts[system].add(method, FailBefore(), NeverAnswer())
    assert (await readiness_of(stack).unready()).startswith(f"{system}: ")
    assert await stack.patiently(readiness_of(stack).unready()) == f"{system}: no answer in 2 s"


async def test_what_adapters_know_makes_it_unready(stack):
    """The first of them that knows of a failure is quoted."""
    failures = [lambda: None, lambda: "Kafka is away", lambda: "more"]
    assert await readiness_of(stack, failures=failures).unready() == "Kafka is away"


async def test_a_silent_core_makes_it_unready(stack):
    """A core that has owed an answer for a minute is named."""
    pressure = stack.service.pressure
    await stack.clock.advance(1)
    pressure.refresh(OpenSummary({}, {"alpha": stack.clock.now_ms()}, {}, {}))
    pressure.told(1, Leg(Side.TARGET, "alpha"))
    await stack.clock.advance(61)
    assert await readiness_of(stack).unready() == "the trading core 'alpha' does not answer"
