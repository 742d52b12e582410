"""Measures the service on PostgreSQL with an empty record and with millions of transfers on record, side by side.

    eval "$(python -m servers env)" && python bench/growth.py [--rows 10000000] [--seconds 8] [--rounds 3] [--record]

Two services run on one server, each with its own schema; SQL fills the second one with final transfers of ninety days,
a thousand of them for each of 200 users. Then each round measures both: complete transfers, the status of a transfer,
and the first and a middle page of 20 of a user's history. The ratio is what counts.
"""

import argparse
import asyncio
import itertools
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import httpx
from load import load
from run import ASSETS, FEW, Bench, Case, record, told

from internal_transfer.domain.identifier import EPOCH_MS
from internal_transfer.services.courier import READER
from internal_transfer.simulation.scenarios.surroundings import StackKind

CASE = Case("P9", 64, FEW, ASSETS[:1], "90% of empty")
FIRST_COMMIT = 1_000_000
"""Above the commit numbers of what the service recorded before the filling."""

_FILL = (
    """
    CREATE TEMPORARY VIEW filling AS
    SELECT g, $first + (g / 200) AS commit, (g % 200 + 1)::integer AS place,
        CASE WHEN g % 50 = 0 THEN 'bench-' || (g / 50 % 200) ELSE 'other-' || (g % 9973) END AS owner,
        (($now - 7776000000 + g * 7776000000 / $rows) - $epoch) << 22 | (g % 4096) AS id,
        $now - 7776000000 + g * 7776000000 / $rows AS at
    FROM generate_series(0::bigint, $rows - 1) AS g
    """,
    """
    INSERT INTO transfer SELECT id, commit * 4096 + place, owner, 'filled-' || g, owner, 'funding', owner, 'spot',
        'BTC', 1000 + g % 7, NULL, at, (at / 86400000)::integer, (SELECT legs FROM transfer LIMIT 1), at, at, 'SUCCESS',
        3, 4, 0, false, NULL, NULL, NULL, 0, 0, 0 FROM filling
    """,
    "INSERT INTO transfer_key SELECT owner, 'filled-' || g, id, decode(md5(g::text), 'hex') FROM filling",
    """
    INSERT INTO transfer_event SELECT commit * 3 + v, place, id, v,
        (ARRAY['REQUESTING', 'PENDING', 'SUCCESS'])[v], at, NULL FROM filling, generate_series(1, 3) AS v
    """,
    """
    INSERT INTO feed_commit SELECT c * 3 + v, c * 3 + v
        FROM generate_series($first, $first + ($rows - 1) / 200) AS c, generate_series(1, 3) AS v
    """,
    "SELECT setval('commit_number', $first * 3 + $rows)",
    # Marks these events as published.
    """
    INSERT INTO feed_reader VALUES ('$reader', (($first::bigint + ($rows - 1) / 200) * 3 + 3) * 4096 + 4095)
        ON CONFLICT (reader) DO UPDATE SET position = excluded.position
    """,
    "VACUUM ANALYZE",
)


async def fill(bench: Bench, rows: int) -> None:
    """Records this many final transfers."""
    schema = re.search(r'db_schema = "(\w+)"', bench.settings)
    assert schema is not None
    connection = await asyncpg.connect(
        os.environ["POSTGRESQL_DSN"], server_settings={"search_path": schema[1], "synchronous_commit": "off"}
    )
    values = {
        "first": FIRST_COMMIT,
        "rows": rows,
        "now": time.time_ns() // 1_000_000,
        "epoch": EPOCH_MS,
        "reader": READER,
    }
    for template in _FILL:
        statement = template
        for name, value in values.items():
            statement = statement.replace(f"${name}", str(value))
        started = time.monotonic()
        await connection.execute(statement, timeout=3600)
        print(f"  {time.monotonic() - started:6.1f} s  {' '.join(statement.split())[:60]}", flush=True)
    await connection.close()


