import pytest

from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.domain.rules import Policy, Route
from internal_transfer.services.operators.audit import Act
from services.desks import ACTOR

ROUTE = Route("funding", "spot")


async def test_a_frozen_user_moves_nothing_until_unfrozen(stack, desks):
    """A freeze counts from the next request on, and so does its end."""
    act = await desks.policies.freeze("alice", reason="court order", actor=ACTOR)
    assert isinstance(act, Act)
    assert (act.action, act.subject, act.outcome) == ("freeze", "alice", "completed")
    assert (await stack.submit("a")).refusal.code is Code.ACCOUNT_FROZEN
    await desks.policies.unfreeze("alice", reason="lifted", actor=ACTOR)
    assert (await stack.submit("a")).refusal is None


async def test_a_paused_route_takes_nothing_until_resumed(stack, desks):
    """A pause is of one direction, and the other goes on."""
    await desks.policies.pause(ROUTE, reason="core upgrade", actor=ACTOR)
    assert (await stack.submit("a")).refusal.code is Code.ROUTE_PAUSED
    assert (await stack.submit("b", target="earn")).refusal is None
    await desks.policies.resume(ROUTE, reason="done", actor=ACTOR)
    assert (await stack.submit("a")).refusal is None


async def test_a_frozen_asset_and_the_kill_switch(stack, desks):
    """An asset can be frozen, and everything stopped; taken back, transfers go on."""
    await desks.policies.freeze_asset("USDT", reason="depeg", actor=ACTOR)
    assert (await stack.submit("a")).refusal.code is Code.ROUTE_PAUSED
    await desks.policies.unfreeze_asset("USDT", reason="over", actor=ACTOR)
    await desks.policies.stop(reason="incident", actor=ACTOR)
    refusal = (await stack.submit("a")).refusal
    assert (refusal.code, "stopped" in refusal.message) == (Code.ROUTE_PAUSED, True)
    await desks.policies.start(reason="over", actor=ACTOR)
    assert (await stack.submit("a")).refusal is None
    assert (await desks.policies.freeze_asset("XXX", reason="r", actor=ACTOR)).code is Code.INVALID_ASSET


async def test_each_change_is_one_entry_of_the_chain(desks):
    """A change and its entry are recorded together; one that changes nothing says so."""
    first = await desks.policies.freeze("alice", reason="r", actor=ACTOR)
    again = await desks.policies.freeze("alice", reason="r", actor=ACTOR)
    assert [entry for entry in await desks.entries() if entry[0] == "freeze"] == [
        ("freeze", "alice", "completed"),
        ("freeze", "alice", "unchanged"),
    ]
    assert again.audit_id == first.audit_id + 1
    assert (await desks.policies.current()).frozen_users == {"alice"}


async def test_a_route_of_one_type_to_itself_can_be_paused(desks):
    """Transfers between owners within one account type have no configured route, and can be paused all the same."""
    act = await desks.policies.pause(Route("spot", "spot"), reason="r", actor=ACTOR)
    assert act.subject == "spot:spot"


@pytest.mark.parametrize("route", [Route("earn", "margin"), Route("none", "none"), Route("funding", "none")])
async def test_unknown_routes_are_refused(desks, route):
    """What is not configured cannot be paused."""
    answer = await desks.policies.pause(route, reason="r", actor=ACTOR)
    assert isinstance(answer, Refusal)
    assert answer.code is Code.INVALID_ACCOUNT


async def test_wrong_users_and_reasons_are_refused(desks):
    """A text that no user can have, and a reason that says nothing, change no policy."""
    for user, reason in (("#cash", "r"), ("alice", "")):
        answer = await desks.policies.freeze(user, reason=reason, actor=ACTOR)
        assert answer.code is Code.INVALID_REQUEST
    assert await desks.policies.current() == Policy()


async def test_a_change_based_on_another_version_is_refused(desks):
    """Who names the version that was looked at is told when another change came first."""
    version = (await desks.policies.current()).version
    await desks.policies.freeze("bob", reason="r", actor=ACTOR, version=version)
    answer = await desks.policies.freeze("carol", reason="r", actor=ACTOR, version=version)
    assert answer.code is Code.INVALID_STATE_TRANSITION
    assert (await desks.policies.current()).frozen_users == {"bob"}


async def test_two_changes_at_once_are_both_in_force(stack, desks):
    """A change that another one overtakes is made anew on the newer policy, so neither is lost."""
    change, overtaken = stack.operations.change_policy, iter([True])

    async def overtaken_once(policy, entry):
        if next(overtaken, False):
            now = await stack.operations.policy()
            await change(Policy(now.version, frozenset({"bob"})), entry)
        return await change(policy, entry)

    stack.operations.change_policy = overtaken_once
    act = await desks.policies.freeze("alice", reason="r", actor=ACTOR)
    assert act.outcome == "completed"
    assert stack.policies.current.frozen_users == {"alice", "bob"}


async def test_a_change_that_is_always_overtaken_gives_up(stack, desks):
    """Where others change the policy every time, the caller is told to look again."""

    async def never(_policy, _entry):
        return None

    stack.operations.change_policy = never
    answer = await desks.policies.freeze("alice", reason="r", actor=ACTOR)
    assert answer.code is Code.INVALID_STATE_TRANSITION
