"""Sends requests with the driver's callbacks, and gives the event loop their answers.

The driver answers on a thread of its own. Answers go into a queue, and the event loop is woken once for all that are in
it, so that a statement costs neither a thread nor a task.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

from cassandra.cluster import Session  # type: ignore[import-untyped]
from cassandra.query import BatchStatement, BoundStatement  # type: ignore[import-untyped]

from internal_transfer.adapters.cassandra.failures import FAILURES
from internal_transfer.ports.errors import System, Unavailable

Row = tuple[Any, ...]
"""A row of the database, or the values bound to a statement."""
Request: TypeAlias = BoundStatement | BatchStatement
"""A statement with its values, or several as one."""


class Requests:
    """The requests of one session; made on the event loop that uses it.

    At most `in_flight_max` are under way at once, and at most `waiting_max` under way or waiting.
    """

    def __init__(self, session: Session, *, in_flight_max: int, waiting_max: int, system: System) -> None:
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(in_flight_max)
        self._waiting_max = waiting_max
        self._system = system
        self._waiting = 0
        self._answers: deque[tuple[asyncio.Future[list[Row]], list[Row] | None, Exception | None]] = deque()
        self._is_woken = False

    async def send(self, requests: Sequence[Request]) -> list[list[Row] | Exception]:
        """Sends requests side by side and waits for all; returns for each its rows or the driver's failure.

        Raises `Unavailable` when too many are waiting; then none was sent.
        """
        if self._waiting + len(requests) > self._waiting_max:
            raise Unavailable(self._system, f"{self._waiting} requests are already waiting for the database")
        futures: list[asyncio.Future[list[Row]]] = []
        self._waiting += len(requests)
        try:
            for request in requests:
                await self._slots.acquire()
                future: asyncio.Future[list[Row]] = self._loop.create_future()
                future.add_done_callback(self._release)
                futures.append(future)
                try:
                    answer = self._session.execute_async(request)
                except FAILURES as error:
                    future.set_exception(error)
                except BaseException:
                    future.cancel()
                    raise
                else:
                    answer.add_callbacks(partial(self._answered, future), partial(self._failed, future))
            return await asyncio.gather(*futures, return_exceptions=True)  # type: ignore[return-value]
        finally:
            self._waiting -= len(requests)

    def _release(self, future: "asyncio.Future[list[Row]]") -> None:
        self._slots.release()
        if not future.cancelled():
            future.exception()

    def _answered(self, future: "asyncio.Future[list[Row]]", rows: Any) -> None:
        """Runs on the driver's thread."""
        self._answers.append((future, rows if isinstance(rows, list) else list(rows or ()), None))
        self._wake()

    def _failed(self, future: "asyncio.Future[list[Row]]", error: Exception) -> None:
        """Runs on the driver's thread."""
        self._answers.append((future, None, error))
        self._wake()

    def _wake(self) -> None:
        # The flag is cleared before the queue is read, so an answer that comes in between wakes the loop once more.
        if not self._is_woken:
            self._is_woken = True
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_woken = False
        answers = self._answers
        while answers:
            future, rows, error = answers.popleft()
            if future.done():
                continue
            if error is None:
                future.set_result(rows or [])
            else:
                future.set_exception(error)
