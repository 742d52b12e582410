"""Accounts and transfers as SQLite keeps them, and what is too wide or too much to be taken at all."""

from collections.abc import Sequence
from typing import Any

from internal_transfer.ports.ledger import LedgerAccount, LedgerTransfer, TransferFlag
from internal_transfer.ports.ledger_checks import (
    check_accounts_supported,
    check_size,
    check_transfers_supported,
)

I64_MAX = 2**63 - 1
ZERO = bytes(16)
_LINKED = TransferFlag.LINKED

Row = tuple[Any, ...]
"""A row of `ledger_transfer`, in the order of its columns; a burnt id has the timestamp 0."""

Request = tuple[LedgerTransfer, bytes, bytes, bytes, bytes, bytes, bytes]
"""A transfer with its id, debit account, credit account, amount, pending id and user data as blobs."""


def encode_accounts(accounts: Sequence[LedgerAccount]) -> list[tuple[LedgerAccount, bytes, bytes]]:
    """Refuses a batch that cannot be taken at all, and gives the blobs of the others."""
    check_size(accounts)
    flags = user_data_64 = user_data_32 = code = ledger = 0
    for account in accounts:
        flags |= account.flags
        user_data_64 |= account.user_data_64
        user_data_32 |= account.user_data_32
        ledger |= account.ledger
        code |= account.code
    _check_widths(user_data_64=user_data_64, user_data_32=user_data_32, ledger=ledger, code=code, flags=flags)
    check_accounts_supported(flags=flags)
    try:
        return [(account, account.id.to_bytes(16), account.user_data_128.to_bytes(16)) for account in accounts]
    except OverflowError as error:
        raise ValueError("a number of an account is not of 128 bits") from error


def encode_transfers(transfers: Sequence[LedgerTransfer]) -> tuple[list[Request], bool]:
    """Refuses a batch that cannot be taken at all, gives the blobs of the others, and tells whether there are chains.

    The fields of all transfers are checked as one, since a bit that is wrong in any is wrong in their union.
    """
    check_size(transfers)
    flags = timeout = user_data_64 = user_data_32 = ledger = code = 0
    requests: list[Request] = []
    try:
        for transfer in transfers:
            flags |= transfer.flags
            timeout |= transfer.timeout
            user_data_64 |= transfer.user_data_64
            user_data_32 |= transfer.user_data_32
            ledger |= transfer.ledger
            code |= transfer.code
            pending_id, user_data_128 = transfer.pending_id, transfer.user_data_128
            requests.append(
                (
                    transfer,
                    transfer.id.to_bytes(16),
                    transfer.debit_account_id.to_bytes(16),
                    transfer.credit_account_id.to_bytes(16),
                    transfer.amount.to_bytes(16),
                    pending_id.to_bytes(16) if pending_id else ZERO,
                    user_data_128.to_bytes(16) if user_data_128 else ZERO,
                )
            )
    except OverflowError as error:
        raise ValueError("a number of a transfer is not of 128 bits") from error
    _check_widths(user_data_64=user_data_64, user_data_32=user_data_32, ledger=ledger, code=code, flags=flags)
    check_transfers_supported(flags=flags, timeout=timeout)
    return requests, bool(flags & _LINKED)


def encode_ids(ids: Sequence[int]) -> list[bytes]:
    """The blobs of ids; raises `ValueError` for too many, and for what is not of 128 bits."""
    check_size(ids)
    try:
        return [number.to_bytes(16) for number in ids]
    except OverflowError as error:
        raise ValueError("an id is not a number of 128 bits") from error


def _check_widths(*, user_data_64: int, user_data_32: int, ledger: int, code: int, flags: int) -> None:
    if user_data_64 >> 64 or user_data_32 >> 32 or ledger >> 32 or code >> 16 or flags >> 16:
        raise ValueError("user_data_64, user_data_32, ledger, code or flags is wider than its field")


def signed(number: int) -> int:
    """A 64-bit number as SQLite keeps it, in two's complement."""
    return number - 2**64 if number > I64_MAX else number


def unsigned(number: int) -> int:
    """A 64-bit number from how SQLite keeps it."""
    return number + 2**64 if number < 0 else number


def transfer_of_row(row: Row) -> LedgerTransfer:
    """The transfer that a row holds."""
    timestamp, key, debit, credit, amount, pending, user_data_128, user_data_64, user_data_32, ledger, code, flags = row
    return LedgerTransfer(
        id=int.from_bytes(key),
        debit_account_id=int.from_bytes(debit),
        credit_account_id=int.from_bytes(credit),
        amount=int.from_bytes(amount),
        pending_id=0 if pending is None else int.from_bytes(pending),
        user_data_128=int.from_bytes(user_data_128),
        user_data_64=unsigned(user_data_64),
        user_data_32=user_data_32,
        ledger=ledger,
        code=code,
        flags=flags,
        timestamp=timestamp,
    )
