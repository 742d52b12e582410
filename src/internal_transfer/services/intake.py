"""A bounded queue that hands out natural batches: what is waiting now, while the next batch forms."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")

FEW = 16
"""Up to this many waiting items are taken together; of more, half are."""


class Intake(Generic[Item]):
    """Takes items until it is full or closed, and hands them out in batches."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: deque[Item] = deque()
        self._wake: asyncio.Event = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    def offer(self, item: Item) -> bool:
        """Adds an item and returns True; returns False, and does not add it, if the queue is full or closed."""
        if self._closed or len(self._items) >= self._most:
            return False
        self._items.append(item)
        self._wake.set()
        return True

    def close(self) -> None:
        """Takes no more items; those in the queue are still handed out."""
        self._closed = True
        self._wake.set()

    async def take(self, most: int) -> list[Item]:
        """Waits for items and returns at most `most` of them; an empty list when closed and empty.

        If more than `FEW` wait, it returns half of them. Callers that wait for their answers would otherwise all move
        in step: while one stage works, the others have nothing to do. The second half keeps this stage busy while the
        answers to the first half go out and their callers' next requests come in (`docs/guides/performance.md`).
        """
        while not self._items:
            if self._closed:
                return []
            self._wake.clear()
            await self._wake.wait()
        items = self._items
        number = min(most, len(items), max(FEW, (len(items) + 1) // 2))
        return [items.popleft() for _ in range(number)]
