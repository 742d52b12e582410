"""What a trading core is told about a transfer, and what it answers."""

from enum import StrEnum

from msgspec import Struct

from internal_transfer.domain.account import Account, AccountType, Holder
from internal_transfer.domain.identifier import TransferId


class Side(StrEnum):
    """Which account of the transfer a leg moves; `BOTH` where one core moves both in one act."""

    SOURCE = "source"
    TARGET = "target"
    BOTH = "both"


class LegState(StrEnum):
    """How far a leg is, as recorded."""

    NOT_ASKED = "not_asked"
    ASKED = "asked"
    APPLIED = "applied"
    REFUSED = "refused"
    REVERSING = "reversing"
    REVERSED = "reversed"
    CANCELLED = "cancelled"


LEG_CLEAR = frozenset({LegState.NOT_ASKED, LegState.REFUSED, LegState.REVERSED, LegState.CANCELLED})
"""States in which the leg has no effect in the core and, without a new order, never will."""

LEG_UNDONE = frozenset({LegState.REFUSED, LegState.REVERSING, LegState.REVERSED, LegState.CANCELLED})
"""States after which the transfer only goes back: a leg was refused, or is being undone, or has been."""


class Leg(Struct, frozen=True):
    """One side's part in a trading core, with the core's reason when it refused."""

    side: Side
    core: str
    state: LegState = LegState.NOT_ASKED
    reason: str = ""


class Action(StrEnum):
    """What a core is told to do with a leg."""

    APPLY = "apply"
    CANCEL = "cancel"
    REVERSE = "reverse"


class Outcome(StrEnum):
    """A core's verdict. `MISMATCH`: the same id was told with other contents; nothing was done."""

    APPLIED = "applied"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    REVERSED = "reversed"
    MISMATCH = "mismatch"


class Command(Struct, frozen=True):
    """An order to a core, named by (transfer id, side, action).

    A leg on the source side debits `debit`, one on the target side credits `credit`, one on both does both; the
    account that the core does not hold is None. `amount` is in the asset's smallest units.
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
    """A core's answer, with the fields of the order echoed so that a mix-up is seen."""

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
    """The legs that a transfer between two account types needs, in the order in which they are asked."""
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
