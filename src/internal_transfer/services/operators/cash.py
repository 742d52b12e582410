"""Deposits and withdrawals by operators: the only acts by which money comes in and goes out.

The ledger's id of each is a hash of its reference, so the ledger itself ensures that a reference works once.
"""

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from internal_transfer.domain.account import Account, Asset, Holder, asset_fault, is_asset, is_owner, ledger_account_id
from internal_transfer.domain.amount import AMOUNT_UNITS_MAX, AmountPrecisionError, AmountSyntaxError, parse_amount
from internal_transfer.domain.cash import (
    REFERENCE_CHARACTERS_MAX,
    TRANSFER_CODES,
    CashAct,
    cash_account,
    is_reference,
)
from internal_transfer.domain.identifier import cash_id
from internal_transfer.domain.refusal import Code, Detail, Refusal, refuse_field
from internal_transfer.domain.rules import Rules
from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.errors import OutcomeUnknown, System
from internal_transfer.ports.ledger import LedgerTransfer, TransferOutcome, TransferResult
from internal_transfer.services.after_failures import after_effect
from internal_transfer.services.driver import Driver
from internal_transfer.services.operators.audit import DECIDED, Act, AuditTrail, check_reason

_AMOUNT_CHARACTERS_MAX = 128


class Cash(Struct, frozen=True, kw_only=True):
    """A deposit or withdrawal; `amount` is a decimal string with at most as many places as the asset's scale."""

    account: Account
    amount: str
    reference: str
    reason: str


class CashEvidence(Struct, frozen=True, kw_only=True):
    """The evidence of an entry in the audit chain: all that is needed to repeat the act."""

    account: Account
    amount: str
    units: str
    ledger_id: str


class Teller:
    """Moves money between a user's ledger-held account and the far side of an asset.

    All calls raise `Unavailable` if nothing was done, and `OutcomeUnknown` if it may have been; repeating the call with
    the same reference finds out.
    """

    def __init__(self, ports: Ports, rules: Rules, *, driver: Driver, audit: AuditTrail) -> None:
        self._ledger = ports.ledger
        self._durability = ports.durability
        self._telemetry = ports.telemetry
        self._rules = rules
        self._driver = driver
        self._audit = audit

    async def deposit(self, cash: Cash, *, actor: str) -> Act | Refusal:
        """Credits the account. The outcome is `created`, or `exists` if the reference did the same before."""
        return await self._move(CashAct.DEPOSIT, cash, actor)

    async def withdraw(self, cash: Cash, *, actor: str) -> Act | Refusal:
        """Debits the account, if the ledger finds enough in it. The outcome is `created` or `exists`."""
        return await self._move(CashAct.WITHDRAWAL, cash, actor)

    async def _move(self, act: CashAct, cash: Cash, actor: str) -> Act | Refusal:
        checked = self._check(act, cash)
        if isinstance(checked, Refusal):
            return checked
        asset, units = checked
        account, far_side = cash.account, cash_account(act, asset.code)
        transfer = cash_transfer(act, account, asset, units=units, ledger_id=cash_id(cash.reference))
        evidence = CashEvidence(account=account, amount=cash.amount, units=str(units), ledger_id=str(transfer.id))
        entry = self._audit.entry(
            actor=actor,
            action=act,
            subject=cash.reference,
            reason=cash.reason,
            outcome=DECIDED,
            evidence=msgspec.json.encode(evidence).decode(),
        )
        audit_id = await self._audit.append(entry)
        await self._driver.open_accounts([account, far_side])
        [outcome] = await self._ledger.create_transfers([transfer])
        read = self._read(outcome, cash)
        said = read if isinstance(read, str) else f"refused: {read.code}"
        with after_effect():
            await self._audit.append(replace(entry, outcome=said))
            await self._durability.durable()
        if isinstance(read, Refusal):
            return read
        return Act(action=act, subject=cash.reference, outcome=read, reason=cash.reason, audit_id=audit_id)

    def _check(self, act: CashAct, cash: Cash) -> tuple[Asset, int] | Refusal:
        """Returns the asset and the units, or why not. Retired assets and account types may still be withdrawn from."""
        refusal = check_reason(cash.reason)
        if refusal is not None:
            return refusal
        if not is_reference(cash.reference):
            return refuse_field("reference", f"must be 1 to {REFERENCE_CHARACTERS_MAX} printable ASCII characters")
        account = cash.account
        if not is_owner(account.owner):
            return refuse_field("user", "does not match [A-Za-z0-9_.:-]{1,64}")
        if not is_asset(account.asset):
            return refuse_field("asset", asset_fault(account.asset), Code.INVALID_ASSET)
        asset = self._rules.assets.get(account.asset)
        if asset is None or (asset.closed and act is CashAct.DEPOSIT):
            return refuse_field("asset", "is not an asset offered here", Code.INVALID_ASSET)
        kind = self._rules.account_types.get(account.type)
        if kind is None or (kind.closed and act is CashAct.DEPOSIT):
            return refuse_field("account", "is not an account type offered here", Code.INVALID_ACCOUNT)
        if kind.holder is not Holder.LEDGER:
            way = "move money there with a transfer"
            if act is CashAct.WITHDRAWAL:
                way = "move it out with a transfer first"
            return refuse_field("account", f"is held by a trading core; {way}", Code.INVALID_ACCOUNT)
        units = _units(cash.amount, asset)
        return units if isinstance(units, Refusal) else (asset, units)

    def _read(self, outcome: TransferOutcome, cash: Cash) -> str | Refusal:
        match outcome.status:
            case TransferResult.CREATED | TransferResult.EXISTS:
                return outcome.status.value
            case TransferResult.EXCEEDS_CREDITS:
                return Refusal(Code.INSUFFICIENT_BALANCE, "the account does not have this much available")
            case TransferResult.ID_ALREADY_FAILED:
                rule = "was refused before for lack of balance, and stays refused; use a new reference"
                return refuse_field("reference", rule, Code.INSUFFICIENT_BALANCE)
            case status if status.startswith("exists_with_different_"):
                return _other_content(status, cash)
            case status:
                self._telemetry.unexpected.labels(System.LEDGER, status).inc()
                raise OutcomeUnknown(System.LEDGER, f"unexpected answer to a deposit or withdrawal: {status}")


