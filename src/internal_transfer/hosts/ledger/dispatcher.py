"""Takes the requests of all clients, and answers what came together after one commit for all of it."""

import asyncio
from collections.abc import Callable
from typing import assert_never

import msgspec
import structlog
from msgspec import Raw

from internal_transfer.ports.durability import Durability
from internal_transfer.ports.errors import OperatingFailureError
from internal_transfer.ports.ledger import Ledger
from internal_transfer.wire.frames import FrameError, Frames, decode
from internal_transfer.wire.ledger_messages import (
    HOST_DECODER,
    PROTOCOL,
    CreateAccounts,
    CreateTransfers,
    Done,
    Failed,
    FromClient,
    Hello,
    Invalid,
    LookupAccounts,
    LookupTransfers,
    NewestTransfers,
    Refused,
    Request,
    TransfersAfter,
    Welcome,
    account_of_row,
    row_of_account,
    row_of_transfer,
    transfer_of_row,
)

WAITING_MAX = 1_024
"""So many requests of one client may wait before no more of it are read."""
ITEMS_PER_COMMIT = 16_384
"""About so many accounts, transfers and ids one commit takes, so that nobody waits for very long."""

_encode = msgspec.msgpack.Encoder().encode
_log = structlog.get_logger(__name__)


class Dispatcher:
    """The requests that wait, and the one task that works on them."""

    def __init__(self, ledger: Ledger, durability: Durability) -> None:
        self._ledger = ledger
        self._durability = durability
        self._waiting: list[tuple[Client, Request]] = []
        self._arrived = asyncio.Event()
        self.is_closed = False
        self.clients: set[Client] = set()

    def protocol(self) -> asyncio.Protocol:
        """The protocol for a new connection."""
        return Client(self).frames

    def add(self, client: "Client", request: Request) -> None:
        """Takes a request; its answer comes in its own time."""
        self._waiting.append((client, request))
        self._arrived.set()

    def close(self) -> None:
        """Reads no more, and lets `run` end when everything that was taken is answered."""
        self.is_closed = True
        for client in self.clients:
            client.regulate()
        self._arrived.set()

    async def run(self) -> None:
        """Answers requests until the dispatcher is closed."""
        while self._waiting or not self.is_closed:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                await self._answer(self._next())

    def _next(self) -> list[tuple["Client", Request]]:
        """The requests of the next commit, in the order in which they came."""
        items = count = 0
        while items < ITEMS_PER_COMMIT and count < len(self._waiting):
            items += _items(self._waiting[count][1])
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    async def _answer(self, batch: list[tuple["Client", Request]]) -> None:
        """Does some requests in one turn of the database, and answers them when that is on record."""
        answers: list[Done | Failed | Invalid] = []
        for _, request in batch:
            try:
                answers.append(Done(request.number, Raw(await self._perform(request))))
            except OperatingFailureError as error:
                answers.append(Failed.because(request.number, error))
            except ValueError as error:  # Nothing was begun: the ledger looks at a whole call before it starts.
                answers.append(Invalid(request.number, str(error)))
        try:
            await self._durability.durable()
        except OperatingFailureError as error:
            # The turn is lost as a whole, with what was answered in it before it failed.
            answers = [
                Failed.because(answer.number, error) if isinstance(answer, Done) else answer for answer in answers
            ]
        for (client, _), answer in zip(batch, answers, strict=True):
            client.answer(answer)

    async def _perform(self, request: Request) -> bytes:
        ledger = self._ledger
        match request:
            case CreateTransfers():
                return _encode(await ledger.create_transfers([transfer_of_row(row) for row in request.transfers]))
            case CreateAccounts():
                return _encode(await ledger.create_accounts([account_of_row(row) for row in request.accounts]))
            case LookupAccounts():
                found = await ledger.lookup_accounts([int.from_bytes(key) for key in request.ids])
                return _encode([row_of_account(account) for account in found])
            case LookupTransfers():
                transfers = await ledger.lookup_transfers([int.from_bytes(key) for key in request.ids])
            case TransfersAfter():
                transfers = await ledger.transfers_after(request.timestamp, request.most)
            case NewestTransfers():
                transfers = await ledger.newest_transfers(request.most)
            case _:
                assert_never(request)
        return _encode([row_of_transfer(transfer) for transfer in transfers])


class Client:
    """One connection, and how much of it waits."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._take: Callable[[FromClient], None] = self._greet
        self._waiting = 0
        self.frames = Frames(self._receive, self.regulate)
        self.frames.lost.add_done_callback(self._forget)
        dispatcher.clients.add(self)

    def answer(self, answer: Done | Failed | Invalid) -> None:
        """Sends the answer to a request; nobody is told where the client has gone meanwhile."""
        self._waiting -= 1
        self.frames.send(answer)
        self.regulate()

    def _receive(self, contents: bytes) -> None:
        self._take(decode(HOST_DECODER, contents))

    def _greet(self, message: FromClient) -> None:
        if not isinstance(message, Hello):
            raise FrameError("the first message is no greeting")
        if message.protocol != PROTOCOL:
            self.frames.send(
                Refused(
                    f"this ledger speaks protocol {PROTOCOL}, the client {message.protocol}: "
                    "start both from the same release"
                )
            )
            self.frames.close()
            return
        self.frames.send(Welcome(PROTOCOL))
        self._take = self._accept

    def _accept(self, message: FromClient) -> None:
        if isinstance(message, Hello):
            raise FrameError("a greeting came twice")
        self._waiting += 1
        self._dispatcher.add(self, message)
        self.regulate()

    def regulate(self) -> None:
        """Reads no more of a client that sends faster than it is answered, or that does not read its answers."""
        frames = self.frames
        frames.pause(is_paused=self._waiting >= WAITING_MAX or frames.is_clogged or self._dispatcher.is_closed)

    def _forget(self, _: asyncio.Future[None]) -> None:
        self._dispatcher.clients.discard(self)
        if self.frames.broken:
            _log.warning("ledger_client_lost", reason=self.frames.broken)


def _items(request: Request) -> int:
    match request:
        case CreateTransfers():
            return len(request.transfers)
        case CreateAccounts():
            return len(request.accounts)
        case LookupAccounts() | LookupTransfers():
            return len(request.ids)
        case TransfersAfter() | NewestTransfers():
            return request.most
        case _:
            assert_never(request)
