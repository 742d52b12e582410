"""Takes the requests of all clients, and answers together those that came together, after one commit."""

import asyncio
from collections.abc import Callable
from typing import assert_never

import msgspec
import structlog
from msgspec import Raw

from internal_transfer.ports.durability import Durability
from internal_transfer.ports.errors import OperatingFailureError
from internal_transfer.ports.ledger import Ledger
from internal_transfer.wire import ledger_messages as messages
from internal_transfer.wire.frames import FrameError, Frames, decode

WAITING_MAX = 1_024
"""How many requests of one client may wait before the host stops reading from it."""
ITEMS_PER_COMMIT = 16_384
"""About how many accounts, transfers and ids one commit takes, so that no request waits very long."""

Answer = messages.Done | messages.Failed | messages.Invalid

_encode = msgspec.msgpack.Encoder().encode
_log = structlog.get_logger(__name__)


class Dispatcher:
    """The waiting requests, and the one task that works on them."""

    def __init__(self, ledger: Ledger, durability: Durability) -> None:
        self._ledger = ledger
        self._durability = durability
        self._waiting: list[tuple[Client, messages.Request]] = []
        self._arrived = asyncio.Event()
        self.is_closed = False
        self.clients: set[Client] = set()

    def protocol(self) -> asyncio.Protocol:
        """Returns the protocol for a new connection."""
        return Client(self).frames

    def add(self, client: "Client", request: messages.Request) -> None:
        """Takes a request, which `run` answers."""
        self._waiting.append((client, request))
        self._arrived.set()

    def close(self) -> None:
        """Stops reading, and lets `run` end when it has answered every request that was taken."""
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

    def _next(self) -> list[tuple["Client", messages.Request]]:
        """Returns the requests of the next commit, in the order in which they came."""
        items = count = 0
        while items < ITEMS_PER_COMMIT and count < len(self._waiting):
            items += _items(self._waiting[count][1])
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    async def _answer(self, batch: list[tuple["Client", messages.Request]]) -> None:
        """Carries requests out in one turn of the database, and answers them when it is committed."""
        answers: list[Answer] = []
        for _, request in batch:
            try:
                answers.append(messages.Done(request.number, Raw(await self._perform(request))))
            except OperatingFailureError as error:
                answers.append(messages.Failed.because(request.number, error))
            except ValueError as error:  # Nothing was begun: the ledger checks a whole call before it starts.
                answers.append(messages.Invalid(request.number, str(error)))
        try:
            await self._durability.durable()
        except OperatingFailureError as error:
            # The whole turn is lost, with everything that was done in it before it failed.
            for index, answer in enumerate(answers):
                if isinstance(answer, messages.Done):
                    answers[index] = messages.Failed.because(answer.number, error)
        for (client, _), answer in zip(batch, answers, strict=True):
            client.answer(answer)

    async def _perform(self, request: messages.Request) -> bytes:
        ledger = self._ledger
        match request:
            case messages.CreateTransfers():
                created = [messages.transfer_of_row(row) for row in request.transfers]
                return _encode(await ledger.create_transfers(created))
            case messages.CreateAccounts():
                return _encode(await ledger.create_accounts([messages.account_of_row(row) for row in request.accounts]))
            case messages.LookupAccounts():
                found = await ledger.lookup_accounts([int.from_bytes(key) for key in request.ids])
                return _encode([messages.row_of_account(account) for account in found])
            case messages.LookupTransfers():
                transfers = await ledger.lookup_transfers([int.from_bytes(key) for key in request.ids])
            case messages.TransfersAfter():
                transfers = await ledger.transfers_after(request.timestamp, request.most)
            case messages.NewestTransfers():
                transfers = await ledger.newest_transfers(request.most)
            case _:
                assert_never(request)
        return _encode([messages.row_of_transfer(transfer) for transfer in transfers])


class Client:
    """One connection, and how many of its requests wait."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._take: Callable[[messages.FromClient], None] = self._greet
        self._waiting = 0
        self.frames = Frames(lambda contents: self._take(decode(messages.HOST_DECODER, contents)), self.regulate)
        self.frames.lost.add_done_callback(self._forget)
        dispatcher.clients.add(self)

    def answer(self, answer: Answer) -> None:
        """Sends the answer to a request; does nothing if the client has gone."""
        self._waiting -= 1
        self.frames.send(answer)
        self.regulate()

    def _greet(self, message: messages.FromClient) -> None:
        ours = messages.PROTOCOL
        if not isinstance(message, messages.Hello):
            raise FrameError("the first message is no greeting")
        if message.protocol != ours:
            reason = f"this ledger speaks protocol {ours}, the client {message.protocol}: start both from one release"
            self.frames.send(messages.Refused(reason))
            self.frames.close()
            return
        self.frames.send(messages.Welcome(ours))
        self._take = self._accept

    def _accept(self, message: messages.FromClient) -> None:
        if isinstance(message, messages.Hello):
            raise FrameError("a greeting came twice")
        self._waiting += 1
        self._dispatcher.add(self, message)
        self.regulate()

    def regulate(self) -> None:
        """Reads no more from a client that has too many requests waiting, or that does not read its answers."""
        frames = self.frames
        frames.pause(is_paused=self._waiting >= WAITING_MAX or frames.is_clogged or self._dispatcher.is_closed)

    def _forget(self, _: asyncio.Future[None]) -> None:
        self._dispatcher.clients.discard(self)
        if self.frames.broken:
            _log.warning("ledger_client_lost", reason=self.frames.broken)


def _items(request: messages.Request) -> int:
    match request:
        case messages.CreateTransfers():
            return len(request.transfers)
        case messages.CreateAccounts():
            return len(request.accounts)
        case messages.LookupAccounts() | messages.LookupTransfers():
            return len(request.ids)
        case messages.TransfersAfter() | messages.NewestTransfers():
            return request.most
        case _:
            assert_never(request)
