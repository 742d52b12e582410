"""The messages between the service and a trading core, the same over every transport.

JSON objects, decoded strictly: an unknown field, a missing one, another version or a value out of range is refused with
the reason. Whole numbers that may exceed 53 bits are strings of digits, since many languages read JSON numbers as
floating point. Amounts are in the asset's smallest units. A message names its asset once, for all of its accounts.
"""

from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.amount import AMOUNT_UNITS_MAX
from internal_transfer.domain.identifier import TransferId, read_transfer_id
from internal_transfer.domain.leg import Action, Command, Outcome, Side, Verdict
from internal_transfer.ports.trading_core import CoreBalance

MESSAGE_BYTES_MAX = 1_000_000
"""No message may be larger; below the usual limit of a Kafka broker (1,048,588 with its overhead)."""

REASON_MAX = 1_000
"""The most characters of a reason."""

TRANSFERS_PER_QUERY_MAX = 256
ENTRIES_PER_QUERY_MAX = 1_000
"""Bounds that keep every reply below `MESSAGE_BYTES_MAX`."""

# `$` also matches before a last line feed in Python, not in JSON Schema's dialect; the look-ahead makes them agree.
OwnerText = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,64}(?!\n)$", description="An opaque user id.")]
AccountTypeText = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,31}(?!\n)$", description="An account type.")]
AssetText = Annotated[str, Meta(pattern=r"^[A-Z0-9][A-Z0-9_.-]{0,31}(?!\n)$", description="An asset's code.")]
CoreText = Annotated[str, Meta(min_length=1, max_length=64, description="A trading core's name in the settings.")]
TransferIdText = Annotated[
    str, Meta(pattern=r"^[1-9][0-9]{0,18}(?!\n)$", description="A transfer's id: digits, below 2^63.")
]
AmountText = Annotated[
    str, Meta(pattern=r"^[1-9][0-9]{0,33}(?!\n)$", description="Smallest units of the asset: digits, below 2^112.")
]
UnitsText = Annotated[
    str, Meta(pattern=r"^(0|-?[1-9][0-9]{0,59})(?!\n)$", description="A balance in smallest units, perhaps negative.")
]
ReasonText = Annotated[str, Meta(max_length=REASON_MAX, description="Why a core refused; empty otherwise.")]
CorrelationText = Annotated[str, Meta(min_length=1, max_length=128, description="Names a query; its reply repeats it.")]
Milliseconds = Annotated[int, Meta(ge=0, description="Wall time in milliseconds since 1970-01-01 UTC.")]
EntryNumber = Annotated[int, Meta(ge=0, lt=2**53, description="Counts what moved balances, rising, with gaps.")]


class UndecodableError(ValueError):
    """The bytes are no message of the expected kind and version; the text says why."""


