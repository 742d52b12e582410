"""A few connections to PostgreSQL, shared by all callers of a process.

asyncpg's own pool sends a reset after every call and lets any number of callers wait; here a call is one round trip, a
full queue refuses at once, and a call's failure says whether something may have been done.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from internal_transfer.adapters.postgresql import failures
from internal_transfer.adapters.postgresql.settings import PostgresqlSettings
from internal_transfer.ports.errors import StartRefusedError, System, Unavailable

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
T = TypeVar("T")

ATTEMPTS_MAX = 5
"""How often a call is made that the server takes back for the sake of another one."""

RESTED_SECONDS = 20.0
"""A connection that rested for longer is asked for a sign of life before a call is trusted to it."""

REFUSAL_TOLD_SECONDS = 5.0
"""How long readiness tells that the server refused a write: reading goes on where a disk is full, so a probe that only
reads would not notice, and a process that gets no requests would not try again.
"""

PLANS = dict.fromkeys(("enable_seqscan", "enable_hashjoin", "enable_mergejoin"), "off")
"""Every statement finds its rows by an index. The planner has to be told: a plan made while the tables were empty reads
them from end to end, and a connection keeps it while they grow.
"""

_FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError)


class Pool:
    """Lends connections, bounds waiting and deadlines, and tells failures apart.

    `start` opens and checks a first connection, `close` ends all of them. One pool serves the store and the operations
    of a process.
    """

    def __init__(self, settings: PostgresqlSettings) -> None:
        self.settings = settings
        self._free = asyncio.Semaphore(settings.connections)
        self._waiting = 0
        # The one that was used last is lent first, so that an idle process keeps one connection warm, not all.
        self._idle: list[tuple[Connection, float]] = []
        self._closed = False
        self._refusal: tuple[str, float] | None = None

    @property
    def failure(self) -> str | None:
        """Why the server refused a write in the last `REFUSAL_TOLD_SECONDS`, if it did."""
        if self._refusal is None or asyncio.get_running_loop().time() - self._refusal[1] > REFUSAL_TOLD_SECONDS:
            return None
        return self._refusal[0]

    async def start(self) -> None:
        """Opens a first connection; raises `StartRefusedError` with what to do, or `Unavailable`."""

        async def answer(connection: Connection) -> None:
            await connection.fetchval("SELECT 1")

        await self._call(System.STORE, answer, writes=False, starting=True)

    async def close(self) -> None:
        """Ends the connections, those at work when their calls are done."""
        self._closed = True
        while self._idle:
            connection, _ = self._idle.pop()
            connection.terminate()

    async def read(self, system: System, call: Callable[[Connection], Awaitable[T]]) -> T:
        """Makes a call that changes nothing; raises `Unavailable`."""
        return await self._call(system, call, writes=False)

    async def write(self, system: System, call: Callable[[Connection], Awaitable[T]]) -> T:
        """Makes a call that is one transaction: one statement, or an explicit transaction; it may be made repeatedly.

        Raises `Unavailable` when it is certain that nothing was done, and `OutcomeUnknown` otherwise.
        """
        return await self._call(system, call, writes=True)

    async def _call(
        self, system: System, call: Callable[[Connection], Awaitable[T]], *, writes: bool, starting: bool = False
    ) -> T:
        if self._closed:
            raise Unavailable(system, "PostgreSQL: this process is stopping")
        if self._waiting >= self.settings.waiting_max and self._free.locked():
            raise Unavailable(system, f"PostgreSQL: {self._waiting} calls are waiting for a connection already")
        sent = False
        try:
            async with asyncio.timeout(self.settings.deadline_seconds):
                await self._wait_for_turn()
                try:
                    for attempt in range(1, ATTEMPTS_MAX + 1):
                        connection = await self._connected(system, starting=starting)
                        sent = True
                        try:
                            return await self._made(connection, call)
                        except _FAILURES as error:
                            again = failures.state_of(error) in failures.RETRIED or (
                                not writes and connection.is_closed()
                            )
                            if not again or attempt == ATTEMPTS_MAX:
                                self._remember(system, error)
                                raise failures.of_call(system, error, writes=writes) from error
                            sent = False
                finally:
                    self._free.release()
        except TimeoutError as error:
            seconds = self.settings.deadline_seconds
            if not sent:
                raise Unavailable(system, f"PostgreSQL: no connection became free in {seconds:g} s") from error
            raise failures.lost(system, f"PostgreSQL: no answer in {seconds:g} s", writes=writes) from error
        raise AssertionError("the last attempt returns or raises")

    def _remember(self, system: System, error: Exception) -> None:
        if failures.outlasts_the_call(error):
            told = str(failures.of_call(system, error, writes=True))
            self._refusal = told, asyncio.get_running_loop().time()

    async def _wait_for_turn(self) -> None:
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1

    async def _made(self, connection: Connection, call: Callable[[Connection], Awaitable[T]]) -> T:
        """Makes the call and keeps the connection only where it is known to be at rest afterwards."""
        at_rest = False
        try:
            result = await call(connection)
            at_rest = True
        except asyncpg.PostgresError as error:
            at_rest = failures.leaves_connection_usable(error)
            raise
        finally:
            if at_rest and not self._closed and not connection.is_closed() and not connection.is_in_transaction():
                self._idle.append((connection, asyncio.get_running_loop().time()))
            else:
                connection.terminate()
        return result

    async def _connected(self, system: System, *, starting: bool) -> Connection:
        """A connection that lives, as far as can be known without a call."""
        while self._idle:
            connection, since = self._idle.pop()
            if connection.is_closed():
                continue
            if asyncio.get_running_loop().time() - since < RESTED_SECONDS or await self._lives(connection):
                return connection
        try:
            return await self._open()
        except (*_FAILURES, TimeoutError, ValueError) as error:
            failure = failures.of_connecting(system, self.settings.place, error)
            if isinstance(failure, StartRefusedError) and not starting:
                failure = Unavailable(system, str(failure))
            raise failure from error

    async def _lives(self, connection: Connection) -> bool:
        lives = False
        try:
            await connection.fetchval("SELECT 1", timeout=self.settings.connect_seconds)
            lives = True
        except (*_FAILURES, TimeoutError):
            return False
        finally:
            if not lives:
                connection.terminate()
        return True

    async def _open(self) -> Connection:
        settings = self.settings
        for_session = {
            "application_name": "internal-transfer",
            "default_transaction_isolation": "read committed",
            "statement_timeout": str(int(settings.deadline_seconds * 500)),
            "idle_in_transaction_session_timeout": str(int(settings.deadline_seconds * 1000)),
            "jit": "off",
            **PLANS,
        }
        return await asyncpg.connect(
            settings.url,
            password=settings.password,
            timeout=settings.connect_seconds,
            server_settings=None if settings.pooled else for_session,
            target_session_attrs=SessionAttribute.read_write if "," in settings.place else None,
        )
