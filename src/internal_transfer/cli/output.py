"""Prints results: one JSON object for programs, tables and panels for people."""

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import typer
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from internal_transfer.ports.finding import Finding

_FILE_COLUMNS = 140
_STATUS_STYLES = {"SUCCESS": "green", "FAILED": "red", "PENDING": "yellow", "REQUESTING": "yellow"}


def print_json(value: Mapping[str, Any]) -> None:
    """Prints one object on one line."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def print_problem(problem: Mapping[str, Any], *, as_json: bool) -> None:
    """Prints why the service refused: the whole object for programs, one line on standard error for people."""
    if as_json:
        print_json(problem)
        return
    typer.echo(f"{problem.get('code', 'refused')}: {problem.get('detail') or problem.get('title', '')}", err=True)


def print_line(text: str) -> None:
    """Prints one line of text as it is."""
    Console(soft_wrap=True).print(escape(text), highlight=False)


def print_act(act: Mapping[str, Any]) -> None:
    """Prints what an act did."""
    subject = act["request_id"] or act["subject"]
    words = [f"{act['action']} {subject}: {act['outcome']}"]
    if "status" in act:
        words.append(f"status {act['status']}")
    if "amount" in act:
        words.append(f"{act['amount']} {act['asset']} for {act['user']} in {act['account']}")
    if act["audit_id"] is not None:
        words.append(f"audit entry {act['audit_id']}")
    if act.get("note"):
        words.append(act["note"])
    print_line("; ".join(words))


def print_transfers(transfers: Iterable[Mapping[str, Any]], title: str) -> None:
    """Prints transfers, one per line."""
    table = Table(title=title, title_justify="left")
    for column in ("request_id", "status", "user", "from", "to", "amount", "created_at", "remark"):
        table.add_column(column, no_wrap=column in {"request_id", "status"}, overflow="fold")
    count = 0
    for transfer in transfers:
        count += 1
        failure = transfer["failure"]
        remark = transfer["needs_person"] or (failure["code"] if failure else "") or transfer["decision"] or ""
        table.add_row(
            transfer["request_id"],
            _status(transfer["status"]),
            *map(
                escape,
                (
                    transfer["user_id"],
                    transfer["from_account"]["account_type"],
                    transfer["to_account"]["account_type"],
                    f"{transfer['amount']} {transfer['asset']}",
                    transfer["created_at"],
                    remark,
                ),
            ),
        )
    if count:
        _console().print(table)
    else:
        print_line(f"{title}: none")


def print_evidence(evidence: Mapping[str, Any]) -> None:
    """Prints everything on record about one transfer side by side, and in words what it proves."""
    transfer = evidence["transfer"]
    grid = Table.grid(expand=True, padding=(0, 1))
    for ratio in (4, 3, 3):
        grid.add_column(ratio=ratio)
    grid.add_row(_record_panel(transfer), _ledger_panel(evidence["ledger"]), _core_panel(transfer, evidence["core"]))
    _console().print(
        grid,
        Panel(_bullets(evidence["known"]), title="known", border_style="green"),
        Panel(
            _bullets(evidence["unknown"]) if evidence["unknown"] else Text("nothing"),
            title="unknown",
            border_style="yellow" if evidence["unknown"] else "dim",
        ),
    )


def print_reconciliation(result: Mapping[str, Any]) -> None:
    """Prints what a reconciliation found."""
    looked = f"{result['transfers']} transfers, {result['ledger_transfers']} ledger rows, "
    looked += f"{result['core_entries']} core entries"
    if result["clean"]:
        print_line(f"clean: {looked}")
        return
    table = Table(title=f"{result['items_total']} items in {looked}", title_justify="left")
    for column in ("kind", "about", "detail"):
        table.add_column(column, overflow="fold")
    for item in result["items"]:
        about = item.get("request_id") or item.get("account") or ""
        table.add_row(*map(escape, (item["kind"], about, item["detail"])))
    _console().print(table)


def print_policy(policy: Mapping[str, Any]) -> None:
    """Prints what is frozen, paused or stopped."""
    print_line(f"version {policy['version']}: {'ALL TRANSFERS ARE STOPPED' if policy['stopped'] else 'running'}")
    for name in ("frozen_users", "frozen_assets", "paused_routes"):
        print_line(f"{name}: {', '.join(policy[name]) or 'none'}")


def print_findings(findings: Iterable[Finding], *, left_out: Collection[str] = ()) -> None:
    """Prints the findings of `doctor` and `core-check`; `left_out` names what was not checked."""
    table = Table.grid(padding=(0, 2))
    for name, ok, message in findings:
        if name in left_out:
            found = Text("-", style="dim")
        else:
            found = Text("ok", style="green") if ok else Text("FAIL", style="bold red")
        table.add_row(found, escape(name), escape(message))
    _console().print(table)


def _console() -> Console:
    """Returns the terminal; a file or pipe is as wide as the tables need."""
    console = Console()
    return console if console.is_terminal else Console(width=_FILE_COLUMNS)


def _status(status: str) -> Text:
    return Text(status, style=_STATUS_STYLES.get(status, ""))


def _record_panel(transfer: Mapping[str, Any]) -> Panel:
    table = _pairs(
        ("request_id", transfer["request_id"]),
        ("user", transfer["user_id"]),
        ("from", _place(transfer["from_account"])),
        ("to", _place(transfer["to_account"])),
        ("amount", f"{transfer['amount']} {transfer['asset']}"),
        ("key", transfer["idempotency_key"]),
        ("decision", transfer["decision"]),
        ("needs person", transfer["needs_person"]),
        ("fencing", "yes" if transfer["fencing"] else None),
        ("attempts", str(transfer["attempts"])),
        ("due", transfer["due_at"]),
    )
    events = _pairs(*((event["status"], f"{event['at']} {event['code'] or ''}") for event in transfer["events"]))
    return Panel(Group(_status(transfer["status"]), table, events), title="record")


def _ledger_panel(ledger: Mapping[str, Any] | None) -> Panel:
    if ledger is None:
        return Panel(Text("does not answer", style="yellow"), title="ledger")
    parts: list[RenderableType] = [Text(f"hold: {ledger['hold']}")]
    parts += [
        _pairs(("what", row["kind"]), ("amount", row["amount"]), ("at", row["at"]), ("id", row["id"]))
        for row in ledger["rows"]
    ]
    return Panel(Group(*parts), title="ledger")


def _core_panel(transfer: Mapping[str, Any], core: Mapping[str, Any] | None) -> Panel:
    legs = [f"{leg['side']} leg with {leg['core']}: {leg['state']} on record" for leg in transfer["legs"]]
    if core is None:
        return Panel(Group(_bullets(legs), Text("does not answer", style="yellow")), title="core")
    said = [
        f"{verdict['side']}: told to {verdict['action']}, {verdict['outcome']} {verdict['amount']} {verdict['asset']}"
        for verdict in core["verdicts"]
    ]
    return Panel(Group(_bullets(legs or ["no legs"]), _bullets(said or ["no verdicts"])), title="core")


def _pairs(*pairs: tuple[str, str | None]) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        if value:
            table.add_row(name, escape(value))
    return table


def _bullets(lines: Iterable[str]) -> Text:
    return Text("\n".join(f"- {line}" for line in lines))


def _place(account: Mapping[str, Any]) -> str:
    return f"{account['account_type']} of {account['user_id']}"
