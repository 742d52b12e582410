import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path

import apsw
import jwt
import pytest
import structlog
import typer
from typer.testing import CliRunner

from internal_transfer.adapters.sqlite.trading_core import CoreMode
from internal_transfer.cli import app, connection, serve
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.request import TransferRequest
from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.server.process import open_service
from internal_transfer.services.operators.cash import Cash
from internal_transfer.settings.data_directory import DataDirectory
from internal_transfer.settings.demo_issuer import AUDIENCE, ISSUER, DemoIssuer
from internal_transfer.settings.load import load

runner = CliRunner()
MONEY = ["--user", "alice", "--account", "funding", "--asset", "USDT", "--amount", "100"]


@pytest.fixture(autouse=True)
def quiet_logs(monkeypatch):
    """Commands set up the logs of their process, and here that is the tests' own, which gets them back."""

    def configure_logging(**_):
        silent = structlog.make_filtering_bound_logger(logging.CRITICAL)
        structlog.configure(wrapper_class=silent, cache_logger_on_first_use=False)

    for module in (connection, serve):
        monkeypatch.setattr(module, "configure_logging", configure_logging)
    yield
    structlog.reset_defaults()


def run(*words):
    return runner.invoke(app, [str(word) for word in words], prog_name="internal-transfer")


def answer_of(*words):
    """The object that a command prints with `--json`, and its exit code."""
    result = run(*words, "--json")
    return json.loads(result.stdout), result.exit_code


@pytest.fixture
def data(tmp_path):
    """A data directory with one PENDING transfer of alice's, whose core says nothing, and no server on it."""
    path = tmp_path / "data"
    asyncio.run(furnish(path))
    return path


async def furnish(path):
    async with open_service(load(None), path) as service:
        await service.prepare(demo=False)
        account = Account(Owner("alice"), "funding", "USDT")
        await service.teller.deposit(
            Cash(account=account, amount="500", reference="first", reason="wire"), actor="test"
        )
        await service.stack.set_core_mode(CoreMode.WITHHOLD)
        spot = Account(Owner("alice"), "spot", "USDT")
        request = TransferRequest(Owner("alice"), "standard", "k", account, spot, "1.5")
        async with asyncio.TaskGroup() as tasks:
            gateway = tasks.create_task(service.gateway.run())
            await service.gateway.submit(request, wait_seconds=0)
            service.gateway.close()
            await gateway


async def open_and_close(path):
    async with open_service(load(None), path):
        pass


def pending_id(data):
    answer, code = answer_of("admin", "list", "--status", "pending", "--data", data)
    assert code == 0
    [transfer] = answer["transfers"]
    return transfer["request_id"]


@pytest.mark.parametrize(
    "words",
    [
        ["admin", "void", "5"],
        ["admin", "deposit", "--user", "alice"],
        ["admin", "list", "--status", "DONE"],
        ["admin", "list"],
        ["admin", "nothing"],
        ["admin", "show", "5", "--url", "http://127.0.0.1:1"],
        ["token", "--user", "#cash"],
        ["token", "--user", "alice", "--tier", "Gold!"],
        ["token", "--user", "alice", "--role", "king"],
        ["serve", "--port", "70000"],
        ["serve", "--failpoint", "after_hold"],
        ["serve", "--demo", "--failpoint", "nowhere"],
        ["nothing"],
    ],
)
def test_wrong_usage_is_2(words):
    """What a command does not understand is a usage error, before anything is touched."""
    assert run(*words).exit_code == 2


