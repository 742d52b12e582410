"""Deposits and withdrawals, the only acts that change the total of an asset, and the accounts on their far side."""

from enum import StrEnum

from internal_transfer.domain.account import Account, Owner

CASH_OWNER = Owner("#cash")
"""The owner of the far side of deposits and withdrawals; no user's id can begin with `#`."""

REFERENCE_CHARACTERS_MAX = 128


class CashAct(StrEnum):
    """Whether money comes in or goes out; the value is also the account type of the far side."""

    DEPOSIT = "deposit"
    WITHDRAWAL = "withdrawal"


ACCOUNT_CODES = {CashAct.DEPOSIT: 65_001, CashAct.WITHDRAWAL: 65_002}
"""The ledger codes of the accounts on the far side; those of configured account types are smaller."""

TRANSFER_CODES = {CashAct.DEPOSIT: 2, CashAct.WITHDRAWAL: 3}
"""The ledger codes of the transfers; the code of a hold is 1."""


def cash_account(act: CashAct, asset: str) -> Account:
    """The account on the far side: deposits are its debits, withdrawals its credits, and it has no limit."""
    return Account(CASH_OWNER, act.value, asset)


def is_reference(text: str) -> bool:
    """Tells whether the text can be the reference of a deposit or withdrawal: 1 to 128 printable ASCII characters."""
    return 0 < len(text) <= REFERENCE_CHARACTERS_MAX and text.isascii() and text.isprintable()
