"""How the parts of a repair read the systems, page by page, and where they note what they find."""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from msgspec import Struct

from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Verdict
from internal_transfer.domain.rules import Rules
from internal_transfer.domain.transfer import Status, Transfer
from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.ledger import LedgerTransfer, TransferOutcome, TransferResult
from internal_transfer.ports.operations import ChainedEntry
from internal_transfer.services.driver import Driver

NANOSECONDS_PER_MILLISECOND = 1_000_000

MADE = frozenset({TransferResult.CREATED, TransferResult.EXISTS})

Item = TypeVar("Item")


class Problem(Struct, frozen=True, omit_defaults=True):
    """Something that no rule may decide and that needs a person; `kind` is one of a fixed set of words."""

    kind: str
    detail: str
    request_id: str | None = None


class Findings:
    """What a repair did, by kind, what needs a person, and what is worth knowing."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.problems: dict[Problem, None] = {}
        self.notes: list[str] = []

    def need(self, kind: str, detail: str, transfer_id: TransferId | None = None) -> None:
        """Lists a problem for a person, once."""
        self.problems[Problem(kind, detail, None if transfer_id is None else str(transfer_id))] = None


@dataclass(slots=True)
class RestoredSystems:
    """The ports and how they are read. `page_most` bounds a page; a page of holds makes twice as many ledger rows."""

    ports: Ports
    rules: Rules
    driver: Driver
    page_most: int = 200
    findings: Findings = field(default_factory=Findings)

    async def breathe(self) -> None:
        """Makes durable what was done so far."""
        await self.ports.durability.durable()
        await self.ports.clock.sleep(0)

    async def records(self, *statuses: Status, above: TransferId | None = None) -> AsyncIterator[list[Transfer]]:
        """Yields the transfers in these statuses, page by page, by rising id within each status."""
        for status in statuses:
            after = above
            while True:
                page = await self.ports.store.by_status(status, after=after, most=self.page_most)
                if not page:
                    break
                yield page
                after = page[-1].id
                await self.breathe()

    async def ledger_rows(self) -> AsyncIterator[list[LedgerTransfer]]:
        """Yields all transfers of the ledger, page by page, by rising timestamp."""
        after = 0
        while True:
            page = await self.ports.ledger.transfers_after(after, self.page_most)
            if not page:
                return
            yield page
            after = page[-1].timestamp
            await self.breathe()

    async def core_entries(self) -> AsyncIterator[list[Verdict]]:
        """Yields all verdicts that moved balances in the cores, page by page."""
        after = 0
        while True:
            page = await self.ports.core.entries_after(after, self.page_most)
            if not page:
                return
            yield [verdict for _, verdict in page]
            after = page[-1][0]
            await self.breathe()

    async def audit_entries(self) -> AsyncIterator[list[ChainedEntry]]:
        """Yields the whole audit chain, page by page."""
        after = 0
        while True:
            page = await self.ports.operations.audit(after=after, most=self.page_most)
            if not page:
                return
            yield page
            after = page[-1].number
            await self.breathe()

    async def transfers(self, ids: Sequence[TransferId]) -> list[Transfer]:
        """Returns those of the transfers that are on record."""
        found = await self.ports.store.get(ids)
        return [transfer for transfer in found if transfer is not None]

    async def create(self, rows: Sequence[LedgerTransfer]) -> list[TransferOutcome]:
        """Creates rows in the ledger; those that it does not take are listed for a person."""
        if not rows:
            return []
        outcomes = await self.ports.ledger.create_transfers(rows)
        for row, outcome in zip(rows, outcomes, strict=True):
            if outcome.status not in MADE:
                self.findings.need("ledger_refuses", f"the ledger does not take {row.id} again: {outcome.status}")
        return outcomes

    def pages(self, items: Sequence[Item]) -> list[Sequence[Item]]:
        """Returns the items, page by page."""
        return [items[start : start + self.page_most] for start in range(0, len(items), self.page_most)]
