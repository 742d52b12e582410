"""`make demo`: plays every scenario against real server processes and prints one line for each."""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Sequence
from pathlib import Path

import httpx
from rich.console import Console
from rich.text import Text

from internal_transfer.simulation.scenarios.catalogue import (
    ALONE,
    SCENARIOS,
    SHARING,
    Scenario,
    new_server,
    play,
    play_alone,
)
from internal_transfer.simulation.scenarios.expectation import CLOCK, ScenarioFailedError
from internal_transfer.simulation.scenarios.server_process import ServerProcess
from internal_transfer.simulation.scenarios.surroundings import StackKind

AT_ONCE = max(2, os.cpu_count() or 1)
"""The number of servers that work at the same time."""

_NAME_WIDTH = max(len(scenario.name) for scenario in SCENARIOS)


class Demo:
    """Plays the scenarios and prints each one as it ends."""

    def __init__(self, console: Console, directory: Path, kind: StackKind = StackKind.EMBEDDED) -> None:
        self.passed = 0
        self.failed = 0
        self._kind = kind
        self._console = console
        self._directory = directory
        self._places = asyncio.Semaphore(AT_ONCE)

    async def run(self, sharing: Sequence[Scenario], alone: Sequence[Scenario]) -> None:
        """Plays all scenarios; those that share a server run one after the other."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._play_sharing(sharing))
            for scenario in alone:
                tasks.create_task(self._play_alone(scenario))

    async def _play_sharing(self, sharing: Sequence[Scenario]) -> None:
        """Plays one after the other; after a failed scenario the next one gets a new server."""
        waiting = list(sharing)
        while waiting:
            async with self._places, new_server(self._new_directory(), kind=self._kind) as server:
                while waiting:
                    scenario = waiting.pop(0)
                    if not await self._judge(scenario, self._play_on(scenario, server)):
                        break

    async def _play_on(self, scenario: Scenario, server: ServerProcess) -> str:
        if not server.is_running:
            await server.start()
        return await play(scenario, server)

    async def _play_alone(self, scenario: Scenario) -> None:
        async with self._places:
            await self._judge(scenario, play_alone(scenario, self._new_directory(), self._kind))

    async def _judge(self, scenario: Scenario, playing: Awaitable[str]) -> bool:
        """Prints how a scenario ended, and tells whether it passed."""
        started = CLOCK.monotonic()
        seen, is_right = "", False
        # Alone or in a group: some scenarios do several things at once.
        try:
            seen, is_right = await playing, True
        except* ScenarioFailedError as failures:
            seen += "; ".join(str(failure) for failure in failures.exceptions)
        except* (httpx.HTTPError, TimeoutError) as failures:
            seen += f"the server did not answer: {failures.exceptions[0]!r}"
        self.passed += is_right
        self.failed += not is_right
        line = Text("PASS  " if is_right else "FAIL  ", style="bold green" if is_right else "bold red")
        line.append(f"{scenario.name:<{_NAME_WIDTH}}  ", style="bold default")
        line.append(seen, style="not bold default")
        line.append(f"  {CLOCK.monotonic() - started:.1f} s", style="not bold dim")
        self._console.print(line, soft_wrap=True)
        return is_right

    def _new_directory(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self._directory))


def main() -> int:
    """Plays everything; returns the exit code: 0 if all passed, 1 if any failed."""
    parser = argparse.ArgumentParser(description="Play every scenario against real server processes.")
    parser.add_argument("--stack", type=StackKind, choices=list(StackKind), default=StackKind.EMBEDDED)
    parser.add_argument("--only", default="", help="play only scenarios whose names begin with this")
    options = parser.parse_args()
    is_embedded = options.stack is StackKind.EMBEDDED
    sharing, alone = (
        [each for each in group if each.name.startswith(options.only) and (is_embedded or not each.is_embedded)]
        for group in (SHARING, ALONE)
    )
    console = Console(highlight=False)
    console.print("Each scenario runs against its own or a shared server process, which it may kill and start again.")
    console.print("After each one, `admin reconcile` must find store, ledger and core in agreement.\n")
    started = CLOCK.monotonic()
    with tempfile.TemporaryDirectory(prefix="it-demo-") as directory:
        demo = Demo(console, Path(directory), options.stack)
        asyncio.run(demo.run(sharing, alone))
    seconds = CLOCK.monotonic() - started
    style = "bold red" if demo.failed else "bold green"
    console.print(f"\n{demo.passed} of {len(sharing) + len(alone)} scenarios passed in {seconds:.0f} s", style=style)
    return 1 if demo.failed else 0


if __name__ == "__main__":
    sys.exit(main())
