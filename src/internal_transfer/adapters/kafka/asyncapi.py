"""Makes the AsyncAPI document of all topics from the types of the messages.

`python -m internal_transfer.adapters.kafka.asyncapi > docs/asyncapi.yaml` writes the file; a test compares the two.
"""

import sys
from collections.abc import Iterator
from typing import Any

import msgspec

from internal_transfer.adapters.kafka.topics import Topics
from internal_transfer.wire.core_messages import (
    BalancesQuery,
    BalancesReply,
    CommandMessage,
    EntriesQuery,
    EntriesReply,
    RefusedReply,
    UnavailableReply,
    VerdictMessage,
    VerdictsQuery,
    VerdictsReply,
)
from internal_transfer.wire.transfer_events import TransferEventMessage

DOCUMENT_VERSION = "1.0.0"

_OF_A_TRANSFER = "transfer id, so that all messages about one transfer come in order"
_OF_A_QUERY = "the query's correlation id"
_CHANNELS: dict[str, tuple[str, str, str, tuple[type, ...]]] = {
    "commands": ("send", "Commands to the trading core.", _OF_A_TRANSFER, (CommandMessage,)),
    "verdicts": ("receive", "The core's verdicts, at least once.", _OF_A_TRANSFER, (VerdictMessage,)),
    "queries": (
        "send",
        "Queries to the core, which it answers on the channel of replies.",
        _OF_A_QUERY,
        (VerdictsQuery, BalancesQuery, EntriesQuery),
    ),
    "replies": (
        "receive",
        "The core's replies. Every process of the service reads all and keeps its own.",
        _OF_A_QUERY,
        (VerdictsReply, BalancesReply, EntriesReply, UnavailableReply, RefusedReply),
    ),
    "events": ("send", "The events of transfers, at least once.", _OF_A_TRANSFER, (TransferEventMessage,)),
}


def document() -> dict[str, Any]:
    """The AsyncAPI 3.0 document, from the service's point of view."""
    topics = Topics()
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    kinds: list[type] = []
    for name, (action, text, key, messages) in _CHANNELS.items():
        kinds += messages
        channels[name] = {
            "address": getattr(topics, name),
            "description": f"{text} Keyed by {key}.",
            "messages": {kind.__name__: {"$ref": f"#/components/messages/{kind.__name__}"} for kind in messages},
        }
        operations[f"{action}_{name}"] = {"action": action, "channel": {"$ref": f"#/channels/{name}"}}
    operations["send_queries"]["reply"] = {"channel": {"$ref": "#/channels/replies"}}
    channels["dead_letters"] = {
        "address": topics.dead_letters,
        "description": (
            "Messages that could not be decoded, as they were, with the headers dead-letter-reason, -topic, -partition "
            "and -offset added to their own."
        ),
        "messages": {"DeadLetter": {"$ref": "#/components/messages/DeadLetter"}},
    }
    operations["send_dead_letters"] = {"action": "send", "channel": {"$ref": "#/channels/dead_letters"}}
    _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Internal transfer: messages",
            "version": DOCUMENT_VERSION,
            "description": (
                "The topics of one prefix (here the default one). `type` names a message's kind and, after the slash, "
                "the version of its shape. See docs/guides/kafka.md."
            ),
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": {kind.__name__: _message(kind) for kind in kinds}
            | {"DeadLetter": {"contentType": "application/octet-stream", "payload": {"type": "string"}}},
            "schemas": schemas | {"TransferHeaders": _TRANSFER_HEADERS},
        },
    }


_TRANSFER_HEADERS = {
    "type": "object",
    "properties": {
        "content-type": {"type": "string", "const": "application/json"},
        "request-id": {"type": "string", "description": "The transfer's id."},
        "traceparent": {"type": "string", "description": "W3C trace context, derived from the transfer's id."},
    },
}


def _message(kind: type) -> dict[str, Any]:
    message: dict[str, Any] = {
        "contentType": "application/json",
        "payload": {"$ref": f"#/components/schemas/{kind.__name__}"},
    }
    if "transfer_id" in kind.__annotations__ or kind is VerdictMessage:
        message["headers"] = {"$ref": "#/components/schemas/TransferHeaders"}
    else:
        message["correlationId"] = {"location": "$message.payload#/correlation_id"}
    return message


def _lines(value: Any, indent: int) -> Iterator[str]:
    """A value as lines of YAML: blocks for what has parts, JSON for everything else."""
    space = "  " * indent
    if isinstance(value, dict) and value:
        for key, part in value.items():
            name = key if key.isidentifier() else msgspec.json.encode(key).decode()
            if isinstance(part, dict | list) and part:
                yield f"{space}{name}:"
                yield from _lines(part, indent + 1)
            else:
                yield f"{space}{name}: {msgspec.json.encode(part).decode()}"
    elif isinstance(value, list) and value:
        for part in value:
            if isinstance(part, dict) and part:
                first, *rest = _lines(part, indent + 1)
                yield f"{space}- {first.lstrip()}"
                yield from rest
            else:
                yield f"{space}- {msgspec.json.encode(part).decode()}"


def as_yaml() -> str:
    """The document as text."""
    return "\n".join(_lines(document(), 0)) + "\n"


if __name__ == "__main__":
    sys.stdout.write(as_yaml())
