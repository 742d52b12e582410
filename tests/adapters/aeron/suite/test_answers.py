"""How replies over Aeron are checked against their queries."""

import asyncio

import pytest
from msgspec.structs import replace

from adapters.aeron.suite.machine import Service, until
from internal_transfer.adapters.aeron.client import AeronClient
from internal_transfer.adapters.aeron.settings import QUERIES, REPLIES
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Action, Outcome, Side, Verdict
from internal_transfer.ports.errors import System, Unavailable
from internal_transfer.wire.core_messages import (
    BalancesQuery,
    BalancesReply,
    EntriesQuery,
    EntriesReply,
    Reply,
    VerdictsReply,
    WireBalance,
    WireEntry,
    decode_query,
    encode_reply,
    verdict_fields,
)

SPOT = Account(Owner("alice"), "spot", "USDT")
OF_SEVEN = verdict_fields(
    Verdict(TransferId(7), Side.TARGET, Action.APPLY, Outcome.APPLIED, "", "USDT", 100, None, SPOT)
)


def wrong_answer(message: bytes) -> Reply:
    """A reply of the right kind about something else than was asked."""
    query = decode_query(message)
    named = query.correlation_id
    match query:
        case BalancesQuery():
            balance = WireBalance(owner="bob", type="spot", asset="USDT", posted="1", held="0")
            return BalancesReply(correlation_id=named, balances=(balance,))
        case EntriesQuery():
            return EntriesReply(correlation_id=named, entries=(WireEntry(number=query.after, verdict=OF_SEVEN),))
        case _:
            return VerdictsReply(correlation_id=named, verdicts=((OF_SEVEN,),))


async def test_wrong_answers_are_refused(connection, clock):
    """Verdicts of another transfer, balances of another owner and entries out of order are refused."""
    client = AeronClient(replace(connection, client_name="core"), clock=clock)
    some = asyncio.Event()
    inlet = client.inlet(connection.commands, QUERIES, some.set)
    outlet = client.outlet(connection.verdicts, REPLIES, System.CORE)

    async def answer_wrongly() -> None:
        while True:
            await some.wait()
            some.clear()
            while messages := inlet.pop(10):
                await client.offer(outlet, [encode_reply(wrong_answer(message)) for message in messages])

    await client.start()
    async with Service(connection, clock) as service, asyncio.TaskGroup() as group:
        answering = group.create_task(answer_wrongly())
        await until(lambda: inlet.sources and outlet.is_connected)
        for question, what in (
            (service.core.verdicts([TransferId(1)]), "another transfer than 1"),
            (service.core.balances(Owner("alice")), "another owner than alice"),
            (service.core.entries_after(3, 1), "entry 3 after entry 3"),
        ):
            with pytest.raises(Unavailable, match=what):
                await question
        answering.cancel()
    await client.close()
