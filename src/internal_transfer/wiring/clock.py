"""The clock of processes that open nothing else."""

from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.ports.clock import Clock


def system_clock() -> Clock:
    """A clock that reads the machine's time; it draws no ids, since it has leased no node."""
    return SystemClock()
