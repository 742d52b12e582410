"""Requests that are refused before anything is recorded: every code; the key stays free."""

import json
from typing import Any, NamedTuple

import httpx

from internal_transfer.domain.refusal import CATALOGUE, Category, Code, Retry
from internal_transfer.simulation.scenarios.expectation import CLOCK, expect, expect_problem, expect_status, until
from internal_transfer.simulation.scenarios.server_process import ServerProcess
from internal_transfer.simulation.scenarios.user import User, transfer_body

_DAY_MS = 86_400_000
_ACCOUNTS = (
    '"from_account":{"account_type":"funding","asset":"USDT"},"to_account":{"account_type":"spot","asset":"USDT"}'
)


class Wrong(NamedTuple):
    """A request that is refused whatever was done before, and how."""

    code: Code
    status: int
    body: dict[str, Any] | bytes
    headers: tuple[tuple[str, str | None], ...] = ()
    """Headers sent instead of the user's own; None leaves one out."""


def _amount(text: str) -> dict[str, Any]:
    return transfer_body("funding", "spot", text)


def _with(**fields: Any) -> dict[str, Any]:
    return _amount("1") | fields


_OTHERS = {"account_type": "spot", "asset": "USDT", "user_id": "somebody-else"}
WRONG: tuple[Wrong, ...] = (
    Wrong(Code.INVALID_REQUEST, 400, b"{"),
    Wrong(Code.INVALID_REQUEST, 400, _with(surprise=1)),
    Wrong(Code.INVALID_REQUEST, 400, f'{{{_ACCOUNTS},"amount":"1","amount":"2"}}'.encode()),
    Wrong(Code.INVALID_REQUEST, 400, f'{{{_ACCOUNTS},"amount":"1","\\u0061mount":"2"}}'.encode()),
    Wrong(Code.INVALID_REQUEST, 400, _with(memo="x" * 141)),
    Wrong(Code.INVALID_REQUEST, 415, _amount("1"), (("content-type", "text/plain"),)),
    Wrong(Code.INVALID_REQUEST, 413, _with(memo="x" * 20_000)),
    *(
        Wrong(Code.INVALID_AMOUNT, 400, _amount(text))
        for text in ("0", "0.000", "-1", "+1", "1e3", " 1", "1_000", "01", ".5", "1.", "NaN", "\u0661", "")
    ),
    Wrong(Code.INVALID_AMOUNT, 400, f'{{{_ACCOUNTS},"amount":1.5}}'.encode()),
    Wrong(Code.INVALID_ASSET, 422, transfer_body("funding", "spot", "1", asset="NOPE")),
    Wrong(Code.INVALID_ASSET, 400, transfer_body("funding", "spot", "1", asset="no pe")),
    Wrong(Code.INVALID_ACCOUNT, 422, transfer_body("funding", "savings", "1")),
    Wrong(Code.INVALID_ACCOUNT, 422, transfer_body("earn", "spot", "1")),
    Wrong(Code.ASSET_MISMATCH, 400, _with(to_account={"account_type": "spot", "asset": "BTC"})),
    Wrong(Code.SAME_ACCOUNT, 400, transfer_body("funding", "funding", "1")),
    Wrong(Code.INVALID_PRECISION, 422, _amount("1.1234567")),
    Wrong(Code.AMOUNT_TOO_SMALL, 422, _amount("0.009999")),
    Wrong(Code.AMOUNT_TOO_LARGE, 422, _amount("1000000.01")),
    Wrong(Code.IDEMPOTENCY_KEY_REQUIRED, 400, _amount("1"), (("idempotency-key", None),)),
    Wrong(Code.UNAUTHENTICATED, 401, _amount("1"), (("authorization", None),)),
    Wrong(Code.UNAUTHENTICATED, 401, _amount("1"), (("authorization", "Bearer of.no.token"),)),
    Wrong(Code.PERMISSION_DENIED, 403, _with(from_account=_OTHERS | {"account_type": "funding"})),
)


async def every_code(server: ServerProcess) -> str:
    """Every code that a single request can cause, with its status; nothing is recorded, and the key stays free."""
    user = await server.fund("wrong", "100")
    for wrong in WRONG:
        await _expect_refused(user, wrong)
    expect(not await user.is_recorded("wrong"), "a refused request used its key up")
    expect_status(await user.move("funding", "spot", "1", key="wrong"), 201)
    await user.expect_balances(funding="99", spot="1")
    codes = {wrong.code for wrong in WRONG}
    return f"{len(WRONG)} requests, {len(codes)} codes, nothing recorded, and their key still works"


async def _expect_refused(user: User, wrong: Wrong) -> None:
    headers = user.headers | {"idempotency-key": "wrong"}
    for name, value in wrong.headers:
        if value is None:
            headers.pop(name)
        else:
            headers[name] = value
    body = json.dumps(wrong.body).encode() if "content-type" in headers else wrong.body
    problem = expect_problem(await user.post(body, headers), wrong.status, wrong.code)
    expect(problem["recorded"] is False, f"{wrong.code}: recorded is {problem['recorded']}")
    meaning = CATALOGUE[wrong.code]
    expect(
        (problem["category"], problem["retry"], problem["status"]) == (meaning.category, meaning.retry, wrong.status),
        f"{wrong.code} says {problem}",
    )


