"""The whole service on real systems: the same scenarios, several processes, and what dies under load."""

import os
import signal
from pathlib import Path

import pytest

import real_servers
from internal_transfer.simulation.failpoints import Failpoint
from internal_transfer.simulation.scenarios.catalogue import SCENARIOS, STANDARD, new_server, play_alone
from internal_transfer.simulation.scenarios.storms import storm
from internal_transfer.simulation.scenarios.surroundings import StackKind

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


@pytest.mark.parametrize("kind", STACKS)
@pytest.mark.parametrize("name", PLAYED)
async def test_a_scenario_ends_as_on_the_embedded_stack(place, environment, kind, name):
    """The same outcome, and a clean reconciliation, with store, bus and ledger in other processes (G15)."""
    environment(kind)
    [scenario] = [each for each in SCENARIOS if each.name == name]
    await play_alone(scenario, place, kind)


@pytest.mark.parametrize("kind", STACKS)
async def test_two_of_everything_under_load_lose_one(place, environment, kind):
    """Two gateways, settlers and scanners at once; one is killed under load and replaced (G5 to G11)."""
    environment(kind)
    async with new_server(place, STANDARD, kind, options=("--workers", "2")) as server:
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


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
