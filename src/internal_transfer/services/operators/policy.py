"""Changes the policy while the service runs; every change is versioned and audited."""

import msgspec
from msgspec.structs import replace

from internal_transfer.domain.policy_change import PolicyChange, apply_change, check_change
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.domain.rules import Policy, Rules
from internal_transfer.ports.all_ports import Ports
from internal_transfer.services.operators.audit import Act, AuditTrail, check_reason
from internal_transfer.services.policy_in_force import PolicyInForce

CHANGES_MAX = 5
"""How often a change is tried while other changes keep coming first."""


class PolicyEditor:
    """Changes the policy; each change is recorded together with its entry in the audit chain.

    All calls raise `Unavailable` if nothing was recorded, and `OutcomeUnknown` if that is not known.
    """

    def __init__(self, ports: Ports, rules: Rules, *, policies: PolicyInForce, audit: AuditTrail) -> None:
        self._operations = ports.operations
        self._policies = policies
        self._audit = audit
        self._durability = ports.durability
        self._rules = rules

    async def current(self) -> Policy:
        """Returns the policy in force."""
        policy = await self._operations.policy()
        await self._durability.durable()
        return policy

    async def change(
        self, change: PolicyChange, *, reason: str, actor: str, version: int | None = None
    ) -> Act | Refusal:
        """Puts a change in force, and records it in the audit chain; one that changes nothing is recorded too.

        If another change comes first, this one is made again on the newer policy. With `version`, it is refused unless
        that version is in force.
        """
        refusal = check_change(change, self._rules) or check_reason(reason)
        if refusal is not None:
            return refusal
        for _ in range(CHANGES_MAX):
            policy = await self.current()
            if version is not None and version != policy.version:
                break
            after = apply_change(change, policy)
            outcome = "unchanged" if after == policy else "completed"
            entry = self._audit.entry(
                actor=actor,
                action=change.action.value,
                subject=change.subject,
                reason=reason,
                outcome=outcome,
                evidence=msgspec.json.encode({"based_on_version": policy.version}).decode(),
            )
            number = await self._operations.change_policy(after, entry)
            await self._durability.durable()
            if number is not None:
                self._policies.take(replace(after, version=policy.version + 1))
                return Act(
                    action=change.action.value, subject=change.subject, outcome=outcome, reason=reason, audit_id=number
                )
        return Refusal(Code.INVALID_STATE_TRANSITION, "another change of policy came first; look at it again")
