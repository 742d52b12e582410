"""`restore-check` on a data directory."""

import asyncio
import json
import shutil

import apsw
import pytest
from typer.testing import CliRunner

from internal_transfer.cli import app, restore
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.request import TransferRequest
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.event_publisher import TransferEvent
from internal_transfer.ports.transfer_store import Event
from internal_transfer.server.process import open_service
from internal_transfer.services.operators.cash import Cash
from internal_transfer.settings.data_directory import DataDirectory
from internal_transfer.settings.load import load
from internal_transfer.wire.transfer_events import encode_transfer_event

runner = CliRunner()


@pytest.fixture(autouse=True)
def quiet_logs(monkeypatch):
    """The command would set up the logs of its process, and here that is the tests' own."""
    monkeypatch.setattr(restore, "configure_logging", lambda **_: None)


@pytest.fixture
def data(tmp_path):
    """A data directory with a transfer of alice's, and no server on it."""
    path = tmp_path / "data"
    asyncio.run(move(path))
    return path


async def move(path, owner="alice", key="k"):
    async with open_service(load(None), path) as service:
        await service.prepare(demo=False)
        account = Account(Owner(owner), "funding", "USDT")
        await service.teller.deposit(Cash(account=account, amount="5", reference=key, reason="r"), actor="test")
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(service.run(stop))
            target = Account(Owner(owner), "earn", "USDT")
            request = TransferRequest(Owner(owner), "standard", key, account, target, "1")
            answer = await service.gateway.submit(request, wait_seconds=5)
            stop.set()
        assert answer.transfer.status is Status.SUCCESS
        return answer.transfer


def run(*words):
    return runner.invoke(app, ["restore-check", *map(str, words)])


def answer_of(*words):
    result = run(*words, "--json")
    return json.loads(result.stdout), result.exit_code


REPAIR = ("--repair", "--reason", "disk lost")


def test_a_directory_that_agrees(data):
    """Looking says so and ends with 0; a repair has nothing to do and ends with 0."""
    assert answer_of("--data", data) == ({"agrees": True, "disagreement": None}, 0)
    assert "agree" in run("--data", data).stdout
    answer, code = answer_of("--data", data, *REPAIR)
    assert (answer["clean"], answer["ended"], answer["done"], code) == (True, True, {}, 0)
    assert "every role may start" in run("--data", data, *REPAIR, "--since", "2026-01-01").stdout


def lose(path, *tables):
    """Empties tables, as if their system had been restored to its beginning."""
    connection = apsw.Connection(str(DataDirectory(path).database))
    for (trigger,) in list(connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'")):
        connection.execute(f"DROP TRIGGER {trigger}")
    for table in tables:
        connection.execute(f"DELETE FROM {table}")
    connection.close()


def test_a_lost_store_is_rebuilt(data, tmp_path):
    """Looking says what is wrong and ends with 1; the accounts are named by the events of a file."""
    lose(data, "transfer", "transfer_key", "transfer_event", "daily_use", "registered_account")
    result = run("--data", data)
    assert (result.exit_code, "ledger" in result.stdout) == (1, True)
    result = run("--data", data, *REPAIR)
    assert result.exit_code == 1
    assert "needs a person: accounts_unknown" in result.stdout
    assert "no role starts" in result.stdout
    answer, code = answer_of("--data", data, *REPAIR, "--accept-unknown")
    assert (answer["ended"], answer["clean"], code) == (True, False, 1)
    assert "left as it is: accounts_unknown" in run("--data", data, *REPAIR).stdout
    shutil.rmtree(data)
    transfer = asyncio.run(move(data))
    lose(data, "transfer", "transfer_key", "transfer_event", "daily_use", "registered_account")
    events = tmp_path / "events"
    event = Event(transfer.id, transfer.version, transfer.status, transfer.updated_at, transfer.failure)
    events.write_bytes(encode_transfer_event(TransferEvent(event, transfer)) + b"\n")
    result = run("--data", data, *REPAIR, "--events", events)
    assert result.exit_code == 0, result.stdout
    assert "records rebuilt: 1" in result.stdout


def test_what_cannot_be_done(data, tmp_path):
    """No reason, a bad one, no directory and events that are none end the command with its codes."""
    assert run("--data", data, "--repair").exit_code == 2
    refused = run("--data", data, "--repair", "--reason", "a\x00b")
    assert (refused.exit_code, "control characters" in refused.stderr) == (1, True)
    assert run("--data", tmp_path / "none").exit_code == 3
    events = tmp_path / "events"
    events.write_text("{}")
    assert run("--data", data, *REPAIR, "--events", events).exit_code == 3


def test_a_note_is_printed(data):
    """What is worth knowing is told, and is not clean."""

    async def decide():
        async with open_service(load(None), data) as service:
            evidence = {
                "account": Account(Owner("a"), "funding", "USDT"),
                "amount": "1",
                "units": "1",
                "ledger_id": "7",
            }
            entry = service.audit.entry(
                actor="a",
                action="deposit",
                subject="r",
                reason="r",
                outcome="decided",
                evidence=json.dumps(evidence | {"account": {"owner": "a", "type": "funding", "asset": "USDT"}}),
            )
            await service.audit.append(entry)
            await service.ports.durability.durable()

    asyncio.run(decide())
    result = run("--data", data, *REPAIR)
    assert result.exit_code == 1
    assert "note: the deposit 'r' over 1 USDT was decided" in result.stdout
