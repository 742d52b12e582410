"""What concerns TigerBeetle alone: a server that is away, hangs, dies during a call, or ends the session."""

import asyncio
import struct
from contextlib import asynccontextmanager

import pytest
from tigerbeetle import bindings

from contracts.ledgers import TigerBeetleHarness
from internal_transfer.adapters.tigerbeetle.encoding import (
    check_layout,
    decode_account_outcomes,
    decode_transfer_outcomes,
)
from internal_transfer.adapters.tigerbeetle.ledger import TigerBeetleLedger, TigerBeetleSettings
from internal_transfer.conformance.ledger.harness import new_id_base
from internal_transfer.conformance.ledger.world import World
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, StartRefusedError, Unavailable
from internal_transfer.ports.ledger import BATCH_MAX, LedgerAccount, LedgerTransfer, TransferResult
from real_servers import need, own

BANK, ALICE, UNKNOWN, FENCE = 1, 2, 99, 900
SHORT_SECONDS = 0.3
SESSIONS_MAX = 64
"""As many sessions as a server remembers."""
CLIENTS = 16
"""Half of the sessions that it accepts at a time."""


@pytest.fixture(scope="module")
def server():
    """A server for this module alone, which may pause and kill it."""
    need("tigerbeetle")
    with own("tigerbeetle") as server:
        yield server


@asynccontextmanager
async def connected(server, **settings):
    """A world on the server, with its own session and two accounts."""
    place = server.address()
    world = World(TigerBeetleHarness(place.address, place.cluster, **settings))
    await world.harness.open()
    try:
        await world.open_accounts(BANK, ALICE)
        yield world
    finally:
        await world.harness.close()


@asynccontextmanager
async def paused(server):
    """Pauses the server meanwhile."""
    server.pause()
    try:
        yield
    finally:
        server.resume()


async def insist(world: World, *transfers: LedgerTransfer) -> list[TransferResult]:
    """Sends a batch until there is an answer, as a service would."""
    while True:
        try:
            return await world.create(*transfers)
        except OperatingFailureError:
            await asyncio.sleep(0)


async def until_sent(world: World, calls: int) -> None:
    """Lets the tasks take their first step, which sends."""
    await asyncio.sleep(0)
    assert world.ledger.in_flight == calls


async def test_after_a_deadline_the_same_id_tells_that_it_was_done(server):
    """A call that a paused server does not answer is unknown; when it resumes, the same id exists, done once."""
    async with connected(server, call_seconds=SHORT_SECONDS) as world:
        transfer = world.plain(1, BANK, ALICE, 7)
        async with paused(server):
            with pytest.raises(OutcomeUnknown, match=r"0\.3 s; it may still"):
                await world.create(transfer)
            assert (world.ledger.in_flight, world.ledger.abandoned) == (1, 1)
        assert await insist(world, transfer) == [TransferResult.EXISTS]
        assert await world.balances(ALICE) == (0, 0, 0, 7)
        assert (world.ledger.in_flight, world.ledger.abandoned) == (0, 0)


async def test_past_the_bound_of_abandoned_calls_nothing_is_sent(server):
    """While too many calls were given up, new ones are refused before they are sent; those sent are done."""
    async with connected(server, call_seconds=SHORT_SECONDS, abandoned_max=2) as world:
        sent, refused = [world.plain(number, BANK, ALICE, 1) for number in (1, 2)], world.plain(3, BANK, ALICE, 1)
        async with paused(server):
            for transfer in sent:
                with pytest.raises(OutcomeUnknown):
                    await world.create(transfer)
            with pytest.raises(Unavailable, match="2 calls were given up"):
                await world.create(refused)
            checks = {name: ok for name, ok, _ in await world.ledger.check()}
            assert not checks["tigerbeetle connection"]
            assert not checks["tigerbeetle limits"]
        assert await insist(world, *sent, refused) == ["exists", "exists", "created"]
        assert world.ledger.abandoned == 0


async def test_the_queue_of_calls_has_a_bound(server):
    """A call that would wait behind too many others is refused, and does nothing; the others are answered."""
    async with connected(server, calls_max=2) as world:
        transfers = [world.plain(number, BANK, ALICE, 1) for number in (1, 2, 3)]
        async with paused(server), asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(world.create(transfer)) for transfer in transfers[:2]]
            await until_sent(world, 2)
            with pytest.raises(Unavailable, match="2 calls already wait"):
                await world.create(transfers[2])
            server.resume()
        assert [task.result() for task in waiting] == [["created"], ["created"]]
        assert await world.create(transfers[2]) == ["created"]


async def test_a_cancelled_call_is_done_all_the_same(server):
    """A caller that gives up takes nothing back, and leaves nothing that would block the end of the session."""
    async with connected(server) as world:
        transfer = world.plain(1, BANK, ALICE, 1)
        async with paused(server), asyncio.TaskGroup() as tasks:
            call = tasks.create_task(world.create(transfer))
            await until_sent(world, 1)
            call.cancel()
        assert call.cancelled()
        assert world.ledger.abandoned == 1
        assert await insist(world, transfer) == [TransferResult.EXISTS]
        assert world.ledger.abandoned == 0


