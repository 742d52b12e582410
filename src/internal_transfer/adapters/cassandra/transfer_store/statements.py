"""Every statement of the transfer store on Cassandra or ScyllaDB."""

# ruff: noqa: S608 - built from constants only.

from internal_transfer.ports.transfer_fields import TRANSFER_COLUMNS

CHANGING_COLUMNS = (
    "legs, updated_at, due_at, status, version, revision, attempts, fencing, decision, failure, needs_person, "
    "post_attempt, void_attempt, ledger_timestamp, due_place, asked_core, asked_since, writer"
)
"""The columns that a change may write, in the order of `changing_values`."""

LASTING_COLUMNS = (
    "owner, key, source_owner, source_type, target_owner, target_type, asset, amount, memo, created_at, "
    "accept_number, claim_attempt"
)
"""The columns that are written once, in the order of `lasting_values`."""

RECORD_COLUMNS = f"{TRANSFER_COLUMNS}, accept_number, claim_attempt, due_place, asked_core, asked_since, writer"
"""The columns that are read, in the order of `record_of`."""

_COLUMNS = f"{CHANGING_COLUMNS}, {LASTING_COLUMNS}"
_SET = ", ".join(f"{column} = ?" for column in CHANGING_COLUMNS.split(", "))
_MARKS = ", ".join("?" for _ in _COLUMNS.split(", "))

SELECT_RECORDS = f"SELECT DISTINCT {RECORD_COLUMNS} FROM transfer WHERE id IN ?"
SELECT_RECORD = f"SELECT DISTINCT {RECORD_COLUMNS} FROM transfer WHERE id = ?"
SELECT_EVENTS = "SELECT id, event, event_status, event_at, event_code, sequence FROM transfer WHERE id IN ?"
SELECT_EVENTS_ONE = "SELECT id, event, event_status, event_at, event_code, sequence FROM transfer WHERE id = ?"
INSERT_TRANSFER = (
    f"INSERT INTO transfer (id, event, event_status, event_at, {_COLUMNS})"
    f" VALUES (?, 1, 'REQUESTING', ?, {_MARKS}) IF NOT EXISTS"
)
ADVANCE_TRANSFER = (
    f"UPDATE transfer SET {_SET}, event_status = ?, event_at = ?, event_code = ? WHERE id = ? AND event = ?"
    " IF revision = ? AND due_place = ?"
)
UPDATE_TRANSFER = f"UPDATE transfer SET {_SET} WHERE id = ? IF revision = ? AND due_place = ?"
LEASE_TRANSFER = (
    "UPDATE transfer SET due_at = ?, due_place = ?, leased_by = ? WHERE id = ?"
    " IF revision = ? AND due_at = ? AND due_place = ?"
)
SELECT_LEASED_BY = "SELECT DISTINCT leased_by FROM transfer WHERE id = ?"
NUMBER_EVENT = "UPDATE transfer SET sequence = ? WHERE id = ? AND event = ?"

SELECT_KEY = (
    "SELECT attempt, transfer_id, accept_number, fingerprint, daily_units, body"
    " FROM transfer_key WHERE owner = ? AND key = ?"
)
CLAIM_KEY = (
    "INSERT INTO transfer_key (owner, key, attempt, transfer_id, accept_number, fingerprint, daily_units, body)"
    " VALUES (?, ?, 0, ?, ?, ?, ?, ?) IF NOT EXISTS"
)
CLAIM_FREE_KEY = (
    "UPDATE transfer_key"
    " SET attempt = ?, transfer_id = ?, accept_number = ?, fingerprint = ?, daily_units = ?, body = ?"
    " WHERE owner = ? AND key = ? IF attempt = ? AND transfer_id = null"
)
FREE_KEY = (
    "UPDATE transfer_key SET transfer_id = null, body = null"
    " WHERE owner = ? AND key = ? IF attempt = ? AND transfer_id = ?"
)

