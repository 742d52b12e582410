"""The double-entry ledger, with TigerBeetle's semantics and result names.

Source of the semantics: TigerBeetle's reference on `create_accounts` and `create_transfers`, whose lists of results
are in order of precedence, as seen on a server of release 0.17.9.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from msgspec import Struct

from internal_transfer.domain.account import AccountType, Holder
from internal_transfer.ports.bounds import reads

BATCH_MAX = 8189
"""The most accounts or transfers in one call."""

U128_MAX = 2**128 - 1
AMOUNT_MAX = U128_MAX
"""As the amount of a post: all of the hold. This service never sends it."""


class AccountFlag:
    """Bits of an account's `flags`."""

    LINKED = 1
    DEBITS_MUST_NOT_EXCEED_CREDITS = 2
    CREDITS_MUST_NOT_EXCEED_DEBITS = 4
    HISTORY = 8
    IMPORTED = 16
    CLOSED = 32


def account_flags(kind: AccountType) -> int:
    """Returns the flags of a type's accounts in the ledger: only ledger-held balances have a limit."""
    return AccountFlag.DEBITS_MUST_NOT_EXCEED_CREDITS if kind.holder is Holder.LEDGER else 0


class TransferFlag:
    """Bits of a transfer's `flags`."""

    LINKED = 1
    PENDING = 2
    POST_PENDING_TRANSFER = 4
    VOID_PENDING_TRANSFER = 8
    BALANCING_DEBIT = 16
    BALANCING_CREDIT = 32
    CLOSING_DEBIT = 64
    CLOSING_CREDIT = 128
    IMPORTED = 256


RESOLVING = TransferFlag.POST_PENDING_TRANSFER | TransferFlag.VOID_PENDING_TRANSFER
"""The flags of a post or void."""
TWO_PHASES = TransferFlag.PENDING | RESOLVING
"""The flags of a hold, post or void; a deposit or withdrawal has none of them."""


class LedgerAccount(Struct, frozen=True, kw_only=True):
    """An account. All sums are u128; `timestamp` is in nanoseconds, and 0 in a request."""

    id: int
    ledger: int
    code: int
    flags: int = 0
    user_data_128: int = 0
    user_data_64: int = 0
    user_data_32: int = 0
    debits_pending: int = 0
    debits_posted: int = 0
    credits_pending: int = 0
    credits_posted: int = 0
    timestamp: int = 0


class LedgerTransfer(Struct, frozen=True, kw_only=True):
    """A plain transfer, a hold (PENDING), or the post or void of the hold `pending_id`; it never changes."""

    id: int
    debit_account_id: int = 0
    credit_account_id: int = 0
    amount: int = 0
    pending_id: int = 0
    user_data_128: int = 0
    user_data_64: int = 0
    user_data_32: int = 0
    timeout: int = 0
    ledger: int = 0
    code: int = 0
    flags: int = 0
    timestamp: int = 0


class AccountResult(StrEnum):
    """What became of one account of a batch."""

    CREATED = "created"
    LINKED_EVENT_FAILED = "linked_event_failed"
    LINKED_EVENT_CHAIN_OPEN = "linked_event_chain_open"
    TIMESTAMP_MUST_BE_ZERO = "timestamp_must_be_zero"
    RESERVED_FLAG = "reserved_flag"
    ID_MUST_NOT_BE_ZERO = "id_must_not_be_zero"
    ID_MUST_NOT_BE_INT_MAX = "id_must_not_be_int_max"
    EXISTS_WITH_DIFFERENT_FLAGS = "exists_with_different_flags"
    EXISTS_WITH_DIFFERENT_USER_DATA_128 = "exists_with_different_user_data_128"
    EXISTS_WITH_DIFFERENT_USER_DATA_64 = "exists_with_different_user_data_64"
    EXISTS_WITH_DIFFERENT_USER_DATA_32 = "exists_with_different_user_data_32"
    EXISTS_WITH_DIFFERENT_LEDGER = "exists_with_different_ledger"
    EXISTS_WITH_DIFFERENT_CODE = "exists_with_different_code"
    EXISTS = "exists"
    FLAGS_ARE_MUTUALLY_EXCLUSIVE = "flags_are_mutually_exclusive"
    DEBITS_PENDING_MUST_BE_ZERO = "debits_pending_must_be_zero"
    DEBITS_POSTED_MUST_BE_ZERO = "debits_posted_must_be_zero"
    CREDITS_PENDING_MUST_BE_ZERO = "credits_pending_must_be_zero"
    CREDITS_POSTED_MUST_BE_ZERO = "credits_posted_must_be_zero"
    LEDGER_MUST_NOT_BE_ZERO = "ledger_must_not_be_zero"
    CODE_MUST_NOT_BE_ZERO = "code_must_not_be_zero"


