"""Shared set-up of Kafka clients, below the adapters that use it."""
