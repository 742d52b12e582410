"""Ledgers to test, and short ways to say what is sent to them."""

from collections.abc import Sequence
from pathlib import Path
from secrets import randbits
from typing import Any, Protocol

from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.ledger import SqliteLedger
from internal_transfer.adapters.tigerbeetle.ledger import TigerBeetleLedger, TigerBeetleSettings
from internal_transfer.ports.ledger import (
    U128_MAX,
    AccountResult,
    Ledger,
    LedgerAccount,
    LedgerTransfer,
    TransferFlag,
    TransferResult,
)

PENDING = TransferFlag.PENDING
POST = TransferFlag.POST_PENDING_TRANSFER
VOID = TransferFlag.VOID_PENDING_TRANSFER
LINKED = TransferFlag.LINKED


class SettableClock:
    """Wall time that stands where it is put."""

    def __init__(self, now_ms: int = 1_800_000_000_000) -> None:
        self.ms = now_ms

    def now_ms(self) -> int:
        """Wall time in milliseconds."""
        return self.ms


class LedgerServer(Protocol):
    """A ledger that can be stopped and started again with what it recorded."""

    ledger: Ledger
    id_base: int
    """Added to the ids of a test, so that tests can share a server that never forgets."""
    history_start: int
    """The timestamp after which the test's transfers come."""

    async def settle(self) -> None:
        """Waits until what was answered is on record."""

    async def reopen(self) -> None:
        """Stops the ledger and starts it again."""

    async def close(self) -> None:
        """Stops the ledger."""


class EmbeddedLedgerServer:
    """The embedded ledger on a file; the bounds keep next to nothing in memory, or the usual amount."""

    id_base = 0
    history_start = 0

    def __init__(self, path: Path, *, each_call: bool, remembered: int | None = None) -> None:
        self._path = path
        self._each_call = each_call
        self._bounds = (
            {}
            if remembered is None
            else {"accounts_max": remembered, "holds_max": remembered, "recent_ids_max": remembered}
        )
        self.clock = SettableClock()
        self._open()

    def _open(self) -> None:
        self.database = Database(self._path, each_call=self._each_call)
        self.ledger = SqliteLedger(self.database, self.clock, **self._bounds)

    async def settle(self) -> None:
        """Waits until what was answered is on record."""
        await self.database.durable()

    async def reopen(self) -> None:
        """Stops the ledger and starts it again on the same file."""
        await self.close()
        self._open()

    async def close(self) -> None:
        """Stops the ledger."""
        await self.settle()
        self.database.close()


class TigerBeetleServer:
    """A session of one's own with a cluster that others use too; `open` makes it."""

    def __init__(self, settings: TigerBeetleSettings) -> None:
        self.settings = settings
        self.ledger = TigerBeetleLedger(settings)
        self.id_base = new_id_base()
        self.history_start = 0

    @classmethod
    async def open(cls, address: str, cluster_id: int, **settings: Any) -> "TigerBeetleServer":
        """Connects."""
        server = cls(TigerBeetleSettings(cluster_id=cluster_id, addresses=(address,), **settings))
        await server.ledger.start()
        newest = await server.ledger.newest_transfers(1)
        server.history_start = newest[0].timestamp if newest else 0
        return server

    async def settle(self) -> None:
        """Nothing to wait for: what TigerBeetle answers is on record."""

    async def reopen(self) -> None:
        """Ends the session, and starts another."""
        await self.close()
        self.ledger = TigerBeetleLedger(self.settings)
        await self.ledger.start()

    async def close(self) -> None:
        """Ends the session."""
        await self.ledger.close()


OWN_IDS = 1 << 32
"""Ids from a base on, and as many from 2^127 more, that are a test's own."""


def new_id_base() -> int:
    """A base for ids that no test had before, below 2^125."""
    return randbits(93) * OWN_IDS


