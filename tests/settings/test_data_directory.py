import os
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.settings.data_directory import DataDirectory

HOLD = """
    import sys
    from pathlib import Path
    from internal_transfer.settings.data_directory import DataDirectory
    directory = DataDirectory(Path(sys.argv[1]))
    directory.acquire()
    print("held", flush=True)
    sys.stdin.read()
"""
TRY = """
    import os
    import sys
    from pathlib import Path
    from internal_transfer.settings.data_directory import DataDirectory
    from internal_transfer.ports.errors import StartRefusedError
    os.setuid(int(sys.argv[2]))
    directory = DataDirectory(Path(sys.argv[1]))
    for act in (lambda: directory.acquire(), lambda: directory.is_held):
        try:
            act()
        except StartRefusedError as refused:
            print(refused)
        else:
            print("no refusal")
"""


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def other_server(tmp_path):
    """Another process that holds the directory until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path / "data")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.stdin.close()
    process.stdout.close()
    process.wait()


def test_only_the_owner_can_look_inside(tmp_path):
    """Directory, lock and database belong to their owner alone, whatever the umask and even with parents missing."""
    before = os.umask(0)
    try:
        directory = DataDirectory(tmp_path / "new" / "data")
        directory.acquire()
    finally:
        os.umask(before)
    assert mode_of(directory.path) == 0o700
    assert mode_of(directory.path / "lock") == 0o600
    assert mode_of(directory.database) == 0o600
    assert directory.admin_socket.parent == directory.path
    directory.release()


def test_the_names_of_new_directories_are_on_the_disk(tmp_path, monkeypatch):
    """G9: the name of each new directory is synced; existing directories are not synced again."""
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_ino), real(handle)))
    directory = DataDirectory(tmp_path / "new" / "data")
    directory.acquire()
    assert set(synced) == {tmp_path.stat().st_ino, (tmp_path / "new").stat().st_ino}
    directory.release()
    synced.clear()
    directory.acquire()
    assert synced == []
    directory.release()


def test_a_directory_has_one_server(other_server, tmp_path):
    """A second start is refused and names the process that holds the directory."""
    directory = DataDirectory(tmp_path / "data")
    assert directory.is_held
    with pytest.raises(StartRefusedError, match=rf"held by another server \(process {other_server.pid}\); stop it"):
        directory.acquire()
    other_server.kill()
    other_server.wait()
    assert not directory.is_held
    directory.acquire()
    directory.release()


def test_a_lock_is_let_go(tmp_path):
    """After a release the next server gets the directory; releasing twice does no harm."""
    first, second = DataDirectory(tmp_path), DataDirectory(tmp_path)
    assert not first.is_held
    first.acquire()
    with pytest.raises(StartRefusedError):
        second.acquire()
    with pytest.raises(AssertionError, match="held already"):
        first.acquire()
    first.release()
    first.release()
    second.acquire()
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    second.release()


def test_a_file_in_its_place_is_refused(tmp_path):
    """A path that is not a directory is refused with what to do."""
    (tmp_path / "data").touch()
    directory = DataDirectory(tmp_path / "data")
    with pytest.raises(StartRefusedError, match=r"cannot write to the data directory .*give --data a directory"):
        directory.acquire()
    with pytest.raises(StartRefusedError, match="cannot look into the data directory"):
        assert directory.is_held


def test_a_directory_in_the_databases_place_is_refused(tmp_path):
    """A file in it that cannot be opened refuses the start, and the lock is released."""
    directory = DataDirectory(tmp_path)
    directory.database.mkdir()
    with pytest.raises(StartRefusedError, match=r"cannot write in the data directory .*check the owner and mode"):
        directory.acquire()
    directory.database.rmdir()
    directory.acquire()
    directory.release()


@pytest.mark.parametrize(("mode", "refused"), [(0o500, 1), (0o000, 2)])
def test_a_directory_that_may_not_be_written_is_refused(mode, refused):
    """A user who may not write, or not even look inside, is told so; looking into an empty directory does no harm."""
    nobody = 65534 if os.geteuid() == 0 else os.geteuid()
    with tempfile.TemporaryDirectory() as place:
        os.chown(place, nobody, -1)
        Path(place).chmod(mode)
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(TRY), place, str(nobody)],
            capture_output=True,
            text=True,
            check=False,
        )
        Path(place).chmod(0o700)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith(f"cannot write to the data directory {place}: Permission denied; give --data")
    assert [line.startswith("cannot") for line in lines].count(True) == refused
