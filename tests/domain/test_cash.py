import pytest

from internal_transfer.domain.account import is_owner
from internal_transfer.domain.cash import (
    ACCOUNT_CODES,
    CASH_OWNER,
    TRANSFER_CODES,
    CashAct,
    cash_account,
    is_reference,
)
from internal_transfer.settings.load import ACCOUNT_CODE_MAX


def test_the_far_side_is_nobodys_account():
    """No user can name the account from which deposits come, and no configured type has its code."""
    assert not is_owner(CASH_OWNER)
    for act in CashAct:
        account = cash_account(act, "USDT")
        assert (account.owner, account.type, account.asset) == (CASH_OWNER, act.value, "USDT")
        assert ACCOUNT_CODES[act] > ACCOUNT_CODE_MAX
        assert TRANSFER_CODES[act] != 1
    assert len(set(ACCOUNT_CODES.values())) == len(set(TRANSFER_CODES.values())) == 2


@pytest.mark.parametrize(
    ("text", "good"),
    [("wire 2026-1", True), ("x" * 128, True), ("x" * 129, False), ("", False), ("é", False), ("a\nb", False)],
)
def test_references_are_printable_and_bounded(text, good):
    """A reference is short and printable."""
    assert is_reference(text) is good
