"""Fills a ledger that was restored to an earlier point than the store and the audit chain.

Everything is done again under its own id, so what the ledger has stays as it is, and a repair that was interrupted is
run again. The order ensures that nothing is refused that was not refused before; a refusal would burn the id for ever:

1. **Deposits** come first. More credit earlier can only help.
2. **Final transfers** follow in the order of their ledger timestamps, each with its hold and at once its post or void.
   The timestamp k on record is that of the hold, of its resolution, or lies between the two. At k the lost ledger
   counted the transfer's amount in the source's debits, pending or posted, and the source's limit held. All that is
   filled in before has a smaller timestamp: its debits were held or posted at k too, so there are no more debits now
   than at k. And every credit that was posted by k belongs to a transfer with a smaller timestamp, which has now been
   posted too, so there are no fewer credits.
3. **Open holds** follow. When it was lost, the ledger had all of them together with everything that was final.
4. **Withdrawals** come last. They only debit; before them each account has at least its balance at the time of the
   loss plus what was withdrawn. The ids of failed transfers that never had a hold, and of refused deposits and
   withdrawals, are burnt again, which moves nothing.

A transfer may have been posted before that was recorded, and another transfer on record may have used its credit. So no
hold or withdrawal is sent before the account is seen to have enough. One that must wait is tried again after the open
transfers were driven on, and one that must still wait then needs a person.
"""

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from internal_transfer.domain.account import Account, Holder, ledger_account_id
from internal_transfer.domain.cash import CashAct, cash_account
from internal_transfer.domain.identifier import TransferId, hold_id
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.transfer import Facts, Hold, Need, Status, Transfer
from internal_transfer.ports.ledger import LedgerTransfer, TransferResult
from internal_transfer.ports.operations import ChainedEntry
from internal_transfer.ports.transfer_store import Change
from internal_transfer.services.driver import Work, fence_of, post_of, void_of
from internal_transfer.services.operators.audit import DECIDED
from internal_transfer.services.operators.cash import CashEvidence, cash_transfer
from internal_transfer.services.restore.systems import MADE, NANOSECONDS_PER_MILLISECOND, RestoredSystems

Ordered = tuple[int, TransferId]
"""The ledger timestamp that gives a transfer its place in the order, and the transfer. Each transfer that the ledger
lacks is kept in memory, about 100 bytes."""

_ACTS = frozenset(CashAct)
_REFUSED = f"refused: {Code.INSUFFICIENT_BALANCE}"
_VERSION_AFTER_HOLD = 3
"""A transfer that failed after its hold went through PENDING first; one without a hold failed at once."""


class Funds:
    """The available balances of ledger-held accounts while a batch is put together."""

    def __init__(self) -> None:
        self._available: dict[Account, int] = {}

    async def look(self, systems: RestoredSystems, accounts: Sequence[Account]) -> None:
        """Reads the balances of those accounts that have a limit."""
        types = systems.rules.account_types
        limited = {ledger_account_id(a): a for a in accounts if types[a.type].holder is Holder.LEDGER}
        if not limited:
            return
        rows = await systems.ports.ledger.lookup_accounts(list(limited))
        self._available = dict.fromkeys(limited.values(), 0)
        for row in rows:
            self._available[limited[row.id]] = row.credits_posted - row.debits_posted - row.debits_pending

    def take(self, account: Account, amount: int) -> bool:
        """Takes from an account and returns True if it has enough; an account without a limit always has."""
        if account not in self._available:
            return True
        if self._available[account] < amount:
            return False
        self._available[account] -= amount
        return True

    def give(self, account: Account, amount: int) -> None:
        """Gives to an account."""
        if account in self._available:
            self._available[account] += amount


