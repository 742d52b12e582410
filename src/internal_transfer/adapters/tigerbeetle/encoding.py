"""Encodes and decodes accounts, transfers and results as TigerBeetle lays them out in memory (little-endian).

The official client has classes for these, but they cost about 15 us per transfer, more than the rest of a call, and a
result that they do not know kills the call. So the bytes are packed and read here, and `check_layout` compares this
layout with the client's at every start.
"""

import ctypes
import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, TypeVar

from tigerbeetle import bindings

from internal_transfer.ports.errors import OutcomeUnknown, StartRefusedError, System
from internal_transfer.ports.ledger import (
    AccountOutcome,
    AccountResult,
    LedgerAccount,
    LedgerTransfer,
    TransferOutcome,
    TransferResult,
)
from internal_transfer.ports.ledger_checks import (
    check_accounts_supported,
    check_size,
    check_transfers_supported,
)

_ACCOUNT = struct.Struct("<16s16s16s16s16s16sQI4xIHHQ")
_TRANSFER = struct.Struct("<16s16s16s16s16s16sQIIIHHQ")
_RESULT = struct.Struct("<QI4x")
_FILTER = struct.Struct("<16x8x4x4x2x6xQQII")
_REVERSED = int(bindings.QueryFilterFlags.REVERSED)

_Result = TypeVar("_Result", AccountResult, TransferResult)


def _results_by_number(numbers: type[IntEnum], results: type[_Result]) -> dict[int, _Result]:
    known = results.__members__
    return {int(number): known[number.name] for number in numbers if number.name in known}


_ACCOUNT_RESULTS = _results_by_number(bindings.CreateAccountStatus, AccountResult)
_TRANSFER_RESULTS = _results_by_number(bindings.CreateTransferStatus, TransferResult)


def encode_accounts(accounts: Sequence[LedgerAccount]) -> bytes:
    """Returns the accounts of a batch as bytes; raises `ValueError` for one that can never be accepted."""
    check_size(accounts)
    flags = 0
    pack = _ACCOUNT.pack
    encoded = []
    try:
        for account in accounts:
            flags |= account.flags
            encoded.append(
                pack(
                    account.id.to_bytes(16, "little"),
                    account.debits_pending.to_bytes(16, "little"),
                    account.debits_posted.to_bytes(16, "little"),
                    account.credits_pending.to_bytes(16, "little"),
                    account.credits_posted.to_bytes(16, "little"),
                    account.user_data_128.to_bytes(16, "little"),
                    account.user_data_64,
                    account.user_data_32,
                    account.ledger,
                    account.code,
                    account.flags,
                    account.timestamp,
                )
            )
    except (OverflowError, struct.error) as error:
        raise ValueError(f"a number of an account is wider than its field: {error}") from error
    check_accounts_supported(flags=flags)
    return b"".join(encoded)


def encode_transfers(transfers: Sequence[LedgerTransfer]) -> bytes:
    """Returns the transfers of a batch as bytes; raises `ValueError` for one that can never be accepted."""
    check_size(transfers)
    flags = timeout = 0
    pack = _TRANSFER.pack
    encoded = []
    try:
        for transfer in transfers:
            flags |= transfer.flags
            timeout |= transfer.timeout
            encoded.append(
                pack(
                    transfer.id.to_bytes(16, "little"),
                    transfer.debit_account_id.to_bytes(16, "little"),
                    transfer.credit_account_id.to_bytes(16, "little"),
                    transfer.amount.to_bytes(16, "little"),
                    transfer.pending_id.to_bytes(16, "little"),
                    transfer.user_data_128.to_bytes(16, "little"),
                    transfer.user_data_64,
                    transfer.user_data_32,
                    transfer.timeout,
                    transfer.ledger,
                    transfer.code,
                    transfer.flags,
                    transfer.timestamp,
                )
            )
    except (OverflowError, struct.error) as error:
        raise ValueError(f"a number of a transfer is wider than its field: {error}") from error
    check_transfers_supported(flags=flags, timeout=timeout)
    return b"".join(encoded)


def encode_ids(ids: Sequence[int]) -> bytes:
    """Returns ids to look up as bytes; raises `ValueError` for too many, and for one that does not fit 128 bits."""
    check_size(ids)
    try:
        return b"".join([number.to_bytes(16, "little") for number in ids])
    except OverflowError as error:
        raise ValueError("an id does not fit 128 bits") from error


def encode_filter(*, timestamp_min: int, most: int, newest_first: bool) -> bytes:
    """Returns a query for transfers from this timestamp on (0: from the first); `most` must not be 0."""
    return _FILTER.pack(timestamp_min, 0, most, _REVERSED if newest_first else 0)


def decode_accounts(reply: bytes) -> list[LedgerAccount]:
    """Returns the accounts in a reply."""
    number = int.from_bytes
    return [
        LedgerAccount(
            id=number(id_, "little"),
            debits_pending=number(debits_pending, "little"),
            debits_posted=number(debits_posted, "little"),
            credits_pending=number(credits_pending, "little"),
            credits_posted=number(credits_posted, "little"),
            user_data_128=number(user_data_128, "little"),
            user_data_64=user_data_64,
            user_data_32=user_data_32,
            ledger=ledger,
            code=code,
            flags=flags,
            timestamp=timestamp,
        )
        for (
            id_,
            debits_pending,
            debits_posted,
            credits_pending,
            credits_posted,
            user_data_128,
            user_data_64,
            user_data_32,
            ledger,
            code,
            flags,
            timestamp,
        ) in _ACCOUNT.iter_unpack(reply)
    ]


