"""Compares store, ledger and cores."""
