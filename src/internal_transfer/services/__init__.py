"""The roles: ports in, nothing global."""
