"""A disk that can lose power: data that SQLite has not synced may be dropped, torn or kept.

`kill -9` keeps the page cache, so it shows nothing about syncs. This VFS passes everything on to real files, so that
the running database behaves as usual, and also remembers for each file what a disk would certainly still have. It can
tell at any moment what a power cut would leave, and can make the n-th write or sync fail.

It assumes what SQLite assumes by default on Unix (`SQLITE_IOCAP_POWERSAFE_OVERWRITE`): a sector that was being written
may have old, new or mixed bytes in the range written, and bytes outside that range do not change. As on Linux, a failed
sync loses for good whatever had not reached the disk yet: the next sync does not try again.
"""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import Any

import apsw
from msgspec import Struct

SECTOR_BYTES = 512


class Failure(StrEnum):
    """How a disk operation fails."""

    FULL = "full"
    IO_ERROR = "io_error"


class Operation(StrEnum):
    """A kind of disk operation."""

    WRITE = "write"
    SYNC = "sync"


class Fault(Struct, frozen=True):
    """The disk fails `times` times, from the operation of this kind with the number `at` (counted from 1)."""

    operation: Operation
    at: int
    failure: Failure
    times: int = 1


class _Write(Struct, frozen=True):
    offset: int
    data: bytes


class _Truncate(Struct, frozen=True):
    size: int


class _Create(Struct, frozen=True):
    """The file's name appears in its directory."""


class _Delete(Struct, frozen=True):
    """The file's name disappears from its directory."""


_Change = _Write | _Truncate | _Create | _Delete


class _File:
    """A file as the disk certainly has it (None: no such name), and the changes to it since."""

    def __init__(self, content: bytes | None) -> None:
        self.content = content
        self.unsynced: list[_Change] = []

    def settle(self) -> None:
        """Puts all changes on the disk."""
        self.content = _after(self.content, self.unsynced)
        self.unsynced.clear()

    def settle_names(self) -> None:
        """Puts created and deleted names on the disk, but no contents, as a sync of the directory does."""
        kept: list[_Change] = []
        for change in self.unsynced:
            match change:
                case _Create():
                    self.content = self.content or b""
                case _Delete():
                    self.content = None
                    kept.clear()
                case _:
                    kept.append(change)
        self.unsynced = kept

    def after_power_cut(self, random: Random) -> bytes | None:
        """Returns what a power cut leaves: of each unsynced change all, nothing, or a torn part."""
        share = random.choice((0.0, 0.5, 0.9, 1.0))
        survivors: list[_Change] = []
        for change in self.unsynced:
            if isinstance(change, _Write):
                survivors += _torn(change, share, random)
            elif random.random() < share:
                survivors.append(change)
        return _after(self.content, survivors)


def _torn(write: _Write, share: float, random: Random) -> list[_Write]:
    """Returns the sectors of a write that reached the disk, each perhaps only in part."""
    survivors = []
    start = write.offset
    end = start + len(write.data)
    while start < end:
        stop = min(end, (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
        sector = write.data[start - write.offset : stop - write.offset]
        fate = random.random()
        if fate < share * 0.95 or share == 1.0:
            survivors.append(_Write(start, sector))
        elif fate < share:
            survivors.append(_Write(start, sector[: random.randrange(len(sector))]))
        start = stop
    return survivors


def _after(content: bytes | None, changes: list[_Change]) -> bytes | None:
    image = None if content is None else bytearray(content)
    for change in changes:
        match change:
            case _Create():
                image = bytearray() if image is None else image
            case _Delete():
                image = None
            case _Truncate(size):
                if image is not None:
                    del image[size:]
            case _Write(offset, data):
                # Data in a file whose name never reached the disk cannot be found again.
                if image is not None:
                    image.extend(bytes(max(0, offset - len(image))))
                    image[offset : offset + len(data)] = data
    return None if image is None else bytes(image)


class PowerVfs(apsw.VFS):
    """A VFS for `Database(path, vfs=name)`; call `unregister()` when done.

    `before_operation` is called before each write, truncation, sync and deletion, the moments at which a power cut
    makes a difference. `counts` has the number of writes and syncs.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, "")
        self.name = name
        self.before_operation: Callable[[], None] = lambda: None
        self.fault: Fault | None = None
        self.counts = {Operation.WRITE: 0, Operation.SYNC: 0}
        self._files: dict[str, _File] = {}

    def after_power_cut(self, random: Random) -> dict[str, bytes]:
        """Returns what a power cut would leave now, by file name, without shared memory."""
        left = {Path(path).name: file.after_power_cut(random) for path, file in self._files.items()}
        return {name: content for name, content in left.items() if content is not None}

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - SQLite's name.
        """Opens a file and records its changes from now on, unless it is a temporary file."""
        if name is None:
            return apsw.VFSFile("", name, flags)
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        existed = Path(path).exists()
        file = self._files.get(path)
        if file is None:
            file = _File(Path(path).read_bytes() if existed else None)
        opened = _PowerFile(self, file, name, flags)
        self._files[path] = file
        if not existed:
            file.unsynced.append(_Create())
        return opened

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: FBT001, N802 - SQLite's signature.
        """Deletes a file; its name may come back after a power cut unless the directory is synced."""
        self.before_operation()
        super().xDelete(filename, syncdir)
        self._files.setdefault(filename, _File(None)).unsynced.append(_Delete())
        if syncdir:
            self.settle_names()

    def settle_names(self) -> None:
        """Puts names on the disk: the directory was synced, which a new file's first sync does too."""
        for file in self._files.values():
            file.settle_names()

    def pass_or_fail(self, operation: Operation) -> Exception | None:
        """Counts an operation, and returns the error with which it must fail, or None."""
        self.before_operation()
        self.counts[operation] += 1
        fault = self.fault
        if fault is None or fault.operation is not operation:
            return None
        if not fault.at <= self.counts[operation] < fault.at + fault.times:
            return None
        if fault.failure is Failure.FULL:
            return apsw.exception_for(apsw.SQLITE_FULL)
        code = apsw.SQLITE_IOERR_WRITE if operation is Operation.WRITE else apsw.SQLITE_IOERR_FSYNC
        return apsw.exception_for(code)


class _PowerFile(apsw.VFSFile):
    """A real file whose changes are recorded."""

    def __init__(self, vfs: PowerVfs, file: _File, name: str | apsw.URIFilename, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self._vfs = vfs
        self._file = file

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802 - SQLite's name.
        """Writes the data, or half of it before it fails."""
        error = self._vfs.pass_or_fail(Operation.WRITE)
        written = bytes(data) if error is None else bytes(data)[: len(bytes(data)) // 2]
        super().xWrite(written, offset)
        self._file.unsynced.append(_Write(offset, written))
        if error is not None:
            raise error

    def xTruncate(self, newsize: int) -> None:  # noqa: N802 - SQLite's name.
        """Truncates the file."""
        self._vfs.before_operation()
        super().xTruncate(newsize)
        self._file.unsynced.append(_Truncate(newsize))

    def xSync(self, _flags: int) -> None:  # noqa: N802 - SQLite's name.
        """Puts this file on the disk, or fails and loses whatever had not reached the disk yet."""
        error = self._vfs.pass_or_fail(Operation.SYNC)
        if error is not None:
            self._file.content = self._file.after_power_cut(Random(self._vfs.counts[Operation.SYNC]))  # noqa: S311
            self._file.unsynced.clear()
            raise error
        # The real file needs no sync: only the simulated disk matters.
        self._file.settle()
        self._vfs.settle_names()
