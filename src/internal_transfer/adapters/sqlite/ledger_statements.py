"""The tables of the embedded ledger, and every statement on them."""

# ruff: noqa: S608 - they are put together from constants only.

MIGRATIONS = (
    # Numbers of 128 bits are blobs of 16 bytes, most significant byte first, so that blobs sort as the numbers do.
    # The timestamp is the key of a row, so new rows are appended and a table is in the order of its history.
    """
    CREATE TABLE ledger_account(
        timestamp INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
        user_data_128 BLOB NOT NULL,
        user_data_64 INTEGER NOT NULL,
        user_data_32 INTEGER NOT NULL,
        ledger INTEGER NOT NULL,
        code INTEGER NOT NULL,
        flags INTEGER NOT NULL,
        debits_pending BLOB NOT NULL,
        debits_posted BLOB NOT NULL,
        credits_pending BLOB NOT NULL,
        credits_posted BLOB NOT NULL
    ) STRICT;
    CREATE TABLE ledger_transfer(
        timestamp INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
        debit_account_id BLOB NOT NULL,
        credit_account_id BLOB NOT NULL,
        amount BLOB NOT NULL,
        pending_id BLOB,
        user_data_128 BLOB NOT NULL,
        user_data_64 INTEGER NOT NULL,
        user_data_32 INTEGER NOT NULL,
        ledger INTEGER NOT NULL,
        code INTEGER NOT NULL,
        flags INTEGER NOT NULL
    ) STRICT;
    -- Finds what became of a hold; being unique, it keeps a hold from being resolved twice.
    CREATE UNIQUE INDEX ledger_resolution ON ledger_transfer(pending_id) WHERE pending_id IS NOT NULL;
    CREATE TABLE ledger_burnt_id(id BLOB PRIMARY KEY CHECK (length(id) = 16)) STRICT, WITHOUT ROWID;
    CREATE TABLE ledger_clock(timestamp INTEGER NOT NULL) STRICT;
    INSERT INTO ledger_clock VALUES (0);
    """,
)

INSERT_ACCOUNT = """
    INSERT INTO ledger_account(timestamp, id, user_data_128, user_data_64, user_data_32, ledger, code, flags,
        debits_pending, debits_posted, credits_pending, credits_posted)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, zeroblob(16), zeroblob(16), zeroblob(16), zeroblob(16))
"""
UPDATE_ACCOUNT = """
    UPDATE ledger_account SET debits_pending = ?, debits_posted = ?, credits_pending = ?, credits_posted = ?
    WHERE timestamp = ?
"""
SELECT_ACCOUNT = """
    SELECT timestamp, id, user_data_128, user_data_64, user_data_32, ledger, code, flags,
        debits_pending, debits_posted, credits_pending, credits_posted
    FROM ledger_account WHERE id = ?
"""
TRANSFER_COLUMNS = """timestamp, id, debit_account_id, credit_account_id, amount, pending_id,
    user_data_128, user_data_64, user_data_32, ledger, code, flags"""
INSERT_TRANSFER = f"INSERT INTO ledger_transfer({TRANSFER_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
INSERT_BURNT_ID = "INSERT INTO ledger_burnt_id(id) VALUES (?)"
SELECT_TRANSFER = f"SELECT {TRANSFER_COLUMNS} FROM ledger_transfer WHERE id = ?"
SELECT_TRANSFER_OR_BURNT = f"""
    SELECT {TRANSFER_COLUMNS} FROM ledger_transfer WHERE id = ?1
    UNION ALL
    SELECT 0, id, NULL, NULL, NULL, NULL, NULL, 0, 0, 0, 0, 0 FROM ledger_burnt_id WHERE id = ?1
"""
SELECT_AFTER = f"SELECT {TRANSFER_COLUMNS} FROM ledger_transfer WHERE timestamp > ? ORDER BY timestamp LIMIT ?"
SELECT_NEWEST = f"SELECT {TRANSFER_COLUMNS} FROM ledger_transfer ORDER BY timestamp DESC LIMIT ?"
SELECT_RESOLVED_BY = "SELECT flags FROM ledger_transfer WHERE pending_id = ?"
SELECT_CLOCK = "SELECT timestamp FROM ledger_clock"
UPDATE_CLOCK = "UPDATE ledger_clock SET timestamp = ?"
SELECT_GREATEST_ID = """
    SELECT max(coalesce((SELECT max(id) FROM ledger_transfer WHERE id < ?1), zeroblob(16)),
        coalesce((SELECT max(id) FROM ledger_burnt_id WHERE id < ?1), zeroblob(16)))
"""
