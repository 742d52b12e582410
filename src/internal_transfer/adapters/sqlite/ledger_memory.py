"""What the embedded ledger keeps in memory: accounts, holds and recent ids, and the rows it has yet to write.

Transfers are written at the end of each call, balances once per turn. When the database takes a turn back, all of it
is dropped and read again.
"""

from itertools import islice
from typing import Any

import apsw
from msgspec import Struct

from internal_transfer.adapters.sqlite import ledger_statements as sql
from internal_transfer.adapters.sqlite.ledger_rows import CREDIT, DEBIT, FLAGS, PENDING_ID, Row, transfer_of, unsigned
from internal_transfer.ports.ledger import RESOLVING, LedgerAccount, LedgerTransfer, TransferFlag, TransferResult

_RISING_IDS_END = (1 << 127).to_bytes(16)
"""Ids below this rise with time, more or less; those from here on are hashes (see `domain/identifier.py`)."""


class Account(Struct, eq=False, gc=False):
    """An account in memory; its balances are ahead of the table's until the turn ends."""

    timestamp: int
    id: int
    user_data_128: int
    user_data_64: int
    user_data_32: int
    ledger: int
    code: int
    flags: int
    debits_pending: int = 0
    debits_posted: int = 0
    credits_pending: int = 0
    credits_posted: int = 0

    def public(self) -> LedgerAccount:
        """The account as the port knows it."""
        return LedgerAccount(**{name: getattr(self, name) for name in LedgerAccount.__struct_fields__})


class Hold(Struct, eq=False, gc=False):
    """A hold in memory: its transfer, its row, and the flag of the transfer that resolved it, or 0 while it is open."""

    transfer: LedgerTransfer
    row: Row
    resolved_by: int = 0


