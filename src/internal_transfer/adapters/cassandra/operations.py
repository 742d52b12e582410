"""The operators' record on Apache Cassandra or ScyllaDB, with the audit chain.

One CQL statement changes only one partition, and an act and its audit entry belong together. So the head of the chain
is one row. One conditional write moves the head, puts a policy in force, and stores the entry with its effect in
`pending`. The next process that appends or reads first copies it from there to the chain's own partitions.
"""

from collections.abc import Sequence
from importlib.resources import files

import msgspec
from cassandra.query import BoundStatement, PreparedStatement  # type: ignore[import-untyped]
from msgspec import Struct
from msgspec.structs import replace

from internal_transfer.adapters.cassandra.failures import maybe_recorded
from internal_transfer.adapters.cassandra.migrations import migrate
from internal_transfer.adapters.cassandra.session import Cql
from internal_transfer.domain.rules import Policy
from internal_transfer.ports.audit_chain import ChainWalk, chained, digest_of
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, Unavailable
from internal_transfer.ports.finding import Finding
from internal_transfer.ports.operations import ApiKey, AuditEntry, ChainedEntry, Report

MIGRATIONS = (files(__package__).joinpath("operations.cql").read_text(encoding="utf-8"),)
"""Step n leads to version n of the tables; a released step never changes."""

BUCKET_ENTRIES = 1_000
"""How many entries one partition of the chain has; never changes once there is an entry."""

_ROUNDS_MAX = 50
_REPORTS_LOST_MAX = 20

