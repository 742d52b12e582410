"""Reads the records of single transfers for many callers with one look."""

import asyncio

from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.transfer import Transfer
from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.errors import OperatingFailureError, System, Unavailable
from internal_transfer.ports.transfer_store import Event
from internal_transfer.services.after_failures import leave_failed_turn
from internal_transfer.services.intake import Intake

AT_ONCE_MAX = 512

Record = tuple[Transfer | None, list[Event]]


class RecordReader:
    """Reads a transfer and its events as they are on disk after the caller asked."""

    def __init__(self, ports: Ports, *, most: int) -> None:
        self._store = ports.store
        self._durability = ports.durability
        self._intake: Intake[tuple[TransferId, asyncio.Future[Record]]] = Intake(most)

    async def read(self, transfer_id: TransferId) -> Record:
        """Returns the transfer's record; raises `Unavailable` or `OutcomeUnknown` if it cannot be read."""
        asked: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        if not self._intake.offer((transfer_id, asked)):
            raise Unavailable(System.STORE, "too many are reading records")
        return await asked

    def close(self) -> None:
        """Takes no more calls; `run` returns when those taken are answered."""
        self._intake.close()

    async def run(self) -> None:
        """Reads until `close()` is called and no caller waits any more."""
        while asked := await self._intake.take(AT_ONCE_MAX):
            try:
                records = await self._look([transfer_id for transfer_id, _ in asked])
            except OperatingFailureError as error:
                for _, future in asked:
                    if not future.done():
                        future.set_exception(type(error)(error.system, error.message))
                await leave_failed_turn(self._durability)
                continue
            for (_, future), record in zip(asked, records, strict=True):
                if not future.done():
                    future.set_result(record)

    async def _look(self, ids: list[TransferId]) -> list[Record]:
        transfers, events = await self._store.get(ids), await self._store.events(ids)
        await self._durability.durable()
        return list(zip(transfers, events, strict=True))
