"""What every adapter of `ports/operations.py` promises."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest
from msgspec.structs import replace

from contracts.cassandra_stores import CassandraOperationsStack
from contracts.postgresql_schemas import PostgresqlSchema
from internal_transfer.adapters.postgresql import operations as postgresql
from internal_transfer.adapters.postgresql.operations import PostgresqlOperations
from internal_transfer.adapters.postgresql.pool import Pool
from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.operations import SqliteOperations
from internal_transfer.domain.account import Owner
from internal_transfer.domain.rules import Policy, Route
from internal_transfer.ports.audit_chain import GENESIS, digest_of
from internal_transfer.ports.errors import Unavailable
from internal_transfer.ports.operations import ApiKey, AuditEntry, Operations, Report


class EmbeddedOperations:
    """The embedded adapter on a file of its own; `turns` as in the database: "turn" or "each_call"."""

    def __init__(self, path: Path, turns: str) -> None:
        self.database = Database(path, each_call=turns == "each_call")

    def open(self) -> Operations:
        return SqliteOperations(self.database)

    async def durable(self) -> None:
        await self.database.durable()

    async def tamper(self, script: str) -> None:
        """Runs statements by hand, past the adapter."""
        await self.durable()
        other = apsw.Connection(self.database.connection.filename)
        other.execute(script)
        other.close()

    async def close(self) -> None:
        self.database.close()


class SharedOperations:
    """The PostgreSQL adapter on an emptied schema; each `open` is a process with connections of its own."""

    def __init__(self, schema: PostgresqlSchema) -> None:
        self.schema = schema
        self.pools: list[Pool] = []

    def open(self) -> Operations:
        self.pools.append(Pool(self.schema.settings))
        return PostgresqlOperations(self.pools[-1])

    async def durable(self) -> None:
        """Nothing to wait for."""

    async def tamper(self, script: str) -> None:
        """Runs statements by hand, past the adapter."""
        await self.schema.execute(script)

    async def close(self) -> None:
        for pool in self.pools:
            await pool.close()


SQL = ("turn", "each_call", "postgresql")
"""Those that the SQL below can be run on past the adapter; Cassandra's own tests do the same in CQL."""


@pytest.fixture(params=[*SQL, "cassandra"])
async def stack(
    request, tmp_path: Path
) -> AsyncIterator[EmbeddedOperations | SharedOperations | CassandraOperationsStack]:
    if request.param == "cassandra":
        stack = await CassandraOperationsStack.opened()
    elif request.param == "postgresql":
        stack = SharedOperations(await PostgresqlSchema.emptied())
    else:
        stack = EmbeddedOperations(tmp_path / "operations.db", request.param)
    yield stack
    await stack.close()


@pytest.fixture
async def operations(stack) -> Operations:
    return stack.open()


def act(number: int = 0, **changes: str) -> AuditEntry:
    entry = AuditEntry(
        at=1_767_225_600_000 + number,
        actor="ops:mary",
        action="void",
        subject=str(number),
        reason="asked by the user",
        outcome="done",
        evidence='{"hold":"held"}',
    )
    return replace(entry, **changes)


KEY = ApiKey(
    key="k-1", secret="s3cret", passphrase_hash="h", owner=Owner("alice"), tier="standard", created_at=1_767_225_600_000
)


async def test_values_are_pinned_at_first_use(operations):
    """A value is pinned once; the same value again is no conflict, and new names join the old ones."""
    assert await operations.pin({"asset.USDT.scale": "6"}) == {}
    assert await operations.pin({"asset.USDT.scale": "6", "asset.BTC.scale": "8"}) == {}
    assert await operations.pin({"asset.BTC.scale": "9"}) == {"asset.BTC.scale": "8"}


async def test_a_conflict_pins_nothing_new(operations):
    """Where one value differs from what is pinned, nothing new of the call is pinned, and only the conflict is told."""
    await operations.pin({"a": "1", "b": "2"})
    assert await operations.pin({"a": "1", "b": "3", "c": "4"}) == {"b": "2"}
    assert await operations.pin({"c": "5"}) == {}
    assert await operations.pins() == {"a": "1", "b": "2", "c": "5"}


async def test_pinned_values_can_be_read(operations):
    """All pinned values are answered with their names, so that one which nobody asks about any more is seen too."""
    assert await operations.pins() == {}
    await operations.pin({"a": "1"})
    await operations.pin({"b": "2"})
    assert await operations.pins() == {"a": "1", "b": "2"}


async def test_a_policy_comes_into_force(operations):
    """A change of policy is in force at once, as the next version, with an entry in the audit chain."""
    assert await operations.policy() == Policy()
    wanted = Policy(
        frozen_users=frozenset({Owner("eve")}),
        frozen_assets=frozenset({"BTC"}),
        paused_routes=frozenset({Route("funding", "spot")}),
        stopped=True,
    )
    number = await operations.change_policy(wanted, act(1))
    assert number == 1
    assert await operations.policy() == replace(wanted, version=1)
    (link,) = await operations.audit(after=0, most=10)
    assert link.entry == act(1)


