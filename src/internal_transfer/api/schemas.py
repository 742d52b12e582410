"""The shapes of the public contract: the components of the OpenAPI document."""

from typing import Any

from internal_transfer.api.decode import AMOUNT_CHARACTERS_MAX, MEMO_CHARACTERS_MAX
from internal_transfer.api.history import PAGE_MOST
from internal_transfer.domain.account import Holder
from internal_transfer.domain.refusal import Category, Code, Retry
from internal_transfer.domain.transfer import Status

Schema = dict[str, Any]

AMOUNT_PATTERN = r"^(0|[1-9][0-9]*)(\.[0-9]+)?$"
TRANSFER_AMOUNT_PATTERN = r"^([1-9][0-9]*(\.[0-9]+)?|0\.0*[1-9][0-9]*)$"
OWNER_PATTERN = r"^[A-Za-z0-9_.:\-]{1,64}$"
ACCOUNT_TYPE_PATTERN = r"^[a-z][a-z0-9_]{0,31}$"
ASSET_PATTERN = r"^[A-Z0-9][A-Z0-9_.\-]{0,31}$"
REQUEST_ID_PATTERN = r"^[1-9][0-9]{0,18}$"
KEY_PATTERN = r'^([!#-~]([ -~]{0,126}[!-~])?|"([ !#-\[\]-~]|\\["\\]){1,128}")$'
MEMO_PATTERN = r"^[^\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]*$"

TRANSFER_EXAMPLE: dict[str, Any] = {
    "request_id": "250847563325734912",
    "status": "SUCCESS",
    "from_account": {"account_type": "funding", "asset": "USDT", "user_id": "alice"},
    "to_account": {"account_type": "spot", "asset": "USDT", "user_id": "alice"},
    "asset": "USDT",
    "amount": "12.5",
    "memo": None,
    "created_at": "2026-11-24T09:30:00.120Z",
    "updated_at": "2026-11-24T09:30:00.131Z",
    "failure": None,
    "events": [
        {"version": 1, "status": "REQUESTING", "at": "2026-11-24T09:30:00.120Z", "code": None},
        {"version": 2, "status": "PENDING", "at": "2026-11-24T09:30:00.124Z", "code": None},
        {"version": 3, "status": "SUCCESS", "at": "2026-11-24T09:30:00.131Z", "code": None},
    ],
}
REQUEST_EXAMPLE: dict[str, Any] = {
    "from_account": {"account_type": "funding", "asset": "USDT"},
    "to_account": {"account_type": "spot", "asset": "USDT"},
    "amount": "12.5",
}
PROBLEM_EXAMPLE: dict[str, Any] = {
    "type": "/docs#INVALID_AMOUNT",
    "title": "The amount is not a positive decimal string.",
    "status": 400,
    "detail": "amount: must be larger than zero",
    "code": "INVALID_AMOUNT",
    "category": "validation",
    "recorded": False,
    "retry": "never",
    "details": [{"field": "amount", "rule": "must be larger than zero"}],
}


