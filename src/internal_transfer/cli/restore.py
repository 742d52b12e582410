"""`restore-check`: finds out whether store, ledger and cores were restored to different times, and repairs it."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import typer

from internal_transfer.cli.exits import FAILED, FAILURES, UNREACHABLE, failures_end
from internal_transfer.cli.output import print_json, print_line, print_problem, print_reconciliation
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.refusal import Refusal
from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.settings.data_directory import DataDirectory
from internal_transfer.settings.load import load
from internal_transfer.settings.pins import check_pins, pins
from internal_transfer.telemetry import configure_logging
from internal_transfer.wire.core_messages import UndecodableError
from internal_transfer.wire.transfer_events import decode_transfer_event

if TYPE_CHECKING:
    from internal_transfer.services.restore.check import Repaired, RestoreCheck
    from internal_transfer.services.restore.record import ToldTransfer

Answered = TypeVar("Answered")

_FAILURES: tuple[type[Exception], ...] = (*FAILURES, UndecodableError)
_MOMENTS = ["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d"]


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator asks of the repair."""

    reason: str
    accept_unknown: bool
    since_ms: int
    events: Path | None


def restore_check(
    *,
    data: Annotated[Path, typer.Option(help="The data directory of the service.", file_okay=False)] = Path("data"),
    config: Annotated[Path | None, typer.Option(help="The server's settings (TOML).", dir_okay=False)] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Bring what disagrees together again.")] = False,
    reason: Annotated[str, typer.Option(help="Why; needed with --repair, recorded in the audit chain.")] = "",
    accept_unknown: Annotated[
        bool, typer.Option("--accept-unknown", help="Let roles start even though some transfers cannot be recorded.")
    ] = False,
    since: Annotated[
        datetime | None,
        typer.Option(help="Repeat to the cores only transfers accepted since then (UTC).", formats=_MOMENTS),
    ] = None,
    events: Annotated[
        Path | None, typer.Option(help="Published events, one JSON object per line.", exists=True, dir_okay=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Compare store, ledger and trading cores after a restore; with --repair, bring them together again.

    No role may run meanwhile, on any machine. Exits with 0 if all is well, with 1 if something is left to do, and with
    3 if a system does not answer; then run it again.
    """
    if repair and not reason.strip():
        raise typer.BadParameter("needs --reason", param_hint="--repair")
    configure_logging(level="error")
    since_ms = 0 if since is None else int(since.replace(tzinfo=UTC).timestamp() * 1000)
    request = _Request(reason=reason, accept_unknown=accept_unknown, since_ms=since_ms, events=events)

    def tell(message: str) -> None:
        print_problem({"code": "STORE_UNAVAILABLE", "detail": message}, as_json=as_json)

    with failures_end(UNREACHABLE, tell=tell, also=(UndecodableError,)):
        if repair:
            _end_repair(asyncio.run(_repair(data, config, request)), as_json=as_json)
        else:
            _end_look(asyncio.run(_look(data, config)), as_json=as_json)


def _end_look(disagreement: str | None, *, as_json: bool) -> None:
    if as_json:
        print_json({"agrees": disagreement is None, "disagreement": disagreement})
    else:
        print_line(disagreement or "store, ledger and trading cores agree")
    if disagreement is not None:
        raise typer.Exit(FAILED)


def _end_repair(result: "Repaired | Refusal", *, as_json: bool) -> None:
    if isinstance(result, Refusal):
        print_problem({"code": result.code, "detail": result.message}, as_json=as_json)
        raise typer.Exit(FAILED)
    shown: dict[str, Any] = msgspec.to_builtins(result)
    shown["clean"] = result.clean
    if as_json:
        print_json(shown)
    else:
        for kind, count in result.done.items():
            print_line(f"{kind.replace('_', ' ')}: {count}")
        for title, problems in (("needs a person", result.problems), ("left as it is", result.accepted)):
            for problem in problems:
                print_line(f"{title}: {problem.kind} {problem.request_id or ''}: {problem.detail}")
        for note in result.notes:
            print_line(f"note: {note}")
        print_reconciliation(shown["reconciled"])
        print_line(
            "every role may start" if result.ended else "no role starts until a person has settled the problems above"
        )
    if not result.clean:
        raise typer.Exit(FAILED)


async def _look(data: Path, config: Path | None) -> str | None:
    async def look(check: "RestoreCheck") -> str | None:
        # A role may start while a core is silent, but this command must not say that all agree then.
        return await check.disagreement(cores_must_answer=True)

    return await _with_check(data, config, look)


async def _repair(data: Path, config: Path | None, request: _Request) -> "Repaired | Refusal":
    async def repair(check: "RestoreCheck") -> "Repaired | Refusal":
        return await check.repair(
            actor=f"local:{os.getuid()}",
            reason=request.reason,
            told=() if request.events is None else _told(request.events),
            accept_unknown=request.accept_unknown,
            since_ms=request.since_ms,
        )

    return await _with_check(data, config, repair)


async def _with_check(
    data: Path, config: Path | None, work: Callable[["RestoreCheck"], Awaitable[Answered]]
) -> Answered:
    """Opens the service on the directory, without starting a role, and runs `work` on it."""
    # The whole service is slow to import, and only this command's work needs it.
    from internal_transfer.wiring.roles import open_service  # noqa: PLC0415

    if not DataDirectory(data).path.is_dir():
        raise StartRefusedError(f"there is no data directory {data}; name it with --data")
    settings = load(config)
    async with open_service(settings, data, frozenset()) as service:
        check_pins(pins(settings), await service.ports.operations.pins())
        async with asyncio.TaskGroup() as tasks:
            tending = [tasks.create_task(tend()) for tend in service.stack.tending]
            # A task group would wrap the failure, so it is raised after the group has ended.
            failure: Exception | None = None
            try:
                answer = await work(service.restore)
            except _FAILURES as error:
                failure = error
            for task in tending:
                task.cancel()
        if failure is not None:
            raise failure
        return answer


def _told(events: Path) -> "Iterator[ToldTransfer]":
    from internal_transfer.services.restore.record import ToldTransfer  # noqa: PLC0415 - as above.

    with events.open("rb") as lines:
        for line in lines:
            message = decode_transfer_event(line)
            yield ToldTransfer(
                transfer_id=TransferId(int(message.transfer_id)),
                owner=Owner(message.owner),
                source=Account(Owner(message.source.owner), message.source.type, message.asset),
                target=Account(Owner(message.target.owner), message.target.type, message.asset),
                amount=int(message.amount),
                failure=message.code,
            )
