"""What happens over Aeron when a process, the media driver or a message is lost, late or wrong."""

import asyncio
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress

import pytest
from msgspec.structs import replace

from adapters.aeron.suite.machine import Core, CoreProcess, Service, sending, until
from internal_transfer.adapters.aeron.client import AeronClient
from internal_transfer.adapters.aeron.settings import COMMANDS, QUERIES, VERDICTS, AeronConnection, Bounds
from internal_transfer.adapters.sqlite.trading_core import CoreMode
from internal_transfer.conformance.bench import Plan
from internal_transfer.conformance.check import check_core
from internal_transfer.conformance.report import Finding
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Action, Command, Outcome, Side, Verdict
from internal_transfer.ports.errors import OutcomeUnknown, StartRefusedError, System, Unavailable
from internal_transfer.wire.core_messages import encode_command

ALICE = Owner("alice")
SPOT = Account(ALICE, "spot", "USDT")


def command_of(transfer: int, *, action: Action = Action.APPLY, side: Side = Side.TARGET, amount: int = 100) -> Command:
    debit, credit = (None, SPOT) if side is Side.TARGET else (SPOT, None)
    return Command(TransferId(transfer), "main", side, action, "USDT", amount, debit, credit)


def outcomes(verdicts: Sequence[Verdict]) -> list[Outcome]:
    return [verdict.outcome for verdict in verdicts]


async def tell_until_answered(service: Service, command: Command) -> Verdict:
    """Tells a command again and again, as the scanner does."""
    while True:
        try:
            return (await asyncio.wait_for(service.tell([command]), 1.0))[0]
        except (Unavailable, OutcomeUnknown, TimeoutError):
            await asyncio.sleep(0.05)


async def test_conformance_with_a_core_that_is_killed(connection, clock, tmp_path):
    """The reference core as a process keeps every promise over Aeron, also across `kill -9` and a restart on
    its data.
    """
    process = CoreProcess(connection, tmp_path / "core")

    async def kill_and_start() -> bool:
        await process.end(signal.SIGKILL)
        await process.start()
        return True

    plan = Plan(
        core="main", account=SPOT, other=Account(Owner("bob"), "spot", "USDT"), other_asset="BTC", answer_seconds=30.0
    )
    try:
        await process.start()
        async with Service(connection, clock) as service:
            await service.connected()
            report = await check_core(service.core, plan=plan, clock=clock, bus=service.bus, restarted=kill_and_start)
    finally:
        await process.remove()
    assert {result.promise: result.message for result in report.results if result.finding is not Finding.KEPT} == {}


async def test_a_core_process_ends_when_asked(connection, tmp_path):
    """A core that gets SIGTERM ends with code 0 and releases its data directory."""
    process = CoreProcess(connection, tmp_path / "core")
    for _ in range(2):
        await process.start()
        assert await process.end(signal.SIGTERM) == 0


async def test_the_driver_is_lost_and_comes_back(own_driver, clock, tmp_path):
    """Without a driver everything is `Unavailable`; when it is back, both sides connect again and nothing is done
    twice.
    """
    own_driver.start()
    connection = AeronConnection(directory=own_driver.directory, driver_seconds=1.0)
    async with AsyncExitStack() as stack:
        core = await stack.enter_async_context(Core(connection, clock, tmp_path / "core.db").running())
        service = await stack.enter_async_context(Service(connection, clock))
        await service.connected()
        first = await service.tell([command_of(1)])
        own_driver.end(signal.SIGKILL)
        await until(lambda: service.client.failure is not None and core.client.failure is not None)
        for asking in (
            service.core.tell([command_of(2)]),
            service.core.verdicts([TransferId(1)]),
            service.core.balances(ALICE),
            service.core.entries_after(0, 1),
        ):
            with pytest.raises(Unavailable) as failure:
                await asking
            assert failure.value.system is System.CORE
        assert [right for _, right, _ in await service.core.check()] == [False]
        await until(lambda: not own_driver.is_active)
        own_driver.start()
        await service.connected()
        assert [await tell_until_answered(service, command_of(1))] == first
        assert (await tell_until_answered(service, command_of(2))).outcome is Outcome.APPLIED
        assert [balance.posted for balance in await service.core.balances(ALICE)] == [200]


