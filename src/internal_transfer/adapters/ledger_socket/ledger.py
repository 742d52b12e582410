"""The ledger that another process on this machine hosts, over a Unix socket (see `hosts/ledger/`)."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw, Struct

from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, StartRefusedError, System, Unavailable
from internal_transfer.ports.finding import Finding
from internal_transfer.ports.ledger import AccountOutcome, LedgerAccount, LedgerTransfer, TransferOutcome
from internal_transfer.ports.ledger_checks import check_most
from internal_transfer.ports.ledger_encoding import encode_accounts, encode_ids, encode_transfers
from internal_transfer.wire import ledger_messages as messages
from internal_transfer.wire.frames import FrameError, Frames, decode
from internal_transfer.wire.ledger_messages import PROTOCOL

_U64_MAX = 2**64 - 1
_ACCOUNT_OUTCOMES = msgspec.msgpack.Decoder(list[AccountOutcome])
_TRANSFER_OUTCOMES = msgspec.msgpack.Decoder(list[TransferOutcome])
_ACCOUNTS = msgspec.msgpack.Decoder(list[messages.AccountRow])
_TRANSFERS = msgspec.msgpack.Decoder(list[messages.TransferRow])


class SocketLedgerSettings(Struct, frozen=True, kw_only=True):
    """Where the host listens. `deadline_seconds` bounds a call and connecting for it.

    At most `requests_max` requests are under way. One whose caller gave up counts until its answer comes, so that a
    host that does not answer is not sent more and more.
    """

    path: Path
    deadline_seconds: float = 10.0
    requests_max: int = 256


class _RefusedError(Exception):
    """The host does not take requests from this client."""


class SocketLedger:
    """Implements `Ledger` with one connection for the whole process, opened when it is needed.

    Calls do not wait for each other: requests are sent in the order of the calls, and the host puts those that arrive
    together into one commit. Every answer is durable. A call past its deadline is unknown, and is never cancelled.
    """

    def __init__(self, settings: SocketLedgerSettings) -> None:
        self._settings = settings
        self._line: _Line | None = None
        self._connecting = asyncio.Lock()

    async def start(self) -> None:
        """Connects. Raises `StartRefusedError` if that needs a change, and `Unavailable` while there is no host:
        calls may be made all the same, and connect when they can.
        """
        try:
            async with asyncio.timeout(self._settings.deadline_seconds):
                await self._connected()
        except TimeoutError as error:
            raise self._not_in_time(is_sent=False) from error
        except Unavailable as error:
            match error.__cause__:
                case _RefusedError():
                    raise StartRefusedError(f"{self._settings.path}: {error.message}") from error
                case PermissionError():
                    raise StartRefusedError(
                        f"{self._settings.path}: {error.message}: run as the user who runs the ledger's host"
                    ) from error
                case _:
                    raise

    async def close(self) -> None:
        """Closes the connection; calls under way are unknown."""
        line, self._line = self._line, None
        if line is not None:
            line.frames.close()
            await line.frames.lost

    async def create_accounts(self, accounts: Sequence[LedgerAccount]) -> list[AccountOutcome]:
        """See the port."""
        encode_accounts(accounts)
        try:
            rows = [messages.row_of_account(account) for account in accounts]
        except OverflowError as error:
            raise ValueError("a number of an account is not of 128 bits") from error
        _check_timestamps(accounts)
        return _ACCOUNT_OUTCOMES.decode(await self._ask(messages.CreateAccounts, rows))

    async def create_transfers(self, transfers: Sequence[LedgerTransfer]) -> list[TransferOutcome]:
        """See the port."""
        requests, _ = encode_transfers(transfers)
        _check_timestamps(transfers)
        rows = [
            (
                *blobs,
                each.user_data_64,
                each.user_data_32,
                each.timeout,
                each.ledger,
                each.code,
                each.flags,
                each.timestamp,
            )
            for each, *blobs in requests
        ]
        return _TRANSFER_OUTCOMES.decode(await self._ask(messages.CreateTransfers, rows))

    async def lookup_accounts(self, ids: Sequence[int]) -> list[LedgerAccount]:
        """See the port."""
        rows = _ACCOUNTS.decode(await self._ask(messages.LookupAccounts, encode_ids(ids)))
        return [messages.account_of_row(row) for row in rows]

    async def lookup_transfers(self, ids: Sequence[int]) -> list[LedgerTransfer]:
        """See the port."""
        return _transfers(await self._ask(messages.LookupTransfers, encode_ids(ids)))

    async def transfers_after(self, timestamp: int, most: int) -> list[LedgerTransfer]:
        """See the port."""
        check_most(most)
        return _transfers(await self._ask(messages.TransfersAfter, max(0, min(timestamp, _U64_MAX)), most))

    async def newest_transfers(self, most: int) -> list[LedgerTransfer]:
        """See the port."""
        check_most(most)
        return _transfers(await self._ask(messages.NewestTransfers, most))

    async def check(self) -> list[Finding]:
        """Finds for `doctor` whether the host can be reached, is of this protocol, answers, and is closed to others."""
        path = self._settings.path
        try:
            await self.start()
        except (OperatingFailureError, StartRefusedError) as error:
            return [Finding("ledger connection", False, str(error))]
        checks = [Finding("ledger connection", True, str(path)), Finding("ledger protocol", True, str(PROTOCOL))]
        try:
            newest = await self.newest_transfers(1)
            checks.append(Finding("ledger answer", True, "has transfers" if newest else "has no transfers yet"))
        except OperatingFailureError as error:
            checks.append(Finding("ledger answer", False, str(error)))
        mode = path.stat().st_mode & 0o777
        is_private = not mode & 0o077
        advice = "only its owner can open it" if is_private else f"others can open it (mode {mode:o}): chmod 600 {path}"
        checks.append(Finding("ledger permissions", is_private, advice))
        return checks

    async def _ask(self, kind: type[messages.Request], *fields: Any) -> Raw:
        """Sends a request and returns its answer."""
        is_sent = False
        try:
            async with asyncio.timeout(self._settings.deadline_seconds):
                line = self._line
                if line is None or line.frames.is_lost:
                    line = await self._connected()
                answer = line.ask(kind, fields)
                is_sent = True
                return await answer
        except TimeoutError as error:
            raise self._not_in_time(is_sent=is_sent) from error

    async def _connected(self) -> "_Line":
        """Returns the connection; opens it, once for all callers, if there is none."""
        async with self._connecting:
            line = self._line
            if line is None or line.frames.is_lost:
                line = _Line(self._settings)
                try:
                    await asyncio.get_running_loop().create_unix_connection(
                        lambda: line.frames, str(self._settings.path)
                    )
                    await line.greet()
                except (OSError, _RefusedError) as error:
                    raise Unavailable(System.LEDGER, f"cannot connect to the ledger's host: {error}") from error
                finally:
                    if not line.is_welcome:
                        line.frames.abort()
                self._line = line
            return line

    def _not_in_time(self, *, is_sent: bool) -> OperatingFailureError:
        message = f"no answer from the ledger's host in {self._settings.deadline_seconds} s"
        return (OutcomeUnknown if is_sent else Unavailable)(System.LEDGER, message)


class _Line:
    """One connection, with the requests that are under way on it."""

    def __init__(self, settings: SocketLedgerSettings) -> None:
        self._settings = settings
        self._out: dict[int, asyncio.Future[Raw]] = {}
        self._number = 0
        self._welcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.frames = Frames(self._receive)
        self.frames.lost.add_done_callback(self._tell_loss)

    @property
    def is_welcome(self) -> bool:
        """Tells whether requests may be sent."""
        return self._welcome.done() and not self._welcome.cancelled() and self._welcome.exception() is None

    async def greet(self) -> None:
        """Says hello; raises `_RefusedError`, or `ConnectionError` if the host does not answer."""
        self.frames.send(messages.Hello(PROTOCOL))
        await self._welcome

    def ask(self, kind: type[messages.Request], fields: tuple[Any, ...]) -> asyncio.Future[Raw]:
        """Sends a request and returns its answer's future; raises `Unavailable` if too many are under way."""
        if len(self._out) >= self._settings.requests_max or self.frames.is_clogged:
            raise Unavailable(System.LEDGER, "too many requests are under way")
        number = self._number = self._number + 1
        self.frames.send(kind(number, *fields))
        answer = self._out[number] = asyncio.get_running_loop().create_future()
        return answer

    def _receive(self, contents: bytes) -> None:
        message: messages.FromHost = decode(messages.CLIENT_DECODER, contents)
        match message:
            case messages.Done():
                self._settle(message.number, message.answer)
            case messages.Failed():
                self._settle(message.number, message.error())
            case messages.Invalid():
                self._settle(message.number, ValueError(message.message))
            case messages.Welcome():
                if not self._welcome.done():
                    self._welcome.set_result(None)
            case messages.Refused():
                if not self._welcome.done():
                    self._welcome.set_exception(_RefusedError(message.message))

    def _settle(self, number: int, outcome: Raw | Exception) -> None:
        answer = self._out.pop(number, None)
        if answer is None:
            raise FrameError(f"request {number} was answered, and is not under way")
        if answer.done():  # Its caller has given up.
            return
        if isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)

    def _tell_loss(self, _: asyncio.Future[None]) -> None:
        reason = self.frames.broken or "it has ended"
        if not self._welcome.done():
            self._welcome.set_exception(ConnectionError(f"the connection was lost: {reason}"))
        for number in list(self._out):
            lost = OutcomeUnknown(System.LEDGER, f"the connection to the ledger's host was lost: {reason}")
            self._settle(number, lost)


def _transfers(answer: Raw) -> list[LedgerTransfer]:
    return [messages.transfer_of_row(row) for row in _TRANSFERS.decode(answer)]


def _check_timestamps(items: Sequence[LedgerAccount | LedgerTransfer]) -> None:
    """Refuses a timestamp that is wider than the message's field."""
    for item in items:
        if item.timestamp and not 0 <= item.timestamp <= _U64_MAX:
            raise ValueError("a timestamp is not of 64 bits")
