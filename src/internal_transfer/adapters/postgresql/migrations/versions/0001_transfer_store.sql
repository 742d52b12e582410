-- The transfer store. Times are wall-clock milliseconds; amounts and sums are whole numbers of smallest units.
--
-- Everything locks in the same order, so that no two calls can deadlock: owners (advisory), transfers by id, daily sums
-- by owner, asset and day, a slot of `ledger_seen`. The functions rely on READ COMMITTED: a statement after a lock sees
-- what the last holder of the lock has committed. The planner is made to use indexes, because batches are small, and
-- because a plan made while the tables were empty is kept while they grow.

-- The step of the migrations that this schema is at, and the oldest step whose release works on it.
CREATE TABLE schema_version (
    one integer PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    step integer NOT NULL,
    runs_from integer NOT NULL
);
INSERT INTO schema_version (step, runs_from) VALUES (1, 1);

-- Numbers commits. A number is drawn after the locks, so for one owner, or one transfer, it rises in commit order.
CREATE SEQUENCE commit_number;

-- `accept_number` is the number of the accepting commit times 4096, plus the place in its batch.
-- `asked_core` and `asked_since` say which trading core owes an answer, and since when.
CREATE TABLE transfer (
    id bigint PRIMARY KEY,
    accept_number bigint NOT NULL,
    owner text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    source_owner text COLLATE "C" NOT NULL,
    source_type text COLLATE "C" NOT NULL,
    target_owner text COLLATE "C" NOT NULL,
    target_type text COLLATE "C" NOT NULL,
    asset text COLLATE "C" NOT NULL,
    amount numeric(39, 0) NOT NULL CHECK (amount > 0),
    memo text,
    created_at bigint NOT NULL,
    limit_day integer NOT NULL,
    legs text NOT NULL,
    updated_at bigint NOT NULL,
    due_at bigint NOT NULL,
    status text COLLATE "C" NOT NULL CHECK (status IN ('REQUESTING', 'PENDING', 'SUCCESS', 'FAILED')),
    version integer NOT NULL,
    revision integer NOT NULL,
    attempts integer NOT NULL,
    fencing boolean NOT NULL,
    decision text,
    failure text,
    needs_person text,
    post_attempt bigint NOT NULL,
    void_attempt bigint NOT NULL,
    ledger_timestamp bigint NOT NULL,
    asked_core text,
    asked_since bigint
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);
CREATE UNIQUE INDEX transfer_history ON transfer (owner, accept_number);
CREATE INDEX transfer_due ON transfer (due_at, id) WHERE status IN ('REQUESTING', 'PENDING');
CREATE INDEX transfer_status ON transfer (status, id) WHERE status <> 'SUCCESS';

-- What an idempotency key stands for. Never archived, never partitioned by time.
CREATE TABLE transfer_key (
    owner text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    transfer_id bigint NOT NULL,
    fingerprint bytea NOT NULL,
    PRIMARY KEY (owner, key)
);

-- Events, by the number of their commit and their place in it (from 1).
CREATE TABLE transfer_event (
    commit bigint NOT NULL,
    place integer NOT NULL CHECK (place BETWEEN 1 AND 4095),
    transfer_id bigint NOT NULL,
    version integer NOT NULL,
    status text COLLATE "C" NOT NULL,
    at bigint NOT NULL,
    code text,
    PRIMARY KEY (commit, place)
);
CREATE UNIQUE INDEX transfer_event_version ON transfer_event (transfer_id, version);

-- One row for each commit that has events. Commits do not become visible in the order of their numbers. So readers go by
-- `turn`, which a reader gives, under a lock, to the commits that it sees. The number of an event in the feed is the turn
-- times 4096, plus its place. So the feed writes one small row per commit, however many events that has.
CREATE TABLE feed_commit (
    commit bigint PRIMARY KEY,
    turn bigint
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500);
CREATE UNIQUE INDEX feed_commit_turn ON feed_commit (turn) WHERE turn IS NOT NULL;
CREATE INDEX feed_commit_waiting ON feed_commit (commit) WHERE turn IS NULL;

