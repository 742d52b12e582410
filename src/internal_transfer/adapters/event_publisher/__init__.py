"""Publishers of what becomes of transfers."""
