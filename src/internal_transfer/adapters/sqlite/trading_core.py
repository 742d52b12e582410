"""The reference trading core: small but complete, in SQLite, keeping every promise of `ports/trading_core.py`.

It serves every core by name: two names are two cores, which share tables but no balances or verdicts.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, assert_never

import apsw

from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.amount import AMOUNT_UNITS_MAX
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Action, Command, Outcome, Side, Verdict
from internal_transfer.domain.transfer import INSUFFICIENT_BALANCE
from internal_transfer.ports.errors import System, Unavailable
from internal_transfer.ports.trading_core import CoreBalance

REFUSED_BY_OPERATOR = "refused_by_operator"
BALANCES_CACHED_MAX = 65_536

# Units are decimal text, since SQLite's integers end at 63 bits and balances may be negative. SQL does no arithmetic.
_SCHEMA = (
    """
    CREATE TABLE core_balance(
        owner TEXT NOT NULL, type TEXT NOT NULL, asset TEXT NOT NULL, core TEXT NOT NULL, posted TEXT NOT NULL,
        PRIMARY KEY (owner, type, asset, core)) STRICT, WITHOUT ROWID;
    CREATE TABLE core_verdict(
        number INTEGER PRIMARY KEY, transfer_id INTEGER NOT NULL, core TEXT NOT NULL, side TEXT NOT NULL,
        action TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL, asset TEXT NOT NULL, amount TEXT NOT NULL,
        debit_owner TEXT, debit_type TEXT, credit_owner TEXT, credit_type TEXT, moved INTEGER NOT NULL) STRICT;
    CREATE UNIQUE INDEX core_verdict_first ON core_verdict(transfer_id, core, side, action);
    """,
)
_LARGEST_ID = "SELECT ifnull(max(transfer_id), 0) FROM core_verdict"
_BALANCE = "SELECT posted FROM core_balance WHERE owner = ? AND type = ? AND asset = ? AND core = ?"
_PUT_BALANCE = """
    INSERT INTO core_balance(posted, owner, type, asset, core) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET posted = excluded.posted"""
_BALANCES = "SELECT owner, type, asset, posted FROM core_balance WHERE owner = ? ORDER BY type, asset, core"
_PUT_VERDICT = """
    INSERT INTO core_verdict(transfer_id, core, side, action, outcome, reason, asset, amount,
        debit_owner, debit_type, credit_owner, credit_type, moved) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_COLUMNS = """number, transfer_id, side, action, outcome, reason, asset, amount,
    debit_owner, debit_type, credit_owner, credit_type"""
_VERDICTS_IN_CORE = f"SELECT {_COLUMNS} FROM core_verdict WHERE transfer_id = ? AND core = ? ORDER BY number"  # noqa: S608
_VERDICTS = f"SELECT {_COLUMNS} FROM core_verdict WHERE transfer_id = ? ORDER BY number"  # noqa: S608
_ENTRIES_AFTER = f"SELECT {_COLUMNS} FROM core_verdict WHERE number > ? AND moved ORDER BY number LIMIT ?"  # noqa: S608

_BalanceKey = tuple[str, str, str, str]
_Row = tuple[Any, ...]


class CoreMode(StrEnum):
    """How the core behaves, for demonstrations and tests.

    PAUSED: it cannot be reached. REFUSE: it refuses every new debit and credit. REFUSE_CREDITS: it refuses only
    credits, so that a core that has already debited has to reverse. WITHHOLD: it drops commands to apply without an
    answer, and carries out those to cancel or reverse.
    """

    NORMAL = "normal"
    PAUSED = "paused"
    REFUSE = "refuse"
    REFUSE_CREDITS = "refuse_credits"
    WITHHOLD = "withhold"


