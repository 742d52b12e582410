"""A bounded queue that hands out natural batches: as much as waits allows, and the next batch forms meanwhile."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")

FEW = 16
"""So many are taken together always; of more, half."""


class Intake(Generic[Item]):
    """Takes items until it is full or closed; whoever works takes all that has come so far."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: deque[Item] = deque()
        self._wake: asyncio.Event = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    def offer(self, item: Item) -> bool:
        """Adds an item; False where the queue is full or closed, and then the item was not taken."""
        if self._closed or len(self._items) >= self._most:
            return False
        self._items.append(item)
        self._wake.set()
        return True

    def close(self) -> None:
        """Takes nothing more; what is in the queue is still handed out."""
        self._closed = True
        self._wake.set()

    async def take(self, most: int) -> list[Item]:
        """Waits for items and hands out at most this many; an empty list when closed and empty.

        Of many that wait it hands out half. Callers that wait for their answers would otherwise all move in step:
        while one stage works, the others have nothing to do. The second half keeps this one busy while the first
        half's answers go out and their callers' next requests come in (`docs/guides/performance.md`).
        """
        while not self._items:
            if self._closed:
                return []
            self._wake.clear()
            await self._wake.wait()
        items = self._items
        number = min(most, len(items), max(FEW, (len(items) + 1) // 2))
        return [items.popleft() for _ in range(number)]
