"""The command line: runs the server, creates credentials, and gives operators their desk."""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from internal_transfer.cli.admin import admin as admin_commands
from internal_transfer.cli.core import core as core_command
from internal_transfer.cli.core_check import core_check as core_check_command
from internal_transfer.cli.credentials import api_key as api_key_commands
from internal_transfer.cli.credentials import token as token_command
from internal_transfer.cli.doctor import doctor as doctor_command
from internal_transfer.cli.migrate import migrate as migrate_command
from internal_transfer.cli.restore import restore_check as restore_check_command
from internal_transfer.cli.serve import serve as serve_command

app = typer.Typer(
    name="internal-transfer",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command()(serve_command)
app.command()(core_command)
app.command()(core_check_command)
app.command()(migrate_command)
app.command()(token_command)
app.command()(doctor_command)
app.command()(restore_check_command)
app.add_typer(api_key_commands, name="api-key")
app.add_typer(admin_commands, name="admin")


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - Typer calls it by position.
    if wanted:
        typer.echo(f"internal-transfer {version('internal-transfer')}")
        raise typer.Exit


@app.callback()
def options(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Users move their own money between their own accounts: a two-phase, double-entry transfer service."""


def main() -> None:
    """The entry point. Exit codes: 0 ok, 1 refused or failed, 2 usage, 3 unreachable."""
    sys.exit(app(prog_name=app.info.name))
