"""Real servers for tests: started on first use, shared by the runs of a checkout, ended by the last that uses them.

A test that needs a server calls `need("postgresql")` and gets its address; it uses a schema, keyspace or prefix of its
own. A test that kills or pauses its server takes one of its own from `own("postgresql")`.

`REQUIRE_SERVERS=1` turns the skip for a missing server into a failure (TigerBeetle's excepted, which no registry has);
`SERVERS_KEEP=1` leaves the servers running after the tests.
"""

import atexit
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, overload

import pytest

# The package `servers` lies beside `tests` in a checkout, and is not installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from servers import place, roster
from servers.cassandra import Cassandra, CassandraAddress
from servers.kafka import Kafka, KafkaAddress
from servers.postgresql import Postgresql, PostgresqlAddress
from servers.server import Server
from servers.tigerbeetle import TigerBeetle, TigerBeetleAddress, named_address
from servers.trouble import Missing
from servers.valkey import Valkey, ValkeyAddress

__all__ = [
    "Missing",
    "Server",
    "cassandra",
    "do_without",
    "kafka",
    "need",
    "own",
    "postgresql",
    "tigerbeetle",
    "valkey",
]

_NEVER_REQUIRED = {"tigerbeetle"}

A = TypeVar("A")

# The shared servers that this run uses, each with the open file whose lock says so to other runs.
_uses: dict[str, tuple[Server[Any], int]] = {}


def postgresql(*, secured: bool = False) -> PostgresqlAddress:
    """The shared PostgreSQL, started when needed. Raises Missing."""
    return _shared(Postgresql(secured=secured))


def kafka(*, secured: bool = False) -> KafkaAddress:
    """The shared Kafka, started when needed. Raises Missing."""
    return _shared(Kafka(secured=secured))


def cassandra(*, secured: bool = False) -> CassandraAddress:
    """The shared Cassandra, started when needed. Raises Missing."""
    return _shared(Cassandra(secured=secured))


def valkey(*, secured: bool = False) -> ValkeyAddress:
    """The shared Valkey, started when needed. Raises Missing."""
    return _shared(Valkey(secured=secured))


def tigerbeetle() -> TigerBeetleAddress:
    """The TigerBeetle of TIGERBEETLE_ADDRESS, or the shared one, started when needed. Raises Missing."""
    return named_address() or _shared(TigerBeetle())


@overload
def need(name: Literal["postgresql"], *, secured: bool = ...) -> PostgresqlAddress: ...
@overload
def need(name: Literal["kafka"], *, secured: bool = ...) -> KafkaAddress: ...
@overload
def need(name: Literal["cassandra"], *, secured: bool = ...) -> CassandraAddress: ...
@overload
def need(name: Literal["valkey"], *, secured: bool = ...) -> ValkeyAddress: ...
@overload
def need(name: Literal["tigerbeetle"], *, secured: bool = ...) -> TigerBeetleAddress: ...
def need(name: str, *, secured: bool = False) -> Any:
    """The shared server's address; where there can be none, the test is skipped, or fails with REQUIRE_SERVERS=1."""
    try:
        match name:
            case "postgresql":
                return postgresql(secured=secured)
            case "kafka":
                return kafka(secured=secured)
            case "cassandra":
                return cassandra(secured=secured)
            case "valkey":
                return valkey(secured=secured)
            case "tigerbeetle":
                assert not secured, "TigerBeetle knows no passwords"
                return tigerbeetle()
            case _:
                raise AssertionError(f"there is no server {name}")
    except Missing as reason:
        do_without(name, reason)


@contextmanager
def own(name: str, *, secured: bool = False) -> Iterator[Server[Any]]:
    """A started server that only this test knows: it may stop, kill, pause and start it again. Removed at the end."""
    server = roster.KINDS[name](f"own-{os.getpid()}-{os.urandom(4).hex()}", secured=secured)
    try:
        try:
            server.start()
        except Missing as reason:
            do_without(name, reason)
        yield server
    finally:
        server.remove()


def do_without(name: str, reason: Missing) -> NoReturn:
    """Skips the test for what is missing, or fails it with REQUIRE_SERVERS=1."""
    if os.environ.get("REQUIRE_SERVERS") == "1" and name not in _NEVER_REQUIRED:
        pytest.fail(f"REQUIRE_SERVERS=1, and {name} is missing: {reason}")
    pytest.skip(f"{name} is missing: {reason}")


def _shared(server: Server[A]) -> A:
    use = f"{server.name}-{server.instance}"
    with place.locked(f"use-{use}"):
        if use not in _uses:
            descriptor = os.open(place.root() / f"users-{use}.lock", os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            _uses[use] = server, descriptor
        return server.start(kept=os.environ.get("SERVERS_KEEP") == "1")


def _leave(process_id: int) -> None:
    """Ends the servers that this run used, but not those that another run uses or that were started to stay."""
    if os.getpid() != process_id:
        return
    for use, (server, descriptor) in _uses.items():
        with place.locked(f"use-{use}"):
            record = server.record()
            alone = place.try_lock(descriptor, fcntl.LOCK_EX)
            if alone and record is not None and not record.kept:
                server.stop()
            os.close(descriptor)


roster.sweep()
atexit.register(_leave, os.getpid())
