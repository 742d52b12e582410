"""Whole histories from a seed: users, faults, crashes and operators in random order, then calm, then every guarantee.

`HISTORIES=n` runs n seeds instead of 40, or of 1000 in a full run; `HISTORIES_FROM=m` begins at seed m. A history that
fails names its seed, which then belongs in `REGRESSIONS`.
"""

import asyncio
import os
import tempfile
from pathlib import Path

import pytest

from simulation.history import History

HISTORIES = int(os.environ.get("HISTORIES", "0"))
HISTORIES_FROM = int(os.environ.get("HISTORIES_FROM", "0"))

REGRESSIONS: dict[int, str] = {
    3: "a core's verdict was heard, the hold posted, and the process died before either was on record",
    16: "the settler ended when the bus did not take an acknowledgement",
    73: "persons voided while a post was on its way, which arrived after the leg had been reversed",
    248: "the same race in another history",
}
"""Seeds that failed once, and what they found."""


def play(seed: int) -> History:
    """Plays one history on its own database file, and checks everything that must hold afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        history = History(seed, Path(directory) / "transfers.db")
        try:
            asyncio.run(history.play())
        except BaseException:
            print(f"HISTORY {seed} FAILED; repeat it with HISTORIES=1 HISTORIES_FROM={seed}")  # noqa: T201
            raise
    return history


@pytest.mark.parametrize("seed", list(REGRESSIONS))
def test_what_failed_once_holds(seed: int):
    """A history that once broke a guarantee keeps them all."""
    play(seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)  # A full run plays a thousand.
def test_all_guarantees_hold_after_random_histories(is_full):
    """Whatever goes wrong, in any order, every guarantee holds; and every kind of fault does happen."""
    seen: dict[str, int] = {}
    histories = HISTORIES or (1000 if is_full else 40)
    for seed in range(HISTORIES_FROM, HISTORIES_FROM + histories):
        for what, count in play(seed).happened.items():
            seen[what] = seen.get(what, 0) + count
    print(dict(sorted(seen.items())))  # noqa: T201
    if histories >= 30:
        rare = {what for what in EXPECTED if not seen.get(what)}
        assert not rare, f"never happened: {rare}"


EXPECTED = frozenset(
    {
        "SUCCESS",
        "FAILED INSUFFICIENT_BALANCE",
        "FAILED CORE_REFUSED",
        "FAILED EXPIRED",
        "FAILED VOIDED_BY_OPERATOR",
        "replayed",
        "refused IDEMPOTENCY_KEY_REUSED",
        "refused DAILY_LIMIT_EXCEEDED",
        "crash",
        "failed commit",
        "clock step",
        "operator void",
        "reversed leg",
        "late verdict",
        "FailBefore",
        "LoseAnswer",
        "Delay",
        "ArriveLate",
        "Duplicate",
    }
)
"""What a good number of histories has to contain."""
