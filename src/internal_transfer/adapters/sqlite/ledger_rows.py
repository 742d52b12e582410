"""How the embedded ledger's rows are written and read."""

from typing import Any

from internal_transfer.ports.ledger import LedgerTransfer

I64_MAX = 2**63 - 1

Row = tuple[Any, ...]
"""A row of `ledger_transfer`, in the order of its columns; that of a burnt id is (0, id)."""

ID, DEBIT, CREDIT, AMOUNT, PENDING_ID, USER_DATA, FLAGS = 1, 2, 3, 4, 5, 6, 11
"""The positions of these columns in the row of a transfer."""


def signed(number: int) -> int:
    """A 64-bit number as SQLite stores it, in two's complement."""
    return number - 2**64 if number > I64_MAX else number


def unsigned(number: int) -> int:
    """The 64-bit number that SQLite stores as this one."""
    return number + 2**64 if number < 0 else number


def transfer_of(row: Row) -> LedgerTransfer:
    """The transfer in a row."""
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