@pytest.mark.parametrize(
    "words", [[], ["serve"], ["token"], ["doctor"], ["api-key", "create"], ["admin"], ["admin", "core"]]
)
def test_every_command_explains_itself(words):
    """`--help` works everywhere."""
    result = run(*words, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_money_comes_in_without_a_server(data):
    """Where nobody holds the directory, a deposit is made in the files themselves; its reference works once."""
    words = ["admin", "deposit", "--data", data, *MONEY, "--reference", "R", "--reason", "wire"]
    first, code = answer_of(*words)
    assert code == 0
    assert {name: first[name] for name in ("action", "request_id", "outcome", "reason")} == {
        "action": "deposit",
        "request_id": None,
        "outcome": "created",
        "reason": "wire",
    }
    assert isinstance(first["audit_id"], int)
    again = run(*words)
    assert (again.exit_code, "deposit R: exists" in again.stdout) == (0, True)
    out = ["admin", "withdraw", "--data", data, *MONEY, "--reference", "W", "--reason", "wire"]
    assert answer_of(*out)[0]["action"] == "withdrawal"


def test_a_refusal_is_1_and_the_problem_is_printed(data):
    """With `--json` a refusal is the problem object; for people its code and text go to standard error."""
    words = ["admin", "show", "5", "--data", data]
    problem, code = answer_of(*words)
    assert (code, problem["code"], problem["status"]) == (1, "TRANSFER_NOT_FOUND", 404)
    result = run(*words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "TRANSFER_NOT_FOUND" in result.stderr


def test_show_has_all_that_is_known(data):
    """`show` prints record, ledger and core, and what is known and unknown, for programs and for people."""
    request_id = pending_id(data)
    shown, code = answer_of("admin", "show", request_id, "--data", data)
    assert code == 0
    assert {"transfer", "ledger", "core", "known", "unknown"} <= set(shown)
    text = run("admin", "show", request_id, "--data", data).stdout
    assert "nothing" not in text
    for words in ("record", "ledger", "core", "known", "unknown", "hold: held", "1.5 USDT", "target leg with core"):
        assert words in text


def test_show_of_a_transfer_without_riddles(data):
    """Where nothing is unknown, `show` says so instead of leaving an empty line."""
    request_id = pending_id(data)
    assert run("admin", "void", request_id, "--reason", "core lost", "--data", data).exit_code == 0
    shown = run("admin", "show", request_id, "--data", data).stdout
    assert [line.strip("│ \n") for line in shown.splitlines()].count("nothing") == 1


def test_a_stuck_transfer_is_voided(data):
    """The desk's way: list, show, void with a reason, and the answer says that nobody else has approved."""
    request_id = pending_id(data)
    assert run("admin", "stuck", "--data", data).exit_code == 0
    refused, code = answer_of("admin", "post", request_id, "--reason", "sure", "--data", data)
    assert (code, refused["code"]) == (1, "INVALID_STATE_TRANSITION")
    evidence = answer_of("admin", "show", request_id, "--data", data)[0]["evidence"]["void"]
    result = run("admin", "void", request_id, "--reason", "core lost", "--evidence", evidence, "--data", data)
    assert result.exit_code == 0
    assert "not yet approved by a second person" in result.stdout
    assert "FAILED" in result.stdout
    listed = run("admin", "list", "--status", "FAILED", "--data", data).stdout
    assert request_id in listed
    assert "VOIDED_BY_OPERATOR" in listed
    assert answer_of("admin", "retry", request_id, "--reason", "r", "--data", data)[1] == 1


def test_break_glass_is_found_by_reconciliation(data):
    """A post against missing confirmation makes `reconcile` end with 1, and names the transfer."""
    request_id = pending_id(data)
    assert answer_of("admin", "reconcile", "--data", data)[0]["clean"] is True
    assert "clean: 1 transfers" in run("admin", "reconcile", "--data", data).stdout
    words = ["--reason", "restored by hand", "--break-glass", "--data", data]
    act, _ = answer_of("admin", "post", request_id, *words)
    assert act["status"] == "SUCCESS"
    result, code = answer_of("admin", "reconcile", "--data", data)
    assert (code, result["clean"]) == (1, False)
    assert [(item["kind"], item["request_id"]) for item in result["items"]] == [("break_glass_post", request_id)]
    assert "break_glass_post" in run("admin", "reconcile", "--data", data).stdout
    words = ["admin", "acknowledge", request_id, "--data", data]
    assert run(*words).exit_code == 2
    act, code = answer_of(*words, "--reason", "booked in the core by hand")
    assert (code, act["action"], act["outcome"], act["request_id"]) == (0, "acknowledge", "completed", request_id)
    assert "clean: 1 transfers" in run("admin", "reconcile", "--data", data).stdout


def test_lists_that_are_empty_say_so(data):
    """No transfer is a line of its own, not an empty table; a page goes on after an id."""
    assert "SUCCESS: none" in run("admin", "list", "--status", "success", "--data", data).stdout
    request_id = pending_id(data)
    after, _ = answer_of("admin", "list", "--status", "PENDING", "--after", request_id, "--data", data)
    assert after["transfers"] == []


def test_policy_and_audit(data):
    """Freezes and pauses need no reason here, and the chain that they leave can be listed and verified."""
    for words in (
        ["freeze", "--user", "bob"],
        ["unfreeze", "--user", "bob", "--reason", "lifted"],
        ["pause", "--route", "funding:spot"],
        ["resume", "--route", "funding:spot"],
    ):
        act, code = answer_of("admin", *words, "--data", data)
        assert (code, act["action"], act["outcome"]) == (0, words[0], "completed")
    text = run("admin", "audit", "list", "--data", data).stdout
    assert "unfreeze bob: completed (lifted)" in text
    assert "pause funding:spot: completed (not given)" in text
    assert "whole" in run("admin", "audit", "verify", "--data", data).stdout
    break_chain(data)
    result, code = answer_of("admin", "audit", "verify", "--data", data)
    assert (code, result["whole"]) == (1, False)


def test_the_kill_switch(data):
    """Everything can be stopped, an asset frozen, and the policy says so."""
    assert answer_of("admin", "stop", "--reason", "incident", "--data", data)[0]["outcome"] == "completed"
    assert answer_of("admin", "freeze-asset", "--asset", "BTC", "--data", data)[0]["action"] == "freeze_asset"
    text = run("admin", "policy", "--data", data).stdout
    assert "ALL TRANSFERS ARE STOPPED" in text
    assert "frozen_assets: BTC" in text
    assert answer_of("admin", "start", "--data", data)[0]["action"] == "start"
    assert answer_of("admin", "unfreeze-asset", "--asset", "BTC", "--data", data)[1] == 0
    assert answer_of("admin", "policy", "--data", data)[0]["stopped"] is False


def break_chain(data):
    database = apsw.Connection(str(DataDirectory(data).database))
    database.execute("UPDATE operations_audit SET reason = 'another' WHERE number = 1")
    database.close()


def test_paths_are_quoted(data):
    """A text that would be another path is one that nobody has."""
    for text in ("..", "a/b", "?", "5#x"):
        assert answer_of("admin", "show", text, "--data", data)[1] == 1


def test_the_core_is_steered_by_a_demonstration_only(data):
    """Without `--demo` the core cannot be steered, whatever the word."""
    for word in ("pause", "resume", "refuse", "withhold"):
        problem, code = answer_of("admin", "core", word, "--data", data)
        assert (code, problem["code"]) == (1, "PERMISSION_DENIED")


def test_api_keys(data):
    """A key is printed once, as an object or as lines, and can be revoked."""
    made, code = answer_of("api-key", "create", "--data", data, "--user", "alice", "--reason", "bot")
    assert (code, sorted(made)) == (0, ["api_key", "passphrase", "secret"])
    assert "passphrase: " in run("api-key", "create", "--data", data, "--user", "alice").stdout
    assert "revoked" in run("api-key", "revoke", made["api_key"], "--data", data).stdout
    assert answer_of("api-key", "revoke", made["api_key"], "--data", data)[0]["revoked"] is True


def test_a_directory_that_is_not_there_is_3(tmp_path):
    """Without a directory, or without data in it, nothing can be reached; nothing is made either."""
    missing = tmp_path / "none"
    result = run("admin", "stuck", "--data", missing)
    assert (result.exit_code, missing.exists()) == (3, False)
    assert "cannot be reached" in result.stderr
    problem, code = answer_of("admin", "stuck", "--data", tmp_path)
    assert (code, problem["category"]) == (3, "unavailable")


def test_a_held_directory_without_a_socket_is_3(data):
    """A directory that is locked by a process which does not answer is unreachable, also under a long path."""
    directory = DataDirectory(data)
    directory.acquire()
    try:
        assert answer_of("admin", "stuck", "--data", data)[1] == 3
    finally:
        directory.release()


def test_a_socket_under_a_long_path_is_reached(tmp_path):
    """A directory too deep for a socket's address is reached all the same."""
    deep = tmp_path.joinpath(*["a-rather-long-name"] * 8)
    deep.mkdir(parents=True)
    where = Path.cwd()
    listener = socket.socket(socket.AF_UNIX)
    try:
        os.chdir(deep)
        listener.bind("admin.sock")
    finally:
        os.chdir(where)
    listener.listen(1)
    with connection.short_name(deep / "admin.sock") as name, socket.socket(socket.AF_UNIX) as client:
        client.connect(name)
    listener.close()
    with connection.short_name(Path("data/admin.sock")) as name:
        assert name == "data/admin.sock"


def test_another_server_is_3():
    """An address where nobody listens, or that is none, is unreachable."""
    assert answer_of("admin", "stuck", "--url", "http://127.0.0.1:1", "--token", "x")[1] == 3
    assert answer_of("admin", "stuck", "--url", "nonsense", "--token", "x")[1] == 3


def test_tokens_of_the_demo_issuer(tmp_path):
    """A token is printed alone, lasts an hour, names its roles, and is verified by the issuer's public keys."""
    DemoIssuer.create(tmp_path)
    plain = run("token", "--data", tmp_path, "--user", "alice")
    operator = run("token", "--data", tmp_path, "--user", "ops", "--role", "operator", "--role", "auditor")
    [key] = DemoIssuer.read(tmp_path).public_keys()["keys"]
    claims = [
        jwt.decode(result.stdout.strip(), jwt.PyJWK(key), algorithms=["EdDSA"], audience=AUDIENCE, issuer=ISSUER)
        for result in (plain, operator)
    ]
    assert [each["roles"] for each in claims] == [["user"], ["operator", "auditor"]]
    assert (claims[0]["sub"], claims[0]["tier"], claims[0]["exp"] - claims[0]["iat"]) == ("alice", "standard", 3600)
    assert "d" not in key


def test_the_demo_issuer_is_made_once_and_for_its_owner(tmp_path):
    """A second start uses the same key; the file is its owner's alone; trust comes from the public half."""
    first, second = DemoIssuer.create(tmp_path), DemoIssuer.create(tmp_path)
    assert first.public_keys() == second.public_keys()
    assert (tmp_path / "demo-issuer.json").stat().st_mode & 0o077 == 0
    assert list(first.trusted().keys) == [first.public_keys()["keys"][0]["kid"]]


def test_without_a_demo_issuer_there_is_no_token(tmp_path):
    """Where `serve --demo` never ran, `token` says so and prints none; a damaged key is named as one."""
    result = run("token", "--data", tmp_path, "--user", "alice")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "serve --demo" in result.stderr
    (tmp_path / "demo-issuer.json").write_text("{}")
    with pytest.raises(StartRefusedError, match="is not a demo issuer's key"):
        DemoIssuer.read(tmp_path)
    (tmp_path / "demo-issuer.json").unlink()
    (tmp_path / "demo-issuer.json").mkdir()
    with pytest.raises(StartRefusedError, match="cannot be read"):
        DemoIssuer.read(tmp_path)


def test_serve_says_why_it_does_not_start(tmp_path):
    """A start that is refused ends with 1 and one line that says what to do."""
    result = run("serve", "--data", tmp_path, "--config", tmp_path / "none.toml")
    assert result.exit_code == 1
    assert "none.toml" in result.stderr


def failing(checks):
    return {check["name"]: check["message"] for check in checks["checks"] if not check["ok"]}


def test_doctor_of_a_healthy_directory(data):
    """All checks pass on a directory that a server has used, and on one that does not exist yet."""
    checks, code = answer_of("doctor", "--data", data, "--port", "0", "--admin-port", "0")
    assert (code, checks["ok"], failing(checks)) == (0, True, {})
    assert [check["name"] for check in checks["checks"]] == [
        "python",
        "sqlite",
        "settings",
        "directory",
        "lock",
        "server",
        "database",
        "pins",
        "port",
        "admin_port",
        "clock",
        "disk",
    ]
    text = run("doctor", "--data", data / "below" / "none", "--port", "0", "--admin-port", "0")
    assert (text.exit_code, "does not exist yet" in text.stdout) == (0, True)


def test_doctor_finds_what_is_wrong(data, tmp_path):
    """Settings that do not fit, a directory open to others, a damaged database and a port in use are each named."""
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[assets.USDT]\nscale = 7\n")
    data.chmod(0o755)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen(1)
        port = busy.getsockname()[1]
        checks, code = answer_of("doctor", "--data", data, "--config", wrong, "--port", port, "--admin-port", "0")
    found = failing(checks)
    assert code == 1
    assert set(found) == {"directory", "pins", "port"}
    assert "chmod 700" in found["directory"]
    assert "assets.USDT.scale: is '7' in the settings, but was '6' when first used" in found["pins"]
    DataDirectory(data).database.write_bytes(b"no database at all" * 100)
    checks, _ = answer_of("doctor", "--data", data, "--config", tmp_path / "none.toml", "--port", "0")
    assert {"settings", "database", "pins"} <= set(failing(checks))


def test_doctor_of_a_server_that_hangs(data):
    """A lock without a socket, and a port that does not answer, are the signs of a server that is stuck."""
    directory = DataDirectory(data)
    directory.acquire()
    try:
        checks, _ = answer_of("doctor", "--data", data, "--port", "1", "--admin-port", "0")
        assert set(failing(checks)) == {"lock", "server", "port"}
        directory.admin_socket.touch()
        checks, _ = answer_of("doctor", "--data", data, "--port", "0", "--admin-port", "0")
        assert set(failing(checks)) == {"server"}
        assert "the server does not answer on" in failing(checks)["server"]
        directory.admin_socket.unlink()
    finally:
        directory.release()


@pytest.mark.parametrize("body", [b"no JSON", b"[]"])
def test_doctor_of_something_else_on_the_socket(data, body):
    """What answers on the socket and is not the service fails the check of the server."""
    directory = DataDirectory(data)
    directory.acquire()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory.admin_socket))
    listener.listen(1)

    def answer():
        connection, _ = listener.accept()
        connection.recv(10_000)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        connection.close()

    answering = threading.Thread(target=answer)
    answering.start()
    try:
        checks, code = answer_of("doctor", "--data", data, "--port", "0", "--admin-port", "0")
    finally:
        answering.join()
        listener.close()
        directory.release()
    assert (code, set(failing(checks))) == (1, {"server"})


