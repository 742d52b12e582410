"""Evidence: everything on record about one transfer, side by side, and in words what it proves and what it does not."""

from collections.abc import Sequence
from hashlib import sha256

import msgspec
from msgspec import Struct

from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Action, Leg, LegState, Outcome, Side, Verdict
from internal_transfer.domain.transfer import OPEN, Hold, Need, Status, Transfer, heard
from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.errors import OperatingFailureError
from internal_transfer.ports.ledger import LedgerTransfer
from internal_transfer.ports.transfer_store import Event
from internal_transfer.services.driver import Driver

_ENCODER = msgspec.json.Encoder(order="deterministic")

_HOLDS = {
    Hold.HELD: "The ledger holds the amount; it is neither posted nor voided.",
    Hold.POSTED: "The ledger has posted the hold: the amount has moved for good.",
    Hold.VOIDED: "The ledger has voided the hold: the amount was given back.",
    Hold.FOREIGN: "The ledger has something else under this transfer's ids.",
}
_NEEDS = {
    Need.HOLD_COLLISION: "another transfer sits in the ledger under the id of its hold",
    Need.HOLD_MISSING: "its hold was on record and is not in the ledger",
    Need.POSTED_WITHOUT_LEGS: "its hold was posted though a trading core has not confirmed",
    Need.VOIDED_WITH_LEGS: "its hold was voided though a trading core may have moved the money",
    Need.CORE_CONTRADICTION: "a trading core contradicts what is on record",
    Need.CORE_REFUSES_REVERSAL: "a trading core refuses to reverse what it did, which no core may",
}


class Evidence(Struct, frozen=True, kw_only=True):
    """One transfer as each system has it. `ledger` and `verdicts` are None if the system did not answer."""

    transfer: Transfer
    events: tuple[Event, ...]
    hold: Hold
    ledger: tuple[LedgerTransfer, ...] | None
    verdicts: tuple[Verdict, ...] | None
    known: tuple[str, ...]
    unknown: tuple[str, ...]

    def digest(self, action: str) -> str:
        """Returns the hash of what an action is decided on: the action, the record's version, decision and legs, what
        the ledger has, and what the cores said. It leaves out what changes by itself, such as the due time.
        """
        transfer = self.transfer
        decided_on = (
            action,
            transfer.id,
            transfer.version,
            transfer.decision,
            transfer.needs_person,
            transfer.legs,
            self.hold,
            None if self.ledger is None else [str(row.id) for row in self.ledger],
            self.verdicts,
        )
        return sha256(_ENCODER.encode(decided_on)).hexdigest()


def is_applied(side: Side, verdicts: Sequence[Verdict]) -> bool:
    """Tells whether a leg has a net effect according to its core's verdicts: applied, and not reversed."""
    outcomes = {(verdict.action, verdict.outcome) for verdict in verdicts if verdict.side is side}
    applied = any(outcome is Outcome.APPLIED for _, outcome in outcomes)
    return applied and (Action.REVERSE, Outcome.REVERSED) not in outcomes


def confirmed(transfer: Transfer, verdicts: tuple[Verdict, ...]) -> tuple[Transfer, bool]:
    """Returns the transfer after the verdicts of a look-up, and whether they confirm every leg and contradict none."""
    clear = True
    for verdict in verdicts:
        transfer, need = heard(transfer, verdict)
        clear = clear and need is None
    return transfer, clear and all(leg.state is LegState.APPLIED for leg in transfer.legs)


