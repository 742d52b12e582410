"""Finds out whether store, ledger and cores were restored to different points in time, and repairs the record.

The three are backed up separately. Every process calls `disagreement` at its start, which is cheap, and does not run if
there is one. `repair` runs while nothing else does: it fills the ledger from the record, rebuilds records from the
ledger, and tells the cores again what they had done. It does all of it under the original ids and changes nothing that
is not missing, so a repair that was interrupted is simply run again; until one has ended well, no role starts.
"""

from collections.abc import Iterable, Sequence

import msgspec
import structlog
from msgspec import Struct

from internal_transfer.domain.identifier import TransferId, transfer_of
from internal_transfer.domain.leg import LegState, Outcome, Verdict
from internal_transfer.domain.refusal import Refusal
from internal_transfer.domain.transfer import Status, Transfer
from internal_transfer.ports.errors import OperatingFailureError, System
from internal_transfer.ports.ledger import TWO_PHASES, LedgerTransfer
from internal_transfer.services.operators.audit import DECIDED, AuditTrail, check_reason
from internal_transfer.services.operators.evidence import is_applied
from internal_transfer.services.reconciliation.reconciliation import Reconciled, Reconciliation
from internal_transfer.services.restore.core import CORE_ONLY, CoreRetelling
from internal_transfer.services.restore.ledger import LedgerReplay
from internal_transfer.services.restore.mark import (
    ACCEPT_UNKNOWN,
    REPAIR,
    REPAIRED,
    SUBJECT,
    UNFINISHED,
    RepairEvidence,
    is_unfinished,
    lost_timestamp,
)
from internal_transfer.services.restore.record import UNNAMED, RecordRebuild, ToldTransfer
from internal_transfer.services.restore.systems import Findings, Problem, RestoredSystems

CORE_LOOK = 32
NEWEST_LOOKS = (64, 512, 4096)
"""How many of the ledger's newest rows are looked at; the next number if all of them were deposits and withdrawals."""

_ADVICE = (
    "stop every role, keep the backups, and run `internal-transfer restore-check --repair --reason ...` "
    "(docs/guides/restore.md)"
)

_ACCEPTABLE = frozenset({UNNAMED, CORE_ONLY})

_log = structlog.get_logger(__name__)


class Repaired(Struct, frozen=True, kw_only=True):
    """What a repair did, by kind; what needs a person; what is worth knowing; and the reconciliation at its end."""

    ended: bool
    done: dict[str, int]
    problems: tuple[Problem, ...]
    accepted: tuple[Problem, ...]
    notes: tuple[str, ...]
    reconciled: Reconciled

    @property
    def clean(self) -> bool:
        """Tells whether nothing is left for a person to look at."""
        return self.ended and not self.accepted and not self.notes and self.reconciled.clean


