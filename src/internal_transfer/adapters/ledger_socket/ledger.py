"""The ledger that another process on this machine hosts, over a Unix socket (see `hosts/ledger/`)."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct

from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, StartRefusedError, System, Unavailable
from internal_transfer.ports.finding import Finding
from internal_transfer.ports.ledger import AccountOutcome, LedgerAccount, LedgerTransfer, TransferOutcome
from internal_transfer.ports.ledger_checks import check_most
from internal_transfer.ports.ledger_encoding import encode_accounts, encode_ids, encode_transfers
from internal_transfer.wire.frames import FrameError, Frames, decode
from internal_transfer.wire.ledger_messages import (
    CLIENT_DECODER,
    PROTOCOL,
    AccountRow,
    CreateAccounts,
    CreateTransfers,
    Done,
    Failed,
    FromHost,
    Hello,
    Invalid,
    LookupAccounts,
    LookupTransfers,
    NewestTransfers,
    Refused,
    Request,
    TransferRow,
    TransfersAfter,
    Welcome,
    account_of_row,
    row_of_account,
    transfer_of_row,
)

T = TypeVar("T")

_U64_MAX = 2**64 - 1
_ACCOUNT_OUTCOMES = msgspec.msgpack.Decoder(list[AccountOutcome])
_TRANSFER_OUTCOMES = msgspec.msgpack.Decoder(list[TransferOutcome])
_ACCOUNTS = msgspec.msgpack.Decoder(list[AccountRow])
_TRANSFERS = msgspec.msgpack.Decoder(list[TransferRow])


class SocketLedgerSettings(Struct, frozen=True, kw_only=True):
    """Where the host listens. `deadline_seconds` bounds a call, with connecting.

    `requests_max` may be out at a time. A call that was given up counts until its answer comes, so that a host that
    does not answer is not given ever more.
    """

    path: Path
    deadline_seconds: float = 10.0
    requests_max: int = 256


class _RefusedError(Exception):
    """The host does not take requests of this client."""


class SocketLedger:
    """Implements `Ledger` with one connection for the whole process, which is opened when it is needed.

    Calls do not wait for each other: requests go out as they come, in the order of the calls, and the host puts those
    that come together into one commit. Every answer is durable. A call that takes longer than the deadline is unknown,
    and is never cancelled.
    """

    def __init__(self, settings: SocketLedgerSettings) -> None:
        self._settings = settings
        self._line: _Line | None = None
        self._connecting = asyncio.Lock()

    async def start(self) -> None:
        """Connects; raises `StartRefusedError` for what will not pass by itself, `Unavailable` while there is no host:
        then calls may be made all the same, and connect when they can.
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
        """Closes the connection; what is out then is unknown."""
        line, self._line = self._line, None
        if line is not None:
            line.frames.close()
            await line.frames.lost

    async def create_accounts(self, accounts: Sequence[LedgerAccount]) -> list[AccountOutcome]:
        """See the port."""
        encode_accounts(accounts)
        try:
            rows = [row_of_account(account) for account in accounts]
        except OverflowError as error:
            raise ValueError("a number of an account is not of 128 bits") from error
        _check_timestamps(accounts)
        return _ACCOUNT_OUTCOMES.decode(await self._ask(CreateAccounts, rows))

    async def create_transfers(self, transfers: Sequence[LedgerTransfer]) -> list[TransferOutcome]:
        """See the port."""
        requests, _ = encode_transfers(transfers)
        _check_timestamps(transfers)
        rows = [
            (
                key,
                debit,
                credit,
                amount,
                pending,
                user_data,
                transfer.user_data_64,
                transfer.user_data_32,
                transfer.timeout,
                transfer.ledger,
                transfer.code,
                transfer.flags,
                transfer.timestamp,
            )
            for transfer, key, debit, credit, amount, pending, user_data in requests
        ]
        return _TRANSFER_OUTCOMES.decode(await self._ask(CreateTransfers, rows))

    async def lookup_accounts(self, ids: Sequence[int]) -> list[LedgerAccount]:
        """See the port."""
        rows = _ACCOUNTS.decode(await self._ask(LookupAccounts, encode_ids(ids)))
        return [account_of_row(row) for row in rows]

    async def lookup_transfers(self, ids: Sequence[int]) -> list[LedgerTransfer]:
        """See the port."""
        return _transfers(await self._ask(LookupTransfers, encode_ids(ids)))

    async def transfers_after(self, timestamp: int, most: int) -> list[LedgerTransfer]:
        """See the port."""
        check_most(most)
        return _transfers(await self._ask(TransfersAfter, max(0, min(timestamp, _U64_MAX)), most))

    async def newest_transfers(self, most: int) -> list[LedgerTransfer]:
        """See the port."""
        check_most(most)
        return _transfers(await self._ask(NewestTransfers, most))

    async def check(self) -> list[Finding]:
        """Says whether the host can be reached, is of this protocol, answers, and is safe from others, for `doctor`."""
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

    async def _ask(self, kind: type[Request], *fields: Any) -> Raw:
        """Sends a request and waits for its answer."""
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
        """The connection; opens one where there is none, for all who wait for that."""
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
        message = f"no answer of the ledger's host in {self._settings.deadline_seconds} s"
        return (OutcomeUnknown if is_sent else Unavailable)(System.LEDGER, message)


