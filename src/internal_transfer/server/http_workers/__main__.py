"""Where an HTTP worker's process begins: it is tied to the service before it imports everything else.

Only the service starts it, as `python -m internal_transfer.server.http_workers SERVICE LISTENER PAIR`: the service's
process id and the numbers of two inherited sockets. Everything else a worker needs to know comes on standard input.
"""

import signal
import sys

from internal_transfer.server.lifeline import tie


def main() -> None:
    """Runs a worker, unless the service has died meanwhile."""
    service, listener, pair = map(int, sys.argv[1:])
    # A terminal's interrupt reaches every process; the service decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # If the service dies without a word, its port has to be free at once for the next one.
    if not tie(service, signal.SIGKILL):
        return
    from internal_transfer.server.http_workers.worker import run  # noqa: PLC0415 - takes long to import.

    sys.exit(run(listener, pair))


if __name__ == "__main__":
    main()
