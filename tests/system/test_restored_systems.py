"""Store, ledger or core of real systems put back to an older copy: no role starts, and `restore-check` repairs it."""

import asyncio
import os
import signal
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from shutil import which

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from servers.tigerbeetle import HOW_TO_GET_IT

from internal_transfer.simulation.scenarios.catalogue import ONE_PROCESS, new_server
from internal_transfer.simulation.scenarios.expectation import until
from internal_transfer.simulation.scenarios.server_process import ServerProcess, run_program
from internal_transfer.simulation.scenarios.surroundings import Companion, StackKind, TigerBeetle
from internal_transfer.wire.transfer_events import decode_transfer_event
from system.copies import CassandraCopy, FileCopy, PostgresqlCopy

TIGERBEETLE = os.environ.get("TIGERBEETLE_BINARY") or which("tigerbeetle")
APART = ("gateway", "settler", "scanner", "courier")
TOGETHER = (",".join(APART),)
PROCESSES = {"postgresql": APART, "tigerbeetle": TOGETHER, "cassandra": TOGETHER}
"""The roles of each process on a stack. That each role alone looks at what it starts on is shown on one of them."""
SAID = {
    "store": "the store is older than the ledger",
    "ledger": "the ledger is older than the store",
    "core": "is older than the record",
}
"""What a start says, by the part that is older."""
DONE = {
    "store": {"records_caught_up": 6, "records_rebuilt": 5},
    "ledger": {
        "deposits_made_again": 2,
        "holds_made_again": 6,
        "holds_settled_again": 6,
        "withdrawals_made_again": 1,
    },
    "core": {"legs_told_again": 6},
}
"""What the repair has to do for the transfers that `Story.go_on` asks for, and the one that is open before."""
REPAIR = ("--repair", "--reason", "ticket 4711")


@dataclass(frozen=True)
class Asked:
    """A transfer that was asked for, and what its owner was told: its status, its id, and why it failed."""

    owner: str
    source: str
    target: str
    amount: int
    status: str = "SUCCESS"
    request_id: str = ""
    code: str | None = None


