import asyncio
import json
import socket
from collections import Counter
from functools import wraps

import pytest
from structlog.testing import capture_logs

from api.scripted import StillClock, events, transfer
from internal_transfer.api.problems import Problems
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.amount import AMOUNT_UNITS_MAX
from internal_transfer.domain.refusal import Code, Detail, Refusal
from internal_transfer.domain.request import TransferRequest
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable
from internal_transfer.server.http import run_on_uvloop
from internal_transfer.server.http_workers.service_end import ServiceEnd
from internal_transfer.server.http_workers.worker_end import BODY_BYTES_MAX, WorkerEnd
from internal_transfer.services.answer import Answer

SUCCESS = Answer(transfer(), events=events(Status.REQUESTING, Status.PENDING, Status.SUCCESS))
PENDING = Answer(transfer(Status.PENDING))
DEADLINE_SECONDS = 20


def on_uvloop(test):
    """Runs the test on the loop that both ends are made for."""

    @wraps(test)
    def run(*arguments, **named):
        async def in_time():
            async with asyncio.timeout(DEADLINE_SECONDS):
                await test(*arguments, **named)

        run_on_uvloop(in_time())

    return run


def request(key="k1"):
    alice = Owner("alice")
    source, target = Account(alice, "funding", "USDT"), Account(alice, "spot", "USDT")
    return TransferRequest(alice, "standard", key, source, target, "1.5", "für später")


class Gateway:
    """Takes every submission and answers when the test says so."""

    def __init__(self):
        self.offered = {}
        self.taken = asyncio.Condition()
        self.waits = []
        self.waited = asyncio.get_running_loop().create_future()

    def offer(self, asked):
        """As the gateway."""
        waiting = asyncio.get_running_loop().create_future()
        self.offered[asked.key] = (asked, waiting)
        return waiting

    async def wait(self, answer, seconds):
        """As the gateway, until the test says how it ends."""
        self.waits.append((answer, seconds))
        return await asyncio.shield(self.waited)

    def answer(self, key, outcome=SUCCESS):
        """Answers the submission with this key, or lets it fail."""
        _, waiting = self.offered[key]
        if isinstance(outcome, BaseException):
            waiting.set_exception(outcome)
        else:
            waiting.set_result(outcome)


class Pair:
    """Both ends in one process, over a real pair of sockets."""

    def __init__(self, app=None, **bounds):
        self.gateway = Gateway()
        self.counted = Counter()
        self.readies = 0
        self._crossings = 0
        self.stops = 0
        self._there, self._back = asyncio.Event(), asyncio.Event()
        self._app = app
        self._bounds = {"waiting_most": 100} | bounds

    async def __aenter__(self):
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        problems = Problems(StillClock())
        self.service = ServiceEnd(
            gateway=self.gateway,
            app=self._app,
            problems=problems,
            count=self._count,
            ready=self._ready,
            tasks=self._tasks,
        )
        self.worker = WorkerEnd(problems=problems, stop=self._stop, **self._bounds)
        self.sockets = socket.socketpair()
        loop = asyncio.get_running_loop()
        for end, one in zip((self.service, self.worker), self.sockets, strict=True):
            await loop.create_connection(end.protocol, sock=one)
        return self

    async def __aexit__(self, *error):
        self.worker.close()
        await self.service.until_lost()
        return await self._tasks.__aexit__(*error)

    def _count(self, *counts):
        *labels, number = counts
        self.counted[tuple(labels)] += number
        self._there.set()

    def _ready(self):
        self.readies += 1

    def _stop(self):
        self.stops += 1
        self._back.set()

    def submit(self, key="k1", wait_seconds=0.0):
        """A submission on its way."""
        return self._tasks.create_task(_outcome(self.worker.submit(request(key), wait_seconds=wait_seconds)))

    def forward(self, *parts, **scope):
        """A whole request on its way."""
        exchange = Exchange(parts, **scope)
        exchange.task = self._tasks.create_task(self.worker.forward(exchange.scope, exchange.receive, exchange.send))
        return exchange

    async def crossed(self):
        """Returns when all that was said so far has arrived at the service, and what it said at the worker."""
        self._there, self._back = asyncio.Event(), asyncio.Event()
        self._crossings += 1
        self.worker.tell_counts({("crossed", "", ""): self._crossings})
        await self._there.wait()
        self.service.stop()
        await self._back.wait()


