"""Systems that answer and do not serve: full, with too many clients, of the wrong version, or refusing the password."""

import asyncio
import ctypes
import shutil
import struct
import subprocess
from contextlib import contextmanager
from uuid import uuid4

import psycopg
import pytest
from tigerbeetle import bindings

import real_servers
from contracts.silent_proxy import SilentProxy
from internal_transfer.adapters.tigerbeetle import session as tigerbeetle_session
from internal_transfer.adapters.tigerbeetle.ledger import TigerBeetleLedger, TigerBeetleSettings
from internal_transfer.ports.errors import OutcomeUnknown, StartRefusedError
from internal_transfer.simulation.scenarios.catalogue import ONE_PROCESS, STANDARD, new_server
from internal_transfer.simulation.scenarios.server_process import run_program
from internal_transfer.simulation.scenarios.surroundings import StackKind
from system.told import (
    expect_unavailable,
    found_wrong,
    start_refused,
    until_final,
    until_ready,
    until_unready,
)

POSTGRESQL = StackKind.POSTGRESQL


@contextmanager
def on_a_small_disk(server, folder, mebibytes):
    """Puts a folder of a server on a file system of this size; `fill` leaves nothing of it, `make_room` undoes that."""
    if shutil.which("mount") is None:
        pytest.skip("needs mount (Debian: apt install mount), and root")
    server.stop()
    aside = folder.with_name(f"{folder.name}-aside")
    folder.rename(aside)
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0700", "tmpfs", str(folder)]
    mounted = subprocess.run(mounting, check=False, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no small file system may be mounted here: {mounted.stderr.strip()}")
    try:
        subprocess.run(["cp", "-a", f"{aside}/.", str(folder)], check=True)
        server.start()
        yield Ballast(folder / "ballast")
    finally:
        server.kill()
        subprocess.run(["umount", str(folder)], check=True)


class Ballast:
    """A file that takes all the room that is left."""

    def __init__(self, file):
        self._file = file

    def fill(self):
        """Takes all the room."""
        with self._file.open("wb", buffering=0) as file:
            for size in (1 << 20, 4096):
                while has_taken(file, size):
                    pass
        assert shutil.disk_usage(self._file.parent).free == 0

    def make_room(self):
        """Gives the room back."""
        self._file.unlink()


def has_taken(file, size):
    """Writes this many bytes more, and tells whether there was room for them."""
    try:
        return file.write(bytes(size)) == size
    except OSError:
        return False


async def test_a_postgresql_with_a_full_disk(place, environment):
    """Requests that find no room get 503 with Retry-After and nothing recorded; readiness, the log and `doctor` say
    that the disk is full; with room again the same keys succeed (G16).
    """
    with real_servers.own("postgresql") as postgresql:
        [data] = postgresql.folder.glob("data-*")
        with on_a_small_disk(postgresql, data, 256) as ballast:
            environment(POSTGRESQL, postgresql=postgresql.address())
            async with new_server(place, ONE_PROCESS, POSTGRESQL) as server:
                await server.start()
                user = await server.fund("patient", "1000")
                ballast.fill()
                # Pages that are there already have room for some.
                for key in map(str, range(1000)):
                    response = await user.move("funding", "spot", "1", key=key, wait_seconds=0)
                    if response.status_code == 503:
                        break
                expect_unavailable(response)
                await until_unready(server, "disk is full")
                assert "disk is full" in (await found_wrong(server, server.surroundings.environment))["server"]
                assert "disk is full" in server.log.read_text()
                ballast.make_room()
                await until_ready(server)
                for each in range(int(key) + 1):
                    assert (await until_final(user, str(each)))["status"] == "SUCCESS"
                await server.expect_clean()


@pytest.mark.full
async def test_a_kafka_with_a_full_disk(place, environment):
    """A broker that cannot write ends itself: transfers stay PENDING and readiness says why; with room again and the
    broker started, all are finished (G10).
    """
    with real_servers.own("kafka") as kafka, on_a_small_disk(kafka, kafka.folder / "data", 128) as ballast:
        environment(POSTGRESQL, kafka=kafka.address())
        async with new_server(place, STANDARD, POSTGRESQL) as server:
            await server.start()
            user = await server.fund("patient", "1000")
            ballast.fill()
            keys = []
            while kafka.is_running():
                keys.append(f"{len(keys)}")
                response = await user.move("funding", "spot", "1", key=keys[-1], wait_seconds=0)
                assert response.status_code in {201, 202}, response.text
            assert response.json()["status"] == "PENDING"
            await until_unready(server, "Kafka")
            ballast.make_room()
            await asyncio.to_thread(kafka.start)
            for key in keys:
                assert (await until_final(user, key))["status"] == "SUCCESS"
            await until_ready(server)
            await server.expect_clean()


@pytest.fixture
def limited():
    """The address of a database of the shared PostgreSQL for a role whose connections can be limited."""
    address = real_servers.need("postgresql")
    name = f"limited_{uuid4().hex[:12]}"
    with psycopg.connect(address.dsn, autocommit=True) as root:
        root.execute(f"CREATE ROLE {name} LOGIN")
        root.execute(f"CREATE DATABASE {name} OWNER {name}")
        yield root, name, f"postgresql://{name}@{address.host}:{address.port}/{name}"
        root.execute(f"DROP DATABASE {name} WITH (FORCE)")
        root.execute(f"DROP ROLE {name}")


async def test_a_postgresql_with_too_many_clients(place, environment, monkeypatch, limited):
    """Where the server takes no more connections requests get 503 with Retry-After and nothing recorded; readiness and
    `doctor` say what to raise or lower (G16).
    """
    root, name, url = limited
    environment(POSTGRESQL)
    monkeypatch.setenv("POSTGRESQL_DSN", url)
    async with new_server(place, ONE_PROCESS, POSTGRESQL) as server:
        await server.start()
        user = await server.fund("patient", "100")
        root.execute(f"ALTER ROLE {name} CONNECTION LIMIT 0")
        root.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [name])
        expect_unavailable(await user.move("funding", "spot", "1", key="k"), recorded=(False, None))
        await until_unready(server, "takes no more connections", "raise max_connections")
        expect_unavailable(await user.move("funding", "spot", "1", key="k"))
        wrong = await found_wrong(server, server.surroundings.environment)
        assert "takes no more connections" in wrong["store (postgresql)"]
        root.execute(f"ALTER ROLE {name} CONNECTION LIMIT -1")
        await until_ready(server)
        assert (await until_final(user, "k"))["status"] == "SUCCESS"
        await server.expect_clean()


