"""One SQLite database, one writing connection, and the turn of the event loop that its commits follow.

The embedded ledger, store, core and operations store share this connection. It runs inline on the event loop, without
threads: a call runs at once inside the open transaction and its result can be used immediately, and at the end of the
turn there is one commit and one sync. No result may leave the process before `durable()` has returned.

Where a foreign system takes part, every call commits before it returns (`each_call`), because a foreign system must
never see a row that may yet be lost.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType

import apsw

from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, StartRefusedError, System, Unavailable

BUSY_TIMEOUT_MS = 2_000
READER_CACHE_KIB = 16_384
WRITER_CACHE_KIB = 65_536
LOG_KEPT_BYTES = 67_108_864
"""The size to which the log file shrinks when it starts over; otherwise it would keep its largest size for ever. It is
not smaller because a sync is faster while the file does not grow."""


class _Turn:
    """One transaction: its error, if it failed, and the tasks that wait for it."""

    __slots__ = ("error", "open", "waiters")

    def __init__(self) -> None:
        self.open = True
        self.error: OperatingFailureError | None = None
        self.waiters: list[asyncio.Future[None]] = []

    def end(self) -> None:
        self.open = False
        for waiter in self.waiters:
            if waiter.cancelled():
                continue
            if self.error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(_again(self.error))
        self.waiters.clear()


class Database:
    """The writing connection and its turns.

    `on_failure` is called with the error of each turn that fails, for logs and metrics. `vfs` names an apsw VFS, for
    tests of power loss and full disks.
    """

    def __init__(
        self,
        path: Path,
        *,
        each_call: bool = False,
        vfs: str | None = None,
        on_failure: Callable[[OperatingFailureError], None] = lambda _: None,
    ) -> None:
        self._path = path
        self._vfs = vfs
        self._each_call = each_call
        self._on_failure = on_failure
        self._turn: _Turn | None = None
        self._is_broken = False
        self._restart_is_due = False
        self._call = _Call(self)
        # The turn in which a task last made a call; a failed one is kept until the task calls `durable()`.
        self._touched: ContextVar[_Turn | None] = ContextVar("turn", default=None)
        self._before_commit: list[Callable[[], None]] = []
        self._after_rollback: list[Callable[[], None]] = []
        self.commits = 0
        try:
            self.connection = self._open_writer()
            try:
                self._check_writer()
                self.reader = self.open_reader()
            except BaseException:
                self.connection.close()
                raise
        except apsw.Error as error:
            raise StartRefusedError(_what_to_do(path, error)) from error

    def _open_writer(self) -> apsw.Connection:
        writer = apsw.Connection(str(self._path), vfs=self._vfs)
        try:
            writer.set_busy_timeout(BUSY_TIMEOUT_MS)
            # Without fetchall() apsw would stop at the first statement that returns a row.
            writer.execute(
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA fullfsync=1; PRAGMA checkpoint_fullfsync=1;"
                f"PRAGMA wal_autocheckpoint=0; PRAGMA journal_size_limit={LOG_KEPT_BYTES};"
                f"PRAGMA cache_size=-{WRITER_CACHE_KIB}; PRAGMA temp_store=MEMORY"
            ).fetchall()
        except apsw.Error:
            writer.close()
            raise
        return writer

    def _check_writer(self) -> None:
        """Refuses two faults that SQLite accepts silently: a file opened read-only, and a file system without WAL."""
        if self.connection.readonly("main"):
            raise StartRefusedError(_what_to_do(self._path, apsw.ReadOnlyError("the file may only be read")))
        mode = self.connection.execute("PRAGMA journal_mode").fetchone()
        if mode != ("wal",):
            raise StartRefusedError(
                f"{self._path}: the file system cannot hold a write-ahead log (the mode is {mode}): use a local disk"
            )
        self.connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_component"
            "(name TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT, WITHOUT ROWID"
        )

    def open_reader(self) -> apsw.Connection:
        """Opens a read-only connection, which sees only committed rows; each thread needs its own."""
        reader = apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READONLY, vfs=self._vfs)
        reader.set_busy_timeout(BUSY_TIMEOUT_MS)
        reader.execute(f"PRAGMA cache_size=-{READER_CACHE_KIB}; PRAGMA query_only=1").fetchall()
        return reader

    def migrate(self, component: str, steps: Sequence[str]) -> None:
        """Brings a component's tables up to date; step n (from 1) leads to version n. Raises `StartRefusedError`.

        All missing steps run in one transaction. A database written by a newer release is refused.
        """
        assert self._turn is None, "a migration inside a turn would commit with it"
        try:
            with self.connection:
                row = self.connection.execute(
                    "SELECT version FROM schema_component WHERE name = ?", (component,)
                ).fetchone()
                version = row[0] if row else 0
                if version > len(steps):
                    raise StartRefusedError(
                        f"{self._path}: the {component} tables are of version {version}, written by a newer release; "
                        f"this one knows {len(steps)}: start that release again, or restore an older copy"
                    )
                for step in steps[version:]:
                    self.connection.execute(step).fetchall()
                self.connection.execute(
                    "INSERT INTO schema_component VALUES (?, ?) ON CONFLICT DO UPDATE SET version = excluded.version",
                    (component, len(steps)),
                )
        except apsw.Error as error:
            raise StartRefusedError(_what_to_do(self._path, error)) from error

    def before_commit(self, hook: Callable[[], None]) -> None:
        """Adds a hook that runs before each commit, to write the rows that an adapter still has in memory."""
        self._before_commit.append(hook)

    def after_rollback(self, hook: Callable[[], None]) -> None:
        """Adds a hook that runs after each rollback, to drop what an adapter has in memory."""
        self._after_rollback.append(hook)

    def call(self) -> "_Call":
        """The context of one port call: `with database.call() as connection`.

        A driver's error inside takes the whole turn back and is raised as `Unavailable`. Any other exception takes it
        back too and is raised as it is, so adapters check their arguments before they write.
        """
        return self._call

    async def durable(self) -> None:
        """Waits until everything that this task has read or written is on disk; see `ports/durability.py`."""
        turn = self._touched.get()
        if turn is None:
            return
        self._touched.set(None)
        if turn.open:
            waiter = asyncio.get_running_loop().create_future()
            turn.waiters.append(waiter)
            await waiter
        elif turn.error is not None:
            raise _again(turn.error)

    def checkpoint(self) -> None:
        """Moves committed rows from the log into the database file; may run in a thread, on a connection of its own.

        Raises `Unavailable` when the disk fails; the log then still has all committed rows.
        """
        try:
            connection = apsw.Connection(str(self._path), vfs=self._vfs)
            try:
                connection.execute("PRAGMA synchronous=FULL; PRAGMA checkpoint_fullfsync=1").fetchall()
                # The second moves the rows that were committed during the first, to leave little for `restart_log`.
                for _ in range(2):
                    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            finally:
                connection.close()
        except apsw.Error as error:
            raise Unavailable(System.STORE, f"the checkpoint failed: {_describe(error)}") from error

    def restart_log(self) -> None:
        """Makes the log start over, after a checkpoint in a thread has left little to move.

        It does so at once, or at the end of the open turn; under load there always is one. Does nothing while a reader
        still uses the log. When the disk fails, raises `Unavailable`, or reports it to `on_failure` after a turn.
        """
        if self._turn is not None:
            self._restart_is_due = True
            return
        self._restart_is_due = False
        # The loop must not wait for a long report that reads the log; the next round tries again.
        self.connection.set_busy_timeout(0)
        try:
            self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
        except apsw.BusyError:
            return
        except apsw.Error as error:
            raise Unavailable(System.STORE, f"the log could not start over: {_describe(error)}") from error
        finally:
            self.connection.set_busy_timeout(BUSY_TIMEOUT_MS)

    @property
    def log_bytes(self) -> int:
        """The size of the log file."""
        log = Path(f"{self._path}-wal")
        return log.stat().st_size if log.exists() else 0

    def close(self) -> None:
        """Ends an open turn and closes the connections."""
        if self._turn is not None:
            self._end_turn()
        self.reader.close()
        self.connection.close()

    def _begin(self) -> apsw.Connection:
        turn = self._turn
        if turn is None:
            if not self._each_call:
                asyncio.get_running_loop().call_soon(self._end_turn)
            turn = self._turn = _Turn()
            try:
                if self._is_broken:
                    self._reopen()
                self.connection.execute("BEGIN IMMEDIATE")
            except apsw.Error as error:
                self._take_back(turn, error)
        if turn.error is not None:
            if self._each_call:
                self._turn = None
            raise Unavailable(turn.error.system, f"this turn was taken back: {turn.error.message}") from turn.error
        if not self._each_call:  # With `each_call`, the call itself raises every error.
            seen = self._touched.get()
            if seen is not turn and (seen is None or seen.error is None):
                self._touched.set(turn)
        return self.connection

    def _finish(self, error: BaseException | None) -> None:
        """Ends one call."""
        turn = self._turn
        assert turn is not None
        if error is not None and turn.error is None:
            self._take_back(turn, error)
        if self._each_call:
            self._end_turn()
        if turn.error is not None and (error is None or isinstance(error, apsw.Error)):
            raise _again(turn.error) from error or turn.error.__cause__

    def _take_back(self, turn: _Turn, error: BaseException) -> None:
        self._fail(turn, Unavailable(System.STORE, f"the database took a turn back: {_describe(error)}"), error)

    def _fail(self, turn: _Turn, failure: OperatingFailureError, cause: BaseException) -> None:
        failure.__cause__ = cause
        turn.error = failure
        self._roll_back()
        self._on_failure(failure)

    def _end_turn(self) -> None:
        turn, self._turn = self._turn, None
        if turn is None:
            return
        try:
            if turn.error is None:
                self._commit(turn)
        finally:
            turn.end()
        if self._restart_is_due:
            try:
                self.restart_log()
            except Unavailable as error:
                self._on_failure(error)

    def _commit(self, turn: _Turn) -> None:
        try:
            for hook in self._before_commit:
                hook()
        except BaseException as error:
            self._take_back(turn, error)
            if isinstance(error, apsw.Error | OperatingFailureError):
                return
            raise
        try:
            self.connection.execute("COMMIT")
            self.commits += 1
        except apsw.Error as error:
            # The log may hold a valid commit that a restart would find, so the outcome is unknown.
            self._fail(turn, OutcomeUnknown(System.STORE, f"the commit failed: {_describe(error)}"), error)

    def _roll_back(self) -> None:
        try:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
        except apsw.Error:
            # Not even the rollback worked: the next turn opens the file again.
            self._is_broken = True
        for hook in self._after_rollback:
            hook()

    def _reopen(self) -> None:
        self.connection.close(force=True)
        self.connection = self._open_writer()
        self._is_broken = False


class _Call:
    """The context of a call. One object serves all calls, which never overlap since nothing inside one may wait."""

    __slots__ = ("_database",)

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> apsw.Connection:
        return self._database._begin()  # noqa: SLF001 - a part of `Database`.

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database._finish(error)  # noqa: SLF001


def _again(error: OperatingFailureError) -> OperatingFailureError:
    """Copies a failure for one more task: raised in several, one exception would collect all their tracebacks."""
    one_more = type(error)(error.system, error.message)
    one_more.__cause__ = error.__cause__
    return one_more


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _what_to_do(path: Path, error: apsw.Error) -> str:
    match error:
        case apsw.NotADBError() | apsw.CorruptError():
            advice = "the file is damaged; keep it, and restore a copy (see docs/guides/backup.md)"
        case apsw.CantOpenError() | apsw.ReadOnlyError() | apsw.PermissionsError():
            advice = "it cannot be written to; check the directory's owner and mode"
        case apsw.BusyError() | apsw.LockedError():
            advice = "another program holds it locked; close it"
        case apsw.FullError():
            advice = "the disk is full; make room"
        case _:
            advice = "see the message of the database"
    return f"{path}: {_describe(error)}: {advice}"
