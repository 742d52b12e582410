"""Cassandra and ScyllaDB over CQL: the session that the adapters share, and the migrations of their tables."""
