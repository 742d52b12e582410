"""The services on embedded adapters, a simulated clock and a real database file, with a line to every port.

A line is where faults sit, and where the process can be made to die between a call and its answer. After `die` the
same file can be started again, as after a restart; what was in an uncommitted turn is gone.
"""

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any, Literal, TypeVar

from msgspec.structs import replace

from internal_transfer.adapters.in_process.event_bus import MemoryEventBus
from internal_transfer.adapters.in_process.rate_limiter import MemoryRateLimiter
from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.ledger import SqliteLedger
from internal_transfer.adapters.sqlite.operations import SqliteOperations
from internal_transfer.adapters.sqlite.trading_core import CoreMode, ReferenceCore
from internal_transfer.adapters.sqlite.transfer_store import SqliteTransferStore
from internal_transfer.domain.account import Account, AccountType, Asset, Holder, Owner, ledger_account_id
from internal_transfer.domain.identifier import TransferId, cash_id
from internal_transfer.domain.request import TransferRequest
from internal_transfer.domain.rules import Limit, Route, Rules
from internal_transfer.domain.transfer import Decision, Transfer
from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.errors import OperatingFailureError, System
from internal_transfer.ports.ledger import BATCH_MAX, LedgerAccount, LedgerTransfer, TransferResult
from internal_transfer.ports.transfer_store import Change, Event
from internal_transfer.services.answer import Answer
from internal_transfer.services.courier import CourierBounds
from internal_transfer.services.follower import FollowerBounds
from internal_transfer.services.gateway import GatewayBounds
from internal_transfer.services.retry_times import RetryTimes
from internal_transfer.services.scanner import ScannerBounds
from internal_transfer.services.settler import SettlerBounds
from internal_transfer.settings.data_directory import DataDirectory
from internal_transfer.settings.load import load
from internal_transfer.settings.settings import PortBounds, Settings
from internal_transfer.simulation.clock import SimulatedClock
from internal_transfer.simulation.failpoints import Crash
from internal_transfer.simulation.faults import Fault, FaultPlan, Faults, ScriptedFaults
from internal_transfer.telemetry import Telemetry
from internal_transfer.wiring.bounded import bounded_ports
from internal_transfer.wiring.roles import RoleBounds, build
from internal_transfer.wiring.service import Service
from internal_transfer.wiring.stack import Stack as WiredStack

ASSETS = {"USDT": Asset("USDT", 1, 2, 2), "BTC": Asset("BTC", 2, 8, 4), "OLD": Asset("OLD", 3, 0, 0, closed=True)}
ACCOUNT_TYPES = {
    "funding": AccountType("funding", 1, Holder.LEDGER),
    "earn": AccountType("earn", 2, Holder.LEDGER),
    "spot": AccountType("spot", 3, Holder.CORE, "alpha"),
    "margin": AccountType("margin", 4, Holder.CORE, "alpha"),
    "futures": AccountType("futures", 5, Holder.CORE, "beta"),
}
DAILY_UNITS = 1_000_000
LIMIT = Limit(1, 500_000, DAILY_UNITS)
RULES = Rules(
    assets=ASSETS,
    account_types=ACCOUNT_TYPES,
    routes=frozenset(Route(a, b) for a in ACCOUNT_TYPES for b in ACCOUNT_TYPES if a != b) - {Route("earn", "margin")},
    limits={"standard": {"USDT": LIMIT, "BTC": LIMIT, "OLD": LIMIT}},
    sub_accounts={Owner("alice"): frozenset({Owner("alice.sub")})},
)
OUTSIDE_CODE = 9

Answered = TypeVar("Answered")
Fuse = Callable[[Literal["before", "after"], System, str], bool]
"""Tells whether the process dies at this point of this call."""


class Line:
    """The way to one adapter, which stays while the process behind it restarts."""

    def __init__(self, stack: "Stack", system: System) -> None:
        self._stack = stack
        self._system = system
        self.target: Any = None

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.target, name)
        if not asyncio.iscoroutinefunction(attribute):
            return attribute

        async def method(*args: Any, **kwargs: Any) -> Any:
            stack = self._stack
            stack.pass_fuse("before", self._system, name)
            try:
                answer = await getattr(self.target, name)(*args, **kwargs)
            except OperatingFailureError:
                if stack.dead:
                    raise Crash from None  # Nobody is left to hear of the failure.
                raise
            stack.pass_fuse("after", self._system, name)
            return answer

        return method


