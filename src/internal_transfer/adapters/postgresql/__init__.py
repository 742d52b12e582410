"""What the PostgreSQL adapters share: the pool of connections, what its failures mean, and the schema."""
