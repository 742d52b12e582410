"""The commands that a trading core is given about a transfer, and its verdicts."""

from enum import StrEnum

from msgspec import Struct

from internal_transfer.domain.account import Account, AccountType, Holder
from internal_transfer.domain.identifier import TransferId


class Side(StrEnum):
    """The side of the transfer that a leg moves; `BOTH` where one core moves both accounts in one act."""

    SOURCE = "source"
    TARGET = "target"
    BOTH = "both"


class LegState(StrEnum):
    """How far a leg has come, according to the record."""

    NOT_ASKED = "not_asked"
    ASKED = "asked"
    APPLIED = "applied"
    REFUSED = "refused"
    REVERSING = "reversing"
    REVERSED = "reversed"
    CANCELLED = "cancelled"


LEG_CLEAR = frozenset({LegState.NOT_ASKED, LegState.REFUSED, LegState.REVERSED, LegState.CANCELLED})
"""States in which the leg has no effect in the core and will have none unless a new command is sent."""

LEG_UNDONE = frozenset({LegState.REFUSED, LegState.REVERSING, LegState.REVERSED, LegState.CANCELLED})
"""States after which the transfer can only be undone: the leg was refused, or is being undone, or has been."""


class Leg(Struct, frozen=True):
    """The part of a transfer that a trading core carries out, with the core's reason if it refused."""

    side: Side
    core: str
    state: LegState = LegState.NOT_ASKED
    reason: str = ""


class Action(StrEnum):
    """What a command tells a core to do with a leg."""

    APPLY = "apply"
    CANCEL = "cancel"
    REVERSE = "reverse"


class Outcome(StrEnum):
    """What a verdict says. `MISMATCH`: an earlier command under the same id had other contents, so nothing was done."""

    APPLIED = "applied"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    REVERSED = "reversed"
    MISMATCH = "mismatch"


class Command(Struct, frozen=True):
    """What a core is told to do, identified by (transfer id, side, action).

    A leg on the source side debits `debit`, one on the target side credits `credit`, one on both sides does both. The
    account on a side that is not moved is None. `amount` is in the asset's smallest units.
    """

    transfer_id: TransferId
    core: str
    side: Side
    action: Action
    asset: str
    amount: int
    debit: Account | None
    credit: Account | None


class Verdict(Struct, frozen=True):
    """A core's answer to a command; it repeats the fields of the command, so that a mix-up shows."""

    transfer_id: TransferId
    side: Side
    action: Action
    outcome: Outcome
    reason: str
    asset: str
    amount: int
    debit: Account | None
    credit: Account | None


def legs_of(source: AccountType, target: AccountType) -> tuple[Leg, ...]:
    """Returns the legs of a transfer between two account types, in the order in which their cores are asked."""
    match source.holder, target.holder:
        case Holder.CORE, Holder.CORE if source.core == target.core:
            return (Leg(Side.BOTH, source.core),)
        case Holder.CORE, Holder.CORE:
            return (Leg(Side.SOURCE, source.core), Leg(Side.TARGET, target.core))
        case Holder.CORE, _:
            return (Leg(Side.SOURCE, source.core),)
        case _, Holder.CORE:
            return (Leg(Side.TARGET, target.core),)
        case _:
            return ()
