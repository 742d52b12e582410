"""After a restore: tells whether store, ledger and cores are from one point in time, and brings them together again."""
