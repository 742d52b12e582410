"""Kills each process of the service and each server that it needs, under load, on each stack.

    python -m bench.kills [--stack postgresql,cassandra,tigerbeetle] [--record]

A gateway, a settler, a scanner and a courier run as separate processes beside a trading core and a ledger, on servers
that nobody else uses. While six clients move money back and forth, the victim is killed with SIGKILL and started again.
Afterwards every key must be one transfer, final within a minute and as its client was told, all sums must be right, and
the reconciliation of store, ledger and core must be clean (G1 to G11). The exit code is 1 otherwise.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

from servers import roster
from servers.server import Server

from internal_transfer.simulation.scenarios.catalogue import STANDARD, new_server
from internal_transfer.simulation.scenarios.expectation import ScenarioFailedError
from internal_transfer.simulation.scenarios.storms import storm
from internal_transfer.simulation.scenarios.surroundings import Companion, StackKind

STACKS = {
    "postgresql": (StackKind.POSTGRESQL, "PostgreSQL, Kafka, Valkey, ledger role"),
    "cassandra": (StackKind.CASSANDRA, "Cassandra, Kafka, Valkey, ledger role"),
    "tigerbeetle": (StackKind.POSTGRESQL, "PostgreSQL, Kafka, Valkey, TigerBeetle"),
}
RESULTS = Path(__file__).parent / "KILLS.md"
ROLES = ("settler", "scanner", "courier")


async def kills(stack: str, only: list[str], closing: AsyncExitStack) -> AsyncIterator[str]:
    """Starts a stack and yields a line for each victim."""
    kind, _ = STACKS[stack]
    systems = {name: _own(name, closing) for name in ("kafka", "valkey", kind.value)}
    os.environ["KAFKA_BOOTSTRAP"] = systems["kafka"].address().bootstrap
    os.environ["VALKEY_URL"] = systems["valkey"].address().url
    store = systems[kind.value].address()
    if kind is StackKind.POSTGRESQL:
        os.environ["POSTGRESQL_DSN"] = store.dsn
    else:
        os.environ["CASSANDRA_ADDRESS"] = f"{store.host}:{store.port}"
    program = os.environ.get("TIGERBEETLE_BINARY", "")
    os.environ["TIGERBEETLE_BINARY"] = program if stack == "tigerbeetle" else ""
    place = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="it-")))
    server = await closing.enter_async_context(new_server(place, STANDARD, kind, options=("--roles", "gateway")))
    os.environ["TIGERBEETLE_BINARY"] = program
    await server.start()
    surroundings = server.surroundings
    assert surroundings is not None
    assert surroundings.core is not None
    assert surroundings.ledger is not None
    beside = {"core": surroundings.core, "tigerbeetle" if stack == "tigerbeetle" else "ledger": surroundings.ledger}
    for role in ROLES:
        words = ["serve", "--roles", role, "--config", str(server.config), "--data", str(place / role), "--demo"]
        process = Companion(role, [*words, "--admin-port", "0"], place / f"{role}.log", surroundings.environment)
        closing.push_async_callback(process.kill)
        await process.start()
        beside[role] = process

    async def kill_gateway() -> None:
        await server.kill()
        await server.start()

    victims: dict[str, Callable[[], Awaitable[None]]] = {"gateway": kill_gateway}
    victims |= {name: _killing(process) for name, process in beside.items()}
    victims |= {name: _restarting(system) for name, system in systems.items()}
    for number, (victim, kill) in enumerate(victims.items()):
        if only and victim not in only:
            continue
        try:
            seen = await storm(server, kill, name=f"storm-{number}")
            await server.expect_clean()
        except (ScenarioFailedError, TimeoutError) as error:
            yield f"FAILED {victim}: {error!r}"
            return
        yield f"{victim:12} {seen}, reconciliation clean"


def _own(name: str, closing: AsyncExitStack) -> Server:
    system = roster.KINDS[name](f"kills-{os.getpid()}")
    closing.callback(system.remove)
    system.start()
    return system


def _killing(process: Companion) -> Callable[[], Awaitable[None]]:
    async def kill() -> None:
        await process.kill()
        await process.start()

    return kill


def _restarting(system: Server) -> Callable[[], Awaitable[None]]:
    async def kill() -> None:
        system.kill()
        await asyncio.to_thread(system.start)

    return kill


async def run(stacks: list[str], only: list[str]) -> list[str]:
    """Runs every stack; returns what was seen as lines of Markdown."""
    lines = []
    for stack in stacks:
        head = ["", f"**{STACKS[stack][1]}**", "", "```"]
        print(*head, sep="\n", flush=True)
        lines += head
        async with AsyncExitStack() as closing:
            async for line in kills(stack, only, closing):
                print(line, flush=True)
                lines.append(line)
        lines.append("```")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill everything under load.")
    parser.add_argument("--stack", default=[*STACKS], type=lambda names: names.split(","))
    parser.add_argument("--only", default=[], type=lambda names: names.split(","), help="what to kill; by default all")
    parser.add_argument("--record", action="store_true", help="append what was seen to bench/KILLS.md")
    options = parser.parse_args()
    if "tigerbeetle" in options.stack and not os.environ.get("TIGERBEETLE_BINARY"):
        print("SKIPPED: tigerbeetle, since TIGERBEETLE_BINARY does not name a server")
        options.stack.remove("tigerbeetle")
    lines = asyncio.run(run(options.stack, options.only))
    if options.record:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        with RESULTS.open("a") as results:
            results.write(f"\n## {datetime.now(UTC):%Y-%m-%d}, commit {commit.stdout.strip()}\n")
            results.write("\n".join(lines) + "\n")
    return int(any(line.startswith("FAILED") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
