"""The data directory, which one server at a time creates, checks and locks."""

import fcntl
import os
from pathlib import Path

from internal_transfer.ports.errors import StartRefusedError


class DataDirectory:
    """A directory that only its owner can open, locked from `acquire` to `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @property
    def database(self) -> Path:
        """The database file."""
        return self.path / "internal-transfer.db"

    @property
    def admin_socket(self) -> Path:
        """The socket for operators of a running server."""
        return self.path / "admin.sock"

    @property
    def ledger_socket(self) -> Path:
        """The socket on which a process with the role `ledger` serves others."""
        return self.path / "ledger.sock"

    @property
    def is_held(self) -> bool:
        """Tells whether another process holds the lock now; raises `StartRefusedError` if that cannot be told."""
        try:
            handle = os.open(self.path / "lock", os.O_RDWR)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StartRefusedError(f"cannot look into the data directory {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def acquire(self) -> None:
        """Creates the directory if it is missing, and locks it; raises `StartRefusedError`, which says what to do."""
        assert self._lock is None, "held already"
        try:
            self._make()
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartRefusedError(
                f"cannot write to the data directory {self.path}: {error.strerror}; "
                "give --data a directory that this user may write to"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            self.release()
            raise StartRefusedError(
                f"the data directory {self.path} is held by another server (process {holder}); "
                "stop it, or give --data another directory"
            ) from error
        try:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
            # The database holds secrets, and SQLite would create it readable by others.
            os.close(os.open(self.database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            self.release()
            raise StartRefusedError(
                f"cannot write in the data directory {self.path}: {error.strerror}; "
                "check the owner and mode of its files, and make room if the disk is full"
            ) from error

    def _make(self) -> None:
        """Creates the directory and syncs its name, which SQLite does not, so that it survives a loss of power."""
        missing = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in missing:
            parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)

    def release(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
