"""Decodes what an OKX client asks for strictly into the service's own terms, by syntax alone."""

import json
import re
from urllib.parse import urlencode

import msgspec
from msgspec import Struct

from internal_transfer.api.decode import AMOUNT_CHARACTERS_MAX, RepeatedKeyError, object_of_pairs
from internal_transfer.api.headers import check_key
from internal_transfer.api.history import PAGE_MOST, parse_history, parse_pairs
from internal_transfer.api.okx.envelope import ACCOUNT_IDS
from internal_transfer.api.render import format_time
from internal_transfer.domain.account import Account, Owner, is_account_type, is_asset, is_owner
from internal_transfer.domain.amount import AmountSyntaxError, normal_amount
from internal_transfer.domain.identifier import TransferId, read_transfer_id
from internal_transfer.domain.refusal import Code, Refusal, refuse_field
from internal_transfer.domain.request import TransferRequest
from internal_transfer.ports.transfer_store import HistoryQuery

CLIENT_ID_REQUIRED = (
    "is required: with it, retries find the same transfer and never move the money twice. "
    "Choose one per transfer and send it again with every retry; in ccxt: params={'clientId': '...'}"
)

_EXPONENT = re.compile(r"[0-9.]+[eE][+-]?[0-9]+", re.ASCII)
_MILLISECONDS = re.compile(r"[0-9]{1,13}", re.ASCII)
_LIMIT = re.compile(r"[1-9][0-9]{0,2}", re.ASCII)
_WRONG_TYPE = re.compile(r".*`\$\.(?P<name>[A-Za-z]+)`", re.DOTALL)
_WITHIN, _TO_SUB_ACCOUNT, _FROM_SUB_ACCOUNT = "0", "1", "2"


class _Body(
    Struct,
    forbid_unknown_fields=True,
    rename={
        "asset": "ccy",
        "amount": "amt",
        "kind": "type",
        "source": "from",
        "target": "to",
        "sub_account": "subAcct",
        "client_id": "clientId",
    },
):
    asset: str | None = None
    amount: str | None = None
    kind: str | None = None
    source: str | None = None
    target: str | None = None
    sub_account: str | None = None
    client_id: str | None = None


class LookUp(Struct, frozen=True):
    """Which transfer is asked for: by its id, by its `clientId`, or by both, which must then belong to one transfer."""

    transfer_id: TransferId | None
    key: str | None


_decode_body = msgspec.json.Decoder(_Body).decode


def decode_transfer(body: bytes, *, caller: Owner, tier: str) -> TransferRequest | Refusal:
    """Returns the request in the body of `POST /asset/transfer`, or a refusal that names the parameter and the rule."""
    try:
        given = _decode_body(body)
        # The shape is known to be flat by now, so nothing can make the second parse recurse.
        json.loads(body, object_pairs_hook=object_of_pairs)
    except RepeatedKeyError as error:
        return refuse_field(str(error), "is given more than once")
    except msgspec.ValidationError as error:
        return _wrong_shape(str(error))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return refuse_field("body", "is not valid JSON in UTF-8")
    key = _key(given.client_id)
    if isinstance(key, Refusal):
        return key
    for name, text in (("ccy", given.asset), ("amt", given.amount), ("from", given.source), ("to", given.target)):
        if not text:
            return refuse_field(name, "is required")
    assert given.asset, "checked above"
    assert given.amount, "checked above"
    if not is_asset(given.asset):
        return refuse_field("ccy", "is not an asset code", Code.INVALID_ASSET)
    accounts = _accounts(given, caller)
    if isinstance(accounts, Refusal):
        return accounts
    amount = _amount(given.amount)
    if isinstance(amount, Refusal):
        return amount
    return TransferRequest(caller, tier, key, *accounts, amount)


def parameters(query_string: bytes, *, allowed: frozenset[str]) -> dict[str, str] | Refusal:
    """Returns the parameters of a query, and refuses unknown, repeated and malformed ones.

    Empty ones count as absent, and so does `None`, which ccxt sends for a missing value.
    """
    pairs = parse_pairs(query_string, allowed=allowed, may_be_empty=True)
    if isinstance(pairs, Refusal):
        return pairs
    return {name: value for name, value in pairs if value not in {"", "None"}}


def look_up(given: dict[str, str]) -> LookUp | Refusal:
    """Returns what `GET /asset/transfer-state` asks for; a malformed id becomes zero, which no transfer has."""
    key: str | None = None
    if "clientId" in given:
        checked = _key(given["clientId"])
        if isinstance(checked, Refusal):
            return checked
        key = checked
    text = given.get("transId")
    if text is None:
        return LookUp(None, key) if key is not None else refuse_field("transId", "or clientId is required")
    return LookUp(read_transfer_id(text) or TransferId(0), key)