class LedgerMemory:
    """Accounts, holds and recent rows by the blob of their id, and the rows of a call that are not written yet.

    The three bounds say about how many accounts, holds and ids are kept; at most twice as many are.
    """

    def __init__(self, *, accounts_max: int, holds_max: int, recent_ids_max: int) -> None:
        self._accounts_max = accounts_max
        self._holds_max = holds_max
        self._recent_ids_max = recent_ids_max
        self.accounts: dict[bytes, Account] = {}
        self._accounts_before: dict[bytes, Account] = {}
        self._changed: set[Account] = set()
        self.holds: dict[bytes, Hold] = {}
        # Every stored id that is greater than the floor and below _RISING_IDS_END is among the recent ones: the floor
        # starts as the greatest id and rises past the ids that are forgotten. Other ids must be looked up.
        self.recent: dict[bytes, Row] = {}
        self._recent_before: dict[bytes, Row] = {}
        self._floor: bytes | None = None
        self.new_accounts: list[Row] = []
        self.new_transfers: list[Row] = []
        self.new_burnt_ids: list[tuple[bytes]] = []

    def prepare(self, connection: apsw.Connection) -> None:
        """Reads the greatest id where it is not known, so that `find` can work."""
        if self._floor is None:
            self._floor = only_value(connection, sql.SELECT_GREATEST_ID, _RISING_IDS_END)

    def find(self, connection: apsw.Connection, key: bytes) -> Row | None:
        """The row of a transfer or burnt id."""
        row = self.recent.get(key) or self._recent_before.get(key)
        if row is not None:
            return row
        assert self._floor is not None, "the floor is read at the start of the call"
        if self._floor < key < _RISING_IDS_END:
            return None
        found: Row | None = connection.execute(sql.SELECT_TRANSFER_OR_BURNT, (key,)).fetchone()
        return found

    def account(self, connection: apsw.Connection, key: bytes) -> Account | None:
        """The account, from memory or from its row."""
        account = self.accounts.get(key)
        if account is not None:
            return account
        account = self._accounts_before.get(key)
        if account is None:
            row = connection.execute(sql.SELECT_ACCOUNT, (key,)).fetchone()
            if row is None:
                return None
            timestamp, _, user_data_128, user_data_64, *fields = row[:8]
            numbers = timestamp, int.from_bytes(key), int.from_bytes(user_data_128), unsigned(user_data_64)
            account = Account(*numbers, *fields, *map(int.from_bytes, row[8:]))
        self.accounts[key] = account
        return account

    def parties(self, connection: apsw.Connection, row: Row) -> tuple[Account, Account]:
        """The debit and the credit account of a transfer that exists."""
        debit = self.accounts.get(row[DEBIT]) or self.account(connection, row[DEBIT])
        credit = self.accounts.get(row[CREDIT]) or self.account(connection, row[CREDIT])
        assert debit is not None, "accounts are never deleted"
        assert credit is not None, "accounts are never deleted"
        return debit, credit

    def read_hold(self, connection: apsw.Connection, key: bytes) -> Hold | TransferResult:
        """Reads a hold that is not in memory; returns the refusal of a post or void where there is no such hold."""
        row = self.find(connection, key)
        if row is None or row[0] == 0:
            return TransferResult.PENDING_TRANSFER_NOT_FOUND
        if not row[FLAGS] & TransferFlag.PENDING:
            return TransferResult.PENDING_TRANSFER_NOT_PENDING
        resolution = connection.execute(sql.SELECT_RESOLVED_BY, (key,)).fetchone()
        hold = self.holds[key] = Hold(transfer_of(row), row, resolution[0] & RESOLVING if resolution else 0)
        return hold

    def add(self, key: bytes, row: Row, debit: Account, credit: Account) -> None:
        """Adds a new transfer, whose amount is in the two accounts' balances already."""
        self.recent[key] = row
        self.new_transfers.append(row)
        self._changed.add(debit)
        self._changed.add(credit)

    def burn(self, key: bytes) -> None:
        """Burns the id of a transfer that failed."""
        self.recent[key] = (0, key)
        self.new_burnt_ids.append((key,))

    def write_accounts(self, connection: apsw.Connection) -> None:
        """Writes the accounts that this call created."""
        connection.executemany(sql.INSERT_ACCOUNT, self.new_accounts)
        self.new_accounts.clear()

    def write_transfers(self, connection: apsw.Connection) -> None:
        """Writes the transfers that this call created and the ids it burnt, and forgets the oldest of what is kept."""
        rows = self.new_transfers
        if rows:
            connection.executemany(sql.INSERT_TRANSFER, rows)
            for row in rows:
                if row[PENDING_ID] is not None:
                    self.holds.pop(row[PENDING_ID], None)
            rows.clear()
        if self.new_burnt_ids:
            connection.executemany(sql.INSERT_BURNT_ID, self.new_burnt_ids)
            self.new_burnt_ids.clear()
        if len(self.holds) > self._holds_max:
            for key in list(islice(self.holds, len(self.holds) - self._holds_max // 2)):
                del self.holds[key]
        if len(self.recent) > self._recent_ids_max:
            assert self._floor is not None, "the floor is read at the start of the call"
            for key in self._recent_before:
                if self._floor < key < _RISING_IDS_END:
                    self._floor = key
            self._recent_before, self.recent = self.recent, {}

    def write_balances(self, connection: apsw.Connection) -> None:
        """Writes the balances that this turn changed."""
        if self._changed:
            connection.executemany(sql.UPDATE_ACCOUNT, map(_balances, self._changed))
            self._changed.clear()
        if len(self.accounts) > self._accounts_max:
            self._accounts_before, self.accounts = self.accounts, {}

    def forget(self) -> None:
        """Drops everything: the turn was taken back."""
        self._floor = None
        for memory in (self.accounts, self._accounts_before, self.holds, self.recent, self._recent_before):
            memory.clear()
        self._changed.clear()
        for rows in (self.new_accounts, self.new_transfers, self.new_burnt_ids):
            rows.clear()


def only_value(connection: apsw.Connection, statement: str, *values: bytes) -> Any:
    """The only value in the only row that a statement returns."""
    row = connection.execute(statement, values).fetchone()
    assert row is not None, "the statement returns one row"
    return row[0]


def _balances(account: Account) -> tuple[bytes, bytes, bytes, bytes, int]:
    return (
        account.debits_pending.to_bytes(16),
        account.debits_posted.to_bytes(16),
        account.credits_pending.to_bytes(16),
        account.credits_posted.to_bytes(16),
        account.timestamp,
    )
