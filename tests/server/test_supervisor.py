import asyncio
import os
import signal
from asyncio.subprocess import PIPE

import pytest
from structlog.testing import capture_logs

from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.server import supervisor
from internal_transfer.server.supervisor import ServiceFailedError, Supervisor, reason_of

WELL_BEHAVED = "echo ready; read line"
DEAF = "trap '' TERM; echo ready; while :; do read line; done"


class Shell:
    """One run of a shell script, which says when it is ready; the line that it reads asks it to stop."""

    def __init__(self, script, ready):
        self._script = script
        self._ready = ready
        self.process = None

    async def start(self):
        self.process = await asyncio.create_subprocess_exec("sh", "-c", self._script, stdin=PIPE, stdout=PIPE)
        return self.process

    async def attend(self, process):
        while line := await process.stdout.readline():
            assert line == b"ready\n"
            self._ready()

    def ask_to_stop(self, process):
        process.stdin.write(b"\n")


class Kept:
    """Children of a supervisor; each number runs the next of its scripts, and the last one again and again."""

    def __init__(self, *scripts, child=Shell, stop_seconds=20.0):
        self.runs = []
        self._scripts = list(scripts)
        self._child = child
        self.supervisor = Supervisor("HTTP worker", self._launch, count=1, stop_seconds=stop_seconds)

    def _launch(self, number, ready):
        assert number == 0
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        self.runs.append(self._child(script, ready))
        return self.runs[-1]

    async def until_runs(self, number):
        """Returns when this many runs have begun and the last one is ready."""
        async with asyncio.timeout(20):
            while len(self.runs) < number or not self.supervisor.is_any_ready:  # noqa: ASYNC110 - it need not tell.
                await asyncio.sleep(0.001)


