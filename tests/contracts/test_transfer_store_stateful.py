"""Runs the shipped suite on our own adapters."""

from internal_transfer.conformance.transfer_store.against_model import *  # noqa: F403
