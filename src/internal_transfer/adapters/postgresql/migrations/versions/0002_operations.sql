-- What operators decide. `ports/audit_chain.py` says how the digest of an entry is computed.
CREATE TABLE operations_pin (
    name text PRIMARY KEY,
    value text NOT NULL
);

CREATE TABLE operations_policy (
    version integer PRIMARY KEY,
    body text NOT NULL,
    audit bigint NOT NULL
);

CREATE TABLE operations_audit (
    number bigint PRIMARY KEY,
    at bigint NOT NULL,
    actor text NOT NULL,
    action text NOT NULL,
    subject text NOT NULL,
    reason text NOT NULL,
    outcome text NOT NULL,
    evidence text NOT NULL,
    previous text NOT NULL,
    digest text NOT NULL
);
CREATE INDEX operations_audit_subject ON operations_audit (subject, action);

-- One row, which every append locks: the number and digest of the newest entry, so that a missing end is noticed.
CREATE TABLE operations_audit_head (
    one integer PRIMARY KEY CHECK (one = 1),
    number bigint NOT NULL,
    digest text NOT NULL
);
INSERT INTO operations_audit_head VALUES (1, 0, repeat('0', 64));

CREATE TABLE operations_api_key (
    key text PRIMARY KEY,
    secret text NOT NULL,
    passphrase_hash text NOT NULL,
    owner text NOT NULL,
    tier text NOT NULL,
    created_at bigint NOT NULL,
    revoked boolean NOT NULL
);

CREATE TABLE operations_report (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at bigint NOT NULL,
    clean boolean NOT NULL,
    items text NOT NULL
);
