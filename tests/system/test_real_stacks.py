"""The whole service on real systems: the same scenarios, several processes, and what dies under load."""

import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from shutil import which

import pytest
from servers.tigerbeetle import HOW_TO_GET_IT

import real_servers
from internal_transfer.simulation.failpoints import Failpoint
from internal_transfer.simulation.scenarios.catalogue import SCENARIOS, STANDARD, new_server, play_alone
from internal_transfer.simulation.scenarios.server_process import run_program
from internal_transfer.simulation.scenarios.storms import storm
from internal_transfer.simulation.scenarios.surroundings import Companion, StackKind

STACKS = [StackKind.POSTGRESQL, StackKind.CASSANDRA]
PLAYED = [
    "funding to spot",
    "spot to funding",
    "insufficient balance",
    "replay and reuse of a key",
    "core paused, then back",
    "core refuses",
    "core withholds, operator voids",
    "100 racing spends",
    "history and CSV",
    f"killed {Failpoint.AFTER_TELL}",
    f"killed {Failpoint.AFTER_HOLD}",
    f"killed {Failpoint.AFTER_POST}",
]
"""Those that the stack makes a difference to; `make demo STACK=...` plays all of them."""
PAIRS = [
    pytest.param(name, kind, marks=() if turn % len(STACKS) == at else pytest.mark.full)
    for turn, name in enumerate(PLAYED)
    for at, kind in enumerate(STACKS)
]
"""Each with each stack; all but a full run play the scenarios on the stacks in turn."""


@pytest.mark.parametrize(("name", "kind"), PAIRS)
async def test_a_scenario_ends_as_on_the_embedded_stack(place, environment, kind, name):
    """The same outcome, and a clean reconciliation, with store, bus and ledger in other processes (G15)."""
    environment(kind)
    [scenario] = [each for each in SCENARIOS if each.name == name]
    await play_alone(scenario, place, kind)


@pytest.mark.parametrize("kind", STACKS)
async def test_two_of_everything_under_load_lose_one(place, environment, kind):
    """Two gateways, settlers and scanners at once; one is killed under load and replaced (G5 to G11)."""
    environment(kind)
    async with new_server(place, STANDARD, kind, options=("--processes", "2")) as server:
        await server.start()

        async def kill_one():
            [victim, *_] = _children(server.pid)
            os.kill(victim, signal.SIGKILL)

        await storm(server, kill_one)
        await server.expect_clean()
        assert await server.stop() == 0


@pytest.mark.parametrize("victim", ["core", "ledger"])
async def test_what_is_beside_dies_under_load(place, environment, victim):
    """The trading core's process, and the ledger's, are killed under load and started again (G5 to G11)."""
    environment(StackKind.POSTGRESQL)
    async with new_server(place, STANDARD, StackKind.POSTGRESQL) as server:
        await server.start()

        async def kill_it():
            companion = getattr(server.surroundings, victim)
            await companion.kill()
            await companion.start()

        await storm(server, kill_it)
        await server.expect_clean()


@pytest.mark.parametrize("name", ["postgresql", "kafka", "cassandra"])
async def test_a_system_is_killed_under_load(place, environment, name):
    """PostgreSQL, Kafka or Cassandra is killed under load and started again on its data (G5 to G11)."""
    kind = StackKind.CASSANDRA if name == "cassandra" else StackKind.POSTGRESQL
    with real_servers.own(name) as system:
        environment(kind, **{name: system.address()})
        async with new_server(place, STANDARD, kind) as server:
            await server.start()

            async def kill_it():
                system.kill()
                system.start()

            await storm(server, kill_it)
            await server.expect_clean()


async def test_each_role_alone(place, environment):
    """A gateway, a settler, a scanner and a courier, each a process of its own, serve as one (G5 to G11)."""
    environment(StackKind.POSTGRESQL)
    async with AsyncExitStack() as closing:
        server = new_server(place, STANDARD, StackKind.POSTGRESQL, options=("--roles", "gateway"))
        await closing.enter_async_context(server)
        await server.start()
        others = {}
        for role in ("settler", "scanner", "courier"):
            words = ["serve", "--roles", role, "--config", str(server.config), "--data", str(place / role), "--demo"]
            log = place / f"{role}.log"
            others[role] = Companion(role, [*words, "--admin-port", "0"], log, server.surroundings.environment)
            closing.push_async_callback(others[role].kill)
            await others[role].start()

        async def kill_the_settler():
            await others["settler"].kill()
            await others["settler"].start()

        await storm(server, kill_the_settler)
        await server.expect_clean()
        for other in others.values():
            assert await other.stop() == 0
        assert await server.stop() == 0


@pytest.mark.parametrize("name", ["funding to spot", "core refuses", f"killed {Failpoint.AFTER_HOLD}"])
async def test_a_scenario_ends_the_same_on_tigerbeetle(place, environment, monkeypatch, name):
    """The same outcome with the money in a real TigerBeetle (G15)."""
    program = os.environ.get("TIGERBEETLE_BINARY") or which("tigerbeetle")
    if program is None:
        pytest.skip(f"tigerbeetle is missing: {HOW_TO_GET_IT}")
    environment(StackKind.POSTGRESQL)
    monkeypatch.setenv("TIGERBEETLE_BINARY", program)
    [scenario] = [each for each in SCENARIOS if each.name == name]
    await play_alone(scenario, place, StackKind.POSTGRESQL)


async def test_the_reference_core_keeps_its_promises_over_kafka(place, environment):
    """`core-check` finds every promise kept by the core in its own process, and takes back what it moved."""
    environment(StackKind.POSTGRESQL)
    async with new_server(place, STANDARD, StackKind.POSTGRESQL) as server:
        await server.surroundings.start()
        words = ("--config", str(server.config), "--account", "tester:spot", "--other", "tester:margin", "--json")
        ran = await run_program("core-check", *words, environment=server.surroundings.environment)
        report = ran.object()
        findings = {each["promise"]: each["finding"] for each in report["results"]}
        assert (ran.exit_code, report["passed"]) == (0, True), findings
        assert len([finding for finding in findings.values() if finding == "kept"]) >= 10


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
