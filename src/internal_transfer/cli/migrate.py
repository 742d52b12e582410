"""`migrate`: creates what the service needs in the systems outside."""

from pathlib import Path
from typing import Annotated

import typer

from internal_transfer.cli.exits import failures_end
from internal_transfer.settings.load import load
from internal_transfer.telemetry import configure_logging


def migrate(
    *, config: Annotated[Path | None, typer.Option(help="The service's settings (TOML).", dir_okay=False)] = None
) -> None:
    """Create or upgrade the store's tables and Kafka's topics. Safe to repeat, and while the service runs."""
    from internal_transfer.wiring.migrating import make_topics, migrate_store  # noqa: PLC0415 - slow to import.

    configure_logging()
    with failures_end():
        settings = load(config)
        lines = [*migrate_store(settings), *make_topics(settings)]
    for line in lines or ["nothing to do: the embedded store upgrades itself when the server starts"]:
        typer.echo(line)
