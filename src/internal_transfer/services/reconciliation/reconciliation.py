"""Compares store, ledger and cores with each other, and the ledger with itself, while all of them are in use.

The systems cannot be read at one instant. So a transfer's difference counts only if its record stayed the same while
the systems were asked; if it changed, they are asked again. Balances are compared with a replay of the ledger's
transfers: an account's balance must be one that the replay has between two readings.
"""

import asyncio
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from internal_transfer.domain.account import Holder, ledger_account_id
from internal_transfer.domain.amount import format_amount
from internal_transfer.domain.cash import ACCOUNT_CODES, TRANSFER_CODES, CashAct, cash_account
from internal_transfer.domain.identifier import TransferId, hold_id, post_id, transfer_of, void_id
from internal_transfer.domain.leg import Side, Verdict
from internal_transfer.domain.rules import Rules
from internal_transfer.domain.transfer import Decision, Status, Transfer
from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.ledger import TWO_PHASES, AccountFlag, LedgerAccount, LedgerTransfer
from internal_transfer.ports.operations import Report
from internal_transfer.services.driver import HOLD_CODE, Driver
from internal_transfer.services.operators.acknowledgements import ACKNOWLEDGE, acknowledged_sides
from internal_transfer.services.reconciliation.consistency import differences
from internal_transfer.services.reconciliation.replay import Replay
from internal_transfer.services.restore.mark import REPAIR, SUBJECT, lost_timestamp

ITEMS_MAX = 10_000
"""Further items are counted but not listed."""

LOOKS_MAX = 5
"""How often a transfer is looked at because it changed meanwhile; then it is left to the next run."""


class Item(Struct, frozen=True, omit_defaults=True):
    """One difference, about a transfer (`request_id`), an account (`account`, its ledger id), or neither."""

    kind: str
    detail: str
    request_id: str | None = None
    account: str | None = None


class Reconciled(Struct, frozen=True, kw_only=True):
    """What a run found, and how much it compared. `items` are at most `ITEMS_MAX` of `items_total`."""

    at: int
    clean: bool
    items: tuple[Item, ...]
    items_total: int
    transfers: int
    ledger_transfers: int
    core_entries: int


class _Run:
    """One run's findings and progress."""

    def __init__(self) -> None:
        self.items: dict[Item, None] = {}
        self.dropped = 0
        self.transfers = 0
        self.ledger_transfers = 0
        self.core_entries = 0
        self.replay = Replay()
        self.excess: dict[int, tuple[int, int]] = {}

    def add_excess(self, account: LedgerAccount) -> None:
        """Adds the amount by which an account's debits less its credits exceed what they should be."""
        right = self.replay.balances[account.id]
        posted, pending = self.excess.get(account.ledger, (0, 0))
        self.excess[account.ledger] = (
            posted + account.debits_posted - account.credits_posted - right.debits_posted + right.credits_posted,
            pending + account.debits_pending - account.credits_pending - right.debits_pending + right.credits_pending,
        )

    def find(self, item: Item) -> None:
        if item in self.items:
            return
        if len(self.items) >= ITEMS_MAX:
            self.dropped += 1
        else:
            self.items[item] = None