class _Line:
    """One connection, with the requests that are out on it."""

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
        """Says hello; raises `_RefusedError` or `ConnectionError` where that is not answered as it should."""
        self.frames.send(Hello(PROTOCOL))
        await self._welcome

    def ask(self, kind: type[Request], fields: tuple[Any, ...]) -> asyncio.Future[Raw]:
        """Sends a request, and gives its answer's future; raises `Unavailable` where too much is out."""
        if len(self._out) >= self._settings.requests_max or self.frames.is_clogged:
            raise Unavailable(System.LEDGER, "too many requests are out")
        number = self._number = self._number + 1
        self.frames.send(kind(number, *fields))
        answer = self._out[number] = asyncio.get_running_loop().create_future()
        return answer

    def _receive(self, contents: bytes) -> None:
        message: FromHost = decode(CLIENT_DECODER, contents)
        match message:
            case Done():
                answer = self._taken_in(message.number)
                if not answer.done():
                    answer.set_result(message.answer)
            case Failed() | Invalid():
                answer = self._taken_in(message.number)
                if not answer.done():
                    answer.set_exception(
                        message.error() if isinstance(message, Failed) else ValueError(message.message)
                    )
            case Welcome():
                if not self._welcome.done():
                    self._welcome.set_result(None)
            case Refused():
                if not self._welcome.done():
                    self._welcome.set_exception(_RefusedError(message.message))

    def _taken_in(self, number: int) -> asyncio.Future[Raw]:
        """What waits for an answer, which is out no more; it is done where that one has given up."""
        answer = self._out.pop(number, None)
        if answer is None:
            raise FrameError(f"request {number} was answered, and is not out")
        return answer

    def _tell_loss(self, _: asyncio.Future[None]) -> None:
        reason = self.frames.broken or "it has ended"
        if not self._welcome.done():
            self._welcome.set_exception(ConnectionError(f"the connection was lost: {reason}"))
        for answer in self._out.values():
            if not answer.done():
                answer.set_exception(
                    OutcomeUnknown(System.LEDGER, f"the connection to the ledger's host was lost: {reason}")
                )
        self._out.clear()


def _transfers(answer: Raw) -> list[LedgerTransfer]:
    return [transfer_of_row(row) for row in _TRANSFERS.decode(answer)]


def _check_timestamps(items: Sequence[LedgerAccount | LedgerTransfer]) -> None:
    """Refuses a timestamp that no ledger could have given, and that does not cross."""
    for item in items:
        if item.timestamp and not 0 <= item.timestamp <= _U64_MAX:
            raise ValueError("a timestamp is not of 64 bits")