async def operators_policy(server: ServerProcess) -> str:
    """A frozen user and a paused route are refused; once that is undone, the same request with its key succeeds."""
    user = await server.fund("policed", "100")
    stops = (
        ("users/policed/freeze", "users/policed/unfreeze", Code.ACCOUNT_FROZEN),
        ("routes/funding:spot/pause", "routes/funding:spot/resume", Code.ROUTE_PAUSED),
    )
    for stop, undo, code in stops:
        await server.operate(stop, {"reason": "a scenario"})
        problem = expect_problem(await user.move("funding", "spot", "1", key=code), 422, code)
        expect(problem["retry"] == Retry.SAME_KEY, f"{code} says retry {problem['retry']}")
        expect(not await user.is_recorded(code), f"{code} used the key up")
        await server.operate(undo, {"reason": "a scenario"})
        expect_status(await user.move("funding", "spot", "1", key=code), 201)
    await user.expect_balances(funding="98", spot="2")
    return "422 ACCOUNT_FROZEN and ROUTE_PAUSED; undone, the same keys succeed"


async def unknown_and_final(server: ServerProcess) -> str:
    """Another user's transfer looks like one that does not exist, and a final one cannot be decided again."""
    user = await server.fund("owner", "100")
    stranger = server.user("stranger")
    transfer = expect_status(await user.move("funding", "spot", "1", key="mine"), 201)
    unknown = expect_problem(await stranger.get("/1"), 404, Code.TRANSFER_NOT_FOUND)
    others = expect_problem(await stranger.get(f"/{transfer['request_id']}"), 404, Code.TRANSFER_NOT_FOUND)
    expect(unknown == others, "another user's transfer can be told from one that does not exist")
    for act in ("void", "post"):
        response = await server.operators.post(
            f"transfers/{transfer['request_id']}/{act}", json={"reason": "a scenario"}
        )
        expect_problem(response, 409, Code.INVALID_STATE_TRANSITION)
    expect(await user.transfer(transfer["request_id"]) == transfer, "the final transfer changed")
    return "404 TRANSFER_NOT_FOUND for both; 409 INVALID_STATE_TRANSITION for void and post"


async def daily_limit(server: ServerProcess) -> str:
    """The daily limit holds, and a failed transfer gives its share back."""
    await until("no day ends in the middle of this", _is_far_from_midnight)
    user = await server.fund("limited", "90", tier="small")
    expect_status(await user.move("funding", "spot", "60", key="first"), 201)
    problem = expect_problem(await user.move("funding", "spot", "41", key="beyond"), 422, Code.DAILY_LIMIT_EXCEEDED)
    expect(problem["category"] == Category.LIMIT, f"its category is {problem['category']}")
    expect_problem(await user.move("funding", "spot", "40", key="unpaid"), 422, Code.INSUFFICIENT_BALANCE)
    expect_status(await user.move("funding", "spot", "30", key="rest"), 201)
    expect_status(await user.move("spot", "funding", "10", key="last"), 201)
    expect_problem(await user.move("spot", "funding", "0.01", key="beyond"), 422, Code.DAILY_LIMIT_EXCEEDED)
    await user.expect_balances(funding="10", spot="80")
    return "100 a day: 60 + 30 + 10 go, 41 and 0.01 more do not, and a failed 40 is given back"


async def _is_far_from_midnight() -> bool | None:
    """Limits are of UTC days."""
    return True if CLOCK.now_ms() % _DAY_MS < _DAY_MS - 15_000 else None


async def rate_limit(server: ServerProcess) -> str:
    """A user who asks too often is told when to come back; then the same request with its key succeeds."""
    user = await server.fund("hasty", "100")
    accepted, refused = 0, None
    while refused is None:
        response = await user.move("funding", "spot", "0.01", key=f"fast-{accepted}", wait_seconds=0)
        if response.status_code == 429:
            refused = response
        else:
            expect(response.status_code in {201, 202}, f"it answered {response.status_code}: {response.text}")
            accepted += 1
            expect(accepted < 200, "200 transfers in a row were not too many")
    expect_problem(refused, 429, Code.RATE_LIMITED)
    wait = int(refused.headers["retry-after"])
    expect(wait >= 1, f"Retry-After is {wait}")
    expect(not await user.is_recorded(f"fast-{accepted}"), "a request that was too many used its key up")
    other = await server.fund("patient", "100")
    expect_status(await other.move("funding", "spot", "1", key="own"), 201)

    async def again() -> httpx.Response | None:
        response = await user.move("funding", "spot", "0.01", key=f"fast-{accepted}")
        return response if response.status_code != 429 else None

    expect_status(await until("the same request is let in", again), 201)
    return f"{accepted} at once, then 429 with Retry-After {wait}; others go on; later the same key succeeds"
