"""Token buckets in Valkey (or Redis), shared by all gateways.

A batch is one call of one atomic script; in a cluster it is one per hash slot, pipelined per node. The script goes by
the server's clock, so that gateways need not agree on the time. Needs the `valkey` package.
"""

import asyncio
import hashlib
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files

from msgspec import Struct
from valkey.crc import key_slot
from valkey.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    ValkeyClusterException,
    ValkeyError,
)

from internal_transfer.adapters.valkey.settings import (
    Cluster,
    Evaluation,
    Progress,
    Script,
    Server,
    Servers,
    ValkeySettings,
)
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, StartRefusedError, System, Unavailable
from internal_transfer.ports.finding import Finding

REDIS_MIN = (7, 0)
"""The protocol level that is needed: Redis 7.0, which every Valkey has."""

_TEXT = files(__package__).joinpath("rate_limiter.lua").read_text(encoding="utf-8")
_SCRIPT = Script(_TEXT, hashlib.sha1(_TEXT.encode(), usedforsecurity=False).hexdigest())
_TRIAL = {"": 1}
"""What is taken to see whether the script may run: a token of a bucket that is nobody's."""
_MICROSECONDS_PER_SECOND = 1_000_000
_MICROSECONDS_PER_MINUTE = 60 * _MICROSECONDS_PER_SECOND

_PERMISSIONS = (
    "allow its user the keys of the prefix, and +evalsha +eval +get +set +time +info (in a cluster +cluster +command)"
)

_REFUSALS = (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
)
_REFUSAL_CODES = ("BUSY", "MISCONF", "NOAUTH", "NOREPLICAS")
"""What a server answers instead of executing a script, or at its first write: no token was taken."""


class ServerFacts(Struct, frozen=True):
    """What a server says about itself; `version` is the Redis level that it keeps to, for Valkey as well."""

    name: str
    version: tuple[int, ...]
    is_cluster: bool
    memory_bytes_max: int
    eviction: str


class ValkeyRateLimiter:
    """Implements `RateLimiter`: each name may take `burst` tokens at once and gets `per_minute` new ones.

    Limiters with the same settings, rates and key prefix share their buckets, in however many processes. Raises
    `OutcomeUnknown` where tokens may have been taken without an answer; taken or not, nothing has to be put right.
    """

    def __init__(self, settings: ValkeySettings, *, per_minute: int, burst: int) -> None:
        assert per_minute > 0, "a limit lets something through"
        assert burst > 0, "a bucket holds at least one token"
        self._settings = settings
        per_token = _MICROSECONDS_PER_MINUTE / per_minute
        self._rate = (repr(per_token), repr(per_token * burst))
        self._servers: Servers = Cluster(settings) if settings.cluster else Server(settings)
        self._free = asyncio.Semaphore(settings.connections_max)

    async def start(self) -> None:
        """Checks the server; raises `StartRefusedError` for what will not pass by itself, `Unavailable` while it is
        away: then the limiter may be used all the same, and connects when it can.
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
        await self._servers.close()

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
        # Without a key to be evicted the limits hold; with eviction they are forgotten first when memory is short.
        is_kept = facts.memory_bytes_max == 0 or facts.eviction == "noeviction"
        kept = "buckets are never evicted"
        evicted = f"maxmemory-policy is {facts.eviction}: short of memory, buckets may be forgotten; use noeviction"
        checks.append(Finding("valkey memory", is_kept, kept if is_kept else evicted))
        return checks

    async def _run(self, wanted: dict[str, int]) -> dict[str, tuple[int, float]]:
        """How many tokens were taken for each name, and the seconds until its next one."""
        groups = self._groups(wanted)
        async with self._deadline() as progress:
            runs = [
                Evaluation(keys, (*self._rate, " ".join(str(wanted[name]) for name in group))) for group, keys in groups
            ]
            answers = await self._servers.evaluate(_SCRIPT, runs, progress)
        taken: dict[str, tuple[int, float]] = {}
        for (group, _), answer in zip(groups, answers, strict=True):
            numbers = [int(number) for number in answer.split()]
            for name, count, wait in zip(group, numbers[::2], numbers[1::2], strict=True):
                taken[name] = (count, wait / _MICROSECONDS_PER_SECOND)
        return taken

    def _groups(self, wanted: dict[str, int]) -> list[tuple[list[str], list[bytes]]]:
        """The names with their keys, in groups that one script may touch."""
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
        async with self._deadline() as progress:
            info = await self._servers.info(progress)
        return ServerFacts(
            name=f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}",
            version=tuple(int(part) for part in info["redis_version"].split(".")[:2]),
            is_cluster=info["cluster_enabled"] == "1",
            memory_bytes_max=int(info["maxmemory"]),
            eviction=info["maxmemory_policy"],
        )

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[Progress]:
        """Bounds what is inside in time, and the connections in number; tells failures in the words of the ports."""
        progress = Progress()
        try:
            async with asyncio.timeout(self._settings.deadline_seconds), self._free:
                yield progress
        except TimeoutError as error:
            raise _failure(progress, f"no answer in {self._settings.deadline_seconds} s") from error
        except (*_REFUSALS, ResponseError) as error:
            if isinstance(error, _REFUSALS) or str(error).startswith(_REFUSAL_CODES):
                progress.is_sent = False
            raise _failure(progress, str(error)) from error
        except (ValkeyError, ValkeyClusterException, OSError) as error:
            raise _failure(progress, str(error) or type(error).__name__) from error


def _failure(progress: Progress, message: str) -> OperatingFailureError:
    return (OutcomeUnknown if progress.is_sent else Unavailable)(System.LIMITER, message)


def _unfit(facts: ServerFacts, settings: ValkeySettings) -> str | None:
    """Why a server cannot be used, and what to do; None where it can."""
    if facts.version < REDIS_MIN:
        return f"it is {facts.name}; use Valkey, or Redis {'.'.join(map(str, REDIS_MIN))} or newer"
    if facts.is_cluster and not settings.cluster:
        return "it is a node of a cluster; set `cluster`"
    return None


def _advice(cause: BaseException | None) -> str | None:
    """What to do about an error that does not pass by itself; None for all others."""
    if _is_of_tls(cause):
        return "correct the certificates: the authority's for the server, and the client's where the server wants one"
    if isinstance(cause, ValkeyClusterException) and cause.__cause__ is not None:
        cause = cause.__cause__  # It only says that no node could be asked.
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
            # The client says so too where the user may not ask.
            return f"if it is no cluster, leave `cluster` unset; else {_PERMISSIONS}"
        case _:
            return None


def _is_of_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False