async def _outcome(submission):
    try:
        return await submission
    except (OutcomeUnknown, Unavailable) as error:
        return error


class Exchange:
    """The server's side of one request; a part of None is a client that leaves."""

    def __init__(self, parts, method="GET", path="/a", query=b"", headers=()):
        self.scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query,
            "headers": [(b"host", b"here"), *headers],
        }
        self._parts = list(parts) or [b""]
        self.received = 0
        self.sent = []

    async def receive(self):
        """The next part."""
        self.received += 1
        part = self._parts.pop(0)
        if part is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": bool(self._parts)}

    async def send(self, message):
        """Keeps what is answered."""
        self.sent.append(message)

    async def answer(self):
        """Status, headers and body."""
        await self.task
        start, body = self.sent
        return start["status"], dict(start["headers"]), body["body"]

    async def problem(self, status):
        """The problem that it is answered with."""
        answered, headers, body = await self.answer()
        assert (answered, headers[b"content-type"]) == (status, b"application/problem+json")
        assert int(headers[b"content-length"]) == len(body)
        return json.loads(body), headers


async def echo(scope, receive, send):
    """Answers what it was asked, in two parts."""
    message = await receive()
    assert not message["more_body"]
    headers = [[b"content-type", b"text/plain"], (b"x-path", scope["raw_path"])]
    await send({"type": "http.response.start", "status": 207, "headers": headers})
    asked = f"{scope['method']} {scope['path']}?".encode() + scope["query_string"] + b" "
    await send({"type": "http.response.body", "body": asked, "more_body": True})
    await send({"type": "http.response.body", "body": message["body"]})


@on_uvloop
async def test_answers_find_who_asked():
    """Every submission gets its own answer, in any order."""
    async with Pair() as pair:
        tasks = {key: pair.submit(key) for key in ("a", "b", "c")}
        await pair.crossed()
        for key in ("c", "a", "b"):
            pair.gateway.answer(key, Answer(transfer(key=key)))
        assert {key: (await task).transfer.key for key, task in tasks.items()} == {"a": "a", "b": "b", "c": "c"}
        assert pair.gateway.offered["b"][0] == request("b")


@pytest.mark.parametrize(
    "answer",
    [
        SUCCESS,
        Answer(transfer(amount=AMOUNT_UNITS_MAX), replayed=True),
        Answer(transfer(Status.FAILED, memo="\u0000\U0001f4b0")),
        Answer(refusal=Refusal(Code.RATE_LIMITED, "slowly", retry_after_seconds=2.5)),
        Answer(transfer(), Refusal(Code.IDEMPOTENCY_KEY_REUSED, "other", (Detail("amount", "differs"),))),
    ],
)
@on_uvloop
async def test_answers_cross_unchanged(answer):
    """The gateway's answers arrive as they were, also with amounts that no machine word holds."""
    async with Pair() as pair:
        task = pair.submit()
        await pair.crossed()
        pair.gateway.answer("k1", answer)
        assert await task == answer


@pytest.mark.parametrize("kind", [Unavailable, OutcomeUnknown])
@on_uvloop
async def test_failures_cross_unchanged(kind):
    """An operating failure arrives as the same one: what is unknown must not become a no, nor the reverse."""
    async with Pair() as pair:
        task = pair.submit()
        await pair.crossed()
        pair.gateway.answer("k1", kind(System.LEDGER, "away"))
        failure = await task
        assert (type(failure), failure.system, failure.message) == (kind, System.LEDGER, "away")


