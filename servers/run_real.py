"""`make run-real`: the whole service on real systems: PostgreSQL, Kafka, Valkey, and TigerBeetle where there is one.

Without a TigerBeetle, a process with the role `ledger` serves the embedded ledger to the others, and this says so.
Everything is left as it is at the end, so the next run goes on with the same money; `make services-stop` ends the
systems, and removing `.servers/` forgets all.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from servers import place, roster
from servers.trouble import FailedError, Missing

NEEDED = ("postgresql", "kafka", "valkey")
START_SECONDS = 90.0
PROGRAM = [sys.executable, "-m", "internal_transfer.cli"]


def main() -> int:
    """Starts everything, waits for an interrupt, and stops the service again."""
    parser = argparse.ArgumentParser(prog="python -m servers.run_real", description=__doc__)
    parser.add_argument("--port", default="8080")
    parser.add_argument("--admin-port", default="9464", help="of the first process; the others count up from it")
    parser.add_argument("--processes", default="2", help="how many equal processes of the service")
    options = parser.parse_args()
    outcomes = roster.start_all([*NEEDED, "tigerbeetle"])
    for name in NEEDED:
        if isinstance(outcomes[name], Missing | FailedError):
            _say(f"{name}: {outcomes[name]}")
            return 1
    directory = place.root() / "real"
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "settings.toml"
    has_tigerbeetle = not isinstance(outcomes["tigerbeetle"], Missing | FailedError)
    tigerbeetle = outcomes["tigerbeetle"].address if has_tigerbeetle else None
    config.write_text(_settings(directory, outcomes["kafka"].bootstrap, tigerbeetle))
    environment = os.environ | {
        "INTERNAL_TRANSFER_POSTGRES_URL": outcomes["postgresql"].dsn,
        "INTERNAL_TRANSFER_REDIS_URL": outcomes["valkey"].url,
    }
    if not has_tigerbeetle:
        _say(f"tigerbeetle: {outcomes['tigerbeetle']}")
        _say("The ledger is the embedded one, served to the other processes by one with the role `ledger`: for trials.")
    common = ["--config", str(config)]
    commands = [["core", "--demo", *common, "--data", str(directory / "core")]]
    if not has_tigerbeetle:
        commands.insert(0, ["serve", "--roles", "ledger", "--data", str(directory / "ledger"), "--admin-port", "0"])
    service = ["serve", "--demo", *common, "--data", str(directory / "data"), "--port", options.port]
    service += ["--admin-port", options.admin_port]
    commands.append([*service, "--processes", options.processes])
    subprocess.run([*PROGRAM, "migrate", *common], env=environment, check=True)  # noqa: S603 - our own words.
    return _run(commands, environment, directory)


def _settings(directory: Path, kafka: str, tigerbeetle: str | None) -> str:
    ledger = "socket" if tigerbeetle is None else "tigerbeetle"
    return f"""\
[systems]
store = "postgresql"
ledger = "{ledger}"
core = "kafka"
rate_limiter = "valkey"
events = "kafka"
[kafka]
servers = ["{kafka}"]
[ledger_socket]
data = "{directory / "ledger"}"
[tigerbeetle]
addresses = ["{tigerbeetle or "127.0.0.1:3000"}"]
"""


def _run(commands: list[list[str]], environment: dict[str, str], directory: Path) -> int:
    """Runs the processes one after the other, each when the one before is ready, until one ends or all are to stop."""
    running: list[subprocess.Popen[str]] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        for command in commands:
            name = command[2] if command[1] == "--roles" else command[0]
            with (directory / f"{name}.log").open("a") as log:
                process = subprocess.Popen(  # noqa: S603 - as above.
                    [*PROGRAM, *command], env=environment, stdout=subprocess.PIPE, stderr=log, text=True
                )
            running.append(process)
            if not _show_until_ready(process):
                _say(f"{name} ended with {process.wait()}; see {directory / name}.log")
                return 1
        while all(process.poll() is None for process in running):
            time.sleep(0.5)
        _say(f"a process has ended; see the logs in {directory}")
        return 1
    finally:
        for process in reversed(running):
            process.send_signal(signal.SIGTERM)
            process.wait(START_SECONDS)


def _show_until_ready(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    for line in process.stdout:
        _say(line.rstrip())
        if "ready" in line:
            return True
    return False


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
