import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal_transfer.domain.identifier import (
    EPOCH_MS,
    FENCE_HOLD_ID,
    MILLISECONDS_PER_DAY,
    cash_id,
    day_of,
    hold_id,
    key_hash,
    post_id,
    read_transfer_id,
    restored_key,
    snowflake,
    time_of,
    transfer_of,
    void_id,
)

TIMES = st.integers(EPOCH_MS, EPOCH_MS + 2**41 - 1)
MOMENTS = st.tuples(TIMES, st.integers(0, 1023), st.integers(0, 4095))
IDS = st.builds(lambda moment: snowflake(at_ms=moment[0], node=moment[1], counter=moment[2]), MOMENTS)


@given(MOMENTS, MOMENTS)
def test_ids_are_unique_and_in_order_of_time_node_and_counter(one, other):
    """Ids sort by time, node and counter, and are equal only if all three are."""
    first = snowflake(at_ms=one[0], node=one[1], counter=one[2])
    second = snowflake(at_ms=other[0], node=other[1], counter=other[2])
    assert (first < second) == (one < other)
    assert (first == second) == (one == other)
    assert 0 <= first < 2**63


@given(IDS)
def test_an_id_is_read_as_it_is_written(drawn):
    """The decimal text of an id is that id."""
    assert read_transfer_id(str(drawn)) == (drawn or None)


@pytest.mark.parametrize(
    "text", ["", "0", "01", "-1", "+1", " 1", "1\n", "1_0", "1.0", "x", "\u0661", str(2**63), "1" * 5000]
)
def test_any_other_text_is_no_id(text):
    """An id is written in one way; every other text, however long, is not an id."""
    assert read_transfer_id(text) is None


@given(MOMENTS)
def test_an_id_tells_its_time_and_day(moment):
    """The day whose limits count is the UTC day of the id's time."""
    drawn = snowflake(at_ms=moment[0], node=moment[1], counter=moment[2])
    assert time_of(drawn) == moment[0]
    assert day_of(drawn) * MILLISECONDS_PER_DAY <= moment[0] < (day_of(drawn) + 1) * MILLISECONDS_PER_DAY


@pytest.mark.parametrize(
    "parts",
    [
        {"at_ms": EPOCH_MS - 1},
        {"at_ms": EPOCH_MS + 2**41},
        {"node": -1},
        {"node": 1024},
        {"counter": -1},
        {"counter": 4096},
    ],
)
def test_parts_out_of_range_are_a_bug(parts):
    """No part of an id may spill into another."""
    with pytest.raises(AssertionError, match="range"):
        snowflake(**{"at_ms": EPOCH_MS, "node": 0, "counter": 0, **parts})


@given(IDS, IDS, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.text(max_size=9))
def test_ledger_ids_never_meet(one, other, attempt, another, reference):
    """Holds, posts, voids, cash and the fence have ids of their own, and those of a transfer lead back to it."""
    names = {
        ("hold", one): hold_id(one),
        ("hold", other): hold_id(other),
        ("post", one, attempt): post_id(one, attempt),
        ("post", one, another): post_id(one, another),
        ("post", other, attempt): post_id(other, attempt),
        ("void", one, attempt): void_id(one, attempt),
        ("void", other, another): void_id(other, another),
        ("cash", reference): cash_id(reference),
        ("fence",): FENCE_HOLD_ID,
    }
    assert len(set(names.values())) == len(names)
    assert all(0 < value < 2**128 - 1 for value in names.values())
    for name, value in names.items():
        if name[0] in ("hold", "post", "void"):
            assert transfer_of(value) == name[1]
    assert transfer_of(cash_id(reference)) is None
    assert (hold_id(one) < hold_id(other)) == (one < other)


def test_derived_ids_never_change():
    """The numbers are pinned, since others would lose every existing hold."""
    assert hold_id(5) == 5 << 64 | 1 << 60
    assert post_id(5, 3) == 5 << 64 | 2 << 60 | 3
    assert void_id(5, 3) == 5 << 64 | 3 << 60 | 3
    assert cash_id("deposit-1") == 0x80DE5A60EEAC136793DFB6E9D9C9D23E
    assert key_hash("u1", "k1") == 0xF1ADF7D096AD92C2FB559320E68824E8


@given(st.tuples(st.text(max_size=5), st.text(max_size=5)), st.tuples(st.text(max_size=5), st.text(max_size=5)))
def test_a_key_belongs_to_its_owner(one, other):
    """The hash distinguishes owners and keys, wherever the border between the two lies."""
    assert (key_hash(*one) == key_hash(*other)) == (one == other)
    assert 0 <= key_hash(*one) < 2**128


@given(st.integers(min_value=0, max_value=2**128 - 1))
def test_a_restored_key_stands_for_its_hash(digest):
    """The hash of a lost key is kept in a key that no client can send, and does not depend on the owner."""
    key = restored_key(digest)
    assert key_hash("u1", key) == key_hash("u2", key) == digest
    assert not key.isascii()