@pytest.mark.parametrize(
    "outcome",
    [RuntimeError("a bug"), Answer(transfer(memo="\ud800")), asyncio.CancelledError()],
    ids=["raises", "cannot be encoded", "cancelled"],
)
@on_uvloop
async def test_a_bug_answers_its_own_submission_alone(outcome):
    """An answer that goes wrong is logged, and unknown to its own client; all other submissions are answered."""
    async with Pair() as pair:
        broken, sound = pair.submit("broken"), pair.submit("sound")
        await pair.crossed()
        with capture_logs() as logs:
            if isinstance(outcome, asyncio.CancelledError):
                pair.gateway.offered["broken"][1].cancel()
            else:
                pair.gateway.answer("broken", outcome)
            pair.gateway.answer("sound")
            assert await sound == SUCCESS
            assert isinstance(await broken, OutcomeUnknown)
        assert [(entry["event"], entry["key"]) for entry in logs] == [("order_failed", "broken")]


@on_uvloop
async def test_an_open_transfer_is_waited_for():
    """The service waits for an open transfer as long as the client wants, and answers how it ended."""
    async with Pair() as pair:
        task = pair.submit(wait_seconds=7.5)
        await pair.crossed()
        pair.gateway.answer("k1", PENDING)
        pair.gateway.waited.set_result(SUCCESS)
        assert await task == SUCCESS
        assert pair.gateway.waits == [(PENDING, 7.5)]


@pytest.mark.parametrize(
    ("answer", "wait_seconds"),
    [(PENDING, 0.0), (SUCCESS, 5.0), (Answer(PENDING.transfer, Refusal(Code.IDEMPOTENCY_KEY_REUSED, "other")), 5.0)],
)
@on_uvloop
async def test_nothing_to_wait_for(answer, wait_seconds):
    """What is final, refused or not to be waited for is answered at once."""
    async with Pair() as pair:
        task = pair.submit(wait_seconds=wait_seconds)
        await pair.crossed()
        pair.gateway.answer("k1", answer)
        assert await task == answer
        assert pair.gateway.waits == []


@on_uvloop
async def test_a_wait_that_fails():
    """A wait that goes wrong is unknown to its client, and ends nothing else."""
    async with Pair() as pair:
        task = pair.submit(wait_seconds=5.0)
        await pair.crossed()
        pair.gateway.answer("k1", PENDING)
        pair.gateway.waited.set_exception(RuntimeError("a bug"))
        with capture_logs() as logs:
            assert isinstance(await task, OutcomeUnknown)
        assert [entry["event"] for entry in logs] == ["order_failed"]
        await pair.crossed()


@on_uvloop
async def test_a_client_that_gives_up():
    """A submission whose client gave up is still taken, counts until it is answered, and disturbs no other."""
    async with Pair(waiting_most=1) as pair:
        given_up = pair.submit("first")
        await pair.crossed()
        given_up.cancel()
        await asyncio.wait([given_up])
        shed = await pair.submit("second")
        assert shed.refusal.code is Code.SYSTEM_OVERLOADED
        assert "second" not in pair.gateway.offered
        pair.gateway.answer("first")
        await pair.crossed()
        task = pair.submit("third")
        await pair.crossed()
        pair.gateway.answer("third", Answer(transfer(key="third")))
        assert (await task).transfer.key == "third"


@on_uvloop
async def test_the_worker_dies():
    """When the worker's end is gone, waits end, its submissions go on, and their answers are dropped."""
    async with Pair() as pair:
        waiting, going_on = pair.submit("waiting", 5.0), pair.submit("going on", 5.0)
        await pair.crossed()
        pair.gateway.answer("waiting", PENDING)
        await pair.crossed()
        assert len(pair.gateway.waits) == 1
        pair.worker.close()
        await pair.service.until_lost()
        heard = asyncio.Event()
        pair.gateway.offered["going on"][1].add_done_callback(lambda _: heard.set())
        pair.gateway.answer("going on", PENDING)
        await heard.wait()
        assert isinstance(await waiting, OutcomeUnknown)
        assert isinstance(await going_on, OutcomeUnknown)
    # Leaving the pair waits for all tasks, which would never end if a wait went on.
    assert len(pair.gateway.waits) == 1


