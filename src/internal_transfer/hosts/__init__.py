"""The reference core and the embedded ledger as processes of their own."""
