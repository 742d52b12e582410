"""Measures complete transfers on a real server process, and verifies afterwards that nothing was lost or doubled.

    python bench/run.py [--stack embedded] [--seconds 20] [--rounds 3] [--only P1,P2] [--record]

`--stack postgresql` or `cassandra` measures the service on real systems, which `python -m servers env` names.

A complete transfer is one POST with a valid token and a new key, accepted, held, confirmed by the trading core, posted
and recorded, with everything synced before the answer, which carries SUCCESS. The method and the targets are those of
docs/guides/performance.md: a closed loop, empty POSTs in the same round as rulers (on uvicorn with h11, and on the
service's own HTTP server), medians of rounds, the processor time of each process from /proc, and the time of each stage
from the service's own metrics. The exit code is 1 if the verification fails; missed targets are only printed.
"""

import argparse
import asyncio
import atexit
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import httpx
from load import Report, load, posts, transfers

from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.domain.account import Owner
from internal_transfer.settings.demo_issuer import DemoIssuer
from internal_transfer.simulation.scenarios.surroundings import StackKind, Surroundings

HERE = Path(__file__).parent
USERS = [f"bench-{number}" for number in range(1000)]
DEPOSIT = 1_000_000
AMOUNT = "0.01"
ASSETS = ("USDT", "USDC", "BTC", "ETH", "SOL")
CONFIG = """
[rate_limit]
per_minute = 10_000_000
burst = 10_000_000
""" + "".join(
    f'[tiers.standard.limits.{asset}]\nmin = "0.01"\nmax = "1000000"\ndaily = "1000000000"\n' for asset in ASSETS
)
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Case:
    """One target: its load, and what it must reach."""

    name: str
    connections: int
    users: list[str]
    assets: tuple[str, ...]
    target: str


CASES = [
    Case("P1", 64, USERS, ASSETS, "5,000/s, p99 < 40 ms, 40% of an empty POST"),
    Case("P2", 256, USERS, ASSETS, "7,000/s"),
    Case("P3", 1, USERS, ASSETS, "p50 < 4 ms"),
    Case("P5 hot user", 64, USERS[:1], ASSETS, "90% of P1"),
    Case("P5 hot asset", 64, USERS, ASSETS[:1], "90% of P1"),
]
FEW = USERS[:200]
"""Deposits take longer on real systems."""
ON_SYSTEMS = {
    (StackKind.POSTGRESQL, "socket"): [
        Case("P6", 64, FEW, ASSETS[:1], "1,500/s"),
        Case("P6 wide", 256, FEW, ASSETS[:1], "1,500/s"),
    ],
    (StackKind.POSTGRESQL, "tigerbeetle"): [Case("P7", 64, FEW, ASSETS[:1], "1,200/s")],
    (StackKind.CASSANDRA, "socket"): [
        Case("P11", 64, FEW, ASSETS[:1], "200/s"),
        Case("P11 wide", 256, FEW, ASSETS[:1], "200/s"),
    ],
    (StackKind.CASSANDRA, "tigerbeetle"): [Case("P11 tigerbeetle", 64, FEW, ASSETS[:1], "200/s")],
}


