"""How a scenario fails when it does not see what it should."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx

from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.domain.refusal import Code

CLOCK = SystemClock()
DEADLINE_SECONDS = 30.0
"""How long an expected event may take; far more than it takes on a busy machine."""
_POLL_SECONDS = 0.02

T = TypeVar("T")


class ScenarioFailedError(Exception):
    """The service did not do what it must; the message says what it did."""


def expect(holds: bool, seen: str) -> None:  # noqa: FBT001 - reads as a sentence.
    """Raises `ScenarioFailedError` with what was seen, unless it holds."""
    if not holds:
        raise ScenarioFailedError(seen)


def expect_status(response: httpx.Response, status: int) -> dict[str, Any]:
    """Returns the answer's body; raises `ScenarioFailedError` for another status."""
    expect(response.status_code == status, f"answered {response.status_code} instead of {status}: {response.text}")
    body: dict[str, Any] = response.json()
    return body


def expect_problem(response: httpx.Response, status: int, code: Code) -> dict[str, Any]:
    """Returns the problem in the answer; raises `ScenarioFailedError` for another status or code."""
    problem = expect_status(response, status)
    expect(problem.get("code") == code, f"answered {problem.get('code')} instead of {code}: {response.text}")
    expect(
        response.headers["content-type"] == "application/problem+json",
        f"a problem came as {response.headers['content-type']}",
    )
    return problem


async def until(what: str, attempt: Callable[[], Awaitable[T | None]]) -> T:
    """Repeats the attempt until it returns a value; raises `ScenarioFailedError` if that takes too long."""
    ends = CLOCK.monotonic() + DEADLINE_SECONDS
    while (answer := await attempt()) is None:
        expect(CLOCK.monotonic() < ends, f"after {DEADLINE_SECONDS:.0f} s it is still not so that {what}")
        await CLOCK.sleep(_POLL_SECONDS)
    return answer
