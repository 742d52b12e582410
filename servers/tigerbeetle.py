"""TigerBeetle, one replica. No package registry has the server: it is there already, or its tests are skipped."""

import os
import shutil

import msgspec

from servers import process
from servers.server import HOST, Server
from servers.trouble import Missing

HOW_TO_GET_IT = (
    "no package registry has TigerBeetle's server: get the binary whose version is that of the Python client from "
    "its releases, and put it on PATH as `tigerbeetle` or name it in TIGERBEETLE_BINARY; or name a running one in "
    "TIGERBEETLE_ADDRESS"
)


class TigerBeetleAddress(msgspec.Struct, frozen=True):
    """A TigerBeetle of one replica."""

    address: str
    """`host:port`, as the client takes it."""
    cluster: int = 0


def named_address() -> TigerBeetleAddress | None:
    """The running TigerBeetle that TIGERBEETLE_ADDRESS names, if it does."""
    named = os.environ.get("TIGERBEETLE_ADDRESS")
    return TigerBeetleAddress(named) if named else None


class TigerBeetle(Server[TigerBeetleAddress]):
    """One replica of cluster 0."""

    name = "tigerbeetle"
    ready_text = "listening on"
    start_seconds = 60

    def install(self) -> None:
        """Finds the program."""
        program = os.environ.get("TIGERBEETLE_BINARY") or shutil.which("tigerbeetle")
        if program is None:
            raise Missing(HOW_TO_GET_IT)
        self._program = program

    def configure(self) -> list[str]:
        """Formats the data file once."""
        data = self.folder / "0_0.tigerbeetle"
        if not data.exists():
            cluster = ["--cluster=0", "--replica=0", "--replica-count=1"]
            process.run([self._program, "format", *cluster, f"{data}"], seconds=60)
        return [self._program, "start", f"--addresses={HOST}:{self.ports[0]}", "--cache-grid=256MiB", f"{data}"]

    def address(self) -> TigerBeetleAddress:
        """Where clients connect."""
        return TigerBeetleAddress(f"{HOST}:{self.ports[0]}")