def cases_of(kind: StackKind) -> list[Case]:
    """Returns the targets to measure on a stack."""
    if kind is StackKind.EMBEDDED:
        return CASES
    return ON_SYSTEMS[kind, "tigerbeetle" if os.environ.get("TIGERBEETLE_BINARY") else "socket"]


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Server:
    """A server process on a free port, ready to be asked."""

    def __init__(self, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the process.
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment
        )
        atexit.register(self.process.kill)  # In case this program is interrupted.
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if match := re.search(r"ready on http://127\.0\.0\.1:(\d+)", line):
                self.port = int(match[1])
                return
        self._errors.seek(0)
        sys.exit(f"{command} did not start:\n{self._errors.read()[-3000:]}")

    def cpu_seconds(self) -> tuple[float, float]:
        """Returns the processor time (user and system) so far of the process, and of its HTTP workers."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return _cpu_seconds(pid), sum(_cpu_seconds(int(child)) for child in children)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(60) != 0:
            self._errors.seek(0)
            sys.exit(f"the server ended with {self.process.returncode}:\n{self._errors.read()[-3000:]}")


class Bench:
    """The service on a temporary directory, with money for all users, and the transfers acknowledged so far."""

    def __init__(self, directory: Path, kind: StackKind, cases: list[Case]) -> None:
        self.data = directory / "data"
        self._kind = kind
        surroundings = Surroundings(kind, directory)
        self.settings = surroundings.settings
        config = directory / "settings.toml"
        config.write_text(CONFIG + self.settings)
        # Not `asyncio.run`, which would close the loop that watches these processes.
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(surroundings.start())
        self._beside = [each for each in (surroundings.ledger, surroundings.core) if each is not None]
        self._owners = sorted({(user, asset) for case in cases for user in case.users for asset in case.assets})
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.health_port = free.getsockname()[1]
        self.server = Server(
            [
                *(sys.executable, "-m", "internal_transfer.cli", "serve", "--demo", "--port", "0"),
                *("--admin-port", str(self.health_port), "--config", str(config), "--data", str(self.data)),
            ],
            surroundings.environment,
        )
        self.rulers = [Server([sys.executable, str(HERE / "baseline.py"), name]) for name in ("h11", "ours")]
        self.admin = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.data / "admin.sock")), base_url="http://local", timeout=600
        )
        issuer, now = DemoIssuer.read(self.data), SystemClock().now_ms() // 1000
        self.tokens = {
            user: issuer.token(Owner(user), roles=("user",), tier="standard", now_seconds=now) for user in USERS
        }
        self.acknowledged: Counter[tuple[str, str]] = Counter()
        self.answers: Counter[int] = Counter()
        for user, asset in self._owners:
            self._deposit(user, asset)

    def _deposit(self, user: str, asset: str) -> None:
        cash = {"user": user, "account": "funding", "asset": asset, "amount": str(DEPOSIT)}
        cash |= {"reference": f"{user}-{asset}", "reason": "bench"}
        self.admin.post("/api/v1/admin/deposits", json=cash).raise_for_status()

    def run(self, case: Case, seconds: float, name: str) -> tuple[Report, list[float], dict[str, float]]:
        """Measures one round. Returns the report and, in microseconds for each transfer, the processor time of the
        service and of its HTTP workers, and the time that passed in each stage.
        """
        tokens = {user: self.tokens[user] for user in case.users}
        # By default, a transfer that is not SUCCESS after half a second is answered as open, and would not count.
        prefer = b"" if self._kind is StackKind.EMBEDDED else b"Prefer: wait=20\r\n"
        requests = transfers(tokens, prefix=name, assets=case.assets, amount=AMOUNT, prefer=prefer)
        before, stages = self._cpu_seconds(), self._stages()
        report = load(self.server.port, connections=case.connections, seconds=seconds, requests=requests)
        count = sum(report.statuses.values())
        self.acknowledged += report.acknowledged
        self.answers += report.statuses
        used = {stage: (total - stages.get(stage, 0.0)) / count * 1e6 for stage, total in self._stages().items()}
        now = self._cpu_seconds()
        return report, [(b - a) / count * 1e6 for a, b in zip(before, now, strict=True)], used

    def _cpu_seconds(self) -> tuple[float, float]:
        """Returns the time of the service, and of its HTTP workers, ledger and core together."""
        service, workers = self.server.cpu_seconds()
        return service, workers + sum(_cpu_seconds(each.pid) for each in self._beside)

    def _stages(self) -> dict[str, float]:
        text = httpx.get(f"http://127.0.0.1:{self.health_port}/metrics").text
        found = re.finditer(r'stage_duration_seconds_sum\{stage="(\w+)"\} (\S+)', text)
        return {match[1]: float(match[2]) for match in found}

    def verify(self) -> list[str]:
        """Returns the faults found after the load in counts, balances, open transfers and reconciliation."""
        wrong = []
        done = {(user, asset): count for (user, asset), count in self.acknowledged.items()}
        for user in sorted({user for user, _ in self._owners}):
            answer = httpx.get(
                f"http://127.0.0.1:{self.server.port}/api/v1/user/balances",
                headers={"Authorization": f"Bearer {self.tokens[user]}"},
            )
            for line in answer.raise_for_status().json()["balances"]:
                cents = done.get((user, line["asset"]), 0)
                expected = cents if line["account_type"] == "spot" else DEPOSIT * 100 - cents
                if Decimal(line["posted"]) * 100 != expected or Decimal(line["held"]) != 0:
                    wrong.append(f"{user}: {line}, expected {expected / 100}")
        report = self.admin.post("/api/v1/admin/reconciliation", json={}).raise_for_status().json()
        if not report["clean"]:
            wrong.append(f"reconciliation: {report['items'][:3]}")
        self.stop()
        # Nothing is held, so every transfer on record has succeeded or failed; and none failed.
        if report["transfers"] != sum(done.values()):
            wrong.append(f"recorded {report['transfers']}, acknowledged {sum(done.values())}")
        if set(self.answers) != {201}:
            wrong.append(f"answers other than 201: {dict(self.answers)}")
        return wrong

    def stop(self) -> None:
        """Stops the service, the rulers, and the processes beside the service."""
        self.server.stop()
        for ruler in self.rulers:
            ruler.process.kill()
        for each in self._beside:
            os.kill(each.pid, signal.SIGTERM)


def measure(options: argparse.Namespace) -> Iterator[str]:
    """Runs every case and yields the lines of the report; the last one says whether everything added up."""
    with tempfile.TemporaryDirectory(prefix="internal-transfer-bench-") as directory:
        cases = [case for case in cases_of(options.stack) if not options.only or case.name.split()[0] in options.only]
        bench = Bench(Path(directory), options.stack, cases)
        yield (
            f"{'case':13} {'conn':>4} {'per s':>7} {'p50 ms':>7} {'p99 ms':>7} {'p99.9':>7}"
            f" {'service':>8} {'beside':>8} {'h11/s':>8} {'share':>6} {'ours/s':>8} {'share':>6}  target"
        )
        for case in cases:
            rounds, stages = [], {}
            for number in range(options.rounds):
                empty = [
                    load(
                        ruler.port,
                        connections=case.connections,
                        seconds=options.seconds / 5,
                        requests=posts("/empty"),
                        warm_up=1.0,
                    ).per_second()
                    for ruler in bench.rulers
                ]
                report, cpu, stages = bench.run(case, options.seconds, f"{case.name.replace(' ', '-')}-{number}")
                rounds.append(
                    (
                        report.per_second(),
                        report.quantile_ms(0.5),
                        report.quantile_ms(0.99),
                        report.quantile_ms(0.999),
                        *cpu,
                        *(value for rate in empty for value in (rate, report.per_second() / rate * 100)),
                    )
                )
            rate, p50, p99, p999, service, workers, h11, of_h11, ours, of_ours = (
                statistics.median(column) for column in zip(*rounds, strict=True)
            )
            yield (
                f"{case.name:13} {case.connections:4} {rate:7.0f} {p50:7.2f} {p99:7.2f} {p999:7.2f}"
                f" {service:8.0f} {workers:8.0f} {h11:8.0f} {of_h11:5.0f}% {ours:8.0f} {of_ours:5.0f}%"
                f"  {case.target}"
            )
            by_stage = sorted(stages.items(), key=lambda item: -item[1])
            yield "              us by stage: " + ", ".join(
                f"{stage} {used:.0f}" for stage, used in by_stage if used >= 1
            )
        wrong = bench.verify()
        total = sum(bench.acknowledged.values())
        sound = f"verified: {total} acknowledged, recorded and in the balances"
        yield "WRONG: " + "; ".join(wrong[:5]) if wrong else sound


def told(lines: Iterable[str]) -> list[str]:
    """Prints the lines as they come, and returns them."""
    said = []
    for line in lines:
        print(line, flush=True)
        said.append(line)
    return said


def record(what: str, conditions: str, lines: list[str]) -> None:
    """Appends figures to RESULTS.md with the commit that they belong to."""
    ran = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True, cwd=HERE)
    with (HERE / "RESULTS.md").open("a") as results:
        results.write(f"\n## {datetime.now(UTC):%Y-%m-%d}, commit {ran.stdout.strip()}{what}\n\n{conditions}\n\n")
        results.write("```\n" + "\n".join(lines) + "\n```\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure complete transfers.")
    parser.add_argument("--seconds", type=float, default=20, help="seconds of each round, after a warm-up of two")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--only",
        default=[],
        type=lambda names: names.split(","),
        help="targets; by default all of the stack's",
    )
    parser.add_argument("--stack", type=StackKind, choices=list(StackKind), default=StackKind.EMBEDDED)
    parser.add_argument("--record", action="store_true", help="append the figures to bench/RESULTS.md")
    options = parser.parse_args()
    lines = told(measure(options))
    if options.record:
        record(
            "",
            f"Python {platform.python_version()}, {os.cpu_count()} cores, stack {options.stack}, "
            f"{options.rounds} rounds of {options.seconds:g} s, medians.",
            lines,
        )
    return 0 if lines[-1].startswith("verified") else 1


if __name__ == "__main__":
    sys.exit(main())
