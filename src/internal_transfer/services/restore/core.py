"""Tells trading cores again what they had done, after a core was restored to an earlier point.

A core gives a verdict once and repeats it for ever, so telling it what it knows changes nothing. Still each core is
first asked what it knows, and told only what it does not know: a leg on record as applied is applied, a reversed one is
reversed, and a refused or cancelled one is cancelled, so that a command that is still on its way has no effect. A
verdict that differs from the recorded one needs a person.

A refusal is a verdict too, so debits are told with care: first all credits, then the debits in the order of the
ledger's timestamps, each only if the core's own balance suffices. A debit whose funds are still missing after that
(they came from trades, which the core restores from its own journal) needs a person.
"""

from collections.abc import Sequence

from msgspec import Struct

from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import EPOCH_MS, TransferId, snowflake
from internal_transfer.domain.leg import Action, Command, Leg, LegState, Outcome, Side, Verdict
from internal_transfer.domain.transfer import Status, Transfer, command_of
from internal_transfer.services.operators.evidence import is_applied
from internal_transfer.services.restore.systems import RestoredSystems

LOOKS_MAX = 40
"""How often a core that answers over the bus is asked for its verdicts."""
LOOK_SECONDS = 0.5
CORE_ONLY = "core_entry_without_transfer"
"""The kind of problem: a core moved money for a transfer that no other system has on record."""

_EXPECTED = {
    Action.APPLY: frozenset({Outcome.APPLIED}),
    Action.CANCEL: frozenset({Outcome.CANCELLED, Outcome.REFUSED}),
    Action.REVERSE: frozenset({Outcome.REVERSED}),
}


class _Debit(Struct, frozen=True, order=True):
    """A leg that debits a core's account. Each one that a core lacks is kept in memory, about 100 bytes."""

    is_last: bool
    timestamp: int
    transfer_id: TransferId


