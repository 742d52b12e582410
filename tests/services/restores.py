"""Store, ledger and core in files of their own, which can be put back to different points in time."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.trading_core import CoreMode
from internal_transfer.domain.account import Account, Holder, Owner
from internal_transfer.domain.cash import CashAct
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.transfer import Decision, Status, Transfer
from internal_transfer.ports.errors import System
from internal_transfer.services.operators.audit import Act
from internal_transfer.services.restore.check import Repaired, RestoreCheck
from internal_transfer.services.restore.record import ToldTransfer
from services.desks import ACTOR, Desks, cash
from services.stack import ACCOUNT_TYPES, Stack, drop

APART = (System.STORE, System.LEDGER, System.CORE)


class ApartStack(Stack):
    """A service whose systems share nothing, so that each call commits by itself."""

    def __init__(self, path: Path, **settings: Any) -> None:
        super().__init__(path, each_call=True, synced=False, **settings)
        self.apart: dict[System, Database] = {}

    def file_of(self, system: System) -> Path:
        """Where a system keeps its data; the store's file has the operations as well."""
        return self.path if system is System.STORE else self.path.with_suffix(f".{system}")

    def database_of(self, system: System) -> Database:
        """A database of the system's own."""
        if system not in self.apart:
            self.apart[system] = Database(self.file_of(system), each_call=True)
            self.apart[system].connection.execute("PRAGMA synchronous=OFF")
        return self.apart[system]

    def die(self) -> None:
        """Closes the other files too."""
        super().die()
        for database in self.apart.values():
            drop(database)
        self.apart = {}

    def copy(self, name: str) -> None:
        """Makes a backup of each system."""
        for system in APART:
            database = self.database if system is System.STORE else self.apart[system]
            database.connection.execute("VACUUM INTO ?", (str(self._backup(system, name)),))

    async def put_back(self, **names: str) -> None:
        """Stops, puts backups in the place of some systems' data, and starts again."""
        await self.stop()
        for system in APART:
            if system.value in names:
                file = self.file_of(system)
                for suffix in ("-wal", "-shm"):
                    file.with_name(file.name + suffix).unlink(missing_ok=True)
                shutil.copy(self._backup(system, names[system.value]), file)
        await self.start()

    def _backup(self, system: System, name: str) -> Path:
        return self.path.with_name(f"backup-{name}.{system}")


def check_of(stack: Stack, *, page_most: int = 7) -> RestoreCheck:
    """The check on a running stack, behind its faults and fuses."""
    return stack.build(page_most=page_most).restore


async def repaired(stack: Stack, **options: Any) -> Repaired:
    """Runs a repair, which must not be refused."""
    result = await stack.patiently(check_of(stack).repair(actor=ACTOR, reason="disk lost", **options))
    assert isinstance(result, Repaired), result
    return result