class World:
    """A test's view of a ledger: its own small ids, and results alone where timestamps do not matter."""

    def __init__(self, server: LedgerServer) -> None:
        self.server = server

    @property
    def ledger(self) -> Ledger:
        """The ledger as it is open now."""
        return self.server.ledger

    def at(self, number: int) -> int:
        """The ledger's id for a test's number; 0 and 2^128-1 stay what they are."""
        return number if number in (0, U128_MAX) else self.server.id_base + number

    def account(self, number: int, **fields: Any) -> LedgerAccount:
        """An account, good but for what the fields say."""
        return LedgerAccount(**{"ledger": 1, "code": 1} | fields, id=self.at(number))

    def plain(self, number: int, debit: int, credit: int, amount: int, **fields: Any) -> LedgerTransfer:
        """A transfer in one phase."""
        return LedgerTransfer(
            **{"ledger": 1, "code": 1} | fields,
            id=self.at(number),
            debit_account_id=self.at(debit),
            credit_account_id=self.at(credit),
            amount=amount,
        )

    def hold(self, number: int, debit: int, credit: int, amount: int, *, flags: int = 0, **fields: Any):
        """A pending transfer."""
        return self.plain(number, debit, credit, amount, flags=PENDING | flags, **fields)

    def post(self, number: int, hold: int, amount: int, *, flags: int = 0, **fields: Any) -> LedgerTransfer:
        """A post of a hold."""
        return LedgerTransfer(id=self.at(number), pending_id=self.at(hold), amount=amount, flags=POST | flags, **fields)

    def void(self, number: int, hold: int, amount: int = 0, *, flags: int = 0, **fields: Any) -> LedgerTransfer:
        """A void of a hold."""
        return LedgerTransfer(id=self.at(number), pending_id=self.at(hold), amount=amount, flags=VOID | flags, **fields)

    async def open_accounts(self, *numbers: int, **fields: Any) -> None:
        """Creates accounts."""
        outcomes = await self.ledger.create_accounts([self.account(number, **fields) for number in numbers])
        assert {outcome.status for outcome in outcomes} == {AccountResult.CREATED}

    async def create(self, *transfers: LedgerTransfer) -> list[TransferResult]:
        """What becomes of the transfers of one batch."""
        return [outcome.status for outcome in await self.ledger.create_transfers(transfers)]

    async def succeed(self, *transfers: LedgerTransfer) -> None:
        """Creates transfers in one batch."""
        assert await self.create(*transfers) == [TransferResult.CREATED] * len(transfers)

    async def balances(self, number: int) -> tuple[int, int, int, int]:
        """Debits pending and posted, credits pending and posted."""
        [account] = await self.ledger.lookup_accounts([self.at(number)])
        return balances(account)

    async def available(self, number: int) -> int:
        """What the account's owner may still spend: posted less held."""
        held, spent, _, received = await self.balances(number)
        return received - spent - held

    async def history(self, after: int | None = None) -> Sequence[LedgerTransfer]:
        """All transfers of this test after a timestamp, page by page."""
        transfers: list[LedgerTransfer] = []
        last = self.server.history_start if after is None else after
        while page := await self.ledger.transfers_after(last, 3):
            transfers.extend(page)
            last = page[-1].timestamp
        return [transfer for transfer in transfers if (transfer.id - self.server.id_base) % (1 << 127) < OWN_IDS]


def balances(account: LedgerAccount) -> tuple[int, int, int, int]:
    """Debits pending and posted, credits pending and posted."""
    return account.debits_pending, account.debits_posted, account.credits_pending, account.credits_posted


def replay(transfers: Sequence[LedgerTransfer]) -> dict[int, list[int]]:
    """The balances by account that a history of transfers leads to, from nothing."""
    by_id = {transfer.id: transfer for transfer in transfers}
    sums: dict[int, list[int]] = {}
    for transfer in transfers:
        debit = sums.setdefault(transfer.debit_account_id, [0, 0, 0, 0])
        credit = sums.setdefault(transfer.credit_account_id, [0, 0, 0, 0])
        if transfer.flags & PENDING:
            debit[0] += transfer.amount
            credit[2] += transfer.amount
            continue
        if transfer.flags & (POST | VOID):
            debit[0] -= by_id[transfer.pending_id].amount
            credit[2] -= by_id[transfer.pending_id].amount
        if not transfer.flags & VOID:
            debit[1] += transfer.amount
            credit[3] += transfer.amount
    return sums
