"""Reads what operators ask for: bodies and parameters, decoded strictly."""

import json
from typing import TypeVar

import msgspec
from msgspec import Struct
from starlette.requests import Request

from internal_transfer.api.decode import BODY_BYTES_MAX, RepeatedKeyError, object_of_pairs, read_body
from internal_transfer.domain.identifier import TransferId, read_transfer_id
from internal_transfer.domain.refusal import Code, Refusal, refuse_field

NO_REASON = "not given"
"""The reason that is recorded if none is given."""

T = TypeVar("T", bound=Struct)


class Nothing(Struct, frozen=True, forbid_unknown_fields=True):
    """An empty body."""


class Decision(Struct, frozen=True, forbid_unknown_fields=True):
    """A decision about a transfer; `evidence` is the digest of what the operator was shown."""

    reason: str
    evidence: str | None = None
    break_glass: bool = False


class Acknowledgement(Struct, frozen=True, forbid_unknown_fields=True):
    """Why a transfer that was posted by breaking the glass counts as settled."""

    reason: str


class CashMove(Struct, frozen=True, forbid_unknown_fields=True):
    """A deposit or withdrawal."""

    user: str
    account: str
    asset: str
    amount: str
    reference: str
    reason: str


class Change(Struct, frozen=True, forbid_unknown_fields=True):
    """A change of policy, of a key or of the demonstration core; `version` is that of the policy it is based on."""

    reason: str = NO_REASON
    version: int | None = None


class NewKey(Struct, frozen=True, forbid_unknown_fields=True):
    """An API key to create."""

    user: str
    tier: str = "standard"
    reason: str = NO_REASON


class RequestRefusedError(Exception):
    """The request is malformed or names something that does not exist; `status` replaces the code's own, if given."""

    def __init__(self, refusal: Refusal, status: int | None = None) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.status = status


def refused(field: str, rule: str, status: int = 400) -> RequestRefusedError:
    """Returns the error that names a field and the rule it broke."""
    return RequestRefusedError(refuse_field(field, rule), status)


async def decode_body(request: Request, kind: type[T]) -> T:
    """Returns the body, and refuses repeated and unknown fields; no body is an empty object."""
    body = await read_body(request.receive)
    if body is None:
        raise refused("body", "did not arrive")
    if len(body) > BODY_BYTES_MAX:
        raise refused("body", f"is larger than {BODY_BYTES_MAX} bytes", 413)
    try:
        return msgspec.convert(json.loads(body or b"{}", object_pairs_hook=object_of_pairs), kind)
    except RepeatedKeyError as error:
        raise refused(str(error), "is given more than once") from error
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$.")
        raise refused(where.rstrip("`") or "body", message) from error
    except (ValueError, RecursionError) as error:
        raise refused("body", "is not valid JSON") from error


def parameters(request: Request, *allowed: str) -> dict[str, str]:
    """Returns the parameters of the query, and refuses unknown and repeated ones."""
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in allowed:
            raise refused(name, "is not a parameter here")
        if name in given:
            raise refused(name, "is given more than once")
        given[name] = value
    return given


def number(given: dict[str, str], name: str, default: int, least: int, most: int) -> int:
    """Returns a parameter that must be a whole number."""
    text = given.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 19 or not least <= int(text) <= most:
        raise refused(name, f"must be a whole number from {least} to {most}")
    return int(text)


def last_part(request: Request, name: str, allowed: tuple[str, ...]) -> str:
    """Returns the last part of the path, which must be one of the allowed words."""
    word: str = request.path_params[name]
    if word not in allowed:
        raise refused("path", f"must end in one of {', '.join(allowed)}", 404)
    return word


def transfer_of(request: Request) -> TransferId:
    """Returns the id of the transfer that the path names."""
    transfer_id = read_transfer_id(request.path_params["id"])
    if transfer_id is None:
        raise RequestRefusedError(no_transfer())
    return transfer_id


def no_transfer() -> Refusal:
    """Returns the refusal of an id that no transfer has."""
    return Refusal(Code.TRANSFER_NOT_FOUND, "there is no transfer with this id")
