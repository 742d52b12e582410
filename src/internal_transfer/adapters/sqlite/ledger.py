"""The embedded ledger: TigerBeetle's semantics over the shared SQLite database.

Balances are kept in memory and written back once per turn; transfers are written at the end of each call. All that is
remembered here is dropped when the database takes a turn back, and read again.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import apsw
from msgspec import Struct

from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.ledger_chains import create_in_chains
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.ledger import (
    BURNING,
    U128_MAX,
    AccountFlag,
    AccountOutcome,
    AccountResult,
    LedgerAccount,
    LedgerTransfer,
    TransferFlag,
    TransferOutcome,
    TransferResult,
)
from internal_transfer.ports.ledger_checks import (
    RESOLVING,
    check_account_id,
    check_against_hold,
    check_most,
    check_new_account,
    check_new_resolution,
    check_new_transfer,
    check_transfer_id,
    compare_account,
    compare_resolution,
    compare_transfer,
    resolved_amount,
)
from internal_transfer.ports.ledger_encoding import (
    I64_MAX,
    Request,
    Row,
    encode_accounts,
    encode_ids,
    encode_transfers,
    signed,
    transfer_of_row,
    unsigned,
)

MIGRATIONS = (
    # Numbers of 128 bits are blobs of 16 bytes, the most significant first, so that they compare as numbers do.
    # A row's timestamp is its key: rows are appended, and the order of history is the order of the table.
    """
    CREATE TABLE ledger_account(
        timestamp INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
        user_data_128 BLOB NOT NULL,
        user_data_64 INTEGER NOT NULL,
        user_data_32 INTEGER NOT NULL,
        ledger INTEGER NOT NULL,
        code INTEGER NOT NULL,
        flags INTEGER NOT NULL,
        debits_pending BLOB NOT NULL,
        debits_posted BLOB NOT NULL,
        credits_pending BLOB NOT NULL,
        credits_posted BLOB NOT NULL
    ) STRICT;
    CREATE TABLE ledger_transfer(
        timestamp INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
        debit_account_id BLOB NOT NULL,
        credit_account_id BLOB NOT NULL,
        amount BLOB NOT NULL,
        pending_id BLOB,
        user_data_128 BLOB NOT NULL,
        user_data_64 INTEGER NOT NULL,
        user_data_32 INTEGER NOT NULL,
        ledger INTEGER NOT NULL,
        code INTEGER NOT NULL,
        flags INTEGER NOT NULL
    ) STRICT;
    -- What became of a hold is found here; that it is unique keeps a hold from being resolved twice.
    CREATE UNIQUE INDEX ledger_resolution ON ledger_transfer(pending_id) WHERE pending_id IS NOT NULL;
    CREATE TABLE ledger_burnt_id(id BLOB PRIMARY KEY CHECK (length(id) = 16)) STRICT, WITHOUT ROWID;
    CREATE TABLE ledger_clock(timestamp INTEGER NOT NULL) STRICT;
    INSERT INTO ledger_clock VALUES (0);
    """,
)

_INSERT_ACCOUNT = """
    INSERT INTO ledger_account(timestamp, id, user_data_128, user_data_64, user_data_32, ledger, code, flags,
        debits_pending, debits_posted, credits_pending, credits_posted)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, zeroblob(16), zeroblob(16), zeroblob(16), zeroblob(16))
"""
_UPDATE_ACCOUNT = """
    UPDATE ledger_account SET debits_pending = ?, debits_posted = ?, credits_pending = ?, credits_posted = ?
    WHERE timestamp = ?
"""
_SELECT_ACCOUNT = """
    SELECT timestamp, id, user_data_128, user_data_64, user_data_32, ledger, code, flags,
        debits_pending, debits_posted, credits_pending, credits_posted
    FROM ledger_account WHERE id = ?
