import pytest

from internal_transfer.domain.policy_change import PolicyAction, PolicyChange
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.domain.rules import Policy
from internal_transfer.ports.errors import System, Unavailable
from internal_transfer.ports.operations import AuditEntry
from internal_transfer.services.operators.audit import Act
from internal_transfer.simulation.faults import FailBefore
from services.desks import ACTOR


async def put_in_force(desks, action, subject="all", *, reason="r", version=None):
    return await desks.policies.change(PolicyChange(action, subject), reason=reason, actor=ACTOR, version=version)


async def test_a_frozen_user_moves_nothing_until_unfrozen(stack, desks):
    """A freeze counts from the next request on, and so does its end."""
    act = await put_in_force(desks, PolicyAction.FREEZE, "alice", reason="court order")
    assert isinstance(act, Act)
    assert (act.action, act.subject, act.outcome) == ("freeze", "alice", "completed")
    assert (await stack.submit("a")).refusal.code is Code.ACCOUNT_FROZEN
    await put_in_force(desks, PolicyAction.UNFREEZE, "alice", reason="lifted")
    assert (await stack.submit("a")).refusal is None


async def test_a_paused_route_takes_nothing_until_resumed(stack, desks):
    """A pause is of one direction, and the other goes on."""
    await put_in_force(desks, PolicyAction.PAUSE, "funding:spot", reason="core upgrade")
    assert (await stack.submit("a")).refusal.code is Code.ROUTE_PAUSED
    assert (await stack.submit("b", target="earn")).refusal is None
    await put_in_force(desks, PolicyAction.RESUME, "funding:spot", reason="done")
    assert (await stack.submit("a")).refusal is None


async def test_a_frozen_asset_and_the_kill_switch(stack, desks):
    """An asset can be frozen, and everything stopped; taken back, transfers go on."""
    await put_in_force(desks, PolicyAction.FREEZE_ASSET, "USDT", reason="depeg")
    assert (await stack.submit("a")).refusal.code is Code.ROUTE_PAUSED
    await put_in_force(desks, PolicyAction.UNFREEZE_ASSET, "USDT", reason="over")
    await put_in_force(desks, PolicyAction.STOP, reason="incident")
    refusal = (await stack.submit("a")).refusal
    assert (refusal.code, "stopped" in refusal.message) == (Code.ROUTE_PAUSED, True)
    await put_in_force(desks, PolicyAction.START, reason="over")
    assert (await stack.submit("a")).refusal is None
    assert (await put_in_force(desks, PolicyAction.FREEZE_ASSET, "XXX")).code is Code.INVALID_ASSET


async def test_each_change_is_one_entry_of_the_chain(desks):
    """A change and its entry are recorded together; one that changes nothing says so."""
    first = await put_in_force(desks, PolicyAction.FREEZE, "alice")
    again = await put_in_force(desks, PolicyAction.FREEZE, "alice")
    assert [entry for entry in await desks.entries() if entry[0] == "freeze"] == [
        ("freeze", "alice", "completed"),
        ("freeze", "alice", "unchanged"),
    ]
    assert again.audit_id == first.audit_id + 1
    assert (await desks.policies.current()).frozen_users == {"alice"}


async def test_a_route_of_one_type_to_itself_can_be_paused(desks):
    """Transfers between owners within one account type have no configured route, and can still be paused."""
    act = await put_in_force(desks, PolicyAction.PAUSE, "spot:spot")
    assert act.subject == "spot:spot"


@pytest.mark.parametrize("route", ["earn:margin", "none:none", "funding:none", "spot:spot:spot"])
async def test_unknown_routes_are_refused(desks, route):
    """What is not configured cannot be paused."""
    answer = await put_in_force(desks, PolicyAction.PAUSE, route)
    assert isinstance(answer, Refusal)
    assert answer.code is Code.INVALID_ACCOUNT


async def test_wrong_users_and_reasons_are_refused(desks):
    """A text that no user can have, and a reason that says nothing, change no policy."""
    for user, reason in (("#cash", "r"), ("alice", "")):
        answer = await put_in_force(desks, PolicyAction.FREEZE, user, reason=reason)
        assert answer.code is Code.INVALID_REQUEST
    assert await desks.policies.current() == Policy()


async def test_a_change_based_on_another_version_is_refused(desks):
    """Who names the version that was looked at is told when another change came first."""
    version = (await desks.policies.current()).version
    await put_in_force(desks, PolicyAction.FREEZE, "bob", version=version)
    answer = await put_in_force(desks, PolicyAction.FREEZE, "carol", version=version)
    assert answer.code is Code.INVALID_STATE_TRANSITION
    assert (await desks.policies.current()).frozen_users == {"bob"}


async def test_two_changes_at_once_are_both_in_force(stack, desks):
    """A change that another one overtakes is made again on the newer policy, so neither is lost."""
    change, overtaken = stack.operations.change_policy, iter([True])

    async def overtaken_once(policy, entry):
        if next(overtaken, False):
            now = await stack.operations.policy()
            await change(Policy(now.version, frozenset({"bob"})), entry)
        return await change(policy, entry)

    stack.operations.change_policy = overtaken_once
    act = await put_in_force(desks, PolicyAction.FREEZE, "alice")
    assert act.outcome == "completed"
    assert stack.policies.current.frozen_users == {"alice", "bob"}


async def test_a_change_that_is_always_overtaken_gives_up(stack, desks):
    """Where others change the policy every time, the caller is told to look again."""

    async def never(_policy, _entry):
        return None

    stack.operations.change_policy = never
    answer = await put_in_force(desks, PolicyAction.FREEZE, "alice")
    assert answer.code is Code.INVALID_STATE_TRANSITION


async def test_what_is_in_force_needs_no_second_read(stack, desks):
    """A change that is on record is in force here, and told so, even where the policy cannot be read afterwards."""
    stack.scripts[System.OPERATIONS].add("policy", None, FailBefore(), FailBefore())
    act = await put_in_force(desks, PolicyAction.STOP)
    assert isinstance(act, Act)
    assert stack.policies.current.stopped


async def test_an_older_read_takes_no_change_back(stack, desks):
    """A read that began before a stop and ends after it leaves the stop in force."""
    before = await desks.policies.current()
    await put_in_force(desks, PolicyAction.STOP)
    stack.policies.take(before)
    assert stack.policies.current.stopped


async def test_a_policy_whose_turn_is_taken_back_is_not_in_force(stack):
    """What a refresh reads in a turn that fails was never on record."""
    entry = AuditEntry(at=0, actor="a", action="stop", subject="all", reason="r", outcome="done")
    await stack.operations.change_policy(Policy(stopped=True), entry)
    stack.commit_error = OSError("the disk is gone")
    with pytest.raises((Unavailable, OSError)):
        await stack.policies.refresh()
    assert not stack.policies.current.stopped
