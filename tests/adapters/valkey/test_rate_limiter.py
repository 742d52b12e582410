"""The rate limiter on Valkey: shared by processes; on a server that fails, restarts or refuses; on a cluster."""

import asyncio
import os
import ssl
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from servers.valkey import Valkey as ValkeyServer
from valkey.asyncio import Valkey

from contracts.rate_limiters import BURST, PER_MINUTE, SECONDS_PER_TOKEN, ValkeyLimits
from internal_transfer.adapters.valkey.rate_limiter import ValkeyRateLimiter
from internal_transfer.adapters.valkey.settings import ValkeySettings
from internal_transfer.ports.errors import OutcomeUnknown, StartRefusedError, Unavailable
from internal_transfer.settings.tls import TlsFiles
from real_servers import need, own


@pytest.fixture
async def limits():
    """A limiter on the shared server."""
    limits = ValkeyLimits(need("valkey"))
    yield limits
    await limits.close()


@pytest.fixture
async def owned():
    """A server for one test, and a limiter on it."""
    with own("valkey") as server:
        limits = ValkeyLimits(server.address())
        yield server, limits
        await limits.close()


@contextmanager
def started(server):
    """A server of an unusual kind, for as long as the test needs it."""
    need("valkey")
    try:
        yield server.start()
    finally:
        server.remove()


def another(limits, **changes):
    """A limiter with the same settings, or some others, on the same server."""
    fields = {name: getattr(limits.settings, name) for name in ValkeySettings.__struct_fields__}
    return ValkeyRateLimiter(ValkeySettings(**fields | changes), per_minute=PER_MINUTE, burst=BURST)


async def test_two_limiters_share_a_bucket(limits):
    """A token that one gateway takes is gone for the others, even when both ask at the same time."""
    second = another(limits)
    answers = await asyncio.gather(*(limiter.take(["alice"] * 2) for limiter in (limits.limiter, second)))
    assert sorted(answers[0] + answers[1]) == [0.0, 0.0, 0.0, limits.about(SECONDS_PER_TOKEN)]
    await second.close()


async def test_another_prefix_is_another_bucket(limits):
    """Two services on one server do not share buckets unless they share the prefix."""
    second = another(limits, prefix=limits.settings.prefix + "other:")
    await limits.limiter.take(["alice"] * BURST)
    assert await second.take(["alice"]) == [0.0]
    await second.close()


async def test_more_at_a_time_than_connections(limits):
    """Calls wait for one of a bounded number of connections, and each gets its own answer."""
    small = another(limits, connections_max=2)
    answers = await asyncio.gather(*(small.take([f"name-{n}"] * (BURST + n % 2)) for n in range(50)))
    assert [answer.count(0.0) for answer in answers] == [BURST] * 50
    assert [len(answer) for answer in answers] == [BURST + n % 2 for n in range(50)]
    assert (await limits.server.info("clients"))["connected_clients"] < 40
    await small.close()


async def test_buckets_expire_when_they_are_full(limits):
    """A bucket expires when it is full again, so that the server holds only those in use."""
    await limits.limiter.take(["alice", "bob", "bob"])
    lives = {
        key.decode().removeprefix(limits.settings.prefix): await limits.server.pttl(key) for key in await limits.keys()
    }
    assert 0 < lives["alice"] <= SECONDS_PER_TOKEN * 1000 < lives["bob"] <= 2 * SECONDS_PER_TOKEN * 1000


async def test_a_refusal_leaves_no_trace(limits):
    """Asking in vain writes nothing, so it costs the server's replicas nothing."""
    await limits.limiter.take(["alice"] * BURST)
    [key] = await limits.keys()
    before = await limits.server.get(key)
    await limits.limiter.take(["alice"])
    assert await limits.server.get(key) == before


async def test_the_servers_clock_set_back(limits):
    """When the server's clock steps back by a day, an empty bucket is empty, and no worse."""
    await limits.limiter.take(["alice"] * BURST)
    await limits.advance(-86_400.0)
    assert await limits.limiter.take(["alice"]) == [limits.about(SECONDS_PER_TOKEN)]
    await limits.advance(SECONDS_PER_TOKEN)
    assert await limits.limiter.take(["alice"]) == [0.0]


@pytest.mark.parametrize(("per_minute", "burst"), [(1, 1), (7, 5), (60_000, 1_000), (6_000_000, 100_000)])
async def test_every_rate_gives_its_burst(per_minute, burst):
    """Fractions of a microsecond neither add a token to a burst nor take one away."""
    limits = ValkeyLimits(need("valkey"), per_minute=per_minute, burst=burst)
    taken = (await limits.limiter.take(["alice"] * (burst + 2))).count(0.0)
    await limits.close()
    assert taken == burst


