"""A media driver as a process: `python -m internal_transfer.adapters.aeron.media_driver [DIRECTORY [SECONDS]]`.

It is the driver from the client's package, for hosts without another one; Aeron's own `aeronmd` has lower latency.
Another driver in the directory that has been silent for SECONDS (10 by default) is taken for dead, and its files are
removed.
"""

import signal
import sys

from internal_transfer.adapters.aeron.settings import load_library
from internal_transfer.ports.errors import StartRefusedError

SILENT_SECONDS = 10.0

TERM_BYTES = 16 * 1024 * 1024
"""The length of terms of UDP and IPC. The largest message is an eighth of it; the files are sparse."""


def main(arguments: list[str]) -> int:
    """Runs a driver until SIGTERM or SIGINT and returns the exit code; prints its directory when it is up."""
    try:
        library = load_library()
    except StartRefusedError as error:
        print(error, file=sys.stderr)  # noqa: T201 - a program of its own speaks to its terminal.
        return 1
    # Blocked here, so that no thread of the driver takes them, and waited for below.
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    directory = arguments[0] if arguments else library.default_path()
    silent_seconds = float(arguments[1]) if len(arguments) > 1 else SILENT_SECONDS
    if library.is_driver_active(directory, round(silent_seconds * 1000)):
        print(f"another media driver is running in {directory}", file=sys.stderr)  # noqa: T201
        return 1
    driver = library.MediaDriver(
        dir=directory,
        threading="shared",
        dir_delete_on_start=True,
        dir_delete_on_shutdown=True,
        term_buffer_length=TERM_BYTES,
        ipc_term_buffer_length=TERM_BYTES,
    )
    print(driver.dir, flush=True)  # noqa: T201
    signal.sigwait(ends)
    driver.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
