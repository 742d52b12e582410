"""The promises of `ports/trading_core.py`, and one check for each.

A check tells commands under its own ids and raises `BrokenPromiseError` where the core breaks the promise. No check
depends on another, or on how much the accounts hold.
"""

import asyncio
from collections.abc import Awaitable, Callable

from msgspec import Struct
from msgspec.structs import replace

from internal_transfer.conformance.bench import Bench, BrokenPromiseError, LeftOutError
from internal_transfer.domain.account import Account
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Action, Command, Outcome, Side, Verdict

APPLY, CANCEL, REVERSE = Action.APPLY, Action.CANCEL, Action.REVERSE

RACERS = 5

ACCEPTED_LEG: tuple[tuple[tuple[Action, ...], Action, Outcome, int], ...] = (
    ((), APPLY, Outcome.APPLIED, 1),
    ((CANCEL,), APPLY, Outcome.CANCELLED, 0),
    ((REVERSE,), APPLY, Outcome.CANCELLED, 0),
    ((), CANCEL, Outcome.CANCELLED, 0),
    ((REVERSE,), CANCEL, Outcome.CANCELLED, 0),
    ((APPLY,), CANCEL, Outcome.APPLIED, 1),
    ((APPLY, REVERSE), CANCEL, Outcome.APPLIED, 0),
    ((APPLY,), REVERSE, Outcome.REVERSED, 0),
    ((APPLY, CANCEL), REVERSE, Outcome.REVERSED, 0),
    ((), REVERSE, Outcome.REVERSED, 0),
    ((CANCEL,), REVERSE, Outcome.REVERSED, 0),
    ((CANCEL, REVERSE), APPLY, Outcome.CANCELLED, 0),
)
"""Actions told before, the action told, the outcome that is due, and how many times the amount has moved then."""

_Check = Callable[[Bench], Awaitable[None]]


class Promise(Struct, frozen=True):
    """A promise: its name, what it says, and the check."""

    name: str
    says: str
    check: _Check


PROMISES: list[Promise] = []
"""Every promise, in the order in which they are checked: the order of this module."""


def _promise(name: str, says: str) -> Callable[[_Check], _Check]:
    """Adds a check to `PROMISES`."""

    def add(check: _Check) -> _Check:
        PROMISES.append(Promise(name, says, check))
        return check

    return add


@_promise("answers", "a command is answered, and the answer echoes its fields")
async def _answers(bench: Bench) -> None:
    for side in (Side.TARGET, Side.SOURCE):
        verdict = await bench.expect(bench.command(bench.new_id(), side=side), Outcome.APPLIED)
        if verdict.reason:
            raise BrokenPromiseError(f"an applied leg has no reason: {verdict}")


@_promise("always_answers", "telling again is asking: every command is answered, however often it is told")
async def _always_answers(bench: Bench) -> None:
    command = bench.command(bench.new_id())
    for _ in range(3):
        await bench.expect(command, Outcome.APPLIED)


@_promise("one_effect", "however often a command is told, it has its effect once")
async def _one_effect(bench: Bench) -> None:
    apply = bench.command(bench.new_id())
    reverse = replace(apply, action=REVERSE)

    async def often(command: Command) -> None:
        await bench.tell(command, command, command)
        await bench.tell(command)

    await bench.expect_change(bench.plan.amount, lambda: often(apply), of=bench.plan.account)
    await bench.expect_change(-bench.plan.amount, lambda: often(reverse), of=bench.plan.account)
    await bench.expect_change(0, lambda: often(apply), of=bench.plan.account)
    raced = bench.command(bench.new_id())
    # Several processes of the service may tell one command at the same moment.
    await bench.expect_change(
        bench.plan.amount,
        lambda: asyncio.gather(*(bench.tell(raced) for _ in range(RACERS))),
        of=bench.plan.account,
    )


