"""Creates one account or transfer at a time: checks it as TigerBeetle does, and moves the balances in memory."""

import apsw

from internal_transfer.adapters.sqlite.ledger_memory import Account, Hold, LedgerMemory
from internal_transfer.adapters.sqlite.ledger_rows import (
    AMOUNT,
    CREDIT,
    DEBIT,
    FLAGS,
    ID,
    PENDING_ID,
    USER_DATA,
    Row,
    signed,
    transfer_of,
)
from internal_transfer.ports import ledger_checks as checks
from internal_transfer.ports.ledger import (
    BURNING,
    RESOLVING,
    U128_MAX,
    AccountFlag,
    AccountOutcome,
    AccountResult,
    LedgerTransfer,
    TransferFlag,
    TransferOutcome,
    TransferResult,
)
from internal_transfer.ports.ledger_encoding import AccountRequest, Request

_PENDING = TransferFlag.PENDING
_POST = TransferFlag.POST_PENDING_TRANSFER
_DEBITS_LIMITED = AccountFlag.DEBITS_MUST_NOT_EXCEED_CREDITS
_CREDITS_LIMITED = AccountFlag.CREDITS_MUST_NOT_EXCEED_DEBITS
_CREATED = TransferResult.CREATED


class Creator:
    """Creates in memory what a call asks for; `LedgerMemory` writes it."""

    def __init__(self, memory: LedgerMemory) -> None:
        self._memory = memory

    def create_account(self, connection: apsw.Connection, request: AccountRequest, timestamp: int) -> AccountOutcome:
        """Creates an account, or finds out why not."""
        account, key, user_data = request
        status = checks.check_account_id(account)
        if status is not None:
            return AccountOutcome(status, timestamp)
        stored = self._memory.account(connection, key)
        if stored is not None:
            status = checks.compare_account(account, stored.public())
            return AccountOutcome(status, stored.timestamp if status is AccountResult.EXISTS else timestamp)
        status = checks.check_new_account(account)
        if status is not None:
            return AccountOutcome(status, timestamp)
        user_data_64, user_data_32 = account.user_data_64, account.user_data_32
        ledger, code, flags = account.ledger, account.code, account.flags
        self._memory.accounts[key] = Account(
            timestamp, account.id, account.user_data_128, user_data_64, user_data_32, ledger, code, flags
        )
        self._memory.new_accounts.append(
            (timestamp, key, user_data, signed(user_data_64), user_data_32, ledger, code, flags)
        )
        return AccountOutcome(AccountResult.CREATED, timestamp)

    def create_transfer(self, connection: apsw.Connection, request: Request, timestamp: int) -> TransferOutcome:
        """Creates a transfer, hold, post or void, or finds out why not; a transient failure burns its id."""
        transfer, key = request[0], request[1]
        status = checks.check_transfer_id(transfer)
        if status is not None:
            return TransferOutcome(status, timestamp)
        row = self._memory.find(connection, key)
        if row is not None:
            return self._meet_existing(connection, transfer, row, timestamp)
        if transfer.flags & RESOLVING:
            status = self._resolve_hold(connection, request, timestamp)
        else:
            status = self._move(connection, request, timestamp)
        if status is not _CREATED and status in BURNING:
            self._memory.burn(key)
        return TransferOutcome(status, timestamp)

    def _meet_existing(
        self, connection: apsw.Connection, transfer: LedgerTransfer, row: Row, timestamp: int
    ) -> TransferOutcome:
        """The outcome of a transfer whose id is taken or burnt."""
        if row[0] == 0:
            return TransferOutcome(TransferResult.ID_ALREADY_FAILED, timestamp)
        stored = transfer_of(row)
        if stored.flags & RESOLVING:
            hold = self._memory.find(connection, row[PENDING_ID])
            assert hold is not None, "a hold that was resolved exists"
            status = checks.compare_resolution(transfer, stored, transfer_of(hold))
        else:
            status = checks.compare_transfer(transfer, stored)
        return TransferOutcome(status, stored.timestamp if status is TransferResult.EXISTS else timestamp)

    def _move(self, connection: apsw.Connection, request: Request, timestamp: int) -> TransferResult:
        """Creates a plain transfer or a hold, unless a check refuses it."""
        transfer, key, debit_key, credit_key, amount_blob, _, user_data = request
        status = checks.check_new_transfer(transfer)
        if status is not None:
            return status
        memory = self._memory
        debit = memory.accounts.get(debit_key) or memory.account(connection, debit_key)
        if debit is None:
            return TransferResult.DEBIT_ACCOUNT_NOT_FOUND
        credit = memory.accounts.get(credit_key) or memory.account(connection, credit_key)
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
            memory.holds[key] = Hold(transfer, row)
        else:
            debit.debits_posted += amount
            credit.credits_posted += amount
        memory.add(key, row, debit, credit)
        return _CREATED

    def _resolve_hold(self, connection: apsw.Connection, request: Request, timestamp: int) -> TransferResult:
        """Posts or voids a hold, unless a check refuses it."""
        transfer, key, _, _, amount_blob, pending_key, user_data = request
        status = checks.check_new_resolution(transfer)
        if status is not None:
            return status
        memory = self._memory
        hold = memory.holds.get(pending_key) or memory.read_hold(connection, pending_key)
        if isinstance(hold, TransferResult):
            return hold
        held = hold.transfer
        status = checks.check_against_hold(transfer, held, hold.resolved_by)
        if status is not None:
            return status
        amount = checks.resolved_amount(transfer, held.amount)
        hold_row = hold.row
        debit, credit = memory.parties(connection, hold_row)
        row = (
            timestamp,
            key,
            hold_row[DEBIT],
            hold_row[CREDIT],
            amount_blob if amount == transfer.amount else hold_row[AMOUNT],
            pending_key,
            user_data if transfer.user_data_128 else hold_row[USER_DATA],
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
        memory.add(key, row, debit, credit)
        return _CREATED

    def undo_accounts(self, count: int) -> None:
        """Takes back the last accounts of this call."""
        for _ in range(count):
            row = self._memory.new_accounts.pop()
            del self._memory.accounts[row[ID]]

    def undo_transfers(self, connection: apsw.Connection, count: int) -> None:
        """Takes back the last transfers of this call, the newest first; ids that were burnt stay burnt."""
        memory = self._memory
        for _ in range(count):
            row = memory.new_transfers.pop()
            del memory.recent[row[ID]]
            debit, credit = memory.parties(connection, row)
            amount, flags = int.from_bytes(row[AMOUNT]), row[FLAGS]
            if flags & _PENDING:
                debit.debits_pending -= amount
                credit.credits_pending -= amount
                del memory.holds[row[ID]]
                continue
            if flags & RESOLVING:
                hold = memory.holds[row[PENDING_ID]]
                hold.resolved_by = 0
                debit.debits_pending += hold.transfer.amount
                credit.credits_pending += hold.transfer.amount
            if not flags & TransferFlag.VOID_PENDING_TRANSFER:
                debit.debits_posted -= amount
                credit.credits_posted -= amount


def _overflow(debit: Account, credit: Account, amount: int, *, is_hold: bool) -> TransferResult:
    """Which of the sums overflows first, given that one does."""
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
