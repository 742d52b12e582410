"""What is said about the systems that the settings name, when a process opens them."""

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from internal_transfer.adapters.in_process.rate_limiter import MemoryRateLimiter
from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.settings.data_directory import DataDirectory
from internal_transfer.settings.load import load
from internal_transfer.telemetry import Telemetry
from internal_transfer.wiring.adapters import Opening

SHARED = '[systems]\nstore = "{store}"\nledger = "socket"\ncore = "kafka"\n'


@pytest.mark.parametrize(
    ("systems", "warned"),
    [("", False), (SHARED.format(store="postgresql"), True), (SHARED.format(store="cassandra"), True)],
)
async def test_limits_that_each_process_counts_for_itself_are_warned_of(tmp_path, systems, warned):
    """Where processes share a record but not their rate limits, and n of them let n times as much through, the start
    says so and what to do; a process that is alone has nothing to share.
    """
    config = tmp_path / "settings.toml"
    config.write_text(systems)
    async with AsyncExitStack() as closing:
        opening = Opening(load(config, {}), DataDirectory(Path()), SystemClock(), Telemetry(), closing, settles=False)
        with capture_logs() as logs:
            limiter = await opening.open_limiter()
    assert isinstance(limiter, MemoryRateLimiter)
    told = [(entry["log_level"], entry["event"], entry["advice"]) for entry in logs]
    advice = 'share them: systems.rate_limiter = "valkey"'
    assert told == ([("warning", "rate_limits_count_per_process", advice)] if warned else [])
