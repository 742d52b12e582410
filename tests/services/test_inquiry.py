"""What users ask: their own transfers and balances, and whether a request would be accepted."""

import pytest
from msgspec.structs import replace

from internal_transfer.adapters.sqlite.trading_core import CoreMode
from internal_transfer.domain.account import Owner
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.errors import OutcomeUnknown, System
from internal_transfer.ports.transfer_store import HistoryQuery
from internal_transfer.simulation.faults import FailBefore, LoseAnswer, NeverAnswer
from services.stack import DAILY_UNITS, LIMIT, RULES, request

ALICE, BOB = Owner("alice"), Owner("bob")


async def test_a_transfer_is_readable_by_its_owner_alone(start):
    """By id and by key, at once after it was answered; for others and for unknown ids there is nothing."""
    stack = await start()
    transfer = await stack.accepted("key")
    answer = await stack.inquiry.get(ALICE, transfer.id)
    assert answer.transfer == transfer
    assert [event.version for event in answer.events] == [1, 2, 3]
    assert await stack.inquiry.by_key(ALICE, "key") == answer
    assert await stack.inquiry.get(BOB, transfer.id) is None
    assert await stack.inquiry.get(ALICE, transfer.id + 1) is None
    assert await stack.inquiry.by_key(BOB, "key") is None


async def test_an_answer_that_may_be_taken_back_is_not_given(start):
    """The commit under a read has no outcome: the read has none either."""
    stack = await start()
    transfer = await stack.accepted("key")
    stack.durability_script.add("durable", LoseAnswer())
    with pytest.raises(OutcomeUnknown):
        await stack.inquiry.get(ALICE, transfer.id)


async def test_history_is_the_stores_page(start):
    """The newest comes first, and a cursor leads on."""
    stack = await start()
    transfers = [await stack.accepted(f"key{n}") for n in range(3)]
    page = await stack.inquiry.history(HistoryQuery(owner=ALICE, most=2))
    assert page.transfers == transfers[:0:-1]
    rest = await stack.inquiry.history(HistoryQuery(owner=ALICE, most=2, after=page.next_after, until=page.until))
    assert rest.transfers == transfers[:1]


async def figures(stack):
    return [
        (line.account.type, line.posted, line.held, line.available, line.unavailable)
        for line in await stack.inquiry.balances(ALICE)
    ]


async def test_balances_are_the_ledgers_and_the_cores(start):
    """Held money is not available; a core-held account shows the core's balance, and none while it is away."""
    stack = await start()
    assert await figures(stack) == [("funding", 100_000, 0, 100_000, False)]
    await stack.accepted("spot", "5")
    await stack.accepted("earn", "3", target="earn")
    stack.core.mode = CoreMode.WITHHOLD
    await stack.accepted("open", "2")
    ours = [("earn", 300, 0, 300, False), ("funding", 99_200, 200, 99_000, False)]
    assert await figures(stack) == [*ours, ("spot", 500, 0, 500, False)]
    stack.core.mode = CoreMode.PAUSED
    assert await figures(stack) == [*ours, ("spot", None, None, None, True)]
    stack.core.mode = CoreMode.NORMAL
    stack.scripts[System.CORE].add("balances", NeverAnswer())
    assert (await stack.patiently(figures(stack)))[2] == ("spot", None, None, None, True)


async def test_an_account_that_was_registered_and_never_made_is_empty(start):
    """An account on record that neither ledger nor core knows shows zeros."""
    stack = await start(deposit=0)
    await stack.store.register([request("k").source, request("k").target])
    assert await figures(stack) == [("funding", 0, 0, 0, False), ("spot", 0, 0, 0, False)]


async def previewed(stack, *of, **change):
    preview = await stack.inquiry.preview(request("key", *of, **change))
    return preview.refusal and preview.refusal.code, preview.max_units, preview.daily_used_units


async def test_a_preview_says_what_a_request_would_be_told(start):
    """The same codes as the real call, the most that can be moved, and what the day has left."""
    stack = await start(deposit=700_000)
    assert await previewed(stack, "5") == (None, LIMIT.max_units, 0)
    await stack.accepted("one", "5000")
    await stack.accepted("two", "1500", target="earn")
    assert await previewed(stack, "5") == (None, 50_000, 650_000)
    assert await previewed(stack, "501") == (Code.INSUFFICIENT_BALANCE, 50_000, 650_000)
    assert await previewed(stack, "3500.01") == (Code.DAILY_LIMIT_EXCEEDED, 50_000, 650_000)
    assert await previewed(stack, "5", source="spot", target="funding") == (None, DAILY_UNITS - 650_000, 650_000)
    assert await previewed(stack, "5001") == (Code.AMOUNT_TOO_LARGE, 50_000, 650_000)
    assert await previewed(stack, target_owner="bob") == (Code.PERMISSION_DENIED, None, 0)
    assert await previewed(stack, source="vault") == (Code.INVALID_ACCOUNT, None, 0)
    assert await previewed(stack, asset="DOGE") == (Code.INVALID_ASSET, None, 0)
    assert await previewed(stack, tier="none") == (Code.PERMISSION_DENIED, None, 650_000)
    assert not (await stack.store.by_keys([(ALICE, "key")]))[0]


async def test_a_preview_without_the_core_says_so(start):
    """The balance of a core-held account cannot be told: no figure, and the code of the core."""
    stack = await start()
    stack.scripts[System.CORE].add("balances", FailBefore())
    assert await previewed(stack, source="spot", target="funding") == (Code.CORE_UNAVAILABLE, None, 0)


async def test_the_most_is_never_below_zero(start):
    """A limit that was lowered below what the day has used leaves nothing, not less."""
    lowered = replace(LIMIT, daily_units=100)
    stack = await start()
    assert (await stack.accepted("key", "5")).status is Status.SUCCESS
    stack.rules = replace(RULES, limits={"standard": {"USDT": lowered}})
    stack.inquiry = stack.build().inquiry
    assert await previewed(stack, "1") == (Code.DAILY_LIMIT_EXCEEDED, 0, 500)
