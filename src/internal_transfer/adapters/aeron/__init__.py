"""Aeron: the event bus, and the trading cores behind it."""
