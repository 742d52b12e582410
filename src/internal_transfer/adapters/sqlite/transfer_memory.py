"""What the embedded transfer store has decided in this turn of the database and has not written yet.

Most transfers are accepted, held and finished within one turn. So their rows are written once, at the end of the turn
and in their last state, instead of being inserted and then updated. Until then they are kept here, and a read that
needs SQL writes them first.
"""

from collections.abc import Iterable

import apsw

from internal_transfer.adapters.sqlite import transfer_statements as sql
from internal_transfer.adapters.sqlite.transfer_rows import (
    Row,
    blob,
    changing_values,
    lasting_values,
    transfer_of,
    units_of,
)
from internal_transfer.domain.account import Owner
from internal_transfer.domain.identifier import TransferId, day_of
from internal_transfer.domain.transfer import Status, Transfer

Claim = tuple[TransferId, bytes]
"""The transfer that a key stands for, and the fingerprint of its request."""

Use = tuple[Owner, str, int]
"""One owner's daily use of an asset: owner, asset and UTC day."""


class TransferMemory:
    """What one turn has read and decided; one object serves all turns, one after another.

    `known` holds the transfers that were read or changed, as they are now; `claims` the keys that were looked up, with
    None for one that is free; `uses` the daily sums that were read or changed.
    """

    __slots__ = (
        "_changed",
        "_events",
        "_fresh",
        "_has_counters",
        "_highest_id",
        "_used",
        "claims",
        "known",
        "last_sequence",
        "ledger_seen",
        "uses",
    )

    def __init__(self) -> None:
        self.known: dict[TransferId, Transfer] = {}
        self.claims: dict[tuple[Owner, str], Claim | None] = {}
        self.uses: dict[Use, int] = {}
        self._fresh: dict[TransferId, tuple[int, bytes]] = {}
        self._changed: dict[TransferId, None] = {}
        self._events: list[Row] = []
        self._used: set[Use] = set()
        self._has_counters = False
        self.last_sequence = 0
        self._highest_id = 0
        self.ledger_seen = 0

    def prepare(self, connection: apsw.Connection) -> None:
        """Reads the counters from the database where they are not known: at first, and after a turn was taken back."""
        if not self._has_counters:
            (counters,) = connection.execute(sql.SELECT_COUNTERS)
            self.last_sequence, self._highest_id, self.ledger_seen = counters
            self._has_counters = True

    def learn_claims(self, connection: apsw.Connection, keys: Iterable[tuple[Owner, str]]) -> None:
        """Looks up the keys that are not in `claims` yet."""
        claims = self.claims
        unread = [key for key in keys if key not in claims]
        if unread:
            for key in unread:
                claims[key] = None
            bindings = [(number, owner, key) for number, (owner, key) in enumerate(unread)]
            for number, transfer_id, fingerprint in connection.executemany(sql.SELECT_CLAIM, bindings):
                claims[unread[number]] = (transfer_id, fingerprint)

    def learn_uses(self, connection: apsw.Connection, uses: Iterable[Use]) -> None:
        """Reads the daily sums that are not in `uses` yet."""
        sums = self.uses
        unread = [use for use in uses if use not in sums]
        if unread:
            for use in unread:
                sums[use] = 0
            bindings = [(number, *use) for number, use in enumerate(unread)]
            for number, stored in connection.executemany(sql.SELECT_USE, bindings):
                sums[unread[number]] = units_of(stored)

    def learn(self, connection: apsw.Connection, transfer_ids: Iterable[TransferId]) -> None:
        """Reads the transfers that are not in `known` yet; those that do not exist stay out of it."""
        known = self.known
        unread = [(transfer_id,) for transfer_id in transfer_ids if transfer_id not in known]
        if unread:
            for row in connection.executemany(sql.SELECT_TRANSFER, unread):
                known[row[0]] = transfer_of(row)

    def is_taken(self, connection: apsw.Connection, transfer_id: TransferId) -> bool:
        """Tells whether a transfer has this id; asks the database only for an id that is not above all others."""
        if transfer_id > self._highest_id:
            return False
        self.learn(connection, (transfer_id,))
        return transfer_id in self.known

    def accept(self, transfer: Transfer, fingerprint: bytes, use: Use) -> None:
        """Adds a new transfer, its key's claim, its share of the daily limit and its first event."""
        transfer_id = transfer.id
        self._add_event(transfer, transfer.created_at)
        self.known[transfer_id] = transfer
        self.claims[transfer.owner, transfer.key] = (transfer_id, fingerprint)
        self.uses[use] += transfer.amount
        self._used.add(use)
        self._fresh[transfer_id] = (self.last_sequence, fingerprint)
        self._highest_id = max(self._highest_id, transfer_id)

    def change(self, connection: apsw.Connection, before: Transfer, after: Transfer) -> None:
        """Puts the next state of a transfer in place of the last one, with an event if the status changed."""
        transfer_id = after.id
        self.known[transfer_id] = after
        if transfer_id not in self._fresh:
            self._changed[transfer_id] = None
        if after.status is not before.status:
            self._add_event(after, after.updated_at)
            if after.status is Status.FAILED:
                self._give_back(connection, after)
        self.ledger_seen = max(self.ledger_seen, after.ledger_timestamp)

    def _add_event(self, transfer: Transfer, at: int) -> None:
        self.last_sequence += 1
        self._events.append((self.last_sequence, transfer.id, transfer.version, transfer.status, at, transfer.failure))

    def _give_back(self, connection: apsw.Connection, transfer: Transfer) -> None:
        """Gives a failed transfer's share back to the day that it was taken from: that of the id, not today."""
        use = (transfer.owner, transfer.source.asset, day_of(transfer.id))
        self.learn_uses(connection, (use,))
        rest = self.uses[use] - transfer.amount
        assert rest >= 0, f"{transfer.id}: gives back more than was used"
        self.uses[use] = rest
        self._used.add(use)

    def write(self, connection: apsw.Connection) -> None:
        """Writes everything that is not written yet, so that SQL sees it; `known`, `claims` and `uses` stay."""
        if not self._events and not self._changed:
            return
        known = self.known
        if self._fresh:
            rows: list[Row] = []
            claims: list[Row] = []
            for transfer_id, (accept_number, fingerprint) in self._fresh.items():
                transfer = known[transfer_id]
                rows.append(changing_values(transfer) + lasting_values(transfer, accept_number))
                claims.append((transfer.owner, transfer.key, transfer_id, fingerprint))
            connection.executemany(sql.INSERT_TRANSFER, rows)
            connection.executemany(sql.INSERT_CLAIM, claims)
            self._fresh.clear()
        if self._changed:
            connection.executemany(sql.UPDATE_TRANSFER, [changing_values(known[each]) for each in self._changed])
            self._changed.clear()
        if self._events:
            connection.executemany(sql.INSERT_EVENT, self._events)
            self._events.clear()
        if self._used:
            connection.executemany(sql.WRITE_USE, [(*use, blob(self.uses[use])) for use in self._used])
            self._used.clear()
        connection.execute(sql.RAISE_LEDGER_SEEN, (self.ledger_seen,))

    def end(self, connection: apsw.Connection) -> None:
        """Writes everything and forgets what was read: the turn is about to be committed."""
        self.write(connection)
        self.known.clear()
        self.claims.clear()
        self.uses.clear()

    def drop(self) -> None:
        """Forgets everything: the turn was taken back."""
        self.known.clear()
        self.claims.clear()
        self.uses.clear()
        self._fresh.clear()
        self._changed.clear()
        self._events.clear()
        self._used.clear()
        self._has_counters = False
