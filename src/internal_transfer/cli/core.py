"""`core`: runs the reference trading core."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import replace

from internal_transfer.cli.exits import failures_end
from internal_transfer.settings.load import Settings, load
from internal_transfer.settings.systems import CoreSystem
from internal_transfer.telemetry import configure_logging

if TYPE_CHECKING:
    from internal_transfer.hosts.core.host import CoreHost
    from internal_transfer.hosts.core.process import Transport
    from internal_transfer.ports.clock import Clock


def core(
    *,
    config: Annotated[Path | None, typer.Option(help="The settings of the service.", dir_okay=False)] = None,
    data: Annotated[Path, typer.Option(help="The core's own data directory.", file_okay=False)] = Path("core"),
    kafka: Annotated[str | None, typer.Option(help="Brokers (HOST:PORT, by commas), over the settings.")] = None,
    aeron: Annotated[str | None, typer.Option(help="The media driver's directory, over the settings.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Lets operators have it misbehave.")] = False,
) -> None:
    """Runs the reference trading core as a process of its own. Prints one line when it takes orders."""
    from internal_transfer.hosts.core.process import CoreOptions, run_core  # noqa: PLC0415
    from internal_transfer.server.http import run_on_uvloop  # noqa: PLC0415 - takes long to import.

    configure_logging()
    with failures_end():
        settings = load(config)
        if kafka is not None:
            settings = replace(settings, kafka=replace(settings.kafka, servers=kafka.split(",")))
        if aeron is not None:
            settings = replace(settings, aeron=replace(settings.aeron, directory=aeron))
        is_aeron = aeron is not None or (kafka is None and settings.systems.core is CoreSystem.AERON)
        connect = _connect_aeron(settings) if is_aeron else _connect_kafka(settings)
        options = CoreOptions(
            data,
            connect,
            demo=demo,
            on_ready=lambda: print("the trading core is ready", flush=True),  # noqa: T201
        )
        run_on_uvloop(run_core(options))


def _connect_kafka(settings: Settings) -> "Callable[[CoreHost, Clock], Transport]":
    from internal_transfer.wiring.connections import kafka_connection  # noqa: PLC0415 - as above.

    connection = kafka_connection(settings)
    from internal_transfer.adapters.kafka.topics import Topics  # noqa: PLC0415
    from internal_transfer.hosts.core.kafka import KafkaCoreHost  # noqa: PLC0415

    topics = Topics(settings.kafka.prefix)
    return lambda host, clock: KafkaCoreHost(host, connection, topics, clock=clock)


def _connect_aeron(settings: Settings) -> "Callable[[CoreHost, Clock], Transport]":
    from internal_transfer.hosts.core.aeron import AeronCoreHost  # noqa: PLC0415 - as above.
    from internal_transfer.wiring.connections import aeron_connection  # noqa: PLC0415

    connection = aeron_connection(settings)
    return lambda host, clock: AeronCoreHost(host, connection, clock=clock)
