"""The reference core behind any transport: carries out commands and answers queries.

A transport receives messages, hands them over here and sends the answers; only then may it forget the messages. A
command that is delivered again gets the stored first verdict, so a crash loses nothing and does nothing twice.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from enum import StrEnum
from typing import Any, assert_never

from msgspec import Struct

from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.trading_core import CoreMode, ReferenceCore
from internal_transfer.domain.account import Owner
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Command, Verdict
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import OperatingFailureError
from internal_transfer.services.after_failures import leave_failed_turn
from internal_transfer.wire.core_messages import (
    REASON_MAX,
    BalancesQuery,
    BalancesReply,
    EntriesQuery,
    EntriesReply,
    Query,
    Reply,
    UnavailableReply,
    VerdictsQuery,
    VerdictsReply,
    WireEntry,
    verdict_fields,
    wire_balances,
)

EXPIRY_MARGIN_MS = 30_000
"""How far two machines' clocks may differ before a query is dropped while somebody still waits for its reply."""

_SCHEMA = ("CREATE TABLE core_name(name TEXT NOT NULL) STRICT",)


class Phase(StrEnum):
    """Where the host is between its start and its end."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


class HostState(Struct, frozen=True):
    """For readiness: `reason` says what is missing, None where commands are carried out; `commands` counts those."""

    phase: Phase
    reason: str | None
    commands: int

    @property
    def ready(self) -> bool:
        """Tells whether commands are carried out now."""
        return self.reason is None


class CoreHost:
    """One reference core on one database; calls may overlap."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._commands = 0
        self._failure: OperatingFailureError | None = None
        self.core = ReferenceCore(database)
        database.migrate("core_host", _SCHEMA)
        self.phase = Phase.STARTING

    async def serve(self, stop: asyncio.Event, *loops: Coroutine[Any, Any, None]) -> None:
        """Runs a transport's loops until told to stop; what this cuts off comes again, and gets the stored verdicts."""
        self.phase = Phase.RUNNING
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(loop) for loop in loops]
                await stop.wait()
                for task in running:
                    task.cancel()
        finally:
            self.phase = Phase.STOPPING

    async def name(self) -> str:
        """The name of this core's memory: drawn at the first start and kept in the database, so a copy has it too.

        Raises `Unavailable` or `OutcomeUnknown` where the database fails.
        """
        with self._database.call() as connection:
            row = connection.execute("SELECT name FROM core_name").fetchone()
            name = f"{self._clock.now_ms():x}-{int(self._clock.jitter() * 2**53):014x}" if row is None else str(row[0])
            if row is None:
                connection.execute("INSERT INTO core_name VALUES (?)", (name,))
        await self._database.durable()
        return name

    def state(self) -> HostState:
        """Whether the host works, apart from its transport."""
        reason: str | None = None
        if self.phase is not Phase.RUNNING:
            reason = f"the core is {self.phase}"
        elif self.core.mode is CoreMode.PAUSED:
            reason = "the core is paused by the operator"
        elif self._failure is not None:
            reason = str(self._failure)
        return HostState(self.phase, reason, self._commands)

    async def carry_out(self, commands: Sequence[Command]) -> list[Verdict]:
        """Carries commands out and returns their verdicts, which are on stable storage by then.

        Commands whose answer is withheld have no verdict. Raises `Unavailable` while the core is paused and where the
        database fails, and `OutcomeUnknown` where its commit may stand: the caller keeps the commands and tries again.
        """
        try:
            answers = await self.core.tell(commands)
            await self._database.durable()
        except OperatingFailureError as error:
            self._failure = error
            await leave_failed_turn(self._database)
            raise
        self._failure = None
        self._commands += len(commands)
        return [verdict for verdict in answers if verdict is not None]

    async def answer(self, query: Query) -> Reply | None:
        """Returns the reply to a query, from what is durable; None if nobody waits for it any more.

        Raises no operating failure: if there is no answer now, the reply is an `UnavailableReply`.
        """
        if self._clock.now_ms() > query.expires_at + EXPIRY_MARGIN_MS:
            return None
        try:
            reply = await self._answer(query)
            await self._database.durable()
        except OperatingFailureError as error:
            await leave_failed_turn(self._database)
            return UnavailableReply(correlation_id=query.correlation_id, reason=error.message[:REASON_MAX])
        return reply

    async def _answer(self, query: Query) -> Reply:
        named = query.correlation_id
        match query:
            case VerdictsQuery():
                stored = await self.core.verdicts([TransferId(int(text)) for text in query.transfer_ids])
                return VerdictsReply(
                    correlation_id=named,
                    verdicts=tuple(tuple(verdict_fields(verdict) for verdict in given) for given in stored),
                )
            case BalancesQuery():
                balances = await self.core.balances(Owner(query.owner))
                return BalancesReply(correlation_id=named, balances=wire_balances(balances))
            case EntriesQuery():
                entries = await self.core.entries_after(query.after, query.most)
                return EntriesReply(
                    correlation_id=named,
                    entries=tuple(WireEntry(number=number, verdict=verdict_fields(each)) for number, each in entries),
                )
            case _:
                assert_never(query)
