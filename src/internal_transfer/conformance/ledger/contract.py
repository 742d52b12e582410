"""What every ledger promises; the results are those of a real TigerBeetle server, release 0.17.9."""

from internal_transfer.conformance.ledger.accounts import Accounts
from internal_transfer.conformance.ledger.against_model import LedgerAgainstModel
from internal_transfer.conformance.ledger.batches_and_chains import BatchesAndChains
from internal_transfer.conformance.ledger.burnt_ids import BurntIds
from internal_transfer.conformance.ledger.history import History
from internal_transfer.conformance.ledger.limits import Limits
from internal_transfer.conformance.ledger.order_of_checks import OrderOfChecks
from internal_transfer.conformance.ledger.two_phases import TwoPhases

# pytest runs the tests of the last base first: the simple rules before those built on them.


class LedgerExamples(History, Limits, BatchesAndChains, BurntIds, TwoPhases, OrderOfChecks, Accounts):
    """The contract rule by rule, each shown by an example."""


class LedgerContract(LedgerAgainstModel, LedgerExamples):
    """The whole contract; a subclass adds a fixture `new_harness` that returns a function making a `LedgerHarness`."""
