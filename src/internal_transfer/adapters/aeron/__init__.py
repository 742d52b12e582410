"""Shared set-up of Aeron clients, below the adapters that use it."""
