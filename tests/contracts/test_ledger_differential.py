"""The embedded ledger against a real TigerBeetle: the same random history of calls on both, compared call by call.

`LEDGER_SEED` repeats one history; a failure names its seed.
"""

import os
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from secrets import randbits
from typing import Any

import pytest
from msgspec.structs import replace

from contracts.ledgers import EmbeddedLedgerHarness, TigerBeetleHarness
from internal_transfer.conformance.ledger.world import (
    CREDITS_LIMITED,
    DEBITS_LIMITED,
    LINKED,
    PENDING,
    POST,
    UNKNOWN,
    VOID,
    World,
)
from internal_transfer.ports.ledger import (
    AMOUNT_MAX,
    U128_MAX,
    AccountFlag,
    AccountOutcome,
    LedgerAccount,
    LedgerTransfer,
    TransferOutcome,
)
from real_servers import need

ACCOUNTS = range(1, 13)
FENCE = 900
FIRST_TRANSFER = 1_000
CALLS = 300


class History:
    """Makes up calls; everything random comes from its seed."""

    def __init__(self, seed: int, world: World) -> None:
        self.random = Random(seed)
        self.world = world
        self.sent: list[LedgerTransfer] = []
        self.holds: list[int] = []
        self.next_number = FIRST_TRANSFER

    def rarely(self, one_in: int) -> bool:
        """Returns True once in this many times."""
        return self.random.randrange(one_in) == 0

    def accounts(self) -> list[LedgerAccount]:
        """Returns some accounts: new, repeated and wrong ones."""
        return [self.account() for _ in range(self.random.randint(1, 6))]

    def account(self) -> LedgerAccount:
        """Returns an account, mostly a good one."""
        random = self.random
        number = random.choice((*ACCOUNTS, *ACCOUNTS, 0, U128_MAX))
        flags = {5: DEBITS_LIMITED, 6: DEBITS_LIMITED, 7: CREDITS_LIMITED, 8: AccountFlag.HISTORY}.get(number, 0)
        account = self.world.account(number, ledger=2 if number in {11, 12} else 1, flags=flags)
        wrong: tuple[dict[str, Any], ...] = (
            {"timestamp": 5},
            {"flags": DEBITS_LIMITED | CREDITS_LIMITED},
            {"flags": 1 << 7},
            {"flags": flags | LINKED},
            {"ledger": 0},
            {"code": 0},
            {"code": 7},
            {"user_data_128": 1},
            {"user_data_64": 1},
            {"user_data_32": 1},
            {"debits_pending": 1},
            {"debits_posted": 1},
            {"credits_pending": 1},
            {"credits_posted": 1},
        )
        return replace(account, **random.choice(wrong)) if self.rarely(4) else account

    def transfers(self) -> list[LedgerTransfer]:
        """Returns a batch of single transfers and chains."""
        random = self.random
        batch: list[LedgerTransfer] = []
        for _ in range(random.choice((1, 1, 3, 8, 20))):
            if self.rarely(10):
                chain = [self.transfer() for _ in range(random.randint(2, 4))]
                batch += [replace(transfer, flags=transfer.flags | LINKED) for transfer in chain[:-1]]
                batch.append(chain[-1])
            else:
                batch.append(self.transfer())
        if self.rarely(20):
            batch[-1] = replace(batch[-1], flags=batch[-1].flags | LINKED)
        self.sent += batch
        return batch

    def heard(self, batch: list[LedgerTransfer], results: list[str]) -> None:
        """Notes which holds exist, and now and then one that does not."""
        for transfer, result in zip(batch, results, strict=True):
            if transfer.flags & PENDING and (result == "created" or self.rarely(20)):
                self.holds.append(transfer.id - self.world.harness.id_base)

    def transfer(self) -> LedgerTransfer:
        """Returns a transfer: good, repeated, a fence, or wrong in one or two ways."""
        random = self.random
        if self.sent and self.rarely(8):
            repeated = random.choice(self.sent)
            return self.spoilt(repeated) if self.rarely(2) else repeated
        transfer = self.resolution() if self.holds and self.rarely(3) else self.movement()
        return self.spoilt(transfer) if self.rarely(5) else transfer

    def number(self) -> int:
        """Returns a new number for a transfer, or now and then a used one."""
        if self.rarely(25):
            return self.random.randrange(FIRST_TRANSFER, self.next_number + 5)
        self.next_number += 1
        return self.next_number

    def movement(self) -> LedgerTransfer:
        """Returns a plain transfer or a hold, whose amount is often too large."""
        random = self.random
        debit, credit = random.choices((*ACCOUNTS[:10], *ACCOUNTS[:10], 11, 12, UNKNOWN), k=2)
        amount = random.choice((0, 1, 5, 50, random.randrange(1_000), 1 << 126 if self.rarely(10) else 3))
        flags = random.choice((0, PENDING))
        ledger = 2 if debit in {11, 12} and not self.rarely(10) else 1
        data = {"user_data_128": random.choice((0, 3)), "user_data_64": random.choice((0, 0, 4))}
        return self.world.plain(self.number(), debit, credit, amount, ledger=ledger, flags=flags, **data)

    def resolution(self) -> LedgerTransfer:
        """Returns a post, a void, or a fence under a hold's own id."""
        random = self.random
        hold = random.choice(self.holds[-30:])
        if self.rarely(6):
            return self.world.void(random.choice((hold, self.next_number + random.randint(1, 5))), FENCE)
        amount = random.choice((0, 1, 5, 50, AMOUNT_MAX, AMOUNT_MAX, AMOUNT_MAX))
        if self.rarely(2):
            return self.world.post(self.number(), hold, amount)
        return self.world.void(self.number(), hold, random.choice((0, 0, amount)))

    def spoilt(self, transfer: LedgerTransfer) -> LedgerTransfer:
        """Returns the transfer with one or two fields changed to values that are often wrong."""
        at, random = self.world.at, self.random
        changes: tuple[dict[str, Any], ...] = (
            {"id": 0},
            {"id": U128_MAX},
            {"timestamp": 1},
            {"flags": 1 << 9},
            {"flags": POST | VOID},
            {"flags": transfer.flags ^ PENDING},
            {"flags": transfer.flags ^ POST},
            {"debit_account_id": random.choice((0, U128_MAX, at(UNKNOWN), at(1), at(11)))},
            {"credit_account_id": random.choice((0, U128_MAX, at(UNKNOWN), at(1), at(11)))},
            {"debit_account_id": transfer.credit_account_id},
            {"pending_id": random.choice((0, U128_MAX, transfer.id, at(UNKNOWN), at(FIRST_TRANSFER + 1)))},
            {"amount": random.choice((0, 1, 5, 51, U128_MAX, 1 << 127))},
            {"ledger": random.choice((0, 1, 2, 3))},
            {"code": random.choice((0, 1, 2))},
            {"user_data_128": random.choice((0, 1, 3))},
            {"user_data_64": random.choice((0, 1, 4))},
            {"user_data_32": random.choice((0, 1))},
        )
        for change in random.sample(changes, random.choice((1, 1, 2))):
            transfer = replace(transfer, **change)
        return transfer


