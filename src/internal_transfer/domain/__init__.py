"""The rules of internal transfers: pure, without I/O, clock or randomness."""
