import pytest
from msgspec.structs import replace

from internal_transfer.domain.account import Account, AccountType, Asset, Holder
from internal_transfer.domain.amount import AMOUNT_UNITS_MAX
from internal_transfer.domain.refusal import Code, Detail, Refusal
from internal_transfer.domain.request import TransferRequest
from internal_transfer.domain.rules import (
    Admitted,
    Limit,
    Policy,
    Route,
    Rules,
    check_permission,
    check_rules,
    daily_limit_exceeded,
)

USDT = Asset("USDT", 1, 6, 4)
LIMIT = Limit(10_000, 5_000_000, 9_000_000)
RULES = Rules(
    assets={"USDT": USDT, "OLD": Asset("OLD", 2, 6, 6, closed=True)},
    account_types={
        "funding": AccountType("funding", 1, Holder.LEDGER),
        "spot": AccountType("spot", 2, Holder.CORE, "core"),
        "earn": AccountType("earn", 3, Holder.LEDGER),
        "old": AccountType("old", 4, Holder.LEDGER, closed=True),
    },
    routes=frozenset({Route("funding", "spot"), Route("funding", "old")}),
    limits={"standard": {"USDT": LIMIT}, "poor": {}},
    sub_accounts={"master": frozenset({"sub"})},
)
FROM, TO = "from_account.account_type", "to_account.account_type"


def request_of(
    *, source="funding", target="spot", asset="USDT", amount="1.5", caller="u", owners=("u", "u"), tier=None
):
    return TransferRequest(
        caller=caller,
        tier=tier or "standard",
        key="k",
        source=Account(owners[0], source, asset),
        target=Account(owners[1], target, asset),
        amount=amount,
    )


def test_an_allowed_request_is_admitted_with_its_units():
    """A request within the rules is admitted, in smallest units and with the limit that applies."""
    assert check_rules(request_of(), RULES, Policy()) == Admitted(1_500_000, LIMIT)


@pytest.mark.parametrize("amount", ["0.01", "5", "5.0000000"])
def test_limits_are_inclusive(amount):
    """The smallest and the largest amount are themselves allowed."""
    assert isinstance(check_rules(request_of(amount=amount), RULES, Policy()), Admitted)


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"asset": "MOON"}, Code.INVALID_ASSET, "from_account.asset"),
        ({"asset": "OLD"}, Code.INVALID_ASSET, "from_account.asset"),
        ({"source": "moon"}, Code.INVALID_ACCOUNT, FROM),
        ({"target": "moon"}, Code.INVALID_ACCOUNT, TO),
        ({"target": "old"}, Code.INVALID_ACCOUNT, TO),
        ({"source": "spot", "target": "funding"}, Code.INVALID_ACCOUNT, TO),
        ({"target": "earn"}, Code.INVALID_ACCOUNT, TO),
        ({"amount": "1.00001"}, Code.INVALID_PRECISION, "amount"),
        ({"amount": "0.0099"}, Code.AMOUNT_TOO_SMALL, "amount"),
        ({"amount": "5.0001"}, Code.AMOUNT_TOO_LARGE, "amount"),
        ({"tier": "poor"}, Code.PERMISSION_DENIED, "tier"),
        ({"tier": "unknown"}, Code.PERMISSION_DENIED, "tier"),
    ],
)
def test_each_rule_refuses_with_its_code_and_field(changes, code, field):
    """Exactly the broken rule is named."""
    refusal = check_rules(request_of(**changes), RULES, Policy())
    assert isinstance(refusal, Refusal)
    assert (refusal.code, [detail.field for detail in refusal.details]) == (code, [field])
    assert refusal.message == f"{field}: {refusal.details[0].rule}"


def test_owners_of_one_type_need_no_route():
    """Between two owners' accounts of one type no route is needed; the permission decides."""
    request = request_of(source="earn", target="earn", caller="master", owners=("master", "sub"))
    assert isinstance(check_rules(request, RULES, Policy()), Admitted)


def test_no_limit_allows_more_than_a_ledger_can_sum():
    """A limit above the cap of amounts counts as the cap."""
    asset, limit = Asset("USDT", 1, 0, 0), Limit(1, 2**120, 2**120)
    rules = replace(RULES, assets={"USDT": asset}, limits={"standard": {"USDT": limit}})
    at_most = check_rules(request_of(amount=str(AMOUNT_UNITS_MAX)), rules, Policy())
    assert at_most == Admitted(AMOUNT_UNITS_MAX, limit)
    above = check_rules(request_of(amount=str(AMOUNT_UNITS_MAX + 1)), rules, Policy())
    assert isinstance(above, Refusal)
    assert above.code is Code.AMOUNT_TOO_LARGE


@pytest.mark.parametrize(
    ("policy", "code", "field"),
    [
        (Policy(stopped=True), Code.ROUTE_PAUSED, "from_account"),
        (Policy(frozen_users=frozenset({"u"})), Code.ACCOUNT_FROZEN, "from_account"),
        (Policy(frozen_users=frozenset({"sub"})), Code.ACCOUNT_FROZEN, "to_account"),
        (Policy(frozen_users=frozenset({"master"})), Code.ACCOUNT_FROZEN, "from_account"),
        (Policy(frozen_assets=frozenset({"USDT"})), Code.ROUTE_PAUSED, "from_account.asset"),
        (Policy(paused_routes=frozenset({Route("funding", "spot")})), Code.ROUTE_PAUSED, FROM),
    ],
)
def test_the_policy_in_force_refuses(policy, code, field):
    """A freeze of a user (also the caller) or an asset, a paused route and a full stop refuse what the rules allow."""
    request = request_of(caller="master", owners=("u", "sub"))
    refusal = check_rules(request, RULES, policy)
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.details[0].field) == (code, field)


def test_a_policy_about_others_changes_nothing():
    """Freezes of other users, assets and routes let the request pass."""
    policy = Policy(1, frozenset({"v"}), frozenset({"BTC"}), frozenset({Route("spot", "funding")}))
    assert isinstance(check_rules(request_of(), RULES, policy), Admitted)


@pytest.mark.parametrize(
    ("caller", "owners", "field"),
    [
        ("u", ("u", "u"), None),
        ("master", ("master", "sub"), None),
        ("master", ("sub", "master"), None),
        ("sub", ("sub", "master"), "to_account.user_id"),
        ("u", ("v", "u"), "from_account.user_id"),
        ("u", ("u", "v"), "to_account.user_id"),
        ("master", ("other", "sub"), "from_account.user_id"),
    ],
)
def test_who_may_name_whose_accounts(caller, owners, field):
    """A caller may name its own accounts and those of its sub-accounts; a sub-account may not name its master's."""
    refusal = check_permission(request_of(caller=caller, owners=owners), RULES)
    if field is None:
        assert refusal is None
    else:
        assert isinstance(refusal, Refusal)
        assert (refusal.code, refusal.details[0].field) == (Code.PERMISSION_DENIED, field)


@pytest.mark.parametrize(("remaining", "left"), [(1_500_000, "1.5"), (0, "0"), (-1, "0")])
def test_the_rest_of_the_daily_limit_is_told(remaining, left):
    """The refusal says how much is left today, which is never negative."""
    refusal = daily_limit_exceeded(USDT, remaining)
    assert refusal.code is Code.DAILY_LIMIT_EXCEEDED
    assert refusal.details == (Detail("amount", f"only {left} USDT are left of today's limit"),)
