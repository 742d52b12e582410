"""Rebuilds records of transfers that only the ledger knows, after the store was restored to an earlier point.

The ledger has the accounts, the amount, what became of the hold, and the hash of caller and key. It has no memo and no
key, so the record gets a key made from the hash (`restored_keys.py` finds it). The legs are filled in from the cores'
verdicts. From there `next_step` decides, as for every transfer.

An account's name is found by its number in the registry, or by trying the owners that registry, settings, cores and
events of the feed know: its id is a hash, so a name is right or wrong, never nearly right. A transfer whose accounts
nobody can name is listed for a person and left as it is in the ledger.
"""

from collections.abc import AsyncIterator, Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from internal_transfer.domain.account import Account, Owner, ledger_account_id
from internal_transfer.domain.amount import format_amount
from internal_transfer.domain.identifier import RESTORED_KEY, TransferId, restored_key, time_of, transfer_of
from internal_transfer.domain.leg import Action, LegState, Verdict, legs_of
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.request import restored_fingerprint
from internal_transfer.domain.transfer import (
    INSUFFICIENT_BALANCE,
    OPEN,
    Decision,
    Facts,
    Hold,
    Need,
    Status,
    Transfer,
    Write,
    advance,
    heard,
    next_step,
    with_leg,
)
from internal_transfer.ports.ledger import AMOUNT_MAX, TWO_PHASES, LedgerTransfer, TransferFlag
from internal_transfer.ports.transfer_store import Accepted, Change, Proposal
from internal_transfer.services.restore.restored_keys import KEYS_RESTORED
from internal_transfer.services.restore.systems import NANOSECONDS_PER_MILLISECOND, RestoredSystems

UNNAMED = "accounts_unknown"
"""The kind of problem: nobody can name the accounts; `--accept-unknown` leaves such transfers alone."""

_ATTEMPTS = 2**32 - 1
_VERDICT_ORDER = (Action.CANCEL, Action.APPLY, Action.REVERSE)
_BEFORE_POST = {LegState.NOT_ASKED: LegState.APPLIED, LegState.ASKED: LegState.APPLIED}
_BEFORE_VOID = {
    LegState.NOT_ASKED: LegState.CANCELLED,
    LegState.ASKED: LegState.CANCELLED,
    LegState.APPLIED: LegState.REVERSED,
    LegState.REVERSING: LegState.REVERSED,
}
"""The leg states that a post or a void proves, where neither the record nor the core shows them."""
_FRESH_STATES = {Action.CANCEL: LegState.ASKED, Action.APPLY: LegState.ASKED, Action.REVERSE: LegState.REVERSING}


class ToldTransfer(Struct, frozen=True, kw_only=True):
    """What a kept event of the feed says about a transfer; `failure` is None unless the transfer failed."""

    transfer_id: TransferId
    owner: Owner
    source: Account
    target: Account
    amount: int
    failure: Code | None = None


class InLedger:
    """A transfer as the ledger has it: its hold, and the post or void that resolved it."""

    __slots__ = ("hold", "resolution")

    def __init__(self) -> None:
        self.hold: LedgerTransfer | None = None
        self.resolution: LedgerTransfer | None = None

    def take(self, row: LedgerTransfer) -> None:
        """Takes in one of its rows."""
        if row.flags & TransferFlag.PENDING:
            self.hold = row
        else:
            self.resolution = row

    @property
    def state(self) -> Hold:
        """What became of the hold."""
        if self.resolution is None:
            return Hold.HELD
        return Hold.POSTED if self.resolution.flags & TransferFlag.POST_PENDING_TRANSFER else Hold.VOIDED

    @property
    def newest(self) -> LedgerTransfer:
        """Returns its last row."""
        last = self.resolution or self.hold
        assert last is not None, "it was found by a row"
        return last


