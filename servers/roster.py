"""The servers by name."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import psutil

from servers import place
from servers.cassandra import Cassandra
from servers.kafka import Kafka
from servers.postgresql import Postgresql
from servers.server import Record, Server
from servers.tigerbeetle import TigerBeetle, named_address
from servers.trouble import FailedError, Missing
from servers.valkey import Valkey

KINDS: dict[str, type[Server[Any]]] = {kind.name: kind for kind in (Postgresql, Kafka, Cassandra, Valkey, TigerBeetle)}


def start_all(names: list[str], *, secured: bool = False) -> dict[str, Any]:
    """Starts the shared server of each name, all at once; they run until they are stopped.

    Returns:
        For each name its address, or the Missing or FailedError that says why there is none.
    """

    def start(name: str) -> Any:
        running = named_address() if name == TigerBeetle.name else None
        if running is not None:
            return running
        try:
            return KINDS[name](secured=secured).start(kept=True)
        except (Missing, FailedError) as error:
            return error

    with ThreadPoolExecutor(max_workers=len(KINDS)) as pool:
        return dict(zip(names, pool.map(start, names), strict=True))


def sweep() -> None:
    """Removes the servers of single tests whose run was killed before it could remove them."""
    for server in known():
        owner = re.fullmatch(r"[a-z]+-(\d+)-\w+", server.instance.removesuffix("-secured"))
        if owner is not None and not psutil.pid_exists(int(owner[1])):
            server.remove()


def known() -> list[Server[Any]]:
    """Every server with a record in this place, running or not."""
    found = []
    for file in sorted(place.data_root().glob("*/server.json")):
        try:
            record = msgspec.json.decode(file.read_bytes(), type=Record)
        except FileNotFoundError:
            continue  # Another process has just removed it.
        found.append(KINDS[record.name](record.instance.removesuffix("-secured"), secured=record.secured))
    return found
