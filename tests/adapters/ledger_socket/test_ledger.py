"""The ledger behind a socket: hosts that are away, slow, killed or of another release, and clients that misbehave."""

import asyncio
import signal
from itertools import count

import msgspec
import pytest

from contracts.ledger_hosts import HostProcess, SocketLedgerServer
from internal_transfer.adapters.ledger_socket import ledger as adapter
from internal_transfer.adapters.ledger_socket.ledger import SocketLedger, SocketLedgerSettings
from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.ledger import SqliteLedger
from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.conformance.ledger.world import PENDING, POST, replay
from internal_transfer.hosts.ledger.dispatcher import Dispatcher
from internal_transfer.hosts.ledger.server import serve_ledger
from internal_transfer.ports.errors import OutcomeUnknown, StartRefusedError, Unavailable
from internal_transfer.ports.ledger import (
    AccountFlag,
    AccountResult,
    LedgerAccount,
    LedgerTransfer,
    TransferOutcome,
    TransferResult,
)
from internal_transfer.settings.data_directory import DataDirectory
from internal_transfer.wire.frames import FRAME_BYTES_MAX, UNWRITTEN_BYTES_MAX
from internal_transfer.wire.ledger_messages import (
    CLIENT_DECODER,
    PROTOCOL,
    Hello,
    LookupAccounts,
    TransfersAfter,
    Welcome,
)

BANK, USER = 1, 2
CREATED, EXISTS = TransferResult.CREATED, TransferResult.EXISTS


def plain(number, amount=1):
    return LedgerTransfer(id=number, debit_account_id=BANK, credit_account_id=USER, amount=amount, ledger=1, code=1)


def hold(number, amount=1):
    return LedgerTransfer(
        id=number, debit_account_id=USER, credit_account_id=BANK, amount=amount, ledger=1, code=1, flags=PENDING
    )


def post(number, pending, amount=1):
    return LedgerTransfer(id=number, pending_id=pending, amount=amount, flags=POST)


async def open_accounts(ledger):
    outcomes = await ledger.create_accounts(
        [
            LedgerAccount(id=BANK, ledger=1, code=1),
            LedgerAccount(id=USER, ledger=1, code=1, flags=AccountFlag.DEBITS_MUST_NOT_EXCEED_CREDITS),
        ]
    )
    assert {outcome.status for outcome in outcomes} <= {AccountResult.CREATED, AccountResult.EXISTS}


@pytest.fixture
async def served(tmp_path):
    """A host in this loop, with a client."""
    server = await SocketLedgerServer.open(tmp_path / "data")
    await open_accounts(server.ledger)
    yield server
    await server.close()


@pytest.fixture
async def process(tmp_path):
    """A host in a process of its own."""
    process = HostProcess(tmp_path / "data")
    await process.start()
    yield process
    await process.end()


@pytest.fixture
async def client(process):
    """A patient client of the host's process."""
    client = SocketLedger(SocketLedgerSettings(path=process.socket, deadline_seconds=60.0))
    await open_accounts(client)
    yield client
    await client.close()


# Deadlines, bounds and hosts that are away.


async def test_no_host(tmp_path):
    """Without a host nothing is done, which the start and every call say."""
    client = SocketLedger(SocketLedgerSettings(path=tmp_path / "ledger.sock"))
    with pytest.raises(Unavailable):
        await client.start()
    with pytest.raises(Unavailable):
        await client.create_transfers([plain(10)])
    assert [ok for _, ok, _ in await client.check()] == [False]
    await client.close()


async def test_a_host_that_does_not_answer(process, client):
    """A call that is given up is unknown and was not cancelled: asked again under its id, it was done once."""
    hasty = SocketLedger(SocketLedgerSettings(path=process.socket, deadline_seconds=0.05))
    assert (await client.create_transfers([plain(10)]))[0].status is CREATED
    await hasty.start()
    process.signal(signal.SIGSTOP)
    with pytest.raises(OutcomeUnknown):
        await hasty.create_transfers([plain(11)])
    process.signal(signal.SIGCONT)
    assert (await client.create_transfers([plain(11)]))[0].status in {CREATED, EXISTS}
    assert (await client.lookup_accounts([USER]))[0].credits_posted == 2
    await hasty.close()


