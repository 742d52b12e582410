"""Works out what the ledger's balances must be, by replaying all its transfers from nothing."""

from collections.abc import Sequence

from internal_transfer.ports.ledger import RESOLVING, LedgerAccount, LedgerTransfer, TransferFlag


class Balance:
    """An account's four sums."""

    __slots__ = ("credits_pending", "credits_posted", "debits_pending", "debits_posted", "ledger")

    def __init__(self, ledger: int) -> None:
        self.ledger = ledger
        self.debits_pending = 0
        self.debits_posted = 0
        self.credits_pending = 0
        self.credits_posted = 0

    def is_of(self, account: LedgerAccount) -> bool:
        """Tells whether the ledger has these sums for the account."""
        return (
            self.debits_pending == account.debits_pending
            and self.debits_posted == account.debits_posted
            and self.credits_pending == account.credits_pending
            and self.credits_posted == account.credits_posted
            and self.ledger == account.ledger
        )


class Replay:
    """The balances, by account id, after the last transfer that was replayed.

    It remembers every account and every hold that is open at that point, nothing else. `strays` are posts and voids
    whose hold was not open.
    """

    def __init__(self) -> None:
        self.timestamp = 0
        self.balances: dict[int, Balance] = {}
        self.strays: list[LedgerTransfer] = []
        self._open: dict[int, int] = {}

    def take(self, transfers: Sequence[LedgerTransfer]) -> None:
        """Takes in the next transfers, by rising timestamp."""
        for transfer in transfers:
            self.take_one(transfer)

    def take_one(self, transfer: LedgerTransfer) -> None:
        """Takes in the next transfer."""
        assert transfer.timestamp > self.timestamp, "transfers are replayed in the order of their timestamps"
        self.timestamp = transfer.timestamp
        debit = self._balance(transfer.debit_account_id, transfer.ledger)
        credit = self._balance(transfer.credit_account_id, transfer.ledger)
        if transfer.flags & TransferFlag.PENDING:
            self._open[transfer.id] = transfer.amount
            debit.debits_pending += transfer.amount
            credit.credits_pending += transfer.amount
            return
        if transfer.flags & RESOLVING:
            held = self._open.pop(transfer.pending_id, None)
            if held is None:
                self.strays.append(transfer)
                return
            debit.debits_pending -= held
            credit.credits_pending -= held
            if transfer.flags & TransferFlag.VOID_PENDING_TRANSFER:
                return
        debit.debits_posted += transfer.amount
        credit.credits_posted += transfer.amount

    def _balance(self, account_id: int, ledger: int) -> Balance:
        balance = self.balances.get(account_id)
        if balance is None:
            balance = self.balances[account_id] = Balance(ledger)
        return balance
