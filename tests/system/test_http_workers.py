"""The processes that speak HTTP for the service, under signals, deaths, changed files and odd requests."""

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

import httpx
import pytest

from internal_transfer.domain.refusal import Code
from internal_transfer.simulation.failpoints import Failpoint
from internal_transfer.simulation.scenarios.catalogue import Knobs, new_server
from internal_transfer.simulation.scenarios.expectation import DEADLINE_SECONDS, expect_problem, until
from internal_transfer.simulation.scenarios.server_process import ServerProcess
from internal_transfer.simulation.scenarios.user import transfer_body

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux: /proc names the children")


@pytest.fixture
async def twins(place):
    """A server with two workers, which was not started yet."""
    async with new_server(place, Knobs(http_workers=2)) as process:
        yield process


def _workers(server):
    """The ids of the server's child processes."""
    try:
        return [int(pid) for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _is_alive(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def _entries(server):
    """Returns the log; every line has to be a JSON object."""
    return [json.loads(line) for line in server.log.read_text().splitlines()]


async def _logged(server, event):
    """The first entry of this event, once it is there."""

    async def found():
        return next((entry for entry in _entries(server) if entry["event"] == event), None)

    return await until(f"{event} is logged", found)


async def _health(server, path):
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.admin_port}", trust_env=False) as health:
        return await health.get(path)


async def _until_ready(server, status):
    async def answered():
        return True if (await _health(server, "/readyz")).status_code == status else None

    await until(f"the server's readiness is {status}", answered)


async def test_a_worker_is_told_to_end(server):
    """SIGTERM has a worker answer who waits, tell its last counts and end, and another takes its place."""
    await server.start()
    user = await server.fund("waiting", "100")
    await server.steer_core("withhold")
    [worker] = _workers(server)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(user.move("funding", "spot", "10", key="slow", wait_seconds=2))

        async def accepted():
            return True if await user.is_recorded("slow") else None

        await until("the transfer is accepted", accepted)
        os.kill(worker, signal.SIGTERM)
    assert waiting.result().status_code == 202
    assert (await _logged(server, "http_worker_ended"))["code"] == 0
    # The look-up that found the transfer, answered by the service, and the submission, counted by the worker.
    assert (
        'requests_total{code="",outcome="answered",route="transfers"} 2.0' in (await _health(server, "/metrics")).text
    )
    assert (await user.get("/history")).status_code == 200
    assert worker not in _workers(server)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_to_every_process(twins, number):
    """A signal that reaches all processes at once, as a terminal's does, ends them cleanly: who waits is answered."""
    await twins.start()
    user = await twins.fund("waiting", "100")
    await twins.steer_core("withhold")
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(user.move("funding", "spot", "10", key="slow", wait_seconds=2))

        async def accepted():
            return True if await user.is_recorded("slow") else None

        await until("the transfer is accepted", accepted)
        workers = _workers(twins)
        assert len(workers) == 2
        for pid in (*workers, twins.pid):
            os.kill(pid, number)
    assert waiting.result().status_code == 202
    assert await twins.end() == 0, twins.log_end()
    events = [entry["event"] for entry in _entries(twins)]
    assert events[-1] == "stopped"
    assert "http_worker_killed" not in events


async def test_one_of_two_dies(twins):
    """While one of two workers is replaced the other answers, and the service stays ready."""
    await twins.start()
    user = await twins.fund("loader", "100")
    first, second = _workers(twins)
    os.kill(first, signal.SIGKILL)
    for number in range(20):
        async with httpx.AsyncClient(base_url=twins.address, trust_env=False, timeout=DEADLINE_SECONDS) as fresh:
            headers = user.headers | {"idempotency-key": f"k{number}", "prefer": "wait=15"}
            moved = await fresh.post(
                "/api/v1/user/internal_transfer", json=transfer_body("funding", "spot", "1"), headers=headers
            )
            assert moved.status_code == 201
        assert (await _health(twins, "/readyz")).status_code == 200
    assert (await _logged(twins, "http_worker_ended"))["code"] == -signal.SIGKILL
    assert second in _workers(twins)
    await user.expect_balances(funding="80", spot="20")


async def test_a_replacement_is_what_it_replaces(server):
    """A worker started later has the settings and keys of the start, whatever became of the files since."""
    await server.start()
    user = await server.fund("steady", "100")
    settings, key = server.config.read_text(), (server.data / "demo-issuer.json").read_bytes()
    server.config.write_text("[nonsense")
    (server.data / "demo-issuer.json").write_text("{}")
    [worker] = _workers(server)
    os.kill(worker, signal.SIGKILL)
    await _until_ready(server, 503)
    # It is not refused: it waits at the socket until somebody takes it.
    async with httpx.AsyncClient(base_url=server.address, trust_env=False, timeout=DEADLINE_SECONDS) as fresh:
        moved = await fresh.post(
            "/api/v1/user/internal_transfer",
            json=transfer_body("funding", "spot", "1"),
            headers=user.headers | {"idempotency-key": "later", "prefer": "wait=15"},
        )
    assert moved.status_code == 201
    await _until_ready(server, 200)
    server.config.write_text(settings)
    (server.data / "demo-issuer.json").write_bytes(key)
    assert await server.stop() == 0, server.log_end()


async def test_a_worker_that_cannot_start(server):
    """A worker that dies before it takes connections refuses the start, and the message says what to do."""

    async def kill():
        async def shot():
            for worker in _workers(server):
                os.kill(worker, signal.SIGKILL)
                return True
            return None

        async def launched():
            return server.is_running or None

        await until("the server runs", launched)
        await until("a worker is there", shot)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(kill())
        ready = tasks.create_task(server.launch())
    assert not ready.result()
    assert await server.end() == 1
    said = server.log.read_text()
    assert "HTTP worker 1 ended with -9 before it was ready" in said
    assert "set server.http_workers = 0" in said
    assert "Traceback" not in said


async def test_a_worker_that_is_told_nonsense():
    """A worker that fails logs one JSON object that says who it was, and ends with 1."""
    listener, (ours, theirs) = socket.socket(), socket.socketpair()
    with listener, ours, theirs:
        numbers = (listener.fileno(), theirs.fileno())
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "internal_transfer.server.http_workers"),
            *map(str, (os.getpid(), *numbers)),
            pass_fds=numbers,
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(DEADLINE_SECONDS):
            _, errors = await process.communicate(b"{}")
    assert process.returncode == 1
    [entry] = [json.loads(line) for line in errors.splitlines()]
    assert (entry["event"], entry["process"], entry["pid"]) == ("http_worker_failed", "http_worker", process.pid)


