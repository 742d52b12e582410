"""Carries out the steps of transfers: every role moves transfers on through this driver alone.

The gateway drives the transfers that it accepted, the settler those that a core confirmed, the scanner those that are
due, and the desk those that an operator decided. All go through `next_step`, many transfers at a time: each round takes
every transfer's next step and does all steps of one kind as one batch.
"""

from collections.abc import Awaitable, Callable, Sequence

import structlog
from msgspec.structs import replace

from internal_transfer.domain.account import Account, ledger_account_id
from internal_transfer.domain.cash import ACCOUNT_CODES, CASH_OWNER, CashAct
from internal_transfer.domain.identifier import FENCE_HOLD_ID, hold_id, key_hash, post_id, void_id
from internal_transfer.domain.leg import Verdict
from internal_transfer.domain.rules import Rules
from internal_transfer.domain.transfer import (
    OPEN,
    CreateHold,
    Facts,
    FenceHold,
    FencePost,
    Finished,
    Hold,
    LookAtHold,
    PostHold,
    Step,
    Tell,
    Transfer,
    VoidHold,
    Wait,
    Write,
    command_of,
    heard,
    next_step,
)
from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, System
from internal_transfer.ports.ledger import (
    AccountResult,
    LedgerAccount,
    LedgerTransfer,
    TransferFlag,
    TransferOutcome,
    TransferResult,
    account_flags,
)
from internal_transfer.ports.transfer_store import Change, Event
from internal_transfer.services.completions import Completions
from internal_transfer.services.pressure import Pressure
from internal_transfer.services.retry_times import RetryTimes

ROUNDS_MAX = 32
"""More rounds than any path through the table takes; a transfer that needs still more is left to the scanner."""

HOLD_CODE = 1
"""The ledger `code` of holds, posts and voids."""

_KNOWN_ACCOUNTS_MAX = 100_000
_ACCOUNT_EXISTS = frozenset(
    # A registry that was restored to an earlier day gives new numbers to the accounts that came later. The id is a hash
    # of owner, type and asset, so an account with another number is the same account.
    {AccountResult.CREATED, AccountResult.EXISTS, AccountResult.EXISTS_WITH_DIFFERENT_USER_DATA_128}
)
_HOLD_EXISTS = frozenset({Hold.HELD, Hold.POSTED, Hold.VOIDED})

_log = structlog.get_logger(__name__)


class Work:
    """One transfer being worked on: its record, the facts, and how the work ended.

    `events` are those recorded since the work began. `failure` is the last failure of a system. `lost`: another process
    recorded a change in the meantime and goes on with the transfer. `scanned`: it was taken up because it was due.
    """

    __slots__ = ("events", "facts", "failure", "lost", "scanned", "step", "transfer")

    def __init__(self, transfer: Transfer, facts: Facts, *, scanned: bool = False) -> None:
        self.transfer = transfer
        self.facts = facts
        self.scanned = scanned
        self.events: list[Event] = []
        self.failure: OperatingFailureError | None = None
        self.lost = False
        self.step: Step = Wait()


