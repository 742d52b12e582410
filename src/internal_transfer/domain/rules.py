"""What the operator allows (assets, routes, limits, freezes), and the check of a request against it."""

from msgspec import Struct

from internal_transfer.domain.account import Account, AccountType, Asset, Owner
from internal_transfer.domain.amount import AMOUNT_UNITS_MAX, AmountPrecisionError, format_amount, parse_amount
from internal_transfer.domain.refusal import Code, Refusal, refuse_field
from internal_transfer.domain.request import TransferRequest


class Limit(Struct, frozen=True):
    """The smallest and largest amount of one transfer, and the most per UTC day, in smallest units."""

    min_units: int
    max_units: int
    daily_units: int


class Route(Struct, frozen=True, order=True):
    """A pair of account types between which money may move, in this direction."""

    source: str
    target: str


class Rules(Struct, frozen=True):
    """The settings that a request is checked against.

    `limits` is by tier and asset; a tier without limits for an asset may not move it. `sub_accounts` lists for each
    master the owners whose accounts it may name besides its own.
    """

    assets: dict[str, Asset]
    account_types: dict[str, AccountType]
    routes: frozenset[Route]
    limits: dict[str, dict[str, Limit]]
    sub_accounts: dict[Owner, frozenset[Owner]]


class Policy(Struct, frozen=True):
    """What operators have stopped while the service runs: no user, asset or route named here may move money."""

    version: int = 0
    frozen_users: frozenset[Owner] = frozenset()
    frozen_assets: frozenset[str] = frozenset()
    paused_routes: frozenset[Route] = frozenset()
    stopped: bool = False


class Admitted(Struct, frozen=True):
    """A request that the rules allow: its amount in smallest units, and the limit that applies to it."""

    units: int
    limit: Limit


def check_permission(request: TransferRequest, rules: Rules) -> Refusal | None:
    """Refuses a request that names an account of a user for whom the caller may not act."""
    allowed = rules.sub_accounts.get(request.caller, frozenset())
    for field, account in (("from_account.user_id", request.source), ("to_account.user_id", request.target)):
        if account.owner != request.caller and account.owner not in allowed:
            return refuse_field(field, "is neither you nor one of your sub-accounts", Code.PERMISSION_DENIED)
    return None


def check_rules(request: TransferRequest, rules: Rules, policy: Policy) -> Admitted | Refusal:
    """Checks a request against settings and policy; the refusal names the field and the rule that it broke."""
    asset = rules.assets.get(request.source.asset)
    if asset is None or asset.closed:
        return refuse_field("from_account.asset", "is not an asset offered here", Code.INVALID_ASSET)
    for field, account in (("from_account", request.source), ("to_account", request.target)):
        refusal = _check_account_type(field, account, rules)
        if refusal is not None:
            return refusal
    route = Route(request.source.type, request.target.type)
    if request.source.type != request.target.type and route not in rules.routes:
        return refuse_field(
            "to_account.account_type", f"cannot be reached from {request.source.type}", Code.INVALID_ACCOUNT
        )
    try:
        units = parse_amount(request.amount, scale=asset.scale, precision=asset.precision)
    except AmountPrecisionError:
        return refuse_field("amount", f"has more than {asset.precision} decimal places", Code.INVALID_PRECISION)
    limit = rules.limits.get(request.tier, {}).get(asset.code)
    if limit is None:
        return refuse_field("tier", f"{request.tier!r} may not move {asset.code}", Code.PERMISSION_DENIED)
    if units < limit.min_units:
        least = format_amount(limit.min_units, scale=asset.scale)
        return refuse_field("amount", f"is below the smallest amount, {least}", Code.AMOUNT_TOO_SMALL)
    most_units = min(limit.max_units, AMOUNT_UNITS_MAX)
    if units > most_units:
        most = format_amount(most_units, scale=asset.scale)
        return refuse_field("amount", f"is above the largest amount, {most}", Code.AMOUNT_TOO_LARGE)
    return _check_policy(request, route, policy) or Admitted(units, limit)


def _check_account_type(field: str, account: Account, rules: Rules) -> Refusal | None:
    kind = rules.account_types.get(account.type)
    if kind is None or kind.closed:
        return refuse_field(f"{field}.account_type", "is not an account type offered here", Code.INVALID_ACCOUNT)
    return None


def _check_policy(request: TransferRequest, route: Route, policy: Policy) -> Refusal | None:
    if policy.stopped:
        return refuse_field("from_account", "all transfers are stopped by the operator", Code.ROUTE_PAUSED)
    for field, account in (("from_account", request.source), ("to_account", request.target)):
        if account.owner in policy.frozen_users or request.caller in policy.frozen_users:
            return refuse_field(field, "belongs to a frozen user", Code.ACCOUNT_FROZEN)
    if request.source.asset in policy.frozen_assets:
        return refuse_field("from_account.asset", "is paused by the operator", Code.ROUTE_PAUSED)
    if route in policy.paused_routes:
        return refuse_field(
            "from_account.account_type", f"to {route.target} is paused by the operator", Code.ROUTE_PAUSED
        )
    return None


def daily_limit_exceeded(asset: Asset, remaining_units: int) -> Refusal:
    """Returns the refusal of an amount that exceeds what is left of the day's limit."""
    left = format_amount(max(0, remaining_units), scale=asset.scale)
    return refuse_field("amount", f"only {left} {asset.code} are left of today's limit", Code.DAILY_LIMIT_EXCEEDED)