async def test_the_same_port_at_once(place):
    """A server that was killed is started again on its port at once, and its clients find what they asked."""
    server = new_server(place)
    await server.start()
    port = server.address.rpartition(":")[2]
    assert await server.stop() == 0
    options = ("--demo", "--port", port)
    async with ServerProcess(server.data, server.config, options=options) as again:
        await again.start()
        user = await again.fund("faithful", "100")
        for number in range(3):
            moved = await user.move("funding", "spot", "1", key=f"k{number}")
            assert moved.status_code == 201
            await again.kill()
            await again.start()
            assert again.address.endswith(f":{port}")
            retried = await user.move("funding", "spot", "1", key=f"k{number}")
            assert (retried.status_code, retried.json()["request_id"]) == (200, moved.json()["request_id"])
        assert await again.stop() == 0


async def test_paths_that_are_relative_and_spaced(place, monkeypatch):
    """Data and settings may be named relative to the working directory, with spaces, and nothing there is imported."""
    monkeypatch.chdir(place)
    (place / "msgspec.py").write_text("raise SystemExit('imported from the working directory')\n")
    (place / "my settings.toml").write_text(Knobs().settings())
    program = (sys.executable, "-P", "-m", "internal_transfer.cli")
    monkeypatch.setattr("internal_transfer.simulation.scenarios.server_process.PROGRAM", program)
    async with ServerProcess(Path("my data"), Path("my settings.toml")) as server:
        await server.start()
        user = await server.fund("spaced", "100")
        assert (await user.move("funding", "spot", "1", key="one")).status_code == 201
        assert await server.stop() == 0, server.log_end()


async def _talk(server, *parts):
    """The heads of the answers on one connection, each part being sent after the one before; then all that is left."""
    host, _, port = server.address.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(DEADLINE_SECONDS):
        heads = []
        for part in parts:
            writer.write(part)
            heads.append(await reader.readuntil(b"\r\n\r\n"))
        rest = await reader.read()
    writer.close()
    await writer.wait_closed()
    return *heads, rest


