"""The callers in this process that wait for a transfer to become final."""

import asyncio
from collections.abc import Iterable
from itertools import islice

from internal_transfer.domain.identifier import TransferId


class Completions:
    """Wakes the callers that wait for a transfer, after its final state is durable."""

    def __init__(self) -> None:
        self._waiting: dict[TransferId, list[asyncio.Future[None]]] = {}
        self._some_wait = asyncio.Event()

    def expect(self, transfer_id: TransferId) -> asyncio.Future[None]:
        """Returns a future that is done when the transfer is final; always pass it to `forget` afterwards."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(transfer_id, []).append(future)
        self._some_wait.set()
        return future

    async def awaited(self) -> None:
        """Returns as soon as a caller waits for any transfer."""
        if not self._waiting:
            self._some_wait.clear()
            await self._some_wait.wait()

    def waiting(self, most: int) -> list[TransferId]:
        """Returns at most `most` of the transfers that callers wait for."""
        return list(islice(self._waiting, most))

    def forget(self, transfer_id: TransferId, future: asyncio.Future[None]) -> None:
        """Stops waiting."""
        futures = self._waiting.get(transfer_id)
        if futures is not None and future in futures:
            futures.remove(future)
            if not futures:
                del self._waiting[transfer_id]

    def announce(self, transfer_ids: Iterable[TransferId]) -> None:
        """Wakes the callers that wait for these transfers."""
        if not self._waiting:
            return
        for transfer_id in transfer_ids:
            for future in self._waiting.pop(transfer_id, ()):
                if not future.done():
                    future.set_result(None)
