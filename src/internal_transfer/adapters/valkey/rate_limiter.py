"""Token buckets in Valkey (or Redis), shared by all gateways.

A batch is one call of one atomic script; in a cluster it is one call per hash slot, pipelined per node. The script uses
the server's clock, so gateways need not agree on the time. Needs the `valkey` package.
"""

import asyncio
import hashlib
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from msgspec import Struct
from valkey.asyncio import Valkey
from valkey.crc import key_slot
from valkey.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    NoScriptError,
    ResponseError,
    ValkeyClusterException,
    ValkeyError,
)

from internal_transfer.adapters.valkey.settings import ValkeySettings
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, StartRefusedError, System, Unavailable
from internal_transfer.ports.finding import Finding

REDIS_MIN = (7, 0)
"""The oldest version of the protocol that works: Redis 7.0, which every Valkey speaks."""

Run = tuple[str | bytes | int, ...]
"""One run of the script: the number of keys, the keys, and the arguments."""

_SCRIPT = files(__package__).joinpath("rate_limiter.lua").read_text(encoding="utf-8")
_DIGEST = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()
"""The name by which servers know the script.

The client's `register_script` is not used. Where a server has forgotten the script, it sends SCRIPT LOAD, for which
existing users have no permission; it does not work in a cluster's pipeline; and it is slower (see `_send`).
"""
_TRIAL = {"": 1}
"""What a start takes to see whether the script may run: one token from a bucket that belongs to nobody."""
_MICROSECONDS_PER_SECOND = 1_000_000
_MICROSECONDS_PER_MINUTE = 60 * _MICROSECONDS_PER_SECOND

_PERMISSIONS = (
    "allow its user the keys of the prefix, and +evalsha +eval +get +set +time +info (in a cluster +cluster +command)"
)

_REFUSALS = (AuthenticationError, BusyLoadingError, ResponseError, ValkeyClusterException)
"""Errors of a server that did not run the script, and of the client where it found no cluster."""


class ServerFacts(Struct, frozen=True):
    """What a server says about itself; `version` is the Redis version whose protocol it speaks, for Valkey as well."""

    name: str
    version: tuple[int, ...]
    is_cluster: bool
    memory_bytes_max: int
    eviction: str


