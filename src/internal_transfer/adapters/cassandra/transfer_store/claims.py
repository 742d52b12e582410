"""Accepting transfers: claim the key, take the share of the day, insert the transfer. Three conditional writes.

They lie in three partitions, so a process may stop between any two of them. The claim carries all that the rest needs,
and whoever meets an unfinished one (a retry, a look-up by key, the scan) finishes it; each of the three steps has one
answer, whoever takes it, and however often. Everything that leads to a transfer (its place in the agenda, its history,
its marker for the feed) is written before the claim, so that nothing can be on record and not be found.

A claim that is refused leaves the key free for the next attempt, under the next number of attempt.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from msgspec import Struct
from msgspec.structs import replace

from internal_transfer.adapters.cassandra.transfer_store import statements as cql_text
from internal_transfer.adapters.cassandra.transfer_store.agenda import Agenda
from internal_transfer.adapters.cassandra.transfer_store.feed import Feed
from internal_transfer.adapters.cassandra.transfer_store.history import History
from internal_transfer.adapters.cassandra.transfer_store.limits import Kind, Limits, Share
from internal_transfer.adapters.cassandra.transfer_store.rows import (
    Kept,
    Row,
    body_of,
    changing_values,
    first,
    lasting_values,
    transfer_of_body,
)
from internal_transfer.adapters.cassandra.transfer_store.tables import Tables, together
from internal_transfer.domain.account import Owner
from internal_transfer.domain.transfer import Transfer
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, Unavailable
from internal_transfer.ports.transfer_store import (
    Accepted,
    AcceptOutcome,
    DailyLimitExceeded,
    IdTaken,
    KeyTaken,
    Proposal,
)

_ROUNDS_MAX = 20
_HINTS_GOOD_SECONDS = 30.0
"""A process that stood still for longer writes its hints again, since somebody may have tidied them away."""

_ACCEPTED = Accepted()
_ID_TAKEN = IdTaken()


class Claim(Struct, frozen=True):
    """What a key row says while it is taken. `fresh`: this process has just made it."""

    transfer: Transfer
    attempt: int
    accept_number: int
    fingerprint: bytes
    daily_units: int
    fresh: bool = False


Ended = Kept | IdTaken | DailyLimitExceeded


class Claims:
    """The keys, and the way from a claim to its transfer."""

    def __init__(self, tables: Tables, *, due: Agenda, feed: Feed, history: History, limits: Limits) -> None:
        self._tables = tables
        self._due = due
        self._feed = feed
        self._history = history
        self._limits = limits

    async def by_keys(self, keys: Sequence[tuple[Owner, str]], *, settled: bool = True) -> list[KeyTaken | None]:
        """What keys stand for; finishes what is unfinished, and settles what is in doubt if asked, so no stays no."""
        wanted = list(dict.fromkeys(keys))
        claims = await self._claims_of(wanted, serially=settled)
        known = await self._tables.kept([claim.transfer.id for claim in claims.values()])
        found: dict[tuple[Owner, str], KeyTaken] = {}
        unfinished: list[Claim] = []
        for key, claim in claims.items():
            kept = known.get(claim.transfer.id)
            if kept is not None and _is_of(kept, claim):
                found[key] = KeyTaken(kept.transfer, claim.fingerprint)
            else:
                unfinished.append(claim)
        if unfinished:
            with self._begun():
                finished = await self.finish(unfinished)
            for claim, ended in zip(unfinished, finished, strict=True):
                if isinstance(ended, Kept):
                    key = (claim.transfer.owner, claim.transfer.key)
                    found[key] = KeyTaken(ended.transfer, claim.fingerprint)
        return [found.get(key) for key in keys]

    async def claim_of(self, owner: Owner, key: str) -> Claim | None:
        """What a key row says after everything in doubt about it was settled."""
        return (await self._claims_of([(owner, key)], serially=True)).get((owner, key))

    async def _claims_of(
        self, keys: Sequence[tuple[Owner, str]], *, serially: bool = False
    ) -> dict[tuple[Owner, str], Claim]:
        rows = await self._key_rows(keys, serially=serially)
        return {key: _claim(row) for key, row in rows.items() if row[1] is not None}

    async def _key_rows(self, keys: Sequence[tuple[Owner, str]], *, serially: bool) -> dict[tuple[Owner, str], Row]:
        requests = [self._tables.bind(cql_text.SELECT_KEY, *key) for key in keys]
        if serially:
            requests = [self._tables.cql.serially(request) for request in requests]
        answers = await self._tables.cql.read(requests)
        return {key: rows[0] for key, rows in zip(keys, answers, strict=True) if rows}

    async def accept(self, proposals: Sequence[Proposal]) -> list[AcceptOutcome]:
        """Accepts a batch, of which no two have the same key or the same id."""
        wanted = [
            Claim(
                proposal.transfer,
                0,
                self._history.next_number(),
                proposal.fingerprint,
                proposal.daily_units,
                fresh=True,
            )
            for proposal in proposals
        ]
        hinted_at = self._tables.cql.clock.monotonic()
        try:
            await self._hint(wanted)
        except OutcomeUnknown as error:
            raise Unavailable(error.system, error.message) from error
        outcomes = await self._claim_and_finish(wanted)
        with self._begun():
            if self._tables.cql.clock.monotonic() - hinted_at > _HINTS_GOOD_SECONDS:
                await self._hint(wanted)
            await self._tidy([claim for claim, out in zip(wanted, outcomes, strict=True) if out is not _ACCEPTED])
        return outcomes

    async def _claim_and_finish(self, wanted: Sequence[Claim]) -> list[AcceptOutcome]:
        outcomes: dict[int, AcceptOutcome] = {}
        won: dict[int, Claim] = {}
        applied = await self._tables.cql.decide(
            [
                self._tables.bind(cql_text.CLAIM_KEY, claim.transfer.owner, claim.transfer.key, *_claim_values(claim))
                for claim in wanted
            ]
        )
        with self._begun():
            lost: list[int] = []
            for place, (claim, is_won) in enumerate(zip(wanted, applied, strict=True)):
                if is_won:
                    won[place] = claim
                else:
                    lost.append(place)
            for place, claim_or_taken in zip(
                lost, await together([self._contend(wanted[place]) for place in lost]), strict=True
            ):
                if isinstance(claim_or_taken, Claim):
                    won[place] = claim_or_taken
                else:
                    outcomes[place] = claim_or_taken
            places = sorted(won)
            for place, ended in zip(places, await self.finish([won[place] for place in places]), strict=True):
                outcomes[place] = _ACCEPTED if isinstance(ended, Kept) else ended
        return [outcomes[place] for place in range(len(wanted))]

    async def _contend(self, claim: Claim) -> Claim | KeyTaken:
        """Finds out who has the key, and takes it if it is free."""
        tables, transfer = self._tables, claim.transfer
        key = (transfer.owner, transfer.key)
        for _ in range(_ROUNDS_MAX):
            row = (await self._key_rows([key], serially=True)).get(key)
            assert row is not None, "a claim that was not applied met a key row, and these are never removed"
            attempt, transfer_id, accept_number = row[:3]
            if transfer_id is None:
                mine = replace(claim, attempt=attempt + 1)
                request = tables.bind(cql_text.CLAIM_FREE_KEY, attempt + 1, *_claim_values(claim), *key, attempt)
                if (await tables.cql.decide([request]))[0]:
                    return mine
                continue
            if (transfer_id, accept_number) == (transfer.id, claim.accept_number):
                return replace(claim, attempt=attempt, fresh=False)
            other = _claim(row)
            kept = (await tables.kept([other.transfer.id])).get(other.transfer.id)
            if kept is None or not _is_of(kept, other):
                [ended] = await self.finish([other])
                if not isinstance(ended, Kept):
                    continue
                kept = ended
            return KeyTaken(kept.transfer, other.fingerprint)
        raise OutcomeUnknown(tables.cql.system, "too many processes contend for one key")

    async def finish(self, claims: Sequence[Claim]) -> list[Ended]:
        """Takes claims that hold their keys to their end, which is the same whoever does it."""
        tables = self._tables
        ended: dict[int, Ended] = {}
        # What was claimed a moment ago has a record only where its id is another's, which the insert finds out, or
        # who is refused for the limit.
        known = await tables.kept([claim.transfer.id for claim in claims if not claim.fresh])
        dead: list[Claim] = []
        open_places: list[int] = []
        for place, claim in enumerate(claims):
            kept = known.get(claim.transfer.id)
            if kept is None:
                open_places.append(place)
            elif _is_of(kept, claim):
                ended[place] = kept
            else:
                ended[place] = _ID_TAKEN
                dead.append(claim)
        verdicts = await self._limits.take([_share(claims[place]) for place in open_places]) if open_places else []
        refused = [place for place, verdict in zip(open_places, verdicts, strict=True) if verdict.kind is Kind.REFUSED]
        foreign = await tables.kept([claims[place].transfer.id for place in refused if claims[place].fresh])
        taken: list[int] = []
        for place, verdict in zip(open_places, verdicts, strict=True):
            match verdict.kind:
                case Kind.TAKEN:
                    taken.append(place)
                case Kind.REFUSED:
                    is_taken = claims[place].transfer.id in foreign
                    ended[place] = _ID_TAKEN if is_taken else DailyLimitExceeded(verdict.remaining)
                    dead.append(claims[place])
                case Kind.GIVEN_BACK:
                    # Somebody ended it meanwhile: as FAILED, or because its id belongs to another.
                    kept = await tables.settled(claims[place].transfer.id)
                    if kept is not None and _is_of(kept, claims[place]):
                        ended[place] = kept
                    else:
                        ended[place] = _ID_TAKEN
                        dead.append(claims[place])
        await self._insert([(place, claims[place]) for place in taken], ended, dead)
        if dead:
            await tables.cql.decide(
                [
                    tables.bind(
                        cql_text.FREE_KEY, claim.transfer.owner, claim.transfer.key, claim.attempt, claim.transfer.id
                    )
                    for claim in dead
                ]
            )
        return [ended[place] for place in range(len(claims))]

    async def _insert(self, claims: Sequence[tuple[int, Claim]], ended: dict[int, Ended], dead: list[Claim]) -> None:
        if not claims:
            return
        tables = self._tables
        writer = tables.next_writer()
        records = [first(claim.transfer, claim.accept_number, claim.attempt, writer) for _, claim in claims]
        applied = await tables.cql.decide(
            [
                tables.bind(
                    cql_text.INSERT_TRANSFER,
                    kept.transfer.id,
                    kept.transfer.created_at,
                    *changing_values(kept, None),
                    *lasting_values(kept),
                )
                for kept in records
            ]
        )
        unclear = [claim.transfer.id for (_, claim), is_done in zip(claims, applied, strict=True) if not is_done]
        known = await tables.kept(unclear)
        colliding: list[Claim] = []
        for (place, claim), kept, is_done in zip(claims, records, applied, strict=True):
            if is_done:
                ended[place] = kept
                tables.remember(kept)
            elif _is_of(known[claim.transfer.id], claim):
                ended[place] = known[claim.transfer.id]
            else:
                ended[place] = _ID_TAKEN
                colliding.append(claim)
        if colliding:
            await self._limits.give_back([_share(claim) for claim in colliding])
            dead += colliding

    async def _hint(self, claims: Sequence[Claim]) -> None:
        due = [_due_hint(claim.transfer) for claim in claims]
        markers = self._feed.markers([(claim.transfer.id, 1) for claim in claims])
        requests = self._due.placing(due)
        requests += self._feed.agenda.placing(markers)
        rows = [(claim.transfer.owner, claim.accept_number, claim.transfer.id) for claim in claims]
        await self._tables.cql.write([*requests, *self._history.placing(rows)])
        self._history.placed(rows)
        await self._due.add_buckets(due)
        await self._feed.agenda.add_buckets(markers)

    async def _tidy(self, claims: Sequence[Claim]) -> None:
        """Removes hints at what did not come about, unless the id belongs to another transfer with the same hints."""
        if not claims:
            return
        known = await self._tables.kept([claim.transfer.id for claim in claims])
        await self._history.drop([(claim.transfer.owner, claim.accept_number) for claim in claims])
        await self._due.drop([_due_hint(claim.transfer) for claim in claims if claim.transfer.id not in known])

    @contextmanager
    def _begun(self) -> Iterator[None]:
        """From here on something may be on record, whatever fails."""
        try:
            yield
        except OutcomeUnknown:
            raise
        except OperatingFailureError as error:
            raise OutcomeUnknown(error.system, error.message) from error


def _due_hint(transfer: Transfer) -> Row:
    return (transfer.due_at, transfer.id, transfer.owner, transfer.key)


def _share(claim: Claim) -> Share:
    return Share(claim.transfer, claim.attempt, claim.daily_units, claim.fresh)


def _is_of(kept: Kept, claim: Claim) -> bool:
    """Tells whether the transfer came from this claim."""
    mine = (claim.transfer.owner, claim.transfer.key, claim.attempt)
    return (kept.transfer.owner, kept.transfer.key, kept.claim_attempt) == mine


def _claim_values(claim: Claim) -> Row:
    transfer = claim.transfer
    return (transfer.id, claim.accept_number, claim.fingerprint, claim.daily_units, body_of(transfer))


def _claim(row: Row) -> Claim:
    return Claim(transfer_of_body(row[5]), row[0], row[2], row[3], row[4])
