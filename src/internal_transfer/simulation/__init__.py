"""Faults that can be put in front of any port."""
