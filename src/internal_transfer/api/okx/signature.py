"""Verifies requests signed as OKX's are: the `OK-ACCESS-*` headers, against a stored API key.

The signature is base64(HMAC-SHA256(secret, timestamp + METHOD + path?query + body)). It is checked before the
passphrase, whose hash is slow on purpose, so that strangers cause no work. A signature is good for one POST: the same
signed bytes are refused again for as long as their timestamp is accepted. A restart forgets the signatures, and
processes do not share them; that loses only the refusal, since a repeated transfer is found by its `clientId`.
"""

import asyncio
import hmac
import re
from base64 import b64encode
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from msgspec import Struct

from internal_transfer.api.headers import Headers
from internal_transfer.domain.account import Owner
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.operations import ApiKey
from internal_transfer.services.operators.api_keys import ApiKeys, passphrase_matches

WINDOW_MS = 30_000
"""How far a timestamp may be from our clock, in either direction."""
KEY_CACHED_SECONDS = 3.0
"""How long a process that did not revoke a key may still accept it."""
KEYS_CACHED_MAX = 10_000
SIGNATURES_MAX = 131_072
SIGNATURES_PER_KEY_MAX = 32_768

_MEMORY_SECONDS = 2 * WINDOW_MS / 1000 + 1
"""A timestamp may be one window ahead of our clock, and is accepted until one window behind it."""
_KEY_CHARACTERS_MAX = 128
_PASSPHRASE_CHARACTERS_MAX = 256
_TIMESTAMP = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

_KEY, _PASSPHRASE = b"ok-access-key", b"ok-access-passphrase"
_SIGN, _TIME = b"ok-access-sign", b"ok-access-timestamp"
_REQUIRED = ((_KEY, "50103"), (_PASSPHRASE, "50104"), (_SIGN, "50106"), (_TIME, "50107"))


class Signer(Struct, frozen=True):
    """The owner of the key that signed, and the tier whose limits apply."""

    owner: Owner
    tier: str


class Denied(Struct, frozen=True):
    """Why a request is not accepted: OKX's code and a sentence."""

    code: str
    message: str


class _Known(Struct):
    """A key that was read a moment ago, with its passphrase once that has been verified."""

    api_key: ApiKey
    read_at: float
    passphrase: bytes | None = None


