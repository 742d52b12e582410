"""Maps refusals and failures to HTTP, in this one place: RFC 9457 problems that say what may help."""

from math import ceil
from typing import NamedTuple, assert_never

import msgspec
import structlog
from msgspec import UNSET, Struct, UnsetType

from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.refusal import CATALOGUE, Category, Code, Detail, Refusal, Retry, refuse_field
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, System

Header = tuple[bytes, bytes]

PROBLEM_TYPE = b"application/problem+json"
CLOSE: Header = (b"connection", b"close")
# These responses are private, and change without a request.
NO_STORE: Header = (b"cache-control", b"no-store")
_CONTENT_TYPE: Header = (b"content-type", PROBLEM_TYPE)
_RETRY_AFTER_SECONDS = 1.0
"""How long a client is asked to wait unless the refusal says better."""

_encode = msgspec.json.Encoder().encode
_log = structlog.get_logger(__name__)


class Reply(NamedTuple):
    """A response ready to be sent; `code` is its problem's, for the metrics, or empty."""

    status: int
    headers: list[Header]
    body: bytes
    code: str = ""


class Problem(Struct, frozen=True):
    """An RFC 9457 problem.

    `recorded` tells whether a transfer was recorded for this request; None if that is not known.
    """

    type: str
    title: str
    status: int
    detail: str
    code: Code
    category: Category
    recorded: bool | None
    retry: Retry
    details: tuple[Detail, ...]
    request_id: str | UnsetType = UNSET


def status_of(code: Code) -> int:
    """Returns the HTTP status of a refusal by settings or state.

    A refusal by syntax is 400 whatever its code, and a recorded failure 422; callers pass those statuses themselves.
    """
    match code:
        case (
            Code.INVALID_REQUEST
            | Code.INVALID_AMOUNT
            | Code.ASSET_MISMATCH
            | Code.SAME_ACCOUNT
            | Code.IDEMPOTENCY_KEY_REQUIRED
        ):
            return 400
        case Code.UNAUTHENTICATED:
            return 401
        case Code.PERMISSION_DENIED:
            return 403
        case Code.TRANSFER_NOT_FOUND:
            return 404
        case Code.INVALID_STATE_TRANSITION:
            return 409
        case (
            Code.INVALID_ASSET
            | Code.INVALID_ACCOUNT
            | Code.INVALID_PRECISION
            | Code.AMOUNT_TOO_SMALL
            | Code.AMOUNT_TOO_LARGE
            | Code.DAILY_LIMIT_EXCEEDED
            | Code.IDEMPOTENCY_KEY_REUSED
            | Code.ACCOUNT_FROZEN
            | Code.ROUTE_PAUSED
            | Code.INSUFFICIENT_BALANCE
            | Code.EXPIRED
            | Code.CORE_REFUSED
            | Code.VOIDED_BY_OPERATOR
        ):
            return 422
        case Code.RATE_LIMITED:
            return 429
        case Code.INTERNAL:
            return 500
        case (
            Code.SYSTEM_OVERLOADED
            | Code.LEDGER_UNAVAILABLE
            | Code.STORE_UNAVAILABLE
            | Code.CORE_UNAVAILABLE
            | Code.TIMEOUT
        ):
            return 503
        case _:
            assert_never(code)


def refusal_of(error: Exception) -> Refusal:
    """Returns the refusal that tells a client of a failure, without the words of a driver."""
    if isinstance(error, OutcomeUnknown):
        return Refusal(
            Code.TIMEOUT, "The service does not know what became of the request; ask again with the same key."
        )
    if isinstance(error, TimeoutError):
        return Refusal(
            Code.TIMEOUT, "The service did not answer in time; send the same request again to find out what happened."
        )
    if not isinstance(error, OperatingFailureError):
        return Refusal(Code.INTERNAL, "The service failed; the failure was logged.")
    match error.system:
        case System.LEDGER:
            return Refusal(Code.LEDGER_UNAVAILABLE, "The ledger cannot be reached.")
        case System.STORE | System.OPERATIONS:
            return Refusal(Code.STORE_UNAVAILABLE, "The record of transfers cannot be reached.")
        case System.CORE | System.BUS:
            return Refusal(Code.CORE_UNAVAILABLE, "The trading core cannot be reached.")
        case System.LIMITER:
            return Refusal(Code.SYSTEM_OVERLOADED, "The service cannot take requests at the moment.")
        case _:
            assert_never(error.system)


def log_failure(error: Exception, path: str) -> None:
    """Logs the exception being handled, which ended a request; a bug is logged with its traceback."""
    if isinstance(error, OperatingFailureError):
        _log.warning("operating_failure", system=error.system, error=str(error), path=path)
    elif not isinstance(error, TimeoutError):
        _log.exception("request_failed", path=path)


def problem_of(
    refusal: Refusal,
    *,
    status: int | None = None,
    recorded: bool | None = False,
    request_id: TransferId | None = None,
    retry: Retry | None = None,
) -> Problem:
    """Returns the problem for a refusal; `status` and `retry` are given where they differ from the code's own."""
    code = refusal.code
    meaning = CATALOGUE[code]
    return Problem(
        type=f"/docs#{code}",
        title=meaning.title,
        status=status_of(code) if status is None else status,
        detail=refusal.message,
        code=code,
        category=meaning.category,
        recorded=recorded,
        retry=meaning.retry if retry is None else retry,
        details=refusal.details,
        request_id=UNSET if request_id is None else str(request_id),
    )


def outcome_of(status: int) -> str:
    """Returns what the metrics call a response of this status."""
    return "answered" if status < 400 else "refused" if status < 500 else "failed"


def retry_after_seconds(clock: Clock, wanted: float | None) -> int:
    """Returns whole seconds, at random between `wanted` and twice that plus one, to keep clients apart."""
    seconds = _RETRY_AFTER_SECONDS if wanted is None else wanted
    return max(1, ceil(seconds + clock.jitter() * (seconds + 1)))


class Problems:
    """Makes the replies that carry problems; the clock's jitter spreads the retries."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def reply(
        self,
        refusal: Refusal,
        *,
        status: int | None = None,
        recorded: bool | None = False,
        request_id: TransferId | None = None,
        retry: Retry | None = None,
        headers: tuple[Header, ...] = (),
    ) -> Reply:
        """Returns the reply to a refused request, with `Retry-After` on 429 and 503 and the challenge on 401."""
        problem = problem_of(refusal, status=status, recorded=recorded, request_id=request_id, retry=retry)
        body = _encode(problem)
        sent = [_CONTENT_TYPE, (b"content-length", b"%d" % len(body)), *headers]
        if problem.status in {429, 503}:
            sent.append((b"retry-after", b"%d" % retry_after_seconds(self._clock, refusal.retry_after_seconds)))
        elif problem.status == 401:
            sent.append((b"www-authenticate", b'Bearer realm="internal-transfer"'))
        return Reply(problem.status, sent, body, problem.code)

    def request(self, status: int, field: str, rule: str, *headers: Header, retry: Retry | None = None) -> Reply:
        """Returns the reply to a request whose method, path, headers, size or pace is wrong."""
        return self.reply(refuse_field(field, rule), status=status, headers=headers, retry=retry)

    def failure(self, error: Exception, *, records: bool) -> Reply:
        """Returns the reply to a request that failed; `records` tells whether it may have recorded something."""
        is_sure = isinstance(error, OperatingFailureError) and not isinstance(error, OutcomeUnknown)
        return self.reply(refusal_of(error), recorded=None if records and not is_sure else False)
