"""The real servers of the tests themselves: found, shared, killed, paused, guarded, and ended by the right one."""

import os
import shutil
import socket
import ssl
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from servers import place, roster
from servers.__main__ import NAMES
from servers.server import PASSWORD, Record
from servers.trouble import FailedError
from servers.valkey import Valkey

from real_servers import Missing, need, own

ROOT = Path(__file__).parent.parent
FROM_REGISTRIES = ["postgresql", "kafka", "cassandra", "valkey"]

# A test run in a process of its own: says where its Valkey is, and goes on until its input ends.
ANOTHER_RUN = """
import sys
from real_servers import need
print(need("valkey").port, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """A place without servers; what still runs there at the end is ended."""
    monkeypatch.setenv("SERVERS_DIR", str(tmp_path / "servers"))
    monkeypatch.delenv("SERVERS_KEEP", raising=False)
    yield
    for server in roster.known():
        server.remove()
    # pytest's folders are closed to others, so that root's servers have their data in another place.
    shutil.rmtree(place.data_root())


@pytest.fixture
def run(elsewhere):  # noqa: ARG001 - the place has to be there first.
    """Starts other test runs in that place."""
    runs = []

    def start(**variables):
        process = subprocess.Popen(
            [sys.executable, "-c", ANOTHER_RUN],
            cwd=ROOT / "tests",
            env={**os.environ, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        runs.append(process)
        return process, int(process.stdout.readline())

    yield start
    for process in runs:
        process.kill()
        process.communicate()


def finish(process):
    """Lets a run come to its end."""
    process.communicate()
    assert process.returncode == 0


def ask(port):
    """The first bytes of a Valkey's answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(5)


@pytest.mark.parametrize("name", FROM_REGISTRIES)
def test_the_shared_server_takes_connections(name):
    """`need` gives an address where somebody listens, and the same one when it is asked again."""
    address = need(name)
    socket.create_connection((address.host, address.port), timeout=10).close()
    assert need(name) == address


@pytest.mark.timeout(900)  # Three starts of a server, on a machine that may be busy.
@pytest.mark.full
@pytest.mark.parametrize("name", [*FROM_REGISTRIES, "tigerbeetle"])
def test_a_killed_server_comes_back_where_it_was(name):
    """After SIGKILL, and after an orderly stop, a server starts again at its address; at the end nothing is left."""
    with own(name) as server:
        address = server.address()
        server.kill()
        assert not server.is_running()
        assert server.start() == address
        server.stop()
        assert not server.is_running()
        assert server.start() == address
    assert not server.is_running()
    assert not server.folder.exists()


def test_what_postgresql_committed_outlives_a_kill():
    """A committed row is there after SIGKILL and a start, so the data of a killed server are kept."""
    psycopg = pytest.importorskip("psycopg")
    with own("postgresql") as server:
        with psycopg.connect(server.address().dsn) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
        server.kill()
        server.start()
        with psycopg.connect(server.address().dsn) as connection:
            assert connection.execute("SELECT one FROM kept").fetchall() == [(1,)]


def test_a_killed_postgresql_takes_its_backends_along():
    """Also a busy process behind an open connection is gone, which would else go on without its parent."""
    psycopg = pytest.importorskip("psycopg")
    with own("postgresql") as server, closing(psycopg.connect(server.address().dsn, autocommit=True)) as connection:
        backend = psutil.Process(connection.info.backend_pid)
        connection.pgconn.send_query(b"DO $$ BEGIN LOOP NULL; END LOOP; END $$")
        server.kill()
        backend.wait(10)


def test_a_paused_server_is_silent_until_it_goes_on():
    """A paused server still takes connections but answers only when it is resumed."""
    with own("valkey") as server:
        server.pause()
        assert server.is_running()
        with socket.create_connection(("127.0.0.1", server.address().port), timeout=0.2) as connection:
            connection.sendall(b"PING\r\n")
            with pytest.raises(TimeoutError):
                connection.recv(1)
            server.resume()
            connection.settimeout(10)
            assert connection.recv(5) == b"+PONG"


def test_a_paused_postgresql_pauses_as_a_whole():
    """Every process of a paused PostgreSQL stands still, also the one behind an open connection."""
    psycopg = pytest.importorskip("psycopg")
    with own("postgresql") as server, psycopg.connect(server.address().dsn, autocommit=True) as connection:
        server.pause()
        assert psutil.Process(connection.info.backend_pid).status() == psutil.STATUS_STOPPED
        server.resume()
        assert connection.execute("SELECT 1").fetchall() == [(1,)]


def test_a_server_that_does_not_start_shows_its_log():
    """The error of a failed start ends with what the server said."""

    class Misconfigured(Valkey):
        def configure(self):
            return [*super().configure(), "--no-such-setting", "1"]

    need("valkey")
    server = Misconfigured(f"broken-{os.getpid()}-x")
    try:
        with pytest.raises(FailedError, match="no-such-setting"):
            server.start()
    finally:
        server.remove()