@_promise("first_verdict", "the first verdict for (transfer id, leg, action) is repeated for ever")
async def _first_verdict(bench: Bench) -> None:
    too_much = max(await bench.posted(), 0) + bench.plan.amount
    refused = bench.command(bench.new_id(), side=Side.SOURCE, amount=too_much)
    await bench.expect(refused, Outcome.REFUSED)
    money = bench.command(bench.new_id(), amount=bench.plan.amount)
    await bench.expect(money, Outcome.APPLIED)
    await bench.expect_change(0, lambda: bench.expect(refused, Outcome.REFUSED), of=bench.plan.account)
    cancelled = bench.command(bench.new_id(), CANCEL)
    await bench.expect(cancelled, Outcome.CANCELLED)
    await bench.tell(replace(cancelled, action=APPLY), replace(cancelled, action=REVERSE))
    await bench.expect(cancelled, Outcome.CANCELLED)
    await bench.tell(replace(money, action=REVERSE))
    await bench.expect(money, Outcome.APPLIED)


@_promise("tombstones", "an id that was cancelled or reversed before it was seen is never applied")
async def _tombstones(bench: Bench) -> None:
    for action in (CANCEL, REVERSE):
        for side in (Side.TARGET, Side.SOURCE):
            tombstone = bench.command(bench.new_id(), action, side)
            await bench.tell(tombstone)
            before = await bench.posted()
            await bench.expect(replace(tombstone, action=APPLY), Outcome.CANCELLED)
            if await bench.posted() != before:
                raise BrokenPromiseError(f"a command to apply after its {action} on {side} moved the balance")


@_promise("cancel_and_reverse", "every line of the table of apply, cancel and reverse")
async def _cancel_and_reverse(bench: Bench) -> None:
    for seen, told, outcome, times in ACCEPTED_LEG:
        for side in (Side.TARGET, Side.SOURCE):
            await _line(bench, (*seen, told), outcome, side=side, times=times)


async def _line(bench: Bench, actions: tuple[Action, ...], outcome: Outcome, *, side: Side, times: int) -> None:
    amount = bench.plan.amount
    if side is Side.SOURCE:
        await bench.expect(bench.command(bench.new_id()), Outcome.APPLIED)  # What is debited has to be there.
    before = await bench.posted()
    transfer_id = bench.new_id()
    for action in actions[:-1]:
        await bench.tell(bench.command(transfer_id, action, side))
    await bench.expect(bench.command(transfer_id, actions[-1], side), outcome)
    changed = await bench.posted() - before
    due = times * (amount if side is Side.TARGET else -amount)
    if changed != due:
        raise BrokenPromiseError(
            f"after {', '.join(actions)} on {side} the balance has changed by {changed}, due was {due}"
        )


@_promise("order_of_a_leg", "commands about one transfer are carried out in the order told")
async def _order_of_a_leg(bench: Bench) -> None:
    transfer_id = bench.new_id()
    batch = [bench.command(transfer_id, action) for action in (APPLY, CANCEL, REVERSE)]
    verdicts = await bench.tell(*batch)
    outcomes = [verdict.outcome for verdict in verdicts]
    if outcomes != [Outcome.APPLIED, Outcome.APPLIED, Outcome.REVERSED]:
        raise BrokenPromiseError(f"apply, cancel and reverse, told in this order at once, were answered by {outcomes}")


@_promise("refusal", "a refusal has a reason and no effect; its cancel is refused, its reversal moves nothing")
async def _refusal(bench: Bench) -> None:
    too_much = max(await bench.posted(), 0) + bench.plan.amount
    transfer_id = bench.new_id()
    refused = bench.command(transfer_id, side=Side.SOURCE, amount=too_much)

    async def all_of_it() -> None:
        verdict = await bench.expect(refused, Outcome.REFUSED)
        if not verdict.reason:
            raise BrokenPromiseError("a refusal has to say why: its reason is empty")
        await bench.expect(replace(refused, action=CANCEL), Outcome.REFUSED)
        await bench.expect(replace(refused, action=REVERSE), Outcome.REVERSED)

    await bench.expect_change(0, all_of_it, of=bench.plan.account)


@_promise("mismatch", "the same id with other contents is a mismatch without effect, and is not remembered")
async def _mismatch(bench: Bench) -> None:
    first = bench.command(bench.new_id())
    tombstone = bench.command(bench.new_id(), CANCEL)
    await bench.expect(first, Outcome.APPLIED)
    await bench.expect(tombstone, Outcome.CANCELLED)
    stored = await bench.core.verdicts([first.transfer_id])

    async def others() -> None:
        for other in _with_other_contents(bench, first):
            await bench.expect(other, Outcome.MISMATCH)
        await bench.expect(replace(tombstone, action=APPLY, amount=tombstone.amount + 1), Outcome.MISMATCH)

    before = await bench.posted(bench.plan.other)
    await bench.expect_change(0, others, of=bench.plan.account)
    if await bench.posted(bench.plan.other) != before:
        raise BrokenPromiseError("a command with other contents moved the other account's balance")
    await bench.expect(first, Outcome.APPLIED)
    if await bench.core.verdicts([first.transfer_id]) != stored:
        raise BrokenPromiseError("commands with other contents changed what is stored for their id")


