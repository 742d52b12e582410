"""The embedded ledger of another process, reached through its socket."""
