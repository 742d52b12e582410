"""One process's session with a CQL cluster: reads, writes and conditional writes, and what their failures mean.

A read that failed did nothing, so it is `Unavailable`. A write or a conditional write that failed is `Unavailable` only
if it was never sent or was refused before it was executed; in every other case its outcome is unknown.
"""

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence

from cassandra import Unauthorized  # type: ignore[import-untyped]
from cassandra.query import BatchStatement, BatchType, BoundStatement, PreparedStatement  # type: ignore[import-untyped]
from msgspec import Struct

from internal_transfer.adapters.cassandra import failures
from internal_transfer.adapters.cassandra.cluster import Connected, connect, serial_level
from internal_transfer.adapters.cassandra.requests import Request, Requests, Row
from internal_transfer.adapters.cassandra.settings import CqlSettings
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import OutcomeUnknown, StartRefusedError, System, Unavailable
from internal_transfer.ports.finding import Finding

_FIND_TABLE = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = ?"
_TABLE = re.compile(r"\b(FROM|INTO|UPDATE) (\w+)\b(?!\.)")

_REPEATS_MAX = 3
"""How often a conditional write without an answer is repeated before its outcome is reported as unknown."""


class Decided(Struct, frozen=True):
    """How a conditional write ended; `applied` is the cluster's last answer.

    `doubted` says that an earlier answer was missing, so the first attempt may have been applied although the last one
    was not.
    """

    applied: bool
    doubted: bool = False


