"""The integrator's guide agrees with the code."""

import re
import tomllib
from pathlib import Path

import pytest

from internal_transfer.conformance.promises import PROMISES
from internal_transfer.wire.core_messages import (
    UndecodableError,
    decode_command,
    decode_query,
    decode_reply,
    decode_verdict,
)

GUIDE = (Path(__file__).parents[2] / "docs/guides/trading-core.md").read_text()
MESSAGES = [line for block in re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message[:60])
def test_the_messages_in_the_guide_are_messages(message):
    """Exactly one of the strict decoders accepts each example of a message."""
    read = []
    for decode in (decode_command, decode_verdict, decode_query, decode_reply):
        try:
            read.append(decode(message.encode()))
        except UndecodableError:
            continue
    assert len(read) == 1


def test_every_promise_is_explained():
    """The guide's table names the promises that the kit checks, and no others."""
    table = GUIDE.partition("| promise |")[2].partition("| told |")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == {promise.name for promise in PROMISES} | {"restart"}


def test_the_settings_in_the_guide_are_settings():
    """The keys of the guide's settings are those of the shipped ones."""
    shipped = tomllib.loads((Path(__file__).parents[2] / "src/internal_transfer/settings/defaults.toml").read_text())[
        "aeron"
    ]
    blocks = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
    shown = [tomllib.loads(block) for block in blocks if "[aeron]" in block]
    assert len(shown) == 2
    for each in shown:
        assert set(each["aeron"]) <= set(shipped)
