"""Measures complete transfers on a real server process, and verifies afterwards that nothing was lost or doubled.

    python bench/run.py [--seconds 20] [--rounds 3] [--only P1,P2,P3,P5] [--record]

A complete transfer is one POST with a valid token and a new key, accepted, held, confirmed by the trading core, posted
and recorded, with everything synced before the answer, which carries SUCCESS. The method and the targets are those of
docs/guides/performance.md: ratios within one run, an empty POST on the same HTTP server as the ruler, medians of
rounds, processor time of each process from /proc. Exit code 1 if the verification fails; targets only print.
"""

import argparse
import json
import os
import platform
import re
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from load import Report, load, posts, transfers

HERE = Path(__file__).parent
USERS = 1000
CLI = [sys.executable, "-m", "internal_transfer.cli"]
DEPOSIT = "1000000"
CONFIG = """
[rate_limit]
per_minute = 10_000_000
burst = 10_000_000
[tiers.standard.limits.USDT]
min = "0.01"
max = "1000000"
daily = "100000000000"
"""


class Server:
    """A process of the service, or of the baseline, and what it has used."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        for line in self.process.stdout:
            self.lines.append(line)
            if match := re.search(r"ready.*http://127\.0\.0\.1:(\d+)", line):
                self.port = int(match[1])
                return
        sys.exit(f"the server did not start:\n{self.process.stderr.read()}")

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time of the process and of its children, by process."""
        used = {}
        for pid in [self.process.pid, *_children(self.process.pid)]:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            used[f"{'server' if pid == self.process.pid else 'worker'}-{pid}"] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return used

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(60) != 0:
            sys.exit(f"the server ended with {self.process.returncode}:\n{self.process.stderr.read()[-2000:]}")


def _children(pid: int) -> list[int]:
    listing = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listing.read_text().split()] if listing.exists() else []


def run_json(*arguments: str) -> dict:
    done = subprocess.run([*CLI, *arguments, "--json"], capture_output=True, text=True, timeout=600, check=False)
    if done.returncode not in (0, 1):
        sys.exit(f"{arguments}: {done.stderr}")
    return json.loads(done.stdout)


def tokens(data: Path, users: list[str]) -> dict[str, str]:
    """Tokens of the demo issuer, minted here to save a process per user."""
    from internal_transfer.adapters.clock.system import SystemClock
    from internal_transfer.api.demo_issuer import DemoIssuer

    issuer = DemoIssuer.load(data)
    now_ms = SystemClock().now_ms()
    return {user: issuer.mint(user=user, now_ms=now_ms) for user in users}


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {match[1]: float(match[2]) for match in re.finditer(r"^(\S+) (\S+)$", text, re.MULTILINE)}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="P1,P2,P3,P5")
    parser.add_argument("--record", action="store_true", help="append the figures to bench/RESULTS.md")
    options = parser.parse_args()
    print(HEADER)
    rows, sound = measure(options)
    for row in rows:
        print(row)
    if options.record:
        record(options, rows)
    return 0 if sound else 1
