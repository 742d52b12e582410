"""The embedded ledger: TigerBeetle's semantics over the shared SQLite database."""

from collections.abc import Sequence

from internal_transfer.adapters.sqlite import ledger_statements as sql
from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.ledger_chains import create_in_chains
from internal_transfer.adapters.sqlite.ledger_creator import Creator
from internal_transfer.adapters.sqlite.ledger_memory import LedgerMemory, only_value
from internal_transfer.adapters.sqlite.ledger_rows import I64_MAX, transfer_of
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.ledger import (
    AccountOutcome,
    AccountResult,
    LedgerAccount,
    LedgerTransfer,
    TransferOutcome,
    TransferResult,
)
from internal_transfer.ports.ledger_checks import check_most
from internal_transfer.ports.ledger_encoding import encode_accounts, encode_ids, encode_transfers

NANOSECONDS_PER_MILLISECOND = 1_000_000
RECENT_IDS_MAX = 8_192
ACCOUNTS_MAX = 16_384
HOLDS_MAX = 8_192


class SqliteLedger:
    """The ledger of the embedded database; the only writer of its tables, so one per `Database`.

    No method suspends. Where calls share a turn, the results are durable once the turn is committed. The three bounds
    are those of `LedgerMemory`.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        accounts_max: int = ACCOUNTS_MAX,
        holds_max: int = HOLDS_MAX,
        recent_ids_max: int = RECENT_IDS_MAX,
    ) -> None:
        self._database = database
        self._clock = clock
        database.migrate("ledger", sql.MIGRATIONS)
        self._timestamp = int(only_value(database.connection, sql.SELECT_CLOCK))
        self._recorded_timestamp = self._timestamp
        self._memory = LedgerMemory(accounts_max=accounts_max, holds_max=holds_max, recent_ids_max=recent_ids_max)
        self._creator = Creator(self._memory)
        database.before_commit(self._write_back)
        database.after_rollback(self._forget)

    async def create_accounts(self, accounts: Sequence[LedgerAccount]) -> list[AccountOutcome]:
        """See the port."""
        requests = encode_accounts(accounts)
        creator = self._creator
        with self._database.call() as connection:
            first = self._advance_clock(len(requests))
            outcomes = create_in_chains(
                accounts,
                lambda index: creator.create_account(connection, requests[index], first + index),
                creator.undo_accounts,
                lambda index: AccountOutcome(AccountResult.LINKED_EVENT_FAILED, first + index),
                lambda index: AccountOutcome(AccountResult.LINKED_EVENT_CHAIN_OPEN, first + index),
            )
            self._memory.write_accounts(connection)
        return outcomes

    async def create_transfers(self, transfers: Sequence[LedgerTransfer]) -> list[TransferOutcome]:
        """See the port."""
        requests, has_chains = encode_transfers(transfers)
        creator = self._creator
        with self._database.call() as connection:
            self._memory.prepare(connection)
            first = self._advance_clock(len(requests))
            if has_chains:
                outcomes = create_in_chains(
                    transfers,
                    lambda index: creator.create_transfer(connection, requests[index], first + index),
                    lambda count: creator.undo_transfers(connection, count),
                    lambda index: TransferOutcome(TransferResult.LINKED_EVENT_FAILED, first + index),
                    lambda index: TransferOutcome(TransferResult.LINKED_EVENT_CHAIN_OPEN, first + index),
                )
            else:
                outcomes = [
                    creator.create_transfer(connection, request, timestamp)
                    for timestamp, request in enumerate(requests, first)
                ]
            self._memory.write_transfers(connection)
        return outcomes

    async def lookup_accounts(self, ids: Sequence[int]) -> list[LedgerAccount]:
        """See the port."""
        keys = encode_ids(ids)
        with self._database.call() as connection:
            found = [self._memory.account(connection, key) for key in keys]
        return [account.public() for account in found if account is not None]

    async def lookup_transfers(self, ids: Sequence[int]) -> list[LedgerTransfer]:
        """See the port."""
        keys = encode_ids(ids)
        with self._database.call() as connection:
            rows = [connection.execute(sql.SELECT_TRANSFER, (key,)).fetchone() for key in keys]
        return [transfer_of(row) for row in rows if row is not None]

    async def transfers_after(self, timestamp: int, most: int) -> list[LedgerTransfer]:
        """See the port."""
        check_most(most)
        return self._select(sql.SELECT_AFTER, min(timestamp, I64_MAX), most)

    async def newest_transfers(self, most: int) -> list[LedgerTransfer]:
        """See the port."""
        check_most(most)
        return self._select(sql.SELECT_NEWEST, most)

    def _select(self, statement: str, *values: int) -> list[LedgerTransfer]:
        with self._database.call() as connection:
            rows = connection.execute(statement, values).fetchall()
        return [transfer_of(row) for row in rows]

    def _advance_clock(self, count: int) -> int:
        """The timestamp of the first of `count` events: wall time, unless the last one is not before it."""
        first = max(self._timestamp + 1, self._clock.now_ms() * NANOSECONDS_PER_MILLISECOND)
        self._timestamp = max(self._timestamp, first + count - 1)
        return first

    def _write_back(self) -> None:
        """Writes the balances and the clock at the end of a turn."""
        connection = self._database.connection
        self._memory.write_balances(connection)
        if self._timestamp != self._recorded_timestamp:
            connection.execute(sql.UPDATE_CLOCK, (self._timestamp,))
            self._recorded_timestamp = self._timestamp

    def _forget(self) -> None:
        """Drops the memory of a turn that was taken back; the clock stays, since it must not step back."""
        self._memory.forget()
        self._recorded_timestamp = 0