class Story:
    """What users and operators did on a stack, and what everybody must find after that."""

    def __init__(self, server, place, closing, processes):
        self.server = server
        self.around = server.surroundings
        self.place = place
        self._closing = closing
        self._processes = processes
        self._asked = {}
        self._cash = Counter()

    async def begin(self):
        """What happens before the copy, up to a transfer that stays open because the core is away."""
        await self.server.start()
        await self.deposit("ann", 100)
        await self.deposit("ben", 50)
        await self.ask(Asked("ann", "funding", "spot", 40))
        await self.ask(Asked("ann", "spot", "futures", 5))
        await self.ask(Asked("ann", "funding", "earn", 10))
        await self.ask(Asked("ben", "funding", "earn", 5_000, status="FAILED"))
        await self.around.core.stop()
        await self.ask(Asked("ben", "funding", "spot", 7, status="PENDING"))

    async def go_on(self):
        """What happens after it, up to another open transfer and the end of all; no core ever hears of "new"."""
        await self.around.core.start()
        if not self.server.is_running:
            await self.server.start()
        [(key, open_since_then)] = [each for each in self._asked.items() if each[1].status == "PENDING"]
        await self.final(key, open_since_then)
        await self.deposit("cid", 30)
        await self.deposit("new", 20)
        # Every step spends what the one before it brought.
        await self.ask(Asked("cid", "funding", "spot", 30))
        await self.ask(Asked("cid", "spot", "funding", 25))
        await self.withdraw("cid", 20)
        await self.ask(Asked("ann", "spot", "futures", 35))
        await self.ask(Asked("new", "funding", "earn", 6))
        await self.server.steer_core("refuse-credits")
        await self.ask(Asked("ann", "funding", "spot", 4, status="FAILED"))
        await self.server.steer_core("resume")
        await self.around.core.stop()
        await self.ask(Asked("ben", "funding", "spot", 3, status="PENDING"))
        await until("everything is published", self.published)
        assert await self.server.stop() == 0
        # TigerBeetle has no way to end but the signal's.
        assert await self.around.ledger.stop() in {0, -signal.SIGTERM}

    async def deposit(self, owner, amount):
        """Gives a user money."""
        await self.server.fund(owner, str(amount))
        self._cash[owner, "funding"] += amount

    async def withdraw(self, owner, amount):
        """Takes money out again."""
        body = {"user": owner, "account": "funding", "asset": "USDT", "amount": str(amount), "reference": "out"}
        await self.server.operate("withdrawals", body | {"reason": "a withdrawal"})
        self._cash[owner, "funding"] -= amount

    async def ask(self, asked):
        """Has a user ask until the transfer is as it must be, under one key."""
        key = f"key-{len(self._asked)}"
        wait_seconds = 0 if asked.status == "PENDING" else 10

        async def told():
            body = await self._answer(key, asked, wait_seconds)
            return body if body.get("status") == asked.status else None

        body = await until(f"{key} is {asked.status}", told)
        self._asked[key] = replace(asked, request_id=body["request_id"], code=body.get("code"))

    async def final(self, key, asked):
        """Asks again under a key until its transfer is final, which must be the one that was told of."""

        async def told():
            body = await self._answer(key, asked, 10)
            return body if body.get("status") in {"SUCCESS", "FAILED"} else None

        body = await until(f"{key} is final", told)
        must_be = replace(asked, status="SUCCESS") if asked.status == "PENDING" else asked
        now = replace(asked, status=body["status"], request_id=body["request_id"], code=body.get("code"))
        assert now == must_be, (key, body)
        self._asked[key] = now

    async def _answer(self, key, asked, wait_seconds):
        user = self.server.user(asked.owner)
        response = await user.move(asked.source, asked.target, str(asked.amount), key=key, wait_seconds=wait_seconds)
        body = response.json()
        return body | {"status": "FAILED"} if response.status_code == 422 and "request_id" in body else body

    async def published(self):
        """The events in Kafka, as bytes, as soon as they tell of every transfer's whole way; None before."""
        events = await asyncio.to_thread(self._consume)
        seen = {}
        for event in map(decode_transfer_event, events):
            seen.setdefault(event.transfer_id, {})[event.version] = event.status
        for asked in self._asked.values():
            versions = seen.get(asked.request_id, {})
            if sorted(versions) != list(range(1, len(versions) + 1)) or versions.get(len(versions)) != asked.status:
                return None
        return events

    def _consume(self):
        topic = f"{self.around.name}.transfers.events"
        consumer = Consumer({"bootstrap.servers": self.around.environment["KAFKA_BOOTSTRAP"], "group.id": topic})
        try:
            parts = [TopicPartition(topic, number) for number in consumer.list_topics(topic).topics[topic].partitions]
            count = sum(consumer.get_watermark_offsets(part)[1] for part in parts)
            consumer.assign([TopicPartition(topic, part.partition, OFFSET_BEGINNING) for part in parts])
            return [message.value() for message in consumer.consume(count, timeout=10)] if count else []
        finally:
            consumer.close()

    async def expect_refused(self, said):
        """No process starts, and each says why and what to do."""
        for roles in self._processes:
            words = ["serve", "--roles", roles, "--config", str(self.server.config), "--data", str(self.place / roles)]
            words += ["--port", "0", "--admin-port", "0", "--demo"]
            ran = await run_program(*words, environment=self.around.environment)
            assert (ran.exit_code, ran.output) == (1, ""), (roles, ran)
            assert said in ran.errors, (roles, ran.errors)
            assert "internal-transfer restore-check --repair" in ran.errors, (roles, ran.errors)

    async def restore_check(self, *words):
        """Runs the command on the data directory of a role; answers its exit code and what it found."""
        options = ("--config", str(self.server.config), "--data", str(self.server.data), "--json")
        ran = await run_program("restore-check", *options, *words, environment=self.around.environment)
        return ran.exit_code, ran.object()

    async def start_roles(self):
        """Starts every process of the stack; users and operators come to the first."""
        first, *others = self._processes
        options = ("--demo", "--roles", first)
        self.server = ServerProcess(self.server.data, self.server.config, options=options, surroundings=self.around)
        await self._closing.enter_async_context(self.server)
        await self.server.start()
        for roles in others:
            words = ["serve", "--roles", roles, "--config", str(self.server.config), "--data", str(self.place / roles)]
            log = self.place / f"{roles}.log"
            other = Companion(roles, [*words, "--admin-port", "0", "--demo"], log, self.around.environment)
            self._closing.push_async_callback(other.kill)
            await other.start()

    async def expect_all(self):
        """Every key answers with its transfer, what was open becomes final, and all sums are those of the story."""
        for key, asked in self._asked.items():
            await self.final(key, asked)
        balances = Counter(self._cash)
        for asked in self._asked.values():
            if asked.status == "SUCCESS":
                balances[asked.owner, asked.source] -= asked.amount
                balances[asked.owner, asked.target] += asked.amount
        for owner in {asked.owner for asked in self._asked.values()}:
            user = self.server.user(owner)
            await user.expect_balances(**{kind: str(units) for (who, kind), units in balances.items() if who == owner})
            ids = sorted(transfer["request_id"] for transfer in await user.history())
            assert ids == sorted(asked.request_id for asked in self._asked.values() if asked.owner == owner)
        await until("everything is published", self.published)
        await self.server.expect_clean()

    def copy_of(self, part):
        """A copy of the part, not made yet."""
        match part:
            case "store" if self.around.kind is StackKind.CASSANDRA:
                return CassandraCopy(self.around)
            case "store":
                return PostgresqlCopy(self.around)
            case "ledger":
                ledger = self.around.ledger
                return FileCopy(ledger, ledger.file if isinstance(ledger, TigerBeetle) else self.place / "ledger")
            case _:
                return FileCopy(self.around.core, self.place / "core")


