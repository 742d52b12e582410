import asyncio
import itertools
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import apsw
import pytest

from internal_transfer.adapters.sqlite import database as module
from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.ports.errors import OutcomeUnknown, StartRefusedError, System, Unavailable
from internal_transfer.simulation.power import Failure, Fault, Operation, PowerVfs

SCHEMA = [
    """CREATE TABLE item(id INTEGER PRIMARY KEY, body BLOB) STRICT;
    CREATE TABLE child(id INTEGER PRIMARY KEY, item INTEGER REFERENCES item(id) DEFERRABLE INITIALLY DEFERRED) STRICT"""
]
NUMBERS = itertools.count()


def opened(path, **options):
    database = Database(path, **options)
    database.migrate("test", SCHEMA)
    database.connection.execute("PRAGMA foreign_keys=1")
    return database


@pytest.fixture
def failures():
    """The failures that the database reported to `on_failure`."""
    return []


@pytest.fixture
def database(tmp_path, failures):
    """A database whose calls of one turn share a commit."""
    with_turns = opened(tmp_path / "x.db", on_failure=failures.append)
    yield with_turns
    with_turns.close()


@pytest.fixture
def each_call(tmp_path, failures):
    """A database whose calls commit before they return."""
    at_once = opened(tmp_path / "x.db", each_call=True, on_failure=failures.append)
    yield at_once
    at_once.close()


def insert(database, number, body=b""):
    with database.call() as connection:
        connection.execute("INSERT INTO item VALUES (?, ?)", (number, body))


def insert_and_fail(database, number):
    """A call that writes and then has a bug."""
    with database.call() as connection:
        connection.execute("INSERT INTO item VALUES (?, NULL)", (number,))
        raise ZeroDivisionError


def break_commit(database):
    """Writes a row that only the commit refuses: a child without its item."""
    with database.call() as connection:
        connection.execute("INSERT INTO child VALUES (NULL, 999999)")


def seen(connection):
    return [row[0] for row in connection.execute("SELECT id FROM item ORDER BY id")]


async def turn_is_over():
    """Lets the loop go round until the turn has ended; the steps that follow fail inside the same turn."""
    for _ in range(10):
        await asyncio.sleep(0)


