"""A server as an operator runs it: a process on a data directory, with a port of its own choice."""

import asyncio
import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx

from internal_transfer.api.paths import ADMIN
from internal_transfer.domain.account import Owner
from internal_transfer.settings.demo_issuer import DemoIssuer
from internal_transfer.simulation.failpoints import Failpoint
from internal_transfer.simulation.scenarios.expectation import (
    CLOCK,
    DEADLINE_SECONDS,
    ScenarioFailedError,
    expect,
    expect_status,
)
from internal_transfer.simulation.scenarios.process import PROGRAM, Process
from internal_transfer.simulation.scenarios.surroundings import Surroundings
from internal_transfer.simulation.scenarios.user import User

READY = "internal-transfer is ready on "


class Ran(NamedTuple):
    """The result of a command."""

    exit_code: int
    output: str
    errors: str

    def object(self) -> dict[str, Any]:
        """Returns the object that `--json` prints."""
        try:
            parsed: dict[str, Any] = json.loads(self.output)
        except ValueError as error:
            raise ScenarioFailedError(
                f"the command printed no JSON and ended with {self.exit_code}: {self.output}{self.errors}"
            ) from error
        return parsed


async def run_program(*words: str, environment: Mapping[str, str] | None = None) -> Ran:
    """Runs a command of the service's command line to its end."""
    return await run_command(*PROGRAM, *words, environment=environment)


async def run_command(*words: str, environment: Mapping[str, str] | None = None) -> Ran:
    """Runs any command to its end."""
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            output, errors = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return Ran(process.returncode, output.decode(), errors.decode())


class ServerProcess(Process):
    """`internal-transfer serve --demo` on one data directory: started, stopped, killed, and started again.

    `http` is a client of its users' port, `operators` of its operators' socket. It logs to the file `server.log` beside
    the directory. Leaving the context kills everything that still runs.
    """

    http: httpx.AsyncClient
    operators: httpx.AsyncClient

    def __init__(
        self,
        data: Path,
        config: Path,
        *,
        options: Sequence[str] = ("--demo",),
        surroundings: Surroundings | None = None,
    ) -> None:
        super().__init__(data.with_name("server.log"))
        self.data = data
        self.config = config
        self.surroundings = surroundings
        self.announced: list[str] = []
        self._options = tuple(options)
        self._address: str | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()
        await self._disconnect()
        if self.surroundings is not None:
            await self.surroundings.kill()

    @property
    def _environment(self) -> Mapping[str, str] | None:
        return None if self.surroundings is None else self.surroundings.environment

    @property
    def admin_port(self) -> int:
        """The port for health and metrics, which it only logs."""
        entries = [json.loads(line) for line in self.log.read_text().splitlines()]
        ports = [entry["admin_port"] for entry in entries if "admin_port" in entry]
        return int(ports[-1])

    @property
    def address(self) -> str:
        """The address for users, such as `http://127.0.0.1:8080`."""
        assert self._address is not None, "it was never ready"
        return self._address

    async def start(self, *, failpoint: Failpoint | None = None) -> None:
        """Starts it and waits until it is ready; raises `ScenarioFailedError` with its log if it ends first."""
        if not await self.launch(failpoint=failpoint):
            code = await self.end()
            raise ScenarioFailedError(f"the server ended with {code} before it was ready:\n{self.log_end()}")

    async def launch(self, *, failpoint: Failpoint | None = None) -> bool:
        """Starts it, and tells whether it became ready; with a failpoint it may die first."""
        assert not self.is_running, "it runs already"
        if self.surroundings is not None:
            await self.surroundings.start()
        words = ["serve", "--data", str(self.data), "--config", str(self.config), "--port", "0", "--admin-port", "0"]
        if failpoint is not None:
            words += ["--failpoint", failpoint]
        output = await self.spawn(*PROGRAM, *words, *self._options, environment=self._environment)
        self.announced = []
        async with asyncio.timeout(DEADLINE_SECONDS):
            while line := (await output.readline()).decode().strip():
                self.announced.append(line)
                if line.startswith(READY):
                    await self._connect(line.removeprefix(READY))
                    return True
        return False

    async def _connect(self, address: str) -> None:
        await self._disconnect()
        self._address = address
        limits = httpx.Limits(max_connections=256, max_keepalive_connections=256)
        # Proxies in the environment are not for this address.
        self.http = httpx.AsyncClient(base_url=address, timeout=DEADLINE_SECONDS, limits=limits, trust_env=False)
        self.operators = _over_socket(self.data)

    async def _disconnect(self) -> None:
        # Not when the process ends: until the next start, requests shall show that nobody answers.
        if self._address is not None:
            await self.http.aclose()
            await self.operators.aclose()

    async def died(self) -> None:
        """Waits until its failpoint has killed it."""
        code = await self.end()
        expect(code == -signal.SIGKILL, f"the failpoint did not kill it, it ended with {code}:\n{self.log_end()}")

    def user(self, name: str, *, tier: str = "standard", roles: tuple[str, ...] = ("user",)) -> User:
        """Returns a client with a token from the server's demo issuer."""
        token = DemoIssuer.read(self.data).token(
            Owner(name), roles=roles, tier=tier, now_seconds=CLOCK.now_ms() // 1000
        )
        return User(lambda: self.http, name, token)

    async def fund(self, name: str, amount: str, *, tier: str = "standard", asset: str = "USDT") -> User:
        """Returns a client after a deposit to its funding account."""
        body = {
            "user": name,
            "account": "funding",
            "asset": asset,
            "amount": amount,
            "reference": f"{name}-{asset}",
            "reason": "money of a scenario",
        }
        await self.operate("deposits", body)
        return self.user(name, tier=tier)

    async def operate(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Carries out an operator's act over the socket in the data directory."""
        return expect_status(await self.operators.post(path, json=body or {}), 200)

    async def steer_core(self, word: str) -> None:
        """Has the demonstration core pause, resume, refuse or withhold, at the socket of the process that it is in."""
        around = self.surroundings
        async with _over_socket((around and around.core_directory) or self.data) as operators:
            expect_status(await operators.post(f"core/{word}"), 200)

    async def admin(self, *words: str) -> Ran:
        """Runs an operator's command, which opens the files itself where the server does not run."""
        options = ("--data", str(self.data), "--config", str(self.config), "--json")
        return await run_program("admin", *words, *options, environment=self._environment)

    async def expect_clean(self) -> None:
        """Reconciles store, ledger and core on the command line; raises `ScenarioFailedError` unless they agree."""
        ran = await self.admin("reconcile")
        report = ran.object()
        expect(
            report.get("clean") is True and ran.exit_code == 0,
            f"reconciliation is not clean: {json.dumps(report.get('items', report))}",
        )


def _over_socket(directory: Path) -> httpx.AsyncClient:
    """A client for the operators' routes of the process that holds a data directory."""
    transport = httpx.AsyncHTTPTransport(uds=str(directory / "admin.sock"))
    return httpx.AsyncClient(base_url=f"http://operators{ADMIN}", timeout=DEADLINE_SECONDS, transport=transport)
