"""The simplest correct ledger, in dicts, with the tables of checks written out; only for comparison."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

from internal_transfer.ports.ledger import LedgerAccount, LedgerTransfer

MAX = 2**128 - 1
LINKED, PENDING, POST, VOID = 1, 2, 4, 8
DEBITS_LIMITED, CREDITS_LIMITED = 2, 4
TRANSIENT = (
    "debit_account_not_found",
    "credit_account_not_found",
    "pending_transfer_not_found",
    "exceeds_credits",
    "exceeds_debits",
)
INHERITED = ("user_data_128", "user_data_64", "user_data_32")
COMPARED_ACCOUNT = ("flags", *INHERITED, "ledger", "code")
COMPARED_TRANSFER = (
    *("flags", "pending_id", "debit_account_id", "credit_account_id", "amount"),
    *(*INHERITED, "ledger", "code"),
)

Fields = dict[str, Any]
Faults = Callable[[Fields], Iterator[str]]
"""Yields what is wrong with an account or a transfer, in TigerBeetle's order; only the first counts."""
Add = Callable[[Fields], None]


def fields_of(thing: LedgerAccount | LedgerTransfer) -> Fields:
    """Returns all fields but the timestamp."""
    return {name: getattr(thing, name) for name in thing.__struct_fields__ if name != "timestamp"}


