"""What every transfer store promises."""

from internal_transfer.conformance.transfer_store.against_model import StoreAgainstModel
from internal_transfer.conformance.transfer_store.changes import Changes
from internal_transfer.conformance.transfer_store.daily_limits import DailyLimits
from internal_transfer.conformance.transfer_store.events_and_feed import EventsAndFeed
from internal_transfer.conformance.transfer_store.history import History
from internal_transfer.conformance.transfer_store.keys_and_ids import KeysAndIds
from internal_transfer.conformance.transfer_store.open_transfers import OpenTransfers
from internal_transfer.conformance.transfer_store.registry_and_leases import RegistryAndLeases

# pytest runs the tests of the last base first: the simple rules before those built on them.


class StoreExamples(RegistryAndLeases, OpenTransfers, History, EventsAndFeed, Changes, DailyLimits, KeysAndIds):
    """The contract rule by rule, each shown by an example."""


class StoreContract(StoreAgainstModel, StoreExamples):
    """The whole contract; a subclass adds a fixture `new_harness` that returns a function making a `StoreHarness`."""