class ReferenceCore:
    """Implements `TradingCore`; verdicts and balances are committed with the database's turn.

    `mode` may be set at any time; a restart does not keep it.
    """

    def __init__(self, database: Database, *, mode: CoreMode = CoreMode.NORMAL) -> None:
        self.mode = mode
        self._database = database
        database.migrate("trading_core", _SCHEMA)
        database.before_commit(self._write_back)
        database.after_rollback(self._forget)
        # No larger id has a verdict, so a larger one needs no look-up. A rollback leaves the value too large, which
        # costs look-ups and nothing else.
        self._largest_id: int = database.connection.execute(_LARGEST_ID).get
        self._balances: dict[_BalanceKey, int] = {}
        self._changed: set[_BalanceKey] = set()

    async def tell(self, commands: Sequence[Command]) -> list[Verdict | None]:
        """Carries commands out at once, each seeing those before it; returns None only in the mode WITHHOLD."""
        for command in commands:
            _check(command)
        self._check_reachable()
        answers: list[Verdict | None] = []
        rows: list[_Row] = []
        with self._database.call() as connection:
            for command in commands:
                transfer_id, action = command.transfer_id, command.action
                if action is Action.APPLY and self.mode is CoreMode.WITHHOLD:
                    answers.append(None)
                    continue
                if transfer_id > self._largest_id:
                    self._largest_id = transfer_id
                    earlier: list[Verdict] = []
                else:
                    if rows:
                        connection.executemany(_PUT_VERDICT, rows)
                        rows.clear()
                    earlier = _read(connection.execute(_VERDICTS_IN_CORE, (transfer_id, command.core)))
                    repeated = _repeated(command, earlier)
                    if repeated is not None:
                        answers.append(repeated)
                        continue
                outcome, reason, moved = self._decide(connection, command, earlier)
                if moved:
                    self._move(connection, command, reverse=action is Action.REVERSE)
                verdict = _verdict(command, outcome, reason)
                rows.append(_row(command.core, verdict, moved=moved))
                answers.append(verdict)
            if rows:
                connection.executemany(_PUT_VERDICT, rows)
        return answers

    async def verdicts(self, transfer_ids: Sequence[TransferId]) -> list[list[Verdict]]:
        """All stored verdicts of each transfer, from all cores, in the order in which they were given."""
        self._check_reachable()
        with self._database.call() as connection:
            return [_read(connection.execute(_VERDICTS, (transfer_id,))) for transfer_id in transfer_ids]

    async def balances(self, owner: Owner) -> list[CoreBalance]:
        """The balances of all accounts that a command ever moved; the reference core never holds a part of one."""
        self._check_reachable()
        with self._database.call() as connection:
            self._write_back()
            return [
                CoreBalance(Account(row[0], row[1], row[2]), posted=int(row[3]), held=0)
                for row in connection.execute(_BALANCES, (owner,))
            ]

    async def entries_after(self, entry: int, most: int) -> list[tuple[int, Verdict]]:
        """The verdicts that moved balances, by rising number; numbers may have gaps."""
        self._check_reachable()
        with self._database.call() as connection:
            rows: list[_Row] = connection.execute(_ENTRIES_AFTER, (entry, most)).fetchall()
        return [(row[0], verdict) for row, verdict in zip(rows, _read(rows), strict=True)]

    def _check_reachable(self) -> None:
        if self.mode is CoreMode.PAUSED:
            raise Unavailable(System.CORE, "the core is paused by the operator")

    def _decide(
        self, connection: apsw.Connection, command: Command, earlier: Sequence[Verdict]
    ) -> tuple[Outcome, str, bool]:
        """Returns the first verdict on a command, its reason and whether it moves balances, by the port's table."""
        leg = [verdict for verdict in earlier if verdict.side is command.side] if earlier else earlier
        applied = next((verdict for verdict in leg if verdict.action is Action.APPLY), None)
        match command.action:
            case Action.APPLY:
                if leg:
                    return Outcome.CANCELLED, "", False  # A leg without an apply is a tombstone.
                if self.mode is CoreMode.REFUSE or (
                    self.mode is CoreMode.REFUSE_CREDITS and command.credit is not None
                ):
                    return Outcome.REFUSED, REFUSED_BY_OPERATOR, False
                debit = command.debit
                if debit is not None and self._posted(connection, _key(command.core, debit)) < command.amount:
                    return Outcome.REFUSED, INSUFFICIENT_BALANCE, False
                return Outcome.APPLIED, "", True
            case Action.CANCEL:
                return (Outcome.CANCELLED, "", False) if applied is None else (applied.outcome, applied.reason, False)
            case Action.REVERSE:
                return Outcome.REVERSED, "", applied is not None and applied.outcome is Outcome.APPLIED
            case _:
                assert_never(command.action)

    def _move(self, connection: apsw.Connection, command: Command, *, reverse: bool) -> None:
        amount = -command.amount if reverse else command.amount
        for account, change in ((command.debit, -amount), (command.credit, amount)):
            if account is not None:
                key = _key(command.core, account)
                self._balances[key] = self._posted(connection, key) + change
                self._changed.add(key)

    def _posted(self, connection: apsw.Connection, key: _BalanceKey) -> int:
        posted = self._balances.get(key)
        if posted is None:
            row = connection.execute(_BALANCE, key).fetchone()
            posted = self._balances[key] = int(row[0]) if row else 0
        return posted

    def _write_back(self) -> None:
        """Writes each balance that this turn changed, once, however many commands moved it."""
        if self._changed:
            balances = self._balances
            self._database.connection.executemany(_PUT_BALANCE, [(str(balances[key]), *key) for key in self._changed])
            self._changed.clear()
        if len(self._balances) > BALANCES_CACHED_MAX:
            self._balances.clear()

    def _forget(self) -> None:
        self._balances.clear()
        self._changed.clear()


