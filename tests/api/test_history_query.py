from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal_transfer.api.history import next_cursor, next_target, parse_history
from internal_transfer.domain.refusal import Refusal
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.transfer_store import HistoryPage, HistoryQuery


def read(query: str):
    return parse_history(query.encode(), "alice")


def test_defaults():
    """Without parameters a page has the 20 newest transfers."""
    assert read("") == HistoryQuery(owner="alice", most=20)


def test_all_parameters():
    """Every parameter arrives in the query."""
    query = read(
        "limit=100&status=SUCCESS&status=FAILED&asset=USDT&account_type=spot&direction=in"
        "&from=2026-11-24T00:00:00Z&to=2026-11-24T01:00:00%2B01:00"
    )
    assert query == HistoryQuery(
        owner="alice",
        most=100,
        statuses=frozenset({Status.SUCCESS, Status.FAILED}),
        asset="USDT",
        account_type="spot",
        direction="in",
        from_ms=1_795_478_400_000,
        to_ms=1_795_478_400_000,
    )


@pytest.mark.parametrize(
    ("time", "milliseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:00z", 0),
        ("1970-01-01T00:00:00.001Z", 1),
        ("1970-01-01T00:00:00.0001Z", 1),
        ("1970-01-01T00:00:00.001000001Z", 2),
        ("1970-01-01T00:00:01.5%2B00:00", 1500),
        ("1970-01-01T00:00:00-01:30", 5_400_000),
        ("0001-01-01T00:00:00%2B14:00", -62_135_647_200_000),
        ("9999-12-31T23:59:59-14:00", 253_402_351_199_000),
    ],
)
def test_times(time, milliseconds):
    """Times of any zone become milliseconds; a finer one is rounded up, so that a range keeps its meaning."""
    query = read(f"from={time}&to={time}")
    assert isinstance(query, HistoryQuery)
    assert query.from_ms == query.to_ms == milliseconds


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limits=1", "limits"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=-1", "limit"),
        ("limit=1.0", "limit"),
        ("limit=%D9%A1", "limit"),
        ("limit=", "limit"),
        ("limit=1&limit=2", "limit"),
        ("limit", "query"),
        ("&&", "query"),
        ("status=success", "status"),
        ("status=SUCCESS&status=OPEN", "status"),
        ("asset=usdt", "asset"),
        ("asset=%00", "asset"),
        ("asset=%FF", "query"),
        ("account_type=Spot", "account_type"),
        ("direction=in", "direction"),
        ("direction=up&account_type=spot", "direction"),
        ("from=2026-11-24", "from"),
        ("from=2026-13-01T00:00:00Z", "from"),
        ("from=2026-02-29T00:00:00Z", "from"),
        ("from=2026-01-01T24:00:00Z", "from"),
        ("from=2026-01-01T00:00:00", "from"),
        ("from=2026-01-01T00:00:00+01:00", "from"),
        ("from=2026-01-01T00:00:00%2B99:00", "from"),
        ("to=1795478400000", "to"),
        ("cursor=abc", "cursor"),
        ("cursor=" + "A" * 32, "cursor"),
        ("cursor=" + "_" * 32, "cursor"),
        ("&".join(f"status=SUCCESS{number}" for number in range(40)), "query"),
    ],
)
def test_refused(query, field):
    """What is not exactly a parameter with a value of its kind is refused, naming the parameter."""
    refusal = read(query)
    assert isinstance(refusal, Refusal), refusal
    assert refusal.details[0].field == field


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_cursor_goes_on(after, until):
    """A cursor brings back the place of its walk, exactly, and a page may then have another size."""
    first = read("asset=USDT&limit=2")
    cursor = next_cursor(first, HistoryPage([], until, after))
    second = read(f"asset=USDT&limit=50&cursor={cursor}")
    assert isinstance(second, HistoryQuery)
    assert (second.after, second.until, second.most, second.asset) == (after, until, 50, "USDT")


def test_cursor_of_another_walk():
    """A cursor is refused with other filters and for another owner."""
    cursor = next_cursor(read("asset=USDT"), HistoryPage([], 9, 5))
    assert isinstance(read(f"cursor={cursor}&asset=USDT"), HistoryQuery)
    assert isinstance(read(f"cursor={cursor}&asset=BTC"), Refusal)
    assert isinstance(read(f"cursor={cursor}"), Refusal)
    assert isinstance(parse_history(f"cursor={cursor}&asset=USDT".encode(), "bob"), Refusal)


def test_last_page():
    """The last page has no cursor."""
    assert next_cursor(read(""), HistoryPage([], 9, None)) is None


def test_next_target():
    """The link to the page that follows keeps the filters and replaces the cursor."""
    time = quote("2026-01-01T00:00:00+00:00")
    target = next_target("/h", f"from={time}&cursor=old&status=SUCCESS&status=FAILED".encode(), "new")
    assert target == f"/h?from={quote('2026-01-01T00:00:00+00:00', safe='')}&status=SUCCESS&status=FAILED&cursor=new"


@given(st.binary(max_size=80))
def test_anything(raw):
    """Whatever the query is, it is read or refused."""
    assert isinstance(parse_history(raw, "alice"), HistoryQuery | Refusal)
