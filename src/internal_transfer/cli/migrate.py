"""`migrate`: makes what the service needs in the systems outside."""

from pathlib import Path
from typing import Annotated

import typer

from internal_transfer.cli.exits import failures_end
from internal_transfer.settings.load import load
from internal_transfer.telemetry import configure_logging


def migrate(
    *, config: Annotated[Path | None, typer.Option(help="The settings of the service.", dir_okay=False)] = None
) -> None:
    """Makes or upgrades the tables of the store and the topics of Kafka. Safe to repeat, and while the service runs."""
    from internal_transfer.wiring.migrating import make_topics, migrate_store  # noqa: PLC0415 - takes long to import.

    configure_logging()
    with failures_end():
        settings = load(config)
        lines = [*migrate_store(settings), *make_topics(settings)]
    for line in lines or ["nothing to do: the embedded store upgrades itself at its start"]:
        typer.echo(line)