"""
_COLUMNS = """timestamp, id, debit_account_id, credit_account_id, amount, pending_id,
    user_data_128, user_data_64, user_data_32, ledger, code, flags"""
_INSERT_TRANSFER = f"INSERT INTO ledger_transfer({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
_INSERT_BURNT_ID = "INSERT INTO ledger_burnt_id(id) VALUES (?)"
_SELECT_TRANSFER = f"SELECT {_COLUMNS} FROM ledger_transfer WHERE id = ?"  # noqa: S608
_SELECT_TRANSFER_OR_BURNT = f"""
    SELECT {_COLUMNS} FROM ledger_transfer WHERE id = ?1
    UNION ALL
    SELECT 0, id, NULL, NULL, NULL, NULL, NULL, 0, 0, 0, 0, 0 FROM ledger_burnt_id WHERE id = ?1
"""  # noqa: S608
_SELECT_AFTER = f"SELECT {_COLUMNS} FROM ledger_transfer WHERE timestamp > ? ORDER BY timestamp LIMIT ?"  # noqa: S608
_SELECT_NEWEST = f"SELECT {_COLUMNS} FROM ledger_transfer ORDER BY timestamp DESC LIMIT ?"  # noqa: S608
_SELECT_RESOLVED_BY = "SELECT flags FROM ledger_transfer WHERE pending_id = ?"
_SELECT_CLOCK = "SELECT timestamp FROM ledger_clock"
_UPDATE_CLOCK = "UPDATE ledger_clock SET timestamp = ?"
_SELECT_GREATEST_ID = """
    SELECT max(coalesce((SELECT max(id) FROM ledger_transfer WHERE id < ?1), zeroblob(16)),
        coalesce((SELECT max(id) FROM ledger_burnt_id WHERE id < ?1), zeroblob(16)))
