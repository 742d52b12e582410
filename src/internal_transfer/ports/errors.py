"""Failures of systems. A business "no" is never one of these: it is a returned `Refusal` or result."""

from enum import StrEnum


class System(StrEnum):
    """Whose failure it is."""

    LEDGER = "ledger"
    STORE = "store"
    CORE = "core"
    BUS = "bus"
    LIMITER = "limiter"
    OPERATIONS = "operations"


class OperatingFailureError(Exception):
    """A system did not do its part; chained from the driver's error where there is one."""

    def __init__(self, system: System, message: str) -> None:
        super().__init__(f"{system}: {message}")
        self.system = system
        self.message = message


class Unavailable(OperatingFailureError):  # noqa: N818 - the docs and the logs use this word.
    """The system could not be reached or refused to work; nothing was done."""


class OutcomeUnknown(OperatingFailureError):  # noqa: N818
    """The call may have been done, or not, or may still be done. Only asking by id tells."""


class StartRefusedError(Exception):
    """The service must not start as things are; the message says what is wrong and what to do."""
