"""G6, G9, G11, G13 and G16 at the level of the services: keys, records, limits and overload."""

import asyncio

import apsw
import pytest
from msgspec.structs import replace

from internal_transfer.adapters.sqlite.trading_core import CoreMode
from internal_transfer.domain.account import Owner
from internal_transfer.domain.identifier import MILLISECONDS_PER_DAY
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.rules import Policy
from internal_transfer.domain.transfer import Decision, Status
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable
from internal_transfer.ports.operations import AuditEntry
from internal_transfer.services.gateway import ID_DRAWS_MAX, GatewayBounds
from internal_transfer.simulation.clock import START_MS, SimulatedClock
from internal_transfer.simulation.faults import Delay, Duplicate, FailBefore, LoseAnswer, NeverAnswer
from services.fronts import Unsettled
from services.stack import DAILY_UNITS, request

DAY = START_MS // MILLISECONDS_PER_DAY


async def count(stack):
    """How many transfers are on record."""
    return sum([len(await stack.store.by_status(status, after=None, most=1000)) for status in Status])


async def test_g6_a_key_is_one_transfer(start):
    """Twenty equal requests at once are one transfer: one is told of it first, the others are replays."""
    stack = await start()
    answers = await asyncio.gather(*(stack.submit("key", "5") for _ in range(20)))
    assert len({answer.transfer.id for answer in answers}) == 1
    assert sorted(answer.replayed for answer in answers) == [False] + [True] * 19
    assert {answer.transfer.status for answer in answers} == {Status.SUCCESS}
    assert all(len(answer.events) == 3 for answer in answers)
    assert (await count(stack), await stack.in_core()) == (1, 500)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"amount": "6"}, "amount"),
        ({"target": "margin"}, "to_account.account_type"),
        ({"source": "earn"}, "from_account.account_type"),
        ({"memo": "rent"}, "memo"),
    ],
)
async def test_g6_a_key_with_other_content_is_refused_and_moves_nothing(start, change, field, together):
    """The second use names the field that differs, in the same batch as the first and later."""
    stack = await start()
    first, second = stack.submit("key", "5"), stack.submit(**({"key": "key", "amount": "5"} | change))
    if together:
        one, two = await asyncio.gather(first, second)
    else:
        one, two = await first, await second
    assert (one.refusal, one.transfer.status) == (None, Status.SUCCESS)
    assert two.refusal.code is Code.IDEMPOTENCY_KEY_REUSED
    assert [detail.field for detail in two.refusal.details] == [field]
    assert two.transfer.id == one.transfer.id
    assert not two.replayed
    assert await count(stack) == 1


async def test_g6_keys_are_the_users_own_and_stay_used_over_a_restart(start):
    """Another user's equal key is another transfer; a user's own key returns the same transfer after a restart too."""
    stack = await start()
    await stack.deposit("bob", 1000)
    mine, his = await stack.accepted("key"), await stack.accepted("key", owner="bob")
    assert mine.id != his.id
    await stack.restart()
    again = await stack.submit("key")
    assert (again.replayed, again.transfer) == (True, mine)


async def test_g6_what_failed_stays_failed_under_its_key(start):
    """A transfer that failed for lack of money is answered again, though there is money now; a new key works."""
    stack = await start(deposit=100)
    failed = await stack.accepted("key", "5")
    assert failed.failure is Code.INSUFFICIENT_BALANCE
    await stack.deposit("alice", 10_000)
    again = await stack.submit("key", "5")
    assert (again.transfer, again.replayed) == (failed, True)
    assert (await stack.accepted("other", "5")).status is Status.SUCCESS


REFUSED = [
    (request("key", target_owner="bob"), Code.PERMISSION_DENIED),
    (request("key", asset="DOGE"), Code.INVALID_ASSET),
    (request("key", target="vault"), Code.INVALID_ACCOUNT),
    (request("key", "5000.01"), Code.AMOUNT_TOO_LARGE),
    (request("key", "0.001"), Code.INVALID_PRECISION),
    (request("key", tier="none"), Code.PERMISSION_DENIED),
]


