"""Changes of policy: what operators may freeze, pause or stop while the service runs, and lift again."""

from enum import StrEnum
from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from internal_transfer.domain.account import Owner, is_owner
from internal_transfer.domain.refusal import Code, Refusal, refuse_field
from internal_transfer.domain.rules import Policy, Route, Rules


class Subject(StrEnum):
    """What a change of policy is about."""

    USER = "user"
    ROUTE = "route"
    ASSET = "asset"
    ALL = "all"


class PolicyAction(StrEnum):
    """What a change of policy does, as the audit chain names it."""

    FREEZE = "freeze"
    UNFREEZE = "unfreeze"
    PAUSE = "pause"
    RESUME = "resume"
    FREEZE_ASSET = "freeze_asset"
    UNFREEZE_ASSET = "unfreeze_asset"
    STOP = "stop"
    START = "start"


ACTIONS = {
    Subject.USER: (PolicyAction.FREEZE, PolicyAction.UNFREEZE),
    Subject.ROUTE: (PolicyAction.PAUSE, PolicyAction.RESUME),
    Subject.ASSET: (PolicyAction.FREEZE_ASSET, PolicyAction.UNFREEZE_ASSET),
    Subject.ALL: (PolicyAction.STOP, PolicyAction.START),
}
"""The two actions on each kind of subject: the one that tightens the policy, and the one that lifts it again.

The operators' routes and commands are made from this table.
"""


class PolicyChange(Struct, frozen=True):
    """An action, and the user, the route (`FROM:TO`) or the asset that it is about; the kill switch is about all."""

    action: PolicyAction
    subject: str = Subject.ALL.value

    @property
    def route(self) -> Route:
        """Returns the route that the subject names."""
        source, _, target = self.subject.partition(":")
        return Route(source, target)


def check_change(change: PolicyChange, rules: Rules) -> Refusal | None:
    """Refuses a change whose subject the rules do not know."""
    match change.action:
        case PolicyAction.FREEZE | PolicyAction.UNFREEZE:
            if not is_owner(change.subject):
                return refuse_field("user", "does not match [A-Za-z0-9_.:-]{1,64}")
        case PolicyAction.PAUSE | PolicyAction.RESUME:
            if ":" not in change.subject:
                return refuse_field("route", "must be two account types, such as funding:spot")
            route = change.route
            # Transfers between owners within one account type need no configured route, and can be paused too.
            is_within_type = route.source == route.target and route.source in rules.account_types
            if route not in rules.routes and not is_within_type:
                return refuse_field("route", "is not a route that is configured", Code.INVALID_ACCOUNT)
        case PolicyAction.FREEZE_ASSET | PolicyAction.UNFREEZE_ASSET:
            if change.subject not in rules.assets:
                return refuse_field("asset", "is not an asset offered here", Code.INVALID_ASSET)
        case PolicyAction.STOP | PolicyAction.START:
            assert change.subject == Subject.ALL, "the kill switch has no other subject"
        case _:
            assert_never(change.action)
    return None


def apply_change(change: PolicyChange, policy: Policy) -> Policy:
    """Returns the policy after a change that `check_change` did not refuse."""
    match change.action:
        case PolicyAction.FREEZE:
            return replace(policy, frozen_users=policy.frozen_users | {Owner(change.subject)})
        case PolicyAction.UNFREEZE:
            return replace(policy, frozen_users=policy.frozen_users - {Owner(change.subject)})
        case PolicyAction.PAUSE:
            return replace(policy, paused_routes=policy.paused_routes | {change.route})
        case PolicyAction.RESUME:
            return replace(policy, paused_routes=policy.paused_routes - {change.route})
        case PolicyAction.FREEZE_ASSET:
            return replace(policy, frozen_assets=policy.frozen_assets | {change.subject})
        case PolicyAction.UNFREEZE_ASSET:
            return replace(policy, frozen_assets=policy.frozen_assets - {change.subject})
        case PolicyAction.STOP:
            return replace(policy, stopped=True)
        case PolicyAction.START:
            return replace(policy, stopped=False)
        case _:
            assert_never(change.action)
