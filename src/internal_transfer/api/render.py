"""Renders what clients read: transfers, balances, previews and options as JSON, and history also as CSV."""

import csv
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from internal_transfer.api.problems import Problem
from internal_transfer.domain.account import Account, Asset
from internal_transfer.domain.amount import format_amount
from internal_transfer.domain.identifier import MILLISECONDS_PER_DAY
from internal_transfer.domain.refusal import CATALOGUE, Category, Code
from internal_transfer.domain.rules import Limit, Rules
from internal_transfer.domain.transfer import Status, Transfer
from internal_transfer.ports.transfer_store import Event
from internal_transfer.services.answer import BalanceLine, Preview

CSV_COLUMNS = (
    "request_id",
    "status",
    "from_account_type",
    "from_user_id",
    "to_account_type",
    "to_user_id",
    "asset",
    "amount",
    "memo",
    "created_at",
    "updated_at",
    "failure_code",
    "failure_category",
    "failure_message",
)
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")

_encode = msgspec.json.Encoder().encode


class _AccountView(Struct, frozen=True, gc=False):
    account_type: str
    asset: str
    user_id: str


class _FailureView(Struct, frozen=True, gc=False):
    code: Code
    category: Category
    message: str


class _EventView(Struct, frozen=True, gc=False):
    version: int
    status: Status
    at: str
    code: Code | None


class _TransferView(Struct, frozen=True):
    request_id: str
    status: Status
    from_account: _AccountView
    to_account: _AccountView
    asset: str
    amount: str
    memo: str | None
    created_at: str
    updated_at: str
    failure: _FailureView | None
    events: list[_EventView] | UnsetType = UNSET


_FAILURES = {code: _FailureView(code, meaning.category, meaning.title) for code, meaning in CATALOGUE.items()}


@lru_cache(maxsize=256)
def _second(seconds: int) -> str:
    # Most responses show times of the present second, so the calendar is worked out once for all of them.
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def format_time(milliseconds: int) -> str:
    """Returns milliseconds since 1970 as RFC 3339 in UTC, with milliseconds."""
    return f"{_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


class Renderer:
    """Renders with the scales of the configured assets, which never change."""

    def __init__(self, assets: dict[str, Asset]) -> None:
        self._scales = {code: asset.scale for code, asset in assets.items()}

    def transfer(self, transfer: Transfer, events: Sequence[Event] = ()) -> bytes:
        """Renders one transfer, without `events` if none are given."""
        return _encode(self._view(transfer, events))

    def page(self, transfers: Sequence[Transfer], next_cursor: str | None) -> bytes:
        """Renders a page of history."""
        return _encode({"transfers": [self._view(transfer, ()) for transfer in transfers], "next_cursor": next_cursor})

    def page_csv(self, transfers: Sequence[Transfer]) -> bytes:
        """Renders a page of history under a header line; an apostrophe makes text of what a spreadsheet would run."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\r\n")
        writer.writerow(CSV_COLUMNS)
        for transfer in transfers:
            failure = None if transfer.failure is None else _FAILURES[transfer.failure]
            writer.writerow(
                _inert(cell)
                for cell in (
                    str(transfer.id),
                    transfer.status.value,
                    transfer.source.type,
                    transfer.source.owner,
                    transfer.target.type,
                    transfer.target.owner,
                    transfer.source.asset,
                    format_amount(transfer.amount, scale=self._scales[transfer.source.asset]),
                    transfer.memo or "",
                    format_time(transfer.created_at),
                    format_time(transfer.updated_at),
                    failure.code.value if failure else "",
                    failure.category.value if failure else "",
                    failure.message if failure else "",
                )
            )
        return text.getvalue().encode()

    def balances(self, lines: Sequence[BalanceLine]) -> bytes:
        """Renders all balances of one owner, sorted by account type and asset."""
        ordered = sorted(lines, key=lambda line: (line.account.type, line.account.asset))
        return _encode({"balances": [self._balance(line) for line in ordered]})

    def preview(self, preview: Preview, asset: str, problem: Problem | None, *, now_ms: int) -> bytes:
        """Renders whether a transfer of this asset would be accepted, and what is left of its limits, if any."""
        limits = None
        if preview.limit is not None:
            limit = preview.limit
            limits = self._limits(limit, asset) | {
                "daily_remaining": self._amount(max(0, limit.daily_units - preview.daily_used_units), asset),
                "resets_at": format_time((now_ms // MILLISECONDS_PER_DAY + 1) * MILLISECONDS_PER_DAY),
            }
        return _encode(
            {
                "allowed": problem is None,
                "problem": problem,
                "max_amount": None if preview.max_units is None else self._amount(preview.max_units, asset),
                "limits": limits,
            }
        )

    def options(self, rules: Rules, tier: str) -> bytes:
        """Renders what is offered: the open assets, account types and routes, and the limits of one tier."""
        kinds = rules.account_types
        is_open = {name for name, kind in kinds.items() if not kind.closed}
        limits = rules.limits.get(tier, {})
        assets = [asset for code, asset in sorted(rules.assets.items()) if not asset.closed]
        return _encode(
            {
                "assets": [{"asset": a.code, "scale": a.scale, "precision": a.precision} for a in assets],
                "account_types": [{"account_type": name, "holder": kinds[name].holder} for name in sorted(is_open)],
                "routes": [
                    {"from": route.source, "to": route.target}
                    for route in sorted(rules.routes)
                    if route.source in is_open and route.target in is_open
                ],
                "tier": tier,
                "limits": {a.code: self._limits(limits[a.code], a.code) for a in assets if a.code in limits},
            }
        )

    def _amount(self, units: int, asset: str) -> str:
        return format_amount(units, scale=self._scales[asset])

    def _limits(self, limit: Limit, asset: str) -> dict[str, str]:
        units = {"min": limit.min_units, "max": limit.max_units, "daily": limit.daily_units}
        return {name: self._amount(each, asset) for name, each in units.items()}

    def _balance(self, line: BalanceLine) -> dict[str, Any]:
        account = line.account
        shown: dict[str, Any] = {"account_type": account.type, "asset": account.asset}
        for name, units in (("posted", line.posted), ("held", line.held), ("available", line.available)):
            shown[name] = None if units is None or line.unavailable else self._amount(units, account.asset)
        if line.unavailable:
            shown["unavailable"] = True
        return shown

    def _view(self, transfer: Transfer, events: Sequence[Event]) -> _TransferView:
        asset = transfer.source.asset
        return _TransferView(
            str(transfer.id),
            transfer.status,
            _account_view(transfer.source),
            _account_view(transfer.target),
            asset,
            format_amount(transfer.amount, scale=self._scales[asset]),
            transfer.memo,
            format_time(transfer.created_at),
            format_time(transfer.updated_at),
            None if transfer.failure is None else _FAILURES[transfer.failure],
            [_EventView(e.version, e.status, format_time(e.at), e.code) for e in events] if events else UNSET,
        )


def _account_view(account: Account) -> _AccountView:
    return _AccountView(account.type, account.asset, account.owner)


def _inert(cell: str) -> str:
    """Returns the cell so that a spreadsheet shows it and does not run it."""
    return f"'{cell}" if cell.lstrip(" ").startswith(_FORMULA_STARTS) else cell
