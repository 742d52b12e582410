"""Every way in which the service says no: its code, its category, and what a client may do about it."""

from enum import StrEnum

from msgspec import Struct


class Category(StrEnum):
    """What kind of refusal or failure a code stands for."""

    VALIDATION = "validation"
    AUTHENTICATION = "authentication"
    PERMISSION = "permission"
    POLICY = "policy"
    LIMIT = "limit"
    FUNDS = "funds"
    CONFLICT = "conflict"
    CORE = "core"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class Retry(StrEnum):
    """What a client may try: the same request again, a new one under a new key, or nothing."""

    SAME_KEY = "same_key"
    NEW_KEY = "new_key"
    NEVER = "never"


class Code(StrEnum):
    """The codes of all refusals and failures; the name of a code is also its text on the wire."""

    INVALID_REQUEST = "INVALID_REQUEST"
    INVALID_AMOUNT = "INVALID_AMOUNT"
    INVALID_ASSET = "INVALID_ASSET"
    INVALID_ACCOUNT = "INVALID_ACCOUNT"
    ASSET_MISMATCH = "ASSET_MISMATCH"
    SAME_ACCOUNT = "SAME_ACCOUNT"
    INVALID_PRECISION = "INVALID_PRECISION"
    AMOUNT_TOO_SMALL = "AMOUNT_TOO_SMALL"
    AMOUNT_TOO_LARGE = "AMOUNT_TOO_LARGE"
    DAILY_LIMIT_EXCEEDED = "DAILY_LIMIT_EXCEEDED"
    IDEMPOTENCY_KEY_REQUIRED = "IDEMPOTENCY_KEY_REQUIRED"
    IDEMPOTENCY_KEY_REUSED = "IDEMPOTENCY_KEY_REUSED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    ACCOUNT_FROZEN = "ACCOUNT_FROZEN"
    ROUTE_PAUSED = "ROUTE_PAUSED"
    INSUFFICIENT_BALANCE = "INSUFFICIENT_BALANCE"
    TRANSFER_NOT_FOUND = "TRANSFER_NOT_FOUND"
    INVALID_STATE_TRANSITION = "INVALID_STATE_TRANSITION"
    EXPIRED = "EXPIRED"
    CORE_REFUSED = "CORE_REFUSED"
    VOIDED_BY_OPERATOR = "VOIDED_BY_OPERATOR"
    RATE_LIMITED = "RATE_LIMITED"
    SYSTEM_OVERLOADED = "SYSTEM_OVERLOADED"
    LEDGER_UNAVAILABLE = "LEDGER_UNAVAILABLE"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    CORE_UNAVAILABLE = "CORE_UNAVAILABLE"
    TIMEOUT = "TIMEOUT"
    INTERNAL = "INTERNAL"


class Meaning(Struct, frozen=True):
    """What a code means: its category, what a client may try, and one sentence for people."""

    category: Category
    retry: Retry
    title: str


