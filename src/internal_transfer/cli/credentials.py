"""`token` and `api-key`: the credentials of clients."""

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from internal_transfer.cli.connection import Access, call, part, takes_access
from internal_transfer.cli.exits import failures_end
from internal_transfer.cli.output import print_json, print_line
from internal_transfer.domain.account import Owner, is_account_type, is_owner
from internal_transfer.settings.demo_issuer import DemoIssuer

api_key = typer.Typer(help="Create and revoke keys for clients that sign their requests.", no_args_is_help=True)


class Role(StrEnum):
    """What the bearer of a token may do."""

    USER = "user"
    OPERATOR = "operator"
    APPROVER = "approver"
    AUDITOR = "auditor"


def token(
    *,
    user: Annotated[str, typer.Option(help="The user's id.")],
    data: Annotated[Path, typer.Option(help="The data directory of `serve --demo`.", file_okay=False)] = Path("data"),
    role: Annotated[list[Role] | None, typer.Option(help="A role of the token; may be repeated.")] = None,
    tier: Annotated[str, typer.Option(help="The tier whose limits apply.")] = "standard",
) -> None:
    """Print a token that is valid for one hour, signed by the demo issuer."""
    if not is_owner(user):
        raise typer.BadParameter("does not match [A-Za-z0-9_.:-]{1,64}", param_hint="--user")
    if not is_account_type(tier):
        raise typer.BadParameter("is not the name of a tier", param_hint="--tier")
    roles = tuple(each.value for each in role) if role else (Role.USER.value,)
    with failures_end():
        issuer = DemoIssuer.read(data)
    # A command runs outside the service, where there is no simulation and so no clock to pass in.
    now_seconds = time.time_ns() // 1_000_000_000  # noqa: TID251
    typer.echo(issuer.token(Owner(user), roles=roles, tier=tier, now_seconds=now_seconds))


@api_key.command()
@takes_access
def create(
    access: Access,
    *,
    user: Annotated[str, typer.Option(help="The user's id.")],
    tier: Annotated[str, typer.Option(help="The tier whose limits apply.")] = "standard",
    reason: Annotated[str | None, typer.Option(help="Why; recorded in the audit chain.")] = None,
) -> None:
    """Create a key, and print it with its secret and passphrase, this once."""
    body = {"user": user, "tier": tier} | ({} if reason is None else {"reason": reason})
    answer = call(access, "POST", "/api-keys", body=body)
    if access.as_json:
        print_json(answer)
        return
    for name in ("api_key", "secret", "passphrase"):
        print_line(f"{name}: {answer[name]}")


@api_key.command()
@takes_access
def revoke(
    access: Access,
    *,
    key: Annotated[str, typer.Argument(help="The key to revoke.")],
    reason: Annotated[str | None, typer.Option(help="Why; recorded in the audit chain.")] = None,
) -> None:
    """Revoke a key for good."""
    answer = call(access, "POST", f"/api-keys/{part(key)}/revoke", body={} if reason is None else {"reason": reason})
    if access.as_json:
        print_json(answer)
    else:
        print_line(f"{answer['api_key']}: revoked")
