"""Linked events: a chain in a batch is created as a whole or not at all."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from internal_transfer.ports.ledger import AccountResult, TransferFlag, TransferResult

LINKED = TransferFlag.LINKED  # The same bit for accounts.
CREATED = TransferResult.CREATED  # The same word for accounts.


class _Event(Protocol):
    @property
    def flags(self) -> int: ...


class _Outcome(Protocol):
    @property
    def status(self) -> AccountResult | TransferResult: ...


_O = TypeVar("_O", bound=_Outcome)


def create_in_chains(
    events: Sequence[_Event],
    create: Callable[[int], _O],
    undo: Callable[[int], None],
    linked_failed: Callable[[int], _O],
    chain_open: Callable[[int], _O],
) -> list[_O]:
    """Creates the events of a batch by index, each chain of linked events wholly or not at all; returns the outcomes.

    `undo` takes back the last n events that were created.
    """
    outcomes: list[_O] = []
    start: int | None = None
    broken = False
    for index, event in enumerate(events):
        is_linked = bool(event.flags & LINKED)
        if is_linked and start is None:
            start = index
        ends_open = is_linked and index == len(events) - 1
        if ends_open:
            outcome = chain_open(index)
        elif broken:
            outcome = linked_failed(index)
        else:
            outcome = create(index)
        if start is not None:
            if outcome.status != CREATED and not broken:
                broken = True
                undo(index - start)
                outcomes[start:] = map(linked_failed, range(start, index))
            if ends_open or not is_linked:
                start, broken = None, False
        outcomes.append(outcome)
    return outcomes
