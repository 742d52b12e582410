"""One random history: what users, systems and operators do, and what must hold once everything is calm again."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Coroutine
from pathlib import Path
from random import Random
from typing import Any

import apsw
from msgspec.structs import replace

from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.trading_core import CoreMode
from internal_transfer.domain.account import Account, Owner, ledger_account_id
from internal_transfer.domain.identifier import TransferId, day_of
from internal_transfer.domain.leg import Action, Command, LegState, Verdict
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.request import TransferRequest
from internal_transfer.domain.rules import Limit
from internal_transfer.domain.transfer import OPEN, Decision, Status, Transfer
from internal_transfer.ports.errors import OperatingFailureError, System
from internal_transfer.ports.ledger import LedgerAccount
from internal_transfer.ports.transfer_store import Change, Event
from internal_transfer.services.answer import Answer
from internal_transfer.services.gateway import GatewayBounds
from internal_transfer.services.retry_times import RetryTimes
from internal_transfer.simulation.clock import SimulatedClock
from internal_transfer.simulation.failpoints import Crash
from internal_transfer.simulation.faults import (
    ArriveLate,
    Delay,
    Duplicate,
    FailBefore,
    Fault,
    LoseAnswer,
    RandomFaults,
)
from services.books import check_books, check_resolutions
from services.stack import ASSETS, RULES, Stack
from services.stack import request as request_of

OWNERS = 16
STEPS = 60
DEPOSIT_UNITS = 200_000
DAILY_UNITS = 250_000
SCANS_MOST = 60
"""A back-off of at most 5 minutes and an expiry of 15 fit into this many scans 30 s apart."""

LIMIT = Limit(1, 200_000, DAILY_UNITS)
LIMITED = replace(RULES, limits={"standard": {"USDT": LIMIT, "BTC": LIMIT}})
ROUTES = sorted((route.source, route.target) for route in RULES.routes)


class Mail:
    """Stands in front of the cores and holds some verdicts back; they come over the bus later, some of them twice.

    A verdict is sent only after the turn in which the core gave it was committed; one that was rolled back was never
    given.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self.probability = 0.0
        self.waiting: list[tuple[Verdict, asyncio.Future[None]]] = []
        """Verdicts, each with a future that ends with its turn."""

    def front(self, core: Any, database: Database) -> "_Cores":
        """Returns the cores as the services see them."""
        return _Cores(core, database, self)

    def keep(self, verdict: Verdict, database: Database) -> bool:
        """Decides whether a verdict is sent by mail."""
        if self._random.random() >= self.probability:
            return False
        self.waiting.append((verdict, asyncio.ensure_future(database.durable())))
        return True

    def forget_open(self) -> None:
        """Drops verdicts that were given in a turn that ended with its process."""
        for _, turn in self.waiting:
            turn.cancel()
        self.waiting = [each for each in self.waiting if each[1].done()]

    def collect(self) -> list[Verdict]:
        """Returns some of the waiting verdicts, in any order and some of them twice."""
        said = [each for each in self.waiting if not each[1].done() or each[1].exception() is None]
        self._random.shuffle(said)
        ready = [each for each in said if each[1].done()]
        mail = ready[: self._random.randint(0, len(ready))]
        self.waiting = [each for each in said if each not in mail]
        return [verdict for verdict, _ in mail] + [verdict for verdict, _ in mail if self._random.random() < 0.3]


class _Cores:
    def __init__(self, inner: Any, database: Database, mail: Mail) -> None:
        self._inner = inner
        self._database = database
        self._mail = mail

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def tell(self, commands: list[Command]) -> list[Verdict | None]:
        verdicts = await self._inner.tell(commands)
        return [
            None if verdict is None or self._mail.keep(verdict, self._database) else verdict for verdict in verdicts
        ]


