"""Drives a trading core through its port and reports which promises it keeps."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from msgspec.structs import replace

from internal_transfer.conformance.bench import Bench, BrokenPromiseError, LeftOutError, Plan
from internal_transfer.conformance.promises import PROMISES, repeated_after_restart
from internal_transfer.conformance.report import Finding, Report, Result
from internal_transfer.domain.leg import Action, Outcome
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import OperatingFailureError
from internal_transfer.ports.event_bus import EventBus
from internal_transfer.ports.trading_core import TradingCore

_RESTART = ("restart", "after a restart the core says and holds what it said and held before")
_CLEAN = ("clean", "taking back all that the check moved leaves the balances as they were")


async def check_core(
    core: TradingCore,
    *,
    plan: Plan,
    clock: Clock,
    bus: EventBus | None = None,
    restarted: Callable[[], Awaitable[bool]] | None = None,
    told: Callable[[Result], None] = lambda _: None,
) -> Report:
    """Checks every promise and takes back what it moved.

    `bus` brings the answers of a core that does not answer at once; nobody else may take from it. `restarted` is
    awaited when everything else was checked: it returns True when the core was restarted, and False to leave that part
    out. `told` is called with each result. An operating failure ends a check, not the report.
    """
    bench = Bench(core, bus, clock, plan)
    results: list[Result] = []

    async def find(name: str, says: str, check: Callable[[], Awaitable[None]]) -> None:
        results.append(await _find(name, says, check))
        told(results[-1])

    async with _listening(bench, bus):
        before: list[int] = []
        start = 0

        async def look() -> None:
            nonlocal start
            before.extend([await bench.posted(plan.account), await bench.posted(plan.other)])
            start = await bench.last_entry()

        await find("reachable", "the core says its balances and entries", look)
        if results[-1].finding is not Finding.KEPT:
            return Report(plan.core, tuple(results))
        for promise in PROMISES:
            await find(promise.name, promise.says, partial(promise.check, bench))
        await find(*_RESTART, lambda: _restart(bench, start, restarted))
        await find(*_CLEAN, lambda: _take_back(bench, before))
    return Report(plan.core, tuple(results))


async def _find(name: str, says: str, check: Callable[[], Awaitable[None]]) -> Result:
    try:
        await check()
    except LeftOutError as error:
        return Result(name, says, Finding.LEFT_OUT, str(error))
    except BrokenPromiseError as error:
        return Result(name, says, Finding.BROKEN, str(error))
    except OperatingFailureError as error:
        return Result(name, says, Finding.UNANSWERED, str(error))
    return Result(name, says, Finding.KEPT)


async def _restart(bench: Bench, start: int, restarted: Callable[[], Awaitable[bool]] | None) -> None:
    if restarted is None:
        raise LeftOutError("nobody was there to restart the core")
    entries = await bench.entries_since(start)
    if not await restarted():
        raise LeftOutError("the core was not restarted")
    await repeated_after_restart(bench, entries, start)


async def _take_back(bench: Bench, before: list[int]) -> None:
    """Reverses every leg that was applied; one that is reversed already is not moved again."""
    for command, verdict in list(bench.first.items()):
        if command.action is Action.APPLY and verdict.outcome is Outcome.APPLIED:
            await bench.expect(replace(command, action=Action.REVERSE), Outcome.REVERSED)
    after = [await bench.posted(bench.plan.account), await bench.posted(bench.plan.other)]
    if after != before:
        raise BrokenPromiseError(f"the balances were {before} and are {after}")


@asynccontextmanager
async def _listening(bench: Bench, bus: EventBus | None) -> AsyncIterator[None]:
    """Listens to the bus while the check runs."""
    if bus is None:
        yield
        return
    async with asyncio.TaskGroup() as group:
        listener = group.create_task(bench.listen())
        try:
            yield
        finally:
            listener.cancel()
