"""A ledger under test."""

from secrets import randbits

from internal_transfer.conformance.suites import Harness
from internal_transfer.ports.ledger import Ledger

OWN_IDS = 1 << 32
"""A test owns this many ids from its base on, and as many from base + 2^127 on."""


class LedgerHarness(Harness):
    """Opens a ledger that starts empty, or a shared one in which the test has ids of its own."""

    ledger: Ledger
    """The ledger as it is open now; `open` sets it."""

    id_base: int = 0
    """Added to a test's ids, so that tests can share a ledger that cannot be emptied; `new_id_base` draws one."""

    history_start: int = 0
    """All transfers of the test have a larger timestamp than this."""


def new_id_base() -> int:
    """Returns a base, below 2^125, whose ids no other test has used."""
    return randbits(93) * OWN_IDS
