"""Renders OKX's envelope `{"code","msg","data"}`: transfers, balances and refusals as OKX's clients read them.

The HTTP status is that of the service's own interface, so a client that checks only for 2xx never takes a refusal or a
failed transfer for a success. ccxt checks the code first.
"""

from collections.abc import Sequence
from typing import Any, assert_never

import msgspec

from internal_transfer.api.problems import NO_STORE, Header, Reply, retry_after_seconds, status_of
from internal_transfer.domain.account import Asset, Owner
from internal_transfer.domain.amount import format_amount
from internal_transfer.domain.refusal import CATALOGUE, Code, Refusal
from internal_transfer.domain.rules import Rules
from internal_transfer.domain.transfer import Status, Transfer
from internal_transfer.ports.clock import Clock
from internal_transfer.services.answer import BalanceLine

OKX_CODES: dict[Code, str] = {
    Code.INVALID_REQUEST: "51000",
    Code.INVALID_AMOUNT: "51000",
    Code.INVALID_ASSET: "58006",
    Code.INVALID_ACCOUNT: "51000",
    Code.ASSET_MISMATCH: "51000",
    Code.SAME_ACCOUNT: "58123",
    Code.INVALID_PRECISION: "51000",
    Code.AMOUNT_TOO_SMALL: "58114",
    Code.AMOUNT_TOO_LARGE: "58116",
    Code.DAILY_LIMIT_EXCEEDED: "58116",
    Code.IDEMPOTENCY_KEY_REQUIRED: "50014",
    Code.IDEMPOTENCY_KEY_REUSED: "50016",
    Code.UNAUTHENTICATED: "50114",
    Code.PERMISSION_DENIED: "50027",
    Code.ACCOUNT_FROZEN: "58004",
    Code.ROUTE_PAUSED: "58101",
    Code.INSUFFICIENT_BALANCE: "58350",
    Code.TRANSFER_NOT_FOUND: "58129",
    Code.INVALID_STATE_TRANSITION: "58112",
    Code.EXPIRED: "58112",
    Code.CORE_REFUSED: "58112",
    Code.VOIDED_BY_OPERATOR: "58112",
    Code.RATE_LIMITED: "58102",
    Code.SYSTEM_OVERLOADED: "50013",
    Code.LEDGER_UNAVAILABLE: "50005",
    Code.STORE_UNAVAILABLE: "50005",
    Code.CORE_UNAVAILABLE: "50005",
    Code.TIMEOUT: "50004",
    Code.INTERNAL: "50026",
}
"""OKX's code for every refusal. Several share one, so the message begins with the service's own code."""

ACCOUNT_IDS = {"6": "funding", "18": "spot"}
"""OKX's numbers for account types. Every other type goes by its name, and these may too."""

_ACCOUNT_NUMBERS = {name: number for number, name in ACCOUNT_IDS.items()}
_FIELDS = {
    "from_account": "from",
    "from_account.account_type": "from",
    "from_account.asset": "ccy",
    "from_account.user_id": "subAcct",
    "to_account": "to",
    "to_account.account_type": "to",
    "to_account.asset": "ccy",
    "to_account.user_id": "subAcct",
    "amount": "amt",
    "Idempotency-Key": "clientId",
}
_DENIED_STATUS = {"50011": 429, "50013": 503}
_CONTENT_TYPE: Header = (b"content-type", b"application/json")

_encode = msgspec.json.Encoder().encode


def state_of(status: Status) -> str:
    """Returns OKX's word for a status."""
    match status:
        case Status.SUCCESS:
            return "success"
        case Status.FAILED:
            return "failed"
        case Status.REQUESTING | Status.PENDING:
            return "pending"
        case _:
            assert_never(status)


