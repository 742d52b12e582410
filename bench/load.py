"""A load generator for HTTP/1.1 over loopback: closed-loop, or open-loop at a fixed rate; one process, no dependencies.

Every request has its own key, and every answer is read completely and counted by status. Closed-loop: each
connection sends its next request when it has its answer. Open-loop: requests are due at fixed times on any free
connection, and latency counts from when a request was due, so a stalled server cannot hide.
"""

import asyncio
import itertools
import json
import time
from collections import Counter, deque
from dataclasses import dataclass, field

import uvloop


@dataclass
class Report:
    """The requests and answers; latencies in seconds, without the warm-up."""

    seconds: float
    latencies: list[float] = field(repr=False)
    statuses: Counter[int]
    acknowledged: Counter[tuple[str, str]] = field(repr=False)
    """Transfers answered as SUCCESS, warm-up included, by user and asset."""
    unanswered: int = 0

    def per_second(self) -> float:
        return len(self.latencies) / self.seconds

    def quantile_ms(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000 if ordered else 0.0


class Client(asyncio.Protocol):
    """One connection, with one request at a time."""

    def __init__(self, generator: "Generator") -> None:
        self._generator = generator
        self._buffer = b""
        self._name = ("", "")
        self._due = 0.0

    def connection_made(self, transport) -> None:
        self._transport = transport
        self._generator.free(self)

    def send(self, name: tuple[str, str], request: bytes, due: float) -> None:
        self._name, self._due = name, due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._buffer) < end + 4 + length:
            return
        status = int(head[9:12])
        body, self._buffer = self._buffer[end + 4 : end + 4 + length], b""
        self._generator.answered(self, self._name, status, self._due, success=b'"SUCCESS"' in body[:120])

    def connection_lost(self, _error) -> None:
        self._generator.lost()


class Generator:
    def __init__(self, *, warm_up: float, seconds: float, rate: float | None, requests) -> None:
        self._requests = requests
        self._rate = rate
        self._start = time.perf_counter()
        self._from = self._start + warm_up
        self._until = self._from + seconds
        self._idle: deque[Client] = deque()
        self._busy = 0
        self._owed: deque[float] = deque()
        self.report = Report(seconds, [], Counter(), Counter())
        self.done = asyncio.get_running_loop().create_future()
        if rate is not None:
            self._sent = 0
            self._tick()

    def free(self, client: Client) -> None:
        now = time.perf_counter()
        if self._owed:
            self._send(client, self._owed.popleft())
        elif self._rate is None and now < self._until:
            self._send(client, now)
        else:
            self._idle.append(client)
            if now >= self._until and self._busy == 0 and not self.done.done():
                self.done.set_result(None)

    def _send(self, client: Client, due: float) -> None:
        self._busy += 1
        name, request = next(self._requests)
        client.send(name, request, due)

    def _tick(self) -> None:
        """Sends the requests that are due; those without a free connection wait, and their time runs."""
        now = time.perf_counter()
        while (due := self._start + self._sent / self._rate) <= min(now, self._until):
            self._sent += 1
            if self._idle:
                self._send(self._idle.popleft(), due)
            else:
                self._owed.append(due)
        if now < self._until or self._owed:
            asyncio.get_running_loop().call_later(0.001, self._tick)
        elif self._busy == 0 and not self.done.done():
            self.done.set_result(None)

    def answered(self, client: Client, name: tuple[str, str], status: int, due: float, *, success: bool) -> None:
        self._busy -= 1
        now = time.perf_counter()
        self.report.statuses[status] += 1
        if success:
            self.report.acknowledged[name] += 1
        if self._from <= now < self._until:
            self.report.latencies.append(now - due)
        self.free(client)

    def lost(self) -> None:
        if not self.done.done():
            self.report.unanswered += 1


def transfers(tokens: dict[str, str], *, prefix: str, assets: tuple[str, ...], amount: str, prefer: bytes = b""):
    """Endless transfers from funding to spot, round robin over users and assets, each with its own key."""
    heads = []
    for user, token in tokens.items():
        for asset in assets:
            body = json.dumps(
                {
                    "from_account": {"account_type": "funding", "asset": asset},
                    "to_account": {"account_type": "spot", "asset": asset},
                    "amount": amount,
                },
                separators=(",", ":"),
            ).encode()
            head = (
                b"POST /api/v1/user/internal_transfer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                b"Authorization: Bearer %s\r\nContent-Length: %d\r\n%sIdempotency-Key: %s-"
                % (token.encode(), len(body), prefer, prefix.encode())
            )
            heads.append(((user, asset), head, body))
    for number, (name, head, body) in enumerate(itertools.cycle(heads)):
        yield name, head + b"%d\r\n\r\n" % number + body


def posts(path: str):
    """Endless POSTs with the body of a transfer, for the baseline."""
    body = (
        b'{"from_account":{"account_type":"funding","asset":"USDT"},'
        b'"to_account":{"account_type":"spot","asset":"USDT"},"amount":"0.01"}'
    )
    request = (
        b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % (path.encode(), len(body))
    ) + body
    while True:
        yield ("", ""), request


async def _load(port, connections, *, warm_up, seconds, rate, requests) -> Report:
    loop = asyncio.get_running_loop()
    generator = Generator(warm_up=warm_up, seconds=seconds, rate=rate, requests=requests)
    clients = [await loop.create_connection(lambda: Client(generator), "127.0.0.1", port) for _ in range(connections)]
    await asyncio.wait_for(generator.done, warm_up + seconds + 60)
    for transport, _ in clients:
        transport.close()
    return generator.report


def load(port: int, *, connections: int, seconds: float, requests, warm_up: float = 2.0, rate: float | None = None):
    """Runs the load and returns its `Report`; `rate` (per second) makes it open-loop."""
    return uvloop.run(_load(port, connections, warm_up=warm_up, seconds=seconds, rate=rate, requests=requests))