class RecordRebuild:
    """One repair of the store. The transfers to rebuild are kept in memory until recorded, about 1 KiB each."""

    def __init__(self, systems: RestoredSystems) -> None:
        self._systems = systems
        self._found: dict[TransferId, InLedger] = {}
        self._named: dict[int, Account] = {}
        self._failures: dict[TransferId, Code] = {}
        self._numbers = {asset.number: asset for asset in systems.rules.assets.values()}
        self._types = {kind.code: kind for kind in systems.rules.account_types.values()}

    async def run(self, told: Iterable[ToldTransfer] = ()) -> None:
        """Rebuilds missing records; raises `Unavailable` or `OutcomeUnknown` if a system does not answer."""
        await self._find()
        begun = {each.id async for page in self._open() for each in page if each.key.startswith(RESTORED_KEY)}
        by_id: dict[TransferId, ToldTransfer] = {}
        for each in told:
            if each.transfer_id in self._found:
                by_id[each.transfer_id] = each
            if each.failure is not None and (each.transfer_id in self._found or each.transfer_id in begun):
                self._failures[each.transfer_id] = each.failure
        if self._found:
            await self._name(by_id)
            for ids in self._systems.pages(sorted(self._found)):
                await self._rebuild(ids, by_id)
                await self._systems.breathe()
        async for known in self._resolved():
            await self._catch_up(known)

    def _open(self) -> AsyncIterator[list[Transfer]]:
        return self._systems.records(Status.REQUESTING, Status.PENDING)

    async def _find(self) -> None:
        systems = self._systems
        async for page in systems.ledger_rows():
            by_transfer: dict[TransferId, list[LedgerTransfer]] = {}
            for row in page:
                transfer_id = transfer_of(row.id)
                if transfer_id is not None and row.flags & TWO_PHASES:
                    by_transfer.setdefault(transfer_id, []).append(row)
            known = {transfer.id for transfer in await systems.transfers(list(by_transfer))}
            for transfer_id, rows in by_transfer.items():
                if transfer_id not in known:
                    found = self._found.setdefault(transfer_id, InLedger())
                    for row in rows:
                        found.take(row)

    async def _name(self, told: dict[TransferId, ToldTransfer]) -> None:
        """Finds out whose accounts these are; nobody knows those that are not in `_named` afterwards."""
        systems = self._systems
        holds = [each.hold for each in self._found.values() if each.hold is not None]
        ids = {account_id for hold in holds for account_id in (hold.debit_account_id, hold.credit_account_id)}
        shapes: dict[int, tuple[str, str]] = {}
        numbers: dict[int, int] = {}
        for page in systems.pages(sorted(ids)):
            rows = await systems.ports.ledger.lookup_accounts(page)
            for row in rows:
                kind, asset = self._types.get(row.code), self._numbers.get(row.ledger)
                if kind is not None and asset is not None:
                    shapes[row.id] = kind.name, asset.code
                    numbers[row.id] = row.user_data_128
        await self._name_by_number(numbers)
        subs = systems.rules.sub_accounts
        owners = {owner for each in told.values() for owner in (each.owner, each.source.owner, each.target.owner)}
        owners |= {account.owner for account in self._named.values()}
        owners |= subs.keys() | {sub for each in subs.values() for sub in each}
        self._try(owners, shapes)
        await self._name_by_verdicts(shapes)
        # Numbers above the largest of these were given out after the store's backup was made, so it has none of them.
        for page in systems.pages(range(1, max(numbers.values(), default=0) + 1)):
            if shapes.keys() <= self._named.keys():
                return
            accounts = await systems.ports.store.registered_by_number(page)
            self._try({account.owner for account in accounts if account is not None}, shapes)

    async def _name_by_number(self, numbers: dict[int, int]) -> None:
        for page in self._systems.pages(list(numbers)):
            accounts = await self._systems.ports.store.registered_by_number([numbers[ledger_id] for ledger_id in page])
            for ledger_id, account in zip(page, accounts, strict=True):
                if account is not None and ledger_account_id(account) == ledger_id:
                    self._named[ledger_id] = account

    async def _name_by_verdicts(self, shapes: dict[int, tuple[str, str]]) -> None:
        """Asks the cores about transfers with an account that has no name, since their verdicts name the owners."""
        ids = [
            transfer_id
            for transfer_id, each in self._found.items()
            if each.hold is not None
            and not self._named.keys() >= {each.hold.debit_account_id, each.hold.credit_account_id}
        ]
        for page in self._systems.pages(ids):
            verdicts = await self._systems.ports.core.verdicts(page)
            moved = [account for said in verdicts for each in said for account in (each.debit, each.credit)]
            self._try({account.owner for account in moved if account is not None}, shapes)

    def _try(self, owners: Iterable[Owner], shapes: dict[int, tuple[str, str]]) -> None:
        kinds = set(shapes.values())
        for owner in owners:
            for kind, asset in kinds:
                account = Account(owner, kind, asset)
                ledger_id = ledger_account_id(account)
                if ledger_id in shapes:
                    self._named[ledger_id] = account

    async def _rebuild(self, ids: Sequence[TransferId], told: dict[TransferId, ToldTransfer]) -> None:
        systems = self._systems
        proposals = []
        for transfer_id in ids:
            found = self._found[transfer_id]
            hold = found.hold
            if hold is None:
                systems.findings.need(
                    "resolution_without_hold", "the ledger has its resolution and no hold", transfer_id
                )
                continue
            source, target = (self._named.get(each) for each in (hold.debit_account_id, hold.credit_account_id))
            if source is None or target is None:
                unknown = [each for each in (hold.debit_account_id, hold.credit_account_id) if each not in self._named]
                detail = f"the ledger has it as {found.state}; nobody can name the accounts {unknown}"
                systems.findings.need(UNNAMED, detail, transfer_id)
                continue
            event = told.get(transfer_id)
            owner = self._owner(source, target) if event is None else event.owner
            proposals.append(self._proposal(transfer_id, hold, owner, source, target))
        if not proposals:
            return
        accounts = [account for each in proposals for account in (each.transfer.source, each.transfer.target)]
        # Pinned first, so that after the next start a rebuilt record is found by its key.
        await systems.ports.operations.pin({KEYS_RESTORED: "1"})
        await systems.ports.store.register(list(dict.fromkeys(accounts)))
        outcomes = await systems.ports.store.accept(proposals)
        rebuilt = []
        for proposal, outcome in zip(proposals, outcomes, strict=True):
            if isinstance(outcome, Accepted):
                rebuilt.append((proposal.transfer, self._found[proposal.transfer.id]))
            else:
                detail = f"its record cannot be rebuilt: {type(outcome).__name__}"
                systems.findings.need("record_refused", detail, proposal.transfer.id)
        systems.findings.done["records_rebuilt"] += len(rebuilt)
        await self._catch_up(rebuilt)

    def _owner(self, source: Account, target: Account) -> Owner:
        """Returns who asked for the transfer: a master that may use both accounts, else the owner of the source."""
        both = {source.owner, target.owner}
        if len(both) > 1:
            for master, subs in sorted(self._systems.rules.sub_accounts.items()):
                if both <= {master, *subs}:
                    return master
        return source.owner

    def _proposal(
        self, transfer_id: TransferId, hold: LedgerTransfer, owner: Owner, source: Account, target: Account
    ) -> Proposal:
        rules, created_at = self._systems.rules, time_of(transfer_id)
        amount = format_amount(hold.amount, scale=rules.assets[source.asset].scale)
        transfer = Transfer(
            id=transfer_id,
            owner=owner,
            key=restored_key(hold.user_data_128),
            source=source,
            target=target,
            amount=hold.amount,
            memo=None,
            legs=legs_of(rules.account_types[source.type], rules.account_types[target.type]),
            created_at=created_at,
            updated_at=created_at,
            due_at=self._systems.ports.clock.now_ms(),
        )
        # The transfer was allowed on its day, which is not decided again; it counts against that day's limit.
        return Proposal(transfer, restored_fingerprint(source, target, amount), AMOUNT_MAX)

    async def _resolved(self) -> AsyncIterator[list[tuple[Transfer, InLedger]]]:
        """Yields open transfers about which the ledger knows more than the record, such as those half rebuilt."""
        systems = self._systems
        async for page in self._open():
            looked = await systems.driver.look(page)
            known = []
            for transfer, (hold, rows) in zip(page, looked, strict=True):
                if transfer.needs_person is not None or transfer.decision is Decision.POST:
                    continue  # A transfer that needs a person, or was posted by one, says nothing about its legs.
                if hold in {Hold.POSTED, Hold.VOIDED} or (hold is Hold.HELD and transfer.status is Status.REQUESTING):
                    found = InLedger()
                    for row in rows:
                        found.take(row)
                    known.append((transfer, found))
            if known:
                yield known

    async def _catch_up(self, known: Sequence[tuple[Transfer, InLedger]]) -> None:
        """Records what ledger and cores say, as far as that needs no command to a core; the scanner does the rest."""
        systems = self._systems
        verdicts = await systems.ports.core.verdicts([transfer.id for transfer, _ in known])
        for (transfer, found), said in zip(known, verdicts, strict=True):
            after, need = _informed(transfer, found, said, self._failures.get(transfer.id))
            if transfer.status is Status.REQUESTING:
                assert found.hold is not None
                after = replace(advance(after, Status.PENDING), updated_at=_milliseconds(found.hold))
            facts = Facts(found.state, contradiction=need)
            going: Transfer | None = await self._record(transfer, after) if after != transfer else transfer
            while going is not None and going.status in OPEN and isinstance(step := next_step(going, facts), Write):
                going = await self._record(going, replace(step.after, updated_at=_milliseconds(found.newest)))
            systems.findings.done["records_caught_up"] += going is not None and going.revision != transfer.revision

    async def _record(self, before: Transfer, after: Transfer) -> Transfer | None:
        [recorded] = await self._systems.ports.store.record(
            [Change(before.revision, replace(after, due_at=self._systems.ports.clock.now_ms()))]
        )
        return recorded


