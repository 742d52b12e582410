"""Accepts transfers in three conditional writes: claim the key, take a share of the day, insert the transfer.

The three are in three partitions, so a process may stop between them. A claim has everything that the rest needs, and
the next retry, look-up by key or scan that meets an unfinished claim finishes it. Each of the three steps has the same
result whichever process takes it, and however often. The hints at a transfer (agenda, history, marker for the feed) are
written before the claim, so that every transfer on record can be found.

A claim that is refused sets its key free; the next claim of the key has the next attempt number.
"""

from collections import Counter
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from internal_transfer.adapters.cassandra.failures import maybe_recorded, nothing_recorded
from internal_transfer.adapters.cassandra.requests import Row
from internal_transfer.adapters.cassandra.transfer_store import statements as cql_text
from internal_transfer.adapters.cassandra.transfer_store.agenda import HINTS_GOOD_SECONDS, Agenda, due_hint
from internal_transfer.adapters.cassandra.transfer_store.feed import Feed
from internal_transfer.adapters.cassandra.transfer_store.history import History
from internal_transfer.adapters.cassandra.transfer_store.limits import Kind, Limits, Share
from internal_transfer.adapters.cassandra.transfer_store.rows import (
    Record,
    body_of,
    changing_values,
    first,
    lasting_values,
    transfer_of_body,
)
from internal_transfer.adapters.cassandra.transfer_store.tables import Tables, together
from internal_transfer.domain.account import Owner
from internal_transfer.domain.transfer import Transfer
from internal_transfer.ports.errors import OutcomeUnknown
from internal_transfer.ports.transfer_store import (
    Accepted,
    AcceptOutcome,
    DailyLimitExceeded,
    IdTaken,
    KeyTaken,
    Proposal,
)

_ROUNDS_MAX = 20
_ACCEPTED = Accepted()
_ID_TAKEN = IdTaken()


class Claim(Struct, frozen=True):
    """What the row of a claimed key says; `fresh` if this process has just made the claim."""

    transfer: Transfer
    attempt: int
    accept_number: int
    fingerprint: bytes
    daily_units: int
    fresh: bool = False

    @property
    def key(self) -> tuple[Owner, str]:
        """The owner and the key that is claimed."""
        return self.transfer.owner, self.transfer.key

    @property
    def share(self) -> Share:
        """The share of the day that the claim asks for."""
        return Share(self.transfer, self.attempt, self.daily_units, self.fresh)

    def is_of(self, record: Record) -> bool:
        """Tells whether the transfer on record came from this claim."""
        return (record.transfer.owner, record.transfer.key, record.claim_attempt) == (*self.key, self.attempt)


Ended = Record | IdTaken | DailyLimitExceeded
"""How a claim ended: with a transfer on record, or refused."""


