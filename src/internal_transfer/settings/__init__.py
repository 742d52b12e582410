"""What is configured: read once, checked whole, passed on as frozen values."""