async def test_a_smaller_burst_after_a_restart(limits):
    """A bucket that a larger burst had emptied further counts as empty under the smaller one."""
    large = ValkeyRateLimiter(limits.settings, per_minute=PER_MINUTE, burst=100)
    await large.take(["alice"] * 100)
    assert await limits.limiter.take(["alice"]) == [limits.about(SECONDS_PER_TOKEN)]
    await large.close()


async def test_scripts_flushed(limits):
    """A server that forgot its scripts is told the script again, and the token is taken once."""
    await limits.limiter.take(["alice"])
    await limits.server.script_flush()
    assert await limits.limiter.take(["alice"] * 3) == [0.0, 0.0, limits.about(SECONDS_PER_TOKEN)]


async def test_killed_and_restarted(owned):
    """Without a server every call is unknown; when the server is back, so is the limiter."""
    server, limits = owned
    await limits.limiter.start()
    assert await limits.limiter.take(["alice"]) == [0.0]
    server.kill()
    for _ in range(2):
        with pytest.raises(OutcomeUnknown):
            await limits.limiter.take(["alice"])
    with pytest.raises(Unavailable):
        await limits.limiter.start()
    assert [ok for _, ok, _ in await limits.limiter.check()] == [False]
    server.start()
    assert await limits.limiter.take(["alice"] * BURST) == [0.0] * BURST


async def test_a_server_that_does_not_answer(owned):
    """A call without an answer in time is unknown, and its late answer is not taken for another call's."""
    server, limits = owned
    hasty = another(limits, deadline_seconds=0.1, connections_max=1)
    patient = another(limits, connections_max=1)
    assert await hasty.take(["alice"]) == [0.0]
    server.pause()
    with pytest.raises(OutcomeUnknown):
        await hasty.take(["alice"] * 2)
    server.resume()
    assert await patient.take(["bob"]) == [0.0]
    answers = await another_answer(hasty)
    assert answers == [0.0] * BURST
    await hasty.close()
    await patient.close()


async def another_answer(limiter):
    """Takes the burst of a new name; tries again with another name while the server is still slow."""
    for number in range(100):
        try:
            return await limiter.take([f"fresh-{number}"] * BURST)
        except (OutcomeUnknown, Unavailable):
            continue
    raise AssertionError("the server did not come back")


async def test_wrong_password(owned):
    """A refused password stops the start with what to do; at run time it makes the limiter unavailable."""
    _, limits = owned
    await limits.server.config_set("requirepass", "right")
    for password in ("wrong", None):
        limiter = another(limits, password=password)
        with pytest.raises(StartRefusedError, match="correct user name and password"):
            await limiter.start()
        with pytest.raises(Unavailable):
            await limiter.take(["alice"])
        [(name, ok, message)] = await limiter.check()
        assert (name, ok) == ("valkey connection", False)
        assert "correct user name and password" in message
        await limiter.close()
    right = another(limits, password="right")
    await right.start()
    assert await right.take(["alice"]) == [0.0]
    await right.close()


PERMISSIONS = ["+evalsha", "+eval", "+get", "+set", "+time", "+info"]


@pytest.mark.parametrize("missing", ["+evalsha", "+set", "+info", "keys"])
async def test_missing_permissions(owned, missing):
    """A user without one of the permissions is refused at the start, which names all that are needed."""
    _, limits = owned
    keys = "~elsewhere:*" if missing == "keys" else f"~{limits.settings.prefix}*"
    granted = [permission for permission in PERMISSIONS if permission != missing]
    await limits.server.execute_command("ACL", "SETUSER", "gate", "on", ">secret", keys, *granted)
    limiter = another(limits, username="gate", password="secret")
    with pytest.raises(StartRefusedError, match=r"\+evalsha \+eval \+get \+set \+time \+info"):
        await limiter.start()
    assert not all(ok for _, ok, _ in await limiter.check())
    await limiter.close()


async def test_the_permissions_that_are_named_are_enough(owned):
    """A user with just the permissions that the refusal names can start, take and be checked."""
    _, limits = owned
    await limits.server.execute_command(
        "ACL", "SETUSER", "gate", "on", ">secret", f"~{limits.settings.prefix}*", *PERMISSIONS
    )
    limiter = another(limits, username="gate", password="secret")
    await limiter.start()
    assert await limiter.take(["alice"]) == [0.0]
    assert all(ok for _, ok, _ in await limiter.check())
    await limiter.close()