class Claims:
    """Claims keys, and turns claims into transfers."""

    def __init__(self, tables: Tables, *, due: Agenda, feed: Feed, history: History, limits: Limits) -> None:
        self._tables = tables
        self._due = due
        self._feed = feed
        self._history = history
        self._limits = limits

    async def by_keys(self, keys: Sequence[tuple[Owner, str]], *, settled: bool = True) -> list[KeyTaken | None]:
        """What keys stand for; finishes unfinished claims. `settled` settles what is in doubt, so None is final."""
        claims = await self._claims_of(list(dict.fromkeys(keys)), serially=settled)
        records = await self._tables.records([claim.transfer.id for claim in claims.values()])
        found: dict[tuple[Owner, str], KeyTaken] = {}
        unfinished: list[Claim] = []
        for key, claim in claims.items():
            record = records.get(claim.transfer.id)
            if record is not None and claim.is_of(record):
                found[key] = KeyTaken(record.transfer, claim.fingerprint)
            else:
                unfinished.append(claim)
        if unfinished:
            with maybe_recorded():
                finished = await self.finish(unfinished)
            for claim, ended in zip(unfinished, finished, strict=True):
                if isinstance(ended, Record):
                    found[claim.key] = KeyTaken(ended.transfer, claim.fingerprint)
        return [found.get(key) for key in keys]

    async def claim_of(self, owner: Owner, key: str) -> Claim | None:
        """The claim of a key, after everything in doubt about it was settled."""
        return (await self._claims_of([(owner, key)], serially=True)).get((owner, key))

    async def _claims_of(self, keys: Sequence[tuple[Owner, str]], *, serially: bool) -> dict[tuple[Owner, str], Claim]:
        rows = await self._key_rows(keys, serially=serially)
        return {key: _claim(row) for key, row in rows.items() if row[1] is not None}

    async def _key_rows(self, keys: Sequence[tuple[Owner, str]], *, serially: bool) -> dict[tuple[Owner, str], Row]:
        requests = [self._tables.bind(cql_text.SELECT_KEY, *key) for key in keys]
        if serially:
            requests = [self._tables.cql.serially(request) for request in requests]
        answers = await self._tables.cql.read(requests)
        return {key: rows[0] for key, rows in zip(keys, answers, strict=True) if rows}

    async def accept(self, proposals: Sequence[Proposal]) -> list[AcceptOutcome]:
        """Accepts a batch in which no key and no id repeats."""
        wanted = [
            Claim(each.transfer, 0, self._history.next_number(), each.fingerprint, each.daily_units, fresh=True)
            for each in proposals
        ]
        hinted_at = self._tables.cql.clock.monotonic()
        with nothing_recorded():
            await self._hint(wanted)
        outcomes = await self._claim_and_finish(wanted)
        with maybe_recorded():
            if self._tables.cql.clock.monotonic() - hinted_at > HINTS_GOOD_SECONDS:
                await self._hint(wanted)
            await self._remove_hints(
                [claim for claim, out in zip(wanted, outcomes, strict=True) if out is not _ACCEPTED]
            )
        return outcomes

    async def _claim_and_finish(self, wanted: Sequence[Claim]) -> list[AcceptOutcome]:
        outcomes: dict[int, AcceptOutcome] = {}
        applied = await self._tables.cql.decide(
            [self._tables.bind(cql_text.CLAIM_KEY, *claim.key, *_claim_values(claim)) for claim in wanted]
        )
        with maybe_recorded():
            won = {place: claim for place, claim in enumerate(wanted) if applied[place]}
            lost = [place for place in range(len(wanted)) if not applied[place]]
            contended = await together([self._contend(wanted[place]) for place in lost])
            for place, claim_or_taken in zip(lost, contended, strict=True):
                if isinstance(claim_or_taken, Claim):
                    won[place] = claim_or_taken
                else:
                    outcomes[place] = claim_or_taken
            places = sorted(won)
            for place, ended in zip(places, await self.finish([won[place] for place in places]), strict=True):
                outcomes[place] = _ACCEPTED if isinstance(ended, Record) else ended
        return [outcomes[place] for place in range(len(wanted))]

    async def _contend(self, claim: Claim) -> Claim | KeyTaken:
        """Finds out who has claimed the key, and claims it if it is free."""
        tables = self._tables
        for _ in range(_ROUNDS_MAX):
            row = (await self._key_rows([claim.key], serially=True)).get(claim.key)
            assert row is not None, "a claim that was not applied met a row, and rows of keys are never removed"
            attempt, transfer_id, accept_number = row[:3]
            if transfer_id is None:
                mine = replace(claim, attempt=attempt + 1)
                request = tables.bind(cql_text.CLAIM_FREE_KEY, attempt + 1, *_claim_values(claim), *claim.key, attempt)
                if (await tables.cql.decide([request]))[0]:
                    return mine
                continue
            if (transfer_id, accept_number) == (claim.transfer.id, claim.accept_number):
                return replace(claim, attempt=attempt, fresh=False)
            other = _claim(row)
            record = (await tables.records([other.transfer.id])).get(other.transfer.id)
            if record is None or not other.is_of(record):
                [ended] = await self.finish([other])
                if not isinstance(ended, Record):
                    continue
                record = ended
            return KeyTaken(record.transfer, other.fingerprint)
        raise OutcomeUnknown(tables.cql.system, "too many processes contend for one key")

    async def finish(self, claims: Sequence[Claim]) -> list[Ended]:
        """Finishes claims that hold their keys. The results are the same whichever process does it."""
        tables = self._tables
        ended: dict[int, Ended] = {}
        # A fresh claim has no record yet. If its id is taken, the insert finds that out, or the look-up below after a
        # refusal for the limit. Only where an owner has several is it looked up first: the share of a claim that is
        # refused must not count against the others.
        owners = Counter(claim.transfer.owner for claim in claims)
        looked_up = [each.transfer.id for each in claims if not each.fresh or owners[each.transfer.owner] > 1]
        records = await tables.records(looked_up)
        refused: list[Claim] = []
        open_places: list[int] = []
        for place, claim in enumerate(claims):
            record = records.get(claim.transfer.id)
            if record is None:
                open_places.append(place)
            elif claim.is_of(record):
                ended[place] = record
            else:
                ended[place] = _ID_TAKEN
                refused.append(claim)
        verdicts = dict(
            zip(open_places, await self._limits.take([claims[place].share for place in open_places]), strict=True)
        )
        over_limit = [place for place, verdict in verdicts.items() if verdict.kind is Kind.REFUSED]
        foreign = await tables.records([claims[place].transfer.id for place in over_limit if claims[place].fresh])
        taken: list[int] = []
        for place, verdict in verdicts.items():
            claim = claims[place]
            match verdict.kind:
                case Kind.TAKEN:
                    taken.append(place)
                case Kind.REFUSED:
                    is_id_taken = claim.transfer.id in foreign
                    ended[place] = _ID_TAKEN if is_id_taken else DailyLimitExceeded(verdict.remaining)
                    refused.append(claim)
                case Kind.GIVEN_BACK:
                    # Another process has ended the claim: the transfer is FAILED, or its id belongs to another one.
                    record = await tables.settled(claim.transfer.id)
                    if record is not None and claim.is_of(record):
                        ended[place] = record
                    else:
                        ended[place] = _ID_TAKEN
                        refused.append(claim)
        await self._insert([(place, claims[place]) for place in taken], ended, refused)
        if refused:
            await tables.cql.decide(
                [tables.bind(cql_text.FREE_KEY, *claim.key, claim.attempt, claim.transfer.id) for claim in refused]
            )
        return [ended[place] for place in range(len(claims))]

    async def _insert(self, claims: Sequence[tuple[int, Claim]], ended: dict[int, Ended], refused: list[Claim]) -> None:
        """Inserts the transfers of claims that have their share; adds how each ended, and which are refused."""
        if not claims:
            return
        tables = self._tables
        writer = tables.next_writer()
        records = [first(claim.transfer, claim.accept_number, claim.attempt, writer) for _, claim in claims]
        applied = await tables.cql.decide(
            [
                tables.bind(
                    cql_text.INSERT_TRANSFER,
                    record.transfer.id,
                    record.transfer.created_at,
                    *changing_values(record, None),
                    *lasting_values(record),
                )
                for record in records
            ]
        )
        unclear = [claim.transfer.id for (_, claim), is_done in zip(claims, applied, strict=True) if not is_done]
        known = await tables.records(unclear)
        colliding: list[Claim] = []
        for (place, claim), record, is_done in zip(claims, records, applied, strict=True):
            if is_done:
                ended[place] = record
                tables.remember(record)
            elif claim.is_of(known[claim.transfer.id]):
                ended[place] = known[claim.transfer.id]
            else:
                ended[place] = _ID_TAKEN
                colliding.append(claim)
        if colliding:
            await self._limits.give_back([claim.share for claim in colliding])
            refused += colliding

    async def _hint(self, claims: Sequence[Claim]) -> None:
        due = [due_hint(claim.transfer.due_at, claim.transfer) for claim in claims]
        markers = self._feed.markers([(claim.transfer.id, 1) for claim in claims])
        rows = [(claim.transfer.owner, claim.accept_number, claim.transfer.id) for claim in claims]
        requests = self._due.insertions(due) + self._feed.agenda.insertions(markers)
        await self._tables.cql.write([*requests, *self._history.insertions(rows)])
        self._history.remember_hours(rows)
        await self._due.list_buckets(due)
        await self._feed.agenda.list_buckets(markers)

    async def _remove_hints(self, claims: Sequence[Claim]) -> None:
        """Removes the hints at refused proposals; keeps those that another transfer of the same id may need."""
        if not claims:
            return
        known = await self._tables.records([claim.transfer.id for claim in claims])
        await self._history.remove([(claim.transfer.owner, claim.accept_number) for claim in claims])
        unused = [claim.transfer for claim in claims if claim.transfer.id not in known]
        await self._due.remove([due_hint(transfer.due_at, transfer) for transfer in unused])


def _claim_values(claim: Claim) -> Row:
    transfer = claim.transfer
    return (transfer.id, claim.accept_number, claim.fingerprint, claim.daily_units, body_of(transfer))


def _claim(row: Row) -> Claim:
    return Claim(transfer_of_body(row[5]), row[0], row[2], row[3], row[4])
