import pytest
from msgspec.structs import replace

from internal_transfer.domain.account import Account
from internal_transfer.domain.refusal import Detail
from internal_transfer.domain.request import TransferRequest, differing_fields, restored_fingerprint

REQUEST = TransferRequest(
    caller="u",
    tier="standard",
    key="k",
    source=Account("u", "funding", "USDT"),
    target=Account("u", "spot", "USDT"),
    amount="1.5",
    memo="rent",
)
DIFFERS = "differs from the request that used this key first"


def test_the_fingerprint_never_changes():
    """The bytes of version 1 are pinned, so that a retry after an upgrade still matches."""
    assert REQUEST.fingerprint() == b'[1,"u","funding","USDT","u","spot","USDT","1.5","rent"]'
    assert replace(REQUEST, memo=None).fingerprint() == b'[1,"u","funding","USDT","u","spot","USDT","1.5",null]'


def test_who_asks_is_no_part_of_the_content():
    """Tier and key come with the call, so a retry under another tier is still the same request."""
    assert replace(REQUEST, tier="vip", key="other", caller="master").fingerprint() == REQUEST.fingerprint()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"source": Account("v", "funding", "USDT")}, "from_account.user_id"),
        ({"source": Account("u", "earn", "USDT")}, "from_account.account_type"),
        ({"source": Account("u", "funding", "BTC")}, "from_account.asset"),
        ({"target": Account("v", "spot", "USDT")}, "to_account.user_id"),
        ({"target": Account("u", "margin", "USDT")}, "to_account.account_type"),
        ({"target": Account("u", "spot", "BTC")}, "to_account.asset"),
        ({"amount": "2"}, "amount"),
        ({"memo": None}, "memo"),
    ],
)
def test_a_difference_names_its_field(changes, field):
    """Exactly the field that differs is named."""
    other = replace(REQUEST, **changes).fingerprint()
    assert differing_fields(REQUEST.fingerprint(), other) == (Detail(field, DIFFERS),)


def test_several_differences_are_all_named():
    """All differing fields are named at once, in the order of the request."""
    other = replace(REQUEST, amount="2", memo="x").fingerprint()
    assert [detail.field for detail in differing_fields(REQUEST.fingerprint(), other)] == ["amount", "memo"]
    assert differing_fields(REQUEST.fingerprint(), REQUEST.fingerprint()) == ()


def test_another_version_differs_as_a_whole():
    """Fingerprints of different versions cannot be compared field by field."""
    assert [detail.field for detail in differing_fields(b'[2,"other"]', REQUEST.fingerprint())] == ["version"]


def test_what_a_restored_fingerprint_does_not_know_is_no_difference():
    """The memo is lost with the store; accounts and amount still distinguish requests."""
    restored = restored_fingerprint(REQUEST.source, REQUEST.target, REQUEST.amount)
    assert differing_fields(restored, REQUEST.fingerprint()) == ()
    other = replace(REQUEST, amount="2", memo=None).fingerprint()
    assert [detail.field for detail in differing_fields(restored, other)] == ["amount"]
