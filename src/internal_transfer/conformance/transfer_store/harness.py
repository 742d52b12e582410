"""A transfer store under test."""

from internal_transfer.conformance.suites import Harness
from internal_transfer.ports.transfer_store import TransferStore


class StoreHarness(Harness):
    """Opens a store that starts empty and that nobody else uses."""

    store: TransferStore
    """The store as it is open now; `open` sets it."""

    has_one_feed: bool = False
    """Whether the feed has all events in the order in which they were recorded; the contract asks for that order only
    within each transfer."""