def ref(name: str) -> Schema:
    """Returns a reference to a named schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def schemas() -> dict[str, Schema]:
    """Returns all named schemas."""
    return _scalars() | _requests() | _answers() | {"Problem": _problem()}


def _record(properties: dict[str, Schema], *, optional: tuple[str, ...] = (), description: str = "") -> Schema:
    schema: Schema = {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }
    return schema | {"description": description} if description else schema


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(items: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": items, **bounds}


def _scalars() -> dict[str, Schema]:
    return {
        "Amount": {
            "type": "string",
            "pattern": AMOUNT_PATTERN,
            "description": "A decimal number as text, without trailing zeros.",
        },
        "TransferAmount": {
            "type": "string",
            "pattern": TRANSFER_AMOUNT_PATTERN,
            "maxLength": AMOUNT_CHARACTERS_MAX,
            "description": "A decimal number above zero as text: no sign, exponent, spaces or separators.",
            "examples": ["12.5"],
        },
        "Balance": {
            "type": "string",
            "pattern": r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$",
            "description": "A decimal number as text, which may be negative.",
        },
        "AccountType": {
            "type": "string",
            "pattern": ACCOUNT_TYPE_PATTERN,
            "description": "The kind of account, such as funding or spot.",
        },
        "AssetCode": {"type": "string", "pattern": ASSET_PATTERN, "description": "What is moved, such as USDT."},
        "UserId": {"type": "string", "pattern": OWNER_PATTERN, "description": "An opaque user id."},
        "RequestId": {"type": "string", "pattern": REQUEST_ID_PATTERN, "description": "A transfer's id, as text."},
        "Time": {
            "type": "string",
            "format": "date-time",
            "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$",
            "description": "RFC 3339 in UTC, with milliseconds.",
        },
        "Status": {
            "type": "string",
            "enum": [status.value for status in Status],
            "description": "REQUESTING: on record. PENDING: the money is held. SUCCESS: both sides are applied. "
            "FAILED: neither is, and neither ever will be. The last two are final.",
        },
        "Code": {"type": "string", "enum": [code.value for code in Code], "description": "Why something was refused."},
        "Category": {
            "type": "string",
            "enum": [category.value for category in Category],
            "description": "What kind of refusal it is.",
        },
    }


def _requests() -> dict[str, Schema]:
    user_id = {
        "anyOf": [
            {"type": "string", "pattern": OWNER_PATTERN},
            {"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
        ],
        "description": "Whose account it is; the caller's own unless sub-accounts or policy allow another.",
    }
    return {
        "AccountRequest": _record(
            {"account_type": ref("AccountType"), "asset": ref("AssetCode"), "user_id": user_id}, optional=("user_id",)
        ),
        "TransferRequest": _record(
            {
                "from_account": ref("AccountRequest"),
                "to_account": ref("AccountRequest"),
                "amount": ref("TransferAmount"),
                "memo": {
                    "anyOf": [
                        {"type": "string", "maxLength": MEMO_CHARACTERS_MAX, "pattern": MEMO_PATTERN},
                        {"type": "null"},
                    ],
                    "description": "Free text without control characters.",
                },
            },
            optional=("memo",),
            description="Both accounts hold the same asset, and they are not the same account. No key may be repeated.",
        )
        | {"examples": [REQUEST_EXAMPLE]},
    }


def _answers() -> dict[str, Schema]:
    times = {"created_at": ref("Time"), "updated_at": ref("Time")}
    limits = {"min": ref("Amount"), "max": ref("Amount"), "daily": ref("Amount")}
    transfer = {
        "request_id": ref("RequestId"),
        "status": ref("Status"),
        "from_account": ref("Account"),
        "to_account": ref("Account"),
        "asset": ref("AssetCode"),
        "amount": ref("Amount"),
        "memo": {"type": ["string", "null"]},
        **times,
        "failure": _or_null(ref("Failure")),
    }
    figures = {name: _or_null(ref("Balance")) for name in ("posted", "held", "available")}
    return {
        "Account": _record(
            {"account_type": ref("AccountType"), "asset": ref("AssetCode"), "user_id": ref("UserId")},
            description="One user's account for one asset.",
        ),
        "Failure": _record({"code": ref("Code"), "category": ref("Category"), "message": {"type": "string"}}),
        "Event": _record(
            {
                "version": {"type": "integer", "minimum": 1},
                "status": ref("Status"),
                "at": ref("Time"),
                "code": _or_null(ref("Code")),
            },
            description="One change of status; versions count from 1.",
        ),
        "Transfer": _record({**transfer, "events": _list(ref("Event"))}, optional=("events",))
        | {"examples": [TRANSFER_EXAMPLE]},
        "TransferInList": _record(transfer, description="A transfer without its events."),
        "History": _record(
            {
                "transfers": _list(ref("TransferInList"), maxItems=PAGE_MOST),
                "next_cursor": {"type": ["string", "null"], "description": "Null on the last page."},
            }
        ),
        "BalanceLine": _record(
            {
                "account_type": ref("AccountType"),
                "asset": ref("AssetCode"),
                **figures,
                "unavailable": {
                    "type": "boolean",
                    "description": "True, with null figures, while the system that holds the balance is away.",
                },
            },
            optional=("unavailable",),
        ),
        "Balances": _record({"balances": _list(ref("BalanceLine"))}),
        "Preview": _record(
            {
                "allowed": {"type": "boolean"},
                "problem": _or_null(ref("Problem")),
                "max_amount": _or_null(ref("Amount"))
                | {"description": "The most that could be moved now; null if the balance is not known."},
                "limits": _or_null(_record({**limits, "daily_remaining": ref("Amount"), "resets_at": ref("Time")})),
            }
        ),
        "Options": _record(
            {
                "assets": _list(
                    _record(
                        {
                            "asset": ref("AssetCode"),
                            "scale": {"type": "integer", "minimum": 0, "description": "Decimal places held."},
                            "precision": {"type": "integer", "minimum": 0, "description": "Places a request may use."},
                        }
                    )
                ),
                "account_types": _list(
                    _record(
                        {
                            "account_type": ref("AccountType"),
                            "holder": {"type": "string", "enum": [holder.value for holder in Holder]},
                        }
                    )
                ),
                "routes": _list(_record({"from": ref("AccountType"), "to": ref("AccountType")})),
                "tier": {"type": "string"},
                "limits": {
                    "type": "object",
                    "additionalProperties": _record(limits),
                    "description": "The caller's limits by asset; an asset without limits may not be moved.",
                },
            }
        ),
    }


def _problem() -> Schema:
    return _record(
        {
            "type": {"type": "string", "format": "uri-reference"},
            "title": {"type": "string"},
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": {"type": "string"},
            "code": ref("Code"),
            "category": ref("Category"),
            "recorded": {
                "type": ["boolean", "null"],
                "description": "Whether a transfer was recorded for this request; null if that is not known.",
            },
            "retry": {
                "type": "string",
                "enum": [retry.value for retry in Retry],
                "description": "What may help: the same request with the same key, a new request under a new key, or "
                "nothing.",
            },
            "request_id": ref("RequestId"),
            "details": _list(_record({"field": {"type": "string"}, "rule": {"type": "string"}})),
        },
        optional=("request_id",),
        description="An RFC 9457 problem.",
    ) | {"examples": [PROBLEM_EXAMPLE]}