async def test_a_policy_based_on_an_old_one_is_refused(operations):
    """Of two changes based on the same version one is refused, and leaves neither policy nor audit entry."""
    base = await operations.policy()
    assert await operations.change_policy(replace(base, stopped=True), act(1)) == 1
    assert await operations.change_policy(replace(base, frozen_assets=frozenset({"BTC"})), act(2)) is None
    assert await operations.policy() == Policy(version=1, stopped=True)
    assert len(await operations.audit(after=0, most=10)) == 1


async def test_policy_survives_a_restart(stack):
    """The policy in force is that of the last change, also for a process that starts later."""
    first = stack.open()
    await first.change_policy(Policy(stopped=True), act(1))
    await first.change_policy(Policy(version=1), act(2))
    await stack.durable()
    assert await stack.open().policy() == Policy(version=2)


async def test_a_change_taken_back_is_not_in_force(tmp_path):
    """A change of policy whose turn fails is not in force, and the chain goes on as if it had not been."""
    database = Database(tmp_path / "operations.db")
    operations = SqliteOperations(database)
    await operations.append_audit(act(1))
    await database.durable()
    await operations.change_policy(Policy(stopped=True), act(2))
    with pytest.raises(Unavailable), database.call() as connection:
        connection.execute("SELECT no_such_column")
    with pytest.raises(Unavailable):
        await database.durable()
    await asyncio.sleep(0)
    assert await operations.policy() == Policy()
    assert await operations.append_audit(act(3)) == 2
    assert await operations.verify_audit() is None
    database.close()


async def test_entries_about_subjects(operations):
    """The entries of one action about some subjects are found, and no other action's or subject's."""
    for number, (action, subject) in enumerate([("void", "7"), ("post", "7"), ("void", "8"), ("void", "9")], 1):
        await operations.append_audit(act(number, action=action, subject=subject))
    links = await operations.audit_about("void", ["9", "7", "7", "none"])
    assert [(link.number, link.entry.action, link.entry.subject) for link in links] == [
        (1, "void", "7"),
        (4, "void", "9"),
    ]
    assert links == [link for link in await operations.audit(after=0, most=9) if link.number in {1, 4}]
    assert await operations.audit_about("retry", ["7"]) == []
    assert await operations.audit_about("void", []) == []


async def test_the_chain_links_each_entry_to_the_one_before(operations):
    """Entries are numbered from 1, page by number, and each carries the digest of the one before and its own."""
    assert [await operations.append_audit(act(number)) for number in range(1, 6)] == [1, 2, 3, 4, 5]
    links = await operations.audit(after=0, most=3) + await operations.audit(after=3, most=10)
    assert [link.number for link in links] == [1, 2, 3, 4, 5]
    assert [link.entry for link in links] == [act(number) for number in range(1, 6)]
    assert [link.previous for link in links] == [GENESIS, *(link.digest for link in links[:-1])]
    assert await operations.verify_audit() is None


async def test_an_empty_chain_holds(operations):
    """A chain without entries is whole."""
    assert await operations.verify_audit() is None
    assert await operations.audit(after=0, most=10) == []


def test_fields_cannot_flow_into_each_other():
    """Moving text from one field into the next gives another digest, since each carries its length."""
    assert digest_of(1, act(reason="ab", outcome="c"), GENESIS) != digest_of(1, act(reason="a", outcome="bc"), GENESIS)


SWAP = """
    UPDATE operations_audit SET number = -1 WHERE number = 2;
    UPDATE operations_audit SET number = 2 WHERE number = 3;
    UPDATE operations_audit SET number = 3 WHERE number = -1"""

CLOSE_THE_GAP = """
    DELETE FROM operations_audit WHERE number = 3;
    UPDATE operations_audit SET number = number - 1 WHERE number > 3"""
ADD_ONE = """
    INSERT INTO operations_audit
    SELECT 6, at, actor, action, subject, reason, outcome, evidence, digest, 'x'
    FROM operations_audit WHERE number = 5"""


@pytest.mark.parametrize("stack", SQL, indirect=True)
@pytest.mark.parametrize(
    ("tampering", "broken_at"),
    [
        *[
            (f"UPDATE operations_audit SET {column} = {column} || '1' WHERE number = 3", 3)
            for column in ("actor", "action", "subject", "reason", "outcome", "evidence", "previous", "digest")
        ],
        ("UPDATE operations_audit SET at = at + 1 WHERE number = 3", 3),
        ("UPDATE operations_audit SET outcome = '', evidence = outcome || evidence WHERE number = 3", 3),
        ("DELETE FROM operations_audit WHERE number = 1", 1),
        ("DELETE FROM operations_audit WHERE number = 3", 3),
        ("DELETE FROM operations_audit WHERE number = 5", 5),
        ("DELETE FROM operations_audit WHERE number >= 3", 3),
        ("DELETE FROM operations_audit", 1),
        (CLOSE_THE_GAP, 3),
        (SWAP, 2),
        ("UPDATE operations_audit_head SET number = 4", 5),
        ("UPDATE operations_audit_head SET digest = 'x'", 5),
        ("DELETE FROM operations_audit_head", 6),
        (ADD_ONE, 6),
    ],
)
async def test_tampering_is_detected(operations, stack, tampering, broken_at):
    """Editing, deleting, reordering, inserting or truncating by SQL is detected, at the first entry concerned."""
    for number in range(1, 6):
        await operations.append_audit(act(number))
    await stack.tamper(tampering)
    assert await operations.verify_audit() == broken_at