class Signatures:
    """Verifies signed requests; remembers keys for seconds, and the signatures of POSTs while they are valid.

    Both memories are bounded: the least recently used key is dropped and read again, and a POST whose signature does
    not fit in is refused.
    """

    def __init__(
        self,
        api_keys: ApiKeys,
        clock: Clock,
        *,
        signatures_max: int = SIGNATURES_MAX,
        signatures_per_key_max: int = SIGNATURES_PER_KEY_MAX,
    ) -> None:
        self._api_keys = api_keys
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._seen = _SeenSignatures(most=signatures_max, most_per_key=signatures_per_key_max)
        # One passphrase is hashed at a time, so that wrong ones cannot occupy the machine.
        self._hashing = asyncio.Lock()

    async def verify(self, *, method: str, target: bytes, headers: Headers, body: bytes) -> Signer | Denied:
        """Returns the signer of a request, or why it is not accepted; `target` is the path and query as sent.

        Raises `Unavailable` or `OutcomeUnknown` if the key cannot be read.
        """
        given: dict[bytes, bytes] = {}
        for name, code in _REQUIRED:
            value = headers.get(name)
            if not value:
                rule = "is given more than once" if headers.is_repeated(name) else "is missing or empty"
                return Denied(code, f"the header {name.decode().upper()} {rule}")
            given[name] = value
        untimely = self._check_time(given[_TIME])
        if untimely is not None:
            return untimely
        known = await self._find(given[_KEY])
        if known is None:
            return Denied("50111", "OK-ACCESS-KEY is not a key of this service")
        key = known.api_key
        message = b"".join((given[_TIME], method.encode(), target, body))
        expected = b64encode(hmac.digest(key.secret.encode(), message, sha256))
        if not hmac.compare_digest(expected, given[_SIGN]):
            return Denied(
                "50113",
                "OK-ACCESS-SIGN does not match: sign the timestamp, the method, the path with its query, and the body",
            )
        if key.revoked:
            return Denied("50114", "the API key was revoked")
        if not await self._is_passphrase(known, given[_PASSPHRASE]):
            return Denied("50105", "OK-ACCESS-PASSPHRASE is not the key's passphrase")
        if method == "POST":
            seen = self._seen.add(key.key, expected, self._clock.monotonic())
            if seen is not None:
                return seen
        return Signer(key.owner, key.tier)

    def _check_time(self, text: bytes) -> Denied | None:
        match = _TIMESTAMP.fullmatch(text)
        try:
            at = datetime.fromisoformat(text[:19].decode() + "+00:00") if match else None
        except ValueError:
            at = None
        if match is None or at is None:
            return Denied("50112", "OK-ACCESS-TIMESTAMP is not a UTC time such as 2026-01-31T09:08:57.715Z")
        fraction = (match[1] or b".0")[1:4].ljust(3, b"0")
        at_ms = (at - _EPOCH) // _MILLISECOND + int(fraction)
        apart_ms = self._clock.now_ms() - at_ms
        if abs(apart_ms) > WINDOW_MS:
            way = "behind" if apart_ms > 0 else "ahead of"
            return Denied(
                "50102",
                f"the timestamp is {abs(apart_ms) / 1000:.3f} s {way} this service's clock, "
                f"more than {WINDOW_MS // 1000} s; GET /api/v5/public/time returns its time",
            )
        return None

    async def _find(self, raw: bytes) -> _Known | None:
        if len(raw) > _KEY_CHARACTERS_MAX or not raw.isascii():
            return None
        name = raw.decode("ascii")
        known = self._known.get(name)
        now = self._clock.monotonic()
        if known is not None and now - known.read_at < KEY_CACHED_SECONDS:
            self._known.move_to_end(name)
            return known
        found = await self._api_keys.find(name)
        if found is None:
            # Unknown keys are not remembered: they would push out the known ones.
            self._known.pop(name, None)
            return None
        known = self._known.get(name)
        if known is not None and known.read_at >= now:
            return known  # Another request has read it meanwhile, and may be checking its passphrase.
        fresh = _Known(found, now)
        if known is not None and known.api_key.passphrase_hash == found.passphrase_hash:
            fresh.passphrase = known.passphrase
        self._known[name] = fresh
        self._known.move_to_end(name)
        if len(self._known) > KEYS_CACHED_MAX:
            self._known.popitem(last=False)
        return fresh

    async def _is_passphrase(self, known: _Known, given: bytes) -> bool:
        if known.passphrase is not None:
            return hmac.compare_digest(known.passphrase, given)
        if len(given) > _PASSPHRASE_CHARACTERS_MAX or not given.isascii():
            return False
        async with self._hashing:
            if known.passphrase is None and await asyncio.to_thread(
                passphrase_matches, given.decode("ascii"), known.api_key.passphrase_hash
            ):
                known.passphrase = given
            return known.passphrase is not None and hmac.compare_digest(known.passphrase, given)


class _SeenSignatures:
    """The signatures of POSTs, each until its timestamp is too old to be accepted again.

    Each key has a share of the room, so that one busy client does not shut out the others.
    """

    def __init__(self, *, most: int, most_per_key: int) -> None:
        self._most = most
        self._most_per_key = most_per_key
        # In order of arrival, which is also the order in which they are forgotten.
        self._seen: OrderedDict[bytes, tuple[float, str]] = OrderedDict()
        self._counts: dict[str, int] = {}

    def add(self, key: str, signature: bytes, now: float) -> Denied | None:
        """Remembers a signature, or returns why it cannot be accepted; `now` is on the monotonic clock."""
        self._forget(now - _MEMORY_SECONDS)
        if signature in self._seen:
            return Denied("50102", "this signed request was received before; sign it again with the present time")
        count = self._counts.get(key, 0)
        if count >= self._most_per_key:
            return Denied("50011", f"the key signed {count} requests within {_MEMORY_SECONDS:.0f} s")
        if len(self._seen) >= self._most:
            return Denied("50013", "the service has too many signed requests at the moment; nothing was recorded")
        self._seen[signature] = (now, key)
        self._counts[key] = count + 1
        return None

    def _forget(self, before: float) -> None:
        while self._seen:
            at, key = next(iter(self._seen.values()))
            if at >= before:
                return
            self._seen.popitem(last=False)
            left = self._counts[key] - 1
            if left:
                self._counts[key] = left
            else:
                del self._counts[key]