@pytest.fixture
def embedded(place, monkeypatch):
    """Makes a server in an empty directory that is embedded but for one system, and is not started."""

    def server_on(settings, **secrets):
        for name, value in secrets.items():
            monkeypatch.setenv(f"INTERNAL_TRANSFER_{name}", value)
        server = new_server(place, ONE_PROCESS)
        server.config.write_text(server.config.read_text() + settings)
        return server

    return server_on


def with_others(store):
    """The settings for a store; it is opened first, so that nothing is at the places of ledger and core."""
    kafka = f'[kafka]\nservers = ["{real_servers.need("kafka").bootstrap}"]\nprefix = "nothing"\n'
    ledger = '[ledger_socket]\ndata = "nothing"\n'
    return f'{kafka}{ledger}[systems]\nledger = "socket"\ncore = "kafka"\nstore = "{store}"\n'


async def expect_refused(server, check, *words):
    """A start that ends with these words, which `doctor` finds too."""
    refused, wrong = await start_refused(server), await found_wrong(server)
    for word in words:
        assert word in refused
        assert word in wrong[check], wrong


async def test_a_postgresql_that_is_too_old(embedded, limited):
    """A server that says it is PostgreSQL 14 refuses the start, which tells its version and the one that is needed."""
    root, _, _ = limited
    true = struct.pack(">i", root.info.server_version)
    async with SilentProxy(root.info.port, instead=[(true, struct.pack(">i", 140_012))]) as proxy:
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
        server = embedded(with_others("postgresql"), POSTGRES_URL=url)
        await expect_refused(server, "store (postgresql)", "server version: 14.12; 15 or newer is needed")


async def test_a_cassandra_that_is_too_old(embedded):
    """A server that says it is Cassandra 3.0 refuses the start: its serial reads could contradict each other."""
    address = real_servers.need("cassandra")
    async with SilentProxy(address.port, instead=[(b"5.0.", b"3.0.")]) as proxy:
        settings = with_others("cassandra") + f'[cassandra]\nhosts = ["127.0.0.1"]\nport = {proxy.port}\n'
        await expect_refused(embedded(settings), "store (cassandra)", "Cassandra 3.0", "4.0 or newer")