def _with_other_contents(bench: Bench, first: Command) -> list[Command]:
    """Commands with the same id and another amount, account, asset or direction, to apply, cancel and reverse."""
    plan, account = bench.plan, bench.plan.account
    moved = Account(account.owner, account.type, plan.other_asset)
    others = [
        replace(first, amount=first.amount + 1),
        replace(first, credit=plan.other),
        replace(first, asset=plan.other_asset, credit=moved),
        replace(first, action=CANCEL, amount=first.amount + 1),
        replace(first, action=REVERSE, amount=first.amount + 1),
        replace(first, action=REVERSE, credit=plan.other),
    ]
    if plan.both:
        others.append(replace(first, side=Side.BOTH, debit=plan.other))
    return others


@_promise("sides", "the debit and the credit of one transfer are two separate legs")
async def _sides(bench: Bench) -> None:
    transfer_id = bench.new_id()
    credit, debit = bench.command(transfer_id), bench.command(transfer_id, side=Side.SOURCE)
    await bench.expect_change(bench.plan.amount, lambda: bench.expect(credit, Outcome.APPLIED), of=bench.plan.account)
    await bench.expect_change(-bench.plan.amount, lambda: bench.expect(debit, Outcome.APPLIED), of=bench.plan.account)
    await bench.expect_change(
        bench.plan.amount,
        lambda: bench.expect(replace(debit, action=REVERSE), Outcome.REVERSED),
        of=bench.plan.account,
    )
    await bench.expect(replace(credit, action=CANCEL), Outcome.APPLIED)


@_promise("reversal", "a reversal is unconditional, also of a credit that was spent")
async def _reversal(bench: Bench) -> None:
    credit = bench.command(bench.new_id())
    await bench.expect(credit, Outcome.APPLIED)
    spent = max(await bench.posted(), bench.plan.amount)
    await bench.expect(bench.command(bench.new_id(), side=Side.SOURCE, amount=spent), Outcome.APPLIED)
    undo = replace(credit, action=REVERSE)
    await bench.expect_change(-bench.plan.amount, lambda: bench.expect(undo, Outcome.REVERSED), of=bench.plan.account)


@_promise("both_sides", "a leg on both sides moves both accounts or none")
async def _both_sides(bench: Bench) -> None:
    plan = bench.plan
    if not plan.both:
        raise LeftOutError("the plan says that this core moves one side at a time")
    short = plan.amount - await bench.posted()
    if short > 0:
        await bench.expect(bench.command(bench.new_id(), amount=short), Outcome.APPLIED)
    both = bench.command(bench.new_id(), side=Side.BOTH)
    for action, outcome, change in ((APPLY, Outcome.APPLIED, plan.amount), (REVERSE, Outcome.REVERSED, -plan.amount)):
        before = await bench.posted(plan.account), await bench.posted(plan.other)
        await bench.expect(replace(both, action=action), outcome)
        after = await bench.posted(plan.account), await bench.posted(plan.other)
        if (after[0] - before[0], after[1] - before[1]) != (-change, change):
            raise BrokenPromiseError(f"to {action} both sides changed the balances from {before} to {after}")
    too_much = bench.command(bench.new_id(), side=Side.BOTH, amount=max(await bench.posted(), 0) + plan.amount)
    await bench.expect_change(0, lambda: bench.expect(too_much, Outcome.REFUSED), of=plan.other)


@_promise("largest", "the largest amount is exact")
async def _largest(bench: Bench) -> None:
    largest = bench.command(bench.new_id(), amount=bench.plan.amount_largest)
    await bench.expect_change(
        bench.plan.amount_largest, lambda: bench.expect(largest, Outcome.APPLIED), of=bench.plan.account
    )
    await bench.expect(replace(largest, action=REVERSE), Outcome.REVERSED)


