"""The public contract: an OpenAPI 3.1 document of exactly what is served, with every status and problem."""

from importlib.metadata import version
from typing import Any

from internal_transfer.api.decode import BODY_BYTES_MAX
from internal_transfer.api.headers import WAIT_SECONDS_MAX
from internal_transfer.api.history import CURSOR_PATTERN, PAGE_DEFAULT, PAGE_MOST
from internal_transfer.api.paths import BALANCES, HISTORY, OPTIONS, PREVIEW, TRANSFER_PREFIX, TRANSFERS
from internal_transfer.api.problems import PROBLEM_TYPE, status_of
from internal_transfer.api.schemas import (
    ACCOUNT_TYPE_PATTERN,
    ASSET_PATTERN,
    KEY_PATTERN,
    REQUEST_EXAMPLE,
    TRANSFER_EXAMPLE,
    Schema,
    ref,
    schemas,
)
from internal_transfer.domain.refusal import CATALOGUE, Code
from internal_transfer.domain.transfer import Status

_DESCRIPTION = f"""\
Users move their own money between their own accounts. Amounts are decimal strings, ids are strings, times are RFC 3339
in UTC.

Anything may be retried at any time: send the same Idempotency-Key with the same content, and the answer is the same
transfer in its present state. A key belongs to the user for ever. What failed stays failed under its key. A request
that is refused before it is recorded does not use up its key.

Bodies are strict JSON of at most {BODY_BYTES_MAX} bytes: repeated keys, unknown fields and numbers for amounts are
refused. Unknown query parameters are refused too. Every refusal is a problem (RFC 9457) with a code, whether anything
was recorded, and what may help. Credentials are checked before anything else. HEAD works wherever GET does, OPTIONS
names the methods of a path, and every other method is a 405.
"""

_SYNTAX_CODES = (Code.INVALID_REQUEST,)
_BODY_CODES = (
    Code.INVALID_REQUEST,
    Code.INVALID_AMOUNT,
    Code.INVALID_ASSET,
    Code.INVALID_ACCOUNT,
    Code.ASSET_MISMATCH,
    Code.SAME_ACCOUNT,
)
_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds to wait, randomised so that clients do not all come back at once.",
        "schema": {"type": "integer", "minimum": 1},
    }
}
_LOCATION = {
    "Location": {
        "description": "Where the transfer can be read.",
        "schema": {"type": "string", "format": "uri-reference"},
    }
}
_WAITED = {
    "Preference-Applied": {
        "description": "The wait that was granted, if the request asked for one.",
        "schema": {"type": "string", "pattern": "^wait=[0-9]{1,2}$"},
    }
}
_REPLAYED = {
    "Idempotent-Replayed": {
        "description": "Present if the key was used before, with the same content.",
        "schema": {"type": "string", "enum": ["true"]},
    }
}


