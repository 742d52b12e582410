"""The issuers whose tokens are accepted: the configured ones, and in a demonstration that of the data directory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jwt
from msgspec import Struct

from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.settings.demo_issuer import DemoIssuer
from internal_transfer.settings.issuers import TrustedIssuer, read_issuer
from internal_transfer.settings.settings import Settings


class IssuerKeys(Struct, frozen=True):
    """A trusted issuer in a form that can be sent to another process: its public keys are JWKs."""

    issuer: str
    audience: str
    keys: tuple[dict[str, Any], ...]
    renewal: str


def trusted_issuers(settings: Settings, data: Path, *, demo: bool) -> list[TrustedIssuer]:
    """Reads all keys; raises `StartRefusedError` for a faulty file, and where there is no issuer at all."""
    issuers = [
        read_issuer(issuer=entry.issuer, audience=entry.audience, keys_file=Path(entry.keys_file))
        for entry in settings.issuers
    ]
    if demo:
        issuers.append(DemoIssuer.create(data).trusted())
    if not issuers:
        raise StartRefusedError("issuers: name the issuer of your users' tokens, or start with --demo")
    return issuers


def to_keys(issuers: Sequence[TrustedIssuer]) -> tuple[IssuerKeys, ...]:
    """Returns the issuers with the keys that were read at the start, even if their files have changed since."""
    return tuple(
        IssuerKeys(
            issuer.issuer,
            issuer.audience,
            tuple(
                # The library's JWK leaves out the id and the algorithm of a public key.
                key.Algorithm.to_jwk(key.key, as_dict=True) | {"kid": key_id, "alg": key.algorithm_name}
                for key_id, key in issuer.keys.items()
            ),
            issuer.renewal,
        )
        for issuer in issuers
    )


def from_keys(told: Sequence[IssuerKeys]) -> list[TrustedIssuer]:
    """Returns the issuers that `to_keys` was given."""
    return [
        TrustedIssuer(entry.issuer, entry.audience, {key["kid"]: jwt.PyJWK(key) for key in entry.keys}, entry.renewal)
        for entry in told
    ]
