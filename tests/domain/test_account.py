import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal_transfer.domain.account import (
    Account,
    Holder,
    asset_fault,
    is_account_type,
    is_asset,
    is_owner,
    ledger_account_id,
)

PARTS = st.text(max_size=6)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (is_owner, ["a", "A-1_b.c:d", "0", "x" * 64], ["", "x" * 65, "a b", "é", "a\n", "a/b", "１"]),  # noqa: RUF001
        (is_account_type, ["spot", "a", "a_1", "a" * 32], ["", "Spot", "1a", "_a", "a-b", "a" * 33, "spot\n"]),
        (is_asset, ["USDT", "1INCH", "A.B-C_D", "A" * 32], ["", "usdt", ".A", "A" * 33, "A B", "USDT\n", "É"]),
    ],
    ids=["owner", "account type", "asset"],
)
def test_names_are_checked_to_the_letter(check, good, bad):
    """Names are ASCII, of bounded length, and match from the first to the last character."""
    assert [name for name in good if not check(name)] == []
    assert [name for name in bad if check(name)] == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("usdt", "must be upper case"),
        ("1inCh", "must be upper case"),
        ("u sdt", "is not an asset code"),
        ("ß", "is not an asset code"),
        ("", "is not an asset code"),
    ],
)
def test_what_is_wrong_with_an_asset_code(text, fault):
    """A code whose only fault is lower case is refused for that; any other text is not a code."""
    assert asset_fault(text) == fault


def test_two_kinds_of_holders():
    """The ledger or a core holds a balance."""
    assert [holder.value for holder in Holder] == ["ledger", "core"]


def test_an_accounts_ledger_id_never_changes():
    """The hash is pinned, since another one would lose every existing account."""
    assert ledger_account_id(Account("u1", "funding", "USDT")) == 0x0975B2B3A80B3FEF09ABA9C77E477335


@given(st.tuples(PARTS, PARTS, PARTS), st.tuples(PARTS, PARTS, PARTS))
def test_different_accounts_have_different_ids(one, other):
    """Moving a character from one part to the next gives another id, and a ledger takes every id."""
    first, second = ledger_account_id(Account(*one)), ledger_account_id(Account(*other))
    assert (first == second) == (one == other)
    assert 0 < first < 2**128 - 1