CREATE TABLE feed_reader (
    reader text PRIMARY KEY,
    position bigint NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE daily_use (
    owner text COLLATE "C" NOT NULL,
    asset text COLLATE "C" NOT NULL,
    day integer NOT NULL,
    units numeric(39, 0) NOT NULL CHECK (units >= 0),
    PRIMARY KEY (owner, asset, day)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02);

CREATE TABLE registered_account (
    number bigint PRIMARY KEY,
    owner text COLLATE "C" NOT NULL,
    type text COLLATE "C" NOT NULL,
    asset text COLLATE "C" NOT NULL,
    UNIQUE (owner, type, asset)
);

CREATE TABLE worker_lease (
    worker integer PRIMARY KEY CHECK (worker BETWEEN 0 AND 1023),
    holder text NOT NULL UNIQUE,
    until_ms bigint NOT NULL
);

-- The largest ledger timestamp on record is the largest of these. There are many rows, because all commits of all
-- processes would wait for each other on a single one.
CREATE TABLE ledger_seen (
    slot integer PRIMARY KEY,
    timestamp bigint NOT NULL
) WITH (fillfactor = 10);
INSERT INTO ledger_seen SELECT slot, 0 FROM generate_series(0, 63) AS slot;

-- Accepts transfers, among which no key and no id repeats. Returns a letter for each place in the batch: 'A' accepted,
-- 'K' key taken, 'I' id taken, 'L' daily limit exceeded, with the units that are left in `rests`.
CREATE FUNCTION accept_transfers(
    ids bigint[], owners text[], keys text[], fingerprints bytea[], source_owners text[], source_types text[],
    target_owners text[], target_types text[], assets text[], amounts numeric[], memos text[], created bigint[],
    days integer[], all_legs text[], updated bigint[], due bigint[], limits numeric[]
) RETURNS TABLE (outcomes text, rests text[]) LANGUAGE plpgsql SET search_path FROM CURRENT
    SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
    item record;
    number bigint;
    used numeric;
    group_owner text;
    group_asset text;
    group_day integer;
    outcome text[] := array_fill('A'::text, ARRAY[cardinality(ids)]);
    rest text[] := array_fill(NULL::text, ARRAY[cardinality(ids)]);
    refused integer := 0;
    written integer;
BEGIN
    -- One owner's accepts follow each other to the end of their commits: the look-ups below see all that came before.
    PERFORM pg_advisory_xact_lock(1953396070, hash)
        FROM (SELECT DISTINCT hashtext(owner) AS hash FROM unnest(owners) AS owner ORDER BY hash) AS locks;
    FOR item IN
        SELECT i.place, i.owner, i.asset, i.day, i.amount, i.most,
            -- Not EXISTS, which may be planned as a hash of the whole table.
            coalesce((SELECT true FROM transfer_key k WHERE k.owner = i.owner AND k.key = i.key), false) AS key_taken,
            coalesce((SELECT true FROM transfer t WHERE t.id = i.id), false) AS id_taken,
            coalesce((SELECT units FROM daily_use u WHERE u.owner = i.owner AND u.asset = i.asset AND u.day = i.day), 0)
                AS used
        FROM unnest(ids, owners, keys, assets, days, amounts, limits) WITH ORDINALITY
            AS i (id, owner, key, asset, day, amount, most, place)
        ORDER BY i.owner, i.asset, i.day, i.place
    LOOP
        IF group_owner IS DISTINCT FROM item.owner OR group_asset <> item.asset OR group_day <> item.day THEN
            group_owner := item.owner; group_asset := item.asset; group_day := item.day;
            used := item.used;
        END IF;
        IF item.key_taken THEN
            outcome[item.place] := 'K'; refused := refused + 1;
        ELSIF item.id_taken THEN
            outcome[item.place] := 'I'; refused := refused + 1;
        ELSIF item.most - used < item.amount THEN
            outcome[item.place] := 'L'; refused := refused + 1;
            rest[item.place] := greatest(item.most - used, 0)::text;
        ELSE
            used := used + item.amount;
        END IF;
    END LOOP;
    IF refused < cardinality(ids) THEN
        number := nextval('commit_number');
        INSERT INTO transfer
            SELECT i.id, number * 4096 + i.place, i.owner, i.key, i.source_owner, i.source_type, i.target_owner,
                i.target_type, i.asset, i.amount, i.memo, i.created, i.day, i.legs, i.updated, i.due, 'REQUESTING',
                1, 1, 0, false, NULL, NULL, NULL, 0, 0, 0
            FROM unnest(ids, owners, keys, source_owners, source_types, target_owners, target_types, assets, amounts,
                memos, created, days, all_legs, updated, due, outcome) WITH ORDINALITY
                AS i (id, owner, key, source_owner, source_type, target_owner, target_type, asset, amount,
                    memo, created, day, legs, updated, due, outcome, place)
            WHERE i.outcome = 'A' ORDER BY i.id
            ON CONFLICT (id) DO NOTHING;
        GET DIAGNOSTICS written = ROW_COUNT;
        IF written <> cardinality(ids) - refused THEN
            RAISE EXCEPTION 'an id was taken meanwhile' USING ERRCODE = 'serialization_failure';
        END IF;
        INSERT INTO transfer_key
            SELECT i.owner, i.key, i.id, i.fingerprint
            FROM unnest(owners, keys, ids, fingerprints, outcome) AS i (owner, key, id, fingerprint, outcome)
            WHERE i.outcome = 'A';
        INSERT INTO transfer_event
            SELECT number, i.place, i.id, 1, 'REQUESTING', i.created, NULL
            FROM unnest(ids, created, outcome) WITH ORDINALITY AS i (id, created, outcome, place)
            WHERE i.outcome = 'A' ORDER BY i.place;
        INSERT INTO feed_commit VALUES (number);
        INSERT INTO daily_use AS u
            SELECT i.owner, i.asset, i.day, sum(i.amount)
            FROM unnest(owners, assets, days, amounts, outcome) AS i (owner, asset, day, amount, outcome)
            WHERE i.outcome = 'A' GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
            ON CONFLICT (owner, asset, day) DO UPDATE SET units = u.units + excluded.units;
    END IF;
    outcomes := array_to_string(outcome, '');
    rests := rest;
    RETURN NEXT;
END
$$;

-- Records changes of different transfers; `legal` names the allowed pairs of statuses as 'before>after'. Returns the
-- ids whose expected revision was the recorded one.
CREATE FUNCTION record_transfers(
    ids bigint[], expected integer[], all_legs text[], updated bigint[], due bigint[], statuses text[],
    versions integer[], all_attempts integer[], fencings boolean[], decisions text[], failures text[], needs text[],
    post_attempts bigint[], void_attempts bigint[], timestamps bigint[], asked text[], legal text[]
) RETURNS bigint[] LANGUAGE plpgsql SET search_path FROM CURRENT
    SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
    number bigint;
    newest bigint;
    found bigint[];
    moved bigint[];
    failed bigint[];
    wrong text;
BEGIN
    PERFORM FROM transfer WHERE id = ANY (ids) ORDER BY id FOR UPDATE;
    SELECT array_agg(t.id), array_agg(t.id) FILTER (WHERE t.status <> i.status),
        array_agg(t.id) FILTER (WHERE t.status <> i.status AND i.status = 'FAILED'),
        max(i.timestamp),
        min(CASE
            WHEN t.status || '>' || i.status <> ALL (legal) THEN t.id || ': ' || t.status || ' -> ' || i.status
            WHEN i.version <> t.version + (t.status <> i.status)::integer THEN t.id || ': a wrong version'
        END)
        INTO found, moved, failed, newest, wrong
        FROM unnest(ids, expected, statuses, versions, timestamps) AS i (id, revision, status, version, timestamp)
        JOIN transfer t ON t.id = i.id AND t.revision = i.revision;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION '%', wrong USING ERRCODE = 'IT001';
    END IF;
    IF found IS NULL THEN
        RETURN '{}';
    END IF;
    UPDATE transfer t SET
        legs = i.legs, updated_at = i.updated, due_at = i.due, status = i.status, version = i.version,
        revision = t.revision + 1, attempts = i.attempts, fencing = i.fencing, decision = i.decision,
        failure = i.failure, needs_person = i.need, post_attempt = i.post_attempt, void_attempt = i.void_attempt,
        ledger_timestamp = i.timestamp, asked_core = i.asked,
        asked_since = CASE
            WHEN i.asked IS NULL THEN NULL WHEN t.asked_core = i.asked THEN t.asked_since ELSE i.updated END
        FROM unnest(ids, all_legs, updated, due, statuses, versions, all_attempts, fencings, decisions, failures,
            needs, post_attempts, void_attempts, timestamps, asked)
            AS i (id, legs, updated, due, status, version, attempts, fencing, decision, failure,
                need, post_attempt, void_attempt, timestamp, asked)
        WHERE t.id = i.id AND t.id = ANY (found);
    IF moved IS NOT NULL THEN
        number := nextval('commit_number');
        INSERT INTO transfer_event
            SELECT number, i.place, i.id, i.version, i.status, i.updated, i.failure
            FROM unnest(ids, versions, statuses, updated, failures) WITH ORDINALITY
                AS i (id, version, status, updated, failure, place)
            WHERE i.id = ANY (moved) ORDER BY i.place;
        INSERT INTO feed_commit VALUES (number);
    END IF;
    IF failed IS NOT NULL THEN
        -- The share goes back to the day that it was taken from, which is the day of the id, not today.
        PERFORM FROM daily_use
            WHERE (owner, asset, day) IN (SELECT owner, asset, limit_day FROM transfer WHERE id = ANY (failed))
            ORDER BY owner, asset, day FOR UPDATE;
        UPDATE daily_use u SET units = u.units - back.units
            FROM (SELECT owner, asset, limit_day, sum(amount) AS units FROM transfer WHERE id = ANY (failed)
                GROUP BY 1, 2, 3) AS back
            WHERE (u.owner, u.asset, u.day) = (back.owner, back.asset, back.limit_day);
    END IF;
    IF newest > 0 THEN
        UPDATE ledger_seen SET timestamp = newest WHERE slot = pg_backend_pid() % 64 AND timestamp < newest;
    END IF;
    RETURN found;
END
$$;

-- Leases due transfers to the caller; skips rows that other transactions have locked.
CREATE FUNCTION claim_due_transfers(now_ms bigint, until_ms bigint, most integer)
RETURNS SETOF transfer LANGUAGE sql SET search_path FROM CURRENT AS $$
    WITH due AS MATERIALIZED (
        SELECT id, due_at FROM transfer
        WHERE status IN ('REQUESTING', 'PENDING') AND due_at <= now_ms
        ORDER BY due_at, id LIMIT most FOR UPDATE SKIP LOCKED
    ), leased AS (
        UPDATE transfer t SET due_at = until_ms FROM due WHERE t.id = due.id RETURNING t.*
    )
    SELECT leased.* FROM leased JOIN due USING (id) ORDER BY due.due_at, id
$$;

-- Returns events after a number in the feed. First gives a turn to each visible commit that has none.
CREATE FUNCTION read_feed(after bigint, most integer)
RETURNS TABLE (sequence bigint, transfer_id bigint, version integer, status text, at bigint, code text)
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    last bigint;
BEGIN
    IF EXISTS (SELECT FROM feed_commit WHERE turn IS NULL) THEN
        -- One at a time, to the end of its commit: turns become visible in their own order. A transfer's later commit
        -- has a larger number, and whoever sees it sees the earlier one, so turns keep the order of each transfer.
        PERFORM pg_advisory_xact_lock(1953396071, 'feed_commit'::regclass::oid::integer);
        SELECT coalesce(max(turn), 0) INTO last FROM feed_commit WHERE turn IS NOT NULL;
        UPDATE feed_commit c SET turn = last + waiting.place
            FROM (SELECT w.commit, row_number() OVER (ORDER BY w.commit) AS place
                FROM (SELECT f.commit FROM feed_commit f WHERE f.turn IS NULL ORDER BY f.commit LIMIT 10000) AS w
                ) AS waiting
            WHERE c.commit = waiting.commit;
    END IF;
    RETURN QUERY
        SELECT c.turn * 4096 + e.place, e.transfer_id, e.version, e.status, e.at, e.code
        FROM (SELECT f.commit, f.turn FROM feed_commit f WHERE f.turn >= after / 4096 ORDER BY f.turn LIMIT most + 1)
            AS c
        JOIN transfer_event e ON e.commit = c.commit
        WHERE c.turn * 4096 + e.place > after
        ORDER BY c.turn, e.place LIMIT most;
END
$$;

-- Numbers accounts that have no number yet, without gaps.
CREATE FUNCTION register_accounts(owners text[], types text[], assets text[])
RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1953396072, 'registered_account'::regclass::oid::integer);
    INSERT INTO registered_account
        SELECT (SELECT coalesce(max(number), 0) FROM registered_account) + row_number() OVER (ORDER BY min(i.place)),
            i.owner, i.type, i.asset
        FROM unnest(owners, types, assets) WITH ORDINALITY AS i (owner, type, asset, place)
        WHERE NOT EXISTS (SELECT FROM registered_account r
            WHERE (r.owner, r.type, r.asset) = (i.owner, i.type, i.asset))
        GROUP BY i.owner, i.type, i.asset;
