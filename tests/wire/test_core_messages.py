"""The messages of trading cores, byte by byte, and bytes that are refused."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.amount import AMOUNT_UNITS_MAX
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Action, Command, Outcome, Side, Verdict
from internal_transfer.ports.trading_core import CoreBalance
from internal_transfer.wire.core_messages import (
    BalancesReply,
    UndecodableError,
    VerdictsQuery,
    decode_command,
    decode_query,
    decode_reply,
    decode_verdict,
    encode_command,
    encode_query,
    encode_reply,
    encode_verdict,
    read_balances,
    wire_balances,
)
from internal_transfer.wire.trace import traceparent

SPOT = Account(Owner("alice"), "spot", "USDT")
COMMAND = Command(TransferId(2**62), "main", Side.TARGET, Action.APPLY, "USDT", 2**111, None, SPOT)
VERDICT = Verdict(
    TransferId(7), Side.SOURCE, Action.APPLY, Outcome.REFUSED, "insufficient_balance", "USDT", 1, SPOT, None
)
COMMAND_BYTES = (
    b'{"type":"command/1","transfer_id":"4611686018427387904","core":"main","side":"target","action":"apply",'
    b'"asset":"USDT","amount":"2596148429267413814265248164610048","debit":null,'
    b'"credit":{"owner":"alice","type":"spot"}}'
)
VERDICT_BYTES = (
    b'{"type":"verdict/1","transfer_id":"7","side":"source","action":"apply","outcome":"refused",'
    b'"reason":"insufficient_balance","asset":"USDT","amount":"1","debit":{"owner":"alice","type":"spot"},"credit":null}'
)


def test_an_order_byte_by_byte():
    """A command encodes to the promised bytes and decodes from them."""
    assert encode_command(COMMAND) == COMMAND_BYTES
    assert decode_command(COMMAND_BYTES) == COMMAND


def test_a_verdict_byte_by_byte():
    """A verdict encodes to the promised bytes and decodes from them."""
    assert encode_verdict(VERDICT) == VERDICT_BYTES
    assert decode_verdict(VERDICT_BYTES) == VERDICT


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        (b'"type":"command/1",', b"", "type"),
        (b"command/1", b"command/2", "command/2"),
        (b"command/1", b"verdict/1", "unknown field"),
        (b'"core":"main",', b"", "core"),
        (b'"core"', b'"colour":1,"core"', "colour"),
        (b'"4611686018427387904"', b"4611686018427387904", "transfer_id"),
        (b"4611686018427387904", b"9223372036854775808", "transfer_id"),
        (b"4611686018427387904", b"04611686018427387904", "transfer_id"),
        (b"4611686018427387904", b"0", "transfer_id"),
        (b'"target"', b'"middle"', "side"),
        (b'"target"', b'"both"', "side"),
        (b'"target"', b'"source"', "side"),
        (b'"apply"', b'"void"', "action"),
        (b"USDT", b"usdt", "asset"),
        (b"2596148429267413814265248164610048", b"0", "amount"),
        (b"2596148429267413814265248164610048", b"-1", "amount"),
        (b"2596148429267413814265248164610048", b"1.5", "amount"),
        (b"2596148429267413814265248164610048", b"1_000", "amount"),
        (b"2596148429267413814265248164610048", b"5192296858534827628530496329220096", "amount"),
        (b"alice", b"al ice", "owner"),
        (b"alice", b"alice\\n", "owner"),
        (b'"credit":{', b'"credit":{"asset":"BTC",', "asset"),
        (b"}}", b"}", "truncated"),
        (b"alice", b"al\xffice", "invalid|utf"),
    ],
)
def test_what_is_no_order(old, new, where):
    """A field that is missing, extra, out of range or of another type, or another version, is refused; the reason says
    where.
    """
    assert old in COMMAND_BYTES
    with pytest.raises(UndecodableError, match=where):
        decode_command(COMMAND_BYTES.replace(old, new))


def test_a_verdict_is_no_order():
    """A message of one kind on the topic of another is refused."""
    with pytest.raises(UndecodableError, match="not a command"):
        decode_command(VERDICT_BYTES)
    with pytest.raises(UndecodableError, match="not a verdict"):
        decode_verdict(COMMAND_BYTES)


ACCOUNTS = st.builds(
    Account,
    st.from_regex(r"[A-Za-z0-9_.:-]{1,64}", fullmatch=True).map(Owner),
    st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True),
    st.just("BTC"),
)


@given(
    transfer=st.integers(1, 2**63 - 1),
    side=st.sampled_from(Side),
    action=st.sampled_from(Action),
    outcome=st.sampled_from(Outcome),
    reason=st.text(st.characters(codec="utf-8"), max_size=100),
    amount=st.integers(1, AMOUNT_UNITS_MAX),
    debit=ACCOUNTS,
    credit=ACCOUNTS,
)
def test_everything_comes_back(*, transfer, side, action, outcome, reason, amount, debit, credit):
    """Every possible command and verdict is the same after encoding and decoding."""
    accounts = (None if side is Side.TARGET else debit, None if side is Side.SOURCE else credit)
    command = Command(TransferId(transfer), "main", side, action, "BTC", amount, *accounts)
    verdict = Verdict(TransferId(transfer), side, action, outcome, reason, "BTC", amount, *accounts)
    assert decode_command(encode_command(command)) == command
    assert decode_verdict(encode_verdict(verdict)) == verdict


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_undecodable(data):
    """No bytes raise any other error than `UndecodableError`."""
    for decode in (decode_command, decode_verdict, decode_query, decode_reply):
        with pytest.raises(UndecodableError):
            decode(data)


def test_queries_and_replies():
    """A query and a reply are the same after encoding and decoding; a balance may be negative and exceed 63 bits."""
    query = VerdictsQuery(correlation_id="a.1", expires_at=5, transfer_ids=("1", "2"))
    assert encode_query(query) == (
        b'{"type":"verdicts/1","correlation_id":"a.1","expires_at":5,"transfer_ids":["1","2"]}'
    )
    assert decode_query(encode_query(query)) == query
    balances = [CoreBalance(SPOT, posted=-(2**100), held=3)]
    reply = BalancesReply(correlation_id="a.1", balances=wire_balances(balances))
    decoded = decode_reply(encode_reply(reply))
    assert decoded == reply
    assert read_balances(decoded.balances) == balances


def test_bounds_of_queries():
    """A query for more than a reply may hold is refused."""
    many = VerdictsQuery(correlation_id="a.1", expires_at=5, transfer_ids=("1",) * 257)
    with pytest.raises(UndecodableError, match="transfer_ids"):
        decode_query(msgspec.json.encode(many))
    with pytest.raises(UndecodableError, match="2\\^63"):
        decode_query(
            b'{"type":"verdicts/1","correlation_id":"a","expires_at":5,"transfer_ids":["9999999999999999999"]}'
        )


def test_a_trace_is_known_by_its_transfer():
    """A transfer's trace context is well-formed, always the same, and differs from another transfer's."""
    first, second = traceparent(TransferId(1)), traceparent(TransferId(2))
    assert first == traceparent(TransferId(1)) != second
    version, trace, span, flags = first.split("-")
    assert (version, len(trace), len(span), flags) == ("00", 32, 16, "01")
    assert int(trace, 16)
    assert int(span, 16)
