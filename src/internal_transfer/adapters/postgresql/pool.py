"""The connections to PostgreSQL that all calls of a process share; decision 11 says why asyncpg's pool is not used."""

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
"""How often a call is made before its failure is reported, where the failure allows another attempt."""

IDLE_SECONDS = 20.0
"""A connection that was idle for longer is not used again: a firewall in between may have dropped it silently."""

REFUSAL_SHOWN_SECONDS = 5.0
"""How long readiness shows that the server refused a write. A full disk still allows reads, so a probe that only reads
does not notice it, and a process that gets no requests does not try again.
"""

PLANS = dict.fromkeys(("enable_seqscan", "enable_hashjoin", "enable_mergejoin"), "off")
"""Every statement finds its rows by an index. The planner has to be told, because a plan made while the tables were
empty reads them from end to end, and a connection keeps that plan while they grow.
"""

_FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError)


class Pool:
    """Makes calls on the connections of a process, and says whether a call that failed may have taken effect.

    `start` opens the first connection and checks it; `close` ends all of them. The store and the operations of a
    process share one pool.
    """

    def __init__(self, settings: PostgresqlSettings) -> None:
        self.settings = settings
        self._free = asyncio.Semaphore(settings.connections)
        self._calls = 0
        # The connection that was used last is used next, so that an idle process keeps one connection warm, not all.
        self._idle: list[tuple[Connection, float]] = []
        self._is_closed = False
        self._refusal: tuple[str, float] | None = None

    @property
    def failure(self) -> str | None:
        """Why the server refused a write in the last `REFUSAL_SHOWN_SECONDS`, or None."""
        if self._refusal is None or asyncio.get_running_loop().time() - self._refusal[1] > REFUSAL_SHOWN_SECONDS:
            return None
        return self._refusal[0]

    async def start(self) -> None:
        """Opens and checks a first connection; raises `StartRefusedError`, which says what to do, or `Unavailable`."""
        await self._call(
            System.STORE, lambda connection: connection.fetchval("SELECT 1"), writes=False, is_starting=True
        )

    async def close(self) -> None:
        """Takes no more calls, and ends the connections; calls under way end first."""
        self._is_closed = True
        while self._idle:
            self._idle.pop()[0].terminate()

    async def read(self, system: System, call: Callable[[Connection], Awaitable[T]]) -> T:
        """Makes a call that changes nothing; raises `Unavailable`."""
        return await self._call(system, call, writes=False)

    async def write(self, system: System, call: Callable[[Connection], Awaitable[T]]) -> T:
        """Makes a call that is one transaction: one statement, or an explicit transaction. It may be repeated.

        Raises `Unavailable` when it is certain that nothing was written, and `OutcomeUnknown` otherwise.
        """
        return await self._call(system, call, writes=True)

    async def _call(
        self, system: System, call: Callable[[Connection], Awaitable[T]], *, writes: bool, is_starting: bool = False
    ) -> T:
        settings = self.settings
        if self._is_closed:
            raise Unavailable(system, "PostgreSQL: this process is stopping")
        if self._calls >= settings.connections + settings.waiting_max:
            waiting = self._calls - settings.connections
            raise Unavailable(system, f"PostgreSQL: {waiting} calls are already waiting for a connection")
        is_sent = False
        self._calls += 1
        try:
            async with asyncio.timeout(settings.deadline_seconds), self._free:
                for attempt in range(1, ATTEMPTS_MAX + 1):
                    connection = await self._connected(system, is_starting=is_starting)
                    is_sent = True
                    try:
                        return await self._make(call, connection)
                    except _FAILURES as error:
                        if attempt == ATTEMPTS_MAX or not failures.may_be_repeated(error, writes=writes):
                            self._note_refusal(system, error)
                            raise failures.of_call(system, error, writes=writes) from error
                        is_sent = False
        except TimeoutError as error:
            seconds = settings.deadline_seconds
            if not is_sent:
                raise Unavailable(system, f"PostgreSQL: no connection became free in {seconds:g} s") from error
            raise failures.lost(system, f"PostgreSQL: no answer in {seconds:g} s", writes=writes) from error
        finally:
            self._calls -= 1
        raise AssertionError("the last attempt returns or raises")

    async def _make(self, call: Callable[[Connection], Awaitable[T]], connection: Connection) -> T:
        """Makes the call, and keeps the connection only if it is known to be fit for the next one."""
        is_usable = False
        try:
            result = await call(connection)
            is_usable = True
        except asyncpg.PostgresError as error:
            is_usable = failures.leaves_connection_usable(error)
            raise
        finally:
            if is_usable and not self._is_closed and not connection.is_closed() and not connection.is_in_transaction():
                self._idle.append((connection, asyncio.get_running_loop().time()))
            else:
                connection.terminate()
        return result

    async def _connected(self, system: System, *, is_starting: bool) -> Connection:
        """Returns an idle connection, or opens one."""
        while self._idle:
            connection, idle_since = self._idle.pop()
            if not connection.is_closed() and asyncio.get_running_loop().time() - idle_since < IDLE_SECONDS:
                return connection
            connection.terminate()
        try:
            return await self._open()
        except (*_FAILURES, TimeoutError, ValueError) as error:
            failure = failures.of_connecting(system, self.settings.place, error)
            if isinstance(failure, StartRefusedError) and not is_starting:
                failure = Unavailable(system, str(failure))
            raise failure from error

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

    def _note_refusal(self, system: System, error: Exception) -> None:
        if failures.outlasts_the_call(error):
            message = str(failures.of_call(system, error, writes=True))
            self._refusal = message, asyncio.get_running_loop().time()
