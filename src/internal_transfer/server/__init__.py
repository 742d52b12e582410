"""A server process, from its start to a clean stop."""