SELECT_USE = "SELECT revision, total FROM daily_use WHERE owner = ? AND asset = ? AND day = ? LIMIT 1"
SELECT_USE_AND_VERDICTS = (
    "SELECT revision, total, key, attempt, verdict, remaining"
    " FROM daily_use WHERE owner = ? AND asset = ? AND day = ? LIMIT ?"
)
SELECT_VERDICTS = (
    "SELECT key, attempt, verdict, remaining FROM daily_use WHERE owner = ? AND asset = ? AND day = ? AND key IN ?"
)
MOVE_USE = "UPDATE daily_use SET revision = ?, total = ? WHERE owner = ? AND asset = ? AND day = ? IF revision = ?"
PUT_VERDICT = (
    "INSERT INTO daily_use (owner, asset, day, key, attempt, units, verdict, remaining) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
PUT_REFUSAL = PUT_VERDICT + " USING TTL 604800"
"""A refusal is kept for a week, so that a user who keeps trying does not fill the table."""

SELECT_BUCKETS = "SELECT bucket FROM agenda_bucket WHERE agenda = ?"
ADD_BUCKET = "INSERT INTO agenda_bucket (agenda, bucket) VALUES (?, ?) IF NOT EXISTS"
DROP_BUCKET = "DELETE FROM agenda_bucket WHERE agenda = ? AND bucket = ? IF EXISTS"

INSERT_DUE = "INSERT INTO transfer_due (bucket, shard, place, transfer_id, owner, key) VALUES (?, ?, ?, ?, ?, ?)"
SELECT_DUE = (
    "SELECT place, transfer_id, owner, key FROM transfer_due WHERE bucket = ? AND shard = ? AND place <= ? LIMIT ?"
)
DELETE_DUE = "DELETE FROM transfer_due WHERE bucket = ? AND shard = ? AND place = ? AND transfer_id = ?"

INSERT_MARKER = "INSERT INTO feed_marker (bucket, shard, place, transfer_id, event) VALUES (?, ?, ?, ?, ?)"
SELECT_MARKERS = (
    "SELECT place, transfer_id, event FROM feed_marker WHERE bucket = ? AND shard = ? AND place <= ? LIMIT ?"
)
DELETE_MARKER = "DELETE FROM feed_marker WHERE bucket = ? AND shard = ? AND place = ? AND transfer_id = ? AND event = ?"

SELECT_FEED_HEAD = "SELECT last, settled FROM feed WHERE bucket = ? LIMIT 1"
SELECT_FEED = (
    "SELECT transfer_id, event, status, at, code, sequence FROM feed"
    " WHERE bucket = ? AND sequence > ? AND sequence <= ? LIMIT ?"
)
MOVE_FEED = "UPDATE feed SET last = ?, settled = ? WHERE bucket = ? IF last = ?"
INSERT_FEED = "INSERT INTO feed (bucket, sequence, transfer_id, event, status, at, code) VALUES (?, ?, ?, ?, ?, ?, ?)"

SELECT_READER = "SELECT position FROM reader WHERE name = ?"
ADD_READER = "INSERT INTO reader (name, position) VALUES (?, ?) IF NOT EXISTS"
MOVE_READER = "UPDATE reader SET position = ? WHERE name = ? IF position < ?"

INSERT_HISTORY = "INSERT INTO history (owner, hour, number, transfer_id) VALUES (?, ?, ?, ?)"
DELETE_HISTORY = "DELETE FROM history WHERE owner = ? AND hour = ? AND number = ?"
SELECT_HISTORY = (
    "SELECT number, transfer_id FROM history WHERE owner = ? AND hour = ? AND number >= ? AND number <= ? LIMIT ?"
)
INSERT_HISTORY_HOUR = "INSERT INTO history_hour (owner, hour) VALUES (?, ?)"
SELECT_HISTORY_HOURS = "SELECT hour FROM history_hour WHERE owner = ? AND hour <= ? LIMIT ?"

INSERT_FINAL = "INSERT INTO transfer_final (status, hour, shard, transfer_id) VALUES (?, ?, ?, ?)"
SELECT_FINAL = (
    "SELECT transfer_id FROM transfer_final WHERE status = ? AND hour = ? AND shard = ? AND transfer_id > ? LIMIT ?"
)
INSERT_FINAL_HOUR = "INSERT INTO final_hour (status, hour) VALUES (?, ?)"
SELECT_FINAL_HOURS = "SELECT hour FROM final_hour WHERE status = ? AND hour >= ? LIMIT ?"

SELECT_REGISTERED = "SELECT number, type, asset FROM registered_account WHERE owner = ?"
REGISTER = "INSERT INTO registered_account (owner, type, asset, number) VALUES (?, ?, ?, ?) IF NOT EXISTS"
SELECT_LAST_NUMBER = "SELECT last FROM account_number WHERE bucket = ? LIMIT 1"
MOVE_LAST_NUMBER = "UPDATE account_number SET last = ? WHERE bucket = ? IF last = ?"
INSERT_NUMBER = "INSERT INTO account_number (bucket, number, owner, type, asset) VALUES (?, ?, ?, ?, ?)"
SELECT_NUMBER = "SELECT number, owner, type, asset FROM account_number WHERE bucket = ? AND number = ?"

SELECT_NODES = "SELECT worker, holder, until_ms FROM worker_lease WHERE one = 1"
ADD_NODE = "INSERT INTO worker_lease (one, worker, holder, until_ms) VALUES (1, ?, ?, ?) IF NOT EXISTS"
MOVE_NODE = (
    "UPDATE worker_lease SET holder = ?, until_ms = ? WHERE one = 1 AND worker = ? IF holder = ? AND until_ms = ?"
)

SELECT_LEDGER_SEEN = "SELECT timestamp FROM ledger_seen WHERE one = 1"
RAISE_LEDGER_SEEN = "UPDATE ledger_seen USING TIMESTAMP ? SET timestamp = ? WHERE one = 1"

ALL = [
    text
    for name, text in list(globals().items())
    if name.isupper() and not name.startswith("_") and not name.endswith("COLUMNS")
]
"""Every statement above, prepared at the start."""
