"""API keys for request signatures: makes, revokes and finds them."""

import asyncio
import hmac
from collections.abc import Callable
from hashlib import scrypt

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from internal_transfer.domain.account import Owner, is_owner
from internal_transfer.domain.refusal import Refusal, refuse_field
from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.operations import ApiKey
from internal_transfer.services.operators.audit import AuditTrail, check_reason

KEY_BYTES = 16
SECRET_BYTES = 32
PASSPHRASE_BYTES = 16
SALT_BYTES = 16

# RFC 7914's parameters for interactive use: about 50 ms and 16 MiB, which stays under OpenSSL's default ceiling.
_COST, _BLOCK_SIZE, _PARALLELISM, _HASH_BYTES = 2**14, 8, 1, 32
_SCHEME = "scrypt"


class NewApiKey(Struct, frozen=True):
    """What the holder of a new key is told, once; the passphrase cannot be read later."""

    api_key: str
    secret: str
    passphrase: str

    def __repr__(self) -> str:
        """Returns the key alone, so that no log can leak the rest."""
        return f"NewApiKey({self.api_key!r})"


class ApiKeys:
    """Makes, revokes and finds API keys; everything that it returns is durable.

    `draw` returns the given number of random bytes that nobody can guess. All calls raise `Unavailable` if nothing was
    recorded, and `OutcomeUnknown` if that is not known.
    """

    def __init__(self, ports: Ports, *, audit: AuditTrail, tiers: frozenset[str], draw: Callable[[int], bytes]) -> None:
        self._operations = ports.operations
        self._durability = ports.durability
        self._clock = ports.clock
        self._audit = audit
        self._tiers = tiers
        self._draw = draw

    async def create(self, owner: str, *, tier: str, actor: str, reason: str) -> NewApiKey | Refusal:
        """Makes a key with which `owner` signs under the limits of `tier`; the audit chain names actor and reason."""
        refusal = check_reason(reason)
        if refusal is not None:
            return refusal
        if not is_owner(owner):
            return refuse_field("user", "does not match [A-Za-z0-9_.:-]{1,64}")
        if tier not in self._tiers:
            return refuse_field("tier", f"is none of {', '.join(sorted(self._tiers))}")
        made = NewApiKey(
            api_key=self._draw(KEY_BYTES).hex(),
            secret=self._draw(SECRET_BYTES).hex(),
            passphrase=self._draw(PASSPHRASE_BYTES).hex(),
        )
        key = ApiKey(
            key=made.api_key,
            secret=made.secret,
            passphrase_hash=await asyncio.to_thread(hash_passphrase, made.passphrase, self._draw(SALT_BYTES)),
            owner=Owner(owner),
            tier=tier,
            created_at=self._clock.now_ms(),
        )
        await self._put(key, action="create_api_key", actor=actor, reason=reason)
        return made

    async def revoke(self, key: str, *, actor: str, reason: str) -> ApiKey | Refusal | None:
        """Revokes a key for good and returns it, or None if there is no such key; revoking again changes nothing."""
        refusal = check_reason(reason)
        if refusal is not None:
            return refusal
        found = await self.find(key)
        if found is None or found.revoked:
            return found
        revoked = replace(found, revoked=True)
        await self._put(revoked, action="revoke_api_key", actor=actor, reason=reason)
        return revoked

    async def find(self, key: str) -> ApiKey | None:
        """Returns the key as recorded, even if it is revoked."""
        [found] = await self._operations.api_keys([key])
        await self._durability.durable()
        return found

    async def _put(self, key: ApiKey, *, action: str, actor: str, reason: str) -> None:
        evidence = msgspec.json.encode({"api_key": key.key, "tier": key.tier}).decode()
        entry = self._audit.entry(
            actor=actor, action=action, subject=key.owner, reason=reason, outcome="completed", evidence=evidence
        )
        await self._operations.put_api_key(key, entry)
        await self._durability.durable()


def hash_passphrase(passphrase: str, salt: bytes) -> str:
    """Returns what is stored of a passphrase: scheme, cost, salt and hash. Takes about 50 ms of processor time."""
    digest = scrypt(passphrase.encode(), salt=salt, n=_COST, r=_BLOCK_SIZE, p=_PARALLELISM, dklen=_HASH_BYTES)
    return f"{_SCHEME}${_COST}${_BLOCK_SIZE}${_PARALLELISM}${salt.hex()}${digest.hex()}"


def passphrase_matches(passphrase: str, stored: str) -> bool:
    """Tells whether a stored hash is this passphrase's, under the parameters it was made with; as slow as hashing."""
    scheme, cost, block_size, parallelism, salt, expected = stored.split("$")
    assert scheme == _SCHEME, f"passphrases are hashed by scrypt alone, not by {scheme}"
    digest = scrypt(
        passphrase.encode(),
        salt=bytes.fromhex(salt),
        n=int(cost),
        r=int(block_size),
        p=int(parallelism),
        dklen=len(expected) // 2,
    )
    return hmac.compare_digest(digest, bytes.fromhex(expected))
