"""What `doctor` prints: the findings of adapters and of its own checks."""

from typing import NamedTuple


class Finding(NamedTuple):
    """Whether something that was looked at is as it should be; `message` says what was found, or what to do."""

    name: str
    ok: bool
    message: str
