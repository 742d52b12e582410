"""The sockets that the service listens on: TCP ports, and Unix sockets for its owner alone."""

import errno
import os
import socket
from pathlib import Path

from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import StartRefusedError

BACKLOG = 2048
PORT_SECONDS = 2.0
"""How long to wait for a port: the HTTP workers of a killed server may outlive it for a moment."""

_OWN_BACKLOG = 64


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket; port 0 picks a free one. Raises `StartRefusedError` naming the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        advice = "; stop the program that uses it" if error.errno == errno.EADDRINUSE else ""
        raise StartRefusedError(f"cannot listen on {host} port {port}: {error.strerror or error}{advice}") from error
    listener.setblocking(False)  # noqa: FBT003 - the standard library takes it by position only.
    return listener


async def listen_when_free(host: str, port: int, clock: Clock, *, option: str) -> socket.socket:
    """Listens as soon as the port is free. After `PORT_SECONDS` it raises `StartRefusedError`, naming the command
    line's `option` for another port.
    """
    ends = clock.monotonic() + PORT_SECONDS
    while True:
        try:
            return listen(host, port)
        except StartRefusedError as error:
            in_use = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
            if not in_use:
                raise
            if clock.monotonic() >= ends:
                variable = option.removeprefix("--").replace("-", "_").upper()
                raise StartRefusedError(
                    f"{error}, or give another port: {option} N, or make run {variable}=N (0 picks a free one)"
                ) from error
        await clock.sleep(0.02)


def listen_owner_only(path: Path) -> socket.socket:
    """Returns a listening Unix socket that only this process's user can open; raises `StartRefusedError`.

    A socket that a killed process left is replaced: the caller has locked its directory.
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise StartRefusedError(f"{path}: cannot be made: {error}; a shorter path of --data may help") from error
    finally:
        os.umask(before)
    listener.listen(_OWN_BACKLOG)
    listener.setblocking(False)  # noqa: FBT003 - the standard library takes it by position only.
    return listener
