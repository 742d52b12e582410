import pytest

from internal_transfer.domain.account import AccountType, Holder
from internal_transfer.domain.leg import LEG_CLEAR, Leg, LegState, Side, legs_of

LEDGER = AccountType("funding", 1, Holder.LEDGER)
CORE = AccountType("spot", 2, Holder.CORE, "core")
SAME_CORE = AccountType("margin", 3, Holder.CORE, "core")
OTHER_CORE = AccountType("futures", 4, Holder.CORE, "futures-core")


@pytest.mark.parametrize(
    ("source", "target", "legs"),
    [
        (LEDGER, LEDGER, ()),
        (LEDGER, CORE, (Leg(Side.TARGET, "core"),)),
        (CORE, LEDGER, (Leg(Side.SOURCE, "core"),)),
        (CORE, CORE, (Leg(Side.BOTH, "core"),)),
        (CORE, SAME_CORE, (Leg(Side.BOTH, "core"),)),
        (CORE, OTHER_CORE, (Leg(Side.SOURCE, "core"), Leg(Side.TARGET, "futures-core"))),
        (OTHER_CORE, CORE, (Leg(Side.SOURCE, "futures-core"), Leg(Side.TARGET, "core"))),
    ],
)
def test_each_core_held_side_needs_a_leg(source, target, legs):
    """Ledger-held sides need no leg; one core moves both sides in one act; of two cores the source's is asked first."""
    assert legs_of(source, target) == legs
    assert all(leg.state is LegState.NOT_ASKED for leg in legs)


def test_which_legs_have_no_effect():
    """A leg is clear when its core did nothing or undid it."""
    assert {state.value for state in LEG_CLEAR} == {"not_asked", "refused", "reversed", "cancelled"}
    assert {state.value for state in LegState} - LEG_CLEAR == {"asked", "applied", "reversing"}