class TransferResult(StrEnum):
    """What became of one transfer of a batch."""

    CREATED = "created"
    LINKED_EVENT_FAILED = "linked_event_failed"
    LINKED_EVENT_CHAIN_OPEN = "linked_event_chain_open"
    TIMESTAMP_MUST_BE_ZERO = "timestamp_must_be_zero"
    RESERVED_FLAG = "reserved_flag"
    ID_MUST_NOT_BE_ZERO = "id_must_not_be_zero"
    ID_MUST_NOT_BE_INT_MAX = "id_must_not_be_int_max"
    EXISTS_WITH_DIFFERENT_FLAGS = "exists_with_different_flags"
    EXISTS_WITH_DIFFERENT_PENDING_ID = "exists_with_different_pending_id"
    EXISTS_WITH_DIFFERENT_TIMEOUT = "exists_with_different_timeout"
    EXISTS_WITH_DIFFERENT_DEBIT_ACCOUNT_ID = "exists_with_different_debit_account_id"
    EXISTS_WITH_DIFFERENT_CREDIT_ACCOUNT_ID = "exists_with_different_credit_account_id"
    EXISTS_WITH_DIFFERENT_AMOUNT = "exists_with_different_amount"
    EXISTS_WITH_DIFFERENT_USER_DATA_128 = "exists_with_different_user_data_128"
    EXISTS_WITH_DIFFERENT_USER_DATA_64 = "exists_with_different_user_data_64"
    EXISTS_WITH_DIFFERENT_USER_DATA_32 = "exists_with_different_user_data_32"
    EXISTS_WITH_DIFFERENT_LEDGER = "exists_with_different_ledger"
    EXISTS_WITH_DIFFERENT_CODE = "exists_with_different_code"
    EXISTS = "exists"
    ID_ALREADY_FAILED = "id_already_failed"
    FLAGS_ARE_MUTUALLY_EXCLUSIVE = "flags_are_mutually_exclusive"
    DEBIT_ACCOUNT_ID_MUST_NOT_BE_ZERO = "debit_account_id_must_not_be_zero"
    DEBIT_ACCOUNT_ID_MUST_NOT_BE_INT_MAX = "debit_account_id_must_not_be_int_max"
    CREDIT_ACCOUNT_ID_MUST_NOT_BE_ZERO = "credit_account_id_must_not_be_zero"
    CREDIT_ACCOUNT_ID_MUST_NOT_BE_INT_MAX = "credit_account_id_must_not_be_int_max"
    ACCOUNTS_MUST_BE_DIFFERENT = "accounts_must_be_different"
    PENDING_ID_MUST_BE_ZERO = "pending_id_must_be_zero"
    PENDING_ID_MUST_NOT_BE_ZERO = "pending_id_must_not_be_zero"
    PENDING_ID_MUST_NOT_BE_INT_MAX = "pending_id_must_not_be_int_max"
    PENDING_ID_MUST_BE_DIFFERENT = "pending_id_must_be_different"
    TIMEOUT_RESERVED_FOR_PENDING_TRANSFER = "timeout_reserved_for_pending_transfer"
    LEDGER_MUST_NOT_BE_ZERO = "ledger_must_not_be_zero"
    CODE_MUST_NOT_BE_ZERO = "code_must_not_be_zero"
    DEBIT_ACCOUNT_NOT_FOUND = "debit_account_not_found"
    CREDIT_ACCOUNT_NOT_FOUND = "credit_account_not_found"
    ACCOUNTS_MUST_HAVE_THE_SAME_LEDGER = "accounts_must_have_the_same_ledger"
    TRANSFER_MUST_HAVE_THE_SAME_LEDGER_AS_ACCOUNTS = "transfer_must_have_the_same_ledger_as_accounts"
    PENDING_TRANSFER_NOT_FOUND = "pending_transfer_not_found"
    PENDING_TRANSFER_NOT_PENDING = "pending_transfer_not_pending"
    PENDING_TRANSFER_HAS_DIFFERENT_DEBIT_ACCOUNT_ID = "pending_transfer_has_different_debit_account_id"
    PENDING_TRANSFER_HAS_DIFFERENT_CREDIT_ACCOUNT_ID = "pending_transfer_has_different_credit_account_id"
    PENDING_TRANSFER_HAS_DIFFERENT_LEDGER = "pending_transfer_has_different_ledger"
    PENDING_TRANSFER_HAS_DIFFERENT_CODE = "pending_transfer_has_different_code"
    EXCEEDS_PENDING_TRANSFER_AMOUNT = "exceeds_pending_transfer_amount"
    PENDING_TRANSFER_HAS_DIFFERENT_AMOUNT = "pending_transfer_has_different_amount"
    PENDING_TRANSFER_ALREADY_POSTED = "pending_transfer_already_posted"
    PENDING_TRANSFER_ALREADY_VOIDED = "pending_transfer_already_voided"
    OVERFLOWS_DEBITS_PENDING = "overflows_debits_pending"
    OVERFLOWS_CREDITS_PENDING = "overflows_credits_pending"
    OVERFLOWS_DEBITS_POSTED = "overflows_debits_posted"
    OVERFLOWS_CREDITS_POSTED = "overflows_credits_posted"
    OVERFLOWS_DEBITS = "overflows_debits"
    OVERFLOWS_CREDITS = "overflows_credits"
    EXCEEDS_CREDITS = "exceeds_credits"
    EXCEEDS_DEBITS = "exceeds_debits"


