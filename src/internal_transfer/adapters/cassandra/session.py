"""One process's session with a CQL cluster: the driver's callbacks brought to asyncio, and its failures sorted.

The driver answers on a thread of its own. Answers are collected in a queue and the event loop is woken once for all
that wait in it, so that a batch of statements costs neither a thread nor a task for each.

What a failure means depends on what was sent. A read that failed did nothing, so it is `Unavailable`. A write or a
conditional write that failed is `Unavailable` only where it was never sent or was refused before execution, and
`OutcomeUnknown` in every other case. The driver never sends anything twice by itself; whoever knows what a
statement means asks again.
"""

import asyncio
import re
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias

from cassandra import (  # type: ignore[import-untyped]
    AuthenticationFailed,
    ConsistencyLevel,
    CoordinationFailure,
    InvalidRequest,
    OperationTimedOut,
    RequestExecutionException,
    Timeout,
    Unauthorized,
)
from cassandra import Unavailable as NotEnoughReplicas
from cassandra.auth import PlainTextAuthProvider  # type: ignore[import-untyped]
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable, Session  # type: ignore[import-untyped]
from cassandra.connection import ConnectionException  # type: ignore[import-untyped]
from cassandra.policies import (  # type: ignore[import-untyped]
    ConstantReconnectionPolicy,
    DCAwareRoundRobinPolicy,
    FallthroughRetryPolicy,
    TokenAwarePolicy,
)
from cassandra.protocol import ErrorMessage, IsBootstrappingErrorMessage, SyntaxException  # type: ignore[import-untyped]
from cassandra.query import BatchStatement, BatchType, BoundStatement, PreparedStatement, tuple_factory  # type: ignore[import-untyped]
from msgspec import Struct

from internal_transfer.adapters.cassandra.settings import CqlSettings, Reach
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import OutcomeUnknown, StartRefusedError, System, Unavailable
from internal_transfer.ports.finding import Finding

Row = tuple[Any, ...]
"""A row of the database, or the values bound to a statement."""
Request: TypeAlias = BoundStatement | BatchStatement
"""A statement with its values, or several as one."""
Failure = Unavailable | OutcomeUnknown

CASSANDRA_OLDEST = (4, 0)
"""Before 4.0 a SERIAL read could contradict the one before it (CASSANDRA-12126)."""

_FAILURES = (
    RequestExecutionException,
    CoordinationFailure,
    OperationTimedOut,
    Timeout,
    NoHostAvailable,
    ConnectionException,
    InvalidRequest,
    Unauthorized,
    SyntaxException,
    AuthenticationFailed,
    ErrorMessage,
    OSError,
)
_NOT_EXECUTED = (
    NoHostAvailable,
    NotEnoughReplicas,
    IsBootstrappingErrorMessage,
    InvalidRequest,
    Unauthorized,
    SyntaxException,
    AuthenticationFailed,
)
"""Failures after which it is certain that no replica was asked to do anything."""

_FIND_TABLE = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = ?"
_TABLE = re.compile(r"\b(FROM|INTO|UPDATE) (\w+)\b(?!\.)")

_REASKS = 3
"""How often a conditional write without an answer is asked again before its outcome is told to be unknown."""


class Decided(Struct, frozen=True):
    """How a conditional write ended: whether it was applied, as the cluster told last.

    `doubted`: an answer before that one was missing, so "not applied" may be since it was applied the first time.
    """

    applied: bool
    doubted: bool = False


