"""A ledger under test."""

from secrets import randbits

from internal_transfer.conformance.suites import Harness
from internal_transfer.ports.ledger import Ledger

OWN_IDS = 1 << 32
"""This many ids from a base on, and as many from 2^127 more, are a test's own."""


class LedgerHarness(Harness):
    """Opens a ledger that is empty at first, or one that others use too and of which a test has its own ids."""

    ledger: Ledger
    """The ledger as it is open now; `open` sets it."""

    id_base: int = 0
    """Added to the ids of a test, so that tests can share a ledger that never forgets; `new_id_base` draws one."""

    history_start: int = 0
    """The timestamp after which the test's transfers come."""


def new_id_base() -> int:
    """Returns a base for ids that no test had before, below 2^125."""
    return randbits(93) * OWN_IDS
