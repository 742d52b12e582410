"""The facade that speaks OKX's funds-transfer API."""
