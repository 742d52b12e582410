import json

import pytest

from api.scripted import StillClock
from internal_transfer.api.problems import Problems, refusal_of, status_of
from internal_transfer.domain.refusal import CATALOGUE, Code, Refusal
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable

STATUSES = {
    400: {"INVALID_REQUEST", "INVALID_AMOUNT", "ASSET_MISMATCH", "SAME_ACCOUNT", "IDEMPOTENCY_KEY_REQUIRED"},
    401: {"UNAUTHENTICATED"},
    403: {"PERMISSION_DENIED"},
    404: {"TRANSFER_NOT_FOUND"},
    409: {"INVALID_STATE_TRANSITION"},
    422: {
        "INVALID_ASSET",
        "INVALID_ACCOUNT",
        "INVALID_PRECISION",
        "AMOUNT_TOO_SMALL",
        "AMOUNT_TOO_LARGE",
        "DAILY_LIMIT_EXCEEDED",
        "IDEMPOTENCY_KEY_REUSED",
        "ACCOUNT_FROZEN",
        "ROUTE_PAUSED",
        "INSUFFICIENT_BALANCE",
        "EXPIRED",
        "CORE_REFUSED",
        "VOIDED_BY_OPERATOR",
    },
    429: {"RATE_LIMITED"},
    500: {"INTERNAL"},
    503: {"SYSTEM_OVERLOADED", "LEDGER_UNAVAILABLE", "STORE_UNAVAILABLE", "CORE_UNAVAILABLE", "TIMEOUT"},
}


@pytest.fixture
def clock():
    return StillClock()


@pytest.fixture
def problems(clock):
    return Problems(clock)


def test_statuses():
    """Each code has its status, and no code is forgotten."""
    assert {code: status_of(code) for code in Code} == {code: s for s, codes in STATUSES.items() for code in codes}


@pytest.mark.parametrize("code", Code)
def test_shape(problems, code):
    """Every code makes a complete problem that says the same as the catalogue and the reply's status."""
    reply = problems.reply(Refusal(code, "because"))
    shown = json.loads(reply.body)
    meaning = CATALOGUE[code]
    assert shown == {
        "type": f"/docs#{code.value}",
        "title": meaning.title,
        "status": reply.status,
        "detail": "because",
        "code": code.value,
        "category": meaning.category.value,
        "recorded": False,
        "retry": meaning.retry.value,
        "details": [],
    }
    headers = dict(reply.headers)
    assert headers[b"content-type"] == b"application/problem+json"
    assert int(headers[b"content-length"]) == len(reply.body)
    assert (b"retry-after" in headers) is (reply.status in {429, 503})
    assert (b"www-authenticate" in headers) is (reply.status == 401)


@pytest.mark.parametrize(
    ("failure", "code", "recorded"),
    [
        (Unavailable(System.LEDGER, "x"), "LEDGER_UNAVAILABLE", False),
        (Unavailable(System.STORE, "x"), "STORE_UNAVAILABLE", False),
        (Unavailable(System.OPERATIONS, "x"), "STORE_UNAVAILABLE", False),
        (Unavailable(System.CORE, "x"), "CORE_UNAVAILABLE", False),
        (Unavailable(System.BUS, "x"), "CORE_UNAVAILABLE", False),
        (Unavailable(System.LIMITER, "x"), "SYSTEM_OVERLOADED", False),
        *[(OutcomeUnknown(system, "x"), "TIMEOUT", None) for system in System],
        (TimeoutError(), "TIMEOUT", None),
    ],
)
def test_failures(problems, failure, code, recorded):
    """An unreachable system means that nothing is recorded; an unknown outcome is never called unrecorded."""
    shown = json.loads(problems.failure(failure, records=True).body)
    assert (shown["status"], shown["code"], shown["recorded"], shown["retry"]) == (503, code, recorded, "same_key")
    assert json.loads(problems.failure(failure, records=False).body)["recorded"] is False


def test_a_bug(problems):
    """A bug says nothing of itself, and leaves open whether anything was recorded."""
    reply = problems.failure(ZeroDivisionError("secret"), records=True)
    assert (reply.status, reply.code, b"secret" in reply.body) == (500, "INTERNAL", False)
    assert json.loads(reply.body)["recorded"] is None


def test_the_drivers_words_stay_inside():
    """What a driver says about its host or its statement never reaches a client."""
    assert "secret" not in refusal_of(Unavailable(System.STORE, "secret-host refused")).message


@pytest.mark.parametrize(
    ("wanted", "least", "most"), [(None, 1, 3), (0.0, 1, 1), (0.2, 1, 2), (5.0, 5, 11), (60.0, 60, 121)]
)
def test_retry_after(problems, clock, wanted, least, most):
    """Retry-After is whole seconds, never less than what is needed, and spread by the clock's jitter."""
    seen = []
    for clock.jitter_value in (0.0, 0.999):
        reply = problems.reply(Refusal(Code.RATE_LIMITED, "slow down", retry_after_seconds=wanted))
        seen.append(int(dict(reply.headers)[b"retry-after"]))
    assert seen == [least, most]
