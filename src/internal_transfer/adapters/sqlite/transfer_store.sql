-- The embedded transfer store, version 1. Amounts and sums are 16-byte big-endian blobs: SQLite's integers end at
-- 63 bits and overflow into floats. Times are wall-clock milliseconds.

-- `accept_number` is the feed number of the transfer's first event, so it rises in the order of commits.
-- `asked_core` is the trading core that owes an answer, `asked_since` the time since when it does.
CREATE TABLE transfer (
    id INTEGER PRIMARY KEY,
    accept_number INTEGER NOT NULL,
    owner TEXT NOT NULL,
    key TEXT NOT NULL,
    source_owner TEXT NOT NULL,
    source_type TEXT NOT NULL,
    target_owner TEXT NOT NULL,
    target_type TEXT NOT NULL,
    asset TEXT NOT NULL,
    amount BLOB NOT NULL CHECK (length(amount) = 16),
    memo TEXT,
    created_at INTEGER NOT NULL,
    legs TEXT NOT NULL,
    updated_at INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('REQUESTING', 'PENDING', 'SUCCESS', 'FAILED')),
    version INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    fencing INTEGER NOT NULL,
    decision TEXT,
    failure TEXT,
    needs_person TEXT,
    post_attempt INTEGER NOT NULL,
    void_attempt INTEGER NOT NULL,
    ledger_timestamp INTEGER NOT NULL,
    asked_core TEXT,
    asked_since INTEGER
) STRICT;

-- A transfer that succeeds within one commit is written only to the first of these; the others leave it out.
CREATE UNIQUE INDEX transfer_history ON transfer (owner, accept_number);
CREATE INDEX transfer_due ON transfer (due_at, id) WHERE status IN ('REQUESTING', 'PENDING');
CREATE INDEX transfer_status ON transfer (status, id, created_at, needs_person) WHERE status <> 'SUCCESS';
CREATE INDEX transfer_asked ON transfer (asked_core, asked_since) WHERE asked_core IS NOT NULL;

CREATE TABLE transfer_key (
    owner TEXT NOT NULL,
    key TEXT NOT NULL,
    transfer_id INTEGER NOT NULL,
    fingerprint BLOB NOT NULL,
    PRIMARY KEY (owner, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE transfer_event (
    sequence INTEGER PRIMARY KEY,
    transfer_id INTEGER NOT NULL,
    version INTEGER NOT NULL,
    status TEXT NOT NULL,
    at INTEGER NOT NULL,
    code TEXT,
    UNIQUE (transfer_id, version)
) STRICT;

CREATE TABLE daily_use (
    owner TEXT NOT NULL,
    asset TEXT NOT NULL,
    day INTEGER NOT NULL,
    units BLOB NOT NULL CHECK (length(units) = 16),
    PRIMARY KEY (owner, asset, day)
) STRICT, WITHOUT ROWID;

CREATE TABLE registered_account (
    number INTEGER PRIMARY KEY,
    owner TEXT NOT NULL,
    type TEXT NOT NULL,
    asset TEXT NOT NULL,
    UNIQUE (owner, type, asset)
) STRICT;

CREATE TABLE worker_lease (
    worker INTEGER PRIMARY KEY CHECK (worker BETWEEN 0 AND 1023),
    holder TEXT NOT NULL UNIQUE,
    until_ms INTEGER NOT NULL
) STRICT;

-- One row: the largest ledger timestamp on record. An index to find it would be written with every transfer.
CREATE TABLE ledger_seen (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    timestamp INTEGER NOT NULL
) STRICT;
INSERT INTO ledger_seen VALUES (1, 0);

-- Guards against changes by hand and by future code. None of these runs when a transfer is inserted.
CREATE TRIGGER transfer_final BEFORE UPDATE ON transfer WHEN OLD.status IN ('SUCCESS', 'FAILED')
BEGIN
    SELECT RAISE(ABORT, 'a final transfer never changes');
END;
CREATE TRIGGER transfer_kept BEFORE DELETE ON transfer
BEGIN
    SELECT RAISE(ABORT, 'a transfer is never removed');
END;
CREATE TRIGGER transfer_key_fixed BEFORE UPDATE ON transfer_key
BEGIN
    SELECT RAISE(ABORT, 'a key never changes');
END;
CREATE TRIGGER transfer_key_kept BEFORE DELETE ON transfer_key
BEGIN
    SELECT RAISE(ABORT, 'a key is never removed');
END;
CREATE TRIGGER transfer_event_fixed BEFORE UPDATE ON transfer_event
BEGIN
    SELECT RAISE(ABORT, 'an event never changes');
END;
CREATE TRIGGER transfer_event_kept BEFORE DELETE ON transfer_event
BEGIN
    SELECT RAISE(ABORT, 'an event is never removed');
END;
CREATE TRIGGER registered_account_fixed BEFORE UPDATE ON registered_account
BEGIN
    SELECT RAISE(ABORT, 'a registered account never changes');
END;
CREATE TRIGGER registered_account_kept BEFORE DELETE ON registered_account
BEGIN
    SELECT RAISE(ABORT, 'a registered account is never removed');
END;
