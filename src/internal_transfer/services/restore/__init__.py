"""After a restore: whether store, ledger and cores are of one time, and how they are brought together again."""
