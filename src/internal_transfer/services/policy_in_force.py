"""Keeps a copy of the policy in force for every request."""

from internal_transfer.domain.rules import Policy
from internal_transfer.ports.all_ports import Ports


class PolicyInForce:
    """Remembers the policy. It is read at the start, at every scan, and after every change made in this process; where
    processes share a store, the follower reads it too.
    """

    def __init__(self, ports: Ports) -> None:
        self._operations = ports.operations
        self.current = Policy()

    async def refresh(self) -> None:
        """Reads the policy; if that fails, keeps the last one and raises `Unavailable`."""
        self.current = await self._operations.policy()
