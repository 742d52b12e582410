"""Failpoints: named steps in the life of a transfer at which the process dies.

They sit in front of ports, so that services contain no code for tests. A failpoint makes everything done so far durable
before it dies: otherwise one shared commit would roll all steps back together, and all failpoints would be the same.
"""

import os
import signal
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, NoReturn, cast

from internal_transfer.domain.identifier import FENCE_HOLD_ID
from internal_transfer.domain.leg import Action, Command, LegState, Verdict
from internal_transfer.domain.transfer import Status, Transfer
from internal_transfer.ports.durability import Durability
from internal_transfer.ports.ledger import Ledger, LedgerTransfer, TransferFlag, TransferOutcome, TransferResult
from internal_transfer.ports.trading_core import TradingCore
from internal_transfer.ports.transfer_store import Accepted, AcceptOutcome, Change, Proposal, TransferStore


class Failpoint(StrEnum):
    """The steps at which a process can die; AFTER_PENDING, AFTER_LEG, ... come after the store recorded that."""

    BEFORE_ACCEPT = "before_accept"
    AFTER_ACCEPT = "after_accept"
    BEFORE_HOLD = "before_hold"
    AFTER_HOLD = "after_hold"
    AFTER_PENDING = "after_pending"
    BEFORE_TELL = "before_tell"
    AFTER_TELL = "after_tell"
    AFTER_LEG = "after_leg"
    AFTER_CANCEL = "after_cancel"
    AFTER_REVERSE = "after_reverse"
    BEFORE_POST = "before_post"
    AFTER_POST = "after_post"
    BEFORE_VOID = "before_void"
    AFTER_VOID = "after_void"
    AFTER_FENCING = "after_fencing"
    AFTER_FENCE = "after_fence"
    AFTER_SUCCESS = "after_success"
    AFTER_FAILED = "after_failed"


class Crash(BaseException):
    """The death of a process in a test; only the test may catch it."""