async def test_eviction_is_told(owned):
    """`doctor` warns where the server may evict buckets when memory is short."""
    _, limits = owned
    assert [ok for _, ok, _ in await limits.limiter.check()] == [True] * 4
    await limits.server.config_set("maxmemory-policy", "allkeys-lru")
    assert [(name, ok) for name, ok, _ in await limits.limiter.check()][-1] == ("valkey memory", False)


async def test_out_of_memory_takes_nothing(owned):
    """A server that is out of memory refuses before anything is taken."""
    _, limits = owned
    await limits.server.config_set("maxmemory", "1")
    with pytest.raises(Unavailable):
        await limits.limiter.take(["alice"])
    await limits.server.config_set("maxmemory", "0")
    assert await limits.limiter.take(["alice"] * BURST) == [0.0] * BURST


async def test_a_replica_takes_nothing(owned):
    """A read-only replica refuses before anything is taken."""
    _, limits = owned
    await limits.server.execute_command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(Unavailable):
        await limits.limiter.take(["alice"])


def test_settings_show_no_password():
    """The password is in no representation of the settings."""
    assert "secret" not in repr(ValkeySettings(host="h", username="u", password="secret"))


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("valkey://h", ValkeySettings(host="h")),
        ("redis://:p%40ss@h:7000/2", ValkeySettings(host="h", port=7000, password="p@ss", database=2)),
        ("rediss://u:p@[::1]", ValkeySettings(host="::1", username="u", password="p", tls=TlsFiles())),
        ("valkeys://h?cluster=true&prefix=x:", ValkeySettings(host="h", cluster=True, prefix="x:", tls=TlsFiles())),
    ],
)
def test_settings_of_a_url(url, settings):
    """A URL says where, as whom, encrypted or not, and under which keys."""
    assert ValkeySettings.of_url(url) == settings


@pytest.mark.parametrize(("url", "is_encrypted"), [("valkeys://h", False), ("valkey://h", True)])
def test_the_certificates_go_with_an_encrypted_url(url, is_encrypted):
    """Whether the URL asks for TLS or the settings do, the certificates of the settings are used."""
    files = TlsFiles(ca_file="ca.pem")
    assert ValkeySettings.of_url(url, files=files, is_encrypted=is_encrypted).tls == files


async def test_a_tls_file_that_is_not_there(tmp_path):
    """A certificate that cannot be read refuses the start and is named."""
    settings = ValkeySettings(host="localhost", tls=TlsFiles(ca_file=str(tmp_path / "no-such.pem")))
    with pytest.raises(StartRefusedError, match=r"no-such\.pem"):
        await ValkeyRateLimiter(settings, per_minute=1, burst=1).start()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h:6379",
        "http://secret@h",
        "valkey://:secret@",
        "valkey://:secret@h:port",
        "valkey://:secret@h/x",
        "valkey://:secret@h?database=1",
        "valkey://:secret@h?cluster=yes",
        "valkey://:secret@h?cluster",
    ],
)
def test_an_unreadable_url_is_refused_without_being_shown(url):
    """A malformed URL stops the start with a message that shows the form, but not the password."""
    with pytest.raises(StartRefusedError, match=r"its form is|not of the form") as refused:
        ValkeySettings.of_url(url)
    assert "secret" not in str(refused.value)


# A cluster.


class ClusterNode(ValkeyServer):
    """A cluster of one node, which keeps the rules of a cluster of many."""

    def configure(self):
        return [*super().configure(), "--cluster-enabled", "yes", "--save", ""]


@pytest.fixture
async def cluster():
    """A limiter on a cluster."""
    with started(ClusterNode(f"cluster-{os.getpid()}-{os.urandom(4).hex()}")) as address:
        async with Valkey(host=address.host, port=address.port) as node:
            await node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            while b"cluster_state:ok" not in await node.execute_command("CLUSTER", "INFO"):
                pass
        limits = ValkeyLimits(address, cluster=True)
        yield limits
        await limits.close()


async def test_a_batch_over_many_slots(cluster):
    """In a cluster the names of a batch have many hash slots; each gets what it would get alone."""
    names = [f"name-{number}" for number in range(200)]
    await cluster.limiter.start()
    assert await cluster.limiter.take(names * BURST) == [0.0] * 200 * BURST
    assert await cluster.limiter.take(names) == [cluster.about(SECONDS_PER_TOKEN)] * 200


