"""The embedded ledger in a process of its own, for others on the same machine."""
