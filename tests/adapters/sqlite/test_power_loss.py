"""What a power cut leaves at every moment of a scripted workload, and what failing disks do.

Each turn moves an amount between two accounts and writes it into a journal row by row, so that half a turn would show.
"""

import itertools
from random import Random

import apsw
import pytest

from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.ports.errors import OutcomeUnknown, StartRefusedError, Unavailable
from internal_transfer.simulation.power import Failure, Fault, Operation, PowerVfs

TURNS = 12
ROWS = 3
TOTAL = 1_000
SCHEMA = [
    f"""CREATE TABLE journal(turn INTEGER, line INTEGER, filler BLOB, PRIMARY KEY (turn, line)) STRICT;
    CREATE TABLE balance(name TEXT PRIMARY KEY, units INTEGER NOT NULL) STRICT;
    INSERT INTO balance VALUES ('a', {TOTAL}), ('b', 0)"""
]
NUMBERS = itertools.count()


@pytest.fixture(autouse=True, scope="module")
def _reliable():
    """The disk for starts after a power cut; it too does not wait for real syncs."""
    disk = PowerVfs("reliable")
    yield
    disk.unregister()


@pytest.fixture
def vfs():
    """A disk that can lose power."""
    disk = PowerVfs(f"power-{next(NUMBERS)}")
    yield disk
    disk.unregister()


def write_turn(database, turn):
    """Two calls of one turn: the money, then the journal; some turns are larger than others."""
    with database.call() as connection:
        connection.execute("UPDATE balance SET units = units - ? WHERE name = 'a'", (turn,))
        connection.execute("UPDATE balance SET units = units + ? WHERE name = 'b'", (turn,))
    with database.call() as connection:
        filler = bytes([turn % 256]) * (turn % 4 * 3_000)
        connection.executemany("INSERT INTO journal VALUES (?, ?, ?)", [(turn, line, filler) for line in range(ROWS)])


def turns_found(path):
    """The turns that a new start finds; each is whole, no money is missing, and the file is sound."""
    database = Database(path, vfs="reliable")
    try:
        database.migrate("test", SCHEMA)
        assert database.reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = database.reader.execute("SELECT turn, count(*) FROM journal GROUP BY turn ORDER BY turn").fetchall()
        turns = [turn for turn, _ in rows]
        assert all(lines == ROWS for _, lines in rows)
        assert dict(database.reader.execute("SELECT name, units FROM balance").fetchall()) == {
            "a": TOTAL - sum(turns),
            "b": sum(turns),
        }
        return turns
    finally:
        database.close()


def start_after(left, directory):
    """The turns that a start finds in the files that a power cut left."""
    directory.mkdir()
    for name, content in left.items():
        (directory / name).write_bytes(content)
    return turns_found(directory / "x.db")


async def run_workload(database, acknowledged):
    for turn in range(1, TURNS + 1):
        write_turn(database, turn)
        await database.durable()
        acknowledged.append(turn)
        if turn % 5 == 0:
            database.checkpoint()
            database.restart_log()


async def cut_everywhere(vfs, tmp_path, seeds, prepare=lambda _: None):
    """Runs the workload and cuts the power before each operation of the disk, once per seed.

    Returns for each cut how many turns were acknowledged, the files that it left, and a directory to start from.
    """
    acknowledged, cuts = [], []
    (tmp_path / "running").mkdir()
    database = Database(tmp_path / "running" / "x.db", vfs=vfs.name)
    prepare(database)
    database.migrate("test", SCHEMA)

    def cut():
        for seed in range(seeds):
            left = vfs.after_power_cut(Random(len(cuts) * seeds + seed))
            cuts.append((len(acknowledged), left))

    vfs.before_operation = cut
    await run_workload(database, acknowledged)
    cut()
    vfs.before_operation = lambda: None
    database.close()
    assert acknowledged == list(range(1, TURNS + 1))
    return [(count, left, tmp_path / f"cut-{number}") for number, (count, left) in enumerate(cuts)]


@pytest.mark.slow
async def test_what_was_acknowledged_survives_a_power_cut_at_any_moment(vfs, tmp_path):
    """G9: at every write and sync, in commits and in checkpoints, a power cut leaves all turns that `durable()`
    acknowledged, whole, and at most the one that was being committed beside them.
    """
    found, known = [], {}
    for count, left, directory in await cut_everywhere(vfs, tmp_path, seeds=3):
        same = frozenset(left.items())
        if same not in known:
            known[same] = start_after(left, directory)
        turns = known[same]
        assert turns in (list(range(1, count + 1)), list(range(1, count + 2)))
        found.append(len(turns) - count)
    assert len(known) > 100
    assert set(found) == {0, 1}