class Envelopes:
    """Makes replies with the scales of the configured assets; the clock's jitter spreads the retries."""

    def __init__(self, assets: dict[str, Asset], clock: Clock) -> None:
        self._scales = {code: asset.scale for code, asset in assets.items()}
        self._clock = clock

    def data(self, entries: Sequence[Any]) -> Reply:
        """Returns the reply to a request that was carried out."""
        return _reply(200, "0", "", entries, headers=(NO_STORE,))

    def refusal(self, refusal: Refusal, *, status: int | None = None, data: Sequence[Any] = ()) -> Reply:
        """Returns the reply to a refused request; `status` is given where it differs from the code's own."""
        code = refusal.code
        said = "; ".join(f"{_FIELDS.get(detail.field, detail.field)}: {detail.rule}" for detail in refusal.details)
        http = status_of(code) if status is None else status
        headers = self._headers(http, refusal.retry_after_seconds)
        return _reply(
            http, OKX_CODES[code], f"{code}: {said or refusal.message}", data, headers=headers, counted_as=code
        )

    def failed(self, transfer: Transfer, caller: Owner) -> Reply:
        """Returns the reply to the submission of a transfer that failed: an error that carries the transfer."""
        assert transfer.failure is not None, "a failed transfer says why"
        code = transfer.failure
        meaning = CATALOGUE[code]
        said = f"{meaning.title} No money was moved, and the transfer stays failed: try again under another clientId."
        view = self.transfer(transfer, caller) | {"sCode": OKX_CODES[code], "sMsg": f"{code}: {said}"}
        return self.refusal(Refusal(code, said), status=422, data=[view])

    def denied(self, code: str, message: str) -> Reply:
        """Returns the reply to a request whose signature is not accepted."""
        status = _DENIED_STATUS.get(code, 401)
        return _reply(status, code, message, (), headers=self._headers(status, None), counted_as=code)

    def wrong(self, status: int, code: str, message: str, *headers: Header) -> Reply:
        """Returns the reply to a request whose path, method, type or size is wrong."""
        return _reply(status, code, message, (), headers=headers, counted_as=Code.INVALID_REQUEST)

    def transfer(self, transfer: Transfer, caller: Owner) -> dict[str, str]:
        """Returns a transfer as the answer to its submission or look-up."""
        shown = self._sides(transfer, caller)
        shown["amt"] = self._amount(transfer.amount, transfer.source.asset)
        return shown

    def bill(self, transfer: Transfer, caller: Owner, *, bill_id: str | None = None) -> dict[str, str]:
        """Returns a transfer as a line of the account's bills; `bill_id` replaces the transfer's id if given."""
        shown = self._sides(transfer, caller)
        shown["billId"] = bill_id or shown["transId"]
        shown["sz"] = self._amount(transfer.amount, transfer.source.asset)
        # In OKX's bills the type is a kind of business, and 1 is any transfer.
        shown["type"] = "1"
        return shown

    def funding_balance(self, line: BalanceLine) -> dict[str, str]:
        """Returns a balance, whose figures are known, in the words of a funding account."""
        posted, held, available = self._figures(line)
        return {"ccy": line.account.asset, "bal": posted, "frozenBal": held, "availBal": available}

    def trading_balance(self, line: BalanceLine) -> dict[str, str]:
        """Returns a balance, whose figures are known, in the words of a trading account."""
        posted, held, available = self._figures(line)
        return {
            "ccy": line.account.asset,
            "eq": posted,
            "cashBal": posted,
            "frozenBal": held,
            "availBal": available,
            "uTime": str(self._clock.now_ms()),
        }

    def trading_account(self, lines: Sequence[BalanceLine]) -> dict[str, Any]:
        """Returns all balances of one trading account."""
        return {"uTime": str(self._clock.now_ms()), "details": [self.trading_balance(line) for line in lines]}

    def currencies(self, rules: Rules, tier: str) -> list[dict[str, Any]]:
        """Returns the open assets, with the tier's limits.

        ccxt takes a currency's precision from the `wdTickSz` of its networks, so each asset names a network.
        """
        limits = rules.limits.get(tier, {})
        shown: list[dict[str, Any]] = []
        for code, asset in sorted(rules.assets.items()):
            if asset.closed:
                continue
            entry = {
                "ccy": code,
                "name": code,
                "chain": f"{code}-Internal",
                "canDep": False,
                "canWd": False,
                "canInternal": True,
                "wdTickSz": str(asset.precision),
            }
            if code in limits:
                entry["minWd"] = self._amount(limits[code].min_units, code)
                entry["maxWd"] = self._amount(limits[code].max_units, code)
            shown.append(entry)
        return shown

    def _sides(self, transfer: Transfer, caller: Owner) -> dict[str, str]:
        source, target = transfer.source, transfer.target
        kind, sub_account = "0", ""
        if target.owner != caller:
            kind, sub_account = ("1" if source.owner == caller else "4"), target.owner
        elif source.owner != caller:
            kind, sub_account = "2", source.owner
        return {
            "transId": str(transfer.id),
            "clientId": transfer.key,
            "ccy": source.asset,
            "from": _ACCOUNT_NUMBERS.get(source.type, source.type),
            "to": _ACCOUNT_NUMBERS.get(target.type, target.type),
            "type": kind,
            "subAcct": sub_account,
            "state": state_of(transfer.status),
            "ts": str(transfer.created_at),
        }

    def _figures(self, line: BalanceLine) -> tuple[str, str, str]:
        assert line.posted is not None, "a balance without figures is refused before it is shown"
        assert line.held is not None, "figures come together"
        assert line.available is not None, "figures come together"
        asset = line.account.asset
        return self._amount(line.posted, asset), self._amount(line.held, asset), self._amount(line.available, asset)

    def _amount(self, units: int, asset: str) -> str:
        return format_amount(units, scale=self._scales[asset])

    def _headers(self, status: int, wanted_seconds: float | None) -> tuple[Header, ...]:
        if status not in {429, 503}:
            return ()
        return ((b"retry-after", b"%d" % retry_after_seconds(self._clock, wanted_seconds)),)


def _reply(
    status: int, code: str, message: str, data: Sequence[Any], *, headers: tuple[Header, ...], counted_as: str = ""
) -> Reply:
    body = _encode({"code": code, "msg": message, "data": data})
    return Reply(status, [_CONTENT_TYPE, (b"content-length", b"%d" % len(body)), *headers], body, counted_as)
