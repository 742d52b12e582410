"""Runs the shipped suite on our own adapters."""

from internal_transfer.conformance.ledger.contract import *  # noqa: F403
