"""How to reach a trading core over Aeron: the media driver, the channels, and the streams on them.

Commands and queries go from the service to the core on one channel; verdicts and replies come back on another. Every
process of the service hears all verdicts and replies, and drops those that are not its own.
"""

import importlib
import sys
from typing import Any

from msgspec import Struct

from internal_transfer.ports.errors import StartRefusedError

PYTHON_MIN = (3, 12)

COMMANDS, QUERIES, VERDICTS, REPLIES = range(4)
"""The streams, counted from `AeronConnection.first_stream`."""


class AeronConnection(Struct, frozen=True, kw_only=True):
    """A media driver and the channels to and from a core. It holds nothing secret, and Aeron has no encryption.

    `directory` is the media driver's; empty means Aeron's default. `commands` and `verdicts` are channel URIs:
    `aeron:ipc` on one host, `aeron:udp?endpoint=HOST:PORT` for commands, and for verdicts to many processes
    `aeron:udp?control=HOST:PORT|control-mode=dynamic` or a multicast address. `heard_on` is the channel on which the
    service listens for verdicts, where it is not the one on which the core sends. Four streams are used, from
    `first_stream` on. A driver that is silent for `driver_seconds` is taken for dead.
    """

    directory: str = ""
    commands: str = "aeron:ipc"
    verdicts: str = "aeron:ipc"
    heard_on: str = ""
    first_stream: int = 7300
    client_name: str = "internal-transfer"
    driver_seconds: float = 5.0


class Bounds(Struct, frozen=True, kw_only=True):
    """How much may wait on either side of the client's thread, and for how long.

    At most `messages_most` messages wait to be sent, and as many wait to be taken from each subscription. An offer is
    tried for `offer_seconds` while the other side is slow or away.
    """

    messages_most: int = 16_384
    fragments_most: int = 256
    offer_seconds: float = 1.0
    start_seconds: float = 10.0
    pause_seconds: float = 0.2


DEFAULT_BOUNDS = Bounds()


def load_library() -> Any:
    """Imports pyaeron; raises `StartRefusedError` where there is none."""
    if sys.version_info < PYTHON_MIN:
        raise StartRefusedError(
            f"Aeron needs Python 3.12 or newer, and this is {sys.version_info.major}.{sys.version_info.minor}: "
            "run the service with another one, or choose another core in [systems]"
        )
    try:
        return importlib.import_module("pyaeron")
    except ImportError as error:
        raise StartRefusedError(
            f"the Aeron client cannot be loaded ({error}): install the package with its extra [aeron]"
        ) from error


def untethered(channel: str) -> str:
    """The channel for a subscriber that must not hold others up: where it lags, it loses messages instead.

    Source: Aeron's wiki on channel configuration, `tether`.
    """
    if "tether=" in channel:
        return channel
    return f"{channel}{'|' if '?' in channel else '?'}tether=false"