class History:
    """What users and operators were told, and what the balances must be by that."""

    def __init__(self, stack: ApartStack) -> None:
        self.stack = stack
        self.told: dict[TransferId, Transfer] = {}
        self.cash: Counter[Account] = Counter()
        self.rounds = 0

    async def ask(self, name: str, amount: str, source: str, target: str, *, owner: str = "alice") -> Transfer:
        """Asks for a transfer, and keeps what it was told."""
        answer = await self.stack.submit(
            f"{name}-{self.rounds}", amount, owner=owner, source=source, target=target, memo=f"memo {self.rounds}"
        )
        assert answer.transfer is not None, answer.refusal
        self.told[answer.transfer.id] = answer.transfer
        return answer.transfer

    async def move(self, act: CashAct, name: str, amount: int, *, owner: str = "alice") -> bool:
        """Deposits or withdraws whole units, and returns whether that was done."""
        desk = Desks(self.stack).cash
        given = cash(owner, str(amount), reference=f"{name}-{self.rounds}")
        done = await (desk.deposit if act is CashAct.DEPOSIT else desk.withdraw)(given, actor=ACTOR)
        if isinstance(done, Act):
            self.cash[given.account] += amount * 100 * (1 if act is CashAct.DEPOSIT else -1)
        return isinstance(done, Act)

    async def go_on(self) -> None:
        """One more round of everything that can become of a transfer."""
        stack, core = self.stack, self.stack.core
        self.rounds += 1
        await stack.clock.advance(10)
        assert await self.move(CashAct.DEPOSIT, "wages", 100)
        assert await self.move(CashAct.DEPOSIT, "gift", 20, owner=f"bob{self.rounds}")
        # All of it goes to and fro, so that any other order would find too little.
        await self.ask("all", "60", "funding", "earn")
        await self.ask("back", "60", "earn", "funding")
        await self.ask("again", "60", "funding", "earn")
        await self.ask("sub", "5", "funding", "spot", owner=f"bob{self.rounds}")
        await self.ask("in", "30", "funding", "spot")
        await self.ask("out", "10", "spot", "earn")
        await self.ask("both", "9", "spot", "margin")
        await self.ask("two", "4", "spot", "futures")
        poor = await self.ask("poor", "5000", "funding", "earn")
        assert poor.status is Status.FAILED
        core.mode = CoreMode.REFUSE_CREDITS
        assert (await self.ask("refused", "3", "funding", "spot")).status is Status.FAILED
        assert (await self.ask("reversed", "2", "spot", "futures")).status is Status.FAILED
        core.mode = CoreMode.WITHHOLD
        by_hand = await self.ask("by_hand", "1", "funding", "spot")
        waiting = await self.ask("open", "1", "funding", "spot")
        assert waiting.status is Status.PENDING
        assert not await self.move(CashAct.WITHDRAWAL, "too_much", 5000)
        assert await self.move(CashAct.WITHDRAWAL, "rent", 5)
        await stack.decide(await stack.transfer(by_hand.id), Decision.VOID)
        await stack.scanner.recover([await stack.transfer(by_hand.id)])
        self.told[by_hand.id] = await stack.transfer(by_hand.id)
        assert self.told[by_hand.id].status is Status.FAILED
        core.mode = CoreMode.NORMAL

    async def check(self, *, forgotten: frozenset[TransferId] = frozenset()) -> None:
        """After a start everybody finds what they were told, keys replay, open ones finish, and the money adds up."""
        stack = self.stack
        await stack.restart()
        for told in self.told.values():
            if told.id not in forgotten:
                [now] = await stack.store.get([told.id])
                assert now is not None, f"G9: {told}"
                assert (now.status, now.failure) == (told.status, told.failure), f"G8: {told} {now}"
        for told in self.told.values():
            if told.id not in forgotten:
                answer = await stack.submit(
                    told.key,
                    f"{told.amount / 100:g}",
                    owner=told.owner,
                    source=told.source.type,
                    target=told.target.type,
                    memo=told.memo,
                )
                assert answer.refusal is None, answer.refusal
                assert answer.replayed, f"G6: {told}"
                assert answer.transfer is not None
                assert answer.transfer.id == told.id, f"G6: {told}"
        await stack.scan_until_quiet()
        expected = Counter(self.cash)
        for told in self.told.values():
            if told.id in forgotten:
                continue
            now = await stack.transfer(told.id)
            events = (await stack.store.events([told.id]))[0]
            assert [event.version for event in events] == list(range(1, now.version + 1)), f"G11: {events}"
            assert now.status is told.status or told.status is Status.PENDING, f"G8: {told} {now}"
            if now.status is Status.SUCCESS:
                expected[now.source] -= now.amount
                expected[now.target] += now.amount
            assert all(count == 1 for count in (await stack.moves(told.id)).values()), f"G5: {told}"
        for account, units in expected.items():
            held_here = ACCOUNT_TYPES[account.type].holder is Holder.LEDGER
            has = await (stack.posted if held_here else stack.in_core)(account.type, owner=account.owner)
            assert has == units, f"G7: {account} has {has}, and must have {units}"
            assert await stack.held(account.type, owner=account.owner) == 0
        result = await Desks(stack).reconciliation.run()
        assert result.clean, result.items

    async def used(self, owner: str = "alice") -> int:
        """What the owner's transfers use of the first day's limit."""
        day = self.stack.clock.now_ms() // 86_400_000
        return await self.stack.store.daily_used(Owner(owner), "USDT", day)

    def events(self) -> list[ToldTransfer]:
        """What a feed that was kept somewhere says."""
        return [
            ToldTransfer(
                transfer_id=each.id,
                owner=each.owner,
                source=each.source,
                target=each.target,
                amount=each.amount,
                failure=each.failure,
            )
            for each in self.told.values()
        ]

    def of(self, name: str, since: int) -> frozenset[TransferId]:
        """The transfers of this name in the rounds after one."""
        rounds = {f"{name}-{number}" for number in range(since + 1, self.rounds + 1)}
        return frozenset(told.id for told in self.told.values() if told.key in rounds)
