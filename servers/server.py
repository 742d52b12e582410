"""What all servers have in common: a folder, ports, a process, and how it starts and stops."""

import shutil
import signal
import socket
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import msgspec

from servers import place, process
from servers.certificates import Certificates, certificates
from servers.trouble import FailedError

HOST = "127.0.0.1"

# No secret: everything listens on loopback, for trials.
PASSWORD = "not-a-secret"  # noqa: S105

A = TypeVar("A")


class Tls(msgspec.Struct, frozen=True):
    """How clients reach a secured server by TLS; it requires a client certificate."""

    port: int
    ca_file: str
    certificate_file: str
    key_file: str


class Record(msgspec.Struct, frozen=True):
    """What is on record about a server, so that other processes can find it and stop it."""

    name: str
    instance: str
    secured: bool
    pid: int
    ports: tuple[int, ...]
    speaks_tls: bool = False
    ready: bool = False
    """Whether it has taken connections since it was started."""
    kept: bool = False
    """Whether it stays when the last test run that uses it ends."""


class Server(ABC, Generic[A]):
    """One server process with data of its own.

    Args:
        instance: which one of its kind; a test that kills its server asks for one of its own.
        secured: whether clients need a password; such a server also speaks TLS, when its program can, to clients
            with a certificate.
    """

    name: ClassVar[str]
    ready_text: ClassVar[str]
    """What the server writes to its log when it takes connections."""
    start_seconds: ClassVar[float] = 60
    stop_seconds: ClassVar[float] = 30
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    refuses_root: ClassVar[bool] = False

    def __init__(self, instance: str = "shared", *, secured: bool = False) -> None:
        self.instance = f"{instance}-secured" if secured else instance
        self.secured = secured
        self.folder = place.data_root() / f"{self.name}-{self.instance}"
        self.log = self.folder / "log"
        self._record_file = self.folder / "server.json"
        record = self.record()
        self.ports: tuple[int, ...] = () if record is None else record.ports
        self.speaks_tls = record is not None and record.speaks_tls

    # What each kind of server defines.

    @abstractmethod
    def install(self) -> None:
        """Gets the program, if it is not there yet.

        Raises:
            Missing: it cannot be had on this machine.
        """

    @abstractmethod
    def configure(self) -> list[str]:
        """Writes the configuration for `self.ports`, makes the data if there are none, and returns the command to run.

        A secured server says in `self.speaks_tls` whether it does.
        """

    @abstractmethod
    def address(self) -> A:
        """What a client needs to connect to it."""

    def ports_needed(self) -> int:
        """How many ports it listens on; the first is the one that clients use."""
        return 1

    # The same for all.

    def start(self, *, kept: bool = False) -> A:
        """Starts it, or finds it running, and returns once it takes connections.

        A server that was stopped or killed has its ports (unless somebody took them) and its data again.

        Raises:
            Missing: something it needs is not on this machine.
            FailedError: it did not come up in time; the message ends with its log.
        """
        with self._locked():
            record = self.record()
            if record is None or not self.is_running():
                record = self._spawn(() if record is None else record.ports)
            self.ports, self.speaks_tls = record.ports, record.speaks_tls
            if not record.ready:
                self._wait_until_ready(record.pid)
            if not record.ready or kept > record.kept:
                self._write(msgspec.structs.replace(record, ready=True, kept=kept or record.kept))
            return self.address()

    def _spawn(self, ports: tuple[int, ...]) -> Record:
        self.install()
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.refuses_root:
            process.give(self.folder)
        self.ports = place.free_ports(self.ports_needed(), ports)
        command = self.configure()
        user = process.unprivileged() if self.refuses_root else None
        pid = process.spawn(command, folder=self.folder, log=self.log, user=user)
        record = Record(self.name, self.instance, self.secured, pid, self.ports, self.speaks_tls)
        self._write(record)
        return record

    def _wait_until_ready(self, pid: int) -> None:
        deadline = process.Deadline(self.start_seconds, f"{self.name} to start", self.log)
        try:
            process.wait_until_ready(pid, self.folder, deadline, self.log, self.is_ready)
        except FailedError:
            self.kill()
            raise

    def stop(self) -> None:
        """Stops it in the way that its system recommends; its data stay. Does nothing when it does not run.

        Raises:
            FailedError: it did not end in time, and was killed.
        """
        with self._locked():
            record = self.record()
            if record is None or not self.is_running():
                return
            self.resume()
            process.send(record.pid, self.folder, self.stop_signal)
            deadline = process.Deadline(self.stop_seconds, f"{self.name} to stop", self.log)
            try:
                process.wait_for_end(record.pid, self.folder, deadline)
            except FailedError:
                self.kill()
                raise

    def kill(self) -> None:
        """Ends it at once and without warning (SIGKILL), with everything that it started."""
        self._signal(signal.SIGKILL)
        record = self.record()
        if record is not None:
            process.wait_for_end(record.pid, self.folder, process.Deadline(10, f"{self.name} to be gone", self.log))

    def pause(self) -> None:
        """Stops all its processes (SIGSTOP) and waits for that; it keeps its connections but answers no request."""
        self._signal(signal.SIGSTOP)
        record = self.record()
        if record is not None:
            process.wait_for_standstill(record.pid, self.folder, process.Deadline(10, f"{self.name} to stand still"))

    def resume(self) -> None:
        """Lets a paused one go on."""
        self._signal(signal.SIGCONT)

    def remove(self) -> None:
        """Kills it and deletes its data. Only for a server that no other test uses."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        place.forget_lock(f"{self.name}-{self.instance}")

    def is_running(self) -> bool:
        """Whether its process is there; a paused one is."""
        record = self.record()
        return record is not None and process.is_alive(record.pid, self.folder)

    def record(self) -> Record | None:
        """What is written down about its last start."""
        try:
            return msgspec.json.decode(self._record_file.read_bytes(), type=Record)
        except FileNotFoundError:
            return None

    def _write(self, record: Record) -> None:
        written = self._record_file.with_suffix(".new")
        written.write_bytes(msgspec.json.encode(record))
        written.replace(self._record_file)

    def _signal(self, number: signal.Signals) -> None:
        record = self.record()
        if record is not None:
            process.send_all(record.pid, self.folder, number)

    def certificates(self) -> Certificates:
        """The certificates of a secured server and its clients."""
        return certificates(self.folder / "tls")

    def tls(self, port: int) -> Tls | None:
        """What a client needs to connect to it by TLS, when it speaks that."""
        if not self.speaks_tls:
            return None
        files = self.certificates()
        return Tls(
            port, ca_file=f"{files.authority}", certificate_file=f"{files.client}", key_file=f"{files.client_key}"
        )

    def has_logged(self, text: str) -> bool:
        """Whether a text is in the log since the last start."""
        return text in self.log.read_text(encoding="utf-8", errors="replace")

    def is_ready(self) -> bool:
        """Whether it takes connections."""
        if not self.has_logged(self.ready_text):
            return False
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((HOST, self.ports[0])) == 0

    def _locked(self) -> AbstractContextManager[None]:
        return place.locked(f"{self.name}-{self.instance}")


def write_properties(file: Path, entries: dict[str, object]) -> None:
    """Writes a file of `key=value` lines."""
    file.write_text("".join(f"{key}={value}\n" for key, value in entries.items()), encoding="utf-8")
