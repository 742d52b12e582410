"""Who is calling: bearer tokens (JWT), verified against the configured issuers' public keys."""

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import jwt
from msgspec import Struct

from internal_transfer.domain.account import Owner, is_owner
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.ports.clock import Clock
from internal_transfer.settings.issuers import TrustedIssuer

USER = "user"
DEFAULT_TIER = "standard"

_CLOCK_SKEW_SECONDS = 60
_TOKENS_CACHED_MAX = 20_000
_ROLES_MAX = 32
_TIER = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
# We check times against our own clock, so the library's checks are off.
_OPTIONS: Any = {
    "require": ["iss", "aud", "sub", "exp", "iat"],
    "verify_exp": False,
    "verify_iat": False,
    "verify_nbf": False,
    "verify_sub": False,
    "verify_jti": False,
    "enforce_minimum_key_length": True,
}


class Caller(Struct, frozen=True):
    """A verified caller; `expires_at` is wall-clock seconds."""

    owner: Owner
    tier: str
    roles: frozenset[str]
    expires_at: float

    def may_act_as_user(self) -> bool:
        """Returns whether this caller may use the users' routes; a token without roles belongs to a user."""
        return not self.roles or USER in self.roles


class Authenticator:
    """Verifies `Authorization` headers, and remembers verified tokens until they expire.

    It remembers at most `cached_most` tokens, and drops the least recently used first.
    """

    def __init__(
        self, issuers: Sequence[TrustedIssuer], clock: Clock, *, cached_most: int = _TOKENS_CACHED_MAX
    ) -> None:
        self._issuers = {issuer.issuer: issuer for issuer in issuers}
        assert len(self._issuers) == len(issuers), "two issuers have the same name"
        self._clock = clock
        self._cached_most = cached_most
        self._verified: OrderedDict[bytes, Caller] = OrderedDict()

    def authenticate(self, authorization: bytes | None) -> Caller | Refusal:
        """Returns the caller that the header's value names, or a refusal that says why it is not accepted."""
        if authorization is None:
            return _refuse("the Authorization header is missing; send: Bearer TOKEN")
        caller = self._verified.get(authorization)
        if caller is not None:
            if caller.expires_at * 1000 > self._clock.now_ms():
                self._verified.move_to_end(authorization)
                return caller
            del self._verified[authorization]  # Verifying it again says how to get a new one.
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not token:
            return _refuse("the Authorization header is not of the form: Bearer TOKEN")
        verified = self._verify(token.strip())
        if isinstance(verified, Caller):
            self._verified[authorization] = verified
            if len(self._verified) > self._cached_most:
                self._verified.popitem(last=False)
        return verified

    def _verify(self, token: bytes) -> Caller | Refusal:
        try:
            unverified = jwt.decode_complete(token, options={"verify_signature": False})
            found = self._key_for(unverified["header"], unverified["payload"])
            if found is None:
                return _refuse("the token's issuer or key is not trusted here")
            issuer, key = found
            claims = jwt.decode(
                token,
                key=key,
                algorithms=[key.algorithm_name],
                audience=issuer.audience,
                issuer=issuer.issuer,
                options=_OPTIONS,
            )
        except jwt.PyJWTError as error:
            return _refuse(_reason(error))
        return self._caller_of(claims, issuer)

    def _key_for(self, header: dict[str, Any], payload: dict[str, Any]) -> tuple[TrustedIssuer, jwt.PyJWK] | None:
        name = payload.get("iss")
        issuer = self._issuers.get(name) if isinstance(name, str) else None
        if issuer is None:
            return None
        key_id = header.get("kid")
        if key_id is None and len(issuer.keys) == 1:
            return issuer, next(iter(issuer.keys.values()))
        key = issuer.keys.get(key_id if isinstance(key_id, str) else "")
        return None if key is None else (issuer, key)

    def _caller_of(self, claims: dict[str, Any], issuer: TrustedIssuer) -> Caller | Refusal:
        now = self._clock.now_ms() / 1000
        expires_at, issued_at, not_before = claims["exp"], claims["iat"], claims.get("nbf", 0)
        if not (_is_time(expires_at) and _is_time(issued_at) and _is_time(not_before)):
            return _refuse("the token's exp, iat and nbf must be numbers of seconds")
        if expires_at <= now:
            return _refuse(f"the token has expired; {issuer.renewal}")
        if max(issued_at, not_before) > now + _CLOCK_SKEW_SECONDS:
            return _refuse("the token is not valid yet")
        owner = claims["sub"]
        if not isinstance(owner, str) or not is_owner(owner):
            return _refuse("the token's sub is not a user id")
        roles = claims.get("roles", [])
        if not isinstance(roles, list) or len(roles) > _ROLES_MAX or not all(isinstance(role, str) for role in roles):
            return _refuse("the token's roles are not a list of strings")
        tier = claims.get("tier", DEFAULT_TIER)
        if not isinstance(tier, str) or _TIER.fullmatch(tier) is None:
            return _refuse("the token's tier is not a valid name")
        return Caller(Owner(owner), tier, frozenset(roles), float(expires_at))


def _is_time(value: object) -> bool:
    # A bool is an int to Python, and NaN or infinity would make a token that never expires.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**53


def _reason(error: jwt.PyJWTError) -> str:
    # The library's own messages repeat what a stranger wrote into the token.
    match error:
        case jwt.InvalidSignatureError():
            return "the token's signature does not match"
        case jwt.InvalidAudienceError():
            return "the token is for another audience"
        case jwt.MissingRequiredClaimError():
            return "the token lacks one of iss, aud, sub, exp and iat"
        case _:
            return "the token is not a well-formed JWT, or its algorithm does not fit its key"


def _refuse(message: str) -> Refusal:
    return Refusal(Code.UNAUTHENTICATED, message)