@pytest.mark.parametrize(("refused", "code"), REFUSED)
async def test_g6_a_refused_request_does_not_use_its_key_up(start, refused, code):
    """What breaks a rule is refused with its code, is not recorded, and leaves the key free."""
    stack = await start()
    answer = await stack.gateway.submit(refused, wait_seconds=0)
    assert (answer.refusal.code, answer.transfer, await count(stack)) == (code, None, 0)
    assert (await stack.submit("key")).transfer.status is Status.SUCCESS


async def test_g6_a_replay_is_answered_whatever_the_rules_say_now(start):
    """The policy stopped everything since: a retry still finds its transfer, a new request is refused."""
    stack = await start()
    first = await stack.accepted("key")
    entry = AuditEntry(at=0, actor="a", action="stop", subject="all", reason="r", outcome="done")
    await stack.operations.change_policy(Policy(stopped=True), entry)
    await stack.scanner.scan()
    assert (await stack.submit("key")).transfer == first
    assert (await stack.submit("other")).refusal.code is Code.ROUTE_PAUSED


@pytest.mark.parametrize("refusing", ["rate limit", "policy", "rules", "daily limit"])
async def test_g6_a_refused_retry_is_answered_with_what_its_first_attempt_did(start, refusing):
    """Where the cheap look-up misses a recorded key, a retry that would be refused is looked up again: it gets its
    transfer, other content is told to differ, and what was never recorded stays refused.
    """
    burst = 1 if refusing == "rate limit" else 1_000_000
    stack = await start(per_minute=1, burst=burst, in_front_of_store=Unsettled(), deposit=DAILY_UNITS)
    amount = "5000" if refusing == "daily limit" else "5"
    first = await stack.accepted("key", amount)
    code = Code.RATE_LIMITED
    if refusing == "policy":
        entry = AuditEntry(at=0, actor="a", action="stop", subject="all", reason="r", outcome="done")
        await stack.operations.change_policy(Policy(stopped=True), entry)
        await stack.scanner.scan()
        code = Code.ROUTE_PAUSED
    elif refusing == "rules":
        stack.gateway.rules = replace(stack.rules, routes=frozenset())
        code = Code.INVALID_ACCOUNT
    elif refusing == "daily limit":
        await stack.accepted("rest", amount)
        code = Code.DAILY_LIMIT_EXCEEDED
    again, other, new = await asyncio.gather(
        stack.submit("key", amount), stack.submit("key", "1"), stack.submit("new", amount)
    )
    assert (again.refusal, again.replayed, again.transfer) == (None, True, first)
    assert (other.refusal.code, other.transfer.id) == (Code.IDEMPOTENCY_KEY_REUSED, first.id)
    assert (new.refusal.code, new.transfer) == (code, None)


async def test_a_second_look_that_fails_concerns_the_refused_alone(start):
    """Where the settled look-up gives no answer, as when it waits for an accept that hangs, those refused hear that
    nothing is known, and the others of the batch get their transfers.
    """
    stack = await start(in_front_of_store=Unsettled())
    stack.scripts[System.STORE].add("by_keys", FailBefore())
    refused, accepted = await asyncio.gather(
        stack.submit("refused", target="nowhere"), stack.submit("accepted"), return_exceptions=True
    )
    assert isinstance(refused, OutcomeUnknown)
    assert accepted.transfer.status is Status.SUCCESS


async def test_g6_a_replay_drives_what_nobody_works_on(start):
    """The ledger was away at first; once the transfer is due, the client's retry finishes it, and not before."""
    stack = await start()
    stack.scripts[System.LEDGER].add("create_transfers", FailBefore())
    first = await stack.submit("key", "5")
    assert first.transfer.status is Status.REQUESTING
    assert (await stack.submit("key", "5")).transfer.status is Status.REQUESTING
    await stack.pass_time(4)
    again, other = await asyncio.gather(stack.submit("key", "5"), stack.submit("key", "6"))
    assert (again.replayed, again.transfer.status, len(again.events)) == (True, Status.SUCCESS, 3)
    assert other.refusal.code is Code.IDEMPOTENCY_KEY_REUSED


