"""A transfer store under test."""

from internal_transfer.conformance.suites import Harness
from internal_transfer.ports.transfer_store import TransferStore


class StoreHarness(Harness):
    """Opens a store that is empty at first and that nobody else uses."""

    store: TransferStore
    """The store as it is open now; `open` sets it."""

    has_one_feed: bool = False
    """Tells whether the feed has all events in the order in which they were recorded.

    The contract asks for that only within each transfer.
    """
