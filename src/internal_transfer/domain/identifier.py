"""Transfer ids (63-bit Snowflakes) and the ledger ids derived from them."""

import re
from hashlib import blake2b
from typing import NewType

TransferId = NewType("TransferId", int)
"""Milliseconds since `EPOCH_MS` (41 bits), node (10 bits), counter (12 bits); positive, below 2^63."""

EPOCH_MS = 1_735_689_600_000  # 2025-01-01T00:00:00Z
NODES_MAX = 1024
PER_MILLISECOND_MAX = 4096
MILLISECONDS_PER_DAY = 86_400_000

_WRITTEN = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)
_TRANSFER_ID_MAX = 2**63 - 1
_HOLD, _POST, _VOID = 1, 2, 3
_CASH_RANGE = 1 << 127
RESTORED_KEY = "\N{SECTION SIGN}restored:"
FENCE_HOLD_ID = 4 << 60
"""The hold that never exists: its id is burnt when a ledger is first used, and a fence is a void of it."""


def snowflake(*, at_ms: int, node: int, counter: int) -> TransferId:
    """Composes an id; `at_ms` is wall time, `node` below 1024, `counter` below 4096."""
    elapsed = at_ms - EPOCH_MS
    assert 0 <= elapsed < 1 << 41, f"time out of the id's range: {at_ms}"
    assert 0 <= node < NODES_MAX, f"node out of range: {node}"
    assert 0 <= counter < PER_MILLISECOND_MAX, f"counter out of range: {counter}"
    return TransferId(elapsed << 22 | node << 12 | counter)


def read_transfer_id(text: str) -> TransferId | None:
    """Reads an id from its decimal text; returns None for any other text."""
    if _WRITTEN.fullmatch(text) is None:
        return None
    number = int(text)
    return TransferId(number) if number <= _TRANSFER_ID_MAX else None


def time_of(transfer_id: TransferId) -> int:
    """The wall time in milliseconds at which the id was drawn."""
    return (transfer_id >> 22) + EPOCH_MS


def day_of(transfer_id: TransferId) -> int:
    """The UTC day of the id's time, counted from 1970-01-01: the day whose limits the transfer uses."""
    return time_of(transfer_id) // MILLISECONDS_PER_DAY


def hold_id(transfer_id: TransferId) -> int:
    """The ledger id of the transfer's hold; it rises with the transfer's id."""
    return transfer_id << 64 | _HOLD << 60


def post_id(transfer_id: TransferId, attempt: int) -> int:
    """The ledger id of the hold's post; `attempt` (below 2^32) is 0 until an id is burnt."""
    return transfer_id << 64 | _POST << 60 | attempt


def void_id(transfer_id: TransferId, attempt: int) -> int:
    """The ledger id of the hold's void; `attempt` (below 2^32) is 0 until an id is burnt."""
    return transfer_id << 64 | _VOID << 60 | attempt


def transfer_of(ledger_id: int) -> TransferId | None:
    """The transfer whose hold, post or void has this ledger id; None for a deposit or withdrawal."""
    return None if ledger_id >= _CASH_RANGE else TransferId(ledger_id >> 64)


def cash_id(reference: str) -> int:
    """The ledger id of a deposit or withdrawal: a hash of its reference, in a range of its own.

    A reference always gives the same id, so the ledger itself ensures that each is used once.
    """
    digest = blake2b(reference.encode(), digest_size=15, person=b"cash").digest()
    return _CASH_RANGE | int.from_bytes(digest, "big")


def restored_key(digest: int) -> str:
    """The stand-in for a key of which only the hash is known. It is not ASCII, so no client can send it as a key."""
    return f"{RESTORED_KEY}{digest:032x}"


def key_hash(owner: str, key: str) -> int:
    """The 128-bit hash of a user's idempotency key, which finds the key again after a restore.

    It is the `user_data_128` of the hold. The hash of a restored key is the one that the key was made from.
    """
    if key.startswith(RESTORED_KEY):
        return int(key[len(RESTORED_KEY) :], 16)
    encoded = owner.encode()
    digest = blake2b(digest_size=16, person=b"key")
    digest.update(len(encoded).to_bytes(2, "big") + encoded + key.encode())
    return int.from_bytes(digest.digest(), "big")
