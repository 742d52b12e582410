"""Answers users' questions: about their transfers, their balances, and whether a transfer would be accepted."""

from internal_transfer.domain.account import Account, Holder, Owner, ledger_account_id
from internal_transfer.domain.amount import format_amount
from internal_transfer.domain.identifier import MILLISECONDS_PER_DAY, TransferId
from internal_transfer.domain.refusal import Code, Refusal, refuse_field
from internal_transfer.domain.request import TransferRequest
from internal_transfer.domain.rules import Limit, Rules, check_permission, check_rules, daily_limit_exceeded
from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.errors import OperatingFailureError
from internal_transfer.ports.trading_core import CoreBalance
from internal_transfer.ports.transfer_store import HistoryPage, HistoryQuery
from internal_transfer.services.answer import Answer, BalanceLine, Preview
from internal_transfer.services.policy_in_force import PolicyInForce
from internal_transfer.services.restore.restored_keys import KeyLookup


class Inquiry:
    """Reads and changes nothing; everything that it returns is durable.

    All calls raise `Unavailable` or `OutcomeUnknown` if a system does not answer.
    """

    def __init__(self, ports: Ports, rules: Rules, *, keys: KeyLookup, policies: PolicyInForce) -> None:
        self._store = ports.store
        self._ledger = ports.ledger
        self._core = ports.core
        self._durability = ports.durability
        self._clock = ports.clock
        self._rules = rules
        self._keys = keys
        self._policies = policies

    async def get(self, owner: Owner, transfer_id: TransferId) -> Answer | None:
        """Returns a transfer of this owner with its events; None if it is unknown or another owner's."""
        [transfer] = await self._store.get([transfer_id])
        if transfer is None or transfer.owner != owner:
            return None
        [events] = await self._store.events([transfer_id])
        await self._durability.durable()
        return Answer(transfer, events=tuple(events))

    async def by_key(self, owner: Owner, key: str) -> Answer | None:
        """Returns the transfer that an idempotency key of this owner stands for."""
        [hit] = await self._keys.by_keys([(owner, key)])
        await self._durability.durable()
        return None if hit is None else await self.get(owner, hit.transfer.id)

    async def history(self, query: HistoryQuery) -> HistoryPage:
        """Returns one page of an owner's transfers."""
        page = await self._store.history(query)
        await self._durability.durable()
        return page

    async def balances(self, owner: Owner) -> list[BalanceLine]:
        """Returns the balances of all accounts of an owner that were ever used, by type and asset.

        The ledger has the balances of ledger-held accounts, the core those of core-held accounts. While the core does
        not answer, they have no figures: the ledger's mirror of them is never shown.
        """
        accounts = [entry.account for entry in await self._store.registered(owner)]
        held_here = [account for account in accounts if self._holder(account) is Holder.LEDGER]
        lines = await self._ledger_lines(held_here)
        await self._durability.durable()
        if len(held_here) < len(accounts):
            lines += await self._core_lines(owner, [a for a in accounts if self._holder(a) is Holder.CORE])
        return sorted(lines, key=lambda line: (line.account.type, line.account.asset))

    async def preview(self, request: TransferRequest) -> Preview:
        """Checks a request against the same rules as `Gateway.submit`, and against the balance; records nothing."""
        limit = self._rules.limits.get(request.tier, {}).get(request.source.asset)
        refusal = check_permission(request, self._rules)
        if refusal is not None:
            return Preview(refusal, None, None, 0)
        day = self._clock.now_ms() // MILLISECONDS_PER_DAY
        used = await self._store.daily_used(request.caller, request.source.asset, day)
        await self._durability.durable()
        checked = check_rules(request, self._rules, self._policies.current)
        if request.source.asset not in self._rules.assets or request.source.type not in self._rules.account_types:
            assert isinstance(checked, Refusal)
            return Preview(checked, None, None, 0)
        available = await self._available(request.source)
        most = self._most(limit, used, available)
        if isinstance(checked, Refusal):
            return Preview(checked, most, limit, used)
        return Preview(self._beyond(request, checked.units, checked.limit, used, available), most, limit, used)

    @staticmethod
    def _most(limit: Limit | None, used: int, available: int | None) -> int | None:
        if limit is None or available is None:
            return None
        return max(0, min(limit.max_units, limit.daily_units - used, available))

    def _beyond(
        self, request: TransferRequest, units: int, limit: Limit, used: int, available: int | None
    ) -> Refusal | None:
        asset = self._rules.assets[request.source.asset]
        if units > limit.daily_units - used:
            return daily_limit_exceeded(asset, limit.daily_units - used)
        if available is None:
            return Refusal(Code.CORE_UNAVAILABLE, "the trading core does not answer, so the balance is not known")
        if units > available:
            rule = f"is more than the {format_amount(max(0, available), scale=asset.scale)} {asset.code} available"
            return refuse_field("amount", rule, Code.INSUFFICIENT_BALANCE)
        return None

    async def _available(self, account: Account) -> int | None:
        if self._holder(account) is Holder.LEDGER:
            lines = await self._ledger_lines([account])
            await self._durability.durable()
            return lines[0].available
        lines = await self._core_lines(account.owner, [account])
        return lines[0].available

    async def _ledger_lines(self, accounts: list[Account]) -> list[BalanceLine]:
        rows = {row.id: row for row in await self._ledger.lookup_accounts([ledger_account_id(a) for a in accounts])}
        lines = []
        for account in accounts:
            row = rows.get(ledger_account_id(account))
            posted = row.credits_posted - row.debits_posted if row is not None else 0
            held = row.debits_pending if row is not None else 0
            lines.append(BalanceLine(account, posted, held, posted - held))
        return lines

    async def _core_lines(self, owner: Owner, accounts: list[Account]) -> list[BalanceLine]:
        try:
            known = {entry.account: entry for entry in await self._core.balances(owner)}
            await self._durability.durable()
        except OperatingFailureError:
            return [BalanceLine(account, None, None, None, unavailable=True) for account in accounts]
        lines = []
        for account in accounts:
            entry = known.get(account, CoreBalance(account, 0, 0))
            lines.append(BalanceLine(account, entry.posted, entry.held, entry.posted - entry.held))
        return lines

    def _holder(self, account: Account) -> Holder:
        return self._rules.account_types[account.type].holder
