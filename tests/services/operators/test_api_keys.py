import itertools
import json

import pytest

from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.operations import SqliteOperations
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable
from internal_transfer.services.operators.api_keys import ApiKeys, NewApiKey, hash_passphrase, passphrase_matches
from internal_transfer.services.operators.audit import AuditTrail
from internal_transfer.simulation.clock import SimulatedClock
from internal_transfer.simulation.faults import FailBefore, Faults, LoseAnswer, ScriptedFaults
from services.parts import ports_of


def drawing():
    """Bytes that a test can foretell: all ones, then all twos, and so on."""
    numbers = itertools.count(1)
    return lambda count: bytes([next(numbers)]) * count


class Stand:
    """API keys on a real database, with faults in front of the operations store."""

    def __init__(self, path):
        self.clock = SimulatedClock()
        self.database = Database(path)
        self.operations = SqliteOperations(self.database)
        self.script = ScriptedFaults()
        self.faulty = Faults(self.script, self.clock, System.OPERATIONS).wrap(self.operations)

    def keys(self):
        """The service, with a new source of random bytes."""
        ports = ports_of(self.clock, operations=self.faulty, durability=self.database)
        return ApiKeys(ports, audit=AuditTrail(ports), tiers=frozenset({"standard", "vip"}), draw=drawing())

    async def audit(self):
        """All entries of the audit chain."""
        return [chained.entry for chained in await self.operations.audit(after=0, most=10)]


@pytest.fixture
async def stand(tmp_path):
    stand = Stand(tmp_path / "test.db")
    yield stand
    stand.database.close()


@pytest.fixture
def keys(stand):
    return stand.keys()


async def create(keys, owner="alice", tier="vip", reason="asked for by mail"):
    return await keys.create(owner, tier=tier, actor="operator:eve", reason=reason)


async def test_create(keys, stand):
    """A new key is told once, with secret and passphrase from the random source, and is stored with its owner."""
    made = await create(keys)
    assert made == NewApiKey("01" * 16, "02" * 32, "03" * 16)
    found = await keys.find(made.api_key)
    assert (found.owner, found.tier, found.secret, found.revoked) == ("alice", "vip", made.secret, False)
    assert found.created_at == stand.clock.now_ms()


async def test_passphrase_is_hashed(keys):
    """The store has only a salted scrypt hash of the passphrase, which that passphrase matches and no other."""
    made = await create(keys)
    found = await keys.find(made.api_key)
    assert found.passphrase_hash.startswith("scrypt$16384$8$1$" + "04" * 16 + "$")
    assert made.passphrase not in found.passphrase_hash
    assert passphrase_matches(made.passphrase, found.passphrase_hash)
    assert not passphrase_matches(made.passphrase.upper() + " ", found.passphrase_hash)
    assert hash_passphrase(made.passphrase, b"other salt") != found.passphrase_hash


async def test_audit(keys, stand):
    """Making and revoking a key leave one entry each, with who, why and which key, and without its secrets."""
    made = await create(keys)
    await keys.revoke(made.api_key, actor="operator:mallory", reason="leaked")
    entries = await stand.audit()
    assert [(entry.action, entry.actor, entry.reason, entry.subject) for entry in entries] == [
        ("create_api_key", "operator:eve", "asked for by mail", "alice"),
        ("revoke_api_key", "operator:mallory", "leaked", "alice"),
    ]
    for entry in entries:
        assert json.loads(entry.evidence) == {"api_key": made.api_key, "tier": "vip"}
    assert await stand.operations.verify_audit() is None


async def test_revoke(keys, stand):
    """A revoked key stays on record as revoked, and revoking it again changes and records nothing."""
    made = await create(keys)
    revoked = await keys.revoke(made.api_key, actor="operator:eve", reason="lost")
    assert revoked.revoked
    assert await keys.find(made.api_key) == revoked
    assert await keys.revoke(made.api_key, actor="operator:eve", reason="lost again") == revoked
    assert len(await stand.audit()) == 2


async def test_unknown_key(keys):
    """A key that was never made is not found, and cannot be revoked."""
    assert await keys.find("nobody") is None
    assert await keys.revoke("nobody", actor="operator:eve", reason="lost") is None


@pytest.mark.parametrize(
    ("wrong", "field"),
    [({"owner": "a b"}, "user"), ({"owner": ""}, "user"), ({"tier": "gold"}, "tier"), ({"reason": " "}, "reason")],
)
async def test_refusals(keys, stand, wrong, field):
    """A malformed user, an unknown tier and an empty reason are refused by name, and nothing is recorded."""
    refusal = await create(keys, **wrong)
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.details[0].field) == (Code.INVALID_REQUEST, field)
    assert await stand.audit() == []


async def test_revoke_needs_a_reason(keys):
    """A key is not revoked without a reason."""
    made = await create(keys)
    assert isinstance(await keys.revoke(made.api_key, actor="operator:eve", reason=""), Refusal)
    assert not (await keys.find(made.api_key)).revoked


async def test_store_fails(keys, stand):
    """A failure of the store comes out as it is; where the answer was lost, the key may be on record."""
    stand.script.add("put_api_key", FailBefore(), LoseAnswer())
    with pytest.raises(Unavailable):
        await create(keys)
    assert await stand.audit() == []
    with pytest.raises(OutcomeUnknown):
        await create(keys)
    assert len(await stand.audit()) == 1


def test_representation():
    """A new key shows neither secret nor passphrase in a log."""
    assert repr(NewApiKey("k", "the secret", "the passphrase")) == "NewApiKey('k')"
