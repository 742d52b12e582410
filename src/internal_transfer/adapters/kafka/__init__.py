"""Kafka: the event bus, the trading cores behind it, and the published events."""
