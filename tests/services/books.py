"""What must always hold of a ledger's own data."""

from collections import Counter, defaultdict

from internal_transfer.domain.identifier import TransferId, hold_id, transfer_of
from internal_transfer.domain.transfer import Status, Transfer
from internal_transfer.ports.ledger import LedgerAccount, LedgerTransfer, TransferFlag
from services.stack import ASSETS


def check_books(
    rows: list[LedgerTransfer], accounts: dict[int, LedgerAccount], deposits: dict[str, int] | None = None
) -> None:
    """Replays the ledger from nothing: G1 and G3 at every instant, then G12 and, against these deposits, G2."""
    holds: dict[int, LedgerTransfer] = {}
    sums: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0, 0, 0])  # debits pending, posted; credits the same
    total: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    limited = {account.id for account in accounts.values() if account.flags & 2}
    outside = {asset.number for asset in ASSETS.values()}
    brought: Counter[int] = Counter()

    def add(row: LedgerTransfer, place: int, units: int) -> None:
        for account, index in ((row.debit_account_id, place), (row.credit_account_id, place + 2)):
            sums[account][index] += units
            total[row.ledger][index] += units

    for row in rows:
        flags = row.flags
        if flags & TransferFlag.PENDING:
            holds[row.id] = row
            add(row, 0, row.amount)
        elif row.pending_id:
            held = holds[row.pending_id]
            add(held, 0, -held.amount)
            if flags & TransferFlag.POST_PENDING_TRANSFER:
                add(held, 1, row.amount)
        else:
            add(row, 1, row.amount)
            assert row.debit_account_id in outside, "G2: money came from nowhere"
            brought[row.ledger] += row.amount
        figures = total[row.ledger]
        assert figures[:2] == figures[2:], f"G1: at {row.timestamp} debits {figures[:2]} credits {figures[2:]}"
        for account in (row.debit_account_id, row.credit_account_id):
            if account in limited:
                pending, posted, _, credit = sums[account]
                assert pending + posted <= credit, f"G3: account {account} is below zero at {row.timestamp}"
    for account in accounts.values():
        assert sums[account.id] == _figures(account), f"G12: {account}"
    for number in outside:
        own = [_figures(account) for account in accounts.values() if account.ledger == number]
        debits_pending, debits_posted, credits_pending, credits_posted = (
            map(sum, zip(*own, strict=True)) if own else [0] * 4
        )
        assert (debits_pending, debits_posted) == (credits_pending, credits_posted), "G1: balances"
    for asset, units in (deposits or {}).items():
        number = ASSETS[asset].number
        inside = sum(
            row.credits_posted - row.debits_posted
            for row in accounts.values()
            if row.ledger == number and row.id != number
        )
        assert inside == brought[number] == units, "G2: the total has changed"


def _figures(account: LedgerAccount) -> list[int]:
    return [account.debits_pending, account.debits_posted, account.credits_pending, account.credits_posted]


def check_resolutions(rows: list[LedgerTransfer], by_id: dict[TransferId, Transfer]) -> None:
    """Each hold is of a recorded transfer and was resolved exactly once, as the record says."""
    resolutions: defaultdict[int, list[LedgerTransfer]] = defaultdict(list)
    holds = {row.id: row for row in rows if row.flags & TransferFlag.PENDING}
    for row in rows:
        if row.pending_id:
            resolutions[row.pending_id].append(row)
    for held in holds.values():
        transfer_id = transfer_of(held.id)
        assert transfer_id in by_id, "a hold of no transfer"
        resolved = resolutions[held.id]
        assert len(resolved) == 1, f"G4: {resolved}"
        assert resolved[0].amount == held.amount == by_id[transfer_id].amount
        posted = bool(resolved[0].flags & TransferFlag.POST_PENDING_TRANSFER)
        assert posted is (by_id[transfer_id].status is Status.SUCCESS), f"G7: {by_id[transfer_id]}"
    for transfer in by_id.values():
        if transfer.status is Status.SUCCESS:
            assert hold_id(transfer.id) in holds, f"G7: {transfer} without a hold"
