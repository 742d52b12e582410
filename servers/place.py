"""Where the servers keep their files, which ports they use, and the locks that keep processes apart."""

import fcntl
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from servers.process import Deadline
from servers.trouble import FailedError, Missing

CHECKOUT = Path(__file__).resolve().parent.parent

# Below the range that Linux uses for outgoing connections, so that a stopped server can have its port back.
_PORT_FIRST = 20_000
_PORT_LAST = 32_000
_FREE_SECONDS = 5

# Longer than a download and a start together.
_LOCK_SECONDS = 600


def root() -> Path:
    """The folder for programs and data: `SERVERS_DIR`, or `.servers` in the checkout."""
    named = os.environ.get("SERVERS_DIR")
    folder = Path(named).resolve() if named else CHECKOUT / ".servers"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def data_root() -> Path:
    """The folder of the servers' data: `root()`, or one in the system's temporary folder where an unprivileged user
    cannot read `root()`, as in a checkout below /root.
    """
    folder = root()
    if reachable(folder):
        return folder
    mark = sha256(os.fsencode(folder)).hexdigest()[:12]
    elsewhere = Path(tempfile.gettempdir()) / f"internal-transfer-servers-{mark}"
    elsewhere.mkdir(mode=0o755, exist_ok=True)
    if elsewhere.stat().st_uid != os.getuid():
        raise Missing(f"{elsewhere} belongs to another user; name a folder of your own with SERVERS_DIR")
    return elsewhere


def reachable(path: Path) -> bool:
    """Whether the user that runs the servers can read below `path`; another user than this one only for root."""
    return os.getuid() != 0 or all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))


def free_ports(count: int, wanted: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Returns ports on loopback that nobody listens on: the `wanted` ones if they become free in time, else others."""
    if len(wanted) == count and _become_free(wanted):
        return wanted
    found: list[int] = []
    while len(found) < count:
        port = _PORT_FIRST + secrets.randbelow(_PORT_LAST - _PORT_FIRST)
        if port not in found and _is_free(port):
            found.append(port)
    return tuple(found)


def _become_free(ports: tuple[int, ...]) -> bool:
    # The port of a killed server becomes free only when its clients have closed their connections.
    deadline = Deadline(_FREE_SECONDS, "ports to be free")
    try:
        while not all(map(_is_free, ports)):
            deadline.wait()
    except FailedError:
        return False
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds the lock called `name` for the block; no two processes hold it at once."""
    descriptor = os.open(root() / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = Deadline(_LOCK_SECONDS, f"another process to leave {name}")
        while not try_lock(descriptor, fcntl.LOCK_EX):
            deadline.wait()
        yield
    finally:
        os.close(descriptor)


def forget_lock(name: str) -> None:
    """Removes the file of a lock that no other process uses."""
    (root() / f"{name}.lock").unlink(missing_ok=True)


def try_lock(descriptor: int, kind: int) -> bool:
    """Takes the lock of an open file, and returns whether it could; it does not wait."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
