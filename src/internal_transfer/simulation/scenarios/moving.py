"""Transfers that succeed, transfers that the balance does not allow, retries, and the history of a user."""

import asyncio
import csv
import io
from collections import Counter
from typing import Any

from internal_transfer.domain.refusal import Code
from internal_transfer.simulation.scenarios.expectation import expect, expect_problem, expect_status
from internal_transfer.simulation.scenarios.server_process import ServerProcess

RACERS = 100
HISTORY_TRANSFERS = 45
HISTORY_PAGE = 7


def _timeline(transfer: dict[str, Any]) -> list[str]:
    return [event["status"] for event in transfer["events"]]


async def funding_to_spot(server: ServerProcess) -> str:
    """Money moves from an account of the ledger to one of the core, by REQUESTING and PENDING to SUCCESS."""
    user = await server.fund("mover", "100")
    response = await user.move("funding", "spot", "40.5", key="there")
    transfer = expect_status(response, 201)
    expect(transfer["status"] == "SUCCESS", f"it is {transfer['status']}")
    expect(transfer["amount"] == "40.5", f"the amount came back as {transfer['amount']}")
    expect(response.headers["location"].endswith(transfer["request_id"]), f"Location is {response.headers['location']}")
    expect(_timeline(transfer) == ["REQUESTING", "PENDING", "SUCCESS"], f"its timeline is {_timeline(transfer)}")
    expect(await user.transfer(transfer["request_id"]) == transfer, "it reads differently from the answer")
    await user.expect_balances(funding="59.5", spot="40.5")
    return "201 SUCCESS; REQUESTING, PENDING, SUCCESS; funding 59.5, spot 40.5"


async def spot_to_funding(server: ServerProcess) -> str:
    """Money moves back from the core's account, which is debited before the ledger's account is credited."""
    user = await server.fund("returner", "100")
    expect_status(await user.move("funding", "spot", "40", key="there"), 201)
    transfer = expect_status(await user.move("spot", "funding", "15", key="back"), 201)
    expect(_timeline(transfer) == ["REQUESTING", "PENDING", "SUCCESS"], f"its timeline is {_timeline(transfer)}")
    await user.expect_balances(funding="75", spot="25")
    return "201 SUCCESS; funding 75, spot 25"


async def insufficient_balance(server: ServerProcess) -> str:
    """More than the balance fails for good, whether the ledger refuses the hold or the core refuses the debit."""
    user = await server.fund("spender", "100")
    for source, target, amount in (("funding", "spot", "100.000001"), ("spot", "funding", "1")):
        key = f"{source}-too-much"
        problem = expect_problem(await user.move(source, target, amount, key=key), 422, Code.INSUFFICIENT_BALANCE)
        expect(problem["recorded"] is True, f"recorded is {problem['recorded']}")
        failed = await user.transfer(problem["request_id"])
        expect(failed["status"] == "FAILED", f"it is {failed['status']}")
        again = await user.move(source, target, amount, key=key)
        replayed = expect_problem(again, 422, Code.INSUFFICIENT_BALANCE)
        expect(replayed["request_id"] == problem["request_id"], "the retry made another transfer")
        expect(again.headers.get("idempotent-replayed") == "true", "the retry does not say that it is one")
    await user.expect_balances(funding="100")
    return "422 INSUFFICIENT_BALANCE from the ledger and from the core, the same on retry; funding 100"


async def replay_and_reuse(server: ServerProcess) -> str:
    """The same key and content is the same transfer, for ever; other content under the key has no effect."""
    user = await server.fund("retrier", "100")
    first = expect_status(await user.move("funding", "spot", "10", key="once"), 201)
    for amount in ("10", "10.000"):
        again = await user.move("funding", "spot", amount, key="once")
        expect(expect_status(again, 200) == first, f"the replay differs: {again.text}")
        expect(again.headers.get("idempotent-replayed") == "true", "the replay does not say that it is one")
    reused = await user.move("funding", "spot", "11", key="once")
    problem = expect_problem(reused, 422, Code.IDEMPOTENCY_KEY_REUSED)
    named = [detail["field"] for detail in problem["details"]]
    expect(named == ["amount"], f"it names {named}")
    expect(problem["recorded"] is False, f"recorded is {problem['recorded']}")
    expect("idempotent-replayed" not in reused.headers, "a reused key is called a replay")
    other = await server.fund("retrier-2", "100")
    same_key = expect_status(await other.move("funding", "spot", "10", key="once"), 201)
    expect(same_key["request_id"] != first["request_id"], "two users share a key")
    racing = await asyncio.gather(*(user.move("funding", "spot", "5", key="raced") for _ in range(20)))
    ids = {expect_status(answer, answer.status_code)["request_id"] for answer in racing}
    statuses = Counter(answer.status_code for answer in racing)
    expect(len(ids) == 1 and set(statuses) <= {200, 201}, f"20 at once under one key: {ids}, {statuses}")
    await user.expect_balances(funding="85", spot="15")
    return "the same transfer twice and for 20 at once; another amount: 422 IDEMPOTENCY_KEY_REUSED naming it"


async def racing_spends(server: ServerProcess) -> str:
    """Of 100 concurrent spends of one balance exactly as many succeed as the balance allows."""
    user = await server.fund("racer", "37")
    answers = await asyncio.gather(
        *(user.move("funding", "spot", "1", key=f"race-{number}") for number in range(RACERS))
    )
    statuses = Counter(answer.status_code for answer in answers)
    expect(statuses == {201: 37, 422: RACERS - 37}, f"they ended as {dict(statuses)}")
    for answer in answers:
        if answer.status_code == 422:
            expect_problem(answer, 422, Code.INSUFFICIENT_BALANCE)
    await user.expect_balances(spot="37")
    return f"{RACERS} at once over 37: 37 succeeded, {RACERS - 37} were INSUFFICIENT_BALANCE; spot 37"


async def history_pages(server: ServerProcess) -> str:
    """A walk through the history meets each transfer once while more are accepted, as JSON and as CSV."""
    user = await server.fund("reader", "1000")
    made = await asyncio.gather(
        *(user.move("funding", "earn", "1", key=f"before-{number}") for number in range(HISTORY_TRANSFERS))
    )
    before = {expect_status(answer, 201)["request_id"] for answer in made}
    walked: list[str] = []
    cursor: dict[str, str] = {}
    pages = 0
    while True:
        page = expect_status(await user.get("/history", limit=str(HISTORY_PAGE), **cursor), 200)
        walked += [transfer["request_id"] for transfer in page["transfers"]]
        pages += 1
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
        expect_status(await user.move("funding", "earn", "1", key=f"during-{pages}"), 201)
    expect(len(set(walked)) == len(walked), "a transfer came twice")
    expect(set(walked) == before, f"{len(before)} were there at the first page and {len(set(walked))} were met")
    written = await user.get("/history", accept="text/csv", limit="100")
    expect(written.headers["content-type"].startswith("text/csv"), f"the type is {written.headers['content-type']}")
    rows = list(csv.DictReader(io.StringIO(written.text)))
    listed = await user.history()
    expect(
        [row["request_id"] for row in rows] == [transfer["request_id"] for transfer in listed],
        "CSV and JSON list different transfers",
    )
    expect(all(row["amount"] == "1" and row["status"] == "SUCCESS" for row in rows), "CSV has other amounts or states")
    nothing = await user.history(status="FAILED")
    expect(nothing == [], f"{len(nothing)} failed transfers are listed")
    return f"{len(before)} in {pages} pages, each once, while {pages - 1} more came; CSV has the same {len(rows)}"