BURNING = frozenset(
    {
        TransferResult.DEBIT_ACCOUNT_NOT_FOUND,
        TransferResult.CREDIT_ACCOUNT_NOT_FOUND,
        TransferResult.PENDING_TRANSFER_NOT_FOUND,
        TransferResult.EXCEEDS_CREDITS,
        TransferResult.EXCEEDS_DEBITS,
    }
)
"""The transient failures, which burn the transfer's id for ever. Two more occur only with closed accounts, which this
service does not use."""


class AccountOutcome(Struct, frozen=True):
    """A result with the ledger's timestamp: that of the event, or that of the original where it `exists`."""

    status: AccountResult
    timestamp: int


class TransferOutcome(Struct, frozen=True):
    """A result with the ledger's timestamp: that of the event, or that of the original where it `exists`."""

    status: TransferResult
    timestamp: int


class UnsupportedError(ValueError):
    """The caller used a feature of TigerBeetle that this service does not support: a bug."""


class Ledger(Protocol):
    """Accounts and two-phase transfers.

    Calls take at most `BATCH_MAX` items and return one result per item, in order. Before anything is done, more items
    and numbers too wide for their field raise `ValueError`; time-outs, closing, balancing and imported flags raise
    `UnsupportedError`. All calls raise `Unavailable` when nothing was done and `OutcomeUnknown` when something may have
    been.
    """

    async def create_accounts(self, accounts: Sequence[LedgerAccount]) -> list[AccountOutcome]:
        """Creates accounts; an id is never burnt."""
        ...

    async def create_transfers(self, transfers: Sequence[LedgerTransfer]) -> list[TransferOutcome]:
        """Creates transfers, holds, posts and voids; each sees those before it in the batch."""
        ...

    @reads
    async def lookup_accounts(self, ids: Sequence[int]) -> list[LedgerAccount]:
        """The accounts that exist, in the order asked; unknown ids are left out, repeated ones repeated."""
        ...

    @reads
    async def lookup_transfers(self, ids: Sequence[int]) -> list[LedgerTransfer]:
        """The transfers that exist, in the order asked; a hold does not show what became of it."""
        ...

    @reads
    async def transfers_after(self, timestamp: int, most: int) -> list[LedgerTransfer]:
        """The next transfers after a timestamp, rising; at most `most`, which is at most `BATCH_MAX`."""
        ...

    @reads
    async def newest_transfers(self, most: int) -> list[LedgerTransfer]:
        """The newest transfers, with falling timestamps; at most `most`, which is at most `BATCH_MAX`."""
        ...