async def test_g6_whoever_loses_a_race_to_finish_is_answered_with_what_the_winner_did(start):
    """A record that was written twice looks as if somebody else went on: the answer is read again."""
    stack = await start()
    stack.scripts[System.STORE].add("record", Duplicate())
    answer = await stack.submit("key", "5")
    assert answer.transfer.status is Status.PENDING
    assert [event.status for event in answer.events] == [Status.REQUESTING, Status.PENDING]
    await stack.scan_until_quiet()
    assert (await stack.submit("key", "5")).transfer.status is Status.SUCCESS


async def test_g9_nothing_is_acknowledged_that_a_failed_commit_takes_back(start):
    """The disk is full before the commit: nobody is told anything that rests on it, also not those with a "no"."""
    stack = await start(deposit=100)
    await stack.accepted("known")
    stack.commit_error = apsw.FullError("disk full")
    answers = await asyncio.gather(
        stack.submit("known"), stack.submit("new"), stack.submit("much", "50"), return_exceptions=True
    )
    # Of a request that came as far as being recorded, or whose key is known, nobody says that it was not.
    assert [type(answer) for answer in answers] == [OutcomeUnknown, OutcomeUnknown, OutcomeUnknown]
    assert await count(stack) == 1
    assert (await stack.submit("much", "50")).transfer.failure is Code.INSUFFICIENT_BALANCE


async def test_g9_a_commit_without_an_outcome_is_unknown_to_all(start):
    """SQLite refuses the commit itself: nobody is told anything else than that the outcome is unknown."""
    stack = await start()
    connection = stack.database.connection
    connection.execute(
        "PRAGMA foreign_keys=ON; CREATE TABLE parent(id INTEGER PRIMARY KEY);"
        "CREATE TABLE child(id REFERENCES parent DEFERRABLE INITIALLY DEFERRED)"
    )
    orphans = [1]
    stack.database.before_commit(
        lambda: orphans and connection.execute("INSERT INTO child VALUES (?)", (orphans.pop(),))
    )
    answers = await asyncio.gather(stack.submit("one"), stack.submit("two"), return_exceptions=True)
    assert [type(answer) for answer in answers] == [OutcomeUnknown] * 2
    assert (await stack.submit("one")).replayed is False
    assert await count(stack) == 1


async def test_g9_what_was_acknowledged_is_found_after_a_crash(start):
    """The process dies at any of its calls; each answer that was given is on record when it is back."""
    stack = await start(deposit=500_000)
    acknowledged, calls = [], 0

    def fuse(*_):
        nonlocal calls
        calls += 1
        return calls % 37 == 0

    stack.fuse = fuse
    for batch in range(20):
        asked = [asyncio.ensure_future(stack.submit(f"{batch}:{n}", "1")) for n in range(5)]
        await stack.clock.settle()
        acknowledged += [task.result().transfer for task in asked if task.done() and not task.cancelled()]
        for task in asked:
            task.cancel()
        if stack.dead:
            stack.fuse = lambda *_: False
            await stack.restart()
            stack.fuse = fuse
    stack.fuse = lambda *_: False
    await stack.restart()
    assert 40 < len(acknowledged) < 100
    for told in acknowledged:
        answer = await stack.inquiry.get(Owner("alice"), told.id)
        assert (answer.transfer.status, answer.transfer.key) == (told.status, told.key)
    await stack.scan_until_quiet()
    assert await stack.in_core() == 100 * len(await stack.store.by_status(Status.SUCCESS, after=None, most=1000))


async def test_g9_an_answer_that_was_given_stays_true_where_nothing_newer_can_be_read(start):
    """Who waits for the end while the store falls silent is told what is on record, not that nothing is known."""
    stack = await start()
    stack.core.mode = CoreMode.WITHHOLD
    stack.scripts[System.STORE].add("get", FailBefore())
    answer = await stack.submit("key", wait_seconds=1.0)
    assert answer.transfer.status is Status.PENDING


