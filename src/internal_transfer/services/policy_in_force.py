"""Keeps the policy in force at hand for every request."""

from internal_transfer.domain.rules import Policy
from internal_transfer.ports.all_ports import Ports


class PolicyInForce:
    """Remembers the policy; it is read again at start, at every scan, and after every change made in this process."""

    def __init__(self, ports: Ports) -> None:
        self._operations = ports.operations
        self.current = Policy()

    async def refresh(self) -> None:
        """Reads the policy; if it cannot be read, keeps the last one and raises `Unavailable`."""
        self.current = await self._operations.policy()
