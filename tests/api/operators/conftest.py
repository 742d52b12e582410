"""The operators' interface is tested on the services' own stack and desks."""

from services.conftest import desks, stack

__all__ = ["desks", "stack"]
