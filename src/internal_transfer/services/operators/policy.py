"""Changes of policy while the service runs: who is frozen, which routes are paused; versioned and audited."""

from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from internal_transfer.domain.account import Owner, is_owner
from internal_transfer.domain.refusal import Code, Refusal, refuse_field
from internal_transfer.domain.rules import Policy, Route, Rules
from internal_transfer.ports.durability import Durability
from internal_transfer.ports.errors import OutcomeUnknown, System
from internal_transfer.ports.operations import Operations
from internal_transfer.services.deadline import deadline
from internal_transfer.services.operators.audit import Act, AuditTrail, check_reason
from internal_transfer.services.policy_in_force import PolicyInForce

CHANGES_MAX = 5
"""How often a change is made anew because another one came first."""


class PolicyEditor:
    """Puts policies in force. A change that was made by `version` is refused where another version is in force by now.

    Each change and its entry in the audit chain are recorded together. All calls raise `Unavailable` where nothing was
    recorded and `OutcomeUnknown` where that is not known.
    """

    def __init__(
        self,
        *,
        operations: Operations,
        policies: PolicyInForce,
        audit: AuditTrail,
        durability: Durability,
        rules: Rules,
        call_seconds: float = 10.0,
    ) -> None:
        self._operations = operations
        self._policies = policies
        self._audit = audit
        self._durability = durability
        self._rules = rules
        self._call_seconds = call_seconds

    async def current(self) -> Policy:
        """The policy in force."""
        async with deadline(self._call_seconds, OutcomeUnknown(System.OPERATIONS, "no answer in time")):
            policy = await self._operations.policy()
            await self._durability.durable()
        return policy

    async def freeze(self, user: str, *, reason: str, actor: str, version: int | None = None) -> Act | Refusal:
        """Lets a user move nothing, and nobody move anything to the user."""
        return await self._freeze("freeze", user, reason, actor, version, frozen=True)

    async def unfreeze(self, user: str, *, reason: str, actor: str, version: int | None = None) -> Act | Refusal:
        """Takes a freeze back."""
        return await self._freeze("unfreeze", user, reason, actor, version, frozen=False)

    async def pause(self, route: Route, *, reason: str, actor: str, version: int | None = None) -> Act | Refusal:
        """Refuses new transfers on a route; those on their way are finished."""
        return await self._pause("pause", route, reason, actor, version, paused=True)

    async def resume(self, route: Route, *, reason: str, actor: str, version: int | None = None) -> Act | Refusal:
        """Takes a pause back."""
        return await self._pause("resume", route, reason, actor, version, paused=False)

    async def freeze_asset(self, asset: str, *, reason: str, actor: str, version: int | None = None) -> Act | Refusal:
        """Refuses new transfers of an asset; those on their way are finished."""
        return await self._freeze_asset("freeze_asset", asset, reason, actor, version=version, frozen=True)

    async def unfreeze_asset(self, asset: str, *, reason: str, actor: str, version: int | None = None) -> Act | Refusal:
        """Takes the freeze of an asset back."""
        return await self._freeze_asset("unfreeze_asset", asset, reason, actor, version=version, frozen=False)

    async def stop(self, *, reason: str, actor: str, version: int | None = None) -> Act | Refusal:
        """The kill switch: refuses all new transfers; those on their way are finished."""
        return await self._change(
            "stop", "all", reason, actor, version=version, alter=lambda now: replace(now, stopped=True)
        )

    async def start(self, *, reason: str, actor: str, version: int | None = None) -> Act | Refusal:
        """Takes the kill switch back."""
        return await self._change(
            "start", "all", reason, actor, version=version, alter=lambda now: replace(now, stopped=False)
        )

    async def _freeze_asset(
        self, action: str, asset: str, reason: str, actor: str, *, version: int | None, frozen: bool
    ) -> Act | Refusal:
        if asset not in self._rules.assets:
            return refuse_field("asset", "is not an asset offered here", Code.INVALID_ASSET)

        def alter(policy: Policy) -> Policy:
            assets = policy.frozen_assets | {asset} if frozen else policy.frozen_assets - {asset}
            return replace(policy, frozen_assets=assets)

        return await self._change(action, asset, reason, actor, version=version, alter=alter)

    async def _freeze(
        self, action: str, user: str, reason: str, actor: str, version: int | None, *, frozen: bool
    ) -> Act | Refusal:
        if not is_owner(user):
            return refuse_field("user", "does not match [A-Za-z0-9_.:-]{1,64}")
        owner = frozenset({Owner(user)})

        def alter(policy: Policy) -> Policy:
            users = policy.frozen_users | owner if frozen else policy.frozen_users - owner
            return replace(policy, frozen_users=users)

        return await self._change(action, user, reason, actor, version=version, alter=alter)

    async def _pause(
        self, action: str, route: Route, reason: str, actor: str, version: int | None, *, paused: bool
    ) -> Act | Refusal:
        kinds = self._rules.account_types
        is_known = route in self._rules.routes or (route.source == route.target and route.source in kinds)
        if not is_known:
            return refuse_field("route", "is not a route that is configured", Code.INVALID_ACCOUNT)

        def alter(policy: Policy) -> Policy:
            routes = policy.paused_routes | {route} if paused else policy.paused_routes - {route}
            return replace(policy, paused_routes=routes)

        return await self._change(action, f"{route.source}:{route.target}", reason, actor, version=version, alter=alter)

    async def _change(
        self,
        action: str,
        subject: str,
        reason: str,
        actor: str,
        *,
        version: int | None,
        alter: Callable[[Policy], Policy],
    ) -> Act | Refusal:
        refusal = check_reason(reason)
        if refusal is not None:
            return refusal
        for _ in range(CHANGES_MAX):
            policy = await self.current()
            if version is not None and version != policy.version:
                break
            after = alter(policy)
            outcome = "unchanged" if after == policy else "completed"
            entry = self._audit.entry(
                actor=actor,
                action=action,
                subject=subject,
                reason=reason,
                outcome=outcome,
                evidence=msgspec.json.encode({"based_on_version": policy.version}).decode(),
            )
            async with deadline(self._call_seconds, OutcomeUnknown(System.OPERATIONS, "not recorded in time")):
                number = await self._operations.change_policy(after, entry)
                await self._durability.durable()
            if number is not None:
                await self._policies.refresh()
                return Act(action=action, subject=subject, outcome=outcome, reason=reason, audit_id=number)
        return Refusal(Code.INVALID_STATE_TRANSITION, "another change of policy came first; look at it again")
