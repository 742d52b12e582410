"""Every statement of the PostgreSQL transfer store; the migrations create the functions that they call."""

# ruff: noqa: S608 - built from constants and the schema's name, which is checked to be an identifier.

from internal_transfer.ports.transfer_fields import TRANSFER_COLUMNS

_COLUMNS = TRANSFER_COLUMNS.replace("amount", "amount::text")
_IS_OPEN = "status IN ('REQUESTING', 'PENDING')"


class Statements:
    """The statements for the tables of one schema."""

    def __init__(self, schema: str) -> None:
        in_schema = f'"{schema}".'
        transfer = f"{in_schema}transfer"
        select = f"SELECT {_COLUMNS} FROM {transfer}"
        self.by_keys = f"""
            SELECT {", ".join("t." + column for column in _COLUMNS.split(", "))}, k.fingerprint
            FROM unnest($1::text[], $2::text[]) AS asked (owner, key)
            JOIN {in_schema}transfer_key k ON k.owner = asked.owner AND k.key = asked.key
            JOIN {transfer} t ON t.id = k.transfer_id
        """
        # `accept_transfers` holds these locks until its commit.
        self.wait_for_accepts = """
            SELECT pg_advisory_xact_lock_shared(1953396070, hash)
            FROM (SELECT DISTINCT hashtext(owner) AS hash FROM unnest($1::text[]) AS owner ORDER BY hash) AS locks
        """
        self.accept = f"""
            SELECT outcomes, rests FROM {in_schema}accept_transfers(
                $1::bigint[], $2::text[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::text[], $8::text[],
                $9::text[], $10::text[]::numeric[], $11::text[], $12::bigint[], $13::integer[], $14::text[],
                $15::bigint[], $16::bigint[], $17::text[]::numeric[])
        """
        self.record = f"""
            SELECT {in_schema}record_transfers(
                $1::bigint[], $2::integer[], $3::text[], $4::bigint[], $5::bigint[], $6::text[], $7::integer[],
                $8::integer[], $9::boolean[], $10::text[], $11::text[], $12::text[], $13::bigint[], $14::bigint[],
                $15::bigint[], $16::text[], $17::text[])
        """
        self.get = f"{select} WHERE id = ANY ($1::bigint[])"
        self.events = f"""
            SELECT transfer_id, version, status, at, code FROM {in_schema}transfer_event
            WHERE transfer_id = ANY ($1::bigint[]) ORDER BY transfer_id, version
        """
        self.lease_due = f"SELECT {_COLUMNS} FROM {in_schema}claim_due_transfers($1, $2, $3)"
        # Rows are locked by rising id here as everywhere, so that this cannot deadlock with a batch of changes.
        self.make_due = f"""
            WITH later AS MATERIALIZED (
                SELECT id FROM {transfer} WHERE {_IS_OPEN} AND due_at > $1 ORDER BY id FOR UPDATE
            )
            UPDATE {transfer} t SET due_at = $1 FROM later WHERE t.id = later.id
        """
        self.count_open = f"SELECT count(*) FROM {transfer} WHERE {_IS_OPEN}"
        # One statement has one snapshot: a transfer that commits later has an accept number above `until`.
        self.history = f"""
            WITH walk AS MATERIALIZED (
                SELECT coalesce($2::bigint, (SELECT max(accept_number) FROM {transfer} WHERE owner = $1), 0) AS until
            ), page AS (
                SELECT until, least(until, $3::bigint - 1) AS top FROM walk
            ), bounds AS MATERIALIZED (
                SELECT until, top, CASE WHEN $11::integer IS NULL THEN 0 ELSE coalesce((
                    SELECT accept_number FROM {transfer} WHERE owner = $1 AND accept_number <= top
                    ORDER BY accept_number DESC OFFSET $11 LIMIT 1), 0) END AS floor
                FROM page
            )
            SELECT found.*, bounds.until, bounds.floor FROM bounds LEFT JOIN LATERAL (
                SELECT {_COLUMNS}, accept_number FROM {transfer}
                WHERE owner = $1 AND accept_number BETWEEN bounds.floor AND bounds.top
                    AND ($4::text[] IS NULL OR status = ANY ($4))
                    AND ($5::text IS NULL OR asset = $5)
                    AND ($6::text IS NULL OR ($7::text IS DISTINCT FROM 'in' AND source_type = $6)
                        OR ($7 IS DISTINCT FROM 'out' AND target_type = $6))
                    AND ($8::bigint IS NULL OR created_at >= $8)
                    AND ($9::bigint IS NULL OR created_at < $9)
                ORDER BY accept_number DESC LIMIT $10
            ) AS found ON true ORDER BY found.accept_number DESC
        """
        # SUCCESS is read by the primary key, the other statuses by an index that leaves SUCCESS out.
        self.by_success = f"{select} WHERE status = $1 AND id > $2 ORDER BY id LIMIT $3"
        self.by_status = f"{select} WHERE status <> 'SUCCESS' AND status = $1 AND id > $2 ORDER BY id LIMIT $3"
        self.stuck = f"""
            {select} WHERE {_IS_OPEN} AND (created_at < $1 OR needs_person IS NOT NULL) ORDER BY created_at, id LIMIT $2
        """
        self.daily_used = f"SELECT units::text FROM {in_schema}daily_use WHERE owner = $1 AND asset = $2 AND day = $3"
        self.open_summary = f"""
            SELECT status, needs_person, asked_core, count(*), min(created_at), min(asked_since)
            FROM {transfer} WHERE {_IS_OPEN} GROUP BY status, needs_person, asked_core
        """
        self.feed = f"SELECT transfer_id, version, status, at, code, sequence FROM {in_schema}read_feed($1, $2)"
        self.reader_position = f"SELECT position FROM {in_schema}feed_reader WHERE reader = $1"
        self.move_reader = f"""
            INSERT INTO {in_schema}feed_reader AS r VALUES ($1, $2)
            ON CONFLICT (reader) DO UPDATE SET position = excluded.position WHERE r.position < excluded.position
        """
        self.find_registered = f"""
            SELECT r.number, r.owner, r.type, r.asset
            FROM unnest($1::text[], $2::text[], $3::text[]) AS asked (owner, type, asset)
            JOIN {in_schema}registered_account r
                ON r.owner = asked.owner AND r.type = asked.type AND r.asset = asked.asset
        """
        self.register = f"SELECT {in_schema}register_accounts($1, $2, $3)"
        self.registered = (
            f"SELECT number, owner, type, asset FROM {in_schema}registered_account WHERE owner = $1 ORDER BY number"
        )
        self.by_number = (
            f"SELECT number, owner, type, asset FROM {in_schema}registered_account WHERE number = ANY ($1::bigint[])"
        )
        self.lease_node = f"SELECT {in_schema}lease_worker($1, $2, $3, $4)"
        self.ledger_seen = f"SELECT max(timestamp) FROM {in_schema}ledger_seen"