async def test_a_valkey_that_is_too_old(embedded):
    """A server that says it is of Redis 6 refuses the start, which tells the version that is needed."""
    address = real_servers.need("valkey")
    instead = [(b"redis_version:7", b"redis_version:6"), (b"valkey_version", b"nobody_version")]
    async with SilentProxy(address.port, instead=instead) as proxy:
        server = embedded('[systems]\nrate_limiter = "valkey"\n', REDIS_URL=f"valkey://127.0.0.1:{proxy.port}")
        refused = await start_refused(server)
        assert "it is Redis 6" in refused
        assert "use Valkey, or Redis 7.0 or newer" in refused
        assert "Redis 7.0 or newer" in " ".join((await found_wrong(server)).values())


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (bindings.PacketStatus.CLIENT_RELEASE_TOO_LOW, "is too old for the server"),
        (bindings.PacketStatus.CLIENT_RELEASE_TOO_HIGH, "is too new for the server"),
    ],
)
async def test_a_tigerbeetle_of_another_release(monkeypatch, status, words):
    """A client that the cluster evicts for its release refuses the start, with both what is wrong and what to do; one
    that was connected while the servers were upgraded has an unknown outcome, with the same words.
    """
    answers = [bindings.PacketStatus.OK, status]

    def submit(_client, reference):
        """Calls back as the library does, with what a cluster of another release would have it say."""
        packet = ctypes.cast(reference, ctypes.POINTER(bindings.CPacket))
        packet.contents.status = int(answers[0])
        tigerbeetle_session.completed(max(tigerbeetle_session.sessions), packet, 0, None, 0)
        return bindings.ClientStatus.OK

    monkeypatch.setattr(bindings, "tb_client_submit", submit)
    settings = TigerBeetleSettings(cluster_id=0, addresses=("127.0.0.1:9",))
    upgraded = TigerBeetleLedger(settings)
    await upgraded.start()
    answers.pop(0)
    with pytest.raises(OutcomeUnknown, match=words):
        await upgraded.lookup_accounts([1])
    await upgraded.close()
    other = TigerBeetleLedger(settings)
    with pytest.raises(StartRefusedError, match=f"{words}: install the client's release that matches the server"):
        await other.start()
    await other.close()


def secured(system, password):
    """The settings and secrets for a server that wants another password, and the check of `doctor` about it."""
    address = real_servers.need(system, secured=True)
    place = f"{address.host}:{address.port}"
    match system:
        case "postgresql":
            login = f"{address.user}:{password}" if password else address.user
            url = f"postgresql://{login}@{place}/postgres"
            return with_others("postgresql"), {"POSTGRES_URL": url}, "store (postgresql)"
        case "cassandra":
            settings = f'[cassandra]\nhosts = ["{address.host}"]\nport = {address.port}\nuser = "{address.user}"\n'
            return with_others("cassandra") + settings, {"CQL_PASSWORD": password}, "store (cassandra)"
        case "kafka":
            settings = f'[systems]\ncore = "kafka"\n[kafka]\nservers = ["{place}"]\nuser = "{address.user}"\n'
            return f'{settings}mechanism = "PLAIN"\n', {"KAFKA_PASSWORD": password}, "core (kafka)"
        case "valkey":
            secrets = {"REDIS_URL": f"valkey://:{password}@{place}"}
            return '[systems]\nrate_limiter = "valkey"\n', secrets, "rate_limiter (valkey)"


WRONG = "wrong-one"


@pytest.mark.parametrize(
    ("system", "password"),
    [("postgresql", WRONG), ("postgresql", None), ("cassandra", WRONG), ("kafka", WRONG), ("valkey", WRONG)],
)
async def test_a_refused_password(embedded, system, password):
    """A wrong password, and none, refuse the start and `migrate`, and fail `doctor`, with words that say so and without
    showing the password.
    """
    settings, secrets, check = secured(system, password)
    server = embedded(settings, **secrets)
    told = [await start_refused(server), (await found_wrong(server))[check]]
    if system != "valkey":
        ran = await run_program("migrate", "--config", str(server.config))
        assert ran.exit_code == 1
        told.append(ran.errors.splitlines()[-1])
    for words in told:
        assert "password" in words
        assert WRONG not in words