class Cql:
    """A session; start it on the event loop that uses it. Its failures name `system` as the system that failed."""

    def __init__(
        self,
        settings: CqlSettings,
        clock: Clock,
        *,
        system: System = System.STORE,
        connect: Callable[[CqlSettings], Connected] = connect,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.system = system
        self._connect = connect
        self._connection: Connected | None = None
        self._requests: Requests | None = None

    async def start(self) -> None:
        """Connects, and creates the keyspace if the settings say how; raises `StartRefusedError` or `Unavailable`."""
        settings = self.settings
        if not settings.keyspace.replace("_", "").isalnum():
            raise StartRefusedError(f"the keyspace's name may have letters, digits and _: {settings.keyspace!r}")
        try:
            self._connection = await asyncio.to_thread(self._connect, settings)
        except failures.FAILURES as error:
            raise failures.of_connecting(self.system, settings, error) from error
        self._requests = Requests(
            self._connection.session,
            in_flight_max=settings.in_flight_max,
            waiting_max=settings.waiting_max,
            system=self.system,
        )

    async def close(self) -> None:
        """Closes the connections; calls under way fail."""
        if self._connection is not None:
            await asyncio.to_thread(self._connection.cluster.shutdown)

    @property
    def _connected(self) -> Connected:
        assert self._connection is not None, "the session was not started"
        return self._connection

    async def prepare(self, statements: Iterable[str]) -> dict[str, PreparedStatement]:
        """Prepares statements, by their text; raises `StartRefusedError` if the tables are not as expected."""
        session = self._connected.session

        def prepare_all() -> dict[str, PreparedStatement]:
            return {text: session.prepare(self._qualified(text)) for text in statements}

        try:
            return await asyncio.to_thread(prepare_all)
        except failures.REFUSED as error:
            raise StartRefusedError(
                f"{self.settings!r} refuses our statements: {error}; migrate the keyspace, or grant what is missing"
            ) from error
        except failures.FAILURES as error:
            raise Unavailable(self.system, f"{self.settings!r}: {error}") from error

    def _qualified(self, text: str) -> str:
        """The statement with the keyspace before its table, without which a prepared one is ambiguous."""
        return _TABLE.sub(rf"\1 {self.settings.keyspace}.\2", text)

    async def define(self, statement: str) -> list[Row]:
        """Runs a statement by its text, such as one that changes the schema; can take seconds."""
        session = self._connected.session

        def run() -> list[Row]:
            return list(session.execute(statement, timeout=max(60.0, self.settings.request_seconds)))

        try:
            return await asyncio.to_thread(run)
        except Unauthorized as error:
            raise StartRefusedError(
                f"{self.settings!r}: {error}; grant the user CREATE, ALTER, MODIFY and SELECT on the keyspace"
            ) from error
        except failures.FAILURES as error:
            raise self._failure(error) from error

    async def has_table(self, table: str) -> bool:
        """Tells whether the keyspace has a table."""
        prepared = await self.prepare([_FIND_TABLE])
        [rows] = await self.read([prepared[_FIND_TABLE].bind((self.settings.keyspace, table))])
        return bool(rows)

    def batch(self, statements: Sequence[BoundStatement]) -> Request:
        """Combines statements about one partition into one request."""
        if len(statements) == 1:
            return statements[0]
        batch = BatchStatement(BatchType.UNLOGGED)
        for statement in statements:
            batch.add(statement)
        batch.routing_key = statements[0].routing_key
        batch.keyspace = self.settings.keyspace
        return batch

    def serially(self, statement: BoundStatement) -> BoundStatement:
        """The same read of one partition, made serial: it settles a conditional write in doubt there, and sees all."""
        statement.consistency_level = serial_level(self.settings)
        return statement

    async def read(self, requests: Sequence[Request]) -> list[list[Row]]:
        """Returns the rows of each read, in order. Raises `Unavailable`."""
        answers = await self._send(requests)
        for answer in answers:
            if isinstance(answer, Exception):
                raise self._failure(answer, nothing_done=True) from answer
        return [answer for answer in answers if not isinstance(answer, Exception)]

    async def write(self, requests: Sequence[Request]) -> None:
        """Makes unconditional writes, which may be repeated; repeats each that failed once.

        Raises `Unavailable` or `OutcomeUnknown` for the first that failed again; others may have been done.
        """
        answers = await self._send(requests)
        failed = [n for n, answer in enumerate(answers) if isinstance(answer, Exception)]
        if failed:
            answers = await self._send([requests[n] for n in failed])
        for answer in answers:
            if isinstance(answer, Exception):
                raise self._failure(answer) from answer

    async def decide(self, requests: Sequence[Request]) -> list[bool]:
        """Makes conditional writes as `decide_each` does; returns only whether each was applied."""
        return [each.applied for each in await self.decide_each(requests)]

    async def decide_each(self, requests: Sequence[Request]) -> list[Decided]:
        """Makes conditional writes, and returns how each ended.

        One without an answer is repeated, which also settles what the cluster left in doubt. The repetition may not be
        applied because the first attempt was, so the caller has to read whose values are there. Raises `Unavailable`
        if none of the requests was executed, and `OutcomeUnknown` if some may have been.
        """
        applied = [each if isinstance(each, Exception) else bool(each[0][0]) for each in await self._send(requests)]
        doubted = {n for n, each in enumerate(applied) if isinstance(each, Exception) and failures.may_be_decided(each)}
        for attempt in range(_REPEATS_MAX):
            unclear = [n for n in sorted(doubted) if isinstance(applied[n], Exception)]
            if not unclear:
                break
            await self.clock.sleep((0.02 + 0.1 * self.clock.jitter()) * (attempt + 1))
            try:
                again = await self._send([requests[n] for n in unclear])
            except Unavailable:
                break  # Too many requests wait for this one to be repeated; its first attempt may still be applied.
            for n, answer in zip(unclear, again, strict=True):
                if not isinstance(answer, Exception):
                    applied[n] = bool(answer[0][0])
        failed = [each for each in applied if isinstance(each, Exception)]
        if failed:
            nothing_done = len(failed) == len(applied) and not doubted
            raise self._failure(failed[0], nothing_done=nothing_done) from failed[0]
        return [Decided(each is True, n in doubted) for n, each in enumerate(applied)]

    async def _send(self, requests: Sequence[Request]) -> list[list[Row] | Exception]:
        assert self._requests is not None, "the session was not started"
        return await self._requests.send(requests)

    def _failure(self, error: Exception, *, nothing_done: bool | None = None) -> Unavailable | OutcomeUnknown:
        if nothing_done is None:
            nothing_done = isinstance(error, failures.NOT_EXECUTED)
        return failures.of_request(self.system, self.settings, error, nothing_done=nothing_done)

    async def check(self) -> list[Finding]:
        """Returns the findings for `doctor` about the cluster: connection, version, clock, replicas."""
        try:
            [(datacenter, now)] = await self.define("SELECT data_center, toUnixTimestamp(now()) FROM system.local")
        except (Unavailable, OutcomeUnknown, StartRefusedError) as error:
            return [Finding("cql connection", False, str(error))]
        apart = abs(int(now) - self.clock.now_ms())
        prepared = await self.prepare(["SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = ?"])
        [rows] = await self.read([each.bind((self.settings.keyspace,)) for each in prepared.values()])
        replication = dict(rows[0][0]) if rows else {}
        copies = {name: count for name, count in replication.items() if name != "class"}
        most = max((int(count) for count in copies.values() if str(count).isdigit()), default=0)
        return [
            Finding("cql connection", True, f"{self.settings!r}, data centre {datacenter}"),
            Finding("cql version", True, self._connected.server),
            Finding("cql clock", apart < 1_000, f"{apart} ms from this machine's; synchronise both by NTP"),
            Finding("cql replicas", most >= 1, f"{copies}; three per data centre survive the loss of one machine"),
        ]