class Examiner:
    """Gathers evidence. The store must answer; if the ledger or a core does not, its part is shown as unknown."""

    def __init__(self, ports: Ports, driver: Driver) -> None:
        self._store = ports.store
        self._core = ports.core
        self._durability = ports.durability
        self._driver = driver

    async def examine(self, transfer_id: TransferId) -> Evidence | None:
        """Returns the evidence about a transfer, or None if there is none; raises `Unavailable` if the store does not
        answer.
        """
        [transfer] = await self._store.get([transfer_id])
        if transfer is None:
            return None
        [events] = await self._store.events([transfer_id])
        await self._durability.durable()
        unknown: list[str] = []
        hold, rows = await self._ask_ledger(transfer, unknown)
        verdicts = await self._ask_cores(transfer_id, unknown)
        known = [_status_words(transfer), *_record_words(transfer)]
        if rows is not None:
            _tell_hold(transfer, hold, known, unknown)
        if verdicts is not None:
            for leg in transfer.legs:
                _tell_leg(transfer, leg, verdicts, known, unknown)
        return Evidence(
            transfer=transfer,
            events=tuple(events),
            hold=hold,
            ledger=rows,
            verdicts=verdicts,
            known=tuple(known),
            unknown=tuple(unknown),
        )

    async def _ask_ledger(
        self, transfer: Transfer, unknown: list[str]
    ) -> tuple[Hold, tuple[LedgerTransfer, ...] | None]:
        try:
            [(hold, rows)] = await self._driver.look([transfer])
            await self._durability.durable()
        except OperatingFailureError as error:
            unknown.append(f"What became of the hold: the ledger does not answer ({error.message}).")
            return Hold.UNKNOWN, None
        return hold, tuple(rows)

    async def _ask_cores(self, transfer_id: TransferId, unknown: list[str]) -> tuple[Verdict, ...] | None:
        try:
            [verdicts] = await self._core.verdicts([transfer_id])
            await self._durability.durable()
        except OperatingFailureError as error:
            unknown.append(f"What the trading core did: it does not answer ({error.message}).")
            return None
        return tuple(verdicts)


def _status_words(transfer: Transfer) -> str:
    if transfer.failure is not None:
        return f"The record says {transfer.status}, because of {transfer.failure}; that is final."
    return f"The record says {transfer.status}{'' if transfer.status in OPEN else '; that is final'}."


def _record_words(transfer: Transfer) -> list[str]:
    words = []
    if transfer.needs_person is not None:
        words.append(f"No rule may decide it: {_NEEDS[transfer.needs_person]}.")
    if transfer.decision is not None:
        words.append(f"An operator decided to {transfer.decision} it.")
    if transfer.fencing and transfer.status in OPEN:
        words.append("Its hold is being made impossible.")
    return words


def _tell_hold(transfer: Transfer, hold: Hold, known: list[str], unknown: list[str]) -> None:
    if hold is not Hold.ABSENT:
        known.append(_HOLDS[hold])
    elif transfer.status is Status.REQUESTING:
        known.append("The ledger has no hold at this moment.")
        unknown.append("Whether the hold will still be made: a request for it may be on its way until it is fenced.")
    elif transfer.status is Status.FAILED:
        known.append("The ledger never made the hold, and its id is burnt: no money was held.")
    else:
        known.append("The ledger has no hold, though the record says that it was made.")
        unknown.append("Where the hold has gone: the ledger may have been restored to before it.")


def _tell_leg(
    transfer: Transfer, leg: Leg, verdicts: tuple[Verdict, ...], known: list[str], unknown: list[str]
) -> None:
    name = f"the {leg.side} leg" if leg.side is not Side.BOTH else "the leg of both sides"
    said = [verdict for verdict in verdicts if verdict.side is leg.side]
    for verdict in said:
        reason = f" ({verdict.reason})" if verdict.reason else ""
        known.append(f"The core {leg.core!r}, told to {verdict.action} {name}, said: {verdict.outcome}{reason}.")
    if said:
        return
    if leg.state is LegState.NOT_ASKED:
        known.append(f"The core {leg.core!r} was never asked for {name}.")
    elif transfer.status in OPEN:
        unknown.append(
            f"Whether the core {leg.core!r} will carry out {name}: the record says {leg.state}, the core has no "
            "verdict, and a command may still be on its way."
        )
    else:
        unknown.append(f"Why the core {leg.core!r} has no verdict about {name}, which the record has as {leg.state}.")