def decode_transfers(reply: bytes) -> list[LedgerTransfer]:
    """Returns the transfers in a reply."""
    number = int.from_bytes
    return [
        LedgerTransfer(
            id=number(id_, "little"),
            debit_account_id=number(debit, "little"),
            credit_account_id=number(credit, "little"),
            amount=number(amount, "little"),
            pending_id=number(pending, "little"),
            user_data_128=number(user_data_128, "little"),
            user_data_64=user_data_64,
            user_data_32=user_data_32,
            timeout=timeout,
            ledger=ledger,
            code=code,
            flags=flags,
            timestamp=timestamp,
        )
        for (
            id_,
            debit,
            credit,
            amount,
            pending,
            user_data_128,
            user_data_64,
            user_data_32,
            timeout,
            ledger,
            code,
            flags,
            timestamp,
        ) in _TRANSFER.iter_unpack(reply)
    ]


def decode_account_outcomes(reply: bytes, accounts: Sequence[LedgerAccount]) -> list[AccountOutcome]:
    """Returns the results of a batch; raises `OutcomeUnknown` where one is missing or not known here."""
    results = _ACCOUNT_RESULTS
    try:
        outcomes = [AccountOutcome(results[status], timestamp) for timestamp, status in _RESULT.iter_unpack(reply)]
    except KeyError as error:
        raise _unknown_result(reply, accounts, results, bindings.CreateAccountStatus) from error
    _check_count(len(outcomes), len(accounts))
    return outcomes


def decode_transfer_outcomes(reply: bytes, transfers: Sequence[LedgerTransfer]) -> list[TransferOutcome]:
    """Returns the results of a batch; raises `OutcomeUnknown` where one is missing or not known here."""
    results = _TRANSFER_RESULTS
    try:
        outcomes = [TransferOutcome(results[status], timestamp) for timestamp, status in _RESULT.iter_unpack(reply)]
    except KeyError as error:
        raise _unknown_result(reply, transfers, results, bindings.CreateTransferStatus) from error
    _check_count(len(outcomes), len(transfers))
    return outcomes


def _unknown_result(
    reply: bytes,
    events: Sequence[LedgerAccount | LedgerTransfer],
    results: Mapping[int, object],
    numbers: type[IntEnum],
) -> OutcomeUnknown:
    names = {int(number): number.name.lower() for number in numbers}
    unknown = [
        f"{names.get(status, status)} for {event.id}"
        for event, (_, status) in zip(events, _RESULT.iter_unpack(reply), strict=False)
        if status not in results
    ]
    return OutcomeUnknown(System.LEDGER, f"TigerBeetle gave a result that is not known here: {', '.join(unknown)}")


def _check_count(given: int, asked: int) -> None:
    if given != asked:
        raise OutcomeUnknown(System.LEDGER, f"TigerBeetle gave {given} results for {asked} events")


def check_layout() -> None:
    """Compares this layout with the installed client's; raises `StartRefusedError` where they differ."""
    account = LedgerAccount(
        id=1 << 120,
        debits_pending=2,
        debits_posted=3,
        credits_pending=4,
        credits_posted=5,
        user_data_128=6,
        user_data_64=7,
        user_data_32=8,
        ledger=9,
        code=10,
        flags=2,
        timestamp=11,
    )
    transfer = LedgerTransfer(
        id=1 << 120,
        debit_account_id=2,
        credit_account_id=3,
        amount=4,
        pending_id=5,
        user_data_128=6,
        user_data_64=7,
        user_data_32=8,
        ledger=9,
        code=10,
        flags=2,
        timestamp=11,
    )
    query = {"timestamp_min": 1, "timestamp_max": 0, "limit": 2, "flags": _REVERSED}
    created = {"timestamp": 1, "status": 2}
    ours: tuple[tuple[Any, bytes, dict[str, Any]], ...] = (
        (bindings.CAccount, encode_accounts([account]), _fields(account)),
        (bindings.CTransfer, encode_transfers([transfer]), _fields(transfer)),
        (bindings.CQueryFilter, encode_filter(timestamp_min=1, most=2, newest_first=True), query),
        (bindings.CCreateAccountResult, _RESULT.pack(1, 2), created),
        (bindings.CCreateTransferResult, _RESULT.pack(1, 2), created),
    )
    for theirs, encoded, fields in ours:
        same_size = ctypes.sizeof(theirs) == len(encoded)
        if not same_size or any(_field(theirs, encoded, name) != value for name, value in fields.items()):
            raise StartRefusedError(
                f"the installed tigerbeetle client lays out {theirs.__name__} differently from this release of"
                " internal-transfer: install the client's release that this release was made for"
            )


def _fields(event: LedgerAccount | LedgerTransfer) -> dict[str, Any]:
    return {name: getattr(event, name) for name in event.__struct_fields__}


def _field(theirs: Any, encoded: bytes, name: str) -> int | None:
    value = getattr(theirs.from_buffer_copy(encoded), name, None)
    return int(value.to_python()) if isinstance(value, ctypes.Structure) else value