def places(outcomes: Sequence[AccountOutcome | TransferOutcome], known: dict[int, int]) -> list[object]:
    """Returns where each timestamp of a batch lies: on an earlier event of this history, or at its distance from the
    first new one of the batch. Adds the new ones to `known`.
    """
    fresh = [(index, outcome.timestamp) for index, outcome in enumerate(outcomes) if outcome.timestamp not in known]
    found: list[object] = [
        ("before", known[outcome.timestamp])
        if outcome.timestamp in known
        else ("now", outcome.timestamp - fresh[0][1] + fresh[0][0])
        for outcome in outcomes
    ]
    for _, timestamp in fresh:
        known.setdefault(timestamp, len(known))
    return found


def untimed(rows: Sequence[LedgerAccount | LedgerTransfer]) -> list[LedgerAccount | LedgerTransfer]:
    """Returns the rows without their timestamps."""
    return [replace(row, timestamp=0) for row in rows]


SEEDS = [int(os.environ["LEDGER_SEED"])] if "LEDGER_SEED" in os.environ else [1, 2, 3, randbits(32)]


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed {seed}" if seed in {1, 2, 3} else "a new seed")
async def test_both_ledgers_tell_the_same_story(tmp_path, seed):
    """Thousands of mixed events give the same results, timestamp order, rows, balances and history on both (G15)."""
    place = need("tigerbeetle")
    real = TigerBeetleHarness(place.address, place.cluster)
    await real.open()
    embedded = EmbeddedLedgerHarness(tmp_path / "ledger.db", each_call=True)
    embedded.id_base = real.id_base
    await embedded.open()
    worlds = World(real), World(embedded)
    history = History(seed, worlds[0])
    at = worlds[0].at
    account_ids = [at(number) for number in ACCOUNTS]
    known: tuple[dict[int, int], dict[int, int]] = ({}, {})
    seen: Counter[str] = Counter()
    lasts = [0, 0]

    async def compare_rows() -> None:
        recent = [transfer.id for transfer in history.sent[-40:]]
        theirs, ours = [
            (
                untimed(await world.ledger.lookup_accounts([at(UNKNOWN), *account_ids])),
                untimed(await world.ledger.lookup_transfers(recent)),
            )
            for world in worlds
        ]
        assert ours == theirs, f"seed {seed}, after {len(history.sent)} transfers"

    try:
        never = [worlds[0].hold(FENCE, UNKNOWN, UNKNOWN + 1, 1)]
        for call in range(CALLS):
            where = f"seed {seed}, call {call}"
            makes_accounts = call < 12 or history.rarely(25)
            batch: Any = history.accounts() if makes_accounts else never if call == 12 else history.transfers()
            both = []
            for index, world in enumerate(worlds):
                create = world.ledger.create_accounts if makes_accounts else world.ledger.create_transfers
                outcomes = await create(batch)
                both.append(([outcome.status.value for outcome in outcomes], places(outcomes, known[index])))
                fresh = sorted({outcome.timestamp for outcome in outcomes if outcome.timestamp > lasts[index]})
                assert all(earlier < later for earlier, later in pairwise(fresh)), where
                lasts[index] = max(lasts[index], *fresh) if fresh else lasts[index]
            assert both[1][0] == both[0][0], where
            assert both[1][1] == both[0][1], (where, list(zip(batch, both[0][0], strict=True)))
            seen.update(both[0][0])
            if not makes_accounts:
                history.heard(batch, both[0][0])
            if call % 10 == 9:
                await compare_rows()
            if history.rarely(60):
                await embedded.reopen()
        await compare_rows()
        theirs, ours = [untimed(await world.history()) for world in worlds]
        assert ours == theirs, f"seed {seed}"
        assert len(history.sent) > 500
        assert len(seen) > 30, sorted(seen)
    finally:
        await real.close()
        await embedded.close()
