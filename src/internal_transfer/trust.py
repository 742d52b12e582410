"""Whose tokens are believed: the configured issuers, and in a demonstration the one in the data directory."""

from pathlib import Path

from internal_transfer.api.authentication import Authenticator, read_issuer
from internal_transfer.api.demo_issuer import DemoIssuer
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.settings import Settings


def authenticator_of(settings: Settings, data: Path, clock: Clock, *, demo: bool) -> Authenticator:
    """Reads all keys; raises `StartRefusedError` where a file is wrong, or nobody is believed at all."""
    issuers = [
        read_issuer(issuer=entry.issuer, audience=entry.audience, keys_file=Path(entry.keys_file))
        for entry in settings.issuers
    ]
    if demo:
        issuers.append(DemoIssuer.create(data).trusted())
    if not issuers:
        raise StartRefusedError("issuers: name who issues your users' tokens, or start with --demo")
    return Authenticator(issuers, clock)
