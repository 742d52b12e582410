"""What a check of a trading core found."""

from enum import StrEnum

from msgspec import Struct


class Finding(StrEnum):
    """`UNANSWERED`: the core, or the way to it, failed. `LEFT_OUT`: the plan does not include this promise."""

    KEPT = "kept"
    BROKEN = "broken"
    UNANSWERED = "unanswered"
    LEFT_OUT = "left_out"


class Result(Struct, frozen=True):
    """One promise, what it says, and the finding; `message` says what was seen where it was not kept."""

    promise: str
    says: str
    finding: Finding
    message: str = ""


class Report(Struct, frozen=True):
    """The results in the order in which the promises were checked."""

    core: str
    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        """Whether no promise was found broken or could not be asked about."""
        return not any(result.finding in (Finding.BROKEN, Finding.UNANSWERED) for result in self.results)

    def found(self, finding: Finding) -> tuple[str, ...]:
        """The names of the promises with this finding."""
        return tuple(result.promise for result in self.results if result.finding is finding)
