"""What the port itself refuses, before any store is asked."""

import pytest
from msgspec.structs import replace

from internal_transfer.conformance.transfer_store.transfers import transfer
from internal_transfer.domain.leg import Leg, LegState, Side
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.transfer_store import HistoryQuery, Proposal


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": Status.PENDING},
        {"version": 2},
        {"revision": 2},
        {"amount": 0},
        {"amount": 2**112},
        {"target": replace(transfer().target, asset="BTC")},
        {"legs": (Leg(Side.TARGET, "engine", LegState.ASKED),)},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_only_a_new_transfer_can_be_proposed(wrong):
    """A transfer that has begun, or that no store can hold, cannot become a proposal."""
    Proposal(transfer(), b"content", 1)
    with pytest.raises(AssertionError):
        Proposal(replace(transfer(), **wrong), b"content", 1)


@pytest.mark.parametrize(
    "wrong",
    [{"most": 0}, {"most": 1, "direction": "in"}, {"most": 1, "direction": "up", "account_type": "spot"}],
    ids=str,
)
def test_a_history_query_that_makes_no_sense_cannot_be_made(wrong):
    """A page shows something, and a direction is in or out of an account type."""
    with pytest.raises(AssertionError):
        HistoryQuery(owner="ada", **wrong)


@pytest.mark.parametrize(
    "filters",
    [
        {"statuses": frozenset({Status.PENDING})},
        {"asset": "USDT"},
        {"account_type": "spot"},
        {"account_type": "spot", "direction": "out"},
        {"from_ms": 0},
        {"to_ms": 0},
    ],
    ids=lambda filters: next(reversed(filters)),
)
def test_every_filter_makes_a_filtered_page(filters):
    """A cursor alone skips nothing within a page; each filter may."""
    assert not HistoryQuery(owner="ada", most=1, after=5, until=9).is_filtered
    assert HistoryQuery(owner="ada", most=1, **filters).is_filtered


def test_a_page_begins_below_the_last_one_and_within_its_walk():
    """The first page begins at the walk's end, a later one below the last number shown, never above the end."""
    assert HistoryQuery(owner="ada", most=1).top(9) == 9
    assert HistoryQuery(owner="ada", most=1, after=5).top(9) == 4
    assert HistoryQuery(owner="ada", most=1, after=50).top(9) == 9