async def test_requests_that_cross_whole(server):
    """HEAD, OPTIONS and a body on demand are answered through a worker, one after another on one connection."""
    await server.start()
    user = await server.fund("crossing", "100")
    named = f"Host: here\r\nAuthorization: Bearer {user.token}\r\n".encode()
    path = b" /api/v1/user/internal_transfer"
    body = json.dumps(transfer_body("funding", "spot", "1")).encode()
    declared = b"Content-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    head, options, go_on, preview, rest = await _talk(
        server,
        b"HEAD" + path + b"/history HTTP/1.1\r\n" + named + b"\r\n",
        b"OPTIONS" + path + b"/history HTTP/1.1\r\n" + named + b"\r\n",
        b"POST" + path + b"/preview HTTP/1.1\r\nConnection: close\r\n" + named + declared % len(body),
        body,
    )
    assert head.startswith(b"HTTP/1.1 200 ")
    assert options.startswith(b"HTTP/1.1 204 ")
    assert go_on == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert preview.startswith(b"HTTP/1.1 200 ")
    assert json.loads(rest)["allowed"] is True


@pytest.mark.parametrize("path", [b"", b"/preview"])
async def test_bodies_that_are_too_large(server, path):
    """A body of more than 16 KiB is 413 on every path, whether it says so or not; one that says so is not asked for."""
    await server.start()
    user = await server.fund("wordy", "100")
    start = b"POST /api/v1/user/internal_transfer" + path + b" HTTP/1.1\r\nHost: here\r\nIdempotency-Key: k\r\n"
    start += f"Authorization: Bearer {user.token}\r\nContent-Type: application/json\r\n".encode()
    chunked = b"Transfer-Encoding: chunked\r\n\r\n4001\r\n" + b" " * 0x4001 + b"\r\n0\r\n\r\n"
    exactly = b"Content-Length: 16385\r\n\r\n" + b" " * 16_385
    far_more = b"Expect: 100-continue\r\nContent-Length: 1048577\r\n\r\n"
    for rest in (chunked, exactly, far_more):
        head, body = await _talk(server, start + rest)
        assert head.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in head
        assert json.loads(body)["code"] == "INVALID_REQUEST"


async def test_a_killed_worker_is_replaced(server):
    """A worker that is killed is replaced, and what its clients ask again under their keys is one transfer each."""
    await server.start()
    user = await server.fund("loader", "1000")
    [worker] = _workers(server)
    answers = asyncio.gather(
        *(user.move("funding", "spot", "1", key=f"load-{number}") for number in range(50)), return_exceptions=True
    )
    os.kill(worker, signal.SIGKILL)
    assert all(isinstance(answer, httpx.Response | httpx.TransportError) for answer in await answers)

    async def replaced():
        return True if [pid for pid in _workers(server) if pid != worker and _is_alive(pid)] else None

    await until("the worker is replaced", replaced)
    for number in range(50):
        retried = await user.move("funding", "spot", "1", key=f"load-{number}")
        assert retried.status_code in {200, 201}
    await user.expect_balances(funding="950", spot="50")
    await server.expect_clean()


async def test_workers_end_with_a_killed_service(server):
    """When the service is killed its workers end by themselves, and nobody listens at its port any more."""
    await server.start()
    address = server.address
    [worker] = _workers(server)
    await server.kill()

    async def ended():
        return None if _is_alive(worker) else True

    await until("the worker ends", ended)
    async with httpx.AsyncClient(base_url=address, trust_env=False) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("/")


async def test_a_service_that_dies_leaves_no_false_answer(server):
    """A worker whose service died after the post says that the outcome is unknown, or nothing; never that it failed."""
    await server.start(failpoint=Failpoint.AFTER_POST)
    user = await server.fund("unsure", "100")
    try:
        response = await user.move("funding", "spot", "10", key="posted")
    except httpx.TransportError:
        pass
    else:
        assert expect_problem(response, 503, Code.TIMEOUT)["recorded"] is None
    await server.died()
    await server.start()
    assert (await user.move("funding", "spot", "10", key="posted")).status_code == 200
    await user.expect_balances(funding="90", spot="10")
    await server.expect_clean()