def test_a_port_that_was_taken_meanwhile_is_replaced():
    """A server whose port somebody took while it was down starts on another one."""
    with own("valkey") as server:
        port = server.address().port
        server.stop()
        with socket.create_server(("127.0.0.1", port)):
            assert server.start().port != port
        assert ask(server.address().port) == b"+PONG"


def test_a_stopped_server_was_not_killed():
    """`stop` lets a server end in order: PostgreSQL has nothing to recover after it, and has after a kill."""
    with own("postgresql") as server:
        server.stop()
        server.start()
        assert "database system was shut down at" in server.log.read_text()
        server.kill()
        server.start()
        assert "automatic recovery in progress" in server.log.read_text()


@pytest.mark.usefixtures("elsewhere")
def test_a_stranger_with_the_recorded_pid_is_left_alone():
    """A pid that now belongs to another program is neither taken for the server nor signalled."""
    stranger = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, cwd=ROOT)
    server = Valkey()
    server.folder.mkdir(parents=True)
    server._write(Record("valkey", "shared", secured=False, pid=stranger.pid, ports=(1,)))
    assert not server.is_running()
    server.stop()
    server.kill()
    stranger.communicate()
    assert stranger.returncode == 0


def test_the_last_run_that_uses_a_server_ends_it(run):
    """Two runs share one server, whoever started it; it is ended when the second of them ends, not before."""
    first, port = run()
    second, same = run()
    assert same == port
    finish(first)
    assert ask(port) == b"+PONG"
    finish(second)
    assert not Valkey().is_running()


def test_the_server_of_a_killed_run_is_used_and_ended_by_the_next(run):
    """A run that is killed leaves its server behind; the next run finds it, and ends it."""
    first, port = run()
    first.kill()
    first.communicate()
    assert ask(port) == b"+PONG"
    second, same = run()
    assert same == port
    finish(second)
    assert not Valkey().is_running()


def test_a_kept_server_stays_until_it_is_stopped(run):
    """With SERVERS_KEEP=1 the server outlives the run, and `python -m servers stop` ends it."""
    first, port = run(SERVERS_KEEP="1")
    finish(first)
    second, same = run()
    assert same == port
    finish(second)
    assert ask(port) == b"+PONG"
    assert command("stop", "valkey") == "valkey-shared: stopped\n"
    assert not Valkey().is_running()


@pytest.mark.usefixtures("elsewhere")
def test_a_killed_runs_own_servers_are_swept_away():
    """A server that a test had for itself is removed once the process of that test is gone, and not before."""
    need("valkey")
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], check=True, stdout=subprocess.PIPE)
    orphan = Valkey(f"own-{int(gone.stdout)}-aa")
    ours = Valkey(f"own-{os.getpid()}-bb")
    orphan.start()
    ours.start()
    roster.sweep()
    assert not orphan.is_running()
    assert not orphan.folder.exists()
    assert ours.is_running()