async def test_a_host_that_does_not_greet(process):
    """Where the deadline passes before the request could be sent, nothing was done."""
    hasty = SocketLedger(SocketLedgerSettings(path=process.socket, deadline_seconds=0.05))
    process.signal(signal.SIGSTOP)
    with pytest.raises(Unavailable):
        await hasty.create_transfers([plain(10)])
    with pytest.raises(Unavailable):
        await hasty.start()
    process.signal(signal.SIGCONT)
    await hasty.close()


async def test_what_was_given_up_counts_until_it_is_answered(process, client):
    """A host that does not answer gets no more than the bound; when it answers, there is room again."""
    bounded = SocketLedger(SocketLedgerSettings(path=process.socket, deadline_seconds=0.05, requests_max=3))
    await bounded.start()
    process.signal(signal.SIGSTOP)
    given_up = await asyncio.gather(
        *(bounded.create_transfers([plain(number)]) for number in range(10, 15)), return_exceptions=True
    )
    assert [type(error) for error in given_up] == [OutcomeUnknown] * 3 + [Unavailable] * 2
    with pytest.raises(Unavailable, match="too many requests are under way"):
        await bounded.lookup_accounts([USER])
    process.signal(signal.SIGCONT)
    # The host answers what was sent before; nothing else came.
    found = [transfer.id for transfer in await until(client, 3)]
    assert found == [10, 11, 12]
    patient = SocketLedger(SocketLedgerSettings(path=process.socket, deadline_seconds=60.0))
    assert len(await patient.lookup_accounts([USER])) == 1
    await patient.close()
    await bounded.close()


async def until(client, number):
    """Returns the transfers, once there are `number`."""
    while True:
        found = await client.transfers_after(0, 100)
        if len(found) >= number:
            return found


async def test_the_client_finds_a_new_host(served):
    """After a clean stop nothing is done while there is no host, and the same client goes on with the next one."""
    assert (await served.ledger.create_transfers([plain(10)]))[0].status is CREATED
    await served.unhost()
    with pytest.raises(Unavailable):
        await served.ledger.create_transfers([plain(11)])
    await served.host()
    assert [outcome.status for outcome in await served.ledger.create_transfers([plain(10), plain(11)])] == [
        EXISTS,
        CREATED,
    ]


async def test_closing_the_client_in_a_call(process, client):
    """What is out when the client closes is unknown; it is not waited for."""
    process.signal(signal.SIGSTOP)
    call = asyncio.ensure_future(client.create_transfers([plain(10)]))
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(OutcomeUnknown):
        await call
    process.signal(signal.SIGCONT)