@pytest.fixture
async def told(place, environment, monkeypatch):
    """Makes a story on one of the stacks, with systems and processes of its own that are ended after the test."""
    async with AsyncExitStack() as closing:

        async def on(stack):
            kind = StackKind.CASSANDRA if stack == "cassandra" else StackKind.POSTGRESQL
            environment(kind)
            if stack == "tigerbeetle":
                if TIGERBEETLE is None:
                    pytest.skip(f"tigerbeetle is missing: {HOW_TO_GET_IT}")
                monkeypatch.setenv("TIGERBEETLE_BINARY", TIGERBEETLE)
            server = await closing.enter_async_context(new_server(place, ONE_PROCESS, kind))
            return Story(server, place, closing, PROCESSES[stack])

        yield on


@pytest.mark.parametrize(
    ("part", "stack"), [("ledger", "postgresql"), ("ledger", "tigerbeetle"), ("core", "postgresql")]
)
async def test_an_older_ledger_or_core_gets_back_what_it_lacks(told, part, stack):
    """Every role refuses to start until a repair has done all again under the same ids; nothing is lost or doubled."""
    story = await told(stack)
    await story.begin()
    copy = story.copy_of(part)
    await copy.make()
    await story.go_on()
    await copy.put_back()
    await story.around.ledger.start()
    if part == "core":
        # Nobody is told that all agree as long as one of them says nothing.
        code, found = await story.restore_check()
        assert (code, "no answer from the core" in found["detail"]) == (3, True), found
    await story.around.core.start()
    await story.expect_refused(SAID[part])
    code, found = await story.restore_check()
    assert (code, SAID[part] in found["disagreement"]) == (1, True), found
    code, found = await story.restore_check(*REPAIR)
    assert (code, found.get("clean")) == (0, True), found
    assert found["done"] == DONE[part]
    await story.start_roles()
    await story.expect_all()


@pytest.mark.parametrize("stack", ["postgresql", "tigerbeetle", "cassandra"])
async def test_an_older_store_is_rebuilt_from_the_ledger_and_events(told, stack):
    """No role starts until rows and keys are back; whose accounts only the store knew, the events in Kafka tell."""
    story = await told(stack)
    await story.begin()
    copy = story.copy_of("store")
    if stack == "cassandra":
        assert await story.server.stop() == 0
    await copy.make()
    await story.go_on()
    events = story.place / "events"
    events.write_bytes(b"\n".join(await until("they can be read", story.published)))
    await copy.put_back()
    await story.around.ledger.start()
    await story.around.core.start()
    await story.expect_refused(SAID["store"])
    code, found = await story.restore_check()
    assert (code, SAID["store"] in found["disagreement"]) == (1, True), found
    code, found = await story.restore_check(*REPAIR)
    assert (code, [problem["kind"] for problem in found["problems"]]) == (1, ["accounts_unknown"]), found
    await story.expect_refused("has not ended well")
    assert found["done"] == DONE["store"]
    code, found = await story.restore_check(*REPAIR, "--events", str(events))
    assert (code, found["clean"], found["done"]["records_rebuilt"]) == (0, True, 1), found
    await story.start_roles()
    await story.expect_all()
