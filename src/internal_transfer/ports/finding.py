"""What the adapters tell `doctor` about the systems behind them."""

Finding = tuple[str, bool, str]
"""What was looked at, whether it is as it should be, and what was found or what to do."""
