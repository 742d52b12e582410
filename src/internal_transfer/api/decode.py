"""Decodes the body of a transfer strictly, by syntax alone: what is wrong here is a 400 under any settings.

The usual JSON decoders accept repeated keys, and decimal parsers accept `"1_000"` and Arabic digits. So a typed decoder
checks the shape, counting finds repeated keys, and a pattern checks amounts as text.
"""

import json
import re
import unicodedata
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType
from starlette.types import Receive

from internal_transfer.domain.account import Account, Owner, asset_fault, is_account_type, is_asset, is_owner
from internal_transfer.domain.amount import AmountSyntaxError, normal_amount
from internal_transfer.domain.refusal import Code, Refusal, refuse_field
from internal_transfer.domain.request import TransferRequest

BODY_BYTES_MAX = 16 * 1024
AMOUNT_CHARACTERS_MAX = 128
"""Far more than any asset's largest amount needs; bounds the arithmetic on numbers from outside."""
MEMO_CHARACTERS_MAX = 140

_NAME_CHARACTERS_MAX = 64
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_MESSAGE = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_NAMED_FIELD = re.compile(r"Object (?P<what>contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL)
_EXPECTED = {
    "str": "a string",
    "str | null": "a string or null",
    "int | str": "a string or a whole number",
    "object": "an object",
}


class _AccountBody(Struct, forbid_unknown_fields=True, gc=False):
    account_type: str
    asset: str
    user_id: str | int | UnsetType = UNSET


class _TransferBody(Struct, forbid_unknown_fields=True, gc=False):
    from_account: _AccountBody
    to_account: _AccountBody
    amount: str
    memo: str | UnsetType | None = UNSET


class RepeatedKeyError(ValueError):
    """A JSON object repeats a key; the message is the key."""


_decode_body = msgspec.json.Decoder(_TransferBody).decode


async def read_body(receive: Receive) -> bytes | None:
    """Returns the body of a request, or None if the client has gone; stops reading once it exceeds `BODY_BYTES_MAX`."""
    message = await receive()
    if message["type"] != "http.request":
        return None
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        return body
    parts, size = [body], len(body)
    while message.get("more_body", False) and size <= BODY_BYTES_MAX:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
    return b"".join(parts)


def decode(body: bytes, *, caller: Owner, tier: str, key: str) -> TransferRequest | Refusal:
    """Returns the request in a body of at most `BODY_BYTES_MAX` bytes, or a refusal that names the field and the rule.

    Accounts without `user_id` are the caller's. `caller`, `tier` and `key` are not checked.
    """
    try:
        parsed = _decode_body(body)
    except msgspec.ValidationError as error:
        return _wrong_shape(str(error))
    except UnicodeDecodeError:
        return refuse_field("body", "is not valid UTF-8")
    except msgspec.DecodeError as error:
        if not body.strip():
            return refuse_field("body", "is empty")
        return refuse_field("body", f"is not valid JSON: {str(error)[:200]}")
    if b"\\" in body or body.count(b'"') != 2 * _strings_of(parsed):
        repeated = _repeated_key(body)
        if repeated is not None:
            return refuse_field(_short(repeated), "is given more than once")
    source = _account("from_account", parsed.from_account, caller)
    if isinstance(source, Refusal):
        return source
    target = _account("to_account", parsed.to_account, caller)
    if isinstance(target, Refusal):
        return target
    if source.asset != target.asset:
        return refuse_field("to_account.asset", "differs from from_account.asset", Code.ASSET_MISMATCH)
    if source == target:
        return refuse_field("to_account", "is the same account as from_account", Code.SAME_ACCOUNT)
    if len(parsed.amount) > AMOUNT_CHARACTERS_MAX:
        return refuse_field("amount", f"is longer than {AMOUNT_CHARACTERS_MAX} characters", Code.INVALID_AMOUNT)
    try:
        amount = normal_amount(parsed.amount)
    except AmountSyntaxError:
        return refuse_field("amount", 'is not a plain decimal number such as "12.5"', Code.INVALID_AMOUNT)
    if amount == "0":
        return refuse_field("amount", "must be larger than zero", Code.INVALID_AMOUNT)
    memo = parsed.memo
    if memo is UNSET or memo is None:
        return TransferRequest(caller, tier, key, source, target, amount)
    return _check_memo(memo) or TransferRequest(caller, tier, key, source, target, amount, memo)


def _short(name: str) -> str:
    return name if len(name) <= _NAME_CHARACTERS_MAX else name[:_NAME_CHARACTERS_MAX] + "..."


def _account(field: str, body: _AccountBody, caller: Owner) -> Account | Refusal:
    if not is_account_type(body.account_type):
        return refuse_field(f"{field}.account_type", "is not the name of an account type", Code.INVALID_ACCOUNT)
    if not is_asset(body.asset):
        return refuse_field(f"{field}.asset", asset_fault(body.asset), Code.INVALID_ASSET)
    user_id = body.user_id
    if user_id is UNSET:
        return Account(caller, body.account_type, body.asset)
    if isinstance(user_id, int):
        if not 0 <= user_id < 2**64:
            return refuse_field(f"{field}.user_id", "must be from 0 to 2^64-1 if it is a number", Code.INVALID_ACCOUNT)
        user_id = str(user_id)
    if not is_owner(user_id):
        return refuse_field(f"{field}.user_id", "does not match [A-Za-z0-9_.:-]{1,64}", Code.INVALID_ACCOUNT)
    return Account(Owner(user_id), body.account_type, body.asset)


def _check_memo(memo: str) -> Refusal | None:
    if len(memo) > MEMO_CHARACTERS_MAX:
        return refuse_field("memo", f"is longer than {MEMO_CHARACTERS_MAX} characters")
    if memo.isprintable():
        return None
    # Line separators break lists and exports as a newline does, and bidirectional overrides make an operator read
    # another text than the memo holds. Joiners and unusual spaces are not printable either, but are ordinary text.
    for character in memo:
        if unicodedata.category(character) in {"Cc", "Zl", "Zp"} or character in _BIDI_CONTROLS:
            return refuse_field("memo", "contains control characters")
    return None


def _strings_of(parsed: _TransferBody) -> int:
    """Returns how many strings a body with this content has if it repeats no key.

    A repeated key adds at least one string. In a body without escapes every quotation mark begins or ends a string, so
    counting them finds repeated keys without a second parse.
    """
    strings = 12
    for account in (parsed.from_account, parsed.to_account):
        if account.user_id is not UNSET:
            strings += 2 if isinstance(account.user_id, str) else 1
    if parsed.memo is not UNSET:
        strings += 1 if parsed.memo is None else 2
    return strings


def _repeated_key(body: bytes) -> str | None:
    try:
        json.loads(body, object_pairs_hook=object_of_pairs)
    except RepeatedKeyError as error:
        return str(error)
    return None


def object_of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The `object_pairs_hook` of `json.loads` that raises `RepeatedKeyError` at the first repeated key."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise RepeatedKeyError(name)
        fields[name] = value
    return fields


def _wrong_shape(message: str) -> Refusal:
    """Turns the decoder's message into a refusal that names the field."""
    match = _MESSAGE.fullmatch(message)
    assert match is not None, "the pattern matches every text"
    what, path = match["what"], match["path"] or ""
    named = _NAMED_FIELD.fullmatch(what)
    if named is not None:
        field = f"{path}.{_short(named['name'])}" if path else _short(named["name"])
        rule = "is required" if named["what"] == "missing required" else "is not a known field"
        return refuse_field(field, rule)
    for expected, words in _EXPECTED.items():
        if what.startswith(f"Expected `{expected}`, got"):
            what = f"must be {words}"
            break
    code = Code.INVALID_AMOUNT if path == "amount" else Code.INVALID_REQUEST
    return refuse_field(path or "body", what, code)
