"""What the bound of a port needs to know about its methods.

Every call of a port has a deadline (`wiring/bounded.py`). What a call that ran out of time means follows from what the
method does, so each port says it: a method that only reads has done nothing, and the failure is `Unavailable`; any
other may have done its work, or may still do it, and the failure is `OutcomeUnknown`.
"""

from collections.abc import Callable
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])

READS = "__reads__"
WAITS = "__waits__"
WALKS = "__walks__"


def reads(method: Method) -> Method:
    """Marks a method that changes nothing."""
    setattr(method, READS, True)
    return method


def walks(method: Method) -> Method:
    """Marks a method that changes nothing and reads everything, which may take an hour whatever the bound."""
    setattr(method, WALKS, True)
    return reads(method)


def waits(method: Method) -> Method:
    """Marks a method that has no deadline, since it waits for something to come, however long that takes."""
    setattr(method, WAITS, True)
    return method