class History:
    """Everything that a seed decides, and a record of it for the checks."""

    def __init__(self, seed: int, path: Path) -> None:
        random = self.random = Random(seed)
        self.each_call = random.random() < 0.5
        self.clock = SimulatedClock(seed=seed)
        # In a shared turn no call of an embedded port waits; that is what makes the turn safe.
        inside: dict[Fault, float] = {FailBefore(): 3, LoseAnswer(): 3, Duplicate(): 1}
        slow: dict[Fault, float] = {Delay(0.2, 0.3): 1, Delay(4.0, 0.0): 0.5, Delay(0.0, 12.0): 0.5}
        weights = inside | slow if self.each_call else inside
        far: dict[Fault, float] = {ArriveLate(): 2} if self.each_call else {}
        trouble = random.choice([0.0, 0.02, 0.1, 0.25])
        self.plans = {
            System.STORE: RandomFaults(seed=seed + 1, probability=trouble, weights=weights),
            System.LEDGER: RandomFaults(seed=seed + 2, probability=trouble, weights=weights | far),
            System.CORE: RandomFaults(seed=seed + 3, probability=trouble, weights=weights | far),
            System.LIMITER: RandomFaults(seed=seed + 4, probability=trouble, weights=inside | slow),
            System.OPERATIONS: RandomFaults(seed=seed + 5, probability=trouble, weights=inside | slow),
            System.BUS: RandomFaults(
                seed=seed + 6,
                probability=trouble,
                weights={FailBefore(): 1, LoseAnswer(): 1, Duplicate(): 1},
                spared=frozenset({"take"}),
            ),
        }
        self.mail = Mail(random)
        self.late_share = random.choice([0.0, 0.3, 1.0])
        self.trouble = trouble
        self.crashiness = random.choice([0.0, 0.001, 0.01])
        self.stack = Stack(
            path,
            each_call=self.each_call,
            synced=False,
            rules=LIMITED,
            clock=self.clock,
            plans=self.plans,
            times=RetryTimes(expiry_seconds=random.choice([20.0, 900.0])),
            gateway=GatewayBounds(batches_at_once=random.choice([1, 2, 3]), batch_most=random.choice([1, 8, 512])),
            in_front_of_core=self.mail.front,
        )
        self.stack.fuse = self._fuse
        self.asked: list[TransferRequest] = []
        self.answered: list[tuple[TransferRequest, Answer]] = []
        self.deposits: Counter[str] = Counter()
        self.followed: list[tuple[int, Event]] = []
        self.clients: set[asyncio.Task[None]] = set()
        self.happened: Counter[str] = Counter()

    def _fuse(self, *_: object) -> bool:
        dies = self.random.random() < self.crashiness
        self.happened["crash"] += dies
        return dies

    async def play(self) -> None:
        """Plays the history and checks it."""
        await self._open()
        for _ in range(STEPS):
            await self._step()
            await self._come_back()
        await self._calm_down()
        await self._check()
        await self.stack.stop()

    async def _open(self) -> None:
        """Deposits money and moves some of it to the cores before anything goes wrong."""
        self._set_trouble(0.0)
        crashiness, self.crashiness = self.crashiness, 0.0
        await self.stack.start(scanning=True)
        for number in range(OWNERS):
            for asset in ("USDT", "BTC"):
                units = self.random.randint(1, DEPOSIT_UNITS)
                self.deposits[asset] += units
                await self.stack.deposit(f"user{number}", units, asset=asset)
            for target in ("spot", "futures"):
                await self._client(request_of(f"first {target}", "100", owner=f"user{number}", target=target), 0.0)
        self.mail.probability = self.late_share
        self.crashiness = crashiness
        self._set_trouble(self.trouble)

    def _set_trouble(self, probability: float) -> None:
        for plan in self.plans.values():
            plan.probability = probability

    async def _come_back(self) -> None:
        """Starts the process again if it died; clients that waited for an answer get none."""
        await self.clock.settle()
        if not self.stack.dead:
            ended = [task for task in self.stack.tasks if task.done()]
            assert not ended, f"a role has ended by itself: {ended}"
            return
        for client in self.clients:
            client.cancel()
        await asyncio.gather(*self.clients, return_exceptions=True)
        self.mail.forget_open()
        fuse, self.stack.fuse = self.stack.fuse, lambda *_: False
        await self.stack.restart(scanning=True)
        self.stack.fuse = fuse

    async def _step(self) -> None:
        random = self.random
        match random.choices(
            ("request", "time", "mail", "late", "void", "mode", "wall", "commit", "follow", "kill"),
            (40, 25, 12, 6, 4, 3, 2, 2, 6, 1 if self.crashiness else 0),
        )[0]:
            case "request":
                for _ in range(random.choice([1, 1, 2, 8])):
                    self._ask(random.choice(self.asked) if self.asked and random.random() < 0.25 else self._invent())
            case "time":
                await self.stack.pass_time(random.choice([0.05, 0.5, 3.0, 12.0, 70.0]), step=0.5)
            case "mail":
                await self._deliver_mail()
            case "late":
                for system in (System.LEDGER, System.CORE):
                    await self._within(self._deliver_late(system))
            case "void":
                await self._within(self._void_by_operator())
            case "mode":
                self.stack.core.mode = random.choice(list(CoreMode))
            case "wall":
                self.happened["clock step"] += 1
                self.clock.step_wall(random.choice([-4_000, -1_000, -60_000, 2_000, 30_000]))
            case "commit":
                if not self.each_call:
                    self.happened["failed commit"] += 1
                    self.stack.commit_error = apsw.FullError("the disk is full")
            case "follow":
                await self._within(self._follow())
            case "kill":
                self.happened["crash"] += 1
                self.stack.die()

    async def _within(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs something inside the process, which may die meanwhile, until it waits for time to pass."""
        task = asyncio.ensure_future(work)
        await self.clock.settle()
        task.cancel()
        [outcome] = await asyncio.gather(task, return_exceptions=True)
        if outcome is not None and not isinstance(outcome, Crash | OperatingFailureError | asyncio.CancelledError):
            raise outcome

    def _invent(self) -> TransferRequest:
        random = self.random
        owner = Owner(f"user{random.randrange(OWNERS)}")
        source, target = random.choice(ROUTES)
        if random.random() < 0.5:
            source = "funding"
            target = random.choice([b for a, b in ROUTES if a == source])
        asset = random.choice(["USDT", "USDT", "BTC"])
        amount = random.choice(["1", "2.5", str(random.randint(1, 200)), str(random.randint(1, 2000))])
        if asset == "BTC":
            amount = f"0.000{random.randint(1, 9)}"
        key = f"k{random.randrange(8)}" if random.random() < 0.2 else f"key{len(self.asked)}"
        return TransferRequest(
            owner, "standard", key, Account(owner, source, asset), Account(owner, target, asset), amount
        )

    def _ask(self, request: TransferRequest) -> None:
        self.asked.append(request)
        client = asyncio.ensure_future(self._client(request, self.random.choice([0.0, 0.5, 5.0])))
        self.clients.add(client)
        client.add_done_callback(self.clients.discard)

    async def _client(self, request: TransferRequest, wait_seconds: float) -> None:
        try:
            answer = await self.stack.gateway.submit(request, wait_seconds=wait_seconds)
        except OperatingFailureError as error:
            self.happened[type(error).__name__] += 1
            return
        except Crash:
            return
        self.answered.append((request, answer))

    async def _deliver_mail(self) -> None:
        mail = self.mail.collect()
        self.happened["late verdict"] += len(mail)
        if mail:
            await self._within(self.stack.bus.publish(mail))

    async def _deliver_late(self, system: System) -> None:
        await self.stack.faults[system].deliver_late()

    async def _void_by_operator(self) -> None:
        """Records operators' decision to give a stuck transfer's money back, which the scanner carries out."""
        stuck = await self.stack.store.by_status(Status.PENDING, after=None, most=100)
        if not stuck:
            return
        transfer = self.random.choice(stuck)
        if transfer.decision is None:
            self.happened["operator void"] += 1
            after = replace(transfer, decision=Decision.VOID, due_at=self.clock.now_ms())
            await self.stack.store.record([Change(transfer.revision, after)])

    async def _follow(self) -> None:
        """Reads on in the feed, as a follower that keeps only durable events."""
        last = self.followed[-1][0] if self.followed else 0
        page = await self.stack.store.feed(last, self.random.choice([1, 7, 1000]))
        await self.stack.database.durable()
        self.followed += page

    async def _calm_down(self) -> None:
        """Stops the faults and waits until everything has ended."""
        stack = self.stack
        self._set_trouble(0.0)
        for system in self.plans:
            for fault, count in stack.faults[system].counts.items():
                self.happened[fault.__name__] += count
        self.crashiness = 0.0
        stack.commit_error = None
        stack.core.mode = CoreMode.NORMAL
        self.mail.probability = 0.0
        await self._come_back()
        await self.stack.pass_time(30.0)
        for system in (System.LEDGER, System.CORE):
            await stack.faults[system].deliver_late()
        while self.mail.waiting:
            await self._deliver_mail()
        await stack.scan_until_quiet(scans_most=SCANS_MOST, apart_seconds=30.0)
        while self.clients:
            await stack.pass_time(1.0)
        while (last := self.followed[-1][0] if self.followed else 0) < (await stack.feed() or [(0, None)])[-1][0]:
            self.followed += await stack.store.feed(last, 100)

    async def _check(self) -> None:
        stack = self.stack
        rows = await stack.ledger_rows()
        transfers: list[Transfer] = []
        for status in Status:
            transfers += await stack.store.by_status(status, after=None, most=1_000_000)
        by_id = {transfer.id: transfer for transfer in transfers}
        accounts = await stack.ledger_accounts()
        for transfer in transfers:
            code = f" {transfer.failure}" if transfer.failure else ""
            self.happened[f"{transfer.status}{code}"] += 1
        check_books(rows, accounts, dict(self.deposits))
        assert not any(row.debits_pending or row.credits_pending for row in accounts.values()), "a hold was left"
        check_resolutions(rows, by_id)
        entries = await stack.core.entries_after(0, 1_000_000)
        await self._check_g5_g7_cores(transfers, [verdict for _, verdict in entries], accounts)
        await self._check_g6_g9(by_id)
        await self._check_g8_g11(transfers)
        await self._check_g13(transfers)
        assert not [transfer for transfer in transfers if transfer.status in OPEN], "G10: still open"

    async def _check_g5_g7_cores(
        self, transfers: list[Transfer], moves: list[Verdict], accounts: dict[int, LedgerAccount]
    ) -> None:
        """Each SUCCESS moved each of its legs exactly once net, each FAILED none; the mirrors agree with the cores."""
        net: Counter[tuple[TransferId, str]] = Counter()
        most: Counter[tuple[TransferId, str, str]] = Counter()
        balances: Counter[Account] = Counter()
        for move in moves:
            sign = 1 if move.action is Action.APPLY else -1
            self.happened["reversed leg"] += sign < 0
            net[move.transfer_id, move.side] += sign
            most[move.transfer_id, move.side, move.action] += 1
            for account, change in ((move.debit, -sign), (move.credit, sign)):
                if account is not None:
                    balances[account] += change * move.amount
        assert all(count == 1 for count in most.values()), "G5: a core did something twice"
        known = {transfer.id for transfer in transfers}
        assert {transfer_id for transfer_id, _ in net} <= known, "a core moved money for an unknown transfer"
        for transfer in transfers:
            for leg in transfer.legs:
                want = 1 if transfer.status is Status.SUCCESS else 0
                assert net[transfer.id, leg.side] == want, (
                    f"G7: {transfer} moved {leg.side} {net[transfer.id, leg.side]}"
                )
                if want:
                    assert leg.state is LegState.APPLIED, f"G7: {transfer}"
        for owner in {account.owner for account in balances}:
            for entry in await self.stack.core.balances(owner):
                assert entry.posted == balances[entry.account], "the core's balance is not the sum of its entries"
        for account, balance in balances.items():
            mirror = accounts[ledger_account_id(account)]
            assert mirror.credits_posted - mirror.debits_posted == balance, f"G7: the mirror of {account} differs"

    async def _check_g6_g9(self, by_id: dict[TransferId, Transfer]) -> None:
        """One key is one transfer with one content, and what was acknowledged is on record as it was told."""
        first: dict[tuple[str, str], TransferId] = {}
        for transfer in by_id.values():
            assert first.setdefault((transfer.owner, transfer.key), transfer.id) == transfer.id, "G6: a key used twice"
        for request, answer in self.answered:
            told = answer.transfer
            self.happened["replayed"] += answer.replayed
            if answer.refusal is not None:
                self.happened[f"refused {answer.refusal.code}"] += 1
            if told is None:
                continue
            kept = by_id.get(told.id)
            assert kept is not None, f"G9: {told.id} was acknowledged and is gone"
            assert (kept.owner, kept.key) == (request.caller, request.key), "G6: another key's transfer"
            same = (kept.source, kept.target) == (request.source, request.target) and _units(request) == kept.amount
            reused = answer.refusal is not None and answer.refusal.code is Code.IDEMPOTENCY_KEY_REUSED
            assert same is not reused, f"G6: {request} was answered with {answer}"
            if told.status not in OPEN:
                assert (told.status, told.failure) == (kept.status, kept.failure), "G8: a final state has changed"
            assert told.version <= kept.version

    async def _check_g8_g11(self, transfers: list[Transfer]) -> None:
        """Events follow the table written out here, one per change; a follower of the feed saw all of them once."""
        ways = {
            ("REQUESTING", "FAILED"),
            ("REQUESTING", "PENDING", "SUCCESS"),
            ("REQUESTING", "PENDING", "FAILED"),
        }
        events = await self.stack.store.events([transfer.id for transfer in transfers])
        for transfer, own in zip(transfers, events, strict=True):
            assert tuple(event.status.value for event in own) in ways, f"G8: {own}"
            assert [event.version for event in own] == list(range(1, transfer.version + 1)), f"G11: {own}"
        feed = await self.stack.feed()
        numbers = [number for number, _ in feed]
        assert numbers == sorted(set(numbers)), "G11: the feed's numbers do not rise"
        assert self.followed == feed, "G11: a follower saw something else than the feed"
        in_feed = Counter((event.transfer_id, event.version) for _, event in feed)
        assert in_feed == Counter((event.transfer_id, event.version) for own in events for event in own), "G11"

    async def _check_g13(self, transfers: list[Transfer]) -> None:
        """Daily sums are those of the transfers that did not fail, on the days of their ids, and within the limit."""
        used: defaultdict[tuple[Owner, str, int], int] = defaultdict(int)
        for transfer in transfers:
            use = (transfer.owner, transfer.source.asset, day_of(transfer.id))
            used[use] += transfer.amount if transfer.status is Status.SUCCESS else 0
        for (owner, asset, day), units in used.items():
            assert units <= DAILY_UNITS, "G13: more than the limit was moved"
            assert await self.stack.store.daily_used(owner, asset, day) == units, "G13: the day's sum is wrong"


def _units(request: TransferRequest) -> int:
    whole, _, places = request.amount.partition(".")
    return int(whole + places.ljust(ASSETS[request.source.asset].scale, "0"))
