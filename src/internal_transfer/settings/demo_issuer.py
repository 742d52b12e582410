"""The issuer for demonstrations: signs tokens with a key in the data directory, which `serve --demo` creates."""

import os
import secrets
from pathlib import Path

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from msgspec import Struct

from internal_transfer.domain.account import Owner
from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.settings.issuers import TrustedIssuer

FILE_NAME = "demo-issuer.json"
ISSUER = "internal-transfer-demo"
AUDIENCE = "internal-transfer"
TOKEN_SECONDS = 3600


class _Stored(Struct, frozen=True):
    """A private JWK with its key id."""

    kid: str
    x: str
    d: str
    kty: str = "OKP"
    crv: str = "Ed25519"
    alg: str = "EdDSA"


class DemoIssuer:
    """A key pair (EdDSA) that signs tokens."""

    def __init__(self, stored: _Stored) -> None:
        self._stored = stored

    @staticmethod
    def read(directory: Path) -> "DemoIssuer":
        """Returns the issuer of a data directory; raises `StartRefusedError` where there is none."""
        path = directory / FILE_NAME
        try:
            return DemoIssuer(msgspec.json.decode(path.read_bytes(), type=_Stored))
        except FileNotFoundError as error:
            raise StartRefusedError(
                f"{path}: there is no demo issuer; `internal-transfer serve --demo` creates one"
            ) from error
        except OSError as error:
            raise StartRefusedError(f"{path}: cannot be read: {error.strerror}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StartRefusedError(
                f"{path}: is not a demo issuer's key; delete it, and `serve --demo` creates one"
            ) from error

    @staticmethod
    def create(directory: Path) -> "DemoIssuer":
        """Returns the issuer of a data directory, created where missing; only its owner can read the file."""
        path = directory / FILE_NAME
        if path.exists():
            return DemoIssuer.read(directory)
        private = Ed25519PrivateKey.generate()
        stored = _Stored(
            kid=secrets.token_hex(8),
            x=_base64(private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)),
            d=_base64(private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())),
        )
        unfinished = path.with_suffix(".new")
        handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode(stored))
            file.flush()
            os.fsync(handle)
        unfinished.replace(path)
        return DemoIssuer(stored)

    def public_keys(self) -> dict[str, list[dict[str, str]]]:
        """Returns the JWK set that verifies the tokens."""
        stored = self._stored
        return {
            "keys": [
                {
                    "kty": stored.kty,
                    "crv": stored.crv,
                    "alg": stored.alg,
                    "use": "sig",
                    "kid": stored.kid,
                    "x": stored.x,
                }
            ]
        }

    def trusted(self) -> TrustedIssuer:
        """Returns the issuer for the authenticator."""
        [key] = self.public_keys()["keys"]
        renewal = "get a new one with: internal-transfer token --data DIR --user USER"
        return TrustedIssuer(ISSUER, AUDIENCE, {self._stored.kid: jwt.PyJWK(key)}, renewal)

    def token(self, owner: Owner, *, roles: tuple[str, ...], tier: str, now_seconds: int) -> str:
        """Returns a token that is valid for one hour from this wall-clock time."""
        stored = self._stored
        private = jwt.PyJWK({"kty": stored.kty, "crv": stored.crv, "alg": stored.alg, "x": stored.x, "d": stored.d})
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": owner,
            "iat": now_seconds,
            "exp": now_seconds + TOKEN_SECONDS,
            "roles": list(roles),
            "tier": tier,
        }
        return jwt.encode(claims, private.key, algorithm=stored.alg, headers={"kid": stored.kid})


def _base64(raw: bytes) -> str:
    return jwt.utils.base64url_encode(raw).decode()
