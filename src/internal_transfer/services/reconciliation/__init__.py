"""Compares store, ledger and core."""
