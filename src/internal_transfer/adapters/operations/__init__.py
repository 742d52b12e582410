"""Stores of what operators decide."""