@on_uvloop
async def test_the_service_dies():
    """When the service's end is gone, everybody who waits is told that the outcome is unknown, now and later."""
    gate = asyncio.Event()

    async def never(*_):
        await gate.wait()

    async with Pair(never) as pair:
        submission, whole = pair.submit(), pair.forward(b"{}", method="POST")
        await pair.crossed()
        pair.sockets[0].shutdown(socket.SHUT_RDWR)
        assert isinstance(await submission, OutcomeUnknown)
        problem, _ = await whole.problem(503)
        assert (problem["code"], problem["recorded"], problem["retry"]) == ("TIMEOUT", None, "same_key")
        assert isinstance(await pair.submit(), OutcomeUnknown)
        read, _ = await pair.forward().problem(503)
        assert (read["code"], read["recorded"]) == ("TIMEOUT", False)
        with capture_logs():
            gate.set()
            await asyncio.sleep(0)


@pytest.mark.parametrize("line", [b'["Nonsense",1]', b'[0,77,null,[true,"store","who asked this?"]]'])
@on_uvloop
async def test_a_line_that_makes_no_sense(line):
    """A line that cannot be read, or that answers what is not out, is logged and ends the pair: nobody waits for ever,
    and rather unknown to all than wrong for one.
    """
    ours, theirs = socket.socketpair()
    worker = WorkerEnd(problems=Problems(StillClock()), waiting_most=100, stop=lambda: None)
    loop = asyncio.get_running_loop()
    await loop.create_connection(worker.protocol, sock=theirs)
    with ours, capture_logs() as logs:
        submission = asyncio.ensure_future(_outcome(worker.submit(request(), wait_seconds=0.0)))
        ours.setblocking(False)  # noqa: FBT003 - the standard library takes it by position only.
        await loop.sock_recv(ours, 10_000)
        await loop.sock_sendall(ours, line + b"\n")
        assert isinstance(await submission, OutcomeUnknown)
        await worker.until_lost()
    assert [entry["event"] for entry in logs] == ["pair_failed"]


@on_uvloop
async def test_a_whole_request():
    """A request that crosses whole reaches the application as it came, and its answer comes back as it was made."""
    async with Pair(echo) as pair:
        exchange = pair.forward(
            b"\x00bo",
            b"dy\xff",
            method="POST",
            path="/ä b",
            query=b"q=%ff",
            headers=[(b"x-odd", b"\xe9\xff"), (b"x-odd", b"2")],
        )
        status, headers, body = await exchange.answer()
        assert (status, headers[b"content-type"]) == (207, b"text/plain")
        assert headers[b"x-path"] == "/ä b".encode()
        assert body == "POST /ä b?q=%ff ".encode() + b"\x00body\xff"


@on_uvloop
async def test_large_answers():
    """Messages that are larger than what a socket takes at once arrive whole, and others find their way past them."""
    async with Pair(echo) as pair:
        bodies = [bytes([number]) * (BODY_BYTES_MAX - number) for number in range(4)]
        exchanges = [pair.forward(body, method="POST", path=f"/{number}") for number, body in enumerate(bodies)]
        small = pair.forward(path="/small")
        for number, exchange in enumerate(exchanges):
            _, _, body = await exchange.answer()
            assert body == f"POST /{number}? ".encode() + bodies[number]
        assert (await small.answer())[2] == b"GET /small? "


