"""SQLite, embedded in the process: one database behind four ports."""
