"""`core-check`: shows whether a trading core keeps its promises, by giving it commands and looking."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from internal_transfer.cli.exits import FAILED, failures_end
from internal_transfer.cli.output import print_findings, print_json
from internal_transfer.domain.account import Account, Owner, is_account_type, is_asset, is_owner
from internal_transfer.ports.finding import Finding
from internal_transfer.settings.load import load
from internal_transfer.telemetry import configure_logging

if TYPE_CHECKING:
    from internal_transfer.conformance.bench import Plan
    from internal_transfer.conformance.report import Report


def core_check(
    *,
    config: Annotated[
        Path | None, typer.Option(help="The settings (TOML) that say how to reach the core.", dir_okay=False)
    ],
    account: Annotated[str, typer.Option(help="USER:TYPE of an account that nobody else uses during the check.")],
    other: Annotated[str, typer.Option(help="USER:TYPE of a second account in the same core.")],
    asset: Annotated[str, typer.Option(help="The asset of both accounts.")] = "USDT",
    other_asset: Annotated[str, typer.Option(help="Another asset that the core knows.")] = "BTC",
    core: Annotated[str, typer.Option(help="The core's name in the settings.")] = "core",
    amount: Annotated[
        int, typer.Option(help="How many smallest units to move; all of them are moved back.", min=1)
    ] = 100,
    both: Annotated[bool, typer.Option(help="Whether the core moves both sides of a transfer in one act.")] = True,
    restart: Annotated[
        bool, typer.Option("--restart", help="Ask for a restart of the core, and check again after it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Check every promise that a trading core makes to the service. No settler may run meanwhile.

    Exits with 1 if a promise is broken or could not be checked.
    """
    from internal_transfer.conformance.bench import Plan  # noqa: PLC0415 - slow to import.

    configure_logging()
    for name, code in (("--asset", asset), ("--other-asset", other_asset)):
        if not is_asset(code):
            raise typer.BadParameter("is not an asset code", param_hint=name)
    plan = Plan(
        core=core,
        account=_account(account, asset, "--account"),
        other=_account(other, asset, "--other"),
        other_asset=other_asset,
        amount=amount,
        both=both,
    )
    with failures_end():
        report = asyncio.run(_check(config, plan, restart=restart))
    if as_json:
        rows = [
            {"promise": each.promise, "says": each.says, "finding": each.finding, "message": each.message}
            for each in report.results
        ]
        print_json({"core": report.core, "passed": report.passed, "results": rows})
    else:
        print_findings(
            (Finding(each.promise, each.finding == "kept", each.message or each.says) for each in report.results),
            left_out={each.promise for each in report.results if each.finding == "left_out"},
        )
    if not report.passed:
        raise typer.Exit(FAILED)


def _account(words: str, asset: str, option: str) -> Account:
    owner, _, kind = words.rpartition(":")
    if not is_owner(owner) or not is_account_type(kind):
        raise typer.BadParameter("must be USER:TYPE, such as tester:spot", param_hint=option)
    return Account(Owner(owner), kind, asset)


async def _check(config: Path | None, plan: "Plan", *, restart: bool) -> "Report":
    from internal_transfer.conformance.check import check_core  # noqa: PLC0415 - as above.
    from internal_transfer.wiring.adapters import open_core  # noqa: PLC0415

    async def restarted() -> bool:
        typer.echo("Restart the trading core now, and press Enter when it is back.", err=True)
        await asyncio.to_thread(typer.prompt, "", default="", show_default=False, prompt_suffix="")
        return True

    async with AsyncExitStack() as closing:
        core, bus, clock = await open_core(load(config), closing)
        return await check_core(core, plan=plan, clock=clock, bus=bus, restarted=restarted if restart else None)
