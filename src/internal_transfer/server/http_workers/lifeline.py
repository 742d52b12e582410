"""The first moments of a worker's process: it is tied to the service before the long import of everything else.

Only the service starts it, as `python -m internal_transfer.server.http_workers.lifeline SERVICE LISTENER PAIR`: its
process id and the numbers of the inherited sockets. What else a worker needs to know comes on standard input.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tie(parent: int, number: signal.Signals) -> bool:
    """Has the kernel send this process a signal when its parent dies; False where that has happened already.

    Only on Linux: elsewhere the end of what connects the two has to do.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    return os.getppid() == parent


def main() -> None:
    """Runs a worker, unless the service has died meanwhile."""
    service, listener, pair = map(int, sys.argv[1:])
    # A terminal's interrupt reaches every process; the service decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The service may die without a word; then the port has to be free at once for the next one.
    if not tie(service, signal.SIGKILL):
        return
    from internal_transfer.server.http_workers.worker import run  # noqa: PLC0415 - see the module's first line.

    sys.exit(run(listener, pair))


if __name__ == "__main__":
    main()
