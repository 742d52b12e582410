"""Runs the shipped suite on our own adapters."""

from internal_transfer.conformance.ledger.against_model import *  # noqa: F403