def _informed(
    transfer: Transfer, found: InLedger, said: Sequence[Verdict], failure: Code | None
) -> tuple[Transfer, Need | None]:
    """Returns the transfer with what ledger and cores know of it, and why it needs a person if they contradict it."""
    need = None
    for verdict in sorted(said, key=lambda verdict: _VERDICT_ORDER.index(verdict.action)):
        leg = next((leg for leg in transfer.legs if leg.side is verdict.side), None)
        if leg is None:
            need = Need.CORE_CONTRADICTION
            continue
        fresh = with_leg(transfer, replace(leg, state=_FRESH_STATES[verdict.action]))
        after, contradiction = heard(fresh, verdict)
        if contradiction is None:
            transfer = after
        need = need or contradiction
    resolution = found.resolution
    transfer = replace(transfer, ledger_timestamp=found.newest.timestamp)
    if resolution is None:
        return transfer, need
    attempt = resolution.id & _ATTEMPTS
    if found.state is Hold.POSTED:
        # A post is sent only when every leg is applied.
        transfer = replace(_assume(transfer, _BEFORE_POST), post_attempt=attempt)
    else:
        # A void is sent only when no leg is applied or ever will be.
        transfer = replace(_assume(transfer, _BEFORE_VOID), void_attempt=attempt)
        if not any(leg.state is LegState.REFUSED for leg in transfer.legs):
            transfer = _explain_void(transfer, failure, is_known=bool(said))
    return transfer, need


def _explain_void(transfer: Transfer, failure: Code | None, *, is_known: bool) -> Transfer:
    """Returns the transfer with the reason for its void, if no core says that it refused.

    An event tells the reason. Without one, a core that knows the transfer would say so if it had refused, so an
    operator decided. If the core does not know the transfer, a refusal is by far the likelier.
    """
    if failure is Code.VOIDED_BY_OPERATOR or not transfer.legs or (failure is None and is_known):
        return replace(transfer, decision=Decision.VOID)
    if failure is None:
        return transfer
    reason = INSUFFICIENT_BALANCE if failure is Code.INSUFFICIENT_BALANCE else ""
    return with_leg(transfer, replace(transfer.legs[-1], state=LegState.REFUSED, reason=reason))


def _assume(transfer: Transfer, states: dict[LegState, LegState]) -> Transfer:
    """Returns the transfer with the states of legs that its resolution proves; a core that forgot is told again."""
    legs = tuple(replace(leg, state=states.get(leg.state, leg.state)) for leg in transfer.legs)
    return replace(transfer, legs=legs)


def _milliseconds(row: LedgerTransfer) -> int:
    return row.timestamp // NANOSECONDS_PER_MILLISECOND
