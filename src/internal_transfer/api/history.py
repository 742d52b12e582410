"""Parses history queries strictly; a cursor continues only the query that it came from."""

import base64
import re
import struct
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from urllib.parse import parse_qsl, urlencode

from msgspec.structs import replace

from internal_transfer.domain.account import Owner, asset_fault, is_account_type, is_asset
from internal_transfer.domain.refusal import Refusal, refuse_field
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.transfer_store import HistoryPage, HistoryQuery

PAGE_MOST = 100
PAGE_DEFAULT = 20
CURSOR_PATTERN = r"^[A-Za-z0-9_-]{32}$"

_PARAMETERS = frozenset(
    {"limit", "cursor", "status", "asset", "account_type", "direction", "from", "to"},
)
_REPEATABLE = frozenset({"status"})
_PAIRS_MAX = 32
_LIMIT = re.compile(r"[1-9][0-9]{0,2}", re.ASCII)
_CURSOR = re.compile(CURSOR_PATTERN, re.ASCII)
_CURSOR_FIELDS = struct.Struct(">QQ8s")
_NUMBER_MAX = 2**63 - 1
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_pairs(
    query_string: bytes, *, allowed: frozenset[str], may_be_empty: bool = False
) -> list[tuple[str, str]] | Refusal:
    """Returns the parameters of a query, percent-decoded once; refuses unknown, malformed, repeated and empty ones."""
    if not query_string:
        return []
    try:
        pairs = parse_qsl(
            query_string.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=_PAIRS_MAX,
        )
    except ValueError:
        return refuse_field("query", "is not a well-formed list of at most 32 parameters")
    seen = set()
    for name, value in pairs:
        if name not in allowed:
            return refuse_field(name[:64], "is not a known parameter")
        if not value and not may_be_empty:
            return refuse_field(name, "must not be empty")
        if name in seen and name not in _REPEATABLE:
            return refuse_field(name, "is given more than once")
        seen.add(name)
    return pairs


def parse_history(query_string: bytes, owner: Owner) -> HistoryQuery | Refusal:
    """Returns the owner's query, or a refusal that names the parameter and the rule it broke."""
    pairs = parse_pairs(query_string, allowed=_PARAMETERS)
    if isinstance(pairs, Refusal):
        return pairs
    given = dict(pairs)
    limit = given.get("limit", str(PAGE_DEFAULT))
    if _LIMIT.fullmatch(limit) is None or int(limit) > PAGE_MOST:
        return refuse_field("limit", f"must be a whole number from 1 to {PAGE_MOST}")
    statuses = {value for name, value in pairs if name == "status"}
    if not statuses <= set(Status):
        return refuse_field("status", f"must be one of {', '.join(Status)}; repeat the parameter for more than one")
    asset, account_type, direction = given.get("asset"), given.get("account_type"), given.get("direction")
    if asset is not None and not is_asset(asset):
        return refuse_field("asset", asset_fault(asset))
    if account_type is not None and not is_account_type(account_type):
        return refuse_field("account_type", "is not the name of an account type")
    if direction is not None and direction not in {"in", "out"}:
        return refuse_field("direction", "must be in or out")
    if direction is not None and account_type is None:
        return refuse_field("direction", "needs account_type")
    times: dict[str, int] = {}
    for name in ("from", "to"):
        if name in given:
            time = _parse_time(given[name])
            if time is None:
                return refuse_field(name, "must be an RFC 3339 time such as 2026-01-31T00:00:00Z (a + is sent as %2B)")
            times[name] = time
    query = HistoryQuery(
        owner=owner,
        most=int(limit),
        statuses=frozenset(Status(status) for status in statuses),
        asset=asset,
        account_type=account_type,
        direction=direction,
        from_ms=times.get("from"),
        to_ms=times.get("to"),
    )
    cursor = given.get("cursor")
    return query if cursor is None else _go_on(query, cursor)


def next_cursor(query: HistoryQuery, page: HistoryPage) -> str | None:
    """Returns the cursor of the next page, or None after the last one."""
    if page.next_after is None:
        return None
    check = _check(query, page.next_after, page.until)
    return base64.urlsafe_b64encode(_CURSOR_FIELDS.pack(page.next_after, page.until, check)).decode("ascii")


def next_target(path: str, query_string: bytes, cursor: str) -> str:
    """Returns the path and query of the next page: the same parameters with another cursor."""
    pairs = [pair for pair in parse_qsl(query_string.decode("ascii")) if pair[0] != "cursor"]
    return f"{path}?{urlencode([*pairs, ('cursor', cursor)])}"


def _go_on(query: HistoryQuery, cursor: str) -> HistoryQuery | Refusal:
    if _CURSOR.fullmatch(cursor) is None:
        return refuse_field("cursor", "is not a cursor of this service")
    after, until, check = _CURSOR_FIELDS.unpack(base64.urlsafe_b64decode(cursor))
    if after > _NUMBER_MAX or until > _NUMBER_MAX or check != _check(query, after, until):
        return refuse_field(
            "cursor", "belongs to another query; keep the other parameters, or start again without a cursor"
        )
    return replace(query, after=after, until=until)


def _check(query: HistoryQuery, after: int, until: int) -> bytes:
    """Returns the digest that ties a cursor to its query.

    It catches mistakes, not attacks, so the gateways need not share a secret: whatever the cursor, the query finds only
    the caller's own transfers.
    """
    walk = (
        query.owner,
        sorted(query.statuses),
        query.asset,
        query.account_type,
        query.direction,
        query.from_ms,
        query.to_ms,
        after,
        until,
    )
    return blake2b(repr(walk).encode(), digest_size=8, person=b"history").digest()


def _parse_time(text: str) -> int | None:
    """Returns milliseconds since 1970, or None if malformed.

    It rounds up, so that both ends of a range keep their meaning.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    fraction, zone = match[1] or "", match[2]
    try:
        whole = datetime.fromisoformat(text[:19].upper() + ("+00:00" if zone in "Zz" else zone))
    except ValueError:
        return None
    nanoseconds = int(fraction[1:].ljust(9, "0")) if fraction else 0
    return (whole - _EPOCH) // timedelta(milliseconds=1) - (-nanoseconds // 1_000_000)
