"""Runs the shipped suite on our own adapters."""

from internal_transfer.conformance.transfer_store.contract import *  # noqa: F403
