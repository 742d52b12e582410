"""The operating system: its clocks and randomness."""