async def test_a_call_outlives_a_server_that_is_killed(server):
    """A call that was under way when the server was killed is answered by the server that comes back, and done once."""
    async with connected(server, call_seconds=60) as world:
        await world.succeed(world.hold(1, BANK, ALICE, 5))
        async with paused(server), asyncio.TaskGroup() as tasks:
            call = tasks.create_task(world.create(world.post(2, 1, 5), world.plain(3, BANK, ALICE, 2)))
            await until_sent(world, 1)
            server.kill()
            await asyncio.to_thread(server.start)
        assert call.result() == ["created", "created"]
        assert await world.create(world.post(2, 1, 5), world.void(4, 1)) == [
            "exists",
            "pending_transfer_already_posted",
        ]
        assert await world.balances(ALICE) == (0, 0, 0, 7)


async def test_what_was_answered_survives_a_kill(server):
    """G9: holds, posts and burnt ids are there after the server was killed and started again."""
    async with connected(server, call_seconds=60) as world:
        await world.succeed(world.hold(1, BANK, ALICE, 5), world.hold(2, BANK, ALICE, 6), world.post(3, 1, 5))
        assert await world.create(world.void(4, UNKNOWN)) == ["pending_transfer_not_found"]
        server.kill()
        await asyncio.to_thread(server.start)
        assert await world.create(world.void(5, 1), world.post(6, 2, 6), world.void(4, 2)) == [
            "pending_transfer_already_posted",
            "created",
            "id_already_failed",
        ]


async def test_closing_with_calls_under_way_tells_them_that_it_is_unknown(server):
    """Calls that wait when the session is closed end as unknown; later ones do not reach the server."""
    async with connected(server) as world:
        async with paused(server):
            async with asyncio.TaskGroup() as tasks:
                transfers = [world.plain(number, BANK, ALICE, 1) for number in (1, 2, 3)]
                calls = [tasks.create_task(swallow(world, transfer)) for transfer in transfers]
                await until_sent(world, 3)
                await world.ledger.close()
            assert [type(call.result()) for call in calls] == [OutcomeUnknown] * 3
            assert world.ledger.in_flight == 0
            with pytest.raises(Unavailable, match="closed"):
                await world.create(world.plain(4, BANK, ALICE, 1))
            await world.ledger.close()
        await world.harness.reopen()
        assert await world.balances(ALICE) in {(0, 0, 0, done) for done in range(4)}
        assert set(await world.create(*transfers)) <= {TransferResult.CREATED, TransferResult.EXISTS}
        assert await world.balances(ALICE) == (0, 0, 0, 3)


async def swallow(world: World, transfer: LedgerTransfer) -> OperatingFailureError | None:
    """The failure of a call, if it fails."""
    try:
        await world.create(transfer)
    except OperatingFailureError as error:
        return error
    return None


