"""The clock for processes that open no adapters."""

from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.ports.clock import Clock


def system_clock() -> Clock:
    """Returns a clock that reads the machine's time; it draws no ids, since it has leased no node."""
    return SystemClock()