@_promise("lookup", "all verdicts of a transfer can be looked up in the order given; looking changes nothing")
async def _lookup(bench: Bench) -> None:
    transfer_id, unseen = bench.new_id(), bench.new_id()
    given: list[Verdict] = []
    for action, side in ((REVERSE, Side.TARGET), (CANCEL, Side.SOURCE), (APPLY, Side.TARGET), (APPLY, Side.SOURCE)):
        given += await bench.tell(bench.command(transfer_id, action, side))
    found = await bench.core.verdicts([unseen, transfer_id])
    if found != [[], given]:
        raise BrokenPromiseError(
            f"the look-up of an unseen id and one with verdicts gave {found}, due was {[[], given]}"
        )
    # To ask about an id must not leave a tombstone.
    await bench.expect(bench.command(unseen), Outcome.APPLIED)


@_promise("balances", "balances are the owner's own and change with each verdict")
async def _balances(bench: Bench) -> None:
    plan = bench.plan
    before = await bench.posted(plan.other)
    await bench.expect_change(
        plan.amount, lambda: bench.expect(bench.command(bench.new_id()), Outcome.APPLIED), of=plan.account
    )
    if await bench.posted(plan.other) != before:
        raise BrokenPromiseError("a credit of one account changed the balance of another one")


@_promise("entries", "entries are what moved balances, once each, rising, page by page")
async def _entries(bench: Bench) -> None:
    start = await bench.last_entry()
    one, two, refused = bench.command(bench.new_id()), bench.command(bench.new_id()), bench.new_id()
    too_much = max(await bench.posted(), 0) + 3 * bench.plan.amount
    for command in (
        one,
        bench.command(refused, side=Side.SOURCE, amount=too_much),
        bench.command(bench.new_id(), CANCEL),
        two,
        one,
        replace(one, action=CANCEL),
        replace(one, action=REVERSE),
        replace(one, action=REVERSE),
        bench.command(refused, REVERSE, Side.SOURCE, amount=too_much),
    ):
        await bench.tell(command)
    ours = {one.transfer_id, two.transfer_id, refused}
    entries = [entry for entry in await bench.entries_since(start) if entry[1].transfer_id in ours]
    found = [(verdict.transfer_id, verdict.outcome) for _, verdict in entries]
    due = [
        (one.transfer_id, Outcome.APPLIED),
        (two.transfer_id, Outcome.APPLIED),
        (one.transfer_id, Outcome.REVERSED),
    ]
    if found != due:
        raise BrokenPromiseError(f"the entries are {found}, due was {due}")
    page = await bench.core.entries_after(start, 1)
    if len(page) != 1 or page != (await bench.core.entries_after(start, 2))[:1]:
        raise BrokenPromiseError(f"a page of at most one entry is {page}")
    if any(number <= entries[0][0] for number, _ in await bench.entries_since(entries[0][0])):
        raise BrokenPromiseError("entries that were seen come again")


async def repeated_after_restart(bench: Bench, entries: list[tuple[int, Verdict]], start: int) -> None:
    """Checks that a restarted core says what it said before: answers, stored verdicts, balances, entries."""
    stored: dict[TransferId, set[tuple[Side, Action, Outcome]]] = {}
    for command, verdict in bench.first.items():
        if verdict.outcome is not Outcome.MISMATCH:
            stored.setdefault(command.transfer_id, set()).add((command.side, command.action, verdict.outcome))
    ids = list(stored)
    for at in range(0, len(ids), 50):
        page = ids[at : at + 50]
        for transfer_id, verdicts in zip(page, await bench.core.verdicts(page), strict=True):
            found = {(verdict.side, verdict.action, verdict.outcome) for verdict in verdicts}
            if found != stored[transfer_id]:
                raise BrokenPromiseError(f"{transfer_id} had {stored[transfer_id]} before the restart and has {found}")
    balances = await bench.posted(bench.plan.account), await bench.posted(bench.plan.other)
    for command in list(bench.first):
        await bench.tell(command)
    after = await bench.posted(bench.plan.account), await bench.posted(bench.plan.other)
    if after != balances:
        raise BrokenPromiseError(f"telling old commands again moved the balances from {balances} to {after}")
    if await bench.entries_since(start) != entries:
        raise BrokenPromiseError("the entries before and after the restart differ")