@pytest.mark.parametrize("method", ["GET", "POST"])
@on_uvloop
async def test_an_application_that_fails(method):
    """A failure that escapes the application is logged and answered as a problem; so is half an answer."""

    async def fails(scope, _, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/raises":
            raise RuntimeError
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    async with Pair(fails) as pair:
        for path in ("/raises", "/half"):
            with capture_logs() as logs:
                problem, _ = await pair.forward(path=path, method=method).problem(500)
            assert (problem["code"], problem["recorded"]) == ("INTERNAL", None if method == "POST" else False)
            assert [entry["event"] for entry in logs] == ["request_failed"]


@on_uvloop
async def test_a_disconnect_is_the_workers():
    """To the application the client stays until its worker is gone."""
    seen = []

    async def app(_, receive, send):
        seen.append((await receive())["type"])
        seen.append((await receive())["type"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with Pair(app) as pair:
        exchange = pair.forward()
        await pair.crossed()
        assert seen == ["http.request"]
        pair.worker.close()
        await exchange.problem(503)
    assert seen == ["http.request", "http.disconnect"]


@on_uvloop
async def test_a_body_that_is_too_large():
    """A body past the limit is refused without asking the application; one that says so, without being received."""
    async with Pair() as pair:
        chunked = pair.forward(b"x" * BODY_BYTES_MAX, b"x", b"never read", method="POST")
        declared = pair.forward(b"never read", method="POST", headers=[(b"content-length", b"1048577")])
        for exchange, received in ((chunked, 2), (declared, 0)):
            problem, headers = await exchange.problem(413)
            assert (problem["code"], problem["recorded"]) == ("INVALID_REQUEST", False)
            assert headers[b"connection"] == b"close"
            assert exchange.received == received


@on_uvloop
async def test_crowding():
    """Large bodies share a bound and are shed past it; small requests pass, and what was held is given back."""
    gate = asyncio.Event()

    async def app(scope, receive, send):
        await gate.wait()
        await echo(scope, receive, send)

    async with Pair(app, bodies_most=50_000) as pair:
        first = pair.forward(b"x" * 40_000, method="POST")
        await pair.crossed()
        crowded, headers = await pair.forward(b"x" * 40_000, method="POST").problem(503)
        assert crowded["code"] == "SYSTEM_OVERLOADED"
        assert b"retry-after" in headers
        small = pair.forward(b"x" * 10_000, method="POST")
        await pair.crossed()
        gate.set()
        assert (await first.answer())[0] == (await small.answer())[0] == 207
        assert (await pair.forward(b"x" * 40_000, method="POST").answer())[0] == 207


@on_uvloop
async def test_too_many_whole_requests():
    """Forwarded requests count as submissions do, and are shed with a problem when too many are under way."""
    async with Pair(echo, waiting_most=1) as pair:
        submission = pair.submit()
        await pair.crossed()
        shed, _ = await pair.forward().problem(503)
        assert shed["code"] == "SYSTEM_OVERLOADED"
        pair.gateway.answer("k1")
        await submission
        assert (await pair.forward().answer())[0] == 207


@on_uvloop
async def test_a_client_that_leaves_its_body():
    """A request whose client leaves before its end is not asked, and holds nothing."""
    async with Pair(echo, bodies_most=50_000) as pair:
        for _ in range(3):
            exchange = pair.forward(b"x" * 40_000, None, method="POST")
            await exchange.task
            assert exchange.sent == []
        assert (await pair.forward(b"x" * 40_000, method="POST").answer())[0] == 207


@on_uvloop
async def test_what_is_said_last_arrives():
    """Readiness, counts and the wish to stop cross the pair, and closing it loses nothing that was said before."""
    async with Pair() as pair:
        pair.worker.tell_ready()
        await pair.crossed()
        assert (pair.readies, pair.stops) == (1, 1)
        answered, refused = ("transfers", "answered", ""), ("transfers", "refused", "RATE_LIMITED")
        pair.worker.tell_counts({answered: 1.0})
        pair.worker.tell_counts({answered: 3.0, refused: 1.0})
        pair.worker.close()
        await pair.service.until_lost()
        assert pair.counted[answered] == 3
        assert pair.counted[refused] == 1
        await pair.worker.until_lost()
        pair.worker.tell_counts({answered: 4.0})