async def test_what_waits_when_the_driver_dies_is_answered_for(own_driver, clock):
    """A command that nobody took when the driver died is `Unavailable`: nothing was done."""
    own_driver.start()
    connection = AeronConnection(directory=own_driver.directory, driver_seconds=1.0)
    async with Service(connection, clock, offer_seconds=60.0) as service:
        async with asyncio.TaskGroup() as group:
            telling = group.create_task(_failure_of(service.core.tell([command_of(1)])))
            own_driver.end(signal.SIGKILL)
        assert isinstance(telling.result(), Unavailable)


async def _failure_of(asking) -> Exception | None:
    try:
        await asking
    except (Unavailable, OutcomeUnknown) as error:
        return error
    return None


async def test_a_service_starts_before_the_driver(own_driver, clock, tmp_path):
    """Without a driver a service starts and says what is missing; it works as soon as there is one."""
    connection = AeronConnection(directory=own_driver.directory, driver_seconds=1.0)
    async with Service(connection, clock) as service:
        with pytest.raises(Unavailable, match="no Aeron media driver"):
            await service.core.tell([command_of(1)])
        own_driver.start()
        async with Core(connection, clock, tmp_path / "core.db").running():
            await service.connected()
            assert outcomes(await service.tell([command_of(1)])) == [Outcome.APPLIED]


async def test_a_channel_that_the_driver_refuses(shared_driver, clock):
    """A start with an invalid channel is refused, with the channel's name and the driver's reason."""
    connection = AeronConnection(directory=shared_driver.directory, commands="aeron:nowhere")
    with pytest.raises(StartRefusedError, match="invalid URI scheme or transport: aeron:nowhere"):
        await Service(connection, clock).client.start()


async def test_nobody_listens(connection, clock):
    """Where no core is connected a command is `Unavailable` within its deadline, since it was never sent."""
    async with Service(connection, clock, offer_seconds=0.05) as service:
        with pytest.raises(Unavailable, match="has nobody who listens"):
            await service.core.tell([command_of(1)])
        with pytest.raises(Unavailable):
            await service.core.balances(ALICE)
        assert service.core.failure == "no core listens for commands"


async def test_a_core_that_takes_no_more(own_driver, clock):
    """Commands to a core that takes no more are `OutcomeUnknown` where some went out, and then `Unavailable`."""
    own_driver.start()
    connection = AeronConnection(directory=own_driver.directory, commands="aeron:ipc?term-length=64k")
    deaf = AeronClient(connection, clock=clock, bounds=Bounds(messages_most=1))
    deaf.inlet(connection.commands, COMMANDS, lambda: None)
    deaf.inlet(connection.commands, QUERIES, lambda: None)
    await deaf.start()
    async with Service(connection, clock, offer_seconds=0.3) as service:
        await until(lambda: service.core.failure is None)
        commands = [command_of(number) for number in range(1, 2000)]
        with pytest.raises(OutcomeUnknown, match=r"\d+ of 1999 messages were sent: .* takes no more"):
            await service.core.tell(commands)
        with pytest.raises(Unavailable, match="takes no more"):
            await service.core.tell(commands[:1])
    await deaf.close()


async def test_too_much_waits(own_driver, clock):
    """Messages beyond the bound of the queue to Aeron are `Unavailable` at once."""
    own_driver.start()
    async with Service(AeronConnection(directory=own_driver.directory), clock, messages_most=10) as service:
        with pytest.raises(Unavailable, match="messages wait"):
            await service.core.tell([command_of(number) for number in range(1, 12)])


