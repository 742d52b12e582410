import asyncio
import contextlib
import json
import socket
from contextlib import asynccontextmanager
from functools import wraps

import pytest

from api.scripted import StillClock
from internal_transfer.server.http import Bounds, HttpServer, run_on_uvloop
from internal_transfer.server.sockets import listen

GET = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"


def on_uvloop(test):
    """Runs the test on the loop that the server is made for."""

    @wraps(test)
    def run(*arguments, **named):
        run_on_uvloop(test(*arguments, **named))

    return run


class App:
    """Answers the body it was sent, or waits until it is let go."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.disconnects = 0

    async def __call__(self, scope, receive, send):
        """One request."""
        self.entered.set()
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnects += 1
                return
            body += message["body"]
            if not message["more_body"]:
                break
        await self.gate.wait()
        answer = scope["path"].encode() + b" " + body
        headers = [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


@asynccontextmanager
async def serving(app, **bounds):
    server = HttpServer(app, listen("127.0.0.1", 0), clock=StillClock(), bounds=Bounds(**bounds))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.run_until_stopped())
        try:
            yield server
        finally:
            server.stop()


async def talk(server, *parts: bytes) -> bytes:
    """Sends the parts and reads until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for part in parts:
        writer.write(part)
        await writer.drain()
    answer = await reader.read()
    writer.close()
    return answer


def split(answer: bytes) -> tuple[int, dict, bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.split(": ", 1) for line in lines), body


def problem_in(answer: bytes, status: int) -> dict:
    got, headers, body = split(answer)
    assert (got, headers["content-type"], headers["connection"]) == (status, "application/problem+json", "close")
    assert int(headers["content-length"]) == len(body)
    return json.loads(body)


@on_uvloop
async def test_ordinary_requests():
    """Requests are answered on one connection, one after another and sent ahead."""
    async with serving(App()) as server:
        post = b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi"
        answer = await talk(server, GET + GET, post)
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.endswith(b"/b hi")


@pytest.mark.parametrize(
    "parts",
    [
        (b"G",),
        (b"GET /a HTTP/1.1\r\nhost: x\r\n", b"x-slow: 1\r\n"),
        (b"\r\n", b"\r\n"),
        (GET, b"GET /a HTTP/1.1\r\nho"),
    ],
)
@on_uvloop
async def test_slow_headers(parts):
    """Headers that never end are cut off with a problem, also after an earlier request on the connection."""
    app = App()
    async with serving(app, request_seconds=0.3) as server:
        answer = await talk(server, *parts)
    if parts[0] == GET:
        first, answer = answer.split(b"/a ", 1)
        assert split(first + b"/a ")[0] == 200
    shown = problem_in(answer, 408)
    assert (shown["code"], shown["recorded"], shown["retry"]) == ("INVALID_REQUEST", False, "same_key")


@pytest.mark.parametrize(
    "head", [b"content-length: 10\r\n\r\nhalf", b"transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"]
)
@on_uvloop
async def test_slow_body(head):
    """A body that never ends is cut off with a problem, and the application learns that its client has gone."""
    app = App()
    async with serving(app, request_seconds=0.3) as server:
        problem_in(await talk(server, b"POST /a HTTP/1.1\r\nhost: x\r\n" + head), 408)
    assert app.disconnects == 1


@on_uvloop
async def test_trickle():
    """Sending something now and then does not move the deadline, and the refusal can be read to its end."""
    loop = asyncio.get_running_loop()
    async with serving(App(), request_seconds=0.3) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.setblocking(False)  # noqa: FBT003 - the standard library takes it by position only.
            await loop.sock_sendall(client, b"GET /a HTTP/1.1\r\n")
            reading = asyncio.ensure_future(_read_past_a_reset(client))
            while not reading.done():
                with contextlib.suppress(ConnectionError):
                    await loop.sock_sendall(client, b"x: 1\r\n")
                await asyncio.wait([reading], timeout=0.01)
            problem_in(reading.result(), 408)


