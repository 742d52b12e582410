"""How single fields of a transfer are written as text and read back, the same in every database."""

from functools import lru_cache

import msgspec

from internal_transfer.domain.leg import Leg, LegState
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.transfer import OPEN, Decision, Need, Status, Transfer

STATUS = {status.value: status for status in Status}
CODE = {code.value: code for code in Code}
NEED = {need.value: need for need in Need}
DECISION = {decision.value: decision for decision in Decision}

_ENCODER = msgspec.json.Encoder()
_LEGS = msgspec.json.Decoder(tuple[Leg, ...])
_OWED = frozenset({LegState.ASKED, LegState.REVERSING})


def legs_text(legs: tuple[Leg, ...]) -> str:
    """The legs as they are stored."""
    return _ENCODER.encode(legs).decode() if legs else "[]"


@lru_cache(maxsize=1024)
def legs_of(stored: str) -> tuple[Leg, ...]:
    """The legs in a stored text."""
    return _LEGS.decode(stored)


def asked_core(transfer: Transfer) -> str | None:
    """The core that owes an answer. Until persons have decided what they have to, nothing is sent and nothing owed."""
    if transfer.status in OPEN and (transfer.needs_person is None or transfer.decision is not None):
        for leg in transfer.legs:
            if leg.state in _OWED:
                return leg.core
    return None
