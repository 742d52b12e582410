"""A batch for a ledger with its numbers of 128 bits as blobs, and the batches that no ledger takes.

It stands with the port because a ledger in another process is asked with the same blobs, and has to raise the same
errors before anything is sent, as one in this process does before anything is done.
"""

from collections.abc import Sequence

from internal_transfer.ports.ledger import LedgerAccount, LedgerTransfer, TransferFlag
from internal_transfer.ports.ledger_checks import check_accounts_supported, check_size, check_transfers_supported

_ZERO = bytes(16)
_LINKED = TransferFlag.LINKED

AccountRequest = tuple[LedgerAccount, bytes, bytes]
"""An account with its id and user data as blobs."""

Request = tuple[LedgerTransfer, bytes, bytes, bytes, bytes, bytes, bytes]
"""A transfer with its id, debit account, credit account, amount, pending id and user data as blobs."""


def encode_accounts(accounts: Sequence[LedgerAccount]) -> list[AccountRequest]:
    """The accounts of a batch with their blobs.

    Raises `ValueError` for a batch that is too long or a number that is too wide, and `UnsupportedError`.
    """
    check_size(accounts)
    flags = user_data_64 = user_data_32 = code = ledger = 0
    for account in accounts:
        flags |= account.flags
        user_data_64 |= account.user_data_64
        user_data_32 |= account.user_data_32
        ledger |= account.ledger
        code |= account.code
    _check_widths(user_data_64=user_data_64, user_data_32=user_data_32, ledger=ledger, code=code, flags=flags)
    check_accounts_supported(flags=flags)
    try:
        return [(account, account.id.to_bytes(16), account.user_data_128.to_bytes(16)) for account in accounts]
    except OverflowError as error:
        raise ValueError("a number of an account is wider than 128 bits, or negative") from error


def encode_transfers(transfers: Sequence[LedgerTransfer]) -> tuple[list[Request], bool]:
    """The transfers of a batch with their blobs, and whether any of them is linked; raises as `encode_accounts` does.

    The fields of all transfers are checked at once, in their union, since a bit that is wrong in one is wrong there.
    """
    check_size(transfers)
    flags = timeout = user_data_64 = user_data_32 = ledger = code = 0
    requests: list[Request] = []
    try:
        for transfer in transfers:
            flags |= transfer.flags
            timeout |= transfer.timeout
            user_data_64 |= transfer.user_data_64
            user_data_32 |= transfer.user_data_32
            ledger |= transfer.ledger
            code |= transfer.code
            pending_id, user_data_128 = transfer.pending_id, transfer.user_data_128
            requests.append(
                (
                    transfer,
                    transfer.id.to_bytes(16),
                    transfer.debit_account_id.to_bytes(16),
                    transfer.credit_account_id.to_bytes(16),
                    transfer.amount.to_bytes(16),
                    pending_id.to_bytes(16) if pending_id else _ZERO,
                    user_data_128.to_bytes(16) if user_data_128 else _ZERO,
                )
            )
    except OverflowError as error:
        raise ValueError("a number of a transfer is wider than 128 bits, or negative") from error
    _check_widths(user_data_64=user_data_64, user_data_32=user_data_32, ledger=ledger, code=code, flags=flags)
    check_transfers_supported(flags=flags, timeout=timeout)
    return requests, bool(flags & _LINKED)


def encode_ids(ids: Sequence[int]) -> list[bytes]:
    """The blobs of ids; raises `ValueError` for too many, and for one that is not a number of 128 bits."""
    check_size(ids)
    try:
        return [number.to_bytes(16) for number in ids]
    except OverflowError as error:
        raise ValueError("an id is wider than 128 bits, or negative") from error


def _check_widths(*, user_data_64: int, user_data_32: int, ledger: int, code: int, flags: int) -> None:
    if user_data_64 >> 64 or user_data_32 >> 32 or ledger >> 32 or code >> 16 or flags >> 16:
        raise ValueError("user_data_64, user_data_32, ledger, code or flags is wider than its field")
