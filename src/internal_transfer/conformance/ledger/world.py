"""A test's view of a ledger, with short ways to write what is sent to it."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest_asyncio

from internal_transfer.conformance.ledger.harness import OWN_IDS, LedgerHarness
from internal_transfer.conformance.suites import ContractTests
from internal_transfer.ports.ledger import (
    U128_MAX,
    AccountFlag,
    AccountResult,
    Ledger,
    LedgerAccount,
    LedgerTransfer,
    TransferFlag,
    TransferResult,
)

PENDING = TransferFlag.PENDING
POST = TransferFlag.POST_PENDING_TRANSFER
VOID = TransferFlag.VOID_PENDING_TRANSFER
LINKED = TransferFlag.LINKED
DEBITS_LIMITED = AccountFlag.DEBITS_MUST_NOT_EXCEED_CREDITS
CREDITS_LIMITED = AccountFlag.CREDITS_MUST_NOT_EXCEED_DEBITS
BANK, ALICE, BOB, UNKNOWN = 1, 2, 3, 99
U64_MAX, U32_MAX, U16_MAX = 2**64 - 1, 2**32 - 1, 2**16 - 1


class World:
    """A test's view of a ledger: its own small ids, and plain results where timestamps do not matter."""

    def __init__(self, harness: LedgerHarness) -> None:
        self.harness = harness

    @property
    def ledger(self) -> Ledger:
        """The ledger as it is open now."""
        return self.harness.ledger

    async def reopen(self) -> None:
        """Closes the ledger and opens it again."""
        await self.harness.reopen()

    def at(self, number: int) -> int:
        """Returns the ledger's id for a test's number; 0 and 2^128-1 stay as they are."""
        return number if number in (0, U128_MAX) else self.harness.id_base + number

    def account(self, number: int, **fields: Any) -> LedgerAccount:
        """Returns an account that is good except for the given fields."""
        return LedgerAccount(**{"ledger": 1, "code": 1} | fields, id=self.at(number))

    def plain(self, number: int, debit: int, credit: int, amount: int, **fields: Any) -> LedgerTransfer:
        """Returns a transfer in one phase."""
        return LedgerTransfer(
            **{"ledger": 1, "code": 1} | fields,
            id=self.at(number),
            debit_account_id=self.at(debit),
            credit_account_id=self.at(credit),
            amount=amount,
        )

    def hold(
        self, number: int, debit: int, credit: int, amount: int, *, flags: int = 0, **fields: Any
    ) -> LedgerTransfer:
        """Returns a pending transfer."""
        return self.plain(number, debit, credit, amount, flags=PENDING | flags, **fields)

    def post(self, number: int, hold: int, amount: int, *, flags: int = 0, **fields: Any) -> LedgerTransfer:
        """Returns a post of a hold."""
        return LedgerTransfer(id=self.at(number), pending_id=self.at(hold), amount=amount, flags=POST | flags, **fields)

    def void(self, number: int, hold: int, amount: int = 0, *, flags: int = 0, **fields: Any) -> LedgerTransfer:
        """Returns a void of a hold."""
        return LedgerTransfer(id=self.at(number), pending_id=self.at(hold), amount=amount, flags=VOID | flags, **fields)

    async def open_accounts(self, *numbers: int, **fields: Any) -> None:
        """Creates accounts, all of which must be new."""
        outcomes = await self.ledger.create_accounts([self.account(number, **fields) for number in numbers])
        assert {outcome.status for outcome in outcomes} == {AccountResult.CREATED}

    async def fund(self, number: int, amount: int) -> None:
        """Opens an account that may not be overdrawn, and moves this amount into it from BANK."""
        await self.open_accounts(BANK)
        await self.open_accounts(number, flags=DEBITS_LIMITED)
        await self.succeed(self.plain(9_000 + number, BANK, number, amount))

    async def create(self, *transfers: LedgerTransfer) -> list[TransferResult]:
        """Creates transfers in one batch and returns their results."""
        return [outcome.status for outcome in await self.ledger.create_transfers(transfers)]

    async def succeed(self, *transfers: LedgerTransfer) -> None:
        """Creates transfers in one batch, all of which must succeed."""
        assert await self.create(*transfers) == [TransferResult.CREATED] * len(transfers)

    async def balances(self, number: int) -> tuple[int, int, int, int]:
        """Returns debits pending and posted, then credits pending and posted."""
        [account] = await self.ledger.lookup_accounts([self.at(number)])
        return balances(account)

    async def available(self, number: int) -> int:
        """Returns what the account's owner may still spend: posted less held."""
        held, spent, _, received = await self.balances(number)
        return received - spent - held

    async def history(self, after: int | None = None) -> Sequence[LedgerTransfer]:
        """Returns all transfers of this test after a timestamp, read page by page."""
        transfers: list[LedgerTransfer] = []
        last = self.harness.history_start if after is None else after
        while page := await self.ledger.transfers_after(last, 3):
            transfers.extend(page)
            last = page[-1].timestamp
        return [transfer for transfer in transfers if (transfer.id - self.harness.id_base) % (1 << 127) < OWN_IDS]


def balances(account: LedgerAccount) -> tuple[int, int, int, int]:
    """Returns debits pending and posted, then credits pending and posted."""
    return account.debits_pending, account.debits_posted, account.credits_pending, account.credits_posted


def replay(transfers: Sequence[LedgerTransfer]) -> dict[int, list[int]]:
    """Returns the balances by account that follow from a history of transfers, starting from nothing."""
    by_id = {transfer.id: transfer for transfer in transfers}
    sums: dict[int, list[int]] = {}
    for transfer in transfers:
        debit = sums.setdefault(transfer.debit_account_id, [0, 0, 0, 0])
        credit = sums.setdefault(transfer.credit_account_id, [0, 0, 0, 0])
        if transfer.flags & PENDING:
            debit[0] += transfer.amount
            credit[2] += transfer.amount
            continue
        if transfer.flags & (POST | VOID):
            debit[0] -= by_id[transfer.pending_id].amount
            credit[2] -= by_id[transfer.pending_id].amount
        if not transfer.flags & VOID:
            debit[1] += transfer.amount
            credit[3] += transfer.amount
    return sums


class LedgerTests(ContractTests):
    """A part of the contract."""

    @pytest_asyncio.fixture(loop_scope="function")
    async def world(self, new_harness: Callable[[], LedgerHarness]) -> AsyncIterator[World]:
        """The ledger of a new harness, open for one test."""
        harness = new_harness()
        await harness.open()
        yield World(harness)
        await harness.close()