def gets(paths: list[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], bytes]]:
    """Endless GETs, round robin over (token, path)."""
    requests = [
        (f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\r\n").encode()
        for token, path in paths
    ]
    return zip(itertools.repeat(("", "")), itertools.cycle(requests))


class Side:
    """One service, and the requests of its users."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.status: list[tuple[str, str]] = []
        self.first: list[tuple[str, str]] = []
        self.middle: list[tuple[str, str]] = []

    def learn(self) -> None:
        """Finds transfers and pages of the users to ask for."""
        base = "/api/v1/user/internal_transfer"
        with httpx.Client(base_url=f"http://127.0.0.1:{self.bench.server.port}", timeout=30) as client:
            for user in CASE.users:
                token = self.bench.tokens[user]
                headers = {"Authorization": f"Bearer {token}"}
                page = f"{base}/history?limit=20"
                self.first.append((token, page))
                found = client.get(page, headers=headers).raise_for_status().json()
                self.status += [(token, f"{base}/{each['request_id']}") for each in found["transfers"]]
                for _ in range(3):
                    if found["next_cursor"] is None:
                        break
                    page = f"{base}/history?limit=20&cursor={found['next_cursor']}"
                    found = client.get(page, headers=headers).raise_for_status().json()
                self.middle.append((token, page))

    def measure(self, seconds: float, name: str) -> dict[str, tuple[float, float]]:
        """Returns, for each kind of request, the number per second and the 99th percentile in milliseconds."""
        report, _, _ = self.bench.run(CASE, seconds, name)
        found = {"transfers": (report.per_second(), report.quantile_ms(0.99))}
        for kind, paths in (("status", self.status), ("first page", self.first), ("middle page", self.middle)):
            report = load(self.bench.server.port, connections=64, seconds=seconds, requests=gets(paths), warm_up=1.0)
            assert set(report.statuses) == {200}, report.statuses
            found[kind] = (report.per_second(), report.quantile_ms(0.99))
        return found


def measure(options: argparse.Namespace) -> Iterator[str]:
    """Runs both sides and yields the lines of the report."""
    with tempfile.TemporaryDirectory(prefix="internal-transfer-bench-") as directory:
        sides = []
        for name in ("empty", "full"):
            place = Path(directory) / name
            place.mkdir()
            sides.append(Side(Bench(place, StackKind.POSTGRESQL, [CASE])))
        for side in sides:
            side.bench.run(CASE, 5, "warm")
        asyncio.run(fill(sides[1].bench, options.rows))
        for side in sides:
            side.learn()
        rounds: list[list[dict[str, tuple[float, float]]]] = [[], []]
        for number in range(options.rounds):
            for side, found in zip(sides, rounds, strict=True):
                found.append(side.measure(options.seconds, f"round-{number}"))
        yield f"{'':12} {'empty/s':>8} {'p99 ms':>7} {'full/s':>8} {'p99 ms':>7}  ratio"
        for kind in rounds[0][0]:
            columns = [[statistics.median(each[kind][at] for each in found) for at in (0, 1)] for found in rounds]
            (empty, slow), (full, slower) = columns
            yield f"{kind:12} {empty:8.0f} {slow:7.2f} {full:8.0f} {slower:7.2f}  {full / empty * 100:4.0f}%"
        memory = Path(f"/proc/{sides[1].bench.server.process.pid}/status").read_text()
        resident = re.search(r"VmRSS:\s+(\d+)", memory)
        assert resident is not None
        yield f"memory of the service: {int(resident[1]) // 1024} MiB"
        answers = [dict(side.bench.answers) for side in sides]
        yield f"answers to transfers: {answers[0]}, {answers[1]}"
        for side in sides:
            side.bench.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure with an empty record and with a large one.")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="append the figures to bench/RESULTS.md")
    options = parser.parse_args()
    lines = told(measure(options))
    if options.record:
        record(
            ", growth.py",
            f"{options.rows} transfers on record, stack postgresql, {options.rounds} rounds of "
            f"{options.seconds:g} s, medians.",
            lines,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
