"""Keeps the policy in force at hand for every request."""

from internal_transfer.domain.rules import Policy
from internal_transfer.ports.all_ports import Ports


class PolicyInForce:
    """Remembers the policy; it is read again at the start and at every scan, and takes every change of this process."""

    def __init__(self, ports: Ports) -> None:
        self._operations = ports.operations
        self._durability = ports.durability
        self.current = Policy()

    def take(self, policy: Policy) -> None:
        """Puts a policy that is on disk in force, unless a newer one is, as after a read that began before a change."""
        if policy.version >= self.current.version:
            self.current = policy

    async def refresh(self) -> None:
        """Reads the policy; if it cannot be read, keeps the last one and raises `Unavailable` or `OutcomeUnknown`."""
        policy = await self._operations.policy()
        await self._durability.durable()
        self.take(policy)
