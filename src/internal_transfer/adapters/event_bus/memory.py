"""The event bus of a single process: a bounded queue whose deliveries stay owed until they are acknowledged."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Verdict
from internal_transfer.ports.errors import System, Unavailable
from internal_transfer.ports.event_bus import Delivery


class MemoryDelivery:
    """Some confirmations that one consumer has in hand."""

    __slots__ = ("_verdicts",)

    def __init__(self, verdicts: Sequence[Verdict]) -> None:
        self._verdicts = verdicts

    @property
    def verdicts(self) -> Sequence[Verdict]:
        """What the cores said."""
        return self._verdicts


class MemoryEventBus:
    """Implements `EventBus`; several consumers may take at the same time.

    While a consumer has a transfer in hand, later confirmations of that transfer wait for its acknowledgement, so that
    no two consumers work on one transfer. What a consumer's task leaves unacknowledged when it ends is handed out
    again. `verdicts_max` bounds all that is owed. What is owed dies with the process; a core repeats it when asked.
    """

    def __init__(self, *, verdicts_max: int = 10_000) -> None:
        self._verdicts_max = verdicts_max
        self._owed = 0
        self._ready: deque[Verdict] = deque()
        self._behind: dict[TransferId, list[Verdict]] = {}
        """By transfer in hand: what came after it."""
        self._in_hand: dict[Delivery, asyncio.Task[Any]] = {}
        self._consumers: set[asyncio.Task[Any]] = set()
        self._some_ready = asyncio.Event()

    @property
    def owed(self) -> int:
        """How many confirmations are not acknowledged yet."""
        return self._owed

    async def publish(self, verdicts: Sequence[Verdict]) -> None:
        """Queues all of them, or none and raises `Unavailable` where they do not all fit."""
        if self._owed + len(verdicts) > self._verdicts_max:
            raise Unavailable(System.BUS, f"{self._owed} confirmations are waiting, at most {self._verdicts_max} may")
        self._owed += len(verdicts)
        self._ready.extend(verdicts)
        self._some_ready.set()

    async def take(self, most: int) -> Delivery:
        """Waits for confirmations of transfers that nobody has in hand, and hands out at most this many."""
        assert most > 0, "a delivery has room for at least one"
        while not (verdicts := self._next(most)):
            self._some_ready.clear()
            await self._some_ready.wait()
        delivery = MemoryDelivery(verdicts)
        task = asyncio.current_task()
        assert task is not None, "a consumer is a task"
        if task not in self._consumers:
            self._consumers.add(task)
            task.add_done_callback(self._consumer_ended)
        self._in_hand[delivery] = task
        for verdict in verdicts:
            self._behind[verdict.transfer_id] = []
        return delivery

    async def acknowledge(self, delivery: Delivery) -> None:
        """Settles a delivery; one that was meanwhile handed out again stays owed."""
        if delivery in self._in_hand:
            del self._in_hand[delivery]
            self._owed -= len(delivery.verdicts)
            self._let_go(delivery)

    def redeliver(self) -> None:
        """Hands everything unacknowledged out again, before all that came later; for when consumers are restarted."""
        self._give_back(list(self._in_hand))

    def _next(self, most: int) -> list[Verdict]:
        verdicts: list[Verdict] = []
        while self._ready and len(verdicts) < most:
            verdict = self._ready.popleft()
            behind = self._behind.get(verdict.transfer_id)
            if behind is None:
                verdicts.append(verdict)
            else:
                behind.append(verdict)
        return verdicts

    def _consumer_ended(self, task: asyncio.Task[Any]) -> None:
        self._consumers.discard(task)
        self._give_back([delivery for delivery, taker in self._in_hand.items() if taker is task])

    def _give_back(self, deliveries: list[Delivery]) -> None:
        for delivery in reversed(deliveries):
            del self._in_hand[delivery]
            self._let_go(delivery)
            self._ready.extendleft(reversed(delivery.verdicts))
        if self._ready:
            self._some_ready.set()

    def _let_go(self, delivery: Delivery) -> None:
        """Puts what waited behind a delivery at the front, where it comes before anything newer of its transfer."""
        for transfer_id in {verdict.transfer_id: None for verdict in delivery.verdicts}:
            self._ready.extendleft(reversed(self._behind.pop(transfer_id)))
        if self._ready:
            self._some_ready.set()