async def _read_past_a_reset(client):
    """Returns all that was answered.

    The server closes while the client still sends, so a reset follows the answer. A stream would raise it in place of
    the bytes that have arrived; the socket returns them first.
    """
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := await asyncio.get_running_loop().sock_recv(client, 65_536):
            parts.append(part)
    return b"".join(parts)


@on_uvloop
async def test_silent_connection():
    """A connection that never asks for anything is closed without a word."""
    async with serving(App(), request_seconds=0.3) as server:
        assert await talk(server) == b""


@on_uvloop
async def test_long_answers_are_not_slow_requests():
    """The deadline is for the request: an answer may take longer, also with the next request half sent."""
    app = App()
    app.gate.clear()
    async with serving(app, request_seconds=0.1) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(GET + GET + b"GET /a HT")
        await app.entered.wait()
        # The deadline passes three times before that, in the same loop.
        asyncio.get_running_loop().call_later(0.35, app.gate.set)
        for _ in range(2):
            assert (await reader.readuntil(b"/a ")).startswith(b"HTTP/1.1 200 OK")
        problem_in(await reader.read(), 408)
        writer.close()


@pytest.mark.parametrize("ends", [b"", b"\r\n\r\n"])
@on_uvloop
async def test_large_head(ends):
    """A head over the bound is refused, whether it ends or not; a body of the same size is not meant."""
    app = App()
    async with serving(app, head_bytes_most=2048) as server:
        head = b"GET /a HTTP/1.1\r\nhost: x\r\nx-much: " + b"m" * 3000 + ends
        problem_in(await talk(server, head), 431)
        assert not app.entered.is_set()
        body = b"b" * 3000
        post = b"POST /b HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 3000\r\n\r\n" + body
        assert split(await talk(server, post))[2] == b"/b " + body


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00",
        b"GET /a\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
        b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /a HTTP/1.1\r\nhost : x\r\n\r\n",
        b"GET /a HTTP/1.1\r\nx: a\r\n b\r\n\x00: c\r\n\r\n",
    ],
)
@on_uvloop
async def test_not_http(raw):
    """What is not well-formed HTTP, or may mean two things, is refused with a problem."""
    async with serving(App()) as server:
        problem_in(await talk(server, raw), 400)


@on_uvloop
async def test_garbage_does_not_take_the_answer_away():
    """A whole request is answered although garbage follows it, and then the connection closes."""
    app = App()
    app.gate.clear()
    async with serving(app) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(GET)
        await app.entered.wait()
        writer.write(b"\x00\x01 garbage\r\n\r\n")
        await writer.drain()
        assert split(await talk(server, b"nonsense\r\n\r\n"))[0] == 400
        app.gate.set()
        answer = await reader.read()
        writer.close()
    assert split(answer)[::2] == (200, b"/a ")


@on_uvloop
async def test_too_many_connections():
    """A connection beyond the bound is told so and closed; the others go on."""
    app = App()
    app.gate.clear()
    async with serving(app, connections_most=1) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(GET)
        await app.entered.wait()
        answer = await talk(server)
        assert problem_in(answer, 503)["code"] == "SYSTEM_OVERLOADED"
        assert int(split(answer)[1]["retry-after"]) >= 1
        app.gate.set()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()


@on_uvloop
async def test_stop_finishes_what_was_accepted():
    """A stop lets a request that is being answered finish, and takes no new connections."""
    app = App()
    app.gate.clear()
    async with serving(app) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(GET)
        await app.entered.wait()
        port = server.port
        server.stop()
        await no_more_connections(port)
        app.gate.set()
        answer = await reader.read()
        writer.close()
    assert split(answer)[0] == 200
    assert split(answer)[1]["connection"] == "close"


async def no_more_connections(port: int) -> None:
    """Returns when connections are refused."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return
        writer.close()