async def test_who_waits_is_woken_by_the_end(start):
    """The confirmation comes within the time that the client waits: it is answered with SUCCESS at once."""
    stack = await start()
    stack.core.mode = CoreMode.WITHHOLD
    waiting = asyncio.ensure_future(stack.submit("key", wait_seconds=9.0))
    await stack.clock.settle()
    stack.core.mode = CoreMode.NORMAL
    await stack.pass_time(4)
    await stack.scanner.scan()
    await stack.clock.settle()
    assert waiting.done()
    assert waiting.result().transfer.status is Status.SUCCESS
    assert [event.version for event in waiting.result().events] == [1, 2, 3]


async def test_who_waits_in_vain_is_told_how_far_it_is(start):
    """Nothing comes in time: the answer is PENDING; and what ended just before the wait is seen at once."""
    stack = await start()
    stack.core.mode = CoreMode.WITHHOLD
    answer = await stack.patiently(stack.submit("key", wait_seconds=2.0))
    assert answer.transfer.status is Status.PENDING
    stack.core.mode = CoreMode.NORMAL
    stack.scripts[System.STORE].add("get", Delay(before_seconds=5.0))
    waiting = asyncio.ensure_future(stack.submit("key", wait_seconds=9.0))
    await stack.clock.settle()
    await stack.pass_time(2)
    await stack.scanner.scan()
    await stack.pass_time(6)
    assert waiting.result().transfer.status is Status.SUCCESS


async def test_ids_that_are_taken_are_drawn_again(start):
    """Two processes under one node collide: the second draws other ids, in one batch; after five draws it gives up."""
    stack = await start()
    first = await stack.accepted("key")
    stack.clock._ids._at_ms, stack.clock._ids._next = START_MS, 0
    again = await stack.accepted("other")
    assert again.id > first.id
    for n in range(ID_DRAWS_MAX):
        await stack.accepted(f"more{n}")
    stack.clock._ids._next = 0
    with pytest.raises(OutcomeUnknown, match="under one node"):
        await stack.submit("unlucky")
    stack.clock._ids._next = 3
    assert (await stack.submit("at the last draw")).transfer.status is Status.SUCCESS


async def test_g11_every_change_has_one_event_and_a_follower_skips_none(start):
    """Read in pages of one, two and three while transfers go on, the feed has every change once and in order."""
    stack = await start()
    seen, last = [], 0
    stack.core.mode = CoreMode.WITHHOLD
    for n in range(12):
        await stack.submit(f"key{n}", "1", target=["spot", "earn", "futures"][n % 3])
        if n == 6:
            stack.core.mode = CoreMode.NORMAL
            await stack.pass_time(4)
            await stack.scanner.scan()
        page = await stack.store.feed(last, n % 3 + 1)
        await stack.database.durable()
        seen += page
        last = seen[-1][0]
    while page := await stack.store.feed(last, 2):
        seen += page
        last = seen[-1][0]
    versions = {}
    for _, event in seen:
        versions.setdefault(event.transfer_id, []).append((event.version, event.status.value))
    assert len(versions) == 12
    assert all(own == [(1, "REQUESTING"), (2, "PENDING"), (3, "SUCCESS")] for own in versions.values())
    assert [number for number, _ in seen] == sorted({number for number, _ in seen})


async def test_g13_a_daily_limit_holds_and_a_failure_gives_its_share_back_once(start):
    """Of racing requests as many pass as the day allows; one that fails frees exactly its share, over a restart."""
    stack = await start(deposit=2 * DAILY_UNITS)
    answers = await asyncio.gather(*(stack.submit(f"key{n}", "3000") for n in range(5)))
    codes = [answer.refusal and answer.refusal.code for answer in answers]
    assert codes == [None] * 3 + [Code.DAILY_LIMIT_EXCEEDED] * 2
    assert await stack.store.daily_used(Owner("alice"), "USDT", DAY) == 900_000
    assert "1000 USDT" in answers[4].refusal.message
    stack.core.mode = CoreMode.REFUSE
    failed = await stack.accepted("fails", "1000")
    assert failed.failure is Code.CORE_REFUSED
    [verdicts] = await stack.core.verdicts([failed.id])
    await stack.settler.settle(verdicts * 2)
    await stack.restart()
    assert await stack.store.daily_used(Owner("alice"), "USDT", DAY) == 900_000
    assert (await stack.submit("rest", "1000.01")).refusal.code is Code.DAILY_LIMIT_EXCEEDED
    assert (await stack.submit("rest", "1000")).transfer.status is Status.SUCCESS