class TestTurn:
    async def test_a_turn_sees_itself_and_readers_see_it_after_its_commit(self, database):
        """Calls of the turn see a row at once; the reader sees it only after `durable()`."""
        insert(database, 1)
        with database.call() as connection:
            assert seen(connection) == [1]
        assert seen(database.reader) == []
        await database.durable()
        assert seen(database.reader) == [1]

    async def test_the_tasks_of_one_turn_share_one_commit(self, database):
        """Fifty tasks that run in one turn of the loop cost one commit."""

        async def work(number):
            insert(database, number)
            await database.durable()
            assert number in seen(database.reader)

        before = database.commits
        async with asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(work(number))
        assert database.commits == before + 1

    async def test_a_task_that_made_no_call_waits_for_nothing(self, database):
        """`durable()` returns at once for a task that made no call, even while a turn is open."""

        async def stranger():
            await database.durable()
            assert database.connection.in_transaction

        waiting = asyncio.get_running_loop().create_task(stranger())  # Made before the turn, so it inherits nothing.
        insert(database, 1)
        await waiting

    async def test_a_failed_statement_takes_the_whole_turn_back(self, database, failures):
        """Every task in the turn gets `Unavailable`, nothing of the turn is kept, and the next one works."""

        async def innocent():
            insert(database, 1)
            with pytest.raises(Unavailable, match="took a turn back: ConstraintError"):
                await database.durable()

        async def reader():
            with database.call() as connection:
                assert seen(connection) == [1]
            with pytest.raises(Unavailable):
                await database.durable()

        async def culprit():
            with pytest.raises(Unavailable, match="UNIQUE") as raised:
                insert(database, 1)
            assert isinstance(raised.value.__cause__, apsw.ConstraintError)

        async def latecomer():
            with pytest.raises(Unavailable, match="this turn was taken back"):
                insert(database, 2)

        async with asyncio.TaskGroup() as group:
            for task in (innocent, reader, culprit, latecomer):
                group.create_task(task())
        assert [type(failure) for failure in failures] == [Unavailable]
        assert seen(database.reader) == []
        insert(database, 3)
        await database.durable()
        assert seen(database.reader) == [3]

    async def test_a_bug_in_a_call_takes_the_turn_back_and_goes_on_as_it_is(self, database):
        """An exception that is not the driver's reaches the caller unchanged, and the whole turn is taken back."""
        insert(database, 1)
        with pytest.raises(ZeroDivisionError):
            insert_and_fail(database, 2)
        with pytest.raises(Unavailable):
            await database.durable()
        assert seen(database.reader) == []

    async def test_a_failed_commit_is_unknown_to_all(self, database, failures):
        """Each task in the turn gets an `OutcomeUnknown` of its own, chained from the driver's error."""
        caught = []

        async def work(number):
            insert(database, number)
            try:
                await database.durable()
            except OutcomeUnknown as error:
                caught.append(error)

        async with asyncio.TaskGroup() as group:
            group.create_task(work(1))
            group.create_task(work(2))
            break_commit(database)
        assert [error.system for error in caught] == [System.STORE, System.STORE]
        assert caught[0] is not caught[1]
        assert all(isinstance(error.__cause__, apsw.ConstraintError) for error in caught)
        with pytest.raises(OutcomeUnknown):
            await database.durable()
        assert len(failures) == 1
        assert seen(database.reader) == []

    async def test_a_task_that_waited_for_something_else_still_learns_of_the_failure(self, database):
        """Its turn fails, and another commits, before the task calls `durable()`; the task is told once."""
        insert(database, 1)
        break_commit(database)
        await turn_is_over()
        insert(database, 2)
        await turn_is_over()
        with pytest.raises(OutcomeUnknown, match="the commit failed"):
            await database.durable()
        await database.durable()
        assert seen(database.reader) == [2]

    async def test_a_task_that_waited_for_something_else_finds_its_commit_made(self, database):
        """If the turn was committed in the meantime, `durable()` returns at once."""
        insert(database, 1)
        await turn_is_over()
        commits = database.commits
        await database.durable()
        assert database.commits == commits

    async def test_a_cancelled_waiter_does_not_disturb_the_others(self, database):
        """When one task stops waiting, the turn still commits and the other task goes on."""

        async def wait():
            insert(database, 1)
            await database.durable()

        async def give_up(waiting):
            insert(database, 2)
            waiting.cancel()
            assert database.connection.in_transaction
            await database.durable()

        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(wait())
            group.create_task(give_up(waiting))
        assert waiting.cancelled()
        assert seen(database.reader) == [1, 2]

    async def test_each_database_reports_its_own_failures(self, database, tmp_path):
        """A task that used two databases learns from each of them how its own turn ended."""
        other = opened(tmp_path / "other.db")
        insert(database, 1)
        break_commit(database)
        insert(other, 1)
        await other.durable()
        with pytest.raises(OutcomeUnknown):
            await database.durable()
        other.close()

    async def test_a_turn_that_cannot_begin_is_unavailable(self, tmp_path, monkeypatch):
        """While another program holds the write lock, calls fail as `Unavailable`; afterwards they work."""
        monkeypatch.setattr(module, "BUSY_TIMEOUT_MS", 0)
        database = opened(tmp_path / "x.db")
        foreign = apsw.Connection(str(tmp_path / "x.db"))
        foreign.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="BusyError"):
            insert(database, 1)
        foreign.execute("ROLLBACK")
        await turn_is_over()
        insert(database, 2)
        await database.durable()
        assert seen(database.reader) == [2]
        foreign.close()
        database.close()

    async def test_a_connection_that_cannot_even_undo_is_opened_again(self, database):
        """When the connection is lost, its turn is taken back, and the next turn opens a new connection."""
        insert(database, 1)
        database.connection.close(force=True)
        with pytest.raises(Unavailable, match="ConnectionClosedError"):
            insert(database, 2)
        with pytest.raises(Unavailable):
            await database.durable()
        await turn_is_over()
        insert(database, 3)
        await database.durable()
        assert seen(database.reader) == [3]

    async def test_a_full_disk_takes_back_only_the_turn_that_does_not_fit(self, database):
        """A full disk is `Unavailable`; committed rows stay, and once there is room the next turn works."""
        insert(database, 1)
        await database.durable()
        [(pages,)] = database.connection.execute("PRAGMA page_count").fetchall()
        database.connection.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(Unavailable, match="FullError"):
            insert(database, 2, bytes(100_000))
        with pytest.raises(Unavailable):
            await database.durable()
        await turn_is_over()
        database.connection.execute("PRAGMA max_page_count=100000")
        insert(database, 3, bytes(100_000))
        await database.durable()
        assert seen(database.reader) == [1, 3]

    async def test_closing_commits_the_open_turn(self, tmp_path):
        """An orderly stop loses nothing."""
        database = opened(tmp_path / "x.db")
        insert(database, 1)
        database.close()
        again = opened(tmp_path / "x.db")
        assert seen(again.reader) == [1]
        again.close()