class RestoreCheck:
    """Compares at every start, and repairs when an operator asks for it.

    All calls raise `Unavailable` or `OutcomeUnknown` if a system does not answer; a repair is then run again.
    """

    def __init__(self, systems: RestoredSystems, *, audit: AuditTrail, reconciliation: Reconciliation) -> None:
        self._systems = systems
        self._audit = audit
        self._reconciliation = reconciliation

    async def disagreement(self, *, cores_must_answer: bool = False) -> str | None:
        """Returns why no role may start and what to do, or None. Reads a few pages and changes nothing.

        Cores that do not answer are skipped; with `cores_must_answer` it raises `Unavailable` or `OutcomeUnknown`.
        """
        systems = self._systems
        links = await self._audit.about(REPAIR, [SUBJECT])
        if is_unfinished(links):
            return f"a repair after a restore was begun and has not ended well: {_ADVICE}"
        lost = await lost_timestamp(systems.ports.store, systems.ports.ledger, links)
        if lost:
            return f"the ledger is older than the store, which has seen its timestamp {lost}: {_ADVICE}"
        ids = await self._newest()
        transfers = await systems.transfers(list(ids))
        missing = ids.keys() - {transfer.id for transfer in transfers}
        if missing and (missing := missing - await self._accepted(missing)):
            named = ", ".join(map(str, sorted(missing)[:3]))
            return f"the store is older than the ledger, which has holds of unknown transfers ({named}): {_ADVICE}"
        try:
            return await self._older_core(transfers) or await self._newer_core()
        except OperatingFailureError as error:
            if cores_must_answer or error.system is not System.CORE:
                raise
            # A silent core does not prevent a start: its routes are shed until it answers.
            _log.warning("core_not_compared", error=str(error))
            return None

    async def _newest(self) -> dict[TransferId, None]:
        """Returns the transfers of the ledger's newest rows; looks further back, within a bound, until it finds any."""
        for most in NEWEST_LOOKS:
            rows = await self._systems.ports.ledger.newest_transfers(most)
            ids = _transfers_of(rows)
            if ids or len(rows) < most:
                return ids
        return {}

    async def _accepted(self, ids: Iterable[TransferId]) -> set[TransferId]:
        links = await self._audit.about(ACCEPT_UNKNOWN, [str(each) for each in ids])
        return {TransferId(int(link.entry.subject)) for link in links}

    async def _older_core(self, transfers: Sequence[Transfer]) -> str | None:
        """Returns a message if a core does not know what the newest transfers had it do."""
        done = [transfer for transfer in transfers if transfer.status is Status.SUCCESS and transfer.legs]
        if not done:
            return None
        verdicts = await self._systems.ports.core.verdicts([transfer.id for transfer in done])
        for transfer, said in zip(done, verdicts, strict=True):
            for leg in transfer.legs:
                if leg.state is LegState.APPLIED and not is_applied(leg.side, said):
                    return (
                        f"the trading core {leg.core!r} is older than the record: it does not know that it applied the "
                        f"{leg.side} leg of {transfer.id}: {_ADVICE}"
                    )
        return None

    async def _newer_core(self) -> str | None:
        """Returns a message if the newest entries of the cores are not of transfers on record."""
        last = {(verdict.transfer_id, verdict.side): verdict.outcome for verdict in await self._newest_entries()}
        # Reversed entries moved nothing in the end; `core-check` leaves such entries, which belong to no transfer.
        ids = {transfer_id for (transfer_id, _), outcome in last.items() if outcome is Outcome.APPLIED}
        known = {transfer.id for transfer in await self._systems.transfers(list(ids))}
        missing = ids - known
        if missing and (missing := missing - await self._accepted(missing)):
            named = ", ".join(map(str, sorted(missing)[:3]))
            return (
                f"store and ledger are both older than the trading core, which has moved money for unknown transfers "
                f"({named}): {_ADVICE}"
            )
        return None

    async def _newest_entries(self) -> list[Verdict]:
        """Returns the last entry and some before it, found by bisection: a core lists its entries by rising number."""
        low, high = 0, 1
        while entry := await self._entry_after(high):
            low, high = entry, 2 * entry
        # The last entry is above `low` (unless it is `low`) and not above `high`.
        while high - low > 1:
            middle = (low + high) // 2
            if entry := await self._entry_after(middle):
                low = entry
            else:
                high = middle
        page = await self._systems.ports.core.entries_after(max(0, low - CORE_LOOK), 2 * CORE_LOOK)
        return [verdict for _, verdict in page]

    async def _entry_after(self, number: int) -> int:
        page = await self._systems.ports.core.entries_after(number, 1)
        return page[0][0] if page else 0

    async def repair(
        self,
        *,
        actor: str,
        reason: str,
        told: Iterable[ToldTransfer] = (),
        accept_unknown: bool = False,
        since_ms: int = 0,
    ) -> Repaired | Refusal:
        """Repairs what can be repaired, and says what cannot.

        No role may run meanwhile. `told` are events that a feed has kept. The legs of transfers that were accepted
        before `since_ms` are left alone. With `accept_unknown`, transfers that have no record and can get none (because
        nobody can name their accounts, or only a core knows them) stay as they are and no longer prevent a start; all
        else that needs a person still does.
        """
        refusal = check_reason(reason)
        if refusal is not None:
            return refusal
        found = await self.disagreement()
        await self._note(actor, reason, DECIDED, found or "no disagreement was seen")
        self._systems.findings = Findings()
        await LedgerReplay(self._systems).run()
        await RecordRebuild(self._systems).run(told)
        await CoreRetelling(self._systems, since_ms=since_ms).run()
        findings = self._systems.findings
        accepted = await self._accept(actor, reason, list(findings.problems), accept_unknown=accept_unknown)
        problems = tuple(problem for problem in findings.problems if problem not in accepted)
        done = {kind: count for kind, count in sorted(findings.done.items()) if count}
        evidence = RepairEvidence(
            seen=await self._systems.ports.store.ledger_seen(),
            newest=await self._newest_timestamp(),
            done=done,
            problems=len(problems),
        )
        outcome = UNFINISHED if problems else REPAIRED
        await self._note(actor, reason, outcome, msgspec.json.encode(evidence).decode())
        # After the note, since it says which of the ledger's timestamps counts from now on.
        reconciled = await self._reconciliation.run()
        return Repaired(
            ended=not problems,
            done=done,
            problems=problems,
            accepted=accepted,
            notes=tuple(findings.notes),
            reconciled=reconciled,
        )

    async def _accept(
        self, actor: str, reason: str, problems: Sequence[Problem], *, accept_unknown: bool
    ) -> tuple[Problem, ...]:
        """Returns the problems about transfers without a record that operators accepted before, or accept now."""
        unknown = [problem for problem in problems if problem.kind in _ACCEPTABLE]
        if not unknown:
            return ()
        ids = {TransferId(int(problem.request_id or 0)): problem for problem in unknown}
        accepted = await self._accepted(ids)
        if accept_unknown:
            for transfer_id in sorted(ids.keys() - accepted):
                entry = self._audit.entry(
                    actor=actor,
                    action=ACCEPT_UNKNOWN,
                    subject=str(transfer_id),
                    reason=reason,
                    outcome="left as it is",
                    evidence=ids[transfer_id].detail,
                )
                await self._audit.append(entry)
            return tuple(unknown)
        return tuple(problem for problem in unknown if TransferId(int(problem.request_id or 0)) in accepted)

    async def _newest_timestamp(self) -> int:
        rows = await self._systems.ports.ledger.newest_transfers(1)
        return rows[0].timestamp if rows else 0

    async def _note(self, actor: str, reason: str, outcome: str, evidence: str) -> None:
        entry = self._audit.entry(
            actor=actor, action=REPAIR, subject=SUBJECT, reason=reason, outcome=outcome, evidence=evidence
        )
        await self._audit.append(entry)
        await self._systems.ports.durability.durable()


def _transfers_of(rows: Sequence[LedgerTransfer]) -> dict[TransferId, None]:
    """Returns the transfers of these holds, posts and voids; deposits and withdrawals belong to no transfer."""
    ids = ((row, transfer_of(row.id)) for row in rows)
    return {transfer_id: None for row, transfer_id in ids if transfer_id is not None and row.flags & TWO_PHASES}