END
$$;

-- Leases a node number: the holder's own, else one never used, else the one whose lease ended longest ago. Returns null
-- if all are leased.
CREATE FUNCTION lease_worker(wanted_by text, workers integer, now_ms bigint, until bigint)
RETURNS integer LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    chosen integer;
BEGIN
    PERFORM pg_advisory_xact_lock(1953396073, 'worker_lease'::regclass::oid::integer);
    SELECT coalesce(
        (SELECT worker FROM worker_lease WHERE holder = wanted_by),
        (SELECT count(*)::integer FROM worker_lease HAVING count(*) < workers),
        (SELECT worker FROM worker_lease WHERE until_ms <= now_ms ORDER BY until_ms, worker LIMIT 1)
    ) INTO chosen;
    IF chosen IS NOT NULL THEN
        INSERT INTO worker_lease VALUES (chosen, wanted_by, until)
            ON CONFLICT (worker) DO UPDATE SET holder = excluded.holder, until_ms = excluded.until_ms;
    END IF;
    RETURN chosen;
END
$$;

-- Guards against changes by hand and by future code. None of these triggers fires in normal operation.
CREATE FUNCTION refuse_rewriting() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%: this is never changed and never removed', TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation';
END
$$;
CREATE TRIGGER transfer_final BEFORE UPDATE ON transfer FOR EACH ROW
    WHEN (OLD.status IN ('SUCCESS', 'FAILED')) EXECUTE FUNCTION refuse_rewriting();