async def test_g13_a_share_goes_back_to_the_day_that_it_was_taken_from(start):
    """Accepted a second before midnight and failed after it: yesterday has it back, today never had it."""
    clock = SimulatedClock(start_ms=(DAY + 1) * MILLISECONDS_PER_DAY - 1_000)
    stack = await start(clock=clock, deposit=500_000)
    stack.core.mode = CoreMode.WITHHOLD
    transfer = await stack.accepted("key", "500")
    await stack.pass_time(60)
    await stack.accepted("today", "7")
    await stack.decide(await stack.transfer(transfer.id), Decision.VOID)
    await stack.scanner.scan()
    assert (await stack.transfer(transfer.id)).status is Status.FAILED
    used = [await stack.store.daily_used(Owner("alice"), "USDT", day) for day in (DAY, DAY + 1)]
    assert used == [0, 700]


async def test_g13_rate_limits_hold_and_fail_open(start):
    """The third request of a burst of two is refused with a time to wait; while the limiter is away, all may pass."""
    stack = await start(per_minute=60, burst=2)
    answers = [await stack.submit(f"key{n}") for n in range(3)]
    assert [answer.refusal and answer.refusal.code for answer in answers] == [None, None, Code.RATE_LIMITED]
    assert 0 < answers[2].refusal.retry_after_seconds <= 1.0
    assert (await stack.submit("key0")).replayed
    stack.scripts[System.LIMITER].add("take", FailBefore(), Delay(before_seconds=30))
    assert (await stack.submit("away")).transfer.status is Status.SUCCESS
    assert (await stack.patiently(stack.submit("silent"))).transfer.status is Status.SUCCESS


async def test_g16_a_full_queue_refuses_before_anything_is_recorded(start):
    """Three may wait and seven are refused at once; what was taken is finished, the refused are nowhere."""
    stack = await start(gateway=GatewayBounds(queue_most=3))
    answers = await asyncio.gather(*(stack.submit(f"key{n}") for n in range(10)))
    codes = [answer.refusal and answer.refusal.code for answer in answers]
    assert codes == [None] * 3 + [Code.SYSTEM_OVERLOADED] * 7
    assert await count(stack) == 3
    assert {answer.transfer.status for answer in answers[:3]} == {Status.SUCCESS}


async def test_g16_what_waited_too_long_is_shed_before_anything_is_recorded(start):
    """The store stalls for 6 s: who waited behind it for more than 5 is refused, who came later is served."""
    stack = await start(gateway=GatewayBounds(batch_most=2))
    stack.scripts[System.STORE].add("by_keys", Delay(before_seconds=6.0))
    stalled = asyncio.ensure_future(stack.submit("stalled"))
    await stack.clock.settle()
    old = asyncio.ensure_future(stack.submit("old"))
    await stack.pass_time(5.5)
    young = asyncio.ensure_future(stack.submit("young"))
    await stack.pass_time(1)
    assert stalled.result().transfer.status is Status.SUCCESS
    assert old.result().refusal.code is Code.SYSTEM_OVERLOADED
    assert young.result().transfer.status is Status.SUCCESS
    assert await count(stack) == 2


async def test_g16_the_cap_of_open_transfers_holds_within_a_batch(start):
    """Five may be open: of twenty that come at once to a silent core five are accepted; when they end, others may."""
    stack = await start(open_most=5)
    stack.core.mode = CoreMode.WITHHOLD
    answers = await asyncio.gather(*(stack.submit(f"key{n}") for n in range(20)))
    assert sum(answer.refusal is None for answer in answers) == 5
    assert {answer.refusal.code for answer in answers if answer.refusal} == {Code.SYSTEM_OVERLOADED}
    assert await count(stack) == 5
    stack.core.mode = CoreMode.NORMAL
    await stack.scan_until_quiet()
    assert (await stack.submit("later")).transfer.status is Status.SUCCESS