async def test_permissions_in_a_cluster(cluster):
    """With just the permissions that the refusal names a cluster can be used; without one it is refused."""
    await cluster.limiter.start()
    user = ("ACL", "SETUSER", "gate", "on", ">secret", f"~{cluster.settings.prefix}*", *PERMISSIONS)
    await cluster.server.execute_command(*user)
    limiter = another(cluster, username="gate", password="secret")
    with pytest.raises(StartRefusedError, match=r"\+cluster"):
        await limiter.start()
    await limiter.close()
    await cluster.server.execute_command(*user, "+cluster", "+command")
    limiter = another(cluster, username="gate", password="secret")
    await limiter.start()
    assert await limiter.take(["alice"]) == [0.0]
    await limiter.close()


async def test_wrong_password_in_a_cluster(cluster):
    """A refused password stops the start here too."""
    await cluster.server.config_set("requirepass", "right")
    limiter = another(cluster, password="wrong")
    with pytest.raises(StartRefusedError, match="correct user name and password"):
        await limiter.start()
    with pytest.raises(Unavailable):
        await limiter.take(["alice"])
    await limiter.close()


async def test_scripts_flushed_in_a_cluster(cluster):
    """Nodes that forgot their scripts are told the script again, and each token is taken once."""
    names = [f"name-{number}" for number in range(20)]
    await cluster.limiter.take(names)
    await cluster.server.script_flush()
    assert await cluster.limiter.take(names * BURST) == [0.0] * 40 + [cluster.about(SECONDS_PER_TOKEN)] * 20


async def test_a_cluster_is_not_a_server(cluster, limits):
    """Settings for one server are refused on a cluster, and settings for a cluster on one server."""
    single = another(cluster, cluster=False)
    with pytest.raises(StartRefusedError, match="set `cluster`"):
        await single.start()
    await single.close()
    clustered = another(limits, cluster=True)
    with pytest.raises(StartRefusedError, match="leave `cluster` unset"):
        await clustered.start()
    await clustered.close()


async def test_a_cluster_that_is_away():
    """A cluster without a server that can be reached is unavailable."""
    with own("valkey") as server:
        address = server.address()
    limits = ValkeyLimits(address, cluster=True)
    with pytest.raises(Unavailable):
        await limits.limiter.take(["alice"])
    await limits.close()


# TLS.


def certificate(folder, name, *, signer=None):
    """Writes a key and a certificate for the loopback address, signed by another or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, issuer_key = (subject, key) if signer is None else signer
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / f"{name}.crt").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    return subject, key


@asynccontextmanager
async def tls_front(address, folder):
    """A port that speaks TLS, with clients of its authority only, in front of a server; PyPI has none with TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder / "ca.crt")
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED

    async def copy(reader, writer):
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    async def serve(reader, writer):
        with suppress(ConnectionError):
            back_reader, back_writer = await asyncio.open_connection(address.host, address.port)
            await asyncio.gather(copy(reader, back_writer), copy(back_reader, writer))

    async with await asyncio.start_server(serve, address.host, 0, ssl=context) as front:
        yield front.sockets[0].getsockname()[1]


async def test_tls(tmp_path):
    """Both sides show certificates; a server of another authority, or a client without, is refused."""
    authority = certificate(tmp_path, "ca")
    certificate(tmp_path, "server", signer=authority)
    certificate(tmp_path, "client", signer=authority)
    certificate(tmp_path, "stranger")
    address = need("valkey")
    good = {
        "ca_file": str(tmp_path / "ca.crt"),
        "cert_file": str(tmp_path / "client.crt"),
        "key_file": str(tmp_path / "client.key"),
    }
    async with tls_front(address, tmp_path) as port:
        limiters = [
            ValkeyRateLimiter(
                ValkeySettings(host=address.host, port=port, tls=TlsFiles(**tls), deadline_seconds=30.0),
                per_minute=PER_MINUTE,
                burst=BURST,
            )
            for tls in (good, good | {"ca_file": str(tmp_path / "stranger.crt")}, {"ca_file": str(tmp_path / "ca.crt")})
        ]
        trusted, foreign, anonymous = limiters
        await trusted.start()
        assert await trusted.take(["alice"]) == [0.0]
        with pytest.raises(StartRefusedError, match="correct the certificates"):
            await foreign.start()
        for refused in (foreign, anonymous):
            with pytest.raises((Unavailable, OutcomeUnknown)):
                await refused.take(["alice"])
        for limiter in limiters:
            await limiter.close()
