import pytest

from internal_transfer.domain.policy_change import ACTIONS, PolicyAction, PolicyChange, Subject, apply_change
from internal_transfer.domain.rules import Policy, Route

CHANGES = [
    ("freeze", "unfreeze", "alice", Policy(frozen_users=frozenset({"alice"}))),
    ("pause", "resume", "funding:spot", Policy(paused_routes=frozenset({Route("funding", "spot")}))),
    ("freeze_asset", "unfreeze_asset", "USDT", Policy(frozen_assets=frozenset({"USDT"}))),
    ("stop", "start", "all", Policy(stopped=True)),
]


@pytest.mark.parametrize(("tighten", "loosen", "subject", "tightened"), CHANGES)
def test_each_change_and_what_takes_it_back(tighten, loosen, subject, tightened):
    """Each action changes what it is for and nothing else, and its opposite restores the policy."""
    assert apply_change(PolicyChange(PolicyAction(tighten), subject), Policy()) == tightened
    assert apply_change(PolicyChange(PolicyAction(tighten), subject), tightened) == tightened
    assert apply_change(PolicyChange(PolicyAction(loosen), subject), tightened) == Policy()


def test_the_table_of_actions_is_total():
    """Every kind of subject has its two actions, and every action stands in the table once."""
    assert set(ACTIONS) == set(Subject)
    assert sorted(action for actions in ACTIONS.values() for action in actions) == sorted(PolicyAction)
    assert list(ACTIONS.values()) == [(tighten, loosen) for tighten, loosen, _, _ in CHANGES]