def bills_query(given: dict[str, str], owner: Owner) -> HistoryQuery | Refusal:
    """Returns what `GET /account/bills-archive` asks for: `begin` and `end` in milliseconds, both inclusive.

    `after` is the `billId` of the last line of the previous page, which is the cursor.
    """
    wanted = {}
    if "ccy" in given:
        if not is_asset(given["ccy"]):
            return refuse_field("ccy", "is not an asset code", Code.INVALID_ASSET)
        wanted["asset"] = given["ccy"]
    for name, end, later in (("begin", "from", 0), ("end", "to", 1)):
        if name in given:
            if not _MILLISECONDS.fullmatch(given[name]):
                return refuse_field(name, "is not a time in milliseconds since 1970")
            wanted[end] = format_time(int(given[name]) + later)
    limit = given.get("limit", str(PAGE_MOST))
    if not _LIMIT.fullmatch(limit) or int(limit) > PAGE_MOST:
        return refuse_field("limit", f"must be a whole number from 1 to {PAGE_MOST}")
    wanted["limit"] = limit
    if "after" in given:
        wanted["cursor"] = given["after"]
    query = parse_history(urlencode(wanted).encode("ascii"), owner)
    if isinstance(query, Refusal):
        return refuse_field("after", "is not the billId of the last line of a page of this query")
    return query


def account_type(text: str) -> str | None:
    """Returns the account type that an id (6, 18) or a name stands for, or None if it is neither."""
    name = ACCOUNT_IDS.get(text, text)
    return name if is_account_type(name) else None


def _accounts(given: _Body, caller: Owner) -> tuple[Account, Account] | Refusal:
    asset, source_owner, target_owner = given.asset or "", caller, caller
    kind = given.kind or _WITHIN
    if kind not in {_WITHIN, _TO_SUB_ACCOUNT, _FROM_SUB_ACCOUNT}:
        return refuse_field("type", "must be 0 (within the account), 1 (to a sub-account) or 2 (from a sub-account)")
    if kind == _WITHIN:
        if given.sub_account:
            return refuse_field("subAcct", "needs type 1 (to a sub-account) or 2 (from a sub-account)")
    elif not given.sub_account:
        return refuse_field("subAcct", "is required for a transfer to or from a sub-account")
    elif not is_owner(given.sub_account):
        return refuse_field("subAcct", "does not match [A-Za-z0-9_.:-]{1,64}", Code.INVALID_ACCOUNT)
    elif kind == _TO_SUB_ACCOUNT:
        target_owner = Owner(given.sub_account)
    else:
        source_owner = Owner(given.sub_account)
    types = []
    for name, text in (("from", given.source), ("to", given.target)):
        found = account_type(text or "")
        if found is None:
            return refuse_field(
                name, "is not an account: 6 (funding), 18 (spot), or the name of an account type", Code.INVALID_ACCOUNT
            )
        types.append(found)
    source, target = Account(source_owner, types[0], asset), Account(target_owner, types[1], asset)
    if source == target:
        return refuse_field("to", "is the same account as from", Code.SAME_ACCOUNT)
    return source, target


def _amount(text: str) -> str | Refusal:
    if len(text) > AMOUNT_CHARACTERS_MAX:
        return refuse_field("amt", f"is longer than {AMOUNT_CHARACTERS_MAX} characters", Code.INVALID_AMOUNT)
    try:
        amount = normal_amount(text)
    except AmountSyntaxError:
        if _EXPONENT.fullmatch(text):
            rule = 'has an exponent; write it out, such as "0.00009" for 9e-05'
        else:
            rule = 'is not a plain decimal number such as "12.5"'
        return refuse_field("amt", rule, Code.INVALID_AMOUNT)
    return amount if amount != "0" else refuse_field("amt", "must be larger than zero", Code.INVALID_AMOUNT)


def _key(text: str | None) -> str | Refusal:
    """Returns the `clientId` as an idempotency key; refuses "None", which could not be looked up."""
    if text in {None, "", "None"}:
        return refuse_field("clientId", CLIENT_ID_REQUIRED, Code.IDEMPOTENCY_KEY_REQUIRED)
    assert text is not None, "checked above"
    key = check_key(text.encode())
    return key if isinstance(key, str) else refuse_field("clientId", key.details[0].rule)


def _wrong_shape(message: str) -> Refusal:
    """Turns the decoder's message into a refusal that names the parameter."""
    match = _WRONG_TYPE.fullmatch(message)
    if match is not None:
        return refuse_field(match["name"], "must be a string")
    unknown = message.partition("unknown field `")[2].rstrip("`")
    return refuse_field(unknown[:64] or "body", "is not a known parameter" if unknown else message[:200])
