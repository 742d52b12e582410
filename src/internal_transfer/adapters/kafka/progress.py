"""Which offsets of a partition may be committed: those below the lowest one whose work is not done yet."""

from collections import deque
from typing import NamedTuple


class Place(NamedTuple):
    """Where a message came from; `generation` counts the assignments of partitions to this consumer."""

    generation: int
    partition: int
    offset: int


class Progress:
    """One partition in one assignment. Work may be done in any order; what is not done comes back after a crash."""

    __slots__ = ("_done", "_open", "committed", "generation", "position")

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.position: int | None = None
        """The offset to commit: what is before it is done."""
        self.committed: int | None = None
        self._open: deque[int] = deque()
        self._done: set[int] = set()

    @property
    def outstanding(self) -> int:
        """How many messages were received and are not done."""
        return len(self._open) - len(self._done)

    def receive(self, offset: int) -> None:
        """Takes note of a message; offsets rise, with gaps."""
        self._open.append(offset)

    def finish(self, offset: int) -> None:
        """Takes note that a message's work is done."""
        self._done.add(offset)
        while self._open and self._open[0] in self._done:
            last = self._open.popleft()
            self._done.discard(last)
            self.position = last + 1