class _Paused:
    """A plan that spares the calls of a start."""

    def __init__(self, stack: "Stack", plan: FaultPlan) -> None:
        self._stack = stack
        self._plan = plan

    def next_fault(self, method: str) -> Fault | None:
        """The plan's next fault, except at a start."""
        return None if self._stack.calm else self._plan.next_fault(method)


class Stack:
    """One process of the service; `faults` are by system, `scripts` those of the systems that no plan was given for."""

    def __init__(
        self,
        path: Path,
        *,
        each_call: bool = False,
        synced: bool = True,
        clock: SimulatedClock | None = None,
        plans: Mapping[System, FaultPlan] | None = None,
        rules: Rules = RULES,
        times: RetryTimes | None = None,
        gateway: GatewayBounds | None = None,
        scanner: ScannerBounds | None = None,
        settler: SettlerBounds | None = None,
        call_seconds: float = 10.0,
        open_most: int = 10_000,
        per_minute: int = 1_000_000,
        burst: int = 1_000_000,
        in_front_of_store: Callable[[Any], Any] = lambda store: store,
        in_front_of_ledger: Callable[[Any], Any] = lambda ledger: ledger,
        in_front_of_core: Callable[[Any, Database], Any] = lambda core, _: core,
    ) -> None:
        self.path = path
        self.each_call = each_call
        self.synced = synced
        self.clock = clock or SimulatedClock()
        self.rules = rules
        self.bounds = RoleBounds(
            times=times or RetryTimes(),
            gateway=gateway or GatewayBounds(),
            settler=settler or SettlerBounds(),
            scanner=scanner or ScannerBounds(),
            follower=FollowerBounds(),
            courier=CourierBounds(),
        )
        self.call_seconds = call_seconds
        self.open_most = open_most
        self.per_minute, self.burst = per_minute, burst
        self.in_front_of_store = in_front_of_store
        self.in_front_of_ledger = in_front_of_ledger
        self.in_front_of_core = in_front_of_core
        self.fuse: Fuse = lambda *_: False
        self.dead = True
        self.calm = False
        self.tasks: list[asyncio.Task[Any]] = []
        self.scripts = {system: ScriptedFaults() for system in System}
        plans = plans or {}
        self.faults = {
            system: Faults(_Paused(self, plans.get(system, self.scripts[system])), self.clock, system)
            for system in System
        }
        self.lines = {system: Line(self, system) for system in System}
        self.durability_script = ScriptedFaults()
        self.durability_faults = Faults(_Paused(self, self.durability_script), self.clock, System.STORE)
        self._durability_line = Line(self, System.STORE)

    async def start(self, *, scanning: bool = False) -> "Stack":
        """Builds everything on the file and starts the loops; on the first start as on every other."""
        # Deadlines follow the simulated clock as well, so that no test waits for one.
        asyncio.get_running_loop().time = self.clock.monotonic  # type: ignore[method-assign]
        self.dead = False
        self.commit_error: Exception | None = None
        self.telemetry = Telemetry()
        self.database = Database(self.path, each_call=self.each_call)
        if not self.synced:
            self.database.connection.execute("PRAGMA synchronous=OFF")  # A process may die here, the machine may not.
        self.ledger = SqliteLedger(self.database_of(System.LEDGER), self.clock)
        self.store = SqliteTransferStore(self.database)
        self.core = ReferenceCore(self.database_of(System.CORE))
        self.operations = SqliteOperations(self.database)
        self.bus = MemoryEventBus()
        self.limiter = MemoryRateLimiter(self.clock, per_minute=self.per_minute, burst=self.burst)
        self.database.before_commit(self._fail_commit)
        self._durability_line.target = self.database
        ports = Ports(
            store=self.in_front_of_store(self._through(System.STORE, self.store)),
            ledger=self.in_front_of_ledger(self._through(System.LEDGER, self.ledger)),
            core=self.in_front_of_core(self._through(System.CORE, self.core), self.database),
            operations=self._through(System.OPERATIONS, self.operations),
            bus=self._through(System.BUS, self.bus),
            limiter=self._through(System.LIMITER, self.limiter),
            publisher=None,
            durability=self.durability_faults.wrap(self._durability_line),
            clock=self.clock,
            telemetry=self.telemetry,
        )
        self.ports = bounded_ports(ports, every_call(self.call_seconds))
        self.service = self.build()
        self.policies = self.service.policies
        self.driver = self.service.driver
        self.gateway = self.service.gateway
        self.settler = self.service.settler
        self.scanner = self.service.scanner
        self.inquiry = self.service.inquiry
        self.calm = True
        await self.service.restored_keys.refresh()
        await self.store.lease_node("stack", now_ms=self.clock.now_ms(), lease_ms=60_000)
        await self.driver.prepare()
        await self.store.make_due(now_ms=self.clock.now_ms())
        await self.database.durable()
        self.calm = False
        loops = [self.gateway.run(), self.settler.run()]
        if scanning:
            loops.append(self.scanner.run())
        self.tasks = [asyncio.ensure_future(loop) for loop in loops]
        return self

    def build(self, *, open_most: int | None = None, **bounds: Any) -> Service:
        """Builds one process's roles on this stack's ports, as a server does; what is given replaces its bounds."""
        return build(
            settings_of(self.rules, open_most=open_most or self.open_most),
            DataDirectory(self.path.parent),
            WiredStack(ports=self.ports, set_core_mode=self._set_core_mode),
            bounds=dataclasses.replace(self.bounds, **bounds),
        )

    async def _set_core_mode(self, mode: str) -> None:
        self.core.mode = CoreMode(mode)

    def database_of(self, _: System) -> Database:
        """The database of one system: all share one, so that they share commits."""
        return self.database

    def _through(self, system: System, adapter: Any) -> Any:
        line = self.lines[system]
        line.target = adapter
        return self.faults[system].wrap(line)

    def _fail_commit(self) -> None:
        error, self.commit_error = self.commit_error, None
        if error is not None:
            raise error

    def pass_fuse(self, when: Literal["before", "after"], system: System, method: str) -> None:
        """Dies here if the fuse says so; a process that is dead already does nothing more."""
        if self.dead:
            raise Crash
        if not self.calm and self.fuse(when, system, method):
            self.die()
            raise Crash

    def die(self) -> None:
        """The process is gone: its open turn was never committed, and nothing of it runs on."""
        if self.dead:
            return
        self.dead = True
        drop(self.database)

    async def stop(self) -> None:
        """Ends the process, by its death if it is still alive, and waits for its tasks."""
        self.die()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks.clear()

    async def restart(self, *, scanning: bool = False) -> None:
        """Dies and comes back on the same file."""
        await self.stop()
        await self.start(scanning=scanning)

    async def deposit(self, owner: str, units: int, *, account_type: str = "funding", asset: str = "USDT") -> None:
        """Brings money in from outside, past all faults; for ledger-held accounts."""
        account = Account(Owner(owner), account_type, asset)
        number = ASSETS[asset].number
        outside = LedgerAccount(id=number, ledger=number, code=OUTSIDE_CODE)
        entry = (await self.store.register([account]))[0]
        code = ACCOUNT_TYPES[account_type].code
        rows = LedgerAccount(
            id=ledger_account_id(account), ledger=number, code=code, flags=2, user_data_128=entry.number
        )
        await self.ledger.create_accounts([outside, rows])
        money = LedgerTransfer(
            id=cash_id(f"{owner}:{account_type}:{asset}:{units}:{self.clock.now_ms()}"),
            debit_account_id=number,
            credit_account_id=ledger_account_id(account),
            amount=units,
            ledger=number,
            code=OUTSIDE_CODE,
        )
        [outcome] = await self.ledger.create_transfers([money])
        assert outcome.status is TransferResult.CREATED
        await self.database.durable()

    async def submit(
        self,
        key: str,
        amount: str = "1",
        *,
        owner: str = "alice",
        source: str = "funding",
        target: str = "spot",
        asset: str = "USDT",
        wait_seconds: float = 0.0,
        memo: str | None = None,
    ) -> Answer:
        """Asks the gateway for a transfer between two accounts of one owner."""
        return await self.gateway.submit(
            request(key, amount, owner=owner, source=source, target=target, asset=asset, memo=memo),
            wait_seconds=wait_seconds,
        )

    async def accepted(self, key: str, amount: str = "1", **places: str) -> Transfer:
        """Submits a request that must be accepted, and returns its transfer."""
        answer = await self.submit(key, amount, **places)
        assert answer.refusal is None, answer.refusal
        assert answer.transfer is not None
        return answer.transfer

    async def transfer(self, transfer_id: TransferId) -> Transfer:
        """A transfer as it is on record, past all faults."""
        [found] = await self.store.get([transfer_id])
        assert found is not None
        return found

    async def pass_time(self, seconds: float, *, step: float = 1.0) -> None:
        """Lets simulated time go by, in steps small enough for deadlines to come in order."""
        while seconds > 0:
            await self.clock.advance(min(step, seconds))
            await self.clock.settle()
            seconds -= step

    async def patiently(self, work: Coroutine[Any, Any, Answered], *, seconds_most: float = 120.0) -> Answered:
        """Does something that needs time to go by, and lets it."""
        task = asyncio.ensure_future(work)
        await self.clock.settle()
        while not task.done() and seconds_most > 0:
            await self.pass_time(0.5)
            seconds_most -= 0.5
        assert task.done(), "it takes too long"
        return task.result()

    async def scan_until_quiet(self, *, scans_most: int = 50, apart_seconds: float = 5.0) -> int:
        """Scans until nothing is open, and returns how many scans that took; more than `scans_most` is a failure."""
        for scan in range(scans_most):
            summary = await self.store.open_summary()
            if not sum(summary.by_status.values()):
                return scan
            await self.pass_time(apart_seconds, step=apart_seconds)
            await self.scanner.scan()
        raise AssertionError(f"still open after {scans_most} scans: {await self.store.open_summary()}")

    async def ledger_rows(self) -> list[LedgerTransfer]:
        """All transfers of the ledger, by time."""
        rows: list[LedgerTransfer] = []
        while page := await self.ledger.transfers_after(rows[-1].timestamp if rows else 0, BATCH_MAX):
            rows += page
        return rows

    async def ledger_accounts(self) -> dict[int, LedgerAccount]:
        """All accounts that a transfer of the ledger names, with their balances."""
        ids = {side for row in await self.ledger_rows() for side in (row.debit_account_id, row.credit_account_id)}
        return {account.id: account for account in await self.ledger.lookup_accounts(sorted(ids))}

    async def moves(self, transfer_id: TransferId) -> Counter[tuple[str, str]]:
        """How often each leg of a transfer was applied and reversed in the cores."""
        entries = await self.core.entries_after(0, 1_000_000)
        own = [verdict for _, verdict in entries if verdict.transfer_id == transfer_id]
        return Counter((verdict.side.value, verdict.action.value) for verdict in own)

    async def decide(self, transfer: Transfer, decision: Decision) -> None:
        """Records a decision as the desk does, and makes the transfer due."""
        after = replace(transfer, decision=decision, due_at=self.clock.now_ms())
        assert await self.store.record([Change(transfer.revision, after)]) != [None]

    async def feed(self) -> list[tuple[int, Event]]:
        """The whole feed."""
        return await self.store.feed(0, 1_000_000)

    async def posted(self, account_type: str, *, owner: str = "alice", asset: str = "USDT") -> int:
        """What the ledger's posted entries say that an account has."""
        rows = await self.ledger.lookup_accounts([ledger_account_id(Account(Owner(owner), account_type, asset))])
        return rows[0].credits_posted - rows[0].debits_posted if rows else 0

    async def held(self, account_type: str = "funding", *, owner: str = "alice", asset: str = "USDT") -> int:
        """What is held on an account."""
        rows = await self.ledger.lookup_accounts([ledger_account_id(Account(Owner(owner), account_type, asset))])
        return rows[0].debits_pending if rows else 0

    async def in_core(self, account_type: str = "spot", *, owner: str = "alice", asset: str = "USDT") -> int:
        """What the core says that an account has."""
        account = Account(Owner(owner), account_type, asset)
        return sum(entry.posted for entry in await self.core.balances(Owner(owner)) if entry.account == account)


