"""The trusted issuers of tokens, with their audiences and public keys."""

from pathlib import Path
from typing import Any

import jwt
import msgspec
from msgspec import Struct

from internal_transfer.ports.errors import StartRefusedError

ALGORITHMS = frozenset({"EdDSA", "ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
"""Only public-key signatures: with a shared secret, anybody who can read the keys file could sign tokens."""


class TrustedIssuer(Struct, frozen=True):
    """An issuer, its audience, and its keys by key id ("" for a key without one).

    `renewal` tells the caller how to replace an expired token.
    """

    issuer: str
    audience: str
    keys: dict[str, jwt.PyJWK]
    renewal: str = "get a new one from its issuer"


def read_issuer(*, issuer: str, audience: str, keys_file: Path) -> TrustedIssuer:
    """Reads an issuer's public keys (a JWK set); raises `StartRefusedError`, which names the file and the fault."""
    try:
        keys = msgspec.json.decode(keys_file.read_bytes(), type=dict[str, Any])["keys"]
    except OSError as error:
        raise StartRefusedError(f"{keys_file}: cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError) as error:
        raise StartRefusedError(f"{keys_file}: is not a JWK set: an object with an array named keys") from error
    if not isinstance(keys, list) or not keys:
        raise StartRefusedError(f"{keys_file}: keys must be an array with at least one key")
    trusted: dict[str, jwt.PyJWK] = {}
    for number, key in enumerate(keys):
        where = f"{keys_file}: keys[{number}]"
        if not isinstance(key, dict):
            raise StartRefusedError(f"{where}: must be an object")
        try:
            parsed = jwt.PyJWK(key)
        except jwt.PyJWTError as error:
            # The library's message repeats the key, which may be a private key by mistake.
            raise StartRefusedError(f"{where}: is not a key of a supported type") from error
        if parsed.algorithm_name not in ALGORITHMS:
            raise StartRefusedError(f"{where}: {parsed.algorithm_name} is not supported; use a public-key algorithm")
        if "d" in key:
            raise StartRefusedError(f"{where}: is a private key; only its public half belongs in this file")
        key_id = key.get("kid", "")
        if not isinstance(key_id, str) or key_id in trusted:
            raise StartRefusedError(f"{where}: kid must be a string that no other key has")
        trusted[key_id] = parsed
    return TrustedIssuer(issuer, audience, trusted)
