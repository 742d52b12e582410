"""What needs no system: the event bus and the rate limiter inside the process."""
