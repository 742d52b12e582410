"""Deposits and withdrawals: the only ways in which the total of an asset changes, and their far side."""

from enum import StrEnum

from internal_transfer.domain.account import Account, Owner

CASH_OWNER = Owner("#cash")
"""Who owns the far side of deposits and withdrawals; no user's id can begin with `#`."""

REFERENCE_CHARACTERS_MAX = 128


class CashAct(StrEnum):
    """Money comes in, or goes out; also the account type of the far side."""

    DEPOSIT = "deposit"
    WITHDRAWAL = "withdrawal"


ACCOUNT_CODES = {CashAct.DEPOSIT: 65_001, CashAct.WITHDRAWAL: 65_002}
"""The ledger codes of the far sides; configured account types end below them."""

TRANSFER_CODES = {CashAct.DEPOSIT: 2, CashAct.WITHDRAWAL: 3}
"""The ledger codes of the transfers; that of holds is 1."""


def cash_account(act: CashAct, asset: str) -> Account:
    """The far side: what came in is its debit balance, what went out its credit balance. It has no limits."""
    return Account(CASH_OWNER, act.value, asset)


def is_reference(text: str) -> bool:
    """Tells whether the text can name a deposit or withdrawal: 1 to 128 printable ASCII characters."""
    return 0 < len(text) <= REFERENCE_CHARACTERS_MAX and text.isascii() and text.isprintable()