_PINS = "SELECT name, value FROM operations_pin WHERE one = 1"
_PIN = "INSERT INTO operations_pin (one, name, value) VALUES (1, ?, ?) IF NOT EXISTS"
_HEAD = "SELECT number, digest, policy, pending FROM operations_head WHERE one = 1"
_MOVE_HEAD = (
    "UPDATE operations_head SET number = ?, digest = ?, policy = ?, pending = ?"
    " WHERE one = 1 IF number = ? AND digest = ?"
)
_COPIED = "UPDATE operations_head SET pending = null WHERE one = 1 IF number = ? AND digest = ?"
_ADD_ENTRY = (
    "INSERT INTO operations_audit"
    " (bucket, number, at, actor, action, subject, reason, outcome, evidence, previous, digest, writer)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_ADD_SUBJECT = "INSERT INTO operations_audit_subject (subject, action, number) VALUES (?, ?, ?)"
_ADD_POLICY = "INSERT INTO operations_policy (version, body, audit) VALUES (?, ?, ?)"
# The number of the entry is the time of the write, so that the later of two states of a key wins.
_PUT_API_KEY = "UPDATE operations_api_key USING TIMESTAMP ? SET body = ? WHERE key = ?"
_AUDIT = (
    "SELECT number, at, actor, action, subject, reason, outcome, evidence, previous, digest"
    " FROM operations_audit WHERE bucket = ? AND number > ? LIMIT ?"
)
_ENTRY = (
    "SELECT number, at, actor, action, subject, reason, outcome, evidence, previous, digest"
    " FROM operations_audit WHERE bucket = ? AND number = ?"
)
_WRITER = "SELECT writer FROM operations_audit WHERE bucket = ? AND number = ?"
_ABOUT = "SELECT number FROM operations_audit_subject WHERE subject = ? AND action = ?"
_API_KEY = "SELECT body FROM operations_api_key WHERE key = ?"
_REPORT_NUMBER = "SELECT number FROM operations_report_head WHERE one = 1"
_MOVE_REPORT_NUMBER = "UPDATE operations_report_head SET number = ? WHERE one = 1 IF number = ?"
_ADD_REPORT = "INSERT INTO operations_report (number, at, clean, items) VALUES (?, ?, ?, ?)"
_REPORT = "SELECT at, clean, items FROM operations_report WHERE number = ?"
STATEMENTS = (
    *(_PINS, _PIN, _HEAD, _MOVE_HEAD, _COPIED, _ADD_ENTRY, _ADD_SUBJECT, _ADD_POLICY, _PUT_API_KEY, _AUDIT, _ENTRY),
    *(_WRITER, _ABOUT, _API_KEY, _REPORT_NUMBER, _MOVE_REPORT_NUMBER, _ADD_REPORT, _REPORT),
)
"""Every statement above, prepared at the start."""


class Pending(Struct, frozen=True):
    """An entry that the head already counts, with its effect; `writer` is a name that no other write has."""

    link: ChainedEntry
    writer: str
    policy: Policy | None = None
    api_key: ApiKey | None = None


class Head(Struct, frozen=True):
    """The end of the chain and the policy in force."""

    number: int
    digest: str
    policy: str | None
    pending: str | None


class CassandraOperations:
    """Implements `Operations`; `open` makes it. Any number of processes may share one keyspace."""

    def __init__(self, cql: Cql, prepared: dict[str, PreparedStatement]) -> None:
        self._cql = cql
        self._prepared = prepared

    @classmethod
    async def open(cls, cql: Cql, *, migrating: bool = True) -> "CassandraOperations":
        """Prepares the statements, after it has migrated the tables, or only checked that they are up to date.

        The caller starts and closes `cql`.
        """
        await migrate(cql, "operations", MIGRATIONS, changing=migrating)
        return cls(cql, await cql.prepare(STATEMENTS))

    def _bind(self, text: str, *values: object) -> BoundStatement:
        return self._prepared[text].bind(values)

    async def pin(self, values: dict[str, str]) -> dict[str, str]:
        """Pins values at first use; see the port."""
        for _ in range(_ROUNDS_MAX):
            pinned = await self.pins()
            others = {name: pinned[name] for name in values if pinned.get(name, values[name]) != values[name]}
            new = [self._bind(_PIN, name, value) for name, value in values.items() if name not in pinned]
            if others or not new or (await self._cql.decide([self._cql.batch(new)]))[0]:
                return others
            await self._wait()
        raise OutcomeUnknown(self._cql.system, "too many processes pin values at once")

    async def _wait(self) -> None:
        """Waits a moment, for other processes that write the same row."""
        await self._cql.clock.sleep(0.05 * self._cql.clock.jitter())

    async def pins(self) -> dict[str, str]:
        """All pinned values by name."""
        [rows] = await self._cql.read([self._cql.serially(self._bind(_PINS))])
        return dict(rows)

    async def policy(self) -> Policy:
        """The policy in force."""
        head = await self._head()
        return _policy_of(head)

    async def change_policy(self, policy: Policy, entry: AuditEntry) -> int | None:
        """Puts a policy in force as the version after the one it was based on; see the port."""
        return await self._append(entry, policy=replace(policy, version=policy.version + 1))

    async def append_audit(self, entry: AuditEntry) -> int:
        """Appends an entry to the chain; returns its number."""
        number = await self._append(entry)
        assert number is not None, "only a policy can be overtaken by another one"
        return number

    async def put_api_key(self, key: ApiKey, entry: AuditEntry) -> None:
        """Stores an API key, or its new state (revoked), together with its audit entry."""
        await self._append(entry, api_key=key)

    async def _append(
        self, entry: AuditEntry, *, policy: Policy | None = None, api_key: ApiKey | None = None
    ) -> int | None:
        writer = f"{int(self._cql.clock.jitter() * 2**52):013x}"
        for _ in range(_ROUNDS_MAX):
            head = await self._copied_head()
            if head is None:
                raise Unavailable(self._cql.system, "the head of the audit chain is gone; nothing can be appended")
            if policy is not None and _policy_of(head).version != policy.version - 1:
                return None
            number = head.number + 1
            digest = digest_of(number, entry, head.digest)
            pending = Pending(ChainedEntry(number, entry, head.digest, digest), writer, policy, api_key)
            body = head.policy if policy is None else _text(policy)
            moving = self._bind(_MOVE_HEAD, number, digest, body, _text(pending), head.number, head.digest)
            [is_mine] = await self._cql.decide([moving])
            with maybe_recorded():
                # If only the answer of the write was lost, the chain has our entry at this number.
                if is_mine or await self._is_written(number, writer):
                    await self._copy(pending)
                    return number
            await self._wait()
        raise OutcomeUnknown(self._cql.system, "too many processes append to the audit chain at once")

    async def _is_written(self, number: int, writer: str) -> bool:
        await self._copied_head()
        [rows] = await self._cql.read([self._bind(_WRITER, number // BUCKET_ENTRIES, number)])
        return bool(rows) and rows[0][0] == writer

    async def _head(self) -> Head | None:
        [rows] = await self._cql.read([self._cql.serially(self._bind(_HEAD))])
        return Head(*rows[0]) if rows and rows[0][0] is not None else None

    async def _copied_head(self) -> Head | None:
        """Copies the pending entry, if there is one; returns the head."""
        head = await self._head()
        if head is not None and head.pending is not None:
            await self._copy(msgspec.json.decode(head.pending, type=Pending))
        return head

    async def _copy(self, pending: Pending) -> None:
        """Copies an entry and its effect to the tables from which they are read; may be repeated."""
        link, entry = pending.link, pending.link.entry
        number, writer = link.number, pending.writer
        fields = (entry.at, entry.actor, entry.action, entry.subject, entry.reason, entry.outcome, entry.evidence)
        copies = [
            self._bind(_ADD_ENTRY, number // BUCKET_ENTRIES, number, *fields, link.previous, link.digest, writer),
            self._bind(_ADD_SUBJECT, entry.subject, entry.action, number),
        ]
        if pending.policy is not None:
            copies.append(self._bind(_ADD_POLICY, pending.policy.version, _text(pending.policy), number))
        if pending.api_key is not None:
            copies.append(self._bind(_PUT_API_KEY, number, _text(pending.api_key), pending.api_key.key))
        await self._cql.write(copies)
        await self._cql.decide([self._bind(_COPIED, number, link.digest)])

    async def audit(self, *, after: int, most: int) -> list[ChainedEntry]:
        """Entries by rising number above `after`."""
        await self._copied_head()
        return await self._entries(after, most)

    async def _entries(self, after: int, most: int) -> list[ChainedEntry]:
        """Entries above a number; goes on to the next bucket even if entries at the end of one are missing."""
        found: list[ChainedEntry] = []
        head = await self._head()
        bucket = (after + 1) // BUCKET_ENTRIES
        last = bucket if head is None else max(bucket, (head.number + 1) // BUCKET_ENTRIES)
        while len(found) < most and bucket <= last:
            [rows] = await self._cql.read([self._bind(_AUDIT, bucket, after, min(most - len(found), BUCKET_ENTRIES))])
            found += map(chained, rows)
            bucket += 1
        return found

    async def audit_about(self, action: str, subjects: Sequence[str]) -> list[ChainedEntry]:
        """All entries of one action about any of these subjects, by rising number."""
        await self._copied_head()
        answers = await self._cql.read([self._bind(_ABOUT, subject, action) for subject in dict.fromkeys(subjects)])
        numbers = sorted({row[0] for rows in answers for row in rows})
        entries = await self._cql.read([self._bind(_ENTRY, number // BUCKET_ENTRIES, number) for number in numbers])
        return [chained(row) for rows in entries for row in rows]

    async def verify_audit(self) -> int | None:
        """Walks the whole chain up to its end; see the port."""
        walk = ChainWalk()
        while True:
            links = await self._entries(walk.number, BUCKET_ENTRIES)
            broken = walk.first_break(links)
            if broken is not None:
                return broken
            if links:
                continue
            # The head is read after the entries, so it counts all of them. If it counts more, those are either copied
            # by now, or gone.
            head = await self._copied_head()
            if head is None or head.number <= walk.number or not await self._entries(walk.number, 1):
                return walk.break_at_end(None if head is None else (head.number, head.digest))

    async def api_keys(self, keys: Sequence[str]) -> list[ApiKey | None]:
        """The API keys, in order."""
        if not keys:
            return []
        await self._copied_head()
        answers = await self._cql.read([self._bind(_API_KEY, key) for key in keys])
        return [msgspec.json.decode(rows[0][0], type=ApiKey) if rows else None for rows in answers]

    async def save_report(self, report: Report) -> int:
        """Stores a reconciliation report; returns its number. Numbers may have gaps."""
        for _ in range(_ROUNDS_MAX):
            [rows] = await self._cql.read([self._cql.serially(self._bind(_REPORT_NUMBER))])
            last = rows[0][0] if rows else None
            number: int = (last or 0) + 1
            if (await self._cql.decide([self._bind(_MOVE_REPORT_NUMBER, number, last)]))[0]:
                await self._cql.write([self._bind(_ADD_REPORT, number, report.at, report.clean, report.items)])
                return number
            await self._wait()
        raise OutcomeUnknown(self._cql.system, "too many processes save reports at once")

    async def last_report(self) -> Report | None:
        """The newest report, or None; skips numbers whose report was never written."""
        [rows] = await self._cql.read([self._bind(_REPORT_NUMBER)])
        newest = (rows[0][0] or 0) if rows else 0
        for number in range(newest, max(0, newest - _REPORTS_LOST_MAX), -1):
            [found] = await self._cql.read([self._bind(_REPORT, number)])
            if found:
                return Report(at=found[0][0], clean=found[0][1], items=found[0][2])
        return None

    async def check(self) -> list[Finding]:
        """Returns the finding for `doctor`: whether the audit chain has its head."""
        try:
            head = await self._head()
        except OperatingFailureError as error:
            return [Finding("cql operations", False, str(error))]
        if head is None:
            return [Finding("cql operations", False, "the head of the audit chain is gone; restore the keyspace")]
        return [Finding("cql operations", True, f"{head.number} audit entries")]


def _policy_of(head: Head | None) -> Policy:
    return Policy() if head is None or head.policy is None else msgspec.json.decode(head.policy, type=Policy)


def _text(value: Struct) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()
