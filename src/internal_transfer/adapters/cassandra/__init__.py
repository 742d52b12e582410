"""Cassandra and ScyllaDB over CQL: the transfer store and the records of operation."""
