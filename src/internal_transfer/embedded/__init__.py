"""The shared SQLite database of the embedded adapters, and its turn."""