async def test_a_cancelled_call_does_not_disturb_others(served):
    """A caller who is cancelled takes nobody's answer along."""
    calls = [asyncio.ensure_future(served.ledger.create_transfers([plain(number)])) for number in range(10, 20)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [True, False] * 5
    assert len(await until(served.ledger, 10)) == 10


# Kill -9, and a clean stop.


async def keep_moving(client, ids, done):
    """Moves money under ids of its own until there are no more, asking again under the same ids whenever in doubt."""
    doubts = 0
    for first in ids:
        batch = [step for number in range(first, first + 20, 2) for step in (hold(number), post(number + 1, number))]
        while True:
            try:
                outcomes = await client.create_transfers(batch)
            except (OutcomeUnknown, Unavailable):
                doubts += 1
                await asyncio.sleep(0.001)
                continue
            break
        assert {outcome.status for outcome in outcomes} <= {CREATED, EXISTS}
        done.update((step.id, outcome.timestamp) for step, outcome in zip(batch, outcomes, strict=True))
    return doubts


async def reach(done, number):
    """Lets the load run until `number` items are done."""
    while len(done) < number:  # noqa: ASYNC110 - the load is what this waits for, and it need not know.
        await asyncio.sleep(0)


async def test_kill_9_in_the_middle_of_the_load(process):
    """The host is killed again and again under load: every id is asked again, and nothing is lost or done twice."""
    clients = [SocketLedger(SocketLedgerSettings(path=process.socket, deadline_seconds=60.0)) for _ in range(2)]
    await open_accounts(clients[0])
    assert (await clients[0].create_transfers([plain(10, 10**9)]))[0].status is CREATED
    done = {}
    workers, batches = 8, 60
    moving = [
        asyncio.ensure_future(
            keep_moving(
                clients[worker % 2], range(1_000_000 * (worker + 1), 1_000_000 * (worker + 1) + 20 * batches, 20), done
            )
        )
        for worker in range(workers)
    ]
    total = workers * batches * 20
    for kills in (1, 2, 3, 4):
        await reach(done, total * kills // 5)
        process.signal(signal.SIGKILL)
        await process.wait()
        await process.start()
    assert sum(await asyncio.gather(*moving)) > 0
    assert len(done) == total
    history = []
    while page := await clients[0].transfers_after(history[-1].timestamp if history else 0, 8_000):
        history += page
    assert {transfer.id: transfer.timestamp for transfer in history if transfer.id != 10} == done
    user, bank = replay(history)[USER], replay(history)[BANK]
    [account] = await clients[0].lookup_accounts([USER])
    held, spent = account.debits_pending, account.debits_posted
    assert [held, spent, account.credits_pending, account.credits_posted] == user == [0, total // 2, 0, 10**9]
    assert bank == [0, 10**9, 0, total // 2]
    for client in clients:
        await client.close()


async def test_sigterm_is_a_clean_stop(process, client):
    """On SIGTERM the host answers what it took, takes its socket away and ends well; all that it said is on record."""
    numbers = count(10)
    said = {}

    async def load():
        while True:
            batch = [plain(next(numbers)) for _ in range(5)]
            outcomes = await client.create_transfers(batch)
            said.update((step.id, outcome.timestamp) for step, outcome in zip(batch, outcomes, strict=True))

    loads = [asyncio.ensure_future(load()) for _ in range(4)]
    await reach(said, 200)
    process.signal(signal.SIGTERM)
    assert await process.wait() == 0
    ends = await asyncio.gather(*loads, return_exceptions=True)
    assert {type(end) for end in ends} <= {OutcomeUnknown, Unavailable}
    assert not process.socket.exists()
    await process.start()
    recorded = {transfer.id: transfer.timestamp for transfer in await client.transfers_after(0, 8_000)}
    assert said.items() <= recorded.items()


# The host.


class Commits:
    """A dispatcher on a database that tells how often it committed."""

    def __init__(self, path):
        self.database = Database(path / "ledger.db")
        self.dispatcher = Dispatcher(SqliteLedger(self.database, SystemClock()), self.database)
        self.socket = path / "ledger.sock"

    async def __aenter__(self):
        self.server = await asyncio.get_running_loop().create_unix_server(self.dispatcher.protocol, str(self.socket))
        self.running = asyncio.ensure_future(self.dispatcher.run())
        self.client = SocketLedger(SocketLedgerSettings(path=self.socket, deadline_seconds=60.0))
        await open_accounts(self.client)
        return self

    async def __aexit__(self, *_):
        await self.client.close()
        self.server.close()
        self.dispatcher.close()
        await self.running
        for client in list(self.dispatcher.clients):
            client.frames.close()
            await client.frames.lost
        self.database.close()


async def test_what_comes_together_shares_a_commit(tmp_path):
    """A hundred requests that come in one turn of the loop are on record with one commit."""
    async with Commits(tmp_path) as host:
        before = host.database.commits
        answers = await asyncio.gather(*(host.client.create_transfers([plain(number)]) for number in range(10, 110)))
        assert {answer[0].status for answer in answers} == {CREATED}
        assert host.database.commits == before + 1


async def test_a_commit_takes_a_bounded_part_of_what_waits(tmp_path, monkeypatch):
    """What is waiting is done in parts of a bounded size, in order, so that nobody waits for all of it."""
    monkeypatch.setattr("internal_transfer.hosts.ledger.dispatcher.ITEMS_PER_COMMIT", 10)
    async with Commits(tmp_path) as host:
        before = host.database.commits
        await asyncio.gather(*(host.client.create_transfers([plain(number)]) for number in range(10, 110)))
        assert host.database.commits == before + 10
        assert [transfer.id for transfer in await host.client.transfers_after(0, 200)] == list(range(10, 110))


async def test_a_full_disk_takes_the_whole_turn_back(tmp_path):
    """Where the disk is full, all requests of the turn are told that nothing was done, and so it is."""
    async with Commits(tmp_path) as host:
        [(pages,)] = host.database.connection.execute("PRAGMA page_count").fetchall()
        host.database.connection.execute(f"PRAGMA max_page_count={pages + 2}").fetchall()
        small = host.client.create_transfers([plain(10)])
        large = host.client.create_transfers([plain(number) for number in range(100, 500)])
        answers = await asyncio.gather(small, large, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Unavailable, Unavailable]
        host.database.connection.execute("PRAGMA max_page_count=1000000").fetchall()
        assert await host.client.transfers_after(0, 10) == []
        assert (await host.client.create_transfers([plain(10)]))[0].status is CREATED


async def test_only_the_owner_can_open_the_socket(served):
    """Only its owner can open the socket, and `doctor` says if that was changed."""
    path = served.directory.ledger_socket
    assert path.stat().st_mode & 0o777 == 0o600
    assert [ok for _, ok, _ in await served.ledger.check()] == [True] * 4
    path.chmod(0o666)
    assert [(name, ok) for name, ok, _ in await served.ledger.check()][-1] == ("ledger permissions", False)


async def test_another_release(served, monkeypatch):
    """A client of another protocol is refused at its start with what to do, and nothing of it is done later either."""
    monkeypatch.setattr(adapter, "PROTOCOL", 99)
    stranger = SocketLedger(SocketLedgerSettings(path=served.directory.ledger_socket))
    with pytest.raises(StartRefusedError, match="start both from one release"):
        await stranger.start()
    with pytest.raises(Unavailable, match="protocol 1, the client 99"):
        await stranger.create_transfers([plain(10)])
    await stranger.close()
    assert await served.ledger.transfers_after(0, 10) == []


async def test_a_path_that_is_too_long(tmp_path):
    """A directory whose path no socket can have is refused, with what to do."""
    directory = DataDirectory(tmp_path / ("long" * 30))
    directory.acquire()
    with pytest.raises(StartRefusedError, match="a shorter path"):
        await serve_ledger(directory, asyncio.Event(), clock=SystemClock())
    directory.release()


@pytest.mark.parametrize(
    "garbage",
    [
        (FRAME_BYTES_MAX + 1).to_bytes(4),
        b"\x00\x00\x00\x03abc",
        b"GET / HTTP/1.1\r\n\r\n",
        len(msgspec.msgpack.encode(LookupAccounts(1, []))).to_bytes(4) + msgspec.msgpack.encode(LookupAccounts(1, [])),
        b"\x00\x00\x00\x03\x92\x00\x01" * 2,
    ],
    ids=["too large", "no message", "no frame", "no greeting", "two greetings"],
)
async def test_what_is_not_the_protocol_ends_its_connection_only(served, garbage):
    """A connection that does not keep to the protocol is ended, and others do not notice."""
    reader, writer = await asyncio.open_unix_connection(str(served.directory.ledger_socket))
    writer.write(garbage)
    await reader.read(-1)
    writer.close()
    assert (await served.ledger.create_transfers([plain(10)]))[0].status is CREATED


def frame(message):
    contents = msgspec.msgpack.encode(message)
    return len(contents).to_bytes(4) + contents


async def test_a_client_that_does_not_read(served):
    """A client that asks for much and does not read delays nobody else, and its answers wait for it."""
    await served.ledger.create_transfers([plain(number) for number in range(100, 8_000)])
    reader, writer = await asyncio.open_unix_connection(str(served.directory.ledger_socket))
    greedy = [TransfersAfter(number, 0, 8_000) for number in range(18)]  # More than UNWRITTEN_BYTES_MAX.
    writer.writelines(frame(message) for message in [Hello(PROTOCOL), *greedy])
    outcome: TransferOutcome
    for number in range(10, 90):
        [outcome] = await served.ledger.create_transfers([plain(number)])
        assert outcome.status is CREATED
    answers = []
    for _ in range(19):
        length = int.from_bytes(await reader.readexactly(4))
        answers.append(CLIENT_DECODER.decode(await reader.readexactly(length)))
    writer.close()
    assert answers.pop(0) == Welcome(PROTOCOL)
    assert [answer.number for answer in answers] == list(range(18))
    assert sum(len(answer.answer) for answer in answers) > UNWRITTEN_BYTES_MAX
    assert all(len(msgspec.msgpack.decode(answer.answer)) >= 7_900 for answer in answers)