def document() -> dict[str, Any]:
    """Returns the whole document, ready to be encoded."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Internal transfer",
            "version": version("internal-transfer"),
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "This service."}],
        "security": [{"bearer": []}],
        "tags": [
            {"name": "Transfers", "description": "Moving money and finding out what became of it."},
            {"name": "Accounts", "description": "What a user has and may move."},
        ],
        "paths": {
            TRANSFERS: {"post": _create(), "get": _by_key()},
            HISTORY: {"get": _history()},
            PREVIEW: {"post": _preview()},
            OPTIONS: {"get": _options()},
            TRANSFER_PREFIX + "{request_id}": {"get": _by_id()},
            BALANCES: {"get": _balances()},
        },
        "components": {
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "A token of a configured issuer with iss, aud, sub (the user), exp and iat. If "
                    "it has roles, user must be one of them; tier chooses the limits.",
                }
            },
            "schemas": schemas(),
        },
    }


def _with_status(status: int) -> tuple[Code, ...]:
    return tuple(code for code in Code if status_of(code) == status)


def _problem(what: str, codes: tuple[Code, ...], headers: dict[str, Any] | None = None) -> dict[str, Any]:
    listed = "\n".join(f"- {code}: {CATALOGUE[code].title}" for code in codes)
    schema = {"allOf": [ref("Problem"), {"properties": {"code": {"enum": [code.value for code in codes]}}}]}
    response: dict[str, Any] = {
        "description": f"{what}\n\n{listed}",
        "content": {PROBLEM_TYPE.decode(): {"schema": schema}},
    }
    return response | {"headers": headers} if headers else response


def _problems(*, syntax: tuple[Code, ...] = _SYNTAX_CODES, body: bool = False) -> dict[str, Any]:
    """Returns the problems of every operation, with those of a body where it has one."""
    challenge = {"WWW-Authenticate": {"description": "How to authenticate.", "schema": {"type": "string"}}}
    responses = {
        "400": _problem("The request is wrong, whatever the settings and the state.", syntax),
        "401": _problem("The credentials are missing or not valid.", _with_status(401), challenge),
        "403": _problem("The caller may not do this.", _with_status(403)),
        "406": _problem("The Accept header allows nothing that is offered.", _SYNTAX_CODES),
        "408": _problem("The headers or the body did not arrive in time; the connection is closed.", _SYNTAX_CODES),
        "431": _problem("The headers are too large; the connection is closed.", _SYNTAX_CODES),
        "500": _problem("The service failed.", _with_status(500)),
        "503": _problem("The service cannot answer now.", _with_status(503), _RETRY_AFTER),
    }
    if body:
        responses["413"] = _problem(f"The body is larger than {BODY_BYTES_MAX} bytes.", _SYNTAX_CODES)
        responses["415"] = _problem("The body is not declared as JSON.", _SYNTAX_CODES)
    return responses


def _json(schema: Schema, description: str, *, example: Any = None, headers: Any = None) -> dict[str, Any]:
    media: dict[str, Any] = {"schema": schema}
    if example is not None:
        media["examples"] = {"example": {"value": example}}
    response: dict[str, Any] = {"description": description, "content": {"application/json": media}}
    return response | {"headers": headers} if headers else response


def _parameter(name: str, schema: Schema, description: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description, **more}


def _operation(name: str, tag: str, summary: str, responses: dict[str, Any], **more: Any) -> dict[str, Any]:
    ordered = dict(sorted(responses.items()))
    return {"operationId": name, "tags": [tag], "summary": summary, **more, "responses": ordered}


def _body() -> dict[str, Any]:
    media = {"schema": ref("TransferRequest"), "examples": {"example": {"value": REQUEST_EXAMPLE}}}
    return {"required": True, "content": {"application/json": media}}


def _create() -> dict[str, Any]:
    kept = {**_LOCATION, **_WAITED, **_REPLAYED}
    pending = TRANSFER_EXAMPLE | {"status": "PENDING", "events": TRANSFER_EXAMPLE["events"][:2]}
    failed = (
        "The settings or the state do not allow it. With recorded true, the transfer was accepted and failed; it has a "
        "request_id and stays failed under its key."
    )
    syntax = (*_BODY_CODES, Code.IDEMPOTENCY_KEY_REQUIRED)
    responses = _problems(syntax=syntax, body=True) | {
        "200": _json(ref("Transfer"), "A replay of a transfer that succeeded.", example=TRANSFER_EXAMPLE, headers=kept),
        "201": _json(
            ref("Transfer"), "The transfer succeeded.", example=TRANSFER_EXAMPLE, headers={**_LOCATION, **_WAITED}
        ),
        "202": _json(ref("Transfer"), "The transfer is recorded and still under way.", example=pending, headers=kept),
        "422": _problem(failed, _with_status(422), kept),
        "429": _problem("The caller sends too many requests.", _with_status(429), _RETRY_AFTER),
    }
    return _operation(
        "createTransfer",
        "Transfers",
        "Move money between two accounts",
        responses,
        parameters=[
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": True,
                "schema": {"type": "string", "pattern": KEY_PATTERN},
                "description": "One per transfer, sent again with every retry: 1 to 128 printable ASCII characters, "
                "bare or as a quoted string.",
                "example": "1f8a9a3e-salary-2026-11",
            },
            {
                "name": "Prefer",
                "in": "header",
                "required": False,
                "schema": {"type": "string"},
                "description": f"wait=N: how many seconds to wait for a final state, at most {WAIT_SECONDS_MAX}. "
                "Without it, half a second. Anything else is ignored.",
                "example": "wait=10",
            },
        ],
        requestBody=_body(),
    )


def _not_found() -> dict[str, Any]:
    return {"404": _problem("The caller has no such transfer.", _with_status(404))}


def _by_key() -> dict[str, Any]:
    key = {"type": "string", "pattern": "^[ -~]{1,128}$"}
    return _operation(
        "findTransferByKey",
        "Transfers",
        "Find the transfer of an idempotency key",
        _problems() | _not_found() | {"200": _json(ref("Transfer"), "The transfer.", example=TRANSFER_EXAMPLE)},
        parameters=[_parameter("idempotency_key", key, "The key, without quotes.", required=True, example="salary-11")],
    )


def _by_id() -> dict[str, Any]:
    parameter = {
        "name": "request_id",
        "in": "path",
        "required": True,
        "schema": ref("RequestId"),
        "example": TRANSFER_EXAMPLE["request_id"],
    }
    return _operation(
        "getTransfer",
        "Transfers",
        "Read a transfer with its timeline",
        _problems() | _not_found() | {"200": _json(ref("Transfer"), "The transfer.", example=TRANSFER_EXAMPLE)},
        parameters=[parameter],
    )


def _history() -> dict[str, Any]:
    listed = {name: value for name, value in TRANSFER_EXAMPLE.items() if name != "events"}
    page = _json(
        ref("History"),
        "One page, newest accepted first.",
        example={"transfers": [listed], "next_cursor": None},
        headers={"Link": {"description": "The next page, with rel=next.", "schema": {"type": "string"}}},
    )
    page["content"]["text/csv"] = {"schema": {"type": "string"}}
    time = {"type": "string", "format": "date-time"}
    statuses = {"type": "array", "items": {"type": "string", "enum": [status.value for status in Status]}}
    return _operation(
        "listTransfers",
        "Transfers",
        "List transfers",
        _problems() | {"200": page},
        description="As JSON, or as CSV with Accept: text/csv. Following the pages shows every transfer that "
        "was recorded before the first page exactly once.",
        parameters=[
            _parameter(
                "limit",
                {"type": "integer", "minimum": 1, "maximum": PAGE_MOST, "default": PAGE_DEFAULT},
                "How many transfers on a page.",
            ),
            _parameter(
                "cursor",
                {"type": "string", "pattern": CURSOR_PATTERN},
                "next_cursor of the previous page; the other parameters stay the same.",
            ),
            _parameter(
                "status",
                statuses | {"minItems": 1, "maxItems": 4, "uniqueItems": True},
                "Only transfers in one of these states.",
                style="form",
                explode=True,
            ),
            _parameter("asset", {"type": "string", "pattern": ASSET_PATTERN}, "Only transfers of this asset."),
            _parameter(
                "account_type",
                {"type": "string", "pattern": ACCOUNT_TYPE_PATTERN},
                "Only transfers from or to accounts of this type.",
            ),
            _parameter(
                "direction",
                {"type": "string", "enum": ["in", "out"]},
                "Only transfers into or out of accounts of account_type, which it needs.",
            ),
            _parameter("from", time, "Only transfers created at this time or later."),
            _parameter("to", time, "Only transfers created before this time."),
        ],
    )


def _preview() -> dict[str, Any]:
    limits = {
        "min": "0.01",
        "max": "1000000",
        "daily": "10000000",
        "daily_remaining": "9999987.5",
        "resets_at": "2026-11-25T00:00:00.000Z",
    }
    example = {"allowed": True, "problem": None, "max_amount": "87.5", "limits": limits}
    return _operation(
        "previewTransfer",
        "Transfers",
        "Ask whether a transfer would be accepted now",
        _problems(syntax=_BODY_CODES, body=True)
        | {"200": _json(ref("Preview"), "The verdict; nothing was recorded.", example=example)},
        requestBody=_body(),
        description="The same checks and codes as the real call. A refusal by settings or state is a 200 with allowed "
        "false and its problem.",
    )


def _options() -> dict[str, Any]:
    return _operation(
        "getOptions",
        "Accounts",
        "List what can be moved, between which accounts, and how much",
        _problems() | {"200": _json(ref("Options"), "The options.")},
    )


def _balances() -> dict[str, Any]:
    line = {"account_type": "funding", "asset": "USDT", "posted": "100", "held": "12.5", "available": "87.5"}
    return _operation(
        "listBalances",
        "Accounts",
        "List the balances of all accounts that were ever used",
        _problems() | {"200": _json(ref("Balances"), "By account type and asset.", example={"balances": [line]})},
    )