@pytest.mark.parametrize("stack", SQL, indirect=True)
async def test_a_removed_end_stays_detected(operations, stack):
    """Appending after the end was cut off does not heal the chain."""
    for number in range(1, 4):
        await operations.append_audit(act(number))
    await stack.tamper("DELETE FROM operations_audit WHERE number = 3")
    assert await operations.append_audit(act(4)) == 4
    assert await operations.verify_audit() == 3


async def test_appending_at_once_keeps_the_chain(stack):
    """Entries, API keys and changes of policy from two processes at once each get a number and one chain."""
    first, second = stack.open(), stack.open()
    numbers = await asyncio.gather(*[(first, second)[n % 2].append_audit(act(n)) for n in range(20)])
    await asyncio.gather(first.put_api_key(KEY, act(20)), second.put_api_key(replace(KEY, key="k-2"), act(21)))
    outcomes = await asyncio.gather(*[each.change_policy(Policy(stopped=True), act(22)) for each in (first, second)])
    assert sorted(numbers) == list(range(1, 21))
    assert sorted(outcomes, key=str) == [23, None]
    assert await first.verify_audit() is None
    assert len(await second.audit(after=0, most=99)) == 23


async def test_pinning_at_once_pins_one_value(stack):
    """Of several processes that pin a name with different values at once one wins, and the others are told."""
    answers = await asyncio.gather(*[stack.open().pin({"a": str(n), f"b{n}": "1"}) for n in range(6)])
    (winner,) = [n for n, answer in enumerate(answers) if answer == {}]
    assert all(answer in ({}, {"a": str(winner)}) for answer in answers)
    assert await stack.open().pins() == {"a": str(winner), f"b{winner}": "1"}


@pytest.mark.parametrize("stack", SQL, indirect=True)
async def test_a_chain_of_several_pages_is_verified(operations, stack, monkeypatch):
    """A chain that is longer than what is looked at at a time holds, and breaks where it was changed."""
    monkeypatch.setattr(postgresql, "VERIFY_PAGE", 2)
    for number in range(1, 8):
        await operations.append_audit(act(number))
    assert await operations.verify_audit() is None
    await stack.tamper("UPDATE operations_audit SET at = at + 1 WHERE number = 6")
    assert await operations.verify_audit() == 6


async def test_api_keys(operations):
    """An API key comes back as it was stored, a revocation replaces it, unknown keys are None; each act is audited."""
    await operations.put_api_key(KEY, act(1))
    assert await operations.api_keys(["k-0", "k-1", "k-1"]) == [None, KEY, KEY]
    await operations.put_api_key(replace(KEY, revoked=True), act(2))
    assert await operations.api_keys(["k-1"]) == [replace(KEY, revoked=True)]
    assert [link.entry for link in await operations.audit(after=0, most=10)] == [act(1), act(2)]


async def test_reports(operations):
    """The newest report is the one saved last; numbers rise; there is none at first."""
    assert await operations.last_report() is None
    first = await operations.save_report(Report(at=5, clean=False, items='[{"kind":"missing_hold"}]'))
    second = await operations.save_report(Report(at=4, clean=True, items="[]"))
    assert second > first
    assert await operations.last_report() == Report(at=4, clean=True, items="[]")


async def test_what_was_recorded_survives_a_restart(stack):
    """Pins, keys, reports and the chain are there for the next process, which goes on from them."""
    first = stack.open()
    await first.pin({"a": "1"})
    await first.put_api_key(KEY, act(1))
    await first.save_report(Report(at=5, clean=True, items="[]"))
    await stack.durable()
    second = stack.open()
    assert await second.pin({"a": "2"}) == {"a": "1"}
    assert await second.api_keys(["k-1"]) == [KEY]
    assert await second.last_report() == Report(at=5, clean=True, items="[]")
    assert await second.append_audit(act(2)) == 2
    assert await second.verify_audit() is None


@pytest.mark.parametrize("stack", SQL, indirect=True)
async def test_nothing_is_appended_without_a_head(operations, stack):
    """Where the chain's head was removed, privileged acts fail and are not recorded outside the chain."""
    await operations.append_audit(act(1))
    await stack.tamper("DELETE FROM operations_audit_head")
    with pytest.raises(Unavailable):
        await operations.append_audit(act(2))
    await asyncio.sleep(0)
    assert [link.entry for link in await operations.audit(after=0, most=10)] == [act(1)]
