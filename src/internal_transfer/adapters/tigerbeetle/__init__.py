"""TigerBeetle, as the ledger."""
