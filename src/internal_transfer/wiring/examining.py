"""Gives `doctor` the adapters' findings about the systems behind them."""

from contextlib import AsyncExitStack
from pathlib import Path

from internal_transfer.adapters.sqlite.examination import DatabaseExamination
from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.ports.finding import Finding
from internal_transfer.settings.data_directory import DataDirectory
from internal_transfer.settings.settings import Settings
from internal_transfer.settings.systems import CoreSystem, EventsSystem, LedgerSystem, LimiterSystem, StoreSystem
from internal_transfer.telemetry import Telemetry
from internal_transfer.wiring.adapters import Opening


def examine_database(directory: DataDirectory) -> DatabaseExamination:
    """Returns the examination of a directory's embedded database; the directory need not be acquired."""
    return DatabaseExamination(directory.database)


async def check_systems(settings: Settings) -> list[Finding]:
    """Returns what each adapter found about its system, and which systems cannot be used at all."""
    lines: list[Finding] = []
    systems = settings.systems
    async with AsyncExitStack() as closing:
        opening = Opening(settings, DataDirectory(Path()), SystemClock(), Telemetry(), closing, settles=False)
        for name, system, unused, open_part in (
            ("store", systems.store, StoreSystem.EMBEDDED, opening.open_store),
            ("ledger", systems.ledger, LedgerSystem.EMBEDDED, opening.open_ledger),
            ("core", systems.core, CoreSystem.EMBEDDED, opening.open_core),
            ("rate_limiter", systems.rate_limiter, LimiterSystem.EMBEDDED, opening.open_limiter),
            ("events", systems.events, EventsSystem.NONE, opening.open_publisher),
        ):
            if system is unused:
                continue
            try:
                await open_part()
            except StartRefusedError as error:
                lines.append(Finding(f"{name} ({system})", False, str(error)))
        for check in opening.checks:
            lines += await check()
    return list(dict.fromkeys(lines))
