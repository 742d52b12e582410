"""What is checked before a process does anything: that its settings and its data belong together."""

from pathlib import Path

from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.services.restore.check import RestoreCheck
from internal_transfer.settings.pins import check_pins, pins
from internal_transfer.settings.settings import Settings

DIRECTORY_KIND = "directory.kind"
"""The name of the pin that says what a data directory is for."""
DEMO, REAL = "demo", "real"
_OTHER_KIND = {
    DEMO: "was first used without --demo, and made-up money must not be mixed with real money: "
    "start without --demo, or give --data another directory",
    REAL: "was first used with --demo, and its money is made up: start with --demo, or give --data another directory",
}


class StartChecks:
    """Compares the settings with what is pinned, and store, ledger and cores with each other."""

    def __init__(self, ports: Ports, settings: Settings, directory: Path, restore: RestoreCheck) -> None:
        self._operations = ports.operations
        self._settings = settings
        self._directory = directory
        self._restore = restore

    async def for_server(self, *, demo: bool) -> None:
        """Checks whether a server may start, and pins what is used for the first time.

        The first start, with `demo` or without, decides for good what the directory is for. Raises `StartRefusedError`
        if the directory is for the other kind, the settings are not those that the data was made with, or the systems
        were restored to different times.
        """
        kind = DEMO if demo else REAL
        pinned = await self._operations.pins()
        if pinned.get(DIRECTORY_KIND, kind) != kind:
            raise StartRefusedError(f"the data directory {self._directory} {_OTHER_KIND[kind]}")
        wanted = pins(self._settings) | {DIRECTORY_KIND: kind}
        check_pins(wanted, pinned)
        check_pins(wanted, await self._operations.pin(wanted))
        disagreement = await self._restore.disagreement()
        if disagreement is not None:
            raise StartRefusedError(disagreement)

    async def for_command(self) -> None:
        """Checks whether a command may work without a server: one must have started before, with the same settings.

        Pins nothing. Raises `StartRefusedError`.
        """
        pinned = await self._operations.pins()
        if not pinned:
            raise StartRefusedError(f"{self._directory}: no server has started on it yet")
        wanted = pins(self._settings)
        advice = "while no server runs, a command needs its settings: give --config FILE of the server"
        try:
            check_pins(wanted, pinned)
        except StartRefusedError as error:
            raise StartRefusedError(f"{error}; {advice}") from error
        new = sorted(wanted.keys() - pinned.keys())
        if new:
            raise StartRefusedError(f"{', '.join(new)}: no server has started with this yet; {advice}")
