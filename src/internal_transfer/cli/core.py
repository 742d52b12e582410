"""`core`: runs the reference trading core."""

from pathlib import Path
from typing import Annotated

import typer
from msgspec.structs import replace

from internal_transfer.cli.exits import failures_end
from internal_transfer.settings.load import load
from internal_transfer.settings.systems import CoreSystem
from internal_transfer.telemetry import configure_logging


def core(
    *,
    config: Annotated[Path | None, typer.Option(help="The settings of the service.", dir_okay=False)] = None,
    data: Annotated[Path, typer.Option(help="The core's own data directory.", file_okay=False)] = Path("core"),
    kafka: Annotated[
        str | None, typer.Option(help="Brokers (HOST:PORT,...), instead of those in the settings.")
    ] = None,
    aeron: Annotated[
        str | None, typer.Option(help="The media driver's directory, instead of the one in the settings.")
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Let `admin core` make it fail.")] = False,
) -> None:
    """Run the reference trading core as a separate process. Prints one line when it takes commands."""
    from internal_transfer.hosts.core.process import CoreOptions, connect_aeron, connect_kafka, run_core  # noqa: PLC0415
    from internal_transfer.server.http import run_on_uvloop  # noqa: PLC0415 - slow to import.

    configure_logging()
    with failures_end():
        settings = load(config)
        if kafka is not None:
            settings = replace(settings, kafka=replace(settings.kafka, servers=kafka.split(",")))
        if aeron is not None:
            settings = replace(settings, aeron=replace(settings.aeron, directory=aeron))
        is_aeron = aeron is not None or (kafka is None and settings.systems.core is CoreSystem.AERON)
        options = CoreOptions(
            data,
            connect_aeron(settings) if is_aeron else connect_kafka(settings),
            demo=demo,
            on_ready=lambda: print("the trading core is ready", flush=True),  # noqa: T201
        )
        run_on_uvloop(run_core(options))
