"""All scenarios and their settings, and how one is played from an empty directory to a clean end."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from internal_transfer.simulation.failpoints import Failpoint
from internal_transfer.simulation.scenarios.cores import (
    core_paused,
    core_refuses,
    core_withholds,
    open_transfers_shed,
    second_core_refuses,
    silent_core_sheds,
)
from internal_transfer.simulation.scenarios.crashes import killed_at, killed_under_load
from internal_transfer.simulation.scenarios.expectation import expect
from internal_transfer.simulation.scenarios.moving import (
    funding_to_spot,
    history_pages,
    insufficient_balance,
    racing_spends,
    replay_and_reuse,
    spot_to_funding,
)
from internal_transfer.simulation.scenarios.reconciling import planted_changes
from internal_transfer.simulation.scenarios.refusing import (
    daily_limit,
    every_code,
    operators_policy,
    rate_limit,
    unknown_and_final,
)
from internal_transfer.simulation.scenarios.server_process import ServerProcess
from internal_transfer.simulation.scenarios.surroundings import StackKind, Surroundings

SETTINGS = """\
# A scanner and retries that are quick enough to watch, and a rate limit that does not interfere.
[server]
http_workers = {http_workers}
[transfers]
lease_seconds = 1
core_silence_seconds = {core_silence_seconds}
open_max = {open_max}
[scanner]
interval_seconds = 0.1
[retries]
first_seconds = 0.1
longest_seconds = 0.5
[alerts]
stuck_seconds = 0.5
[rate_limit]
per_minute = {per_minute}
burst = {burst}
[tiers.small.limits]
USDT = {{ min = "0.01", max = "100", daily = "100" }}
# A second trading core, so that a transfer can have two legs.
[account_types.futures]
core = "second"
[[routes]]
from = "funding"
to = "spot"
[[routes]]
from = "spot"
to = "funding"
[[routes]]
from = "funding"
to = "earn"
[[routes]]
from = "spot"
to = "futures"
"""


class Knobs(NamedTuple):
    """The settings that differ between scenarios."""

    core_silence_seconds: float = 60
    open_max: int = 100_000
    per_minute: int = 10_000_000
    burst: int = 10_000_000
    http_workers: int = 1

    def settings(self) -> str:
        """The settings file."""
        return SETTINGS.format(**self._asdict())


STANDARD = Knobs()
ONE_PROCESS = Knobs(http_workers=0)
"""Clients connect to the process that dies; and without an HTTP worker a server starts in half the time."""


class Scenario(NamedTuple):
    """One story with an outcome: `play` returns what was seen, or raises `ScenarioFailedError`.

    `is_alone`: it needs its own server. `starts_itself`: its server is not started for it. `is_embedded`: it changes
    the embedded database by hand, so it is for no other stack.
    """

    name: str
    play: Callable[[ServerProcess], Awaitable[str]]
    knobs: Knobs = STANDARD
    is_alone: bool = False
    starts_itself: bool = False
    is_embedded: bool = False


SHARING = (
    Scenario("funding to spot", funding_to_spot),
    Scenario("spot to funding", spot_to_funding),
    Scenario("insufficient balance", insufficient_balance),
    Scenario("every validation code", every_code),
    Scenario("frozen user, paused route", operators_policy),
    Scenario("unknown, others' and final transfers", unknown_and_final),
    Scenario("replay and reuse of a key", replay_and_reuse),
    Scenario("core paused, then back", core_paused),
    Scenario("core refuses", core_refuses),
    Scenario("second of two cores refuses", second_core_refuses),
    Scenario("core withholds, operator voids", core_withholds),
    Scenario("100 racing spends", racing_spends),
    Scenario("daily limit", daily_limit),
    Scenario("history and CSV", history_pages),
)
ALONE = (
    Scenario("rate limit", rate_limit, ONE_PROCESS._replace(per_minute=60, burst=5), is_alone=True),
    Scenario("silent core sheds", silent_core_sheds, ONE_PROCESS._replace(core_silence_seconds=0.3), is_alone=True),
    Scenario("too many open transfers", open_transfers_shed, ONE_PROCESS._replace(open_max=5), is_alone=True),
    Scenario("planted changes are found", planted_changes, ONE_PROCESS, is_alone=True, is_embedded=True),
    Scenario("killed under load", killed_under_load, is_alone=True),
    *(
        Scenario(
            f"killed {failpoint}",
            partial(killed_at, failpoint=failpoint),
            ONE_PROCESS,
            is_alone=True,
            starts_itself=True,
        )
        for failpoint in Failpoint
    ),
)
SCENARIOS = (*SHARING, *ALONE)


def new_server(
    directory: Path, knobs: Knobs = STANDARD, kind: StackKind = StackKind.EMBEDDED, *, options: Sequence[str] = ()
) -> ServerProcess:
    """Returns a server that is not started, with settings and data in an empty directory."""
    surroundings = None if kind is StackKind.EMBEDDED else Surroundings(kind, directory)
    config = directory / "settings.toml"
    # The tables of systems go last: a table's keys end where the next table begins.
    config.write_text(knobs.settings() + ("" if surroundings is None else surroundings.settings))
    return ServerProcess(directory / "data", config, options=("--demo", *options), surroundings=surroundings)


async def play(scenario: Scenario, server: ServerProcess) -> str:
    """Plays a scenario and reconciles the server, which must be clean; returns what was seen."""
    seen = await scenario.play(server)
    await server.expect_clean()
    return seen


async def play_alone(scenario: Scenario, directory: Path, kind: StackKind = StackKind.EMBEDDED) -> str:
    """Plays a scenario on its own server in an empty directory, and stops the server."""
    async with new_server(directory, scenario.knobs, kind) as server:
        if not scenario.starts_itself:
            await server.start()
        seen = await play(scenario, server)
        code = await server.stop()
        expect(code == 0, f"the server ended with {code}:\n{server.log_end()}")
    return seen