async def test_without_syncs_a_power_cut_loses_what_was_acknowledged(vfs, tmp_path):
    """The check above can fail: with `synchronous=OFF` the same cuts lose acknowledged turns or the whole file."""

    def never_sync(database):
        database.connection.execute("PRAGMA synchronous=OFF")

    lost = 0
    for count, left, directory in await cut_everywhere(vfs, tmp_path, seeds=1, prepare=never_sync):
        try:
            lost += len(start_after(left, directory)) < count
        except (AssertionError, StartRefusedError, apsw.Error):
            lost += 1
    assert lost > 10


@pytest.mark.parametrize("failure", Failure)
@pytest.mark.parametrize("operation", Operation)
async def test_a_failing_disk_loses_nothing(tmp_path, operation, failure):
    """When any write or sync fails, once or for a while, a power cut keeps every acknowledged turn and no turn that was
    `Unavailable`, and the next turns work.
    """
    kinds = set()
    for at in range(1, 24) if operation is Operation.SYNC else range(1, 120, 5):
        for times in (1, 3):
            vfs = PowerVfs(f"power-{next(NUMBERS)}")
            directory = tmp_path / f"{at}-{times}"
            directory.mkdir()
            database = Database(directory / "x.db", vfs=vfs.name)
            database.migrate("test", SCHEMA)
            fault = Fault(operation, vfs.counts[operation] + at, failure, times)
            vfs.fault = fault
            acknowledged, unavailable, unknown = [], [], []
            for turn in range(1, TURNS + 1):
                try:
                    write_turn(database, turn)
                    await database.durable()
                    acknowledged.append(turn)
                except Unavailable:
                    unavailable.append(turn)
                except OutcomeUnknown:
                    unknown.append(turn)
                if turn % 5 == 0:
                    try:
                        database.checkpoint()
                        database.restart_log()
                    except Unavailable:
                        kinds.add("checkpoint")
            vfs.fault = None
            write_turn(database, TURNS + 1)
            await database.durable()
            acknowledged.append(TURNS + 1)
            left = vfs.after_power_cut(Random(at))
            database.close()
            vfs.unregister()
            found = set(start_after(left, directory / "after"))
            assert found >= set(acknowledged)
            assert not found & set(unavailable)
            kinds |= {kind for kind, turns in (("unavailable", unavailable), ("unknown", unknown)) if turns}
    assert "unknown" in kinds
    assert "checkpoint" in kinds


async def test_a_commit_that_failed_may_be_found_by_a_restart(vfs, tmp_path):
    """A failed sync is `OutcomeUnknown`, since some restarts find the turn and others do not."""
    (tmp_path / "running").mkdir()
    database = Database(tmp_path / "running" / "x.db", vfs=vfs.name)
    database.migrate("test", SCHEMA)
    write_turn(database, 1)
    await database.durable()
    vfs.fault = Fault(Operation.SYNC, vfs.counts[Operation.SYNC] + 1, Failure.IO_ERROR)
    write_turn(database, 2)
    with pytest.raises(OutcomeUnknown, match="the commit failed"):
        await database.durable()
    assert database.reader.execute("SELECT max(turn) FROM journal").fetchall() == [(1,)]
    running = {path.name: path.read_bytes() for path in (tmp_path / "running").iterdir() if path.suffix != ".db-shm"}
    database.close()
    # After a mere kill the page cache still has the commit that could not be synced to the disk.
    assert start_after({name: data for name, data in running.items() if "shm" not in name}, tmp_path / "cache") == [
        1,
        2,
    ]


def test_a_cut_keeps_all_synced_bytes_and_any_part_of_the_others(vfs, tmp_path):
    """The simulated disk itself: synced bytes always survive, unsynced ones wholly, in part or not at all."""
    path = str(tmp_path / "file")
    file = vfs.xOpen(path, [apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_READWRITE, 0])
    cuts = {vfs.after_power_cut(Random(seed)).get("file") for seed in range(30)}
    assert cuts == {None, b""}
    file.xWrite(b"s" * 1024, 0)
    file.xSync(apsw.SQLITE_SYNC_FULL)
    file.xWrite(b"u" * 1024, 512)
    cuts = {vfs.after_power_cut(Random(seed))["file"] for seed in range(200)}
    assert b"s" * 1024 in cuts
    assert b"s" * 512 + b"u" * 1024 in cuts
    assert b"s" * 1024 + b"u" * 512 in cuts
    assert any(b"us" in cut for cut in cuts)
    assert all(cut.startswith(b"s" * 512) and len(cut) >= 1024 for cut in cuts)
    file.xTruncate(0)
    assert {len(vfs.after_power_cut(Random(seed))["file"]) for seed in range(200)} >= {0, 1024, 1536}
    file.xClose()
    vfs.xDelete(path, syncdir=False)
    assert any("file" in vfs.after_power_cut(Random(seed)) for seed in range(30))
    assert not all("file" in vfs.after_power_cut(Random(seed)) for seed in range(30))
    (tmp_path / "other").touch()
    vfs.xDelete(str(tmp_path / "other"), syncdir=True)
    assert vfs.after_power_cut(Random(0)) == {}