def kill_process() -> NoReturn:
    """Ends this process at once with SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("the process survived SIGKILL")


def crash() -> NoReturn:
    """Raises `Crash`."""
    raise Crash


def _is_hold(sent: LedgerTransfer) -> bool:
    # The hold that a start burns for fences belongs to no transfer.
    return bool(sent.flags & TransferFlag.PENDING) and sent.id != FENCE_HOLD_ID


def _is_void(sent: LedgerTransfer) -> bool:
    return bool(sent.flags & TransferFlag.VOID_PENDING_TRANSFER) and sent.pending_id != FENCE_HOLD_ID


_RECORDED: dict[Failpoint, Callable[[Transfer], bool]] = {
    Failpoint.AFTER_FENCING: lambda after: after.status is Status.REQUESTING and after.fencing,
    Failpoint.AFTER_PENDING: lambda after: after.status is Status.PENDING,
    Failpoint.AFTER_LEG: lambda after: (
        after.status is Status.PENDING and any(leg.state is LegState.APPLIED for leg in after.legs)
    ),
    Failpoint.AFTER_SUCCESS: lambda after: after.status is Status.SUCCESS,
    Failpoint.AFTER_FAILED: lambda after: after.status is Status.FAILED,
}
_BEFORE_LEDGER: dict[Failpoint, Callable[[LedgerTransfer], bool]] = {
    Failpoint.BEFORE_HOLD: _is_hold,
    Failpoint.BEFORE_POST: lambda sent: bool(sent.flags & TransferFlag.POST_PENDING_TRANSFER),
    Failpoint.BEFORE_VOID: _is_void,
}
_AFTER_LEDGER: dict[Failpoint, Callable[[LedgerTransfer], bool]] = {
    Failpoint.AFTER_HOLD: _BEFORE_LEDGER[Failpoint.BEFORE_HOLD],
    Failpoint.AFTER_POST: _BEFORE_LEDGER[Failpoint.BEFORE_POST],
    Failpoint.AFTER_VOID: _BEFORE_LEDGER[Failpoint.BEFORE_VOID],
}
_TOLD = {
    Failpoint.AFTER_TELL: Action.APPLY,
    Failpoint.AFTER_CANCEL: Action.CANCEL,
    Failpoint.AFTER_REVERSE: Action.REVERSE,
}


class Failpoints:
    """Dies at one step, which it sees in front of the ports: see `wrap_store`, `wrap_ledger` and `wrap_core`.

    It waits for `durability` before it dies. `die` is `kill_process` in a server and `crash` in a test.
    """

    def __init__(
        self, failpoint: Failpoint, durability: Durability, *, die: Callable[[], NoReturn] = kill_process
    ) -> None:
        self._failpoint = failpoint
        self._durability = durability
        self._die = die

    def wrap_store(self, inner: TransferStore) -> TransferStore:
        """Returns the store with the failpoint in front."""
        return cast("TransferStore", _Store(inner, self))

    def wrap_ledger(self, inner: Ledger) -> Ledger:
        """Returns the ledger with the failpoint in front."""
        return cast("Ledger", _Ledger(inner, self))

    def wrap_core(self, inner: TradingCore) -> TradingCore:
        """Returns the trading cores with the failpoint in front."""
        return cast("TradingCore", _Core(inner, self))

    def is_at(self, *failpoints: Failpoint) -> bool:
        """Tells whether the process dies at one of these."""
        return self._failpoint in failpoints

    @property
    def failpoint(self) -> Failpoint:
        """The step at which the process dies."""
        return self._failpoint

    async def die(self) -> NoReturn:
        """Makes everything done so far durable, and dies."""
        await self._durability.durable()
        self._die()


class _InFront:
    """Stands in for a port; everything that a subclass does not define is the port's own."""

    def __init__(self, inner: Any, points: Failpoints) -> None:
        self._inner = inner
        self._points = points

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Store(_InFront):
    async def accept(self, proposals: Sequence[Proposal]) -> list[AcceptOutcome]:
        if self._points.is_at(Failpoint.BEFORE_ACCEPT):
            await self._points.die()
        outcomes: list[AcceptOutcome] = await self._inner.accept(proposals)
        if self._points.is_at(Failpoint.AFTER_ACCEPT) and any(isinstance(outcome, Accepted) for outcome in outcomes):
            await self._points.die()
        return outcomes

    async def record(self, changes: Sequence[Change]) -> list[Transfer | None]:
        recorded: list[Transfer | None] = await self._inner.record(changes)
        reached = _RECORDED.get(self._points.failpoint)
        if reached is not None and any(after is not None and reached(after) for after in recorded):
            await self._points.die()
        return recorded


class _Ledger(_InFront):
    async def create_transfers(self, transfers: Sequence[LedgerTransfer]) -> list[TransferOutcome]:
        reached = _BEFORE_LEDGER.get(self._points.failpoint)
        if reached is not None and any(map(reached, transfers)):
            await self._points.die()
        outcomes: list[TransferOutcome] = await self._inner.create_transfers(transfers)
        if self._points.is_at(Failpoint.AFTER_FENCE) and any(sent.pending_id == FENCE_HOLD_ID for sent in transfers):
            await self._points.die()
        reached = _AFTER_LEDGER.get(self._points.failpoint)
        if reached is not None and any(
            outcome.status is TransferResult.CREATED and reached(sent)
            for sent, outcome in zip(transfers, outcomes, strict=True)
        ):
            await self._points.die()
        return outcomes


class _Core(_InFront):
    async def tell(self, commands: Sequence[Command]) -> list[Verdict | None]:
        if self._points.is_at(Failpoint.BEFORE_TELL) and any(command.action is Action.APPLY for command in commands):
            await self._points.die()
        verdicts: list[Verdict | None] = await self._inner.tell(commands)
        action = _TOLD.get(self._points.failpoint)
        if action is not None and any(command.action is action for command in commands):
            await self._points.die()
        return verdicts
