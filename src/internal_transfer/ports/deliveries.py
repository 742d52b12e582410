"""Hands verdicts out to consumers: in order per transfer, one consumer per transfer, until they are acknowledged.

It stands with the port because every event bus promises this order, whatever brings the verdicts in.

While a consumer has a transfer in hand, later verdicts on that transfer wait until it acknowledges, so that no two
consumers work on one transfer. When a consumer's task ends, the deliveries that it did not acknowledge are handed out
again.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Verdict

T = TypeVar("T")


class HandedOut(Generic[T]):
    """Implements `Delivery`: the verdicts that one consumer has in hand. `items` are what the bus added for them."""

    __slots__ = ("items", "verdicts")

    def __init__(self, items: Sequence[T], verdicts: Sequence[Verdict]) -> None:
        self.items = items
        self.verdicts = verdicts


class Deliveries(Generic[T]):
    """The items of one bus, and the consumers that have them; `verdict_of` reads the verdict of an item."""

    def __init__(self, verdict_of: Callable[[T], Verdict]) -> None:
        self._verdict_of = verdict_of
        self._ready: deque[T] = deque()
        self._behind: dict[TransferId, list[T]] = {}
        """For each transfer in hand, the items that came after it."""
        self._in_hand: dict[HandedOut[T], asyncio.Task[Any]] = {}
        self._consumers: set[asyncio.Task[Any]] = set()
        self._some_ready = asyncio.Event()

    def add(self, items: Iterable[T]) -> None:
        """Adds items to be handed out."""
        self._ready.extend(items)
        self._some_ready.set()

    async def take(self, most: int) -> HandedOut[T]:
        """Waits for items of transfers that no consumer has in hand, and hands out at most this many."""
        assert most > 0, "a delivery has room for at least one"
        while not (items := self._next(most)):
            self._some_ready.clear()
            await self._some_ready.wait()
        delivery = HandedOut(items, [self._verdict_of(item) for item in items])
        task = asyncio.current_task()
        assert task is not None, "a consumer is a task"
        if task not in self._consumers:
            self._consumers.add(task)
            task.add_done_callback(self._consumer_ended)
        self._in_hand[delivery] = task
        for verdict in delivery.verdicts:
            self._behind[verdict.transfer_id] = []
        return delivery

    def settle(self, delivery: HandedOut[T]) -> bool:
        """Ends a delivery; returns False for one that was handed out again or forgotten in the meantime."""
        if delivery not in self._in_hand:
            return False
        del self._in_hand[delivery]
        self._let_go(delivery)
        return True

    def redeliver(self) -> None:
        """Hands out again all items that are in hand, before those that came later."""
        self._give_back(list(self._in_hand))

    def forget(self, is_gone: Callable[[T], bool]) -> None:
        """Forgets items. A delivery that holds one ends, and its other items are handed out again."""
        touched = [delivery for delivery in self._in_hand if any(map(is_gone, delivery.items))]
        self._give_back(touched)
        self._ready = deque(item for item in self._ready if not is_gone(item))
        for transfer_id, items in self._behind.items():
            self._behind[transfer_id] = [item for item in items if not is_gone(item)]

    def _next(self, most: int) -> list[T]:
        items: list[T] = []
        while self._ready and len(items) < most:
            item = self._ready.popleft()
            behind = self._behind.get(self._verdict_of(item).transfer_id)
            if behind is None:
                items.append(item)
            else:
                behind.append(item)
        return items

    def _consumer_ended(self, task: asyncio.Task[Any]) -> None:
        self._consumers.discard(task)
        self._give_back([delivery for delivery, taker in self._in_hand.items() if taker is task])

    def _give_back(self, deliveries: list[HandedOut[T]]) -> None:
        for delivery in reversed(deliveries):
            del self._in_hand[delivery]
            self._let_go(delivery)
            self._ready.extendleft(reversed(delivery.items))
        if self._ready:
            self._some_ready.set()

    def _let_go(self, delivery: HandedOut[T]) -> None:
        """Puts the items that waited behind a delivery at the front, before any newer item of their transfers."""
        for transfer_id in {verdict.transfer_id: None for verdict in delivery.verdicts}:
            self._ready.extendleft(reversed(self._behind.pop(transfer_id)))
        if self._ready:
            self._some_ready.set()
