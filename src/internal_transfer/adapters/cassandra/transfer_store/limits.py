"""Daily limits: a partition for each owner, asset and UTC day has the sum of the day and one verdict for each claim.

The verdict on a claim is given once, by the first process to ask, in the conditional batch that changes the sum. So a
claim that two processes finish at once gets one verdict, counts once, and is given back at most once.
"""

import asyncio
from collections.abc import Iterable, Sequence
from enum import StrEnum

from msgspec import Struct

from internal_transfer.adapters.cassandra.requests import Row
from internal_transfer.adapters.cassandra.transfer_store import statements as cql_text
from internal_transfer.adapters.cassandra.transfer_store.tables import STATEMENTS_PER_BATCH, Tables, together
from internal_transfer.domain.account import Owner
from internal_transfer.domain.identifier import day_of
from internal_transfer.domain.transfer import Transfer
from internal_transfer.ports.errors import OutcomeUnknown
from internal_transfer.ports.transfer_store import DAILY_UNITS_MAX

Use = tuple[Owner, str, int]
"""An owner, an asset and a UTC day."""
ClaimName = tuple[str, int]
"""The key and the attempt of a claim."""

_ROUNDS_MAX = 30
_SUMS_MAX = 20_000
_VERDICTS_PER_READ = 50


class Kind(StrEnum):
    """What became of a claim's share of the day."""

    TAKEN = "taken"
    GIVEN_BACK = "given_back"
    REFUSED = "refused"


class Share(Struct, frozen=True):
    """The share of the day that a claim asks for; `fresh` if no other process can have asked for it yet."""

    transfer: Transfer
    attempt: int
    daily_units: int
    fresh: bool

    @property
    def use(self) -> Use:
        """The sum in which the transfer counts."""
        return self.transfer.owner, self.transfer.source.asset, day_of(self.transfer.id)

    @property
    def claim(self) -> ClaimName:
        """The claim that asks."""
        return self.transfer.key, self.attempt


class Verdict(Struct, frozen=True):
    """The verdict on a share; `remaining` is what was left of the day if it is refused."""

    kind: Kind
    remaining: int = 0


class Limits:
    """The sums. A process changes a sum by one batch at a time, so that it competes only with other processes."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._locks: dict[Use, asyncio.Lock] = {}
        self._sums: dict[Use, tuple[int, int]] = {}

    async def take(self, shares: Sequence[Share]) -> list[Verdict]:
        """Takes shares in order, as far as the limits allow."""
        verdicts = await self._settle_all(shares, back=False)
        return [verdicts[share.use][share.claim] for share in shares]

    async def give_back(self, shares: Iterable[Share]) -> None:
        """Gives shares back, each once, to the day from which they were taken."""
        await self._settle_all(shares, back=True)

    async def used(self, use: Use) -> int:
        """The sum of a day."""
        [rows] = await self._tables.cql.read([self._tables.bind(cql_text.SELECT_USE, *use)])
        return (rows[0][1] or 0) if rows else 0

    async def _settle_all(self, shares: Iterable[Share], *, back: bool) -> dict[Use, dict[ClaimName, Verdict]]:
        groups: dict[Use, list[Share]] = {}
        for share in shares:
            groups.setdefault(share.use, []).append(share)
        verdicts = await together([self._settle(use, group, back=back) for use, group in groups.items()])
        return dict(zip(groups, verdicts, strict=True))

    async def _settle(self, use: Use, shares: list[Share], *, back: bool) -> dict[ClaimName, Verdict]:
        lock = self._locks.setdefault(use, asyncio.Lock())
        verdicts: dict[ClaimName, Verdict] = {}
        try:
            async with lock:
                for start in range(0, len(shares), STATEMENTS_PER_BATCH):
                    verdicts |= await self._settle_some(use, shares[start : start + STATEMENTS_PER_BATCH], back=back)
        finally:
            if not lock.locked():
                self._locks.pop(use, None)
        return verdicts

    async def _settle_some(self, use: Use, shares: list[Share], *, back: bool) -> dict[ClaimName, Verdict]:
        tables = self._tables
        known = self._sums.get(use) if all(share.fresh for share in shares) and not back else None
        for _ in range(_ROUNDS_MAX):
            given: dict[ClaimName, Verdict] = {}
            revision: int | None
            if known is None:
                revision, total, given = await self._read(use, shares)
            else:
                revision, total = known
            after, puts = _with_shares(use, shares, given, total, back=back)
            if not puts:
                return given
            batch = [tables.bind(cql_text.MOVE_USE, (revision or 0) + 1, after, *use, revision)]
            batch += [tables.bind(text, *values) for text, values in puts]
            if (await tables.cql.decide([tables.cql.batch(batch)]))[0]:
                if len(self._sums) >= _SUMS_MAX:
                    self._sums.clear()
                self._sums[use] = ((revision or 0) + 1, after)
                return given
            self._sums.pop(use, None)
            if known is None:
                await tables.cql.clock.sleep(0.03 * tables.cql.clock.jitter())
            known = None
        raise OutcomeUnknown(tables.cql.system, f"too many processes change the daily sum of {use[0]} at once")

    async def _read(self, use: Use, shares: list[Share]) -> tuple[int | None, int, dict[ClaimName, Verdict]]:
        """Reads the revision of the sum, the sum, and the verdicts on these shares that were given before."""
        bind = self._tables.bind
        [rows] = await self._tables.cql.read([bind(cql_text.SELECT_USE_AND_VERDICTS, *use, _VERDICTS_PER_READ)])
        if not rows:
            return None, 0, {}
        revision, total = rows[0][:2]
        verdicts = [row[2:] for row in rows]
        if len(rows) == _VERDICTS_PER_READ:
            # A verdict that is given between the two reads changes the revision, so that our write is not applied.
            keys = list(dict.fromkeys(share.transfer.key for share in shares))
            [verdicts] = await self._tables.cql.read([bind(cql_text.SELECT_VERDICTS, *use, keys)])
        wanted = {share.claim for share in shares}
        given = {
            (key, attempt): Verdict(Kind(kind), remaining or 0)
            for key, attempt, kind, remaining in verdicts
            if (key, attempt) in wanted
        }
        return revision, total or 0, given


def _with_shares(
    use: Use, shares: list[Share], given: dict[ClaimName, Verdict], total: int, *, back: bool
) -> tuple[int, list[tuple[str, Row]]]:
    """The sum after these shares, and the verdicts to write, which are also added to `given`."""
    puts: list[tuple[str, Row]] = []
    for share in shares:
        units = share.transfer.amount
        old = given.get(share.claim)
        text = cql_text.PUT_VERDICT
        if back:
            if old is not None and old.kind is not Kind.TAKEN:
                continue
            assert old is not None, f"{share.transfer.id}: nothing was taken that could be given back"
            total -= units
            assert total >= 0, f"{share.transfer.id}: gives back more than was used"
            verdict = Verdict(Kind.GIVEN_BACK)
        elif old is not None:
            continue
        elif (rest := min(share.daily_units, DAILY_UNITS_MAX) - total) < units:
            verdict, text = Verdict(Kind.REFUSED, max(0, rest)), cql_text.PUT_REFUSAL
        else:
            total += units
            verdict = Verdict(Kind.TAKEN)
        given[share.claim] = verdict
        puts.append((text, (*use, *share.claim, units, verdict.kind.value, verdict.remaining)))
    return total, puts
