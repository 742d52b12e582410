"""A real server process on a data directory of its own, and the operators' way into it."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

READY = re.compile(r"internal-transfer is ready on http://[^:]+:(?P<port>[0-9]+)")
STOP_SECONDS = 60

# Named where the tests run in another environment than the service.
PROGRAMS = Path(os.environ.get("SERVICE_PROGRAMS", Path(sys.executable).parent))


class Server:
    """`internal-transfer serve --demo` on free ports of loopback, with settings of its own over the shipped ones."""

    def __init__(self, directory: Path, settings: str = "") -> None:
        self.data = directory / "data"
        self.log = directory / "server.log"
        config = directory / "config.toml"
        config.write_text(settings)
        command = [str(PROGRAMS / "internal-transfer"), "serve", "--demo"]
        command += ["--config", str(config), "--data", str(self.data), "--port", "0", "--admin-port", "0"]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        self.port = self._wait_until_ready()
        self._admin = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.data / "admin.sock")), base_url="http://admin/api/v1/admin"
        )

    @property
    def url(self) -> str:
        """Where the users' interface is."""
        return f"http://127.0.0.1:{self.port}"

    def act(self, path: str, **body: str) -> dict[str, Any]:
        """A privileged act, through the socket that only the directory's owner can open."""
        response = self._admin.post(path, json={"reason": "an end-to-end test"} | body)
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer

    def deposit(self, user: str, amount: str) -> None:
        """Brings USDT into a user's funding account; once for each user."""
        self.act(
            "/deposits", user=user, account="funding", asset="USDT", amount=amount, reference=f"first deposit of {user}"
        )

    def token(self, user: str) -> str:
        """A user's token from the demo issuer, by the command line."""
        return self.run_command(f"internal-transfer token --data {shlex.quote(str(self.data))} --user {user}").strip()

    def run_command(self, line: str) -> str:
        """Runs a line as an operator would type it into a shell, and returns what it prints."""
        environment = os.environ | {"PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.run(line, shell=True, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout

    def stop(self) -> int:
        """Ends the server as an operator would, and returns its exit code."""
        self._admin.close()
        self._process.terminate()
        code = self._process.wait(timeout=STOP_SECONDS)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return code

    def _wait_until_ready(self) -> int:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            ready = READY.match(line)
            if ready is not None:
                return int(ready["port"])
        self._process.wait()
        self._process.stdout.close()
        raise AssertionError(f"the server did not start: {self.log.read_text()}")