class LedgerReplay:
    """One repair of the ledger."""

    def __init__(self, systems: RestoredSystems) -> None:
        self._systems = systems
        self._final: list[Ordered] = []
        self._open: list[Ordered] = []

    async def run(self) -> None:
        """Fills the ledger; raises `Unavailable` or `OutcomeUnknown` if a system does not answer."""
        systems = self._systems
        await systems.driver.prepare()
        await self._deposit()
        await self._find()
        waiting = await self._do_all(sorted(self._final)) + await self._do_all(sorted(self._open))
        if waiting:
            await self._drive_open()
            waiting = await self._do_all(waiting)
        for _, transfer_id in waiting:
            systems.findings.need(
                "funds_missing", "its account does not have enough for its hold to be made again", transfer_id
            )
        await self._withdraw()

    async def _deposit(self) -> None:
        undecided: dict[str, CashEvidence] = {}
        async for page in self._systems.audit_entries():
            moves = []
            for link in page:
                entry = link.entry
                if entry.action not in _ACTS:
                    continue
                evidence = _evidence_of(link)
                if entry.outcome == DECIDED:
                    undecided[f"{entry.action} {entry.subject!r}"] = evidence
                else:
                    undecided.pop(f"{entry.action} {entry.subject!r}", None)
                if entry.outcome in MADE and entry.action == CashAct.DEPOSIT:
                    moves.append(evidence)
            await self._move(CashAct.DEPOSIT, moves)
        await self._note_undecided(undecided)

    async def _note_undecided(self, undecided: dict[str, CashEvidence]) -> None:
        there = await self._known([int(evidence.ledger_id) for evidence in undecided.values()])
        for name, evidence in undecided.items():
            if int(evidence.ledger_id) not in there:
                self._systems.findings.notes.append(
                    f"the {name} over {evidence.amount} {evidence.account.asset} was decided, and neither its outcome "
                    "nor its money is on record: repeat it under the same reference if it was meant"
                )

    async def _withdraw(self) -> None:
        async for page in self._systems.audit_entries():
            moves, burnt = [], []
            for link in page:
                entry = link.entry
                if entry.action not in _ACTS:
                    continue
                if entry.outcome == _REFUSED:
                    burnt.append(int(_evidence_of(link).ledger_id))
                elif entry.outcome in MADE and entry.action == CashAct.WITHDRAWAL:
                    moves.append(_evidence_of(link))
            await self._move(CashAct.WITHDRAWAL, moves)
            await self._burn(burnt)

    async def _move(self, act: CashAct, moves: Sequence[CashEvidence]) -> None:
        systems = self._systems
        there = await self._known([int(evidence.ledger_id) for evidence in moves])
        # The chain may name a reference more than once.
        missing = {int(move.ledger_id): move for move in moves if int(move.ledger_id) not in there}
        if not missing:
            return
        accounts = [move.account for move in missing.values()]
        await self._open_accounts([*accounts, *(cash_account(act, account.asset) for account in accounts)])
        funds = Funds()
        if act is CashAct.WITHDRAWAL:
            await funds.look(systems, accounts)
        rows = []
        for ledger_id, move in missing.items():
            units = int(move.units)
            if funds.take(move.account, units):
                asset = systems.rules.assets[move.account.asset]
                rows.append(cash_transfer(act, move.account, asset, units=units, ledger_id=ledger_id))
            else:
                detail = f"{move.account} does not have enough to repeat the {act} {ledger_id} of {move.amount}"
                systems.findings.need("funds_missing", detail)
        await systems.create(rows)
        systems.findings.done[f"{act}s_made_again"] += len(rows)

    async def _known(self, ledger_ids: Sequence[int]) -> set[int]:
        if not ledger_ids:
            return set()
        return {row.id for row in await self._systems.ports.ledger.lookup_transfers(ledger_ids)}

    async def _open_accounts(self, accounts: Sequence[Account]) -> None:
        await self._systems.driver.open_accounts(list(dict.fromkeys(accounts)))

    async def _burn(self, ledger_ids: Sequence[int]) -> None:
        """Burns ids again that were burnt before; one that exists after all is not changed."""
        if ledger_ids:
            outcomes = await self._systems.ports.ledger.create_transfers([fence_of(each) for each in ledger_ids])
            burnt = sum(each.status is TransferResult.PENDING_TRANSFER_NOT_FOUND for each in outcomes)
            self._systems.findings.done["ids_burnt_again"] += burnt

    async def _find(self) -> None:
        """Finds what the ledger lacks, and burns ids again, for which the order does not matter."""
        async for page in self._systems.records(Status.SUCCESS, Status.FAILED, Status.PENDING):
            looked = await self._systems.driver.look(page)
            burnt = []
            for transfer, (hold, _) in zip(page, looked, strict=True):
                if transfer.status is Status.FAILED and transfer.version < _VERSION_AFTER_HOLD:
                    burnt.append(hold_id(transfer.id))
                else:
                    self._sort(transfer, hold)
            await self._burn(burnt)
            await self._forget_missing_holds(
                [t for t, (hold, _) in zip(page, looked, strict=True) if hold is Hold.HELD]
            )

    def _sort(self, transfer: Transfer, hold: Hold) -> None:
        place = (_place_of(transfer), transfer.id)
        match transfer.status, hold:
            case Status.PENDING, Hold.ABSENT:
                self._open.append(place)
            case Status.SUCCESS | Status.FAILED, Hold.ABSENT | Hold.HELD:
                self._final.append(place)
            case (Status.SUCCESS, Hold.POSTED) | (Status.FAILED, Hold.VOIDED) | (Status.PENDING, _):
                return
            case _:
                detail = f"the record says {transfer.status}, and the hold is {hold}"
                self._systems.findings.need("contradiction", detail, transfer.id)

    async def _forget_missing_holds(self, transfers: Sequence[Transfer]) -> None:
        """Withdraws the need for a person from transfers whose missing holds exist now."""
        found = [each for each in transfers if each.needs_person is Need.HOLD_MISSING]
        if found:
            await self._systems.ports.store.record([Change(t.revision, replace(t, needs_person=None)) for t in found])

    async def _do_all(self, items: list[Ordered]) -> list[Ordered]:
        """Does transfers again in this order until no more succeed; returns those that must wait for funds."""
        while items:
            waiting: set[TransferId] = set()
            for page in self._systems.pages(items):
                waiting |= await self._do([transfer_id for _, transfer_id in page])
                await self._systems.breathe()
            left = [item for item in items if item[1] in waiting]
            if len(left) == len(items):
                break
            items = left
        return items

    async def _do(self, ids: list[TransferId]) -> set[TransferId]:
        systems = self._systems
        transfers = await systems.transfers(ids)
        looked = await systems.driver.look(transfers)
        accounts = [account for transfer in transfers for account in (transfer.source, transfer.target)]
        await self._open_accounts(accounts)
        funds = Funds()
        await funds.look(systems, accounts)
        rows: list[LedgerTransfer] = []
        held: list[Transfer] = []
        waiting: set[TransferId] = set()
        holds = 0
        for transfer, (hold, _) in zip(transfers, looked, strict=True):
            if hold is Hold.ABSENT:
                if not funds.take(transfer.source, transfer.amount):
                    waiting.add(transfer.id)
                    continue
                rows.append(systems.driver.hold_of(transfer))
                holds += 1
            if transfer.status is Status.SUCCESS:
                rows.append(post_of(transfer))
                funds.give(transfer.target, transfer.amount)
            elif transfer.status is Status.FAILED:
                rows.append(void_of(transfer))
                funds.give(transfer.source, transfer.amount)
            else:
                held.append(transfer)
        outcomes = await systems.create(rows)
        systems.findings.done["holds_made_again"] += holds
        systems.findings.done["holds_settled_again"] += len(rows) - holds
        timestamps = {
            row.id: outcome.timestamp
            for row, outcome in zip(rows, outcomes, strict=True)
            if outcome.status in MADE  # A refused row has a timestamp too, under which the ledger has nothing.
        }
        await self._renew(held, timestamps)
        return waiting

    async def _renew(self, held: list[Transfer], timestamps: dict[int, int]) -> None:
        """Records the new timestamps of the holds of open transfers, and makes the transfers due."""
        now = self._systems.ports.clock.now_ms()
        changes = []
        for transfer in held:
            timestamp = timestamps.get(hold_id(transfer.id))
            if timestamp is not None:
                need = None if transfer.needs_person is Need.HOLD_MISSING else transfer.needs_person
                after = replace(transfer, ledger_timestamp=timestamp, due_at=now, needs_person=need)
                changes.append(Change(transfer.revision, after))
        if changes:
            await self._systems.ports.store.record(changes)

    async def _drive_open(self) -> None:
        """Drives open transfers on, as the scanner would: one may have been posted before that was recorded."""
        async for page in self._systems.records(Status.PENDING):
            await self._systems.driver.drive([Work(transfer, Facts(), scanned=True) for transfer in page])


def _place_of(transfer: Transfer) -> int:
    # A transfer whose hold was found by a look-up, in an earlier release, has no timestamp. The time of its last record
    # is close to it, and the check of the funds does the rest.
    return transfer.ledger_timestamp or transfer.updated_at * NANOSECONDS_PER_MILLISECOND


def _evidence_of(link: ChainedEntry) -> CashEvidence:
    return msgspec.json.decode(link.entry.evidence, type=CashEvidence)
