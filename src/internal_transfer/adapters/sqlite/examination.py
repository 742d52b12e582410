"""Examines the embedded database for `doctor`, read-only and beside a running server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from internal_transfer.ports.errors import StartRefusedError

SQLITE_LEAST = (3, 51, 3)
"""Earlier releases can corrupt a database in WAL mode."""

_WAIT_MS = 2_000
_SCHEMA = "SELECT name, version FROM schema_component ORDER BY name"
_HAS_PINS = "SELECT 1 FROM sqlite_schema WHERE name = 'operations_pin'"
_PINS = "SELECT name, value FROM operations_pin"


class DatabaseExamination:
    """What can be said of SQLite and of one database file; the methods raise `StartRefusedError` that says what to do.

    A file that is missing or empty is in order: a start creates it before it knows whether it will keep anything in it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @staticmethod
    def release() -> str:
        """The release of SQLite, which is refused where it is too old."""
        version = apsw.sqlite_lib_version()
        if tuple(map(int, version.split(".")[:3])) < SQLITE_LEAST:
            least = ".".join(map(str, SQLITE_LEAST))
            raise StartRefusedError(f"{version} can corrupt databases; install apsw with SQLite {least} or later")
        return version

    def state(self) -> str:
        """Whether the file is whole, and the versions of its schema."""
        with self._opened() as connection:
            if connection is None:
                if self._path.exists():
                    return "it is empty: the settings name other systems, or no server has started yet"
                return "it does not exist yet; the first start creates it"
            faults = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
            versions = [f"{name} {version}" for name, version in connection.execute(_SCHEMA)]
        if faults != ["ok"]:
            raise StartRefusedError(f"damaged: {'; '.join(faults)}; keep the file, and restore a copy")
        return f"whole; schema versions: {', '.join(versions) or 'none'}"

    def pins(self) -> dict[str, str] | None:
        """The settings pinned at first use, or None where there is no database yet."""
        with self._opened() as connection:
            if connection is None:
                return None
            if connection.execute(_HAS_PINS).fetchone() is None:
                return {}
            return {str(name): str(value) for name, value in connection.execute(_PINS)}

    @contextmanager
    def _opened(self) -> Iterator[apsw.Connection | None]:
        if not self._path.exists() or self._path.stat().st_size == 0:
            yield None
            return
        try:
            connection = apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READONLY)
            try:
                connection.set_busy_timeout(_WAIT_MS)
                yield connection
            finally:
                connection.close()
        except apsw.Error as error:
            raise StartRefusedError(str(error)) from error