def _check(command: Command) -> None:
    assert 0 < command.amount <= AMOUNT_UNITS_MAX, f"amount out of range: {command.amount}"
    assert (command.debit is None) is (command.side is Side.TARGET), f"debit of a leg on {command.side}"
    assert (command.credit is None) is (command.side is Side.SOURCE), f"credit of a leg on {command.side}"
    assert command.debit is None or command.debit.asset == command.asset, "debit of another asset"
    assert command.credit is None or command.credit.asset == command.asset, "credit of another asset"


def _repeated(command: Command, earlier: Iterable[Verdict]) -> Verdict | None:
    """Returns the stored verdict on a repeated command, or a mismatch with an earlier command under its id."""
    stored = None
    for verdict in earlier:
        same_leg = verdict.side is command.side
        if (
            verdict.asset != command.asset
            or verdict.amount != command.amount
            or (same_leg and (verdict.debit != command.debit or verdict.credit != command.credit))
            # A leg on both sides would repeat the effect of a leg on one side.
            or (not same_leg and Side.BOTH in (verdict.side, command.side))
        ):
            return _verdict(command, Outcome.MISMATCH, f"the id was told with other contents to {verdict.action}")
        if same_leg and verdict.action is command.action:
            stored = verdict
    return stored


def _verdict(command: Command, outcome: Outcome, reason: str) -> Verdict:
    return Verdict(
        command.transfer_id,
        command.side,
        command.action,
        outcome,
        reason,
        command.asset,
        command.amount,
        command.debit,
        command.credit,
    )


def _key(core: str, account: Account) -> _BalanceKey:
    return account.owner, account.type, account.asset, core


def _row(core: str, verdict: Verdict, *, moved: bool) -> _Row:
    debit, credit = verdict.debit, verdict.credit
    return (
        verdict.transfer_id,
        core,
        verdict.side,
        verdict.action,
        verdict.outcome,
        verdict.reason,
        verdict.asset,
        str(verdict.amount),
        None if debit is None else debit.owner,
        None if debit is None else debit.type,
        None if credit is None else credit.owner,
        None if credit is None else credit.type,
        moved,
    )


def _read(rows: Iterable[_Row]) -> list[Verdict]:
    verdicts = []
    for _, transfer_id, side, action, outcome, reason, asset, amount, *parties in rows:
        debit, credit = (
            None if owner is None else Account(Owner(owner), kind, asset) for owner, kind in (parties[:2], parties[2:])
        )
        told = TransferId(transfer_id), Side(side), Action(action)
        verdicts.append(Verdict(*told, Outcome(outcome), reason, asset, int(amount), debit, credit))
    return verdicts