class TestEachCall:
    async def test_a_call_is_committed_when_it_returns(self, each_call):
        """A foreign system never sees a row that may yet be lost: readers see a call's rows as soon as it returns."""
        insert(each_call, 1)
        assert seen(each_call.reader) == [1]
        insert(each_call, 2)
        assert seen(each_call.reader) == [1, 2]
        await each_call.durable()

    async def test_a_failed_call_takes_back_only_itself(self, each_call, failures):
        """The call itself raises; `durable()` adds nothing, and other calls are not affected."""
        insert(each_call, 1)
        with pytest.raises(Unavailable, match="UNIQUE"):
            insert(each_call, 1)
        await each_call.durable()
        insert(each_call, 2)
        assert seen(each_call.reader) == [1, 2]
        assert len(failures) == 1

    async def test_a_failed_commit_is_unknown_to_its_call(self, each_call):
        """The call itself raises `OutcomeUnknown`."""
        with pytest.raises(OutcomeUnknown, match="the commit failed") as raised:
            break_commit(each_call)
        assert isinstance(raised.value.__cause__, apsw.ConstraintError)
        insert(each_call, 1)
        assert seen(each_call.reader) == [1]

    async def test_a_bug_in_a_call_reaches_its_caller_unchanged(self, each_call):
        """An exception that is not the driver's takes the call back and is raised as it is."""
        with pytest.raises(ZeroDivisionError):
            insert_and_fail(each_call, 1)
        insert(each_call, 2)
        assert seen(each_call.reader) == [2]

    async def test_a_call_that_cannot_begin_is_unavailable(self, tmp_path, monkeypatch):
        """Each call tries again: it fails while the lock is held, and works once it is released."""
        monkeypatch.setattr(module, "BUSY_TIMEOUT_MS", 0)
        database = opened(tmp_path / "x.db", each_call=True)
        foreign = apsw.Connection(str(tmp_path / "x.db"))
        foreign.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="BusyError"):
            insert(database, 1)
        foreign.close()
        insert(database, 2)
        assert seen(database.reader) == [2]
        database.close()

    def test_no_event_loop_is_needed(self, each_call):
        """A program without an event loop can use this mode."""
        insert(each_call, 1)
        assert seen(each_call.reader) == [1]