def cash_transfer(act: CashAct, account: Account, asset: Asset, *, units: int, ledger_id: int) -> LedgerTransfer:
    """Returns a deposit or withdrawal as the ledger has it."""
    far_side = cash_account(act, asset.code)
    debit, credit = (far_side, account) if act is CashAct.DEPOSIT else (account, far_side)
    return LedgerTransfer(
        id=ledger_id,
        debit_account_id=ledger_account_id(debit),
        credit_account_id=ledger_account_id(credit),
        amount=units,
        ledger=asset.number,
        code=TRANSFER_CODES[act],
    )


def _units(amount: str, asset: Asset) -> int | Refusal:
    if len(amount) > _AMOUNT_CHARACTERS_MAX:
        return refuse_field("amount", f"is longer than {_AMOUNT_CHARACTERS_MAX} characters", Code.INVALID_AMOUNT)
    try:
        units = parse_amount(amount, scale=asset.scale, precision=asset.scale)
    except AmountSyntaxError:
        return refuse_field("amount", 'is not a plain decimal number such as "12.5"', Code.INVALID_AMOUNT)
    except AmountPrecisionError:
        return refuse_field("amount", f"has more than {asset.scale} decimal places", Code.INVALID_PRECISION)
    if units == 0:
        return refuse_field("amount", "must be larger than zero", Code.INVALID_AMOUNT)
    if units > AMOUNT_UNITS_MAX:
        return refuse_field("amount", "is more than the ledger can hold", Code.AMOUNT_TOO_LARGE)
    return units


def _other_content(status: TransferResult, cash: Cash) -> Refusal:
    # A deposit and a withdrawal of the same account differ in their accounts too, since the far side differs.
    field = "amount" if status is TransferResult.EXISTS_WITH_DIFFERENT_AMOUNT else "account"
    detail = Detail(field, "differs from what the reference was used for first")
    message = f"the reference {cash.reference!r} was used for another {field}"
    return Refusal(Code.IDEMPOTENCY_KEY_REUSED, message, (detail,))