CREATE TRIGGER transfer_kept BEFORE DELETE ON transfer FOR EACH ROW EXECUTE FUNCTION refuse_rewriting();
CREATE TRIGGER transfer_not_emptied BEFORE TRUNCATE ON transfer EXECUTE FUNCTION refuse_rewriting();
CREATE TRIGGER transfer_key_kept BEFORE UPDATE OR DELETE ON transfer_key FOR EACH ROW
    EXECUTE FUNCTION refuse_rewriting();
CREATE TRIGGER transfer_key_not_emptied BEFORE TRUNCATE ON transfer_key EXECUTE FUNCTION refuse_rewriting();
CREATE TRIGGER transfer_event_kept BEFORE UPDATE OR DELETE ON transfer_event FOR EACH ROW
    EXECUTE FUNCTION refuse_rewriting();
CREATE TRIGGER transfer_event_not_emptied BEFORE TRUNCATE ON transfer_event EXECUTE FUNCTION refuse_rewriting();
CREATE TRIGGER registered_account_kept BEFORE UPDATE OR DELETE ON registered_account FOR EACH ROW
    EXECUTE FUNCTION refuse_rewriting();
CREATE TRIGGER registered_account_not_emptied BEFORE TRUNCATE ON registered_account EXECUTE FUNCTION refuse_rewriting();