"""

NANOSECONDS_PER_MILLISECOND = 1_000_000
RECENT_IDS_MAX = 8_192
ACCOUNTS_MAX = 16_384
HOLDS_MAX = 8_192

_RISING_IDS_END = (1 << 127).to_bytes(16)
"""Ids below this rise with time, more or less; those from here on are hashes (see `domain/identifier.py`)."""

_PENDING = TransferFlag.PENDING
_POST = TransferFlag.POST_PENDING_TRANSFER
_DEBITS_LIMITED = AccountFlag.DEBITS_MUST_NOT_EXCEED_CREDITS
_CREDITS_LIMITED = AccountFlag.CREDITS_MUST_NOT_EXCEED_DEBITS
_CREATED = TransferResult.CREATED

_ID, _DEBIT, _CREDIT, _AMOUNT, _PENDING_ID, _USER_DATA, _FLAGS = 1, 2, 3, 4, 5, 6, 11
"""Where these are in a row of a transfer."""


class _Account(Struct, eq=False, gc=False):
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


class _Hold(Struct, eq=False, gc=False):
    """A hold in memory: its transfer, its row, and the flag of what resolved it, or 0 while it is open."""

    transfer: LedgerTransfer
    row: Row
    resolved_by: int = 0


class SqliteLedger:
    """The ledger of the embedded database; the only writer of its tables, so one per `Database`.

    All methods finish without suspending. In a turn that is shared, what they answer is durable with the turn.
    The three bounds say how many accounts, holds and ids are remembered, about; at most twice as many are.
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
        self._accounts_max = accounts_max
        self._holds_max = holds_max
        self._recent_ids_max = recent_ids_max
        database.migrate("ledger", MIGRATIONS)
        self._timestamp = int(_one(database.connection, _SELECT_CLOCK))
        self._recorded_timestamp = self._timestamp
        self._accounts: dict[bytes, _Account] = {}
        self._accounts_before: dict[bytes, _Account] = {}
        self._changed: set[_Account] = set()
        self._holds: dict[bytes, _Hold] = {}
        # Every id of the database that is greater than the floor and below _RISING_IDS_END is among the recent ones:
        # the floor starts as the greatest id, and rises past what is forgotten. Other ids must be looked up.
        self._recent: dict[bytes, Row] = {}
        self._recent_before: dict[bytes, Row] = {}
        self._floor: bytes | None = None
        # Rows of this call that are not in the database yet.
        self._new_accounts: list[Row] = []
        self._new_transfers: list[Row] = []
        self._new_burnt_ids: list[tuple[bytes]] = []
        database.before_commit(self._write_back)
        database.after_rollback(self._forget)

    async def create_accounts(self, accounts: Sequence[LedgerAccount]) -> list[AccountOutcome]:
        """See the port."""
        requests = encode_accounts(accounts)
        with self._database.call() as connection:
            first = self._advance_clock(len(requests))

            def create(index: int) -> AccountOutcome:
                return self._create_account(connection, *requests[index], first + index)

            outcomes = create_in_chains(
                accounts,
                create,
                self._undo_accounts,
                lambda index: AccountOutcome(AccountResult.LINKED_EVENT_FAILED, first + index),
                lambda index: AccountOutcome(AccountResult.LINKED_EVENT_CHAIN_OPEN, first + index),
            )
            connection.executemany(_INSERT_ACCOUNT, self._new_accounts)
            self._new_accounts.clear()
        return outcomes

    async def create_transfers(self, transfers: Sequence[LedgerTransfer]) -> list[TransferOutcome]:
        """See the port."""
        requests, has_chains = encode_transfers(transfers)
        with self._database.call() as connection:
            if self._floor is None:
                self._floor = _one(connection, _SELECT_GREATEST_ID, _RISING_IDS_END)
            first = self._advance_clock(len(requests))
            if has_chains:

                def create(index: int) -> TransferOutcome:
                    return self._create_transfer(connection, requests[index], first + index)

                outcomes = create_in_chains(
                    transfers,
                    create,
                    lambda count: self._undo_transfers(connection, count),
                    lambda index: TransferOutcome(TransferResult.LINKED_EVENT_FAILED, first + index),
                    lambda index: TransferOutcome(TransferResult.LINKED_EVENT_CHAIN_OPEN, first + index),
                )
            else:
                outcomes = [
                    self._create_transfer(connection, request, timestamp)
                    for timestamp, request in enumerate(requests, first)
                ]
            self._write_transfers(connection)
        return outcomes

    async def lookup_accounts(self, ids: Sequence[int]) -> list[LedgerAccount]:
        """See the port."""
        keys = encode_ids(ids)
        with self._database.call() as connection:
            found = [self._account(connection, key) for key in keys]
        return [_public_account(account) for account in found if account is not None]

    async def lookup_transfers(self, ids: Sequence[int]) -> list[LedgerTransfer]:
        """See the port."""
        keys = encode_ids(ids)
        with self._database.call() as connection:
            rows = [connection.execute(_SELECT_TRANSFER, (key,)).fetchone() for key in keys]
        return [transfer_of_row(row) for row in rows if row is not None]

    async def transfers_after(self, timestamp: int, most: int) -> list[LedgerTransfer]:
        """See the port."""
        check_most(most)
        with self._database.call() as connection:
            rows = connection.execute(_SELECT_AFTER, (min(timestamp, I64_MAX), most)).fetchall()
        return [transfer_of_row(row) for row in rows]

    async def newest_transfers(self, most: int) -> list[LedgerTransfer]:
        """See the port."""
        check_most(most)
        with self._database.call() as connection:
            rows = connection.execute(_SELECT_NEWEST, (most,)).fetchall()
        return [transfer_of_row(row) for row in rows]

    def _advance_clock(self, count: int) -> int:
        """The timestamp of the first of `count` events; wall time, unless that would not rise."""
        first = max(self._timestamp + 1, self._clock.now_ms() * NANOSECONDS_PER_MILLISECOND)
        self._timestamp = max(self._timestamp, first + count - 1)
        return first

    def _create_account(
        self, connection: apsw.Connection, account: LedgerAccount, key: bytes, user_data: bytes, timestamp: int
    ) -> AccountOutcome:
        status = check_account_id(account)
        if status is not None:
            return AccountOutcome(status, timestamp)
        stored = self._account(connection, key)
        if stored is not None:
            status = compare_account(account, _public_account(stored))
            return AccountOutcome(status, stored.timestamp if status is AccountResult.EXISTS else timestamp)
        status = check_new_account(account)
        if status is not None:
            return AccountOutcome(status, timestamp)
        self._accounts[key] = _Account(
            timestamp,
            account.id,
            account.user_data_128,
            account.user_data_64,
            account.user_data_32,
            account.ledger,
            account.code,
            account.flags,
        )
        self._new_accounts.append(
            (
                timestamp,
                key,
                user_data,
                signed(account.user_data_64),
                account.user_data_32,
                account.ledger,
                account.code,
                account.flags,
            )
        )
        return AccountOutcome(AccountResult.CREATED, timestamp)

    def _create_transfer(self, connection: apsw.Connection, request: Request, timestamp: int) -> TransferOutcome:
        transfer, key = request[0], request[1]
        status = check_transfer_id(transfer)
        if status is not None:
            return TransferOutcome(status, timestamp)
        row = self._find(connection, key)
        if row is not None:
            return self._meet_existing(connection, transfer, row, timestamp)
        if transfer.flags & RESOLVING:
            status = self._resolve_hold(connection, request, timestamp)
        else:
            status = self._move(connection, request, timestamp)
        if status is not _CREATED and status in BURNING:
            self._recent[key] = (0, key)
            self._new_burnt_ids.append((key,))
        return TransferOutcome(status, timestamp)

    def _meet_existing(
        self, connection: apsw.Connection, transfer: LedgerTransfer, row: Row, timestamp: int
    ) -> TransferOutcome:
        """What a transfer gets whose id is taken or burnt."""
        if row[0] == 0:
            return TransferOutcome(TransferResult.ID_ALREADY_FAILED, timestamp)
        stored = transfer_of_row(row)
        if stored.flags & RESOLVING:
            hold = self._find(connection, row[_PENDING_ID])
            assert hold is not None, "a hold that was resolved exists"
            status = compare_resolution(transfer, stored, transfer_of_row(hold))
        else:
            status = compare_transfer(transfer, stored)
        return TransferOutcome(status, stored.timestamp if status is TransferResult.EXISTS else timestamp)

    def _move(self, connection: apsw.Connection, request: Request, timestamp: int) -> TransferResult:
        """Creates a plain transfer or a hold, if nothing speaks against it."""
        transfer, key, debit_key, credit_key, amount_blob, _, user_data = request
        status = check_new_transfer(transfer)
        if status is not None:
            return status
        debit = self._accounts.get(debit_key) or self._account(connection, debit_key)
        if debit is None:
            return TransferResult.DEBIT_ACCOUNT_NOT_FOUND
        credit = self._accounts.get(credit_key) or self._account(connection, credit_key)
        if credit is None:
            return TransferResult.CREDIT_ACCOUNT_NOT_FOUND
        if debit.ledger != credit.ledger:
            return TransferResult.ACCOUNTS_MUST_HAVE_THE_SAME_LEDGER
        if transfer.ledger != debit.ledger:
            return TransferResult.TRANSFER_MUST_HAVE_THE_SAME_LEDGER_AS_ACCOUNTS
        amount, flags = transfer.amount, transfer.flags
        debits = debit.debits_pending + debit.debits_posted + amount
        credits_ = credit.credits_pending + credit.credits_posted + amount
        if debits > U128_MAX or credits_ > U128_MAX:
            return _overflow(debit, credit, amount, is_hold=bool(flags & _PENDING))
        if debit.flags & _DEBITS_LIMITED and debits > debit.credits_posted:
            return TransferResult.EXCEEDS_CREDITS
        if credit.flags & _CREDITS_LIMITED and credits_ > credit.debits_posted:
            return TransferResult.EXCEEDS_DEBITS
        row = (
            timestamp,
            key,
            debit_key,
            credit_key,
            amount_blob,
            None,
            user_data,
            signed(transfer.user_data_64),
            transfer.user_data_32,
            transfer.ledger,
            transfer.code,
            flags,
        )
        if flags & _PENDING:
            debit.debits_pending += amount
            credit.credits_pending += amount
            self._holds[key] = _Hold(transfer, row)
        else:
            debit.debits_posted += amount
            credit.credits_posted += amount
        self._record(key, row, debit, credit)
        return _CREATED

    def _resolve_hold(self, connection: apsw.Connection, request: Request, timestamp: int) -> TransferResult:
        """Posts or voids a hold, if nothing speaks against it."""
        transfer, key, _, _, amount_blob, pending_key, user_data = request
        status = check_new_resolution(transfer)
        if status is not None:
            return status
        hold = self._holds.get(pending_key) or self._read_hold(connection, pending_key)
        if isinstance(hold, TransferResult):
            return hold
        held = hold.transfer
        status = check_against_hold(transfer, held, hold.resolved_by)
        if status is not None:
            return status
        amount = resolved_amount(transfer, held.amount)
        hold_row = hold.row
        debit_key, credit_key = hold_row[_DEBIT], hold_row[_CREDIT]
        debit, credit = self._parties(connection, hold_row)
        row = (
            timestamp,
            key,
            debit_key,
            credit_key,
            amount_blob if amount == transfer.amount else hold_row[_AMOUNT],
            pending_key,
            user_data if transfer.user_data_128 else hold_row[_USER_DATA],
            signed(transfer.user_data_64 or held.user_data_64),
            transfer.user_data_32 or held.user_data_32,
            held.ledger,
            held.code,
            transfer.flags,
        )
        hold.resolved_by = transfer.flags & RESOLVING
        debit.debits_pending -= held.amount
        credit.credits_pending -= held.amount
        if hold.resolved_by == _POST:
            debit.debits_posted += amount
            credit.credits_posted += amount
        self._record(key, row, debit, credit)
        return _CREATED

    def _record(self, key: bytes, row: Row, debit: _Account, credit: _Account) -> None:
        self._recent[key] = row
        self._new_transfers.append(row)
        self._changed.add(debit)
        self._changed.add(credit)

    def _read_hold(self, connection: apsw.Connection, key: bytes) -> _Hold | TransferResult:
        """A hold that is not in memory, or why there is none."""
        row = self._find(connection, key)
        if row is None or row[0] == 0:
            return TransferResult.PENDING_TRANSFER_NOT_FOUND
        if not row[_FLAGS] & _PENDING:
            return TransferResult.PENDING_TRANSFER_NOT_PENDING
        resolution = connection.execute(_SELECT_RESOLVED_BY, (key,)).fetchone()
        hold = self._holds[key] = _Hold(transfer_of_row(row), row, resolution[0] & RESOLVING if resolution else 0)
        return hold

    def _find(self, connection: apsw.Connection, key: bytes) -> Row | None:
        """The row of a transfer or burnt id."""
        row = self._recent.get(key) or self._recent_before.get(key)
        if row is not None:
            return row
        assert self._floor is not None, "the floor is read at the start of the call"
        if self._floor < key < _RISING_IDS_END:
            return None
        found: Row | None = connection.execute(_SELECT_TRANSFER_OR_BURNT, (key,)).fetchone()
        return found

    def _account(self, connection: apsw.Connection, key: bytes) -> _Account | None:
        account = self._accounts.get(key)
        if account is not None:
            return account
        account = self._accounts_before.get(key)
        if account is None:
            row = connection.execute(_SELECT_ACCOUNT, (key,)).fetchone()
            if row is None:
                return None
            timestamp, _, user_data_128, user_data_64, user_data_32, ledger, code, flags, *balances = row
            account = _Account(
                timestamp,
                int.from_bytes(key),
                int.from_bytes(user_data_128),
                unsigned(user_data_64),
                user_data_32,
                ledger,
                code,
                flags,
                *map(int.from_bytes, balances),
            )
        self._accounts[key] = account
        return account

    def _parties(self, connection: apsw.Connection, row: Row) -> tuple[_Account, _Account]:
        """The accounts of a transfer that exists."""
        debit = self._accounts.get(row[_DEBIT]) or self._account(connection, row[_DEBIT])
        credit = self._accounts.get(row[_CREDIT]) or self._account(connection, row[_CREDIT])
        assert debit is not None, "accounts are never deleted"
        assert credit is not None, "accounts are never deleted"
        return debit, credit

    def _undo_accounts(self, count: int) -> None:
        """Takes back the last accounts of this call."""
        for _ in range(count):
            row = self._new_accounts.pop()
            del self._accounts[row[_ID]]

    def _undo_transfers(self, connection: apsw.Connection, count: int) -> None:
        """Takes back the last transfers of this call, the newest first; ids that were burnt stay burnt."""
        for _ in range(count):
            row = self._new_transfers.pop()
            del self._recent[row[_ID]]
            debit, credit = self._parties(connection, row)
            amount, flags = int.from_bytes(row[_AMOUNT]), row[_FLAGS]
            if flags & _PENDING:
                debit.debits_pending -= amount
                credit.credits_pending -= amount
                del self._holds[row[_ID]]
                continue
            if flags & RESOLVING:
                hold = self._holds[row[_PENDING_ID]]
                hold.resolved_by = 0
                debit.debits_pending += hold.transfer.amount
                credit.credits_pending += hold.transfer.amount
            if not flags & TransferFlag.VOID_PENDING_TRANSFER:
                debit.debits_posted -= amount
                credit.credits_posted -= amount

    def _write_transfers(self, connection: apsw.Connection) -> None:
        """Writes what this call created and burnt, and forgets what is oldest."""
        rows = self._new_transfers
        if rows:
            connection.executemany(_INSERT_TRANSFER, rows)
            for row in rows:
                if row[_PENDING_ID] is not None:
                    self._holds.pop(row[_PENDING_ID], None)
            rows.clear()
        if self._new_burnt_ids:
            connection.executemany(_INSERT_BURNT_ID, self._new_burnt_ids)
            self._new_burnt_ids.clear()
        if len(self._holds) > self._holds_max:
            for key in list(islice(self._holds, len(self._holds) - self._holds_max // 2)):
                del self._holds[key]
        if len(self._recent) > self._recent_ids_max:
            assert self._floor is not None, "the floor is read at the start of the call"
            for key in self._recent_before:
                if self._floor < key < _RISING_IDS_END:
                    self._floor = key
            self._recent_before, self._recent = self._recent, {}

    def _write_back(self) -> None:
        """Writes the balances that this turn changed; a hook of the database."""
        if self._changed:
            self._database.connection.executemany(_UPDATE_ACCOUNT, map(_balances, self._changed))
            self._changed.clear()
        if self._timestamp != self._recorded_timestamp:
            self._database.connection.execute(_UPDATE_CLOCK, (self._timestamp,))
            self._recorded_timestamp = self._timestamp
        if len(self._accounts) > self._accounts_max:
            self._accounts_before, self._accounts = self._accounts, {}

    def _forget(self) -> None:
        """Drops all that is remembered but the clock, which must not step back; a hook of the database."""
        self._floor = None
        self._recorded_timestamp = 0
        for memory in (self._accounts, self._accounts_before, self._holds, self._recent, self._recent_before):
            memory.clear()
        self._changed.clear()
        for rows in (self._new_accounts, self._new_transfers, self._new_burnt_ids):
            rows.clear()


def _one(connection: apsw.Connection, statement: str, *values: bytes) -> Any:
    """The only value of a statement's only row."""
    row = connection.execute(statement, values).fetchone()
    assert row is not None, "the statement gives one row"
    return row[0]


def _overflow(debit: _Account, credit: _Account, amount: int, *, is_hold: bool) -> TransferResult:
    """Which of the sums overflows first; one of them does."""
    if is_hold:
        if debit.debits_pending + amount > U128_MAX:
            return TransferResult.OVERFLOWS_DEBITS_PENDING
        if credit.credits_pending + amount > U128_MAX:
            return TransferResult.OVERFLOWS_CREDITS_PENDING
    if debit.debits_posted + amount > U128_MAX:
        return TransferResult.OVERFLOWS_DEBITS_POSTED
    if credit.credits_posted + amount > U128_MAX:
        return TransferResult.OVERFLOWS_CREDITS_POSTED
    if debit.debits_pending + debit.debits_posted + amount > U128_MAX:
        return TransferResult.OVERFLOWS_DEBITS
    return TransferResult.OVERFLOWS_CREDITS


def _balances(account: _Account) -> tuple[bytes, bytes, bytes, bytes, int]:
    return (
        account.debits_pending.to_bytes(16),
        account.debits_posted.to_bytes(16),
        account.credits_pending.to_bytes(16),
        account.credits_posted.to_bytes(16),
        account.timestamp,
    )


def _public_account(account: _Account) -> LedgerAccount:
    return LedgerAccount(**{name: getattr(account, name) for name in LedgerAccount.__struct_fields__})
