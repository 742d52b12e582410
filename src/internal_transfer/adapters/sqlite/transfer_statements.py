"""Every statement of the embedded transfer store."""

# ruff: noqa: S608 - they are put together from constants only.

from internal_transfer.ports.transfer_fields import TRANSFER_COLUMNS

INSERT_TRANSFER = """
    INSERT INTO transfer (
        legs, updated_at, due_at, status, version, revision, attempts, fencing, decision, failure, needs_person,
        post_attempt, void_attempt, ledger_timestamp, asked_core, id, asked_since,
        accept_number, owner, key, source_owner, source_type, target_owner, target_type, asset, amount, memo, created_at
    ) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, iif(?15 IS NULL, NULL, ?2),
        ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26, ?27)
"""
"""Takes `changing_values` and then `lasting_values`."""

UPDATE_TRANSFER = """
    UPDATE transfer SET
        legs = ?1, updated_at = ?2, due_at = ?3, status = ?4, version = ?5, revision = ?6, attempts = ?7, fencing = ?8,
        decision = ?9, failure = ?10, needs_person = ?11, post_attempt = ?12, void_attempt = ?13,
        ledger_timestamp = ?14, asked_core = ?15,
        asked_since = CASE WHEN ?15 IS NULL THEN NULL WHEN asked_core = ?15 THEN asked_since ELSE ?2 END
    WHERE id = ?16
"""
"""Takes `changing_values`. A core that already owed an answer keeps the time since when it does."""

SELECT_TRANSFER = f"SELECT {TRANSFER_COLUMNS} FROM transfer WHERE id = ?"
SELECT_CLAIM = "SELECT ?1, transfer_id, fingerprint FROM transfer_key WHERE owner = ?2 AND key = ?3"
SELECT_USE = "SELECT ?1, units FROM daily_use WHERE owner = ?2 AND asset = ?3 AND day = ?4"
INSERT_CLAIM = "INSERT INTO transfer_key (owner, key, transfer_id, fingerprint) VALUES (?, ?, ?, ?)"
INSERT_EVENT = "INSERT INTO transfer_event (sequence, transfer_id, version, status, at, code) VALUES (?, ?, ?, ?, ?, ?)"
WRITE_USE = """
    INSERT INTO daily_use (owner, asset, day, units) VALUES (?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET units = excluded.units
"""
RAISE_LEDGER_SEEN = "UPDATE ledger_seen SET timestamp = ?1 WHERE timestamp < ?1"
SELECT_COUNTERS = """
    SELECT coalesce((SELECT max(sequence) FROM transfer_event), 0), coalesce((SELECT max(id) FROM transfer), 0),
        (SELECT timestamp FROM ledger_seen)
"""

# Partial indexes are named, so that a statement that cannot use its index fails instead of reading all transfers.
IS_OPEN = "status IN ('REQUESTING', 'PENDING')"
SELECT_EVENTS = (
    "SELECT transfer_id, version, status, at, code, ?1 FROM transfer_event WHERE transfer_id = ?2 ORDER BY version"
)
SELECT_FEED = (
    "SELECT transfer_id, version, status, at, code, sequence FROM transfer_event"
    " WHERE sequence > ? ORDER BY sequence LIMIT ?"
)
CREATE_FEED_READER = """
    CREATE TABLE feed_reader (reader TEXT PRIMARY KEY, position INTEGER NOT NULL) STRICT, WITHOUT ROWID
"""
SELECT_READER = "SELECT position FROM feed_reader WHERE reader = ?"
MOVE_READER = """
    INSERT INTO feed_reader (reader, position) VALUES (?, ?)
    ON CONFLICT (reader) DO UPDATE SET position = excluded.position WHERE position < excluded.position
"""
SELECT_DUE = f"""
    SELECT {TRANSFER_COLUMNS} FROM transfer INDEXED BY transfer_due
    WHERE {IS_OPEN} AND due_at <= ? ORDER BY due_at, id LIMIT ?
"""
LEASE_DUE = "UPDATE transfer SET due_at = ? WHERE id = ?"
MAKE_DUE = f"UPDATE transfer INDEXED BY transfer_due SET due_at = ?1 WHERE {IS_OPEN} AND due_at > ?1"
COUNT_OPEN = f"SELECT count(*) FROM transfer INDEXED BY transfer_due WHERE {IS_OPEN}"
SELECT_SUCCESS = f"SELECT {TRANSFER_COLUMNS} FROM transfer WHERE status = ? AND id > ? ORDER BY id LIMIT ?"
SELECT_BY_STATUS = f"""
    SELECT {TRANSFER_COLUMNS} FROM transfer INDEXED BY transfer_status
    WHERE status <> 'SUCCESS' AND status = ? AND id > ? ORDER BY id LIMIT ?
"""
SELECT_STUCK = f"""
    SELECT {TRANSFER_COLUMNS} FROM transfer INDEXED BY transfer_status
    WHERE status <> 'SUCCESS' AND {IS_OPEN} AND (created_at < ? OR needs_person IS NOT NULL)
    ORDER BY created_at, id LIMIT ?
"""
SUMMARISE_OPEN = f"""
    SELECT status, needs_person, count(*), min(created_at) FROM transfer INDEXED BY transfer_status
    WHERE status <> 'SUCCESS' AND {IS_OPEN} GROUP BY status, needs_person
"""
SUMMARISE_ASKED = """
    SELECT asked_core, min(asked_since) FROM transfer INDEXED BY transfer_asked
    WHERE asked_core IS NOT NULL GROUP BY asked_core
"""
SELECT_HISTORY = f"""
    SELECT {TRANSFER_COLUMNS}, accept_number FROM transfer INDEXED BY transfer_history
    WHERE owner = ?1 AND accept_number BETWEEN ?2 AND ?3
        AND (?4 = '' OR instr(?4, status) > 0)
        AND (?5 IS NULL OR asset = ?5)
        AND (?6 IS NULL OR (?7 IS NOT 'in' AND source_type = ?6) OR (?7 IS NOT 'out' AND target_type = ?6))
        AND (?8 IS NULL OR created_at >= ?8)
        AND (?9 IS NULL OR created_at < ?9)
    ORDER BY accept_number DESC LIMIT ?10
"""
SELECT_FLOOR = """
    SELECT accept_number FROM transfer INDEXED BY transfer_history
    WHERE owner = ? AND accept_number <= ? ORDER BY accept_number DESC LIMIT 1 OFFSET ?
"""
SELECT_REGISTERED = "SELECT ?1, number FROM registered_account WHERE owner = ?2 AND type = ?3 AND asset = ?4"
SELECT_OWNER_REGISTERED = "SELECT number, type, asset FROM registered_account WHERE owner = ? ORDER BY number"
SELECT_NUMBER = "SELECT number, owner, type, asset FROM registered_account WHERE number = ?"
REGISTER = "INSERT INTO registered_account (owner, type, asset) VALUES (?, ?, ?)"
# The holder's own node, else one never used, else the one whose lease ended longest ago.
SELECT_NODE = """
    SELECT coalesce(
        (SELECT worker FROM worker_lease WHERE holder = ?1),
        (SELECT count(*) FROM worker_lease HAVING count(*) < ?2),
        (SELECT worker FROM worker_lease WHERE until_ms <= ?3 ORDER BY until_ms, worker LIMIT 1)
    )
"""
LEASE_NODE = """
    INSERT INTO worker_lease (worker, holder, until_ms) VALUES (?, ?, ?)
    ON CONFLICT (worker) DO UPDATE SET holder = excluded.holder, until_ms = excluded.until_ms
"""
