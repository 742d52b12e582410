"""The AsyncAPI document: the file is up to date and complete, and real messages are valid by it."""

from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest
import yaml

from internal_transfer.adapters.kafka.asyncapi import as_yaml, document
from internal_transfer.adapters.kafka.topics import Topics
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Action, Command, Outcome, Side, Verdict
from internal_transfer.wire.core_messages import encode_command, encode_verdict

SPOT = Account(Owner("alice"), "spot", "USDT")
FILE = Path(__file__).parents[3] / "docs" / "asyncapi.yaml"


def test_the_file_is_the_document():
    """The file is what the code makes; `python -m internal_transfer.adapters.kafka.asyncapi` writes it again."""
    assert FILE.read_text() == as_yaml()
    assert yaml.safe_load(FILE.read_text()) == document()


def test_every_topic_is_described():
    """The document has every topic, and every reference in it resolves."""
    described = document()
    assert {channel["address"] for channel in described["channels"].values()} == set(Topics().all)

    def check(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                place: Any = described
                for part in value["$ref"].removeprefix("#/").split("/"):
                    place = place[part]
            for part in value.values():
                check(part)
        elif isinstance(value, list):
            for part in value:
                check(part)

    check(described)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (
            "CommandMessage",
            encode_command(Command(TransferId(7), "main", Side.TARGET, Action.APPLY, "USDT", 2**111, None, SPOT)),
        ),
        (
            "VerdictMessage",
            encode_verdict(
                Verdict(TransferId(7), Side.SOURCE, Action.APPLY, Outcome.REFUSED, "no", "USDT", 1, SPOT, None)
            ),
        ),
    ],
)
def test_messages_fit_their_schemas(schema, message):
    """A message as the service sends it is valid by the document; with a missing or an extra field it is not."""
    described = document()
    whole = {"$ref": f"#/components/schemas/{schema}", "components": described["components"]}
    content = msgspec.json.decode(message)
    valid = jsonschema_rs.validator_for(whole).is_valid
    assert valid(content)
    for wrong in (content | {"more": 1}, {k: v for k, v in content.items() if k != "amount"}, content | {"amount": 5}):
        assert not valid(wrong)
