"""The demonstration core is steered over a socket in its own directory, by the same command as an embedded one."""

import asyncio
import json
import os
import signal
import stat

import httpx
import pytest

from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.trading_core import CoreMode, ReferenceCore
from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.hosts.core.demo_modes import modes_app
from internal_transfer.hosts.core.host import CoreHost, Phase
from internal_transfer.hosts.core.process import CoreOptions, run_core
from internal_transfer.settings.data_directory import DataDirectory
from internal_transfer.simulation.scenarios.server_process import Ran, run_program


@pytest.fixture
def core(tmp_path):
    database = Database(tmp_path / "core.db")
    yield ReferenceCore(database)
    database.close()


@pytest.fixture
async def client(core):
    transport = httpx.ASGITransport(modes_app(core, SystemClock()))
    async with httpx.AsyncClient(transport=transport, base_url="http://core/api/v1/admin/") as client:
        yield client


@pytest.mark.parametrize(
    ("word", "mode"),
    [
        ("pause", "paused"),
        ("refuse", "refuse"),
        ("refuse-credits", "refuse_credits"),
        ("withhold", "withhold"),
        ("resume", "normal"),
    ],
)
async def test_each_word_sets_its_mode(core, client, word, mode):
    """Each word sets its mode, which can be read, and the answer has the shape of the service's own."""
    answer = await client.post(f"core/{word}", json={"reason": "a try"})
    assert answer.json() == {
        "action": f"core_{word}",
        "request_id": None,
        "outcome": "completed",
        "reason": "a try",
        "audit_id": None,
        "subject": "core",
    }
    assert core.mode == mode
    assert (await client.get("core")).json() == {"mode": mode}


@pytest.mark.parametrize(
    ("word", "body", "problem"),
    [
        ("asleep", b"", (404, "path")),
        ("pause", b'{"reason":""}', (400, "reason")),
        ("pause", b'{"reason":1}', (400, "reason")),
        ("pause", b'{"mode":"paused"}', (400, "body")),
        ("pause", b"{", (400, "body")),
        ("pause", b"\xff", (400, "body")),
    ],
)
async def test_what_is_wrong_changes_nothing(core, client, word, body, problem):
    """An unknown word and a body that cannot be read are refused with a problem, and the mode stays."""
    answer = await client.post(f"core/{word}", content=body)
    assert (answer.status_code, answer.json()["details"][0]["field"]) == problem
    assert core.mode is CoreMode.NORMAL


class Waiting:
    """A transport that brings no messages."""

    def __init__(self, host: CoreHost) -> None:
        self.host = host

    async def run(self, stop: asyncio.Event) -> None:
        self.host.phase = Phase.RUNNING
        await stop.wait()

    def state(self):
        return self.host.state()


async def steer_process(folder, *words: str, demo: bool) -> tuple[Ran, CoreMode, int | None]:
    """Runs a core on this directory and a command on it; returns what the command did, the core's mode, and its
    socket's permissions.
    """
    started: asyncio.Future[Waiting] = asyncio.get_running_loop().create_future()
    hosts: list[Waiting] = []

    def connect(host, _):
        hosts.append(Waiting(host))
        return hosts[0]

    options = CoreOptions(folder, connect, demo=demo, on_ready=lambda: started.set_result(hosts[0]))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run_core(options))
        host = (await started).host
        ran = await run_program("admin", "core", *words, "--data", str(folder))
        socket = DataDirectory(folder).admin_socket
        permissions = stat.S_IMODE(socket.stat().st_mode) if socket.exists() else None
        os.kill(os.getpid(), signal.SIGTERM)
    return ran, host.core.mode, permissions


async def test_the_command_reaches_a_core_of_its_own(tmp_path):
    """`admin core` with the core's directory sets the core's mode over a socket that only its owner can open."""
    ran, mode, permissions = await steer_process(tmp_path / "core", "pause", demo=True)
    assert (ran.exit_code, ran.output) == (0, "core_pause core: completed\n"), ran.errors
    assert (mode, permissions) == (CoreMode.PAUSED, 0o600)


async def test_only_a_demonstration_is_steered(tmp_path):
    """A core that was started without --demo has no socket, and the command says that it cannot be reached."""
    ran, mode, permissions = await steer_process(tmp_path / "core", "pause", demo=False)
    assert (ran.exit_code, mode, permissions) == (3, CoreMode.NORMAL, None)
    assert "cannot be reached" in ran.errors


async def test_a_core_that_does_not_run_is_left_alone(tmp_path):
    """On a directory that no process holds, the command does not open the files, since they may be a core's."""
    directory = DataDirectory(tmp_path)
    directory.acquire()
    directory.release()
    ran = await run_program("admin", "core", "pause", "--json", "--data", str(tmp_path))
    assert (ran.exit_code, json.loads(ran.output)["code"]) == (1, "PERMISSION_DENIED")
    assert directory.database.stat().st_size == 0