class LedgerModel:
    """Accounts and transfers by id, as dicts of their fields without timestamps, and the burnt ids."""

    def __init__(self) -> None:
        self.accounts: dict[int, Fields] = {}
        self.transfers: dict[int, Fields] = {}
        self.resolutions: dict[int, str] = {}
        self.burnt: set[int] = set()

    def create_accounts(self, batch: Sequence[LedgerAccount]) -> list[str]:
        """Returns the results of a batch of accounts."""
        return self._batch([fields_of(account) for account in batch], self._account_faults, self._add_account)

    def create_transfers(self, batch: Sequence[LedgerTransfer]) -> list[str]:
        """Returns the results of a batch of transfers."""
        return self._batch([fields_of(transfer) for transfer in batch], self._transfer_faults, self._add_transfer)

    def _batch(self, batch: list[Fields], faults: Faults, add: Add) -> list[str]:
        """Cuts the batch into chains, mostly of one event, and does each all or nothing."""
        results: list[str] = []
        while batch:
            length = 1
            while batch[length - 1]["flags"] & LINKED and length < len(batch):
                length += 1
            chain, batch = batch[:length], batch[length:]
            results += self._chain(chain, faults, add)
        return results

    def _chain(self, chain: list[Fields], faults: Faults, add: Add) -> list[str]:
        before = deepcopy((self.accounts, self.transfers, self.resolutions))
        is_open = bool(chain[-1]["flags"] & LINKED)
        for index, event in enumerate(chain):
            left_open = is_open and index == len(chain) - 1
            fault = "linked_event_chain_open" if left_open else next(faults(event), None)
            if fault is None:
                add(event)
                continue
            self.accounts, self.transfers, self.resolutions = before
            if fault in TRANSIENT:
                self.burnt.add(event["id"])
            results = ["linked_event_failed"] * len(chain)
            if is_open:
                results[-1] = "linked_event_chain_open"
            results[index] = fault
            return results
        return ["created"] * len(chain)

    def _account_faults(self, a: Fields) -> Iterator[str]:
        if a["id"] in self.accounts:
            for name in COMPARED_ACCOUNT:
                if a[name] != self.accounts[a["id"]][name]:
                    yield f"exists_with_different_{name}"
            yield "exists"
        if a["flags"] & DEBITS_LIMITED and a["flags"] & CREDITS_LIMITED:
            yield "flags_are_mutually_exclusive"
        for name in ("ledger", "code"):
            if a[name] == 0:
                yield f"{name}_must_not_be_zero"

    def _add_account(self, a: Fields) -> None:
        self.accounts[a["id"]] = dict(a)

    def _transfer_faults(self, t: Fields) -> Iterator[str]:
        if t["id"] in self.burnt:
            yield "id_already_failed"
        if t["id"] in self.transfers:
            stored = self.transfers[t["id"]]
            if t["flags"] == stored["flags"] and t["pending_id"] == stored["pending_id"]:
                t = self._filled_in(t)
            for name in COMPARED_TRANSFER:
                if t[name] != stored[name]:
                    yield f"exists_with_different_{name}"
            yield "exists"
        yield from self._resolution_faults(t) if t["flags"] & (POST | VOID) else self._movement_faults(t)

    def _movement_faults(self, t: Fields) -> Iterator[str]:
        if t["debit_account_id"] == t["credit_account_id"]:
            yield "accounts_must_be_different"
        if t["pending_id"]:
            yield "pending_id_must_be_zero"
        for name in ("ledger", "code"):
            if t[name] == 0:
                yield f"{name}_must_not_be_zero"
        for side in ("debit", "credit"):
            if t[f"{side}_account_id"] not in self.accounts:
                yield f"{side}_account_not_found"
        debit, credit = self.accounts[t["debit_account_id"]], self.accounts[t["credit_account_id"]]
        if debit["ledger"] != credit["ledger"]:
            yield "accounts_must_have_the_same_ledger"
        if t["ledger"] != debit["ledger"]:
            yield "transfer_must_have_the_same_ledger_as_accounts"
        for kind in ("pending", "posted"):
            if kind == "pending" and not t["flags"] & PENDING:
                continue
            if debit[f"debits_{kind}"] + t["amount"] > MAX:
                yield f"overflows_debits_{kind}"
            if credit[f"credits_{kind}"] + t["amount"] > MAX:
                yield f"overflows_credits_{kind}"
        debits = debit["debits_pending"] + debit["debits_posted"] + t["amount"]
        credits_ = credit["credits_pending"] + credit["credits_posted"] + t["amount"]
        if debits > MAX:
            yield "overflows_debits"
        if credits_ > MAX:
            yield "overflows_credits"
        if debit["flags"] & DEBITS_LIMITED and debits > debit["credits_posted"]:
            yield "exceeds_credits"
        if credit["flags"] & CREDITS_LIMITED and credits_ > credit["debits_posted"]:
            yield "exceeds_debits"

    def _resolution_faults(self, t: Fields) -> Iterator[str]:
        if bool(t["flags"] & PENDING) + bool(t["flags"] & POST) + bool(t["flags"] & VOID) > 1:
            yield "flags_are_mutually_exclusive"
        if t["pending_id"] == 0:
            yield "pending_id_must_not_be_zero"
        if t["pending_id"] == t["id"]:
            yield "pending_id_must_be_different"
        hold = self.transfers.get(t["pending_id"])
        if hold is None:
            yield "pending_transfer_not_found"
            return
        if not hold["flags"] & PENDING:
            yield "pending_transfer_not_pending"
        for name in ("debit_account_id", "credit_account_id", "ledger", "code"):
            if t[name] != 0 and t[name] != hold[name]:
                yield f"pending_transfer_has_different_{name}"
        amount = self._filled_in(t)["amount"]
        if amount > hold["amount"]:
            yield "exceeds_pending_transfer_amount"
        if t["flags"] & VOID and amount < hold["amount"]:
            yield "pending_transfer_has_different_amount"
        if t["pending_id"] in self.resolutions:
            yield f"pending_transfer_already_{self.resolutions[t['pending_id']]}"

    def _filled_in(self, t: Fields) -> Fields:
        """Returns a post or void with what it left out taken from its hold, and any other transfer unchanged."""
        if not t["flags"] & (POST | VOID):
            return t
        hold = self.transfers[t["pending_id"]]
        filled = dict(t)
        for name in (*INHERITED, "debit_account_id", "credit_account_id", "ledger", "code"):
            filled[name] = t[name] or hold[name]
        if (t["flags"] & POST and t["amount"] == MAX) or (t["flags"] & VOID and t["amount"] == 0):
            filled["amount"] = hold["amount"]
        return filled

    def _add_transfer(self, t: Fields) -> None:
        t = self.transfers[t["id"]] = self._filled_in(t)
        debit, credit = self.accounts[t["debit_account_id"]], self.accounts[t["credit_account_id"]]
        if t["flags"] & PENDING:
            debit["debits_pending"] += t["amount"]
            credit["credits_pending"] += t["amount"]
            return
        if t["flags"] & (POST | VOID):
            self.resolutions[t["pending_id"]] = "posted" if t["flags"] & POST else "voided"
            debit["debits_pending"] -= self.transfers[t["pending_id"]]["amount"]
            credit["credits_pending"] -= self.transfers[t["pending_id"]]["amount"]
        if not t["flags"] & VOID:
            debit["debits_posted"] += t["amount"]
            credit["credits_posted"] += t["amount"]
