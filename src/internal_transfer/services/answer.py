"""What the services return to their callers."""

from msgspec import Struct

from internal_transfer.domain.account import Account
from internal_transfer.domain.refusal import Refusal
from internal_transfer.domain.rules import Limit
from internal_transfer.domain.transfer import Transfer
from internal_transfer.ports.transfer_store import Event


class Answer(Struct, frozen=True):
    """A transfer with its events, or a refusal. If a key was reused it has both: the transfer is the key's first one.

    `replayed`: the key existed with the same content before this call.
    """

    transfer: Transfer | None = None
    refusal: Refusal | None = None
    replayed: bool = False
    events: tuple[Event, ...] = ()


class BalanceLine(Struct, frozen=True):
    """One account's balance in smallest units; it has no figures while the core that owns it does not answer."""

    account: Account
    posted: int | None
    held: int | None
    available: int | None
    unavailable: bool = False


class Preview(Struct, frozen=True):
    """Whether a request would be accepted now, and the most that could be moved.

    `limit` is None if the asset or the tier has none; `max_units` is None if the balance is not known.
    """

    refusal: Refusal | None
    max_units: int | None
    limit: Limit | None
    daily_used_units: int
