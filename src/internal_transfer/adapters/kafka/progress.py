"""What a member of a consumer group has received and not finished, and which offsets it may commit.

An offset may be committed when the work on every message before it is done.
"""

import threading
from collections import deque
from collections.abc import Iterable
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
        """The offset to commit: everything before it is done."""
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
        """Takes note that the work on a message is done."""
        self._done.add(offset)
        while self._open and self._open[0] in self._done:
            last = self._open.popleft()
            self._done.discard(last)
            self.position = last + 1


class Assignment:
    """The partitions that a member has now, with the progress in each; safe to use from several threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._progress: dict[int, Progress] = {}
        self._generation = 0

    @property
    def partitions(self) -> list[int]:
        """The partitions that are ours now."""
        with self._guard:
            return list(self._progress)

    @property
    def outstanding(self) -> int:
        """How many messages were received and are not done."""
        with self._guard:
            return sum(progress.outstanding for progress in self._progress.values())

    def add(self, partitions: Iterable[int]) -> None:
        """Begins a new generation with these partitions, which are ours from now on."""
        with self._guard:
            self._generation += 1
            for partition in partitions:
                self._progress[partition] = Progress(self._generation)

    def remove(self, partitions: Iterable[int]) -> frozenset[tuple[int, int]]:
        """Forgets partitions that are not ours any more; returns the (generation, partition) of each."""
        with self._guard:
            gone = [(partition, self._progress.pop(partition, None)) for partition in partitions]
        return frozenset((progress.generation, partition) for partition, progress in gone if progress is not None)

    def receive(self, partition: int, offset: int) -> Place | None:
        """Takes note of a message; None where its partition was just taken away, so that another member receives it."""
        with self._guard:
            progress = self._progress.get(partition)
            if progress is None:
                return None
            progress.receive(offset)
            return Place(progress.generation, partition, offset)

    def finish(self, places: Iterable[Place]) -> None:
        """Takes note that the work on messages is done; ignores partitions that are not ours any more."""
        with self._guard:
            for generation, partition, offset in places:
                progress = self._progress.get(partition)
                if progress is not None and progress.generation == generation:
                    progress.finish(offset)

    def take_due(self, partitions: Iterable[int]) -> list[tuple[int, int]]:
        """Returns the (partition, offset) that are to be committed now, and counts them as committed."""
        due = []
        with self._guard:
            for partition in partitions:
                progress = self._progress.get(partition)
                if progress is not None and progress.position is not None and progress.position != progress.committed:
                    progress.committed = progress.position
                    due.append((partition, progress.position))
        return due

    def commit_failed(self, partitions: Iterable[int]) -> None:
        """Has the offsets of these partitions committed again."""
        with self._guard:
            for partition in partitions:
                progress = self._progress.get(partition)
                if progress is not None:
                    progress.committed = None