class CoreRetelling:
    """One repair of the cores, which leaves out transfers that were accepted before `since_ms`."""

    def __init__(self, systems: RestoredSystems, *, since_ms: int = 0) -> None:
        self._systems = systems
        self._above = None if since_ms <= EPOCH_MS else TransferId(snowflake(at_ms=since_ms, node=0, counter=0) - 1)
        self._debits: list[_Debit] = []

    async def run(self) -> None:
        """Tells the cores what they lack; raises `Unavailable` or `OutcomeUnknown` if a system does not answer."""
        systems = self._systems
        async for page in systems.records(Status.SUCCESS, Status.FAILED, Status.PENDING, above=self._above):
            transfers = [transfer for transfer in page if transfer.legs]
            if not transfers:
                continue
            verdicts = await systems.ports.core.verdicts([transfer.id for transfer in transfers])
            commands = []
            for transfer, said in zip(transfers, verdicts, strict=True):
                for leg in transfer.legs:
                    action = self._missing(transfer, leg, said)
                    if action is Action.APPLY and leg.side is not Side.TARGET:
                        self._debits.append(_Debit(leg.side is Side.SOURCE, transfer.ledger_timestamp, transfer.id))
                    elif action is not None:
                        commands.append(command_of(transfer, leg, action))
            await self._tell(commands)
        await self._debit_all(sorted(self._debits))
        await self._find_unknown()

    def _missing(self, transfer: Transfer, leg: Leg, said: Sequence[Verdict]) -> Action | None:
        """Returns what the core must be told again about a leg, if anything."""
        own = [verdict for verdict in said if verdict.side is leg.side]
        applied = is_applied(leg.side, own)
        match leg.state:
            case LegState.APPLIED if not own:
                return Action.APPLY
            case LegState.REVERSED if not any(verdict.action is Action.REVERSE for verdict in own):
                return Action.REVERSE
            case LegState.REFUSED | LegState.CANCELLED if not own:
                return Action.CANCEL
            case LegState.APPLIED if not applied:
                self._contradicts(transfer, leg)
            case LegState.REVERSED | LegState.REFUSED | LegState.CANCELLED if applied:
                self._contradicts(transfer, leg)
            case _:
                # The core is right, or the leg is open, and then the scanner asks.
                return None
        return None

    def _contradicts(self, transfer: Transfer, leg: Leg) -> None:
        detail = f"the {leg.side} leg is {leg.state} on record, and the core {leg.core!r} says something else"
        self._systems.findings.need("core_contradiction", detail, transfer.id)

    async def _tell(self, commands: Sequence[Command]) -> None:
        if not commands:
            return
        systems = self._systems
        answers = await systems.ports.core.tell(commands)
        for _ in range(LOOKS_MAX):
            silent = [place for place, answer in enumerate(answers) if answer is None]
            if not silent:
                break
            await systems.ports.clock.sleep(LOOK_SECONDS)
            looked = await systems.ports.core.verdicts([commands[place].transfer_id for place in silent])
            for place, said in zip(silent, looked, strict=True):
                answers[place] = next((verdict for verdict in said if _answers(verdict, commands[place])), None)
        for command, answer in zip(commands, answers, strict=True):
            leg = f"the {command.side} leg"
            if answer is None:
                detail = f"the core {command.core!r} was told to {command.action} {leg} and has not answered"
                systems.findings.need("core_silent", detail, command.transfer_id)
            elif answer.outcome not in _EXPECTED[command.action]:
                detail = f"the core {command.core!r}, told to {command.action} {leg} again, said: {answer.outcome}"
                systems.findings.need("core_contradiction", detail, command.transfer_id)
            else:
                systems.findings.done["legs_told_again"] += 1

    async def _debit_all(self, debits: list[_Debit]) -> None:
        """Tells debits in order, and repeats that while some of them fund others."""
        while debits:
            waiting: list[_Debit] = []
            for page in self._systems.pages(debits):
                short = await self._debit([each.transfer_id for each in page])
                waiting += [each for each in page if each.transfer_id in short]
                await self._systems.breathe()
            if len(waiting) == len(debits):
                break
            debits = waiting
        for debit in debits:
            detail = "the core's balance is too small for a debit that it had made: restore its own journal first"
            self._systems.findings.need("core_funds_missing", detail, debit.transfer_id)

    async def _debit(self, ids: Sequence[TransferId]) -> set[TransferId]:
        """Tells the debits that the cores' balances allow; returns the others."""
        systems = self._systems
        transfers = await systems.transfers(ids)
        available = await self._balances({transfer.source.owner for transfer in transfers})
        commands: list[Command] = []
        short: set[TransferId] = set()
        for transfer in transfers:
            leg = next(leg for leg in transfer.legs if leg.side is not Side.TARGET)
            if available.get(transfer.source, 0) < transfer.amount:
                short.add(transfer.id)
                continue
            available[transfer.source] -= transfer.amount
            if leg.side is Side.BOTH:
                available[transfer.target] = available.get(transfer.target, 0) + transfer.amount
            commands.append(command_of(transfer, leg, Action.APPLY))
        await self._tell(commands)
        return short

    async def _find_unknown(self) -> None:
        """Finds what cores did for transfers that store and ledger do not know, both being restored to earlier."""
        systems = self._systems
        async for page in systems.core_entries():
            verdicts = {verdict.transfer_id: verdict for verdict in page}
            known = {transfer.id for transfer in await systems.transfers(list(verdicts))}
            for transfer_id, verdict in verdicts.items():
                if transfer_id not in known:
                    account = verdict.debit or verdict.credit
                    detail = f"a core has {verdict.outcome} {verdict.amount} units of {verdict.asset} for {account}"
                    systems.findings.need(CORE_ONLY, f"{detail}; neither store nor ledger knows of it", transfer_id)

    async def _balances(self, owners: set[Owner]) -> dict[Account, int]:
        available: dict[Account, int] = {}
        for owner in sorted(owners):
            balances = await self._systems.ports.core.balances(owner)
            available.update({balance.account: balance.posted - balance.held for balance in balances})
        return available


def _answers(verdict: Verdict, command: Command) -> bool:
    return (verdict.side, verdict.action) == (command.side, command.action)