@pytest.fixture
def at_once(monkeypatch):
    """Without pauses, and without patience."""
    monkeypatch.setattr(supervisor, "AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(supervisor, "END_SECONDS", 0.05)


async def test_a_child_is_kept_running(monkeypatch):
    """A child that dies after it was steady is replaced without a pause; asked to stop, it ends and is not replaced."""
    monkeypatch.setattr(supervisor, "AGAIN_SECONDS", 3600.0)
    monkeypatch.setattr(supervisor, "STEADY_SECONDS", 0.0)
    kept = Kept(WELL_BEHAVED)
    with capture_logs() as logs:
        async with asyncio.TaskGroup() as tasks:
            kept.supervisor.start(tasks)
            await kept.supervisor.ready()
            assert kept.supervisor.is_any_ready
            kept.runs[0].process.kill()
            await kept.until_runs(2)
            kept.supervisor.stop()
    assert not kept.supervisor.is_any_ready
    assert [run.process.returncode for run in kept.runs] == [-signal.SIGKILL, 0]
    assert logs == [{"event": "http_worker_ended", "log_level": "error", "process": 1, "code": -signal.SIGKILL}]


async def test_a_child_that_dies_of_its_start(monkeypatch):
    """A child that is ready and dies each time is replaced after a pause, and does not keep a processor busy."""
    monkeypatch.setattr(supervisor, "AGAIN_SECONDS", 3600.0)
    kept = Kept("echo ready; exit 3")
    async with asyncio.TaskGroup() as tasks:
        kept.supervisor.start(tasks)
        await kept.supervisor.ready()
        await kept.runs[0].process.wait()
        while kept.supervisor.is_any_ready:  # noqa: ASYNC110 - it need not tell.
            await asyncio.sleep(0.001)
        kept.supervisor.stop()
    assert len(kept.runs) == 1


async def test_a_child_that_ends_before_it_is_ready():
    """It refuses the start, with its exit code and what to do."""
    kept = Kept("exit 7")
    with pytest.RaisesGroup(pytest.RaisesExc(StartRefusedError, match="HTTP worker 1 ended with 7 .* ready; see the")):
        async with asyncio.TaskGroup() as tasks:
            kept.supervisor.start(tasks)


@pytest.mark.usefixtures("at_once")
async def test_a_later_child_that_does_not_become_ready():
    """Once a child was ready, later ones are tried until one is; so they are after a SIGTERM from outside."""
    kept = Kept("kill -TERM $$", "echo ready", "exit 7", "exit 7", WELL_BEHAVED)
    with capture_logs() as logs:
        async with asyncio.TaskGroup() as tasks:
            kept.supervisor.start(tasks)
            await kept.until_runs(5)
            kept.supervisor.stop()
    assert [entry["code"] for entry in logs] == [-signal.SIGTERM, 0, 7, 7]


async def test_a_child_that_is_not_ready_in_time(monkeypatch):
    """The start is refused, and the child is killed with everything else that ends."""
    monkeypatch.setattr(supervisor, "START_SECONDS", 0.2)
    kept = Kept("read line")
    with pytest.RaisesGroup(pytest.RaisesExc(StartRefusedError, match=r"HTTP worker 1 was not ready in 0\.2 s")):
        async with asyncio.TaskGroup() as tasks:
            kept.supervisor.start(tasks)
            await kept.supervisor.ready()
    assert kept.runs[0].process.returncode == -signal.SIGKILL


async def test_a_child_that_does_not_stop():
    """It is killed when its time is over."""
    kept = Kept(DEAF, stop_seconds=0.1)
    with capture_logs() as logs:
        async with asyncio.TaskGroup() as tasks:
            kept.supervisor.start(tasks)
            await kept.supervisor.ready()
            kept.supervisor.stop()
    assert [(entry["event"], entry["pid"]) for entry in logs] == [("http_worker_killed", kept.runs[0].process.pid)]


@pytest.mark.usefixtures("at_once")
async def test_a_child_that_hangs_up():
    """A child that closed its connection and goes on is killed and replaced."""
    kept = Kept("echo ready; exec >&-; read line", WELL_BEHAVED)
    with capture_logs() as logs:
        async with asyncio.TaskGroup() as tasks:
            kept.supervisor.start(tasks)
            await kept.until_runs(2)
            kept.supervisor.stop()
    assert [entry["event"] for entry in logs] == ["http_worker_killed", "http_worker_ended"]


async def test_a_child_that_cannot_be_started():
    """The system's error is logged, and refuses the start as a child that ended with it."""

    class Nowhere(Shell):
        async def start(self):
            return await asyncio.create_subprocess_exec("/nowhere/at/all")

    kept = Kept("", child=Nowhere)
    with capture_logs() as logs, pytest.RaisesGroup(pytest.RaisesExc(StartRefusedError, match="ended with 2 ")):
        async with asyncio.TaskGroup() as tasks:
            kept.supervisor.start(tasks)
    assert [entry["event"] for entry in logs] == ["http_worker_not_started"]


async def test_children_end_with_the_service_that_fails():
    """When another part of the service fails, no child is left behind."""
    kept = Kept(DEAF)
    with pytest.RaisesGroup(ZeroDivisionError):
        async with asyncio.TaskGroup() as tasks:
            kept.supervisor.start(tasks)
            await kept.supervisor.ready()
            raise ZeroDivisionError
    assert kept.runs[0].process.returncode == -signal.SIGKILL


async def test_a_child_that_ends_as_it_is_asked_to():
    """A child that no longer exists when it is asked to stop has stopped."""

    class Gone(Shell):
        def ask_to_stop(self, process):
            process.kill()
            raise ProcessLookupError

    kept = Kept(WELL_BEHAVED, child=Gone)
    async with asyncio.TaskGroup() as tasks:
        kept.supervisor.start(tasks)
        await kept.supervisor.ready()
        kept.supervisor.stop()
    assert kept.runs[0].process.returncode == -signal.SIGKILL


async def test_told_to_stop():
    """SIGTERM sets the event, and does nothing else."""
    stop = supervisor.told_to_stop()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(stop.wait(), 20)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(number)


def test_a_refused_start_among_other_failures():
    """Where a start is refused, that is what is said, however deep it lies and whatever else failed with it."""
    refused = StartRefusedError("this is why")
    group = ExceptionGroup("", [ValueError("1"), ExceptionGroup("", [ExceptionGroup("", [refused])])])
    assert reason_of(group) is refused


def test_parts_that_fail():
    """Each part that failed gets one entry in the log, and the one that was first is named to the operator."""
    group = ExceptionGroup("", [ExceptionGroup("", [ValueError("disk")]), KeyError("x")])
    with capture_logs() as logs:
        reason = reason_of(group)
    assert isinstance(reason, ServiceFailedError)
    assert "ValueError('disk')" in str(reason)
    assert [(entry["event"], entry["error"]) for entry in logs] == [
        ("service_failed", "ValueError('disk')"),
        ("service_failed", "KeyError('x')"),
    ]
