"""Renders what operators read: transfers in full, evidence, acts, policy, the audit chain."""

from typing import Any

import msgspec
from msgspec import Struct

from internal_transfer.api.render import Renderer, format_time
from internal_transfer.domain.account import Account
from internal_transfer.domain.amount import format_amount
from internal_transfer.domain.identifier import hold_id
from internal_transfer.domain.leg import Verdict
from internal_transfer.domain.rules import Policy, Rules
from internal_transfer.domain.transfer import Transfer
from internal_transfer.ports.ledger import LedgerTransfer, TransferFlag
from internal_transfer.ports.operations import ChainedEntry, Report
from internal_transfer.ports.transfer_store import Event
from internal_transfer.services.operators.audit import Act
from internal_transfer.services.operators.evidence import Evidence
from internal_transfer.services.operators.stuck_transfers import DeskAction
from internal_transfer.services.reconciliation.reconciliation import Reconciled

View = dict[str, Any]


class ServerState(Struct, frozen=True, kw_only=True):
    """A running server: where it listens, whether it is ready, and what it was started with.

    `reason` says why it is not ready. `config` is the path of its settings file, and `settings` the fingerprint of all
    its settings.
    """

    host: str
    port: int
    admin_port: int
    ready: bool
    reason: str | None
    config: str | None
    settings: str
    demo: bool
    version: str


class AdminViews:
    """Turns what the services return into JSON values."""

    def __init__(self, rules: Rules) -> None:
        self._render = Renderer(rules.assets)
        self._scales = {code: asset.scale for code, asset in rules.assets.items()}

    def transfer(self, transfer: Transfer, events: tuple[Event, ...] = ()) -> View:
        """Returns a transfer as its user reads it, with what only operators may see."""
        view: View = msgspec.json.decode(self._render.transfer(transfer, events))
        return view | {
            "idempotency_key": transfer.key,
            "user_id": transfer.owner,
            "legs": [msgspec.to_builtins(leg) for leg in transfer.legs],
            "decision": transfer.decision,
            "needs_person": transfer.needs_person,
            "fencing": transfer.fencing,
            "attempts": transfer.attempts,
            "due_at": format_time(transfer.due_at),
            "version": transfer.version,
            "revision": transfer.revision,
        }

    def evidence(self, evidence: Evidence) -> View:
        """Returns the evidence on one transfer; the digests under `evidence` bind an act to what was shown."""
        transfer, rows, verdicts = evidence.transfer, evidence.ledger, evidence.verdicts
        asset = transfer.source.asset
        return {
            "transfer": self.transfer(transfer, evidence.events),
            "ledger": None
            if rows is None
            else {
                "hold": evidence.hold,
                "hold_id": str(hold_id(transfer.id)),
                "rows": [self._row(row, asset) for row in rows],
            },
            "core": None if verdicts is None else {"verdicts": [self._verdict(verdict) for verdict in verdicts]},
            "known": evidence.known,
            "unknown": evidence.unknown,
            "evidence": {action.value: evidence.digest(action) for action in DeskAction},
        }

    def _row(self, row: LedgerTransfer, asset: str) -> View:
        return {
            "id": str(row.id),
            "kind": _kind(row),
            "amount": format_amount(row.amount, scale=self._scales[asset]),
            "debit_account_id": str(row.debit_account_id),
            "credit_account_id": str(row.credit_account_id),
            "at": format_time(row.timestamp // 1_000_000),
        }

    def _verdict(self, verdict: Verdict) -> View:
        # The core may name an asset that is not configured here.
        scale = self._scales.get(verdict.asset)
        return {
            "side": verdict.side,
            "action": verdict.action,
            "outcome": verdict.outcome,
            "reason": verdict.reason,
            "asset": verdict.asset,
            "amount": f"{verdict.amount} units" if scale is None else format_amount(verdict.amount, scale=scale),
            "debit": _account(verdict.debit),
            "credit": _account(verdict.credit),
        }


def act_view(act: Act) -> View:
    """Returns what an act did."""
    view: View = {
        "action": act.action,
        "request_id": None if act.request_id is None else str(act.request_id),
        "outcome": act.outcome,
        "reason": act.reason,
        "audit_id": act.audit_id,
        "subject": act.subject,
    }
    if act.status is not None:
        view["status"] = act.status
    if act.note:
        view["note"] = act.note
    return view


def reconciled_view(reconciled: Reconciled) -> View:
    """Returns a reconciliation that has just run."""
    return {
        "clean": reconciled.clean,
        "items": msgspec.to_builtins(reconciled.items),
        "items_total": reconciled.items_total,
        "at": format_time(reconciled.at),
        "transfers": reconciled.transfers,
        "ledger_transfers": reconciled.ledger_transfers,
        "core_entries": reconciled.core_entries,
    }


def report_view(report: Report) -> View:
    """Returns a recorded reconciliation."""
    return {"clean": report.clean, "items": msgspec.json.decode(report.items), "at": format_time(report.at)}


def policy_view(policy: Policy) -> View:
    """Returns the policy in force."""
    return {
        "version": policy.version,
        "frozen_users": sorted(policy.frozen_users),
        "frozen_assets": sorted(policy.frozen_assets),
        "paused_routes": [f"{route.source}:{route.target}" for route in sorted(policy.paused_routes)],
        "stopped": policy.stopped,
    }


def audit_view(link: ChainedEntry) -> View:
    """Returns an entry of the audit chain."""
    entry: View = msgspec.to_builtins(link.entry)
    chained = {"at": format_time(link.entry.at), "previous": link.previous, "digest": link.digest}
    return {"audit_id": link.number} | entry | chained


def _kind(row: LedgerTransfer) -> str:
    if row.flags & TransferFlag.PENDING:
        return "hold"
    return "post" if row.flags & TransferFlag.POST_PENDING_TRANSFER else "void"


def _account(account: Account | None) -> View | None:
    if account is None:
        return None
    return {"user_id": account.owner, "account_type": account.type, "asset": account.asset}