def command(*arguments):
    """What `python -m servers` prints."""
    return subprocess.run(
        [sys.executable, "-m", "servers", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.usefixtures("elsewhere")
def test_the_command_starts_shows_and_stops():
    """`start` is repeatable, `status` and `env` tell the address, and after `stop` nothing runs."""
    need("valkey")
    started = command("start", "valkey")
    port = Valkey().address().port
    assert started == f"valkey: running at port={port} host=127.0.0.1\n"
    assert command("start", "valkey") == started
    assert command("env") == f"export VALKEY_URL=redis://127.0.0.1:{port}/0\n"
    assert command("status") == f"valkey-shared: running at port={port} host=127.0.0.1\n"
    command("stop")
    assert command("status") == "valkey-shared: not running\n"
    assert command("env") == ""


def test_help_works_before_anything_is_installed():
    """`python -m servers --help` names commands and servers without one package; a command says what to install."""
    bare = [sys.executable, "-S", "-E", "-m", "servers"]
    shown = subprocess.run([*bare, "--help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert all(word in shown for word in ("start", "stop", "status", "env", *roster.KINDS))
    told = subprocess.run([*bare, "start", "valkey"], cwd=ROOT, check=False, capture_output=True, text=True)
    assert told.returncode == 1
    assert "make install-dev" in told.stderr
    assert "Traceback" not in told.stderr


def test_the_help_names_every_server():
    """The names of the command line are those of the servers that there are."""
    assert list(NAMES) == list(roster.KINDS)


@pytest.mark.usefixtures("elsewhere")
def test_a_missing_server_skips_with_the_reason(monkeypatch):
    """Without Maven there is no Kafka: the test is skipped and the reason says what to install."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("REQUIRE_SERVERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="install"):
        need("kafka")


@pytest.mark.usefixtures("elsewhere")
def test_a_required_server_fails_instead(monkeypatch):
    """With REQUIRE_SERVERS=1 a missing server is a failure; only TigerBeetle, which no registry has, still skips."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("REQUIRE_SERVERS", "1")
    with pytest.raises(pytest.fail.Exception, match="REQUIRE_SERVERS"):
        need("kafka")
    monkeypatch.delenv("TIGERBEETLE_BINARY", raising=False)
    monkeypatch.delenv("TIGERBEETLE_ADDRESS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="TIGERBEETLE_BINARY"):
        need("tigerbeetle")
    with pytest.raises(Missing):
        roster.KINDS["tigerbeetle"]().start()


def test_secured_valkey_wants_its_password():
    """A secured Valkey answers only after the password."""
    address = need("valkey", secured=True)
    assert ask(address.port) == b"-NOAU"
    with socket.create_connection((address.host, address.port), timeout=10) as connection:
        connection.sendall(f"AUTH {address.password}\r\n".encode())
        assert connection.recv(3) == b"+OK"


def test_secured_postgresql_wants_password_and_certificate():
    """A secured PostgreSQL refuses a wrong password; by TLS, where its program has it, it also wants a certificate."""
    psycopg = pytest.importorskip("psycopg")
    address = need("postgresql", secured=True)
    with psycopg.connect(address.dsn, sslmode="disable") as connection:
        assert connection.execute("SHOW fsync").fetchall() == [("on",)]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(address.dsn, sslmode="disable", password="wrong")
    if address.tls is not None:
        trust = {"sslmode": "verify-full", "sslrootcert": address.tls.ca_file}
        shown = {"sslcert": address.tls.certificate_file, "sslkey": address.tls.key_file}
        with psycopg.connect(address.dsn, **trust, **shown) as connection:
            assert connection.pgconn.ssl_in_use
        with pytest.raises(psycopg.OperationalError, match="certificate"):
            psycopg.connect(address.dsn, **trust, sslcert="/none", sslkey="/none")


def test_secured_kafka_knows_who_may_do_what():
    """A secured Kafka takes its user by password and by TLS with a certificate, and denies its limited user."""
    admin = pytest.importorskip("confluent_kafka.admin")
    errors = pytest.importorskip("confluent_kafka")
    address = need("kafka", secured=True)
    login = {"sasl.mechanism": "PLAIN", "sasl.password": PASSWORD}
    plain = {"bootstrap.servers": address.bootstrap, "security.protocol": "SASL_PLAINTEXT", **login}
    tls = {
        "bootstrap.servers": f"{address.host}:{address.tls.port}",
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": address.tls.ca_file,
        "ssl.certificate.location": address.tls.certificate_file,
        "ssl.key.location": address.tls.key_file,
        **login,
    }
    for settings in (plain, tls):
        client = admin.AdminClient({**settings, "sasl.username": address.user})
        assert list(client.list_topics(timeout=30).brokers) == [1]
    limited = admin.AdminClient({**plain, "sasl.username": "limited"})
    [answer] = limited.create_topics([admin.NewTopic("denied", 1, 1)]).values()
    with pytest.raises(errors.KafkaException) as denied:
        answer.result()
    assert denied.value.args[0].name() == "TOPIC_AUTHORIZATION_FAILED"


def test_secured_cassandra_wants_password_and_certificate():
    """A secured Cassandra asks every client to authenticate; by TLS it also wants a certificate."""
    address = need("cassandra", secured=True)
    with socket.create_connection((address.host, address.port), timeout=30) as connection:
        # STARTUP with the one option that is needed; its answer is AUTHENTICATE, 0x03.
        option = b"\x00\x01" + b"\x00\x0bCQL_VERSION" + b"\x00\x053.0.0"
        connection.sendall(bytes([0x04, 0, 0, 0, 0x01]) + len(option).to_bytes(4, "big") + option)
        assert connection.recv(9)[4] == 0x03
    context = ssl.create_default_context(cafile=address.tls.ca_file)
    # The first message of CQL, OPTIONS of version 4; its answer is SUPPORTED, 0x06.
    with pytest.raises((ssl.SSLError, ConnectionError)):
        options(context, address)
    context.load_cert_chain(address.tls.certificate_file, address.tls.key_file)
    assert options(context, address)[4] == 0x06


def options(context, address):
    """The header of Cassandra's answer to the question what it supports."""
    with (
        socket.create_connection((address.host, address.tls.port), timeout=30) as connection,
        context.wrap_socket(connection, server_hostname=address.host) as secured,
    ):
        secured.sendall(bytes([0x04, 0, 0, 0, 0x05, 0, 0, 0, 0]))
        return secured.recv(9)
