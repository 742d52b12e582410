"""What `make demo` prints, and how it goes on after a scenario that fails."""

import asyncio
import io

from rich.console import Console

from internal_transfer.simulation.demo import Demo
from internal_transfer.simulation.scenarios.catalogue import Scenario
from internal_transfer.simulation.scenarios.expectation import expect
from internal_transfer.simulation.scenarios.moving import funding_to_spot, spot_to_funding


async def _spoil(server):
    """Fails at several things at once, and leaves no server behind."""
    await server.kill()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_see("ten instead of one"))
        tasks.create_task(_see("ten instead of two"))


async def _see(what):
    expect(holds=False, seen=what)


async def _ask_nobody(server):
    await server.kill()
    await server.user("late").get("/history")


async def _do_nothing(_):
    return "nothing was wrong"


async def test_failures_are_shown_and_counted(place):
    """Each failed scenario is a line that says what was seen, and the others are played all the same."""
    printed = io.StringIO()
    demo = Demo(Console(file=printed, width=300), place)
    await demo.run(
        [Scenario("to spot", funding_to_spot), Scenario("spoilt", _spoil), Scenario("and back", spot_to_funding)],
        [
            Scenario("nobody", _ask_nobody, is_alone=True),
            Scenario("unclean", _do_nothing, is_alone=True, starts_itself=True),
        ],
    )
    lines = {line.split("  ")[1].strip(): line for line in printed.getvalue().splitlines()}
    assert {name: line[:4] for name, line in lines.items()} == {
        "to spot": "PASS",
        "spoilt": "FAIL",
        "and back": "PASS",
        "nobody": "FAIL",
        "unclean": "FAIL",
    }
    assert "ten instead of one; ten instead of two" in lines["spoilt"]
    assert "the server did not answer" in lines["nobody"]
    assert (demo.passed, demo.failed) == (2, 3)
