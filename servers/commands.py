"""What `python -m servers` does: starts and stops servers, and says where they are."""

import sys

import msgspec

from servers import roster
from servers.cassandra import CassandraAddress
from servers.kafka import KafkaAddress
from servers.postgresql import PostgresqlAddress
from servers.tigerbeetle import TigerBeetleAddress
from servers.trouble import FailedError, Missing
from servers.valkey import ValkeyAddress


def carry_out(command: str, names: list[str], *, secured: bool) -> int:
    """Carries out one command; returns 1 when a server that this machine can run did not start."""
    match command:
        case "start":
            return _start(names, secured=secured)
        case "stop":
            for server in roster.known():
                if server.name in names and server.is_running():
                    server.stop()
                    _say(f"{server.name}-{server.instance}: stopped")
        case "status":
            for server in roster.known():
                state = f"running at {_show(server.address())}" if server.is_running() else "not running"
                _say(f"{server.name}-{server.instance}: {state}")
        case "env":
            for server in roster.known():
                if server.name in names and server.secured == secured and server.is_running():
                    _say(f"export {_variable(server.address())}")
        case _:
            raise AssertionError(command)
    return 0


def _start(names: list[str], *, secured: bool) -> int:
    code = 0
    for name, outcome in roster.start_all(names, secured=secured).items():
        match outcome:
            case Missing():
                _say(f"{name}: SKIPPED: {outcome}")
            case FailedError():
                _say(f"{name}: FAILED: {outcome}")
                code = 1
            case _:
                _say(f"{name}: running at {_show(outcome)}")
    return code


def _show(address: msgspec.Struct) -> str:
    fields = msgspec.structs.asdict(address)
    return " ".join(f"{key}={value}" for key, value in fields.items() if value is not None)


def _variable(address: msgspec.Struct) -> str:
    """Returns the shell variable that tells a trial where the server is."""
    match address:
        case PostgresqlAddress():
            return f"POSTGRESQL_DSN={address.dsn}"
        case KafkaAddress():
            return f"KAFKA_BOOTSTRAP={address.bootstrap}"
        case CassandraAddress():
            return f"CASSANDRA_ADDRESS={address.host}:{address.port}"
        case ValkeyAddress():
            return f"VALKEY_URL={address.url}"
        case TigerBeetleAddress():
            return f"TIGERBEETLE_ADDRESS={address.address}"
        case _:
            raise AssertionError(address)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