class Cql:
    """A session; start it on the event loop that uses it. `system` is whose failures are raised."""

    def __init__(self, settings: CqlSettings, clock: Clock, *, system: System = System.STORE) -> None:
        self.settings = settings
        self.clock = clock
        self.system = system
        everywhere = settings.reach is Reach.EVERYWHERE
        self._serial = ConsistencyLevel.SERIAL if everywhere else ConsistencyLevel.LOCAL_SERIAL
        self._quorum = ConsistencyLevel.QUORUM if everywhere else ConsistencyLevel.LOCAL_QUORUM
        self._cluster: Cluster | None = None
        self._session: Session | None = None
        self._server = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots = asyncio.Semaphore(settings.in_flight_max)
        self._waiting = 0
        self._answers: deque[tuple[asyncio.Future[list[Row]], list[Row] | None, Exception | None]] = deque()
        self._is_woken = False

    async def start(self) -> None:
        """Connects, and creates the keyspace if the settings say how; raises `StartRefusedError` or `Unavailable`."""
        self._loop = asyncio.get_running_loop()
        if not self.settings.keyspace.replace("_", "").isalnum():
            raise StartRefusedError(f"the keyspace's name must be letters, digits and _: {self.settings.keyspace!r}")
        try:
            await asyncio.to_thread(self._connect)
        except NoHostAvailable as error:
            causes = list(error.errors.values()) if isinstance(error.errors, dict) else []
            if any(isinstance(cause, AuthenticationFailed) for cause in causes):
                raise StartRefusedError(
                    f"{self.settings!r} refused the user {self.settings.user!r}; check user and password"
                ) from error
            raise Unavailable(self.system, f"{self.settings!r} could not be reached: {error}") from error
        except (AuthenticationFailed, Unauthorized) as error:
            raise StartRefusedError(f"{self.settings!r} refused the user {self.settings.user!r}: {error}") from error
        except InvalidRequest as error:
            raise StartRefusedError(
                f"{self.settings!r}: {error}; create the keyspace, or say its replication in the settings"
            ) from error
        except (OperationTimedOut, ConnectionException, OSError) as error:
            raise Unavailable(self.system, f"{self.settings!r} could not be reached: {error}") from error

    def _connect(self) -> None:
        settings = self.settings
        profile = ExecutionProfile(
            load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy(local_dc=settings.datacenter)),
            retry_policy=FallthroughRetryPolicy(),
            consistency_level=self._quorum,
            serial_consistency_level=self._serial,
            request_timeout=settings.request_seconds,
            row_factory=tuple_factory,
        )
        authentication = None
        if settings.user is not None:
            authentication = PlainTextAuthProvider(username=settings.user, password=settings.password or "")
        self._cluster = Cluster(
            contact_points=list(settings.contact_points),
            port=settings.port,
            auth_provider=authentication,
            ssl_context=settings.tls_context(),
            execution_profiles={EXEC_PROFILE_DEFAULT: profile},
            reconnection_policy=ConstantReconnectionPolicy(1.0, None),
            connect_timeout=settings.connect_seconds,
            control_connection_timeout=settings.connect_seconds,
            idle_heartbeat_interval=5,
            idle_heartbeat_timeout=5,
            protocol_version=4,
        )
        try:
            self._session = self._cluster.connect()
            self._refuse_old()
            self._create_keyspace()
            self._session.set_keyspace(settings.keyspace)
        except BaseException:
            self._cluster.shutdown()
            raise

    def _refuse_old(self) -> None:
        """Raises `StartRefusedError` for a release whose conditional writes cannot be relied on."""
        assert self._session is not None
        [(version,)] = self._session.execute("SELECT release_version FROM system.local")
        # ScyllaDB tells the version of the Cassandra it is compatible with, 3.0.8, and has tables of its own.
        is_scylla = self._session.execute(
            "SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = 'system_distributed_everywhere'"
        )
        self._server = "ScyllaDB" if list(is_scylla) else f"Cassandra {version}"
        if release_of(str(version)) < CASSANDRA_OLDEST and self._server != "ScyllaDB":
            oldest = ".".join(map(str, CASSANDRA_OLDEST))
            raise StartRefusedError(f"{self.settings!r}: {self._server}; {oldest} or newer is needed")

    def _create_keyspace(self) -> None:
        if self.settings.replication is None:
            return
        tablets = ""
        if self.settings.tablets is not None:
            tablets = f" AND tablets = {{'enabled': {str(self.settings.tablets).lower()}}}"
        assert self._session is not None
        self._session.execute(
            f"CREATE KEYSPACE IF NOT EXISTS {self.settings.keyspace}"
            f" WITH replication = {self.settings.replication}{tablets}",
            timeout=self.settings.connect_seconds * 3,
        )

    async def close(self) -> None:
        """Closes the connections; calls under way fail."""
        if self._cluster is not None:
            await asyncio.to_thread(self._cluster.shutdown)

    async def prepare(self, statements: Iterable[str]) -> dict[str, PreparedStatement]:
        """Prepares statements, by their text; raises `StartRefusedError` where the tables are not as expected."""

        def prepare_all() -> dict[str, PreparedStatement]:
            assert self._session is not None, "the session was not started"
            return {text: self._session.prepare(self._qualified(text)) for text in statements}

        try:
            return await asyncio.to_thread(prepare_all)
        except (InvalidRequest, Unauthorized, SyntaxException) as error:
            raise StartRefusedError(
                f"{self.settings!r} does not take our statements: {error};"
                " migrate the keyspace, or grant what is missing"
            ) from error
        except _FAILURES as error:
            raise Unavailable(self.system, f"{self.settings!r}: {error}") from error

    def _qualified(self, text: str) -> str:
        """The statement with the keyspace before its table, without which a prepared one would be ambiguous."""
        return _TABLE.sub(rf"\1 {self.settings.keyspace}.\2", text)

    async def define(self, statement: str) -> list[Row]:
        """Runs a statement of the schema's, or one by its text; can take seconds."""

        def run() -> list[Row]:
            assert self._session is not None, "the session was not started"
            return list(self._session.execute(statement, timeout=max(60.0, self.settings.request_seconds)))

        try:
            return await asyncio.to_thread(run)
        except Unauthorized as error:
            raise StartRefusedError(
                f"{self.settings!r}: {error}; grant the user CREATE, ALTER, MODIFY and SELECT on the keyspace"
            ) from error
        except _NOT_EXECUTED as error:
            raise Unavailable(self.system, f"{self.settings!r}: {error}") from error
        except _FAILURES as error:
            raise OutcomeUnknown(self.system, f"{self.settings!r}: {error}") from error

    async def has_table(self, table: str) -> bool:
        """Tells whether the keyspace has a table."""
        prepared = await self.prepare([_FIND_TABLE])
        [rows] = await self.read([prepared[_FIND_TABLE].bind((self.settings.keyspace, table))])
        return bool(rows)

    def batch(self, statements: Sequence[BoundStatement]) -> Request:
        """Statements about rows of one partition as one request; a single one stays as it is."""
        if len(statements) == 1:
            return statements[0]
        batch = BatchStatement(BatchType.UNLOGGED)
        for statement in statements:
            batch.add(statement)
        batch.routing_key = statements[0].routing_key
        batch.keyspace = self.settings.keyspace
        return batch

    def serially(self, statement: BoundStatement) -> BoundStatement:
        """The read of one partition so that it settles what is in doubt there, and sees everything decided before."""
        statement.consistency_level = self._serial
        return statement

    async def read(self, requests: Sequence[Request]) -> list[list[Row]]:
        """The rows that each read gives, in order. Raises `Unavailable`."""
        answers = await self._send(requests)
        for answer in answers:
            if isinstance(answer, Exception):
                raise self._sorted(answer, did_nothing=True) from answer
        return [answer for answer in answers if not isinstance(answer, Exception)]

    async def note(self, requests: Sequence[Request]) -> None:
        """Carries out unconditional writes that may be repeated, once more each where the first had no answer.

        Raises `Unavailable` or `OutcomeUnknown` for the first that failed; others may have been done.
        """
        answers = await self._send(requests)
        failed = [n for n, answer in enumerate(answers) if isinstance(answer, Exception)]
        if failed:
            answers = await self._send([requests[n] for n in failed])
        for answer in answers:
            if isinstance(answer, Exception):
                raise self._sorted(answer, did_nothing=False) from answer

    async def decide(self, requests: Sequence[Request]) -> list[bool]:
        """As `judge`, and tells only which writes were applied."""
        return [each.applied for each in await self.judge(requests)]

    async def judge(self, requests: Sequence[Request]) -> list[Decided]:
        """Carries out conditional writes and tells how each ended.

        One without an answer is asked again, which also settles what the cluster left in doubt. It may then be told as
        not applied because it was, so the caller has to look whose values are there. Raises `Unavailable` where none of
        the requests was executed, and `OutcomeUnknown` where some may have been.
        """
        applied = [each if isinstance(each, Exception) else bool(each[0][0]) for each in await self._send(requests)]
        doubted = {n for n, each in enumerate(applied) if isinstance(each, Exception) and not _is_undecided(each)}
        for attempt in range(_REASKS):
            unclear = [n for n in sorted(doubted) if isinstance(applied[n], Exception)]
            if not unclear:
                break
            await self.clock.sleep((0.02 + 0.1 * self.clock.jitter()) * (attempt + 1))
            try:
                again = await self._send([requests[n] for n in unclear])
            except Unavailable:
                break  # Too many wait to ask again; what was asked before may still have been done.
            for n, answer in zip(unclear, again, strict=True):
                if not isinstance(answer, Exception):
                    applied[n] = bool(answer[0][0])
        failures = [each for each in applied if isinstance(each, Exception)]
        if failures:
            sure = len(failures) == len(applied) and not doubted
            raise self._failure(failures[0], sure=sure) from failures[0]
        return [Decided(each is True, n in doubted) for n, each in enumerate(applied)]

    async def _send(self, requests: Sequence[Request]) -> list[list[Row] | Exception]:
        """Sends requests side by side, as many as may be in flight, and waits for all; failures are the driver's."""
        session, loop = self._session, self._loop
        assert session is not None, "the session was not started"
        assert loop is not None
        if self._waiting + len(requests) > self.settings.waiting_max:
            raise Unavailable(self.system, f"{self._waiting} requests wait for the database already")
        futures: list[asyncio.Future[list[Row]]] = []
        self._waiting += len(requests)
        try:
            for request in requests:
                await self._slots.acquire()
                future: asyncio.Future[list[Row]] = loop.create_future()
                future.add_done_callback(self._release)
                futures.append(future)
                try:
                    answer = session.execute_async(request)
                except _FAILURES as error:
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
            assert self._loop is not None
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

    def _sorted(self, error: Exception, *, did_nothing: bool) -> Failure:
        return self._failure(error, sure=did_nothing or _is_sure(error))

    def _failure(self, error: Exception, *, sure: bool) -> Failure:
        assert isinstance(error, _FAILURES), f"a bug, not a failure of the database: {error!r}"
        what = f"{type(error).__name__}: {error}"
        if isinstance(error, NoHostAvailable):
            # The driver's words for it name no node where none was left to try.
            what = f"no node can be reached {error.errors or ''}".rstrip()
        message = f"{self.settings!r}: {what}"
        return Unavailable(self.system, message) if sure else OutcomeUnknown(self.system, message)

    async def check(self) -> list[Finding]:
        """What `doctor` tells about the cluster: reach, version, clocks, permissions, replicas."""
        try:
            [(datacenter, now)] = await self.define("SELECT data_center, toUnixTimestamp(now()) FROM system.local")
        except (Unavailable, OutcomeUnknown, StartRefusedError) as error:
            return [Finding("cql connection", False, str(error))]
        findings = [Finding("cql connection", True, f"{self.settings!r}, data centre {datacenter}")]
        findings.append(Finding("cql version", True, self._server))
        apart = abs(int(now) - self.clock.now_ms())
        findings.append(Finding("cql clock", apart < 1_000, f"{apart} ms apart from this machine's; keep both on NTP"))
        prepared = await self.prepare(["SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = ?"])
        [rows] = await self.read([each.bind((self.settings.keyspace,)) for each in prepared.values()])
        copies = {} if not rows else {k: v for k, v in dict(rows[0][0]).items() if k != "class"}
        held = max((int(v) for v in copies.values() if str(v).isdigit()), default=0)
        findings.append(
            Finding("cql replicas", held >= 1, f"{copies}; three in each data centre survive the loss of one machine")
        )
        return findings


def release_of(version: str) -> tuple[int, ...]:
    """Major and minor number of a version such as 5.0.9, 5.0-rc1 or 4.1-SNAPSHOT."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _is_sure(error: Exception) -> bool:
    """Tells whether the request was certainly not executed."""
    return isinstance(error, _NOT_EXECUTED)


def _is_undecided(error: Exception) -> bool:
    """As `_is_sure` for a conditional write, whose replicas may be too few only when it comes to its commit: by then
    it is decided, and whoever reads serially carries it out.
    """
    return _is_sure(error) and not isinstance(error, NotEnoughReplicas)