async def test_a_core_that_comes_back_from_a_pause(pair):
    """A paused core carries out what waited, once, and says meanwhile that it cannot answer."""
    service, core = pair
    core.inner.core.mode = CoreMode.PAUSED
    assert await service.core.tell([command_of(1), command_of(1)]) == [None, None]
    with pytest.raises(Unavailable, match="paused by the operator"):
        await service.core.balances(ALICE)
    assert core.host.state().reason == "the core is paused by the operator"
    core.inner.core.mode = CoreMode.NORMAL
    assert outcomes(await service.take(2)) == [Outcome.APPLIED] * 2
    assert [balance.posted for balance in await service.core.balances(ALICE)] == [100]


async def test_a_verdict_that_nobody_heard(connection, clock, tmp_path):
    """A verdict that was lost on its way is repeated when the command is told again, with no second effect."""
    async with Core(connection, clock, tmp_path / "core.db").running() as core:
        await core.inner.carry_out([command_of(1)])
        async with Service(connection, clock) as service:
            await service.connected()
            assert outcomes(await service.tell([command_of(1)])) == [Outcome.APPLIED]
            assert [balance.posted for balance in await service.core.balances(ALICE)] == [100]


POISON = [
    b"{",
    b"\xff\xfe",
    b"",
    # From a service of the release before.
    b'{"type":"set_mode/1","correlation_id":"x","expires_at":9999999999999,"mode":"paused"}',
]


async def test_poison(pair, connection, clock):
    """Undecodable messages on either stream are counted with the reason, and what follows is carried out."""
    service, core = pair
    poison = [*POISON, encode_command(command_of(1)).replace(b"command/1", b"command/9")]
    async with sending(connection, clock, (connection.commands, COMMANDS), (connection.commands, QUERIES)) as send:
        await send(*poison)
        await until(lambda: len(core.poison) == 2 * len(poison))
    assert outcomes(await service.tell([command_of(2)])) == [Outcome.APPLIED]
    assert [balance.posted for balance in await service.core.balances(ALICE)] == [100]
    assert any("command/9" in reason for reason in core.poison)


async def test_a_poisoned_verdict(pair, connection, clock):
    """A verdict that cannot be read is counted by the settler, and the next one is taken."""
    service, _ = pair
    async with sending(connection, clock, (connection.verdicts, VERDICTS)) as send:
        await send(b"nonsense")
        await until(lambda: len(service.poison) == 1)
    assert outcomes(await service.tell([command_of(1)])) == [Outcome.APPLIED]


async def test_every_settler_hears_every_verdict(pair, connection, clock):
    """Two service processes both hear a verdict, whichever told the command, and the replies to their own queries."""
    service, _ = pair
    async with Service(connection, clock) as other:
        await other.connected()
        # A verdict is only heard by who is connected to the core when it is sent.
        heard = await tell_until_answered(other, command_of(1))
        assert await service.take(1) == [heard]
        questions = [(service, TransferId(1), [heard]), (other, TransferId(2), [])] * 20
        answers = await asyncio.gather(*(asker.core.verdicts([about]) for asker, about, _ in questions))
        assert answers == [[due] for _, _, due in questions]


async def test_large_answers(pair):
    """Look-ups and entries of several pages, in messages of many fragments, come whole and in order."""
    service, _ = pair
    told = [command_of(number, amount=2**112 - number) for number in range(1, 700)]
    verdicts = [verdict for at in range(0, 700, 100) for verdict in await service.tell(told[at : at + 100])]
    ids = [command.transfer_id for command in told]
    assert await service.core.verdicts([*ids, TransferId(900)]) == [*([verdict] for verdict in verdicts), []]
    entries = await service.core.entries_after(0, 10_000)
    assert [verdict for _, verdict in entries] == verdicts
    assert await service.core.entries_after(entries[9][0], 300) == entries[10:310]


async def test_a_reply_that_does_not_fit(own_driver, clock, tmp_path):
    """Where the driver's terms are too small for a reply, the query is `Unavailable` and says so."""
    own_driver.start()
    connection = AeronConnection(directory=own_driver.directory, verdicts="aeron:ipc?term-length=64k")
    async with Core(connection, clock, tmp_path / "core.db").running(), Service(connection, clock) as service:
        await service.connected()
        for number in range(1, 100):
            command = command_of(number)
            named = Account(ALICE, f"t{number:031d}", "USDT")
            await service.tell([replace(command, credit=named)])
        with pytest.raises(Unavailable, match="too long for this driver"):
            await service.core.balances(ALICE)