CATALOGUE: dict[Code, Meaning] = {
    Code.INVALID_REQUEST: Meaning(Category.VALIDATION, Retry.NEVER, "The request is malformed."),
    Code.INVALID_AMOUNT: Meaning(Category.VALIDATION, Retry.NEVER, "The amount is not a positive decimal string."),
    Code.INVALID_ASSET: Meaning(Category.VALIDATION, Retry.NEVER, "The asset is not offered here."),
    Code.INVALID_ACCOUNT: Meaning(
        Category.VALIDATION, Retry.NEVER, "An account, or the route between the two, is unknown."
    ),
    Code.ASSET_MISMATCH: Meaning(Category.VALIDATION, Retry.NEVER, "Both accounts must hold the same asset."),
    Code.SAME_ACCOUNT: Meaning(Category.VALIDATION, Retry.NEVER, "The two accounts are the same."),
    Code.INVALID_PRECISION: Meaning(Category.VALIDATION, Retry.NEVER, "The amount has too many decimal places."),
    Code.AMOUNT_TOO_SMALL: Meaning(Category.LIMIT, Retry.NEVER, "The amount is below the smallest allowed."),
    Code.AMOUNT_TOO_LARGE: Meaning(Category.LIMIT, Retry.NEVER, "The amount is above the largest allowed."),
    Code.DAILY_LIMIT_EXCEEDED: Meaning(Category.LIMIT, Retry.SAME_KEY, "The daily limit does not allow this amount."),
    Code.IDEMPOTENCY_KEY_REQUIRED: Meaning(Category.VALIDATION, Retry.NEVER, "The Idempotency-Key header is missing."),
    Code.IDEMPOTENCY_KEY_REUSED: Meaning(Category.CONFLICT, Retry.NEW_KEY, "The key was used for another request."),
    Code.UNAUTHENTICATED: Meaning(Category.AUTHENTICATION, Retry.SAME_KEY, "The credentials are missing or not valid."),
    Code.PERMISSION_DENIED: Meaning(Category.PERMISSION, Retry.NEVER, "The caller may not do this."),
    Code.ACCOUNT_FROZEN: Meaning(Category.POLICY, Retry.SAME_KEY, "The account is frozen."),
    Code.ROUTE_PAUSED: Meaning(Category.POLICY, Retry.SAME_KEY, "Transfers on this route are paused."),
    Code.INSUFFICIENT_BALANCE: Meaning(Category.FUNDS, Retry.NEW_KEY, "The available balance is too small."),
    Code.TRANSFER_NOT_FOUND: Meaning(Category.VALIDATION, Retry.NEVER, "There is no such transfer."),
    Code.INVALID_STATE_TRANSITION: Meaning(Category.CONFLICT, Retry.NEVER, "The transfer's state does not allow this."),
    Code.EXPIRED: Meaning(Category.UNAVAILABLE, Retry.NEW_KEY, "The transfer could not start in time; nothing moved."),
    Code.CORE_REFUSED: Meaning(Category.CORE, Retry.NEW_KEY, "The trading core refused; the money was given back."),
    Code.VOIDED_BY_OPERATOR: Meaning(Category.POLICY, Retry.NEW_KEY, "An operator gave the money back."),
    Code.RATE_LIMITED: Meaning(Category.LIMIT, Retry.SAME_KEY, "Too many requests."),
    Code.SYSTEM_OVERLOADED: Meaning(Category.UNAVAILABLE, Retry.SAME_KEY, "The service is busy; nothing was recorded."),
    Code.LEDGER_UNAVAILABLE: Meaning(Category.UNAVAILABLE, Retry.SAME_KEY, "The ledger does not answer."),
    Code.STORE_UNAVAILABLE: Meaning(Category.UNAVAILABLE, Retry.SAME_KEY, "The record of transfers does not answer."),
    Code.CORE_UNAVAILABLE: Meaning(Category.UNAVAILABLE, Retry.SAME_KEY, "The trading core does not answer."),
    Code.TIMEOUT: Meaning(Category.UNAVAILABLE, Retry.SAME_KEY, "The outcome is not known yet; ask again."),
    Code.INTERNAL: Meaning(Category.INTERNAL, Retry.SAME_KEY, "The service failed to answer."),
}


class Detail(Struct, frozen=True):
    """A field of a request, and the rule that it broke."""

    field: str
    rule: str


class Refusal(Struct, frozen=True):
    """A request that was refused for a business reason: the code, a sentence, and the fields concerned.

    `retry_after_seconds` is set where waiting helps (rate limits, shedding).
    """

    code: Code
    message: str
    details: tuple[Detail, ...] = ()
    retry_after_seconds: float | None = None


def refuse_field(field: str, rule: str, code: Code = Code.INVALID_REQUEST) -> Refusal:
    """Returns the refusal of a request because of one field."""
    return Refusal(code, f"{field}: {rule}", (Detail(field, rule),))
