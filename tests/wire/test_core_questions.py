"""How a core's replies are checked against the queries, over any transport."""

from collections.abc import Awaitable, Callable, Iterable

import msgspec
import pytest

from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Action, Outcome, Side, Verdict
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable
from internal_transfer.wire.core_messages import (
    BalancesReply,
    EntriesReply,
    RefusedReply,
    Reply,
    VerdictsReply,
    WireBalance,
    WireEntry,
    decode_query,
    encode_reply,
    verdict_fields,
)
from internal_transfer.wire.core_questions import AskBounds, AskedCore

SPOT = Account(Owner("alice"), "spot", "USDT")
BOUNDS = AskBounds(answer_seconds=5.0, again_seconds=0.01, transfers_most=2, entries_most=2)


class Asking(AskedCore):
    """A core without a transport: every query gets the replies that `answer` returns."""

    def __init__(self, answer: Callable[[str], Iterable[bytes]], bounds: AskBounds = BOUNDS) -> None:
        super().__init__(SystemClock(), bounds)
        self._answer = answer
        self.asked: list[str] = []

    async def _send(self, name: str, message: bytes) -> None:
        assert decode_query(message).correlation_id == name
        self.asked.append(name)
        self._hear(self._answer(name))


def answering(*replies: Reply) -> Asking:
    """A core that answers each query with the next of these replies, under the query's name."""
    left = iter(replies)
    return Asking(lambda name: [encode_reply(msgspec.structs.replace(next(left), correlation_id=name))])


def verdict(transfer: int) -> Verdict:
    return Verdict(TransferId(transfer), Side.TARGET, Action.APPLY, Outcome.APPLIED, "", "USDT", 100, None, SPOT)


def verdicts(*of: int) -> VerdictsReply:
    return VerdictsReply(correlation_id="-", verdicts=tuple((verdict_fields(verdict(each)),) for each in of))


def entries(*numbers: int) -> EntriesReply:
    fields = verdict_fields(verdict(7))
    return EntriesReply(
        correlation_id="-", entries=tuple(WireEntry(number=number, verdict=fields) for number in numbers)
    )


def balances(owner: str) -> BalancesReply:
    balance = WireBalance(owner=owner, type="spot", asset="USDT", posted="1", held="0")
    return BalancesReply(correlation_id="-", balances=(balance,))


def of_another_side() -> VerdictsReply:
    fields = msgspec.structs.replace(verdict_fields(verdict(1)), side=Side.SOURCE)
    return VerdictsReply(correlation_id="-", verdicts=((fields,),))


@pytest.mark.parametrize(
    ("ask", "reply", "what"),
    [
        (lambda core: core.verdicts([TransferId(1), TransferId(2)]), verdicts(1), "1 lists of verdicts for 2"),
        (lambda core: core.verdicts([TransferId(1), TransferId(2)]), verdicts(2, 1), "another transfer than 1"),
        (lambda core: core.verdicts([TransferId(1)]), of_another_side(), "a leg on side source"),
        (lambda core: core.verdicts([TransferId(1)]), entries(1), "EntriesReply for a question of another kind"),
        (lambda core: core.balances(Owner("alice")), balances("bob"), "another owner than alice"),
        (lambda core: core.entries_after(5, 2), entries(5), "entry 5 after entry 5"),
        (lambda core: core.entries_after(5, 2), entries(7, 6), "entry 6 after entry 7"),
        (lambda core: core.entries_after(0, 1), entries(1, 2), "2 entries where 1 were asked for"),
    ],
)
async def test_a_wrong_answer_is_no_answer(ask: Callable[[Asking], Awaitable[object]], reply, what):
    """A query with a reply that does not fit is `Unavailable`, and the message says what is wrong."""
    with pytest.raises(Unavailable, match=f"the core answered wrongly: .*{what}"):
        await ask(answering(reply))


async def test_right_answers_are_put_together():
    """Questions too large for one message are asked in parts, and the answers are put together in order."""
    assert await answering(verdicts(1, 2), verdicts(3)).verdicts([TransferId(each) for each in (1, 2, 3)]) == [
        [verdict(1)],
        [verdict(2)],
        [verdict(3)],
    ]
    numbers = [number for number, _ in await answering(entries(3, 4), entries(9)).entries_after(2, 10)]
    assert numbers == [3, 4, 9]
    assert [each.posted for each in await answering(balances("alice")).balances(Owner("alice"))] == [1]


async def test_a_question_is_asked_again_until_it_is_answered():
    """A query that gets no reply, another's reply or an undecodable one is sent again under the same name."""
    right = balances("alice")
    parts: list[list[bytes]] = [[], [encode_reply(right)], [b"{", b"\xff"]]

    def answer(name: str) -> list[bytes]:
        return parts.pop(0) if parts else [encode_reply(msgspec.structs.replace(right, correlation_id=name))] * 2

    asking = Asking(answer)
    assert len(await asking.balances(Owner("alice"))) == 1
    assert len(asking.asked) == 4
    assert len(set(asking.asked)) == 1


async def test_silence():
    """A query without a reply within the deadline is `Unavailable`."""
    silent = Asking(lambda _: [], msgspec.structs.replace(BOUNDS, answer_seconds=0.05, again_seconds=None))
    with pytest.raises(Unavailable, match="no answer from the core"):
        await silent.balances(Owner("alice"))
    assert len(silent.asked) == 1


async def test_a_question_that_may_have_been_sent():
    """A query of which it is unknown whether it was sent is `Unavailable`: it has no effect either way."""

    def lose(_: str) -> list[bytes]:
        raise OutcomeUnknown(System.CORE, "Kafka has not confirmed in time")

    with pytest.raises(Unavailable, match="Kafka has not confirmed"):
        await Asking(lose).balances(Owner("alice"))


async def test_a_refusal():
    """A query that the core refuses is `Unavailable`, with the core's reason."""
    with pytest.raises(Unavailable, match="core: no such thing"):
        await answering(RefusedReply(correlation_id="-", reason="no such thing")).balances(Owner("alice"))