class TestHooks:
    async def test_what_a_hook_writes_is_in_the_commit(self, database, each_call):
        """Hooks run once at the end of a turn, or of each call where calls commit; their rows are committed."""
        for number, (which, runs) in enumerate(((database, 1), (each_call, 2))):
            ran = []

            def hook(which=which, number=number, ran=ran):
                ran.append(None)
                which.connection.execute("INSERT OR REPLACE INTO item VALUES (?, NULL)", (100 + number,))

            which.before_commit(hook)
            insert(which, number * 10)
            insert(which, number * 10 + 1)
            await which.durable()
            assert len(ran) == runs
            assert 100 + number in seen(which.reader)

    async def test_a_hook_whose_write_fails_takes_the_turn_back(self, database):
        """Nothing was committed, so the tasks of the turn get `Unavailable`."""
        database.before_commit(lambda: database.connection.execute("INSERT INTO item VALUES (1, NULL)"))
        insert(database, 1)
        with pytest.raises(Unavailable, match="UNIQUE"):
            await database.durable()
        assert seen(database.reader) == []

    async def test_a_bug_in_a_hook_is_reported_and_leaves_nobody_waiting(self, database):
        """The loop's exception handler gets the bug, the turn is taken back, and its tasks get `Unavailable`."""
        reported = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
        divisor = 0
        database.before_commit(lambda: 1 // divisor)
        insert(database, 1)
        with pytest.raises(Unavailable, match="ZeroDivisionError"):
            await database.durable()
        assert [type(error) for error in reported] == [ZeroDivisionError]
        divisor = 1
        insert(database, 2)
        await database.durable()
        assert seen(database.reader) == [2]

    async def test_memories_are_dropped_with_the_rows(self, database):
        """The hook runs once after each turn that was taken back, and after no other."""
        dropped = []
        database.after_rollback(lambda: dropped.append(seen(database.connection)))
        insert(database, 1)
        await database.durable()
        assert dropped == []
        insert(database, 2)
        with pytest.raises(Unavailable):
            insert(database, 2)
        assert dropped == [[1]]
        await turn_is_over()
        insert(database, 3)
        break_commit(database)
        await turn_is_over()
        assert dropped == [[1], [1]]


class TestMigrations:
    def test_steps_lead_forward_and_run_once(self, tmp_path):
        """A later release runs only the steps that are missing; each component has its own version."""
        first = "CREATE TABLE a(x)"
        for steps in ([first], [first], [first, "ALTER TABLE a ADD COLUMN y; INSERT INTO a VALUES (1, 2)"]):
            database = Database(tmp_path / "x.db")
            database.migrate("one", steps)
            database.migrate("two", ["CREATE TABLE b(x)"])
            database.close()
        database = Database(tmp_path / "x.db")
        assert database.reader.execute("SELECT * FROM a").fetchall() == [(1, 2)]
        assert database.reader.execute("SELECT * FROM schema_component ORDER BY name").fetchall() == [
            ("one", 2),
            ("two", 1),
        ]
        database.close()

    def test_a_newer_database_is_refused(self, database):
        """An older release leaves newer tables alone, and says what to do."""
        with pytest.raises(StartRefusedError, match=r"version 1, written by a newer release; this one knows 0: start"):
            database.migrate("test", [])
        assert database.reader.execute("SELECT version FROM schema_component").fetchall() == [(1,)]

    def test_a_failed_step_leaves_nothing_of_all_steps(self, database):
        """All missing steps are applied or none; the start is refused with the database's message."""
        with pytest.raises(StartRefusedError, match="no such table: nowhere"):
            database.migrate("new", ["CREATE TABLE half(x)", "INSERT INTO nowhere VALUES (1)"])
        names = database.connection.execute("SELECT name FROM sqlite_schema WHERE name = 'half'").fetchall()
        assert names == []
        assert database.connection.execute("SELECT * FROM schema_component WHERE name = 'new'").fetchall() == []

    async def test_migrations_do_not_mix_with_turns(self, database):
        """A migration inside a turn is a bug, since it would be committed or taken back with it."""
        insert(database, 1)
        with pytest.raises(AssertionError, match="inside a turn"):
            database.migrate("other", [])


class TestLog:
    async def test_after_a_checkpoint_the_log_starts_over(self, database):
        """After a checkpoint the log is written from its start again instead of growing."""
        assert Database.log_bytes.fget(database) > 0
        for number in range(5):
            insert(database, number, bytes(200_000))
            await database.durable()
        grown = database.log_bytes
        assert grown > 1_000_000
        for number in range(5, 20):
            database.checkpoint()
            database.restart_log()
            insert(database, number, bytes(200_000))
            await database.durable()
        assert database.log_bytes == grown
        assert len(seen(database.reader)) == 20

    async def test_the_log_shrinks_when_it_starts_over(self, tmp_path, monkeypatch):
        """After a burst the log file shrinks to `LOG_KEPT_BYTES`."""
        monkeypatch.setattr(module, "LOG_KEPT_BYTES", 100_000)
        database = opened(tmp_path / "x.db")
        insert(database, 1, bytes(2_000_000))
        await database.durable()
        assert database.log_bytes > 2_000_000
        database.checkpoint()
        database.restart_log()
        insert(database, 2)
        await database.durable()
        assert database.log_bytes <= 100_000
        database.close()

    async def test_a_long_reader_is_not_waited_for(self, database):
        """A report that still reads the log only delays its restart; the report keeps its snapshot, and turns go on."""
        insert(database, 1)
        await database.durable()
        report = database.open_reader()
        rows = report.execute("SELECT id FROM item UNION ALL SELECT 7")
        assert next(rows) == (1,)
        insert(database, 2)
        await database.durable()
        database.checkpoint()
        database.restart_log()
        assert list(rows) == [(7,)]
        report.close()
        insert(database, 3)
        await database.durable()
        assert seen(database.reader) == [1, 2, 3]

    async def test_the_log_starts_over_when_the_open_turn_has_ended(self, database):
        """Under load a turn is always open, and the log must not grow for ever because of it."""
        insert(database, 1, bytes(2_000_000))
        await database.durable()
        grown = database.log_bytes
        for number in range(2, 6):
            database.checkpoint()
            insert(database, number, bytes(1_500_000))
            database.restart_log()
            await database.durable()
        assert database.log_bytes <= 2 * grown
        assert seen(database.reader) == [1, 2, 3, 4, 5]

    async def test_a_disk_that_fails_when_the_log_starts_over_after_a_turn_is_reported(self, tmp_path):
        """No task waits for the restart, so its failure goes to `on_failure`; the turn itself is durable."""
        disk = PowerVfs(f"log-{next(NUMBERS)}")
        failures = []
        database = opened(tmp_path / "x.db", vfs=disk.name, on_failure=failures.append)
        insert(database, 1)
        await database.durable()
        insert(database, 2)
        database.restart_log()
        disk.fault = Fault(Operation.SYNC, disk.counts[Operation.SYNC] + 2, Failure.IO_ERROR)
        await database.durable()
        assert [type(failure) for failure in failures] == [Unavailable]
        assert seen(database.reader) == [1, 2]
        database.close()
        disk.unregister()

    async def test_a_disk_that_fails_while_the_log_is_kept_short_loses_nothing(self, tmp_path):
        """Checkpoint and restart raise `Unavailable`; committed rows stay readable, and later both work."""
        disk = PowerVfs(f"log-{next(NUMBERS)}")
        database = opened(tmp_path / "x.db", vfs=disk.name)
        insert(database, 1)
        await database.durable()
        disk.fault = Fault(Operation.WRITE, 1, Failure.IO_ERROR, times=1_000_000)
        for act in (database.checkpoint, database.restart_log):
            with pytest.raises(Unavailable, match="IOError"):
                act()
        assert seen(database.reader) == [1]
        disk.fault = None
        database.checkpoint()
        database.restart_log()
        assert seen(database.reader) == [1]
        database.close()
        disk.unregister()

    async def test_a_reader_cannot_write(self, database):
        """A reader's connection refuses to write."""
        reader = database.open_reader()
        with pytest.raises(apsw.ReadOnlyError):
            reader.execute("INSERT INTO item VALUES (1, NULL)")
        reader.close()

    def test_a_database_without_a_log_file_has_an_empty_log(self, database, tmp_path):
        """The size is 0 where the file is gone."""
        (tmp_path / "x.db-wal").unlink()
        assert database.log_bytes == 0


class TestStart:
    def test_a_file_that_is_no_database_is_refused(self, tmp_path):
        """The refusal names the file, says what to do, and leaves the file as it is."""
        path = tmp_path / "x.db"
        path.write_bytes(b"something else" * 1000)
        with pytest.raises(StartRefusedError, match=r"NotADBError: .*the file is damaged; keep it") as refused:
            Database(path)
        assert str(path) in str(refused.value)
        assert path.read_bytes() == b"something else" * 1000

    def test_a_damaged_database_is_refused(self, tmp_path):
        """A file whose schema page is overwritten does not start."""
        path = tmp_path / "x.db"
        opened(path).close()
        content = path.read_bytes()
        path.write_bytes(content[:100] + b"\xff" * 3996 + content[4096:])
        with pytest.raises(StartRefusedError, match="the file is damaged; keep it"):
            opened(path)

    def test_a_locked_database_is_refused(self, tmp_path, monkeypatch):
        """Another program that holds the file is named as the reason."""
        monkeypatch.setattr(module, "BUSY_TIMEOUT_MS", 0)
        path = tmp_path / "x.db"
        opened(path).close()
        foreign = apsw.Connection(str(path))
        foreign.execute("PRAGMA locking_mode=EXCLUSIVE; BEGIN EXCLUSIVE").fetchall()
        with pytest.raises(StartRefusedError, match="another program holds it locked; close it"):
            Database(path)
        foreign.close()

    def test_a_missing_directory_is_refused(self, tmp_path):
        """The refusal says where to look."""
        with pytest.raises(StartRefusedError, match="cannot be written to; check the directory's owner and mode"):
            Database(tmp_path / "nowhere" / "x.db")

    def test_a_file_system_without_a_log_is_refused(self):
        """The start is refused where SQLite would silently go on without a write-ahead log."""
        with pytest.raises(StartRefusedError, match="cannot hold a write-ahead log"):
            Database(Path(":memory:"))

    @pytest.mark.parametrize(
        ("failure", "advice"), [(Failure.FULL, "the disk is full; make room"), (Failure.IO_ERROR, "see the message")]
    )
    def test_a_disk_that_fails_at_the_start_is_named(self, tmp_path, failure, advice):
        """A full or broken disk refuses the start and gives the reason; once the disk works, so does the next start."""
        disk = PowerVfs(f"start-{next(NUMBERS)}")
        disk.fault = Fault(Operation.WRITE, 1, failure, times=1_000_000)
        with pytest.raises(StartRefusedError, match=advice):
            Database(tmp_path / "x.db", vfs=disk.name)
        disk.fault = None
        database = opened(tmp_path / "x.db", vfs=disk.name)
        disk.fault = Fault(Operation.WRITE, 1, failure, times=1_000_000)
        with pytest.raises(StartRefusedError, match=advice):
            database.migrate("more", ["CREATE TABLE more(x)"])
        disk.fault = None
        database.migrate("more", ["CREATE TABLE more(x)"])
        database.close()
        disk.unregister()

    def test_the_connections_are_set_up_in_full(self, database):
        """Every commit is synced, and neither checkpoints nor small caches get in the way of turns."""

        def value(connection, name):
            return connection.execute(f"PRAGMA {name}").fetchone()[0]

        writer = database.connection
        names = ("journal_mode", "synchronous", "fullfsync", "checkpoint_fullfsync", "wal_autocheckpoint", "temp_store")
        assert [value(writer, name) for name in names] == ["wal", 2, 1, 1, 0, 2]
        assert value(writer, "journal_size_limit") == module.LOG_KEPT_BYTES
        assert value(writer, "cache_size") == -module.WRITER_CACHE_KIB
        assert [value(database.reader, name) for name in ("cache_size", "query_only")] == [-module.READER_CACHE_KIB, 1]

    def test_a_start_without_room_for_its_reader_is_refused(self, tmp_path, monkeypatch):
        """A failure after the first connection is open is a refusal too, and that connection is closed."""

        def refuse(_):
            raise apsw.CantOpenError("too many open files")

        monkeypatch.setattr(Database, "open_reader", refuse)
        with pytest.raises(StartRefusedError, match="too many open files"):
            Database(tmp_path / "x.db")
        assert not (tmp_path / "x.db-wal").exists()

    @pytest.mark.parametrize("file_mode", [0o400, 0o600], ids=["read-only file", "read-only directory"])
    def test_a_database_that_may_not_be_written_is_refused(self, file_mode):
        """A user who may only read the file, or may not create files beside it, is told to check the mode."""
        code = """
            import os
            import sys
            from pathlib import Path
            from internal_transfer.adapters.sqlite.database import Database
            from internal_transfer.ports.errors import StartRefusedError
            os.setuid(int(sys.argv[2]))
            try:
                Database(Path(sys.argv[1]))
            except StartRefusedError as refused:
                print(refused)
            else:
                print("started")
        """
        nobody = 65534 if os.geteuid() == 0 else os.geteuid()
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "x.db"
            opened(path).close()
            os.chown(path, nobody, -1)
            os.chown(directory, nobody, -1)
            path.chmod(file_mode)
            Path(directory).chmod(0o500 if file_mode == 0o600 else 0o700)
            done = subprocess.run(
                [sys.executable, "-c", textwrap.dedent(code), str(path), str(nobody)],
                capture_output=True,
                text=True,
                check=False,
            )
            Path(directory).chmod(0o700)
        assert "it cannot be written to; check the directory's owner and mode" in done.stdout, done.stderr
        assert ("the file may only be read" in done.stdout) == (file_mode == 0o400)
