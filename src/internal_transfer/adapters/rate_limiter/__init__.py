"""Rate limiters."""