async def test_a_settler_that_lags_holds_nobody_up(own_driver, clock, tmp_path):
    """A process that does not take its verdicts loses some; the core and the other processes go on."""
    own_driver.start(
        AERON_TIMER_INTERVAL="50ms",
        AERON_UNTETHERED_WINDOW_LIMIT_TIMEOUT="100ms",
        AERON_UNTETHERED_LINGER_TIMEOUT="100ms",
        AERON_UNTETHERED_RESTING_TIMEOUT="100ms",
    )
    connection = AeronConnection(directory=own_driver.directory, verdicts="aeron:ipc?term-length=64k")
    async with AsyncExitStack() as stack:
        core = await stack.enter_async_context(Core(connection, clock, tmp_path / "core.db").running())
        slow = await stack.enter_async_context(Service(connection, clock, verdicts_most=0, messages_most=1))
        service = await stack.enter_async_context(Service(connection, clock))
        for each in (slow, service):
            await each.connected()
        count = 3000
        for at in range(1, count, 500):
            commands = [command_of(number) for number in range(at, at + 500)]
            assert outcomes(await service.tell(commands)) == [Outcome.APPLIED] * 500
        assert core.host.unsent == 0


async def test_doctor_looks_at_the_way(pair, connection, clock, tmp_path):
    """The check finds a core that answers, and reports two cores where there may be one."""
    service, _ = pair
    lines = [*await service.core.check(), *await service.bus.check()]
    assert [(name, right) for name, right, _ in lines] == [
        ("aeron driver", True),
        ("aeron commands", True),
        ("aeron messages", True),
        ("aeron core", True),
        ("aeron verdicts", True),
    ]
    if connection.commands == "aeron:ipc":
        async with Core(connection, clock, tmp_path / "second.db").running():
            message = ""
            while "2 cores send" not in message:
                ((_, right, message),) = await service.bus.check()
                await asyncio.sleep(0.001)
            assert not right


async def test_only_a_core_confirms(pair):
    """A service cannot send a verdict: only a core may."""
    service, _ = pair
    with pytest.raises(Unavailable, match="only a trading core"):
        await service.bus.publish(
            [Verdict(TransferId(1), Side.TARGET, Action.APPLY, Outcome.APPLIED, "", "USDT", 1, None, SPOT)]
        )


async def test_a_core_killed_under_load(connection, clock, tmp_path):
    """However often the core is killed under load, each command has one effect and gets its verdict."""
    process = CoreProcess(connection, tmp_path / "core")
    commands = {TransferId(number): command_of(number) for number in range(1, 2001)}
    verdicts: dict[TransferId, Verdict] = {}

    async def tell(service: Service) -> None:
        while len(verdicts) < len(commands):
            owed = [command for transfer_id, command in commands.items() if transfer_id not in verdicts]
            for at in range(0, len(owed), 100):
                with suppress(Unavailable, OutcomeUnknown):
                    await service.core.tell(owed[at : at + 100])
            await asyncio.sleep(0.1)

    async def hear(service: Service) -> None:
        while len(verdicts) < len(commands):
            for verdict in await service.take(1):
                assert verdicts.setdefault(verdict.transfer_id, verdict) == verdict

    try:
        await process.start()
        async with Service(connection, clock) as service, asyncio.TaskGroup() as group:
            await service.connected()
            hearing = group.create_task(hear(service))
            group.create_task(tell(service))
            for due in (100, 700, 1300):
                await until(lambda due=due: len(verdicts) >= due)
                await process.end(signal.SIGKILL)
                await process.start()
            await hearing
            (balance,) = await service.core.balances(ALICE)
            entries = await service.core.entries_after(0, 10_000)
    finally:
        await process.remove()
    assert balance.posted == 200_000
    assert sorted(verdict.transfer_id for _, verdict in entries) == sorted(commands)
