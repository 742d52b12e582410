"""What a user asks for, decoded but not yet held against settings or state."""

import msgspec
from msgspec import Struct

from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.refusal import Detail

FINGERPRINT_VERSION = 1
_ENCODER = msgspec.json.Encoder()


class TransferRequest(Struct, frozen=True):
    """A request in canonical form: owners filled in, `amount` a decimal string without trailing zeros.

    `caller` is who asks and whose key and limits count; `tier` and `key` come with the call.
    """

    caller: Owner
    tier: str
    key: str
    source: Account
    target: Account
    amount: str
    memo: str | None = None

    def fingerprint(self) -> bytes:
        """The content that one key stands for: a version and the canonical request, never settings."""
        return _ENCODER.encode(
            [
                FINGERPRINT_VERSION,
                self.source.owner,
                self.source.type,
                self.source.asset,
                self.target.owner,
                self.target.type,
                self.target.asset,
                self.amount,
                self.memo,
            ]
        )


def restored_fingerprint(source: Account, target: Account, amount: str) -> bytes:
    """The fingerprint of a request of which only this is known; it says nothing about the memo."""
    return _ENCODER.encode(
        [
            FINGERPRINT_VERSION,
            source.owner,
            source.type,
            source.asset,
            target.owner,
            target.type,
            target.asset,
            amount,
        ]
    )


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
    """The fields in which two fingerprints differ; a fingerprint of another version differs in its version alone.

    What one of them does not know, a restored one's memo, is no difference.
    """
    one, other = msgspec.json.decode(first), msgspec.json.decode(second)
    if one[0] != other[0]:
        return (Detail("version", "recorded by another version of the service"),)
    return tuple(
        Detail(field, "differs from the request that used this key first")
        for field, a, b in zip(_FIELDS, one[1:], other[1:], strict=False)
        if a != b
    )