class Reconciliation:
    """The role that compares. It changes nothing but its own reports.

    A run reads `page_most` entries at a time and lets other tasks work in between; two runs never overlap. If one of
    the systems does not answer, it raises `Unavailable` and there is no report.
    """

    def __init__(self, ports: Ports, rules: Rules, *, driver: Driver, page_most: int = 200) -> None:
        self._store = ports.store
        self._ledger = ports.ledger
        self._core = ports.core
        self._operations = ports.operations
        self._durability = ports.durability
        self._clock = ports.clock
        self._telemetry = ports.telemetry
        self._rules = rules
        self._driver = driver
        self._page_most = page_most
        self._one_run = asyncio.Lock()
        self._assets = {asset.number: asset for asset in rules.assets.values()}
        self._holders = {kind.code: kind.holder for kind in rules.account_types.values()}
        self._far_sides = {
            ledger_account_id(cash_account(act, asset.code)): ACCOUNT_CODES[act]
            for asset in rules.assets.values()
            for act in CashAct
        }

    async def run(self) -> Reconciled:
        """Compares everything, stores the report and sets the metrics."""
        async with self._one_run:
            run = _Run()
            for status in Status:
                await self._walk_store(run, status)
            await self._walk_ledger(run)
            await self._walk_cores(run)
            await self._check_balances(run)
            await self._check_ages(run)
            return await self._report(run)

    async def last(self) -> Report | None:
        """Returns the newest report."""
        report = await self._operations.last_report()
        await self._durability.durable()
        return report

    async def _walk_store(self, run: _Run, status: Status) -> None:
        after: TransferId | None = None
        while True:
            page = await self._store.by_status(status, after=after, most=self._page_most)
            if not page:
                return
            run.transfers += len(page)
            await self._compare(run, page)
            after = page[-1].id
            await self._breathe()

    async def _compare(self, run: _Run, transfers: Sequence[Transfer]) -> None:
        """Finds the differences of transfers whose record stayed the same while ledger and cores were asked."""
        for _ in range(LOOKS_MAX):
            looked = await self._driver.look(transfers)
            verdicts = await self._core.verdicts([transfer.id for transfer in transfers])
            by_hand = await self._by_hand(transfers)
            suspects = {}
            for transfer, (hold, _), said in zip(transfers, looked, verdicts, strict=True):
                found = differences(transfer, hold, said, by_hand=by_hand.get(transfer.id, ()))
                if found:
                    suspects[transfer.id] = (transfer, found)
            if not suspects:
                return
            now = await self._store.get(list(suspects))
            moved = []
            for (before, found), after in zip(suspects.values(), now, strict=True):
                assert after is not None, "a transfer is never removed"
                if after.revision != before.revision:
                    moved.append(after)
                    continue
                for difference in found:
                    run.find(Item(difference.kind, difference.detail, request_id=str(before.id)))
            if not moved:
                return
            transfers = moved
            await self._breathe()

    async def _by_hand(self, transfers: Sequence[Transfer]) -> dict[TransferId, frozenset[Side]]:
        """Returns the legs of transfers posted by operators that they acknowledged as put right by hand."""
        posted = [str(transfer.id) for transfer in transfers if transfer.decision is Decision.POST]
        if not posted:
            return {}
        return acknowledged_sides(await self._operations.audit_about(ACKNOWLEDGE, posted))

    async def _walk_ledger(self, run: _Run) -> None:
        while page := await self._next_page(run):
            run.replay.take(page)
            await self._check_rows(run, page)
            await self._breathe()

    async def _next_page(self, run: _Run) -> list[LedgerTransfer]:
        page = await self._ledger.transfers_after(run.replay.timestamp, self._page_most)
        run.ledger_transfers += len(page)
        return page

    async def _check_rows(self, run: _Run, rows: Sequence[LedgerTransfer]) -> None:
        """Finds rows that no transfer accounts for, and money that comes or goes other than through the far sides.

        A transfer is on record before its hold is made, so a read after that of the hold must find it.
        """
        by_transfer: dict[TransferId, list[LedgerTransfer]] = {}
        for row in rows:
            transfer_id = transfer_of(row.id)
            if transfer_id is None:
                self._check_cash(run, row)
            elif row.flags & TWO_PHASES:
                by_transfer.setdefault(transfer_id, []).append(row)
                if row.debit_account_id in self._far_sides or row.credit_account_id in self._far_sides:
                    run.find(Item("unexpected_transfer", f"{row.id} moves money of a far side", str(transfer_id)))
            else:
                run.find(Item("unexpected_transfer", f"{row.id} is not a deposit, a withdrawal or a hold"))
        transfers = await self._store.get(list(by_transfer))
        for (transfer_id, own), transfer in zip(by_transfer.items(), transfers, strict=True):
            for row in own:
                difference = _unaccounted(row, transfer)
                if difference is not None:
                    run.find(Item(*difference, request_id=str(transfer_id)))

    def _check_cash(self, run: _Run, row: LedgerTransfer) -> None:
        far_side = {
            TRANSFER_CODES[CashAct.DEPOSIT]: (row.debit_account_id, ACCOUNT_CODES[CashAct.DEPOSIT]),
            TRANSFER_CODES[CashAct.WITHDRAWAL]: (row.credit_account_id, ACCOUNT_CODES[CashAct.WITHDRAWAL]),
        }.get(row.code)
        if row.flags != 0 or far_side is None or self._far_sides.get(far_side[0]) != far_side[1]:
            run.find(Item("unexpected_transfer", f"{row.id} looks like a deposit or withdrawal, but is not one"))

    async def _walk_cores(self, run: _Run) -> None:
        """Finds what cores did for transfers that are not on record; all other verdicts are compared by transfer.

        A command is recorded before it is sent, so a read after that of the core's entry must find the transfer.
        """
        entry = 0
        while True:
            page = await self._core.entries_after(entry, self._page_most)
            if not page:
                return
            entry = page[-1][0]
            run.core_entries += len(page)
            by_transfer: dict[TransferId, Verdict] = {verdict.transfer_id: verdict for _, verdict in page}
            transfers = await self._store.get(list(by_transfer))
            for (transfer_id, verdict), transfer in zip(by_transfer.items(), transfers, strict=True):
                if transfer is None:
                    detail = f"a core has {verdict.outcome} {verdict.amount} units of {verdict.asset}; no such transfer"
                    run.find(Item("core_entry_without_transfer", detail, request_id=str(transfer_id)))
            await self._breathe()

    async def _check_balances(self, run: _Run) -> None:
        ids = list(run.replay.balances)
        for start in range(0, len(ids), self._page_most):
            page = ids[start : start + self._page_most]
            accounts = await self._ledger.lookup_accounts(page)
            found = {account.id: account for account in accounts}
            for account_id in page:
                if account_id not in found:
                    run.find(
                        Item("missing_account", "transfers name it, and it does not exist", account=str(account_id))
                    )
            await self._match(run, found)
            for account in accounts:
                self._check_account(run, account)
            await self._breathe()
        for number, (posted, pending) in run.excess.items():
            if posted or pending:
                shown = f"{self._amount(number, posted)} posted and {self._amount(number, pending)} pending"
                run.find(Item("conservation", f"debits exceed credits by {shown}"))
        for stray in run.replay.strays:
            run.find(Item("resolution_without_hold", f"{stray.id} resolves {stray.pending_id}, which is not open"))

    async def _match(self, run: _Run, accounts: dict[int, LedgerAccount]) -> None:
        """Compares accounts with the replay, which goes on past the moment at which they were read."""
        balances = run.replay.balances
        unmatched = {each.id: each for each in accounts.values() if not balances[each.id].is_of(each)}
        touched: set[int] = set()
        while page := await self._next_page(run):
            for row in page:
                run.replay.take_one(row)
                for account_id in (row.debit_account_id, row.credit_account_id):
                    touched.add(account_id)
                    if account_id in unmatched and balances[account_id].is_of(unmatched[account_id]):
                        del unmatched[account_id]
            await self._check_rows(run, page)
            await self._breathe()
        for account in unmatched.values():
            detail = "the balance is not what its transfers add up to"
            run.find(Item("balance_differs", detail, account=str(account.id)))
            if account.id not in touched:
                run.add_excess(account)

    def _check_account(self, run: _Run, account: LedgerAccount) -> None:
        holder = self._holders.get(account.code)
        limited = bool(account.flags & AccountFlag.DEBITS_MUST_NOT_EXCEED_CREDITS)
        if holder is None and account.code not in ACCOUNT_CODES.values():
            run.find(
                Item("unknown_account_type", f"no account type has the code {account.code}", account=str(account.id))
            )
        if limited is not (holder is Holder.LEDGER):
            run.find(Item("account_flags", "its limit is not that of its account type", account=str(account.id)))
        available = account.credits_posted - account.debits_posted - account.debits_pending
        if holder is Holder.LEDGER and available < 0:
            shown = self._amount(account.ledger, available)
            run.find(Item("negative_balance", f"{shown} are available", account=str(account.id)))

    def _amount(self, number: int, units: int) -> str:
        asset = self._assets.get(number)
        if asset is None:
            return f"{units} units of ledger {number}"
        return f"{format_amount(units, scale=asset.scale)} {asset.code}"

    async def _check_ages(self, run: _Run) -> None:
        """Finds a ledger that is older than the store: it no longer has a timestamp that the store has seen."""
        repairs = await self._operations.audit_about(REPAIR, [SUBJECT])
        lost = await lost_timestamp(self._store, self._ledger, repairs)
        if lost:
            run.find(Item("ledger_older_than_store", f"the store has seen the ledger's timestamp {lost}"))

    async def _report(self, run: _Run) -> Reconciled:
        items = tuple(run.items)
        total = len(items) + run.dropped
        at = self._clock.now_ms()
        await self._operations.save_report(Report(at, not items, msgspec.json.encode(items).decode()))
        await self._durability.durable()
        self._telemetry.reconciliation_items.set(total)
        self._telemetry.reconciliation_at.set(at / 1000)
        return Reconciled(
            at=at,
            clean=not items,
            items=items,
            items_total=total,
            transfers=run.transfers,
            ledger_transfers=run.ledger_transfers,
            core_entries=run.core_entries,
        )

    async def _breathe(self) -> None:
        """Lets other tasks work; where calls share a commit, this ends the turn."""
        await self._durability.durable()
        await self._clock.sleep(0)


def _unaccounted(row: LedgerTransfer, transfer: Transfer | None) -> tuple[str, str] | None:
    """Returns what is wrong with a ledger row that belongs to a transfer, or None."""
    if transfer is None:
        return "extra_hold", f"the ledger has {row.id}, and no such transfer is on record"
    own = {hold_id(transfer.id)}
    own |= {post_id(transfer.id, attempt) for attempt in range(transfer.post_attempt + 1)}
    own |= {void_id(transfer.id, attempt) for attempt in range(transfer.void_attempt + 1)}
    if row.id not in own or row.code != HOLD_CODE:
        return "extra_resolution", f"the ledger has {row.id}, which the record does not know"
    return None