class ValkeyRateLimiter:
    """Implements `RateLimiter`: each name may take `burst` tokens at once and gets `per_minute` new ones.

    Limiters with the same settings, rates and key prefix share their buckets across processes. A call raises
    `Unavailable` where the server refuses it, and `OutcomeUnknown` where no answer came, even if it was never sent:
    callers treat both alike, and tokens that were taken for nothing come back with time.
    """

    def __init__(self, settings: ValkeySettings, *, per_minute: int, burst: int) -> None:
        assert per_minute > 0, "a limit lets something through"
        assert burst > 0, "a bucket holds at least one token"
        self._settings = settings
        per_token = _MICROSECONDS_PER_MINUTE / per_minute
        self._rate = (repr(per_token), repr(per_token * burst))
        self._client = settings.client()
        self._free = asyncio.Semaphore(settings.connections_max)

    async def start(self) -> None:
        """Checks the server. Raises `StartRefusedError` for a fault that will not pass by itself, and `Unavailable`
        while the server is away; the limiter can then be used all the same, and connects when it can.
        """
        if self._settings.tls is not None:
            self._settings.tls.check("Valkey")
        try:
            facts = await self._facts()
            problem = _unfit(facts, self._settings)
            if problem is None:
                await self._run(_TRIAL)
        except OperatingFailureError as error:
            advice = _advice(error.__cause__)
            if advice is None:
                raise Unavailable(error.system, error.message) from error
            raise StartRefusedError(f"{self._settings.address}: {error.message}: {advice}") from error
        if problem is not None:
            raise StartRefusedError(f"{self._settings.address}: {problem}")

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def take(self, names: Sequence[str]) -> list[float]:
        """Takes one token for each name, in order; see the port."""
        if not names:
            return []
        answers = await self._run(Counter(names))
        waits: list[float] = []
        for name in names:
            left, wait = answers[name]
            if left:
                answers[name] = (left - 1, wait)
                waits.append(0.0)
            else:
                waits.append(wait)
        return waits

    async def check(self) -> list[Finding]:
        """Says for each of connection, version, permissions and limits whether it is as it has to be, for `doctor`."""
        try:
            facts = await self._facts()
        except OperatingFailureError as error:
            advice = _advice(error.__cause__) or "start it, or correct the address"
            return [Finding("valkey connection", False, f"{self._settings.address}: {error.message}: {advice}")]
        problem = _unfit(facts, self._settings)
        checks = [
            Finding("valkey connection", True, self._settings.address),
            Finding("valkey version", problem is None, problem or facts.name),
        ]
        try:
            await self._run(_TRIAL)
            checks.append(Finding("valkey permissions", True, "the script may run"))
        except OperatingFailureError as error:
            advice = _advice(error.__cause__) or "see the message of the server"
            checks.append(Finding("valkey permissions", False, f"{error.message}: {advice}"))
        # A server that may evict keys forgets buckets, and with them the limits, when memory is short.
        is_kept = facts.memory_bytes_max == 0 or facts.eviction == "noeviction"
        kept = "buckets are never evicted"
        evicted = f"maxmemory-policy is {facts.eviction}: short of memory, it may forget buckets; use noeviction"
        checks.append(Finding("valkey memory", is_kept, kept if is_kept else evicted))
        return checks

    async def _run(self, wanted: dict[str, int]) -> dict[str, tuple[int, float]]:
        """Returns how many tokens were taken for each name, and the seconds until its next one."""
        groups = self._groups(wanted)
        runs: list[Run] = [
            (len(keys), *keys, *self._rate, " ".join(str(wanted[name]) for name in names)) for names, keys in groups
        ]
        async with self._bounded():
            answers = await self._evaluate(runs)
        taken: dict[str, tuple[int, float]] = {}
        for (names, _), answer in zip(groups, answers, strict=True):
            numbers = [int(number) for number in answer.split()]
            for name, count, wait in zip(names, numbers[::2], numbers[1::2], strict=True):
                taken[name] = (count, wait / _MICROSECONDS_PER_SECOND)
        return taken

    async def _evaluate(self, runs: Sequence[Run]) -> list[bytes]:
        """Returns the script's answers in order."""
        answers = await self._send("EVALSHA", _DIGEST, runs)
        # A server that was restarted, or told to forget its scripts, ran nothing, and is sent the text.
        unknown = [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            again = await self._send("EVAL", _SCRIPT, [runs[index] for index in unknown])
            for index, answer in zip(unknown, again, strict=True):
                answers[index] = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    async def _send(self, command: str, script: str, runs: Sequence[Run]) -> list[Any]:
        """Sends all runs at once; returns their answers, or the errors that the server answered instead."""
        if isinstance(self._client, Valkey):
            # On a connection of the pool itself: through the client's registered script a call with one name costs
            # 18% more processor time (10 pairs, median ratio 0.85; with 64 names 1.0).
            [run] = runs
            pool = self._client.connection_pool
            connection = await pool.get_connection(command)  # type: ignore[no-untyped-call]
            try:
                await connection.send_command(command, script, *run)
                return [await connection.read_response()]
            except NoScriptError as error:
                return [error]
            finally:
                # A connection whose answer was not read completely has closed itself; it reopens when it is next used.
                await pool.release(connection)
        pipeline = self._client.pipeline()
        for run in runs:
            pipeline.execute_command(command, script, *run)
        return await pipeline.execute(raise_on_error=False)

    def _groups(self, wanted: dict[str, int]) -> list[tuple[list[str], list[bytes]]]:
        """Returns the names and their keys, in groups whose keys one run of the script may use."""
        prefix = self._settings.prefix
        keys = {name: (prefix + name).encode() for name in wanted}
        if not self._settings.cluster:
            return [(list(keys), list(keys.values()))]
        slots: dict[int, tuple[list[str], list[bytes]]] = {}
        for name, key in keys.items():
            group, group_keys = slots.setdefault(key_slot(key), ([], []))
            group.append(name)
            group_keys.append(key)
        return list(slots.values())

    async def _facts(self) -> ServerFacts:
        async with self._bounded():
            info = await self._client.info()
        return ServerFacts(
            name=f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}",
            version=tuple(int(part) for part in info["redis_version"].split(".")[:2]),
            is_cluster=bool(info["cluster_enabled"]),
            memory_bytes_max=info["maxmemory"],
            eviction=info["maxmemory_policy"],
        )

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        """Bounds the time of a call and the number of connections, and turns failures into those of the ports."""
        seconds = self._settings.deadline_seconds
        try:
            async with asyncio.timeout(seconds), self._free:
                yield
        except TimeoutError as error:
            raise OutcomeUnknown(System.LIMITER, f"no answer in {seconds} s") from error
        except _REFUSALS as error:
            raise Unavailable(System.LIMITER, str(error)) from error
        except (ValkeyError, OSError) as error:
            raise OutcomeUnknown(System.LIMITER, str(error) or type(error).__name__) from error


def _unfit(facts: ServerFacts, settings: ValkeySettings) -> str | None:
    """Returns why a server cannot be used and what to do, or None."""
    if facts.version < REDIS_MIN:
        return f"it is {facts.name}; use Valkey, or Redis {'.'.join(map(str, REDIS_MIN))} or newer"
    if facts.is_cluster and not settings.cluster:
        return "it is part of a cluster; set `cluster`"
    return None


def _advice(cause: BaseException | None) -> str | None:
    """Returns what to do about an error that does not pass by itself, or None for other errors."""
    if _is_of_tls(cause):
        return "correct the certificates: the authority's, and this client's where the server asks for one"
    if isinstance(cause, ValkeyClusterException) and cause.__cause__ is not None:
        cause = cause.__cause__  # The client itself only says that it could ask no node.
    match cause:
        case NoPermissionError() | AuthorizationError():
            return _PERMISSIONS
        case AuthenticationError():
            return "correct user name and password"
        case ResponseError() if "ACL failure" in str(cause) or "user executing the script" in str(cause):
            return _PERMISSIONS
        case ResponseError() if str(cause).startswith(("NOAUTH", "WRONGPASS")):
            return "correct user name and password"
        case ResponseError() | ValkeyClusterException() if "luster mode is not enabled" in str(cause):
            # The client says this also where the user lacks the permission to ask.
            return f"if it is not a cluster, leave `cluster` unset; otherwise {_PERMISSIONS}"
        case _:
            return None


def _is_of_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False