class _Message(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type"):
    """What all messages have: `type` names the kind and, after the slash, the version of its shape."""


class WireAccount(Struct, frozen=True, forbid_unknown_fields=True):
    """An account, but for the asset, which the message names."""

    owner: OwnerText
    type: AccountTypeText


class CommandMessage(_Message, frozen=True, kw_only=True, tag="command/1"):
    """A command to a trading core about one leg of a transfer, named by (transfer_id, side, action).

    A leg on the source side debits `debit`, one on the target side credits `credit`, one on both does both.
    """

    transfer_id: TransferIdText
    core: CoreText
    side: Side
    action: Action
    asset: AssetText
    amount: AmountText
    debit: WireAccount | None
    credit: WireAccount | None


class VerdictFields(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A core's answer to a command, with the command's fields echoed."""

    transfer_id: TransferIdText
    side: Side
    action: Action
    outcome: Outcome
    reason: ReasonText
    asset: AssetText
    amount: AmountText
    debit: WireAccount | None
    credit: WireAccount | None


class VerdictMessage(VerdictFields, frozen=True, kw_only=True, tag_field="type", tag="verdict/1"):
    """A core's first verdict about a command, repeated whenever the command is told again."""


class _Query(_Message, frozen=True, kw_only=True):
    """What all queries have: a name that the reply repeats, and the time until which the reply is waited for."""

    correlation_id: CorrelationText
    expires_at: Milliseconds


class VerdictsQuery(_Query, frozen=True, kw_only=True, tag="verdicts/1"):
    """Asks for all verdicts that are stored about these transfers."""

    transfer_ids: Annotated[tuple[TransferIdText, ...], Meta(max_length=TRANSFERS_PER_QUERY_MAX)]


class BalancesQuery(_Query, frozen=True, kw_only=True, tag="balances/1"):
    """Asks for all balances of an owner."""

    owner: OwnerText


class EntriesQuery(_Query, frozen=True, kw_only=True, tag="entries/1"):
    """Asks for at most `most` entries, the effects of transfers on balances, with numbers above `after`, in order."""

    after: EntryNumber
    most: Annotated[int, Meta(ge=1, le=ENTRIES_PER_QUERY_MAX)]


class _Reply(_Message, frozen=True, kw_only=True):
    """What all replies have."""

    correlation_id: CorrelationText


class VerdictsReply(_Reply, frozen=True, kw_only=True, tag="verdicts/1"):
    """The stored verdicts of each transfer, in the order of the query, each in the order in which they were given."""

    verdicts: tuple[tuple[VerdictFields, ...], ...]


class WireBalance(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One balance: all of it, and how much of that is held."""

    owner: OwnerText
    type: AccountTypeText
    asset: AssetText
    posted: UnitsText
    held: UnitsText


class BalancesReply(_Reply, frozen=True, kw_only=True, tag="balances/1"):
    """The owner's balances."""

    balances: tuple[WireBalance, ...]


class WireEntry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One effect on balances: the verdict applied or reversed that stands for it."""

    number: EntryNumber
    verdict: VerdictFields


class EntriesReply(_Reply, frozen=True, kw_only=True, tag="entries/1"):
    """Effects, by rising number."""

    entries: tuple[WireEntry, ...]


class UnavailableReply(_Reply, frozen=True, kw_only=True, tag="unavailable/1"):
    """The core cannot answer now; nothing was done."""

    reason: ReasonText


class RefusedReply(_Reply, frozen=True, kw_only=True, tag="refused/1"):
    """The core never answers this; nothing was done."""

    reason: ReasonText


Query = VerdictsQuery | BalancesQuery | EntriesQuery
Reply = VerdictsReply | BalancesReply | EntriesReply | UnavailableReply | RefusedReply

_T = TypeVar("_T")
_V = TypeVar("_V", bound=VerdictFields)

_encoder = msgspec.json.Encoder()
# Only a union makes msgspec ask for the type.
_decoder: msgspec.json.Decoder[CommandMessage | VerdictMessage] = msgspec.json.Decoder(CommandMessage | VerdictMessage)
_query_decoder: msgspec.json.Decoder[Query] = msgspec.json.Decoder(Query)
_reply_decoder: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


def encode_command(command: Command) -> bytes:
    """The bytes of a command."""
    return _encoder.encode(
        CommandMessage(
            transfer_id=str(command.transfer_id),
            core=command.core,
            side=command.side,
            action=command.action,
            asset=command.asset,
            amount=str(command.amount),
            debit=_wire_account(command.debit),
            credit=_wire_account(command.credit),
        )
    )


def decode_command(data: bytes) -> Command:
    """The command that the bytes are; raises `UndecodableError`."""
    message = decode_strictly(_decoder, data)
    if not isinstance(message, CommandMessage):
        raise UndecodableError("not a command, but a verdict - at `$.type`")
    side, asset = message.side, message.asset
    _check_sides(side, message.debit, message.credit)
    return Command(
        _transfer_id(message.transfer_id),
        message.core,
        side,
        message.action,
        asset,
        _amount(message.amount),
        _account(message.debit, asset),
        _account(message.credit, asset),
    )


def encode_verdict(verdict: Verdict) -> bytes:
    """The bytes of a verdict."""
    return _encoder.encode(_fill(VerdictMessage, verdict))


def decode_verdict(data: bytes) -> Verdict:
    """The verdict that the bytes are; raises `UndecodableError`."""
    message = decode_strictly(_decoder, data)
    if not isinstance(message, VerdictMessage):
        raise UndecodableError("not a verdict, but a command - at `$.type`")
    return read_verdict(message)


def encode_query(query: Query) -> bytes:
    """The bytes of a query."""
    return _encoder.encode(query)


def decode_query(data: bytes) -> Query:
    """The query that the bytes are; raises `UndecodableError`."""
    query = decode_strictly(_query_decoder, data)
    if isinstance(query, VerdictsQuery):
        for text in query.transfer_ids:
            _transfer_id(text)
    return query


def encode_reply(reply: Reply) -> bytes:
    """The bytes of a reply."""
    return _encoder.encode(reply)


def decode_reply(data: bytes) -> Reply:
    """The reply that the bytes are; raises `UndecodableError`."""
    return decode_strictly(_reply_decoder, data)


def verdict_fields(verdict: Verdict) -> VerdictFields:
    """A verdict as part of a reply."""
    return _fill(VerdictFields, verdict)


def read_verdict(message: VerdictFields) -> Verdict:
    """The verdict that a message or a part of a reply is; raises `UndecodableError`."""
    asset = message.asset
    _check_sides(message.side, message.debit, message.credit)
    return Verdict(
        _transfer_id(message.transfer_id),
        message.side,
        message.action,
        message.outcome,
        message.reason,
        asset,
        _amount(message.amount),
        _account(message.debit, asset),
        _account(message.credit, asset),
    )


def wire_balances(balances: Sequence[CoreBalance]) -> tuple[WireBalance, ...]:
    """Balances as part of a reply."""
    return tuple(
        WireBalance(
            owner=balance.account.owner,
            type=balance.account.type,
            asset=balance.account.asset,
            posted=str(balance.posted),
            held=str(balance.held),
        )
        for balance in balances
    )


def read_balances(balances: Sequence[WireBalance]) -> list[CoreBalance]:
    """The balances of a reply."""
    return [
        CoreBalance(Account(Owner(each.owner), each.type, each.asset), posted=int(each.posted), held=int(each.held))
        for each in balances
    ]


def _fill(kind: type[_V], verdict: Verdict) -> _V:
    return kind(
        transfer_id=str(verdict.transfer_id),
        side=verdict.side,
        action=verdict.action,
        outcome=verdict.outcome,
        reason=verdict.reason,
        asset=verdict.asset,
        amount=str(verdict.amount),
        debit=_wire_account(verdict.debit),
        credit=_wire_account(verdict.credit),
    )


def decode_strictly(decoder: msgspec.json.Decoder[_T], data: bytes) -> _T:
    """What the bytes are; raises `UndecodableError`."""
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UndecodableError(str(error)) from error


def _transfer_id(text: str) -> TransferId:
    transfer_id = read_transfer_id(text)
    if transfer_id is None:
        raise UndecodableError("not a transfer's id: it has to be below 2^63 - at `$.transfer_id`")
    return transfer_id


def _amount(text: str) -> int:
    amount = int(text)
    if amount > AMOUNT_UNITS_MAX:
        raise UndecodableError("the amount has to be below 2^112 - at `$.amount`")
    return amount


def _check_sides(side: Side, debit: WireAccount | None, credit: WireAccount | None) -> None:
    if (debit is None) is not (side is Side.TARGET) or (credit is None) is not (side is Side.SOURCE):
        raise UndecodableError(f"a leg on side {side} does not debit and credit these accounts - at `$.side`")


def _wire_account(account: Account | None) -> WireAccount | None:
    return None if account is None else WireAccount(account.owner, account.type)


def _account(account: WireAccount | None, asset: str) -> Account | None:
    return None if account is None else Account(Owner(account.owner), account.type, asset)