class Driver:
    """Moves transfers on as far as they can go now, and returns when that is durable."""

    def __init__(
        self, ports: Ports, rules: Rules, times: RetryTimes, *, completions: Completions, pressure: Pressure
    ) -> None:
        self._ledger = ports.ledger
        self._store = ports.store
        self._core = ports.core
        self._durability = ports.durability
        self._clock = ports.clock
        self._telemetry = telemetry = ports.telemetry
        self._completions = completions
        self._pressure = pressure
        self._assets = rules.assets
        self._account_types = rules.account_types
        self._times = times
        self._known: dict[Account, int] = {}
        stages: dict[type[Step], tuple[str, Callable[[list[Work]], Awaitable[None]]]] = {
            Write: ("record", self._write),
            LookAtHold: ("look", self._look),
            CreateHold: ("hold", self._hold),
            FenceHold: ("fence", self._fence),
            FencePost: ("fence_post", self._fence_post),
            Tell: ("tell", self._tell),
            PostHold: ("post", self._post),
            VoidHold: ("void", self._void),
        }
        self._stages = {
            step: (carry_out, telemetry.stage_duration.labels(name), telemetry.batch_size.labels(name))
            for step, (name, carry_out) in stages.items()
        }

    async def prepare(self) -> None:
        """Burns the id of the hold that must never exist, which the fence relies on; called once per start."""
        never = LedgerTransfer(
            id=FENCE_HOLD_ID,
            debit_account_id=FENCE_HOLD_ID,
            credit_account_id=FENCE_HOLD_ID + 1,
            amount=1,
            ledger=1,
            code=HOLD_CODE,
            flags=TransferFlag.PENDING,
        )
        [outcome] = await self._ledger.create_transfers([never])
        burnt = {TransferResult.DEBIT_ACCOUNT_NOT_FOUND, TransferResult.ID_ALREADY_FAILED}
        assert outcome.status in burnt, f"the fence's hold could not be burnt: {outcome.status}"

    async def drive(self, works: Sequence[Work]) -> None:
        """Works until every transfer is final or has to wait; each `Work` then holds what is durable.

        Raises `Unavailable` or `OutcomeUnknown` if the commit of this work failed. A failure of a single system does
        not raise: it is in `Work.failure`, and the transfer is due again later.
        """
        active = list(works)
        for _ in range(ROUNDS_MAX):
            active = await self._round(active)
            if not active:
                break
        finished = [work.transfer for work in works if work.events and work.transfer.status not in OPEN]
        await self._put_off([work for work in works if self._is_owed(work)])
        await self._durability.durable()
        self._remember_accounts(works)
        if finished:
            self._pressure.finished(len(finished))
            self._completions.announce(transfer.id for transfer in finished)
            for transfer in finished:
                tell = _log.debug if transfer.failure is None else _log.info
                tell("transfer_final", request_id=str(transfer.id), status=transfer.status, code=transfer.failure)

    def _remember_accounts(self, works: Sequence[Work]) -> None:
        known = self._known
        for work in works:
            if work.facts.hold not in _HOLD_EXISTS:
                continue
            for account in (work.transfer.source, work.transfer.target):
                if account not in known:
                    if len(known) >= _KNOWN_ACCOUNTS_MAX:
                        known.clear()
                    known[account] = ledger_account_id(account)

    def is_expired(self, transfer: Transfer) -> bool:
        """Tells whether the transfer is too old for its hold to be created, if it does not exist yet."""
        return self._clock.now_ms() - transfer.created_at > self._times.expiry_seconds * 1000

    async def _round(self, active: list[Work]) -> list[Work]:
        groups: dict[type[Step], list[Work]] = {}
        for work in active:
            step = next_step(work.transfer, work.facts)
            kind = type(step)
            if kind is Wait or kind is Finished:
                continue
            work.step = step
            group = groups.get(kind)
            if group is None:
                groups[kind] = [work]
            else:
                group.append(work)
        going: list[Work] = []
        for kind, group in groups.items():
            carry_out, duration, size = self._stages[kind]
            started = self._clock.monotonic()
            try:
                await carry_out(group)
            except OperatingFailureError as error:
                self._failed(group, error)
            duration.observe(self._clock.monotonic() - started)
            size.observe(len(group))
            going += [work for work in group if work.failure is None and not work.lost]
        return going

    def _failed(self, group: list[Work], error: OperatingFailureError) -> None:
        _log.warning("call_failed", system=error.system, error=str(error), transfers=len(group))
        for work in group:
            work.failure = error

    @staticmethod
    def _is_owed(work: Work) -> bool:
        """Tells whether the next time at which this transfer is due must be recorded."""
        if work.lost or work.transfer.status not in OPEN:
            return False
        return work.scanned or work.failure is not None

    async def _put_off(self, works: list[Work]) -> None:
        if not works:
            return
        now = self._clock.now_ms()
        changes = []
        for work in works:
            attempts = work.transfer.attempts + 1
            due = now + int(self._times.pause_seconds(attempts, self._clock.jitter()) * 1000)
            after = replace(work.transfer, attempts=attempts, due_at=due)
            changes.append(Change(work.transfer.revision, after))
        try:
            recorded = await self._store.record(changes)
        except OperatingFailureError:
            return  # The transfer stays due at the time that was recorded before.
        for work, transfer in zip(works, recorded, strict=True):
            if transfer is not None:
                work.transfer = transfer

    async def _write(self, works: list[Work]) -> None:
        now = self._clock.now_ms()
        due = now + int(self._times.acting_seconds * 1000)
        changes = []
        for work in works:
            assert isinstance(work.step, Write)
            after = replace(work.step.after, updated_at=now, due_at=due)
            changes.append(Change(work.transfer.revision, after))
        recorded = await self._store.record(changes)
        for work, transfer in zip(works, recorded, strict=True):
            if transfer is None:
                work.lost = True
                continue
            before, work.transfer = work.transfer, transfer
            if transfer.version != before.version:
                work.events.append(Event(transfer.id, transfer.version, transfer.status, now, transfer.failure))
            if transfer.needs_person is not before.needs_person and transfer.needs_person is not None:
                _log.error("needs_person", request_id=str(transfer.id), reason=transfer.needs_person)
            if transfer.post_attempt != before.post_attempt:
                work.facts.post_burnt = False
            if transfer.void_attempt != before.void_attempt:
                work.facts.void_burnt = False

    async def _hold(self, works: list[Work]) -> None:
        works = await self._with_accounts(works)
        if not works:
            return
        outcomes = await self._create("hold", [self.hold_of(work.transfer) for work in works])
        for work, outcome in zip(works, outcomes, strict=True):
            match outcome.status:
                case TransferResult.CREATED | TransferResult.EXISTS:
                    work.facts.hold = Hold.HELD
                    work.transfer = replace(work.transfer, ledger_timestamp=outcome.timestamp)
                case TransferResult.EXCEEDS_CREDITS | TransferResult.EXCEEDS_DEBITS:
                    work.facts.hold = Hold.REFUSED
                case TransferResult.ID_ALREADY_FAILED:
                    work.facts.hold = Hold.BURNT
                case status if status.startswith("exists_with_different_"):
                    work.facts.hold = Hold.FOREIGN
                case status:
                    self._unexpected(work, "hold", status)

    async def _fence(self, works: list[Work]) -> None:
        fences = [fence_of(hold_id(work.transfer.id)) for work in works]
        for work, outcome in zip(works, await self._create("fence", fences), strict=True):
            match outcome.status:
                case TransferResult.PENDING_TRANSFER_NOT_FOUND | TransferResult.ID_ALREADY_FAILED:
                    work.facts.hold = Hold.BURNT
                case status if status.startswith("exists"):
                    work.facts.hold = Hold.UNKNOWN  # The hold was created in time; look whose it is.
                case status:
                    work.facts.fence_unclear = True
                    self._unexpected(work, "fence", status)

    async def _fence_post(self, works: list[Work]) -> None:
        fences = [fence_of(post_id(work.transfer.id, work.transfer.post_attempt)) for work in works]
        for work, outcome in zip(works, await self._create("fence", fences), strict=True):
            match outcome.status:
                case TransferResult.PENDING_TRANSFER_NOT_FOUND | TransferResult.ID_ALREADY_FAILED:
                    work.facts.post_fenced = True
                case status if status.startswith("exists"):
                    work.facts.hold = Hold.UNKNOWN  # The hold was posted in time; look whether the post is ours.
                case status:
                    self._unexpected(work, "fence_post", status)

    async def _post(self, works: list[Work]) -> None:
        posts = [post_of(work.transfer) for work in works]
        for work, outcome in zip(works, await self._create("post", posts), strict=True):
            if outcome.status is TransferResult.ID_ALREADY_FAILED:
                work.facts.post_burnt = True
            else:
                self._resolved(work, outcome, Hold.POSTED, "post")

    async def _void(self, works: list[Work]) -> None:
        voids = [void_of(work.transfer) for work in works]
        for work, outcome in zip(works, await self._create("void", voids), strict=True):
            if outcome.status is TransferResult.ID_ALREADY_FAILED:
                work.facts.void_burnt = True
            else:
                self._resolved(work, outcome, Hold.VOIDED, "void")

    def _resolved(self, work: Work, outcome: TransferOutcome, meant: Hold, act: str) -> None:
        """Reads the answer to a post or a void."""
        match outcome.status:
            case TransferResult.CREATED | TransferResult.EXISTS:
                work.facts.hold = meant
                work.transfer = replace(work.transfer, ledger_timestamp=outcome.timestamp)
            case TransferResult.PENDING_TRANSFER_ALREADY_POSTED:
                work.facts.hold = Hold.POSTED
            case TransferResult.PENDING_TRANSFER_ALREADY_VOIDED:
                work.facts.hold = Hold.VOIDED
            case TransferResult.PENDING_TRANSFER_NOT_FOUND:
                work.facts.hold = Hold.ABSENT
            case status if status.startswith("exists_with_different_"):
                work.facts.hold = Hold.FOREIGN
            case status:
                self._unexpected(work, act, status)

    async def _look(self, works: list[Work]) -> None:
        for work, (hold, rows) in zip(works, await self.look([work.transfer for work in works]), strict=True):
            work.facts.hold = hold
            if hold in _HOLD_EXISTS:
                # A restored ledger is filled in the order of these timestamps, so a hold that was found needs one too.
                work.transfer = replace(work.transfer, ledger_timestamp=max(row.timestamp for row in rows))

    async def look(self, transfers: Sequence[Transfer]) -> list[tuple[Hold, list[LedgerTransfer]]]:
        """Returns what became of each hold, in order, with the ledger's rows that show it: the hold itself, then every
        post and void that was tried.
        """
        ids_of = []
        for transfer in transfers:
            ids = [hold_id(transfer.id)]
            ids += [post_id(transfer.id, attempt) for attempt in range(transfer.post_attempt + 1)]
            ids += [void_id(transfer.id, attempt) for attempt in range(transfer.void_attempt + 1)]
            ids_of.append(ids)
        found = await self._ledger.lookup_transfers([ledger_id for ids in ids_of for ledger_id in ids])
        rows = {row.id: row for row in found}
        return [
            (self._seen(transfer, rows), [rows[ledger_id] for ledger_id in ids if ledger_id in rows])
            for transfer, ids in zip(transfers, ids_of, strict=True)
        ]

    def _seen(self, transfer: Transfer, rows: dict[int, LedgerTransfer]) -> Hold:
        hold = rows.get(hold_id(transfer.id))
        if hold is None:
            return Hold.ABSENT
        if replace(hold, timestamp=0) != self.hold_of(transfer):
            return Hold.FOREIGN
        resolutions = (
            (Hold.POSTED, TransferFlag.POST_PENDING_TRANSFER, post_id, transfer.post_attempt),
            (Hold.VOIDED, TransferFlag.VOID_PENDING_TRANSFER, void_id, transfer.void_attempt),
        )
        for meaning, flag, id_of, last_attempt in resolutions:
            for attempt in range(last_attempt + 1):
                row = rows.get(id_of(transfer.id, attempt))
                if row is not None:
                    ours = row.pending_id == hold.id and row.flags == flag and row.amount == transfer.amount
                    return meaning if ours else Hold.FOREIGN
        return Hold.HELD

    async def _tell(self, works: list[Work]) -> None:
        commands = []
        for work in works:
            assert isinstance(work.step, Tell)
            commands.append(command_of(work.transfer, work.step.leg, work.step.action))
            self._pressure.told(work.transfer.id, work.step.leg)
        for work, verdict in zip(works, await self._core.tell(commands), strict=True):
            assert isinstance(work.step, Tell)
            work.facts.told |= {(work.step.leg.side, work.step.action)}
            if verdict is not None:
                self._pressure.heard(work.step.leg.core)
                self.hear(work, verdict)

    def hear(self, work: Work, verdict: Verdict) -> None:
        """Takes in what a core said about a transfer."""
        work.transfer, need = heard(work.transfer, verdict)
        if need is not None:
            work.facts.contradiction = need
            _log.error("core_contradiction", request_id=str(work.transfer.id), verdict=verdict, need=need)

    def _unexpected(self, work: Work, act: str, status: TransferResult) -> None:
        work.facts.hold = Hold.UNEXPECTED
        self._telemetry.unexpected.labels("ledger", status).inc()
        _log.error("unexpected_ledger_answer", request_id=str(work.transfer.id), act=act, answer=status)

    async def _create(self, operation: str, transfers: list[LedgerTransfer]) -> list[TransferOutcome]:
        started = self._clock.monotonic()
        try:
            return await self._ledger.create_transfers(transfers)
        finally:
            self._telemetry.ledger_operation.labels(operation).observe(self._clock.monotonic() - started)

    def hold_of(self, transfer: Transfer) -> LedgerTransfer:
        """Returns the hold of a transfer as the ledger has it."""
        known = self._known
        source, target = transfer.source, transfer.target
        return LedgerTransfer(
            id=hold_id(transfer.id),
            debit_account_id=known.get(source) or ledger_account_id(source),
            credit_account_id=known.get(target) or ledger_account_id(target),
            amount=transfer.amount,
            user_data_128=key_hash(transfer.owner, transfer.key),
            ledger=self._assets[source.asset].number,
            code=HOLD_CODE,
            flags=TransferFlag.PENDING,
        )

    async def _with_accounts(self, works: list[Work]) -> list[Work]:
        """Creates the accounts of holds, since a hold on a missing account would burn its id.

        Returns the works whose accounts exist; the others have failed and do not hold these up. An account counts as
        known only when a hold on it is durable, since a turn that is rolled back takes the account with it.
        """
        known = self._known
        new = {
            account: None
            for work in works
            for account in (work.transfer.source, work.transfer.target)
            if account not in known
        }
        rejected = await self._create_accounts(list(new)) if new else {}
        if not rejected:
            return works
        for work in works:
            failure = rejected.get(work.transfer.source) or rejected.get(work.transfer.target)
            if failure is not None:
                self._failed([work], failure)
        return [work for work in works if work.failure is None]

    def _code_of(self, account: Account) -> int:
        if account.owner == CASH_OWNER:
            return ACCOUNT_CODES[CashAct(account.type)]
        return self._account_types[account.type].code

    def _flags_of(self, account: Account) -> int:
        if account.owner == CASH_OWNER:
            return 0
        return account_flags(self._account_types[account.type])

    async def open_accounts(self, accounts: list[Account]) -> None:
        """Registers accounts and creates them in the ledger; raises `OutcomeUnknown` if the ledger rejects one."""
        for failure in (await self._create_accounts(accounts)).values():
            raise failure

    async def _create_accounts(self, accounts: list[Account]) -> dict[Account, OutcomeUnknown]:
        """Registers accounts and creates them in the ledger; returns those that the ledger does not take, and why."""
        registered = await self._store.register(accounts)
        rows = [
            LedgerAccount(
                id=ledger_account_id(entry.account),
                ledger=self._assets[entry.account.asset].number,
                code=self._code_of(entry.account),
                flags=self._flags_of(entry.account),
                user_data_128=entry.number,
            )
            for entry in registered
        ]
        rejected: dict[Account, OutcomeUnknown] = {}
        for account, outcome in zip(accounts, await self._ledger.create_accounts(rows), strict=True):
            if outcome.status not in _ACCOUNT_EXISTS:
                self._telemetry.unexpected.labels("ledger", outcome.status).inc()
                _log.error("account_rejected", account=account, answer=outcome.status)
                message = f"account {account} cannot be created: {outcome.status}"
                rejected[account] = OutcomeUnknown(System.LEDGER, message)
        return rejected


def post_of(transfer: Transfer) -> LedgerTransfer:
    """Returns the post of a transfer's hold, under the id of the attempt on record."""
    return LedgerTransfer(
        id=post_id(transfer.id, transfer.post_attempt),
        pending_id=hold_id(transfer.id),
        amount=transfer.amount,
        flags=TransferFlag.POST_PENDING_TRANSFER,
    )


def void_of(transfer: Transfer) -> LedgerTransfer:
    """Returns the void of a transfer's hold, under the id of the attempt on record."""
    return LedgerTransfer(
        id=void_id(transfer.id, transfer.void_attempt),
        pending_id=hold_id(transfer.id),
        flags=TransferFlag.VOID_PENDING_TRANSFER,
    )


def fence_of(ledger_id: int) -> LedgerTransfer:
    """Returns a void of the hold that can never exist: it burns this id, unless a transfer already has it."""
    return LedgerTransfer(id=ledger_id, pending_id=FENCE_HOLD_ID, flags=TransferFlag.VOID_PENDING_TRANSFER)
