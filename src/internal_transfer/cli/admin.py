"""`admin`: the operators' commands. Each one calls the operators' interface once and prints the answer."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from internal_transfer.api.paths import policy_path, policy_word
from internal_transfer.cli.connection import Access, call, part, require_running, takes_access
from internal_transfer.cli.output import (
    print_act,
    print_evidence,
    print_json,
    print_line,
    print_policy,
    print_reconciliation,
    print_transfers,
)
from internal_transfer.domain.policy_change import ACTIONS, PolicyAction, Subject
from internal_transfer.domain.transfer import Status

admin = typer.Typer(help="Show the evidence on transfers, and act on them.", no_args_is_help=True)
core = typer.Typer(
    help="Steer a demonstration core. If it runs as a separate process, give its own directory with --data.",
    no_args_is_help=True,
)
audit = typer.Typer(help="Read and verify the audit chain.", no_args_is_help=True)
admin.add_typer(core, name="core")
admin.add_typer(audit, name="audit")

_RECONCILIATION_SECONDS = 3600.0

_Id = Annotated[str, typer.Argument(help="The transfer's request_id.", metavar="ID")]
_Reason = Annotated[str, typer.Option(help="Why; recorded in the audit chain.")]
_OptionalReason = Annotated[str | None, typer.Option(help="Why; recorded in the audit chain.")]
_Evidence = Annotated[
    str | None, typer.Option(help="The evidence that `show --json` printed; refused if the facts have changed since.")
]
_User = Annotated[str, typer.Option(help="The user's id.")]
_Account = Annotated[str, typer.Option(help="A ledger-held account type, such as funding.")]
_Asset = Annotated[str, typer.Option(help="The asset, such as USDT.")]
_Amount = Annotated[str, typer.Option(help="A decimal amount, such as 12.5.")]
_Reference = Annotated[str, typer.Option(help="Works once; a repeat returns the first result.")]
_Limit = Annotated[int, typer.Option(help="How many to list at most.", min=1, max=1000)]


@admin.command()
@takes_access
def show(access: Access, *, request_id: _Id) -> None:
    """Show everything on record about a transfer, and what is known and unknown."""
    _print(access, call(access, "GET", f"/transfers/{part(request_id)}"), print_evidence)


@admin.command("list")
@takes_access
def list_transfers(
    access: Access,
    *,
    status: Annotated[Status, typer.Option(help="The status to list.", case_sensitive=False)],
    after: Annotated[str | None, typer.Option(help="List only transfers after this request_id.")] = None,
    limit: _Limit = 100,
) -> None:
    """List the transfers in a status, by ascending id."""
    query = {"status": status.value, "limit": str(limit)} | ({"after": after} if after is not None else {})
    answer = call(access, "GET", "/transfers", query=query)
    _print(access, answer, lambda answer: print_transfers(answer["transfers"], status.value))


@admin.command()
@takes_access
def stuck(access: Access, *, limit: _Limit = 100) -> None:
    """List open transfers that are overdue or need a person."""
    answer = call(access, "GET", "/transfers/stuck", query={"limit": str(limit)})
    _print(access, answer, lambda answer: print_transfers(answer["transfers"], "stuck"))


def _desk_command(name: str, what: str) -> None:
    def decide(access: Access, *, request_id: _Id, reason: _Reason, evidence: _Evidence = None) -> None:
        _act(access, f"/transfers/{part(request_id)}/{name}", _decision(reason, evidence))

    admin.command(name, help=what)(takes_access(decide))


_desk_command("retry", "Continue an open transfer now.")
_desk_command("void", "Give the money back, after fencing the trading cores.")


@admin.command()
@takes_access
def post(
    access: Access,
    *,
    request_id: _Id,
    reason: _Reason,
    evidence: _Evidence = None,
    break_glass: Annotated[
        bool, typer.Option("--break-glass", help="Post even if a core does not confirm; opens a reconciliation item.")
    ] = False,
) -> None:
    """Settle a transfer whose legs the trading cores confirm."""
    body = _decision(reason, evidence) | ({"break_glass": True} if break_glass else {})
    _act(access, f"/transfers/{part(request_id)}/post", body)


@admin.command()
@takes_access
def acknowledge(access: Access, *, request_id: _Id, reason: _Reason) -> None:
    """Record that the core's side of a transfer posted with --break-glass was corrected by hand.

    Reconciliation then leaves it out.
    """
    _act(access, f"/transfers/{part(request_id)}/acknowledge", {"reason": reason})


def _cash_command(name: str, path: str, what: str) -> None:
    def move(
        access: Access,
        *,
        user: _User,
        account: _Account,
        asset: _Asset,
        amount: _Amount,
        reference: _Reference,
        reason: _Reason,
    ) -> None:
        body = {"user": user, "account": account, "asset": asset, "amount": amount, "reference": reference}
        _act(access, path, body | {"reason": reason})

    admin.command(name, help=what)(takes_access(move))


_cash_command("deposit", "/deposits", "Bring money in from outside.")
_cash_command("withdraw", "/withdrawals", "Take money out.")


@admin.command()
@takes_access
def reconcile(access: Access) -> None:
    """Compare store, ledger and core. Exits with 1 if they differ."""
    answer = call(access, "POST", "/reconciliation", answer_seconds=_RECONCILIATION_SECONDS)
    _print(access, answer, print_reconciliation)
    if not answer["clean"]:
        raise typer.Exit(1)


_POLICY_HELP = {
    PolicyAction.FREEZE: "Stop a user from moving money.",
    PolicyAction.UNFREEZE: "Lift the freeze of a user.",
    PolicyAction.PAUSE: "Accept no more transfers on a route; those under way are finished.",
    PolicyAction.RESUME: "Accept transfers on a paused route again.",
    PolicyAction.FREEZE_ASSET: "Accept no more transfers of an asset; those under way are finished.",
    PolicyAction.UNFREEZE_ASSET: "Lift the freeze of an asset.",
    PolicyAction.STOP: "The kill switch: accept no more transfers at all; those under way are finished.",
    PolicyAction.START: "Accept transfers again after a stop.",
}
_SUBJECT_HELP = {
    Subject.USER: "The user's id.",
    Subject.ROUTE: "The route, such as funding:spot.",
    Subject.ASSET: "The asset, such as USDT.",
}


def _policy_command(kind: Subject, action: PolicyAction) -> None:
    def change(access: Access, subject: str, reason: str | None) -> None:
        _act(access, policy_path(kind, part(subject), policy_word(kind, action)), _change(reason))

    def change_one(
        access: Access,
        *,
        subject: Annotated[str, typer.Option(f"--{kind}", help=_SUBJECT_HELP.get(kind))],
        reason: _OptionalReason = None,
    ) -> None:
        change(access, subject, reason)

    def change_all(access: Access, *, reason: _OptionalReason = None) -> None:
        change(access, Subject.ALL, reason)

    command = takes_access(change_all if kind is Subject.ALL else change_one)
    admin.command(action.replace("_", "-"), help=_POLICY_HELP[action])(command)


for _kind, _actions in ACTIONS.items():
    for _action in _actions:
        _policy_command(_kind, _action)


@admin.command()
@takes_access
def policy(access: Access) -> None:
    """Show what is frozen, paused or stopped."""
    _print(access, call(access, "GET", "/policy"), print_policy)


def _core_command(mode: str, what: str) -> None:
    def command(access: Access, *, reason: _OptionalReason = None) -> None:
        require_running(access)
        _act(access, f"/core/{mode}", _change(reason))

    core.command(mode, help=what)(takes_access(command))


_core_command("pause", "Make the core unreachable.")
_core_command("resume", "Let the core work again.")
_core_command("refuse", "Make the core refuse every new command.")
_core_command("refuse-credits", "Make the core refuse every new credit, but still debit.")
_core_command("withhold", "Make the core answer nothing, but accept a cancel.")


@audit.command("list")
@takes_access
def list_audit(
    access: Access,
    *,
    after: Annotated[int, typer.Option(help="List only entries after this number.", min=0)] = 0,
    limit: _Limit = 100,
) -> None:
    """List entries of the audit chain."""
    answer = call(access, "GET", "/audit", query={"after": str(after), "limit": str(limit)})

    def show_entries(answer: dict[str, Any]) -> None:
        for entry in answer["entries"]:
            what = f"{entry['action']} {entry['subject']}: {entry['outcome']} ({entry['reason']})"
            print_line(f"{entry['audit_id']} {entry['at']} {entry['actor']} {what}")

    _print(access, answer, show_entries)


@audit.command("verify")
@takes_access
def verify_audit(access: Access) -> None:
    """Check that no entry was changed, removed or moved. Exits with 1 if one was."""
    answer = call(access, "GET", "/audit/verification", answer_seconds=_RECONCILIATION_SECONDS)
    words = "the chain is whole" if answer["whole"] else f"the chain is broken at entry {answer['broken_at']}"
    _print(access, answer, lambda _: print_line(words))
    if not answer["whole"]:
        raise typer.Exit(1)


def _act(access: Access, path: str, body: dict[str, Any]) -> None:
    _print(access, call(access, "POST", path, body=body), print_act)


def _print(access: Access, answer: dict[str, Any], show_answer: Callable[[dict[str, Any]], None]) -> None:
    if access.as_json:
        print_json(answer)
    else:
        show_answer(answer)


def _decision(reason: str, evidence: str | None) -> dict[str, Any]:
    return {"reason": reason} | ({"evidence": evidence} if evidence is not None else {})


def _change(reason: str | None) -> dict[str, Any]:
    return {} if reason is None else {"reason": reason}