def test_doctor_of_an_asset_that_is_missing(data, tmp_path):
    """An asset that was pinned and is in the settings no more fails the check of the pins."""
    config = tmp_path / "settings.toml"
    config.write_text("shipped_assets = false\n[assets.USDT]\nnumber = 1\nscale = 6\nprecision = 6\n")
    checks, code = answer_of("doctor", "--data", data, "--config", config, "--port", "0", "--admin-port", "0")
    assert code == 1
    assert "assets.BTC" in failing(checks)["pins"]
    assert "missing from the settings" in failing(checks)["pins"]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("[assets.USDT]\nscale = 7\n", "assets.USDT.scale: is '7' in the settings"),
        ("[assets.NEW]\nnumber = 99\nscale = 2\nprecision = 2\n", "assets.NEW.number"),
    ],
)
def test_commands_without_a_server_need_its_settings(data, tmp_path, text, rule):
    """Other settings than the server's are refused before anything is pinned or done, with the option to give."""
    config = tmp_path / "settings.toml"
    config.write_text(text)
    result = run("admin", "stuck", "--data", data, "--config", config)
    assert result.exit_code == 3
    assert rule in result.stderr
    assert "give --config FILE of the server" in result.stderr
    assert run("admin", "stuck", "--data", data).exit_code == 0


