"""Valkey or Redis, as the rate limiter that processes share."""
