"""HTTP: what users and operators call."""
