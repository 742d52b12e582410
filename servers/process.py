"""Operating-system processes: only this module starts, watches and signals them, always within a deadline."""
# ruff: noqa: TID251 - real servers are waited for by the real clock.

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from servers.trouble import FailedError

_POLL_SECONDS = 0.05
_LOG_TAIL_LINES = 30

# This process has to wait for its own children, or they stay as zombies.
_children: dict[int, subprocess.Popen[bytes]] = {}


class Deadline:
    """A bound on a wait.

    Args:
        seconds: how long the wait may last in all.
        awaited: what is waited for, for the error.
        log: the file whose end explains a wait in vain.
    """

    def __init__(self, seconds: float, awaited: str, log: Path | None = None) -> None:
        self._end = time.monotonic() + seconds
        self._seconds = seconds
        self._awaited = awaited
        self._log = log

    def wait(self) -> None:
        """Waits a moment before the next attempt.

        Raises:
            FailedError: the time is over.
        """
        if time.monotonic() > self._end:
            raise FailedError(f"waited {self._seconds:.0f} s in vain for {self._awaited}{tail(self._log)}")
        time.sleep(_POLL_SECONDS)


def unprivileged() -> str | None:
    """The user to run as for a server that refuses root, or None when this process is not root's."""
    return "nobody" if os.getuid() == 0 else None


def give(path: Path) -> None:
    """Gives a file or folder to the unprivileged user, when there is one."""
    user = unprivileged()
    if user is not None:
        entry = pwd.getpwnam(user)
        os.chown(path, entry.pw_uid, entry.pw_gid)


def spawn(command: Sequence[str], *, folder: Path, log: Path, user: str | None) -> int:
    """Starts a process that outlives this one and is recognised later by its working directory, `folder`.

    Returns:
        Its pid.
    """
    uid, gid, groups = _login(user)
    with log.open("wb") as output:
        child = subprocess.Popen(  # noqa: S603 - the commands are written in this package.
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=uid,
            group=gid,
            extra_groups=groups,
        )
    _children[child.pid] = child
    return child.pid


def run(command: Sequence[str], *, seconds: float, user: str | None = None, folder: Path | None = None) -> str:
    """Runs a command to its end and returns what it printed.

    Raises:
        FailedError: it failed, or took longer than `seconds`.
    """
    uid, gid, groups = _login(user)
    try:
        done = subprocess.run(  # noqa: S603 - the commands are written in this package.
            command,
            cwd=folder,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            user=uid,
            group=gid,
            extra_groups=groups,
        )
    except subprocess.TimeoutExpired as error:
        raise FailedError(f"{command[0]} took longer than {seconds:.0f} s") from error
    if done.returncode != 0:
        raise FailedError(f"{command[0]} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def _login(user: str | None) -> tuple[int | None, int | None, list[int] | None]:
    """The user, group and further groups to run as; None leaves each as it is."""
    if user is None:
        return None, None, None
    entry = pwd.getpwnam(user)
    return entry.pw_uid, entry.pw_gid, []


def is_alive(pid: int, folder: Path) -> bool:
    """Whether the process runs and is the one that was started in `folder`; its pid may have been reused."""
    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        return False
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(folder)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def send(pid: int, folder: Path, number: signal.Signals) -> None:
    """Signals the process alone, if it is still the one that was started in `folder`."""
    if is_alive(pid, folder):
        os.kill(pid, number)


def send_all(pid: int, folder: Path, number: signal.Signals) -> None:
    """Signals the process and its descendants; a backend of PostgreSQL can outlive its parent for a while."""
    if not is_alive(pid, folder):
        return
    parent = psutil.Process(pid)
    for process in (parent, *parent.children(recursive=True)):
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def wait_for_end(pid: int, folder: Path, deadline: Deadline) -> None:
    """Waits until the process is gone, and takes it off the process table when it is a child of this one."""
    while is_alive(pid, folder):
        deadline.wait()
    child = _children.pop(pid, None)
    if child is not None:
        child.wait()


def wait_for_standstill(pid: int, folder: Path, deadline: Deadline) -> None:
    """Waits until the process and all that it started were stopped by a signal."""
    while is_alive(pid, folder):
        parent = psutil.Process(pid)
        if all(each.status() == psutil.STATUS_STOPPED for each in (parent, *parent.children(recursive=True))):
            return
        deadline.wait()


def wait_until_ready(pid: int, folder: Path, deadline: Deadline, log: Path, ready: Callable[[], bool]) -> None:
    """Waits until `ready()`.

    Raises:
        FailedError: the process ended before, or the deadline passed.
    """
    while not ready():
        if not is_alive(pid, folder):
            raise FailedError(f"the server ended while it started{tail(log)}")
        deadline.wait()


def tail(log: Path | None) -> str:
    """Returns the end of a log, to be put at the end of an error message."""
    if log is None or not log.exists():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL_LINES:]
    return "\n".join((f"; the end of {log}:", *lines))