def test_a_directory_without_a_first_start_is_3(tmp_path):
    """A database on which no server was ever ready to start has nothing to operate on, and stays unmarked."""
    asyncio.run(open_and_close(tmp_path))
    result = run("admin", "stuck", "--data", tmp_path)
    assert (result.exit_code, "no server has started on it yet" in result.stderr) == (3, True)


def test_the_version_is_printed():
    """`--version` prints the release and ends."""
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"internal-transfer {version('internal-transfer')}\n")


@pytest.mark.slow
def test_every_command_helps():
    """`-h` prints the same help as `--help`, on every command and group."""
    waiting = [((), typer.main.get_command(app))]
    while waiting:
        words, command = waiting.pop()
        waiting += [((*words, name), each) for name, each in getattr(command, "commands", {}).items()]
        short, long = run(*words, "-h"), run(*words, "--help")
        assert (short.exit_code, short.stdout) == (0, long.stdout)
        assert " ".join(["Usage: internal-transfer", *words]) in " ".join(long.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize("module", ["internal_transfer", "internal_transfer.cli"])
def test_the_package_is_the_command(module):
    """`python -m` of the package, and of its command line, is `internal-transfer`, and completes words for a shell."""
    program = (sys.executable, "-m", module)
    shown = subprocess.run((*program, "--version"), capture_output=True, text=True, check=True)
    assert shown.stdout == f"internal-transfer {version('internal-transfer')}\n"
    asked = {"_INTERNAL_TRANSFER_COMPLETE": "complete_bash", "COMP_WORDS": "internal-transfer adm", "COMP_CWORD": "1"}
    completed = subprocess.run(program, env=os.environ | asked, capture_output=True, text=True, check=True)
    assert completed.stdout == "admin\n"


def test_doctor_of_a_clock_that_went_back(data):
    """A database that was written in the future says that the clock is behind."""
    path = DataDirectory(data).database
    later = path.stat().st_mtime + 3600
    os.utime(path, (later, later))
    checks, _ = answer_of("doctor", "--data", data, "--port", "0", "--admin-port", "0")
    assert "behind the database's last write" in failing(checks)["clock"]
