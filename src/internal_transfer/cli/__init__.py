"""The command line: runs the server, makes credentials, and gives operators their desk."""

import sys

import typer

from internal_transfer.cli.admin import admin
from internal_transfer.cli.credentials import api_key, token
from internal_transfer.cli.doctor import doctor
from internal_transfer.cli.serve import serve

app = typer.Typer(
    name="internal-transfer",
    help="Users move their own money between their own accounts: a two-phase, double-entry transfer service.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.command()(token)
app.command()(doctor)
app.add_typer(api_key, name="api-key")
app.add_typer(admin, name="admin")


def main() -> None:
    """The entry point. Exit codes: 0 ok, 1 refused or failed, 2 usage, 3 unreachable."""
    sys.exit(app(standalone_mode=True))
