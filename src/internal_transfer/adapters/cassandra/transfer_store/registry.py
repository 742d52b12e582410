"""The numbers of accounts."""

from collections.abc import Sequence

from internal_transfer.adapters.cassandra.transfer_store import statements as cql_text
from internal_transfer.adapters.cassandra.transfer_store.tables import STATEMENTS_PER_BATCH, Tables
from internal_transfer.domain.account import Account, Owner
from internal_transfer.ports.errors import OutcomeUnknown
from internal_transfer.ports.transfer_store import RegisteredAccount

BUCKET_NUMBERS = 10_000
"""How many numbers one partition has; never changes once an account is numbered."""

_ROUNDS_MAX = 50


class Registry:
    """Draws numbers for accounts, and finds accounts and numbers."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._bucket = 0

    async def register(self, accounts: Sequence[Account]) -> list[RegisteredAccount]:
        """Numbers accounts. A number that was drawn and not used (in a race, or before a crash) is never used."""
        owners = list(dict.fromkeys(account.owner for account in accounts))
        numbers = {each.account: each.number for owner in owners for each in await self.registered(owner)}
        new = [account for account in dict.fromkeys(accounts) if account not in numbers]
        for start in range(0, len(new), STATEMENTS_PER_BATCH):
            some = new[start : start + STATEMENTS_PER_BATCH]
            drawn = await self._draw(some)
            applied = await self._tables.cql.decide(
                [
                    self._tables.bind(cql_text.REGISTER, each.owner, each.type, each.asset, number)
                    for each, number in zip(some, drawn, strict=True)
                ]
            )
            numbers.update(zip(some, drawn, strict=True))
            for account, is_mine in zip(some, applied, strict=True):
                if not is_mine:
                    earlier = await self.registered(account.owner)
                    numbers[account] = next(each.number for each in earlier if each.account == account)
        return [RegisteredAccount(numbers[account], account) for account in accounts]

    async def _draw(self, accounts: Sequence[Account]) -> list[int]:
        """Takes the next numbers for accounts, all from one partition."""
        tables = self._tables
        for _ in range(_ROUNDS_MAX):
            [rows] = await tables.cql.read([tables.bind(cql_text.SELECT_LAST_NUMBER, self._bucket)])
            last = rows[0][0] if rows else None
            end = (self._bucket + 1) * BUCKET_NUMBERS
            start = last if last is not None else self._bucket * BUCKET_NUMBERS
            if start + len(accounts) > end:
                # Leaves the few remaining numbers unused, so that a draw always stays in one partition.
                self._bucket += 1
                continue
            drawn = range(start + 1, start + len(accounts) + 1)
            batch = [tables.bind(cql_text.MOVE_LAST_NUMBER, drawn[-1], self._bucket, last)]
            batch += [
                tables.bind(cql_text.INSERT_NUMBER, self._bucket, number, each.owner, each.type, each.asset)
                for number, each in zip(drawn, accounts, strict=True)
            ]
            if (await tables.cql.decide([tables.cql.batch(batch)]))[0]:
                return list(drawn)
            await tables.cql.clock.sleep(0.03 * tables.cql.clock.jitter())
        raise OutcomeUnknown(tables.cql.system, "too many processes register accounts at once")

    async def registered(self, owner: Owner) -> list[RegisteredAccount]:
        """The accounts of an owner, by number."""
        [rows] = await self._tables.cql.read([self._tables.bind(cql_text.SELECT_REGISTERED, owner)])
        return [RegisteredAccount(number, Account(owner, kind, asset)) for number, kind, asset in sorted(rows)]

    async def by_number(self, numbers: Sequence[int]) -> list[Account | None]:
        """The account of each number, in order; None for a number that is not in use."""
        answers = await self._tables.cql.read(
            [self._tables.bind(cql_text.SELECT_NUMBER, (number - 1) // BUCKET_NUMBERS, number) for number in numbers]
        )
        return [Account(Owner(rows[0][1]), rows[0][2], rows[0][3]) if rows else None for rows in answers]
