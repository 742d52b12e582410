"""What crosses the Unix socket between a ledger's host and its clients.

A client says `Hello` and is welcomed or refused. Then it sends requests without waiting; each answer carries its
request's number. Numbers of 128 bits cross as 16 bytes, the most significant first: MessagePack's integers have 64.
"""

from collections.abc import Sequence
from typing import TypeAlias

import msgspec
from msgspec import Raw, Struct

from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, System, Unavailable
from internal_transfer.ports.ledger import LedgerAccount, LedgerTransfer

PROTOCOL = 1
"""Raised whenever a message changes; host and client must have the same."""

TransferRow: TypeAlias = tuple[bytes, bytes, bytes, bytes, bytes, bytes, int, int, int, int, int, int, int]
"""Id, debit account, credit account, amount, pending id and user data, each of 16 bytes; then the smaller fields, as
`LedgerTransfer` has them."""

AccountRow: TypeAlias = tuple[bytes, bytes, bytes, bytes, bytes, bytes, int, int, int, int, int, int]
"""Id, user data and the four balances, each of 16 bytes; then ledger, code, flags, user data of 64 and 32 bits, and
timestamp."""


class Hello(Struct, frozen=True, array_like=True, tag=0):
    """The first message of a client."""

    protocol: int


class CreateAccounts(Struct, frozen=True, array_like=True, tag=1):
    """Answered with a list of `AccountOutcome`."""

    number: int
    accounts: Sequence[AccountRow]


class CreateTransfers(Struct, frozen=True, array_like=True, tag=2):
    """Answered with a list of `TransferOutcome`."""

    number: int
    transfers: Sequence[TransferRow]


class LookupAccounts(Struct, frozen=True, array_like=True, tag=3):
    """Answered with a list of `AccountRow`."""

    number: int
    ids: Sequence[bytes]


class LookupTransfers(Struct, frozen=True, array_like=True, tag=4):
    """Answered with a list of `TransferRow`."""

    number: int
    ids: Sequence[bytes]


class TransfersAfter(Struct, frozen=True, array_like=True, tag=5):
    """Answered with a list of `TransferRow`."""

    number: int
    timestamp: int
    most: int


class NewestTransfers(Struct, frozen=True, array_like=True, tag=6):
    """Answered with a list of `TransferRow`."""

    number: int
    most: int


Request: TypeAlias = (
    CreateAccounts | CreateTransfers | LookupAccounts | LookupTransfers | TransfersAfter | NewestTransfers
)
FromClient: TypeAlias = Hello | Request


class Welcome(Struct, frozen=True, array_like=True, tag=0):
    """The host takes requests."""

    protocol: int


class Refused(Struct, frozen=True, array_like=True, tag=1):
    """The host takes no requests from this client, and closes the connection."""

    message: str


class Done(Struct, frozen=True, array_like=True, tag=2):
    """The answer to a request, whose effect is on record."""

    number: int
    answer: Raw


class Failed(Struct, frozen=True, array_like=True, tag=3):
    """A request that failed; `is_unknown` if it may have been carried out all the same."""

    number: int
    is_unknown: bool
    message: str

    @classmethod
    def because(cls, number: int, error: OperatingFailureError) -> "Failed":
        """Returns the message for a failure in the host."""
        return cls(number, isinstance(error, OutcomeUnknown), error.message)

    def error(self) -> OperatingFailureError:
        """Returns the failure as the client raises it."""
        return (OutcomeUnknown if self.is_unknown else Unavailable)(System.LEDGER, self.message)


class Invalid(Struct, frozen=True, array_like=True, tag=4):
    """A request that no ledger would take: a bug in the client, and nothing was done."""

    number: int
    message: str


FromHost: TypeAlias = Welcome | Refused | Done | Failed | Invalid

CLIENT_DECODER: msgspec.msgpack.Decoder[FromHost] = msgspec.msgpack.Decoder(FromHost)
HOST_DECODER: msgspec.msgpack.Decoder[FromClient] = msgspec.msgpack.Decoder(FromClient)


def row_of_transfer(transfer: LedgerTransfer) -> TransferRow:
    """Returns a transfer as it crosses."""
    return (
        transfer.id.to_bytes(16),
        transfer.debit_account_id.to_bytes(16),
        transfer.credit_account_id.to_bytes(16),
        transfer.amount.to_bytes(16),
        transfer.pending_id.to_bytes(16),
        transfer.user_data_128.to_bytes(16),
        transfer.user_data_64,
        transfer.user_data_32,
        transfer.timeout,
        transfer.ledger,
        transfer.code,
        transfer.flags,
        transfer.timestamp,
    )


def transfer_of_row(row: TransferRow) -> LedgerTransfer:
    """Returns a transfer that has crossed."""
    key, debit, credit, amount, pending, user_data, user_data_64, user_data_32, timeout, ledger, code, flags, at = row
    number = int.from_bytes
    return LedgerTransfer(
        id=number(key),
        debit_account_id=number(debit),
        credit_account_id=number(credit),
        amount=number(amount),
        pending_id=number(pending),
        user_data_128=number(user_data),
        user_data_64=user_data_64,
        user_data_32=user_data_32,
        timeout=timeout,
        ledger=ledger,
        code=code,
        flags=flags,
        timestamp=at,
    )


def row_of_account(account: LedgerAccount) -> AccountRow:
    """Returns an account as it crosses."""
    return (
        account.id.to_bytes(16),
        account.user_data_128.to_bytes(16),
        account.debits_pending.to_bytes(16),
        account.debits_posted.to_bytes(16),
        account.credits_pending.to_bytes(16),
        account.credits_posted.to_bytes(16),
        account.ledger,
        account.code,
        account.flags,
        account.user_data_64,
        account.user_data_32,
        account.timestamp,
    )


def account_of_row(row: AccountRow) -> LedgerAccount:
    """Returns an account that has crossed."""
    key, user_data, held, spent, expected, received, ledger, code, flags, user_data_64, user_data_32, at = row
    number = int.from_bytes
    return LedgerAccount(
        id=number(key),
        user_data_128=number(user_data),
        debits_pending=number(held),
        debits_posted=number(spent),
        credits_pending=number(expected),
        credits_posted=number(received),
        ledger=ledger,
        code=code,
        flags=flags,
        user_data_64=user_data_64,
        user_data_32=user_data_32,
        timestamp=at,
    )
