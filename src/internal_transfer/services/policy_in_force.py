"""Keeps the policy in force in memory, for every request."""

from internal_transfer.domain.rules import Policy
from internal_transfer.ports.all_ports import Ports


class PolicyInForce:
    """The policy as last read: at the start, at every scan, by the follower, and after each change by this process."""

    def __init__(self, ports: Ports) -> None:
        self._operations = ports.operations
        self._durability = ports.durability
        self.current = Policy()

    def take(self, policy: Policy) -> None:
        """Puts a durable policy in force, unless a newer one already is: a read may have begun before a change."""
        if policy.version >= self.current.version:
            self.current = policy

    async def refresh(self) -> None:
        """Reads the policy; if it cannot be read, keeps the last one and raises `Unavailable` or `OutcomeUnknown`."""
        policy = await self._operations.policy()
        await self._durability.durable()
        self.take(policy)
