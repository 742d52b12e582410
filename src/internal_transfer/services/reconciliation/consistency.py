"""What store, ledger and cores must say about one transfer, and how they differ."""

from collections.abc import Collection
from typing import assert_never

from msgspec import Struct

from internal_transfer.domain.leg import Leg, LegState, Side, Verdict
from internal_transfer.domain.transfer import Decision, Hold, Status, Transfer, command_of
from internal_transfer.services.operators.evidence import is_applied


class Difference(Struct, frozen=True):
    """One difference; `kind` is one of a fixed set of words."""

    kind: str
    detail: str


def differences(
    transfer: Transfer, hold: Hold, verdicts: list[Verdict], *, by_hand: Collection[Side] = ()
) -> list[Difference]:
    """Returns how a transfer's record, its hold and its cores' verdicts differ at one moment.

    `by_hand` are the legs that people put right in a core, which must therefore not have applied them as well.

    What was done for an open transfer and is not recorded yet is no difference, since the scanner will record it.
    """
    found = _of_hold(transfer, hold)
    for verdict in verdicts:
        difference = _of_echo(transfer, verdict)
        if difference is not None:
            found.append(difference)
    match transfer.status:
        case Status.REQUESTING:
            if any(is_applied(verdict.side, verdicts) for verdict in verdicts):
                found.append(Difference("core_effect_without_hold", "a core moved money before the hold was on record"))
        case Status.PENDING:
            # That a leg is undone is recorded before its core is told, so a leg recorded as applied still stands.
            found += [
                Difference(
                    "missing_core_effect", f"the core {leg.core!r} does not know that it applied the {leg.side} leg"
                )
                for leg in transfer.legs
                if leg.state is LegState.APPLIED and not is_applied(leg.side, verdicts)
            ]
        case Status.SUCCESS:
            for leg in transfer.legs:
                if is_applied(leg.side, verdicts) is (leg.side in by_hand):
                    found.append(_applied_twice(leg) if leg.side in by_hand else _not_applied(transfer, leg))
        case Status.FAILED:
            sides = dict.fromkeys(verdict.side for verdict in verdicts)
            found += [
                Difference("core_effect_on_failed", f"the {side} leg is applied and not reversed")
                for side in sides
                if is_applied(side, verdicts)
            ]
        case _:
            assert_never(transfer.status)
    return found


def _of_hold(transfer: Transfer, hold: Hold) -> list[Difference]:
    status = transfer.status
    if hold is Hold.FOREIGN:
        return [Difference("foreign_hold", "the ledger has something else under this transfer's ids")]
    match status:
        case Status.REQUESTING:
            return []
        case Status.PENDING if hold is Hold.ABSENT:
            return [Difference("missing_hold", "the record is PENDING, and the ledger has no hold")]
        case Status.PENDING if transfer.needs_person is not None and hold is not Hold.HELD:
            return [Difference("mismatched_state", f"the record is PENDING and needs a person, and the hold is {hold}")]
        case Status.PENDING:
            return []
        case Status.SUCCESS if hold is Hold.ABSENT:
            return [Difference("missing_hold", "the record is SUCCESS, and the ledger has no hold")]
        case Status.SUCCESS:
            is_right = hold is Hold.POSTED
        case Status.FAILED:
            is_right = hold in {Hold.VOIDED, Hold.ABSENT}
        case _:
            assert_never(status)
    return [] if is_right else [Difference("mismatched_state", f"the record is {status}, and the hold is {hold}")]


def _of_echo(transfer: Transfer, verdict: Verdict) -> Difference | None:
    leg = next((leg for leg in transfer.legs if leg.side is verdict.side), None)
    if leg is None:
        return Difference(
            "core_entry_of_no_leg", f"a core has a verdict about a {verdict.side} leg, which the transfer does not have"
        )
    told = command_of(transfer, leg, verdict.action)
    if (verdict.asset, verdict.amount, verdict.debit, verdict.credit) != (
        told.asset,
        told.amount,
        told.debit,
        told.credit,
    ):
        return Difference("core_entry_differs", f"the core {leg.core!r} has other contents for the {leg.side} leg")
    return None


def _applied_twice(leg: Leg) -> Difference:
    detail = f"the {leg.side} leg was put right by hand, and the core {leg.core!r} has applied it as well"
    return Difference("applied_twice", detail)


def _not_applied(transfer: Transfer, leg: Leg) -> Difference:
    name = "the legs" if leg.side is Side.BOTH else f"the {leg.side} leg"
    if transfer.decision is Decision.POST:
        detail = f"posted by an operator, and the core {leg.core!r} has not applied {name}"
        return Difference("break_glass_post", detail)
    return Difference("missing_core_effect", f"the record is SUCCESS, and the core {leg.core!r} has not applied {name}")
