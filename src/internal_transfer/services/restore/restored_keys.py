"""Finds transfers by key where, after a restore, only the key's hash is known."""

from collections.abc import Sequence
from typing import Protocol

from internal_transfer.domain.account import Owner
from internal_transfer.domain.identifier import key_hash, restored_key
from internal_transfer.domain.rules import Rules
from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.transfer_store import KeyTaken

KEYS_RESTORED = "keys.restored"
"""Pinned before the first record is rebuilt under the hash of its key; it stays, since keys are for ever."""


class KeyLookup(Protocol):
    """The part of the store that finds transfers by key."""

    async def by_keys(self, keys: Sequence[tuple[Owner, str]], *, settled: bool = True) -> list[KeyTaken | None]:
        """Returns what each (owner, idempotency key) stands for, in order."""
        ...


class RestoredKeys:
    """The store's look-up of keys, with a second one by hash if records were ever rebuilt."""

    def __init__(self, ports: Ports, rules: Rules) -> None:
        self._store = ports.store
        self._operations = ports.operations
        self._rules = rules
        self._exist = False

    async def refresh(self) -> None:
        """Reads whether records were rebuilt; once per start is enough, since that is done while nothing runs."""
        self._exist = KEYS_RESTORED in await self._operations.pins()

    async def by_keys(self, keys: Sequence[tuple[Owner, str]], *, settled: bool = True) -> list[KeyTaken | None]:
        """Returns what each (owner, idempotency key) stands for, even if only its hash is on record."""
        hits = await self._store.by_keys(keys, settled=settled)
        if not self._exist:
            return hits
        forms: list[tuple[Owner, str]] = []
        places: list[int] = []
        for place, ((caller, key), hit) in enumerate(zip(keys, hits, strict=True)):
            if hit is None:
                form = restored_key(key_hash(caller, key))
                # If a master had moved a sub-account's money, the owner of the rebuilt record is a guess. The hash is
                # of the caller, so a record found under any of these owners is the caller's.
                owners = [caller, *sorted(self._rules.sub_accounts.get(caller, ()))]
                forms += [(owner, form) for owner in owners]
                places += [place] * len(owners)
        for place, hit in zip(places, await self._store.by_keys(forms, settled=settled) if forms else [], strict=True):
            if hit is not None:
                hits[place] = hit
        return hits
