import csv
import io
import json

import pytest

from api.scripted import NOW_MS, RULES, allowed, events, transfer
from internal_transfer.api.problems import problem_of
from internal_transfer.api.render import CSV_COLUMNS, Renderer, format_time
from internal_transfer.domain.account import Account, Asset
from internal_transfer.domain.refusal import CATALOGUE, Code, Refusal
from internal_transfer.domain.transfer import Status
from internal_transfer.services.answer import BalanceLine, Preview

TRANSFER = {
    "request_id": str(transfer().id),
    "status": "SUCCESS",
    "from_account": {"account_type": "funding", "asset": "USDT", "user_id": "alice"},
    "to_account": {"account_type": "spot", "asset": "USDT", "user_id": "alice"},
    "asset": "USDT",
    "amount": "12.5",
    "memo": None,
    "created_at": "2026-11-24T09:30:00.120Z",
    "updated_at": "2026-11-24T09:30:00.131Z",
    "failure": None,
}


@pytest.fixture
def render():
    return Renderer(RULES.assets)


def test_transfer(render):
    """A transfer has the fields of the contract in their forms, with its events where they are given."""
    assert json.loads(render.transfer(transfer())) == TRANSFER
    shown = json.loads(render.transfer(transfer(), events(Status.REQUESTING, Status.SUCCESS)))
    assert shown == TRANSFER | {
        "events": [
            {"version": 1, "status": "REQUESTING", "at": "2026-11-24T09:30:00.121Z", "code": None},
            {"version": 2, "status": "SUCCESS", "at": "2026-11-24T09:30:00.122Z", "code": None},
        ]
    }


@pytest.mark.parametrize("code", Code)
def test_failure(render, code):
    """A failed transfer says why, whatever the code."""
    shown = json.loads(render.transfer(transfer(Status.FAILED, failure=code)))
    meaning = CATALOGUE[code]
    assert shown["failure"] == {"code": code.value, "category": meaning.category.value, "message": meaning.title}


@pytest.mark.parametrize(
    ("scale", "units", "text"),
    [(6, 1, "0.000001"), (6, 1_000_000, "1"), (0, 7, "7"), (18, 2**112 - 1, "5192296858534827.628530496329220095")],
)
def test_amounts(scale, units, text):
    """Amounts are written at the asset's scale, without trailing zeros and without loss."""
    render = Renderer({"X": Asset("X", 1, scale, scale)})
    one = transfer(amount=units, source=Account("a", "funding", "X"), target=Account("a", "spot", "X"))
    assert json.loads(render.transfer(one))["amount"] == text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (999, "1970-01-01T00:00:00.999Z"),
        (NOW_MS, "2026-11-24T09:30:00.120Z"),
        (951_782_400_007, "2000-02-29T00:00:00.007Z"),
    ],
)
def test_times(milliseconds, text):
    """Times are RFC 3339 in UTC with exactly three decimal places."""
    assert format_time(milliseconds) == text


def rows_of(raw: bytes):
    return list(csv.reader(io.StringIO(raw.decode(), newline="")))


def test_csv(render):
    """The CSV has a line of names and one line for each transfer, with the same contents as the JSON."""
    names, row, failed = rows_of(render.page_csv([transfer(memo='a, "b"'), transfer(Status.FAILED)]))
    assert tuple(names) == CSV_COLUMNS
    shown = dict(zip(names, row, strict=True))
    assert shown == {
        "request_id": TRANSFER["request_id"],
        "status": "SUCCESS",
        "from_account_type": "funding",
        "from_user_id": "alice",
        "to_account_type": "spot",
        "to_user_id": "alice",
        "asset": "USDT",
        "amount": "12.5",
        "memo": 'a, "b"',
        "created_at": TRANSFER["created_at"],
        "updated_at": TRANSFER["updated_at"],
        "failure_code": "",
        "failure_category": "",
        "failure_message": "",
    }
    assert failed[-3:-1] == ["INSUFFICIENT_BALANCE", "funds"]


@pytest.mark.parametrize("memo", ["=1+1", "+1", "-1", "@SUM(A1)", "  =1", "\uff1d1", "=cmd|' /C calc'!A0"])
def test_csv_runs_nothing(render, memo):
    """A cell that a spreadsheet would run is marked as text, in a memo and in a user id."""
    source = Account("-1", "funding", "USDT")
    [_, row] = rows_of(render.page_csv([transfer(memo=memo, source=source)]))
    shown = dict(zip(CSV_COLUMNS, row, strict=True))
    assert shown["memo"] == f"'{memo}"
    assert shown["from_user_id"] == "'-1"


def test_balances(render):
    """Balances come by type and asset; without figures where the core is away, and negative ones keep their sign."""
    lines = [
        BalanceLine(Account("a", "spot", "USDT"), 5, 1, 4, unavailable=True),
        BalanceLine(Account("a", "funding", "USDT"), -1_500_000, 0, -1_500_000),
        BalanceLine(Account("a", "funding", "BTC"), 100_000_000, 1, 99_999_999),
    ]
    assert json.loads(render.balances(lines)) == {
        "balances": [
            {"account_type": "funding", "asset": "BTC", "posted": "1", "held": "0.00000001", "available": "0.99999999"},
            {"account_type": "funding", "asset": "USDT", "posted": "-1.5", "held": "0", "available": "-1.5"},
            {
                "account_type": "spot",
                "asset": "USDT",
                "posted": None,
                "held": None,
                "available": None,
                "unavailable": True,
            },
        ]
    }


def test_preview(render):
    """A preview tells the limits with what is left of the day, and the problem of a refusal."""
    shown = json.loads(render.preview(allowed(), "USDT", None, now_ms=NOW_MS))
    limits = {
        "min": "0.01",
        "max": "1000000",
        "daily": "10000000",
        "daily_remaining": "9999987.5",
        "resets_at": "2026-11-25T00:00:00.000Z",
    }
    assert shown == {"allowed": True, "problem": None, "max_amount": "87.5", "limits": limits}
    problem = problem_of(Refusal(Code.INVALID_ASSET, "no"))
    shown = json.loads(render.preview(Preview(None, None, None, 0), "NOPE", problem, now_ms=NOW_MS))
    assert (shown["allowed"], shown["max_amount"], shown["limits"]) == (False, None, None)
    assert shown["problem"]["code"] == "INVALID_ASSET"


def test_used_up_day(render):
    """What is left of a day's limit is never negative."""
    spent = Preview(None, 0, RULES.limits["standard"]["USDT"], 10**14)
    assert json.loads(render.preview(spent, "USDT", None, now_ms=NOW_MS))["limits"]["daily_remaining"] == "0"


def test_options(render):
    """Options list what is open, with the caller's limits; what is closed is left out."""
    shown = json.loads(render.options(RULES, "standard"))
    assert shown == {
        "assets": [
            {"asset": "BTC", "scale": 8, "precision": 8},
            {"asset": "JPY", "scale": 0, "precision": 0},
            {"asset": "USDT", "scale": 6, "precision": 6},
        ],
        "account_types": [{"account_type": "funding", "holder": "ledger"}, {"account_type": "spot", "holder": "core"}],
        "routes": [{"from": "funding", "to": "spot"}, {"from": "spot", "to": "funding"}],
        "tier": "standard",
        "limits": {"USDT": {"min": "0.01", "max": "1000000", "daily": "10000000"}},
    }
    assert json.loads(render.options(RULES, "unheard-of"))["limits"] == {}
