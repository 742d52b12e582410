"""Trading cores."""