async def test_g16_a_silent_core_sheds_its_routes_but_for_a_probe(start):
    """After a minute without an answer one request in five seconds is let through; the core's answer opens the way."""
    stack = await start()
    stack.core.mode = CoreMode.WITHHOLD
    await stack.accepted("first")
    await stack.pass_time(61)
    await stack.scanner.scan()
    probe, shed = await stack.submit("probe"), await stack.submit("shed")
    other = await stack.submit("other", target="earn")
    assert shed.refusal.code is Code.CORE_UNAVAILABLE
    assert (probe.transfer.status, other.transfer.status) == (Status.PENDING, Status.SUCCESS)
    assert (await stack.submit("beta", target="futures")).transfer.status is Status.PENDING
    await stack.pass_time(5)
    stack.core.mode = CoreMode.NORMAL
    assert (await stack.submit("second probe")).transfer.status is Status.SUCCESS
    assert (await stack.submit("shed")).transfer.status is Status.SUCCESS


async def test_a_closed_gateway_finishes_what_it_took(start):
    """After `close` nothing is taken any more, and the role ends when everything is answered."""
    stack = await start()
    last = asyncio.ensure_future(stack.submit("last"))
    await asyncio.sleep(0)
    stack.gateway.close()
    await stack.clock.settle()
    assert last.result().transfer.status is Status.SUCCESS
    assert stack.tasks[0].done()
    assert (await stack.submit("after")).refusal.code is Code.SYSTEM_OVERLOADED


@pytest.mark.parametrize(
    ("method", "failure"),
    [("by_keys", OutcomeUnknown), ("accept", OutcomeUnknown), ("events", OutcomeUnknown)],
)
async def test_a_store_that_does_not_answer_is_not_waited_for(start, method, failure):
    """Each call of the gateway has a deadline, and its failure says whether something may have been recorded."""
    stack = await start()
    await stack.accepted("known")
    stack.scripts[System.STORE].add(method, NeverAnswer())
    asked = stack.submit("known" if method == "events" else "key")
    with pytest.raises(failure):
        await stack.patiently(asked)
    assert (await stack.submit("key")).transfer.status in {Status.SUCCESS, Status.REQUESTING}


async def test_a_bug_in_a_batch_ends_neither_the_gateway_nor_in_silence(start):
    """An assertion in the store: who asked is told that the outcome is unknown, it is counted, and work goes on."""
    stack = await start()
    mismatched = replace(request("key"), target=request("key", asset="BTC").target)
    with pytest.raises(OutcomeUnknown, match="not finished"):
        await stack.gateway.submit(mismatched, wait_seconds=0)
    counted = stack.telemetry.registry.get_sample_value(
        "internal_transfer_operating_failures_total", {"system": "gateway", "kind": "AssertionError"}
    )
    assert counted == 1
    assert (await stack.submit("key")).transfer.status is Status.SUCCESS


async def test_without_a_lease_of_the_worker_id_nothing_is_recorded(start):
    """When no id can be drawn the request is refused as unavailable, and the same key works later."""
    stack = await start()
    stack.clock.lease(0, stack.clock.monotonic())
    with pytest.raises(Unavailable, match="lease"):
        await stack.submit("key")
    stack.clock.lease(0, stack.clock.monotonic() + 60)
    assert (await stack.submit("key")).replayed is False


async def test_who_gave_up_takes_nothing_back(start):
    """A client goes away while its request is worked on: the transfer is still finished."""
    stack = await start(each_call=True)
    stack.scripts[System.LEDGER].add("create_transfers", Delay(before_seconds=1.0), LoseAnswer())
    stack.scripts[System.STORE].add("by_keys", None, LoseAnswer())
    gone = asyncio.ensure_future(stack.submit("key"))
    failing = asyncio.ensure_future(stack.submit("other"))
    await stack.clock.settle()
    gone.cancel()
    failing.cancel()
    await stack.pass_time(10)
    unheard = asyncio.ensure_future(stack.submit("unheard"))
    await asyncio.sleep(0)
    unheard.cancel()
    await stack.clock.settle()
    await stack.scan_until_quiet()
    assert await stack.in_core() == 200
