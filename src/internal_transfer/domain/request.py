"""A user's request, decoded but not yet checked against settings or state."""

import msgspec
from msgspec import Struct

from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.refusal import Detail

FINGERPRINT_VERSION = 1
_ENCODER = msgspec.json.Encoder()


class TransferRequest(Struct, frozen=True):
    """A request in canonical form: owners filled in, `amount` a decimal string without trailing zeros.

    `caller` is the user who asks, and whose key and limits count; `tier` and `key` come with the call.
    """

    caller: Owner
    tier: str
    key: str
    source: Account
    target: Account
    amount: str
    memo: str | None = None

    def fingerprint(self) -> bytes:
        """The content that the key stands for: a version and the canonical request, never settings."""
        return _ENCODER.encode([*_without_memo(self.source, self.target, self.amount), self.memo])


def restored_fingerprint(source: Account, target: Account, amount: str) -> bytes:
    """Returns the fingerprint of a request whose memo is not known; it ends before the memo."""
    return _ENCODER.encode(_without_memo(source, target, amount))


def _without_memo(source: Account, target: Account, amount: str) -> tuple[int | str, ...]:
    accounts = (source.owner, source.type, source.asset, target.owner, target.type, target.asset)
    return (FINGERPRINT_VERSION, *accounts, amount)


_FIELDS = (
    "from_account.user_id",
    "from_account.account_type",
    "from_account.asset",
    "to_account.user_id",
    "to_account.account_type",
    "to_account.asset",
    "amount",
    "memo",
)


def differing_fields(first: bytes, second: bytes) -> tuple[Detail, ...]:
    """Returns the fields in which two fingerprints differ, or only the version where their versions differ.

    The memo that a restored fingerprint lacks is not a difference.
    """
    one, other = msgspec.json.decode(first), msgspec.json.decode(second)
    if one[0] != other[0]:
        return (Detail("version", "recorded by another version of the service"),)
    return tuple(
        Detail(field, "differs from the request that used this key first")
        for field, a, b in zip(_FIELDS, one[1:], other[1:], strict=False)
        if a != b
    )