def request(
    key: str,
    amount: str = "1",
    *,
    owner: str = "alice",
    source: str = "funding",
    target: str = "spot",
    asset: str = "USDT",
    memo: str | None = None,
    target_owner: str | None = None,
    tier: str = "standard",
) -> TransferRequest:
    """A decoded request between two accounts."""
    return TransferRequest(
        Owner(owner),
        tier,
        key,
        Account(Owner(owner), source, asset),
        Account(Owner(target_owner or owner), target, asset),
        amount,
        memo,
    )


def settings_of(rules: Rules, *, open_most: int = 10_000) -> Settings:
    """The shipped settings with other rules."""
    shipped = load(None, {})
    return replace(
        shipped,
        rules=rules,
        tiers=frozenset(rules.limits),
        transfers=replace(shipped.transfers, open_max=open_most),
    )


def every_call(seconds: float) -> PortBounds:
    """The same bound for every port."""
    return PortBounds(*(seconds for _ in PortBounds.__struct_fields__))


def take_back(database: Database) -> None:
    """Takes the open turn back, so that adapters drop what they remember of it; the caller has no part in that turn."""

    def fail() -> None:
        with suppress(Crash), database.call():
            raise Crash

    copy_context().run(fail)


def drop(database: Database) -> None:
    """Closes a database as the death of its process would: what was not committed is gone."""
    take_back(database)
    database.close()