async def test_a_session_that_is_evicted_is_replaced(server):
    """A call on a session that TigerBeetle has evicted is unknown; the next call opens a new session."""
    async with connected(server) as world:
        for _ in range(SESSIONS_MAX // CLIENTS):
            others = [TigerBeetleLedger(world.harness.settings) for _ in range(CLIENTS)]
            await asyncio.gather(*(other.start() for other in others))
            await asyncio.gather(*(other.close() for other in others))
        transfer = world.plain(1, BANK, ALICE, 1)
        with pytest.raises(OutcomeUnknown, match="client_evicted"):
            await world.create(transfer)
        assert await world.create(transfer) in (["created"], ["exists"])
        assert await world.balances(ALICE) == (0, 0, 0, 1)


async def test_two_sessions_race_for_a_hold_and_its_fence(server):
    """Of a hold and its fence from different sessions exactly one wins, and both learn which."""
    async with connected(server) as world, connected(server) as other:
        other.harness.id_base = world.harness.id_base
        await world.create(world.hold(FENCE, UNKNOWN, ALICE, 1))
        won = set()
        for number in range(100, 160):
            pair = (world.create(world.hold(number, BANK, ALICE, 1)), other.create(other.void(number, FENCE)))
            [held], [fenced] = await asyncio.gather(*(pair if number % 2 else pair[::-1]))
            held, fenced = (held, fenced) if number % 2 else (fenced, held)
            assert (held, fenced) in {
                (TransferResult.CREATED, TransferResult.EXISTS_WITH_DIFFERENT_FLAGS),
                (TransferResult.ID_ALREADY_FAILED, TransferResult.PENDING_TRANSFER_NOT_FOUND),
            }
            won.add(held)
        held_now = (await world.balances(ALICE))[2]
        found = await world.ledger.lookup_transfers([world.at(number) for number in range(100, 160)])
        assert held_now == len(found)
        assert won


async def test_a_full_page_of_history_is_read_in_one_call(server):
    """The most transfers of a call come back in one reply, in both orders."""
    async with connected(server) as world:
        start = (await world.ledger.newest_transfers(1) or [LedgerTransfer(id=1)])[0].timestamp
        await world.succeed(*(world.plain(number, BANK, ALICE, 1) for number in range(1, BATCH_MAX + 1)))
        rising = await world.ledger.transfers_after(start, BATCH_MAX)
        assert [transfer.id for transfer in rising] == [world.at(number) for number in range(1, BATCH_MAX + 1)]
        assert await world.ledger.newest_transfers(BATCH_MAX) == rising[::-1]


async def test_many_calls_at_once_keep_their_answers_apart(server):
    """A thousand calls get their own results, however TigerBeetle's client merges them."""
    async with connected(server) as world:

        async def hold_and_post(number: int) -> list[TransferResult]:
            return [
                *await world.create(world.hold(number, BANK, ALICE, number)),
                *await world.create(world.post(number + 1, number, number), world.void(number + 2, UNKNOWN)),
            ]

        numbers = range(10_000, 20_000, 10)
        results = await asyncio.gather(*(hold_and_post(number) for number in numbers))
        assert results == [["created", "created", "pending_transfer_not_found"]] * len(numbers)
        assert await world.balances(ALICE) == (0, 0, 0, sum(numbers))


async def test_doctor_is_told_what_is_there(server):
    """All findings are good on a server that answers, and they name the release."""
    async with connected(server) as world:
        checks = {name: (ok, message) for name, ok, message in await world.ledger.check()}
    assert all(ok for ok, _ in checks.values())
    assert "accepts this client, release 0." in checks["tigerbeetle version"][1]


# Starts that are refused


async def refused(**settings) -> str:
    """The message of a start that must not succeed."""
    ledger = TigerBeetleLedger(TigerBeetleSettings(start_seconds=1, **settings))
    with pytest.raises(StartRefusedError) as refusal:
        await ledger.start()
    await ledger.close()
    return str(refusal.value)


async def test_a_start_without_a_server_names_what_may_be_wrong(unused_tcp_port):
    """TigerBeetle's client waits for ever for a server that is away; the start does not, and says what to check."""
    message = await refused(cluster_id=0, addresses=(f"127.0.0.1:{unused_tcp_port}",))
    assert f"127.0.0.1:{unused_tcp_port} did not answer within 1 s" in message
    assert "another cluster id" in message


async def test_that_a_server_is_away_is_logged_once(unused_tcp_port, caplog):
    """The client tries to connect again and again; only one of the lines that it logs is passed on."""
    await refused(cluster_id=0, addresses=(f"127.0.0.1:{unused_tcp_port}",))
    assert len([record for record in caplog.records if record.name == "tigerbeetle"]) == 1


async def test_a_start_with_another_cluster_id_is_refused(server):
    """A server of another cluster never answers; the start names that cause."""
    message = await refused(cluster_id=new_id_base(), addresses=(server.address().address,))
    assert "another cluster id" in message


async def test_a_start_with_all_places_taken_is_refused(server):
    """A server accepts 32 clients and never answers another one, whose start gives up and names that cause too."""
    place = server.address()
    settings = TigerBeetleSettings(cluster_id=place.cluster, addresses=(place.address,))
    others = [TigerBeetleLedger(settings) for _ in range(2 * CLIENTS)]
    try:
        await asyncio.gather(*(other.start() for other in others))
        assert "it has no place left for another client" in await refused(cluster_id=0, addresses=(place.address,))
    finally:
        await asyncio.gather(*(other.close() for other in others))


@pytest.mark.parametrize("address", ["", "nowhere.example:3000", "127.0.0.1:port"])
async def test_an_invalid_address_is_refused(address):
    """Names are not resolved, and an invalid address refuses the start with what to give instead."""
    assert "give one IP address and port" in await refused(cluster_id=0, addresses=(address,))


def test_a_client_with_another_layout_is_refused(monkeypatch):
    """The installed client has the layout that is used here; a start with another layout is refused."""
    check_layout()
    monkeypatch.setattr(bindings, "CTransfer", bindings.CAccount)
    with pytest.raises(StartRefusedError, match="differently"):
        check_layout()


# Results that nobody expects


@pytest.mark.parametrize(("number", "name"), [(35, "pending_transfer_expired"), (4_000, "4000")])
def test_a_result_without_a_meaning_here_is_unknown(number, name):
    """A status unknown to the port, or even to the client, is an unknown outcome that names it."""
    created = struct.pack("<QI4x", 1, 0xFFFFFFFF)
    reply = created + struct.pack("<QI4x", 2, number)
    with pytest.raises(OutcomeUnknown, match=f"{name} for 8$"):
        decode_transfer_outcomes(reply, [LedgerTransfer(id=7), LedgerTransfer(id=8)])


def test_a_reply_of_another_length_is_unknown():
    """Fewer results than events are an unknown outcome."""
    with pytest.raises(OutcomeUnknown, match="0 results for 1 events"):
        decode_account_outcomes(b"", [LedgerAccount(id=7, ledger=1, code=1)])
