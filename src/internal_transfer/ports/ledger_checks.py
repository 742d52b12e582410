"""TigerBeetle's checks of accounts and transfers, in its order of precedence: the first check that fails decides.

They stand with the port because they are its contract: whichever ledger is used, the same event gets the same result.
The order is that of TigerBeetle's reference on `create_accounts` and `create_transfers`. Every ledger first refuses, by
raising, a batch that is too long and all time-outs and closing, balancing and imported events, so the results that only
those can have do not occur.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from internal_transfer.ports.ledger import (
    AMOUNT_MAX,
    BATCH_MAX,
    RESOLVING,
    U128_MAX,
    AccountFlag,
    AccountResult,
    LedgerAccount,
    LedgerTransfer,
    TransferFlag,
    TransferResult,
    UnsupportedError,
)

_ACCOUNT_FLAGS_UNSUPPORTED = AccountFlag.IMPORTED | AccountFlag.CLOSED
_TRANSFER_FLAGS_UNSUPPORTED = (
    TransferFlag.BALANCING_DEBIT
    | TransferFlag.BALANCING_CREDIT
    | TransferFlag.CLOSING_DEBIT
    | TransferFlag.CLOSING_CREDIT
    | TransferFlag.IMPORTED
)

_ACCOUNT_FLAGS_MAX = 2 * AccountFlag.CLOSED - 1
_TRANSFER_FLAGS_MAX = 2 * TransferFlag.IMPORTED - 1
_BALANCES = ("debits_pending", "debits_posted", "credits_pending", "credits_posted")
_ACCOUNT_FIELDS = ("flags", "user_data_128", "user_data_64", "user_data_32", "ledger", "code")
_TRANSFER_FIELDS = ("flags", "pending_id", "debit_account_id", "credit_account_id", "amount", *_ACCOUNT_FIELDS[1:])
_BOTH_LIMITS = AccountFlag.DEBITS_MUST_NOT_EXCEED_CREDITS | AccountFlag.CREDITS_MUST_NOT_EXCEED_DEBITS


def check_size(items: Sequence[object]) -> None:
    """Raises `ValueError` for more items than a call takes."""
    if len(items) > BATCH_MAX:
        raise ValueError(f"a call takes at most {BATCH_MAX} items, not {len(items)}")


def check_most(most: int) -> None:
    """Raises `ValueError` for more transfers than a call may read."""
    if not 0 <= most <= BATCH_MAX:
        raise ValueError(f"at most {BATCH_MAX} transfers can be asked for, not {most}")


def check_accounts_supported(*, flags: int) -> None:
    """Raises `UnsupportedError` for a batch of accounts; `flags` is the union of theirs."""
    if flags & _ACCOUNT_FLAGS_UNSUPPORTED:
        raise UnsupportedError("imported and closed accounts are not used here")


def check_transfers_supported(*, flags: int, timeout: int) -> None:
    """Raises `UnsupportedError` for a batch of transfers; `flags` and `timeout` are the unions of theirs."""
    if timeout or flags & _TRANSFER_FLAGS_UNSUPPORTED:
        raise UnsupportedError("time-outs and closing, balancing and imported transfers are not used here")


def check_account_id(account: LedgerAccount) -> AccountResult | None:
    """Checks an account before the ledger looks for one with its id."""
    if account.timestamp:
        return AccountResult.TIMESTAMP_MUST_BE_ZERO
    if account.flags > _ACCOUNT_FLAGS_MAX:
        return AccountResult.RESERVED_FLAG
    if account.id == 0:
        return AccountResult.ID_MUST_NOT_BE_ZERO
    if account.id == U128_MAX:
        return AccountResult.ID_MUST_NOT_BE_INT_MAX
    return None


def compare_account(account: LedgerAccount, stored: LedgerAccount) -> AccountResult:
    """Returns the `exists` result of an account whose id is taken."""
    for name in _ACCOUNT_FIELDS:
        if getattr(account, name) != getattr(stored, name):
            return AccountResult(f"exists_with_different_{name}")
    return AccountResult.EXISTS


def check_new_account(account: LedgerAccount) -> AccountResult | None:
    """Checks an account whose id is free."""
    if account.flags & _BOTH_LIMITS == _BOTH_LIMITS:
        return AccountResult.FLAGS_ARE_MUTUALLY_EXCLUSIVE
    for name in _BALANCES:
        if getattr(account, name):
            return AccountResult(f"{name}_must_be_zero")
    if account.ledger == 0:
        return AccountResult.LEDGER_MUST_NOT_BE_ZERO
    if account.code == 0:
        return AccountResult.CODE_MUST_NOT_BE_ZERO
    return None


def check_transfer_id(transfer: LedgerTransfer) -> TransferResult | None:
    """Checks a transfer before the ledger looks for its id among the transfers and the burnt ids."""
    if transfer.timestamp:
        return TransferResult.TIMESTAMP_MUST_BE_ZERO
    if transfer.flags > _TRANSFER_FLAGS_MAX:
        return TransferResult.RESERVED_FLAG
    if transfer.id == 0:
        return TransferResult.ID_MUST_NOT_BE_ZERO
    if transfer.id == U128_MAX:
        return TransferResult.ID_MUST_NOT_BE_INT_MAX
    return None


def compare_transfer(transfer: LedgerTransfer, stored: LedgerTransfer) -> TransferResult:
    """Returns the `exists` result of a plain transfer or hold whose id is taken."""
    for name in _TRANSFER_FIELDS:
        if getattr(transfer, name) != getattr(stored, name):
            return TransferResult(f"exists_with_different_{name}")
    return TransferResult.EXISTS


def compare_resolution(transfer: LedgerTransfer, stored: LedgerTransfer, hold: LedgerTransfer) -> TransferResult:
    """Returns the `exists` result of a post or void whose id is taken; `hold` is the hold that `stored` resolved.

    A field that is 0 stands for the hold's value, so it differs only where `stored` has another value than the hold.
    """
    meant = replace(
        transfer,
        debit_account_id=transfer.debit_account_id or stored.debit_account_id,
        credit_account_id=transfer.credit_account_id or stored.credit_account_id,
        amount=resolved_amount(transfer, hold.amount),
        user_data_128=transfer.user_data_128 or hold.user_data_128,
        user_data_64=transfer.user_data_64 or hold.user_data_64,
        user_data_32=transfer.user_data_32 or hold.user_data_32,
        ledger=transfer.ledger or stored.ledger,
        code=transfer.code or stored.code,
    )
    return compare_transfer(meant, stored)


def check_new_transfer(transfer: LedgerTransfer) -> TransferResult | None:
    """Checks a plain transfer or hold whose id is free, before its accounts are looked up."""
    debit, credit = transfer.debit_account_id, transfer.credit_account_id
    if debit == 0:
        return TransferResult.DEBIT_ACCOUNT_ID_MUST_NOT_BE_ZERO
    if debit == U128_MAX:
        return TransferResult.DEBIT_ACCOUNT_ID_MUST_NOT_BE_INT_MAX
    if credit == 0:
        return TransferResult.CREDIT_ACCOUNT_ID_MUST_NOT_BE_ZERO
    if credit == U128_MAX:
        return TransferResult.CREDIT_ACCOUNT_ID_MUST_NOT_BE_INT_MAX
    if debit == credit:
        return TransferResult.ACCOUNTS_MUST_BE_DIFFERENT
    if transfer.pending_id:
        return TransferResult.PENDING_ID_MUST_BE_ZERO
    if transfer.ledger == 0:
        return TransferResult.LEDGER_MUST_NOT_BE_ZERO
    if transfer.code == 0:
        return TransferResult.CODE_MUST_NOT_BE_ZERO
    return None


def check_new_resolution(transfer: LedgerTransfer) -> TransferResult | None:
    """Checks a post or void whose id is free, before its hold is looked up."""
    flags, pending_id = transfer.flags, transfer.pending_id
    if flags & RESOLVING == RESOLVING or flags & TransferFlag.PENDING:
        return TransferResult.FLAGS_ARE_MUTUALLY_EXCLUSIVE
    if pending_id == 0:
        return TransferResult.PENDING_ID_MUST_NOT_BE_ZERO
    if pending_id == U128_MAX:
        return TransferResult.PENDING_ID_MUST_NOT_BE_INT_MAX
    if pending_id == transfer.id:
        return TransferResult.PENDING_ID_MUST_BE_DIFFERENT
    return None


def check_against_hold(transfer: LedgerTransfer, hold: LedgerTransfer, resolved_by: int) -> TransferResult | None:
    """Checks a post or void against its hold; `resolved_by` is the flag of the hold's earlier post or void, or 0."""
    if transfer.debit_account_id not in (0, hold.debit_account_id):
        return TransferResult.PENDING_TRANSFER_HAS_DIFFERENT_DEBIT_ACCOUNT_ID
    if transfer.credit_account_id not in (0, hold.credit_account_id):
        return TransferResult.PENDING_TRANSFER_HAS_DIFFERENT_CREDIT_ACCOUNT_ID
    if transfer.ledger not in (0, hold.ledger):
        return TransferResult.PENDING_TRANSFER_HAS_DIFFERENT_LEDGER
    if transfer.code not in (0, hold.code):
        return TransferResult.PENDING_TRANSFER_HAS_DIFFERENT_CODE
    amount = resolved_amount(transfer, hold.amount)
    if amount > hold.amount:
        return TransferResult.EXCEEDS_PENDING_TRANSFER_AMOUNT
    if amount < hold.amount and transfer.flags & TransferFlag.VOID_PENDING_TRANSFER:
        return TransferResult.PENDING_TRANSFER_HAS_DIFFERENT_AMOUNT
    if resolved_by & TransferFlag.POST_PENDING_TRANSFER:
        return TransferResult.PENDING_TRANSFER_ALREADY_POSTED
    if resolved_by & TransferFlag.VOID_PENDING_TRANSFER:
        return TransferResult.PENDING_TRANSFER_ALREADY_VOIDED
    return None


def resolved_amount(transfer: LedgerTransfer, held: int) -> int:
    """Returns the amount that a post or void moves: 0 in a void, and AMOUNT_MAX in a post, stand for all of `held`."""
    everything = 0 if transfer.flags & TransferFlag.VOID_PENDING_TRANSFER else AMOUNT_MAX
    return held if transfer.amount == everything else transfer.amount
