"""The transfer store on Apache Cassandra or ScyllaDB."""
