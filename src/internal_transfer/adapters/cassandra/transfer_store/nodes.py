"""Leases of node numbers, in the table `worker_lease`."""

from internal_transfer.adapters.cassandra.transfer_store import statements as cql_text
from internal_transfer.adapters.cassandra.transfer_store.tables import Tables
from internal_transfer.domain.identifier import NODES_MAX
from internal_transfer.ports.errors import OutcomeUnknown
from internal_transfer.ports.transfer_store import no_node_is_free

_ROUNDS_MAX = 50


async def lease_node(tables: Tables, holder: str, *, now_ms: int, lease_ms: int) -> int:
    """Leases a node number: the holder's own, else one never used, else the one whose lease ended longest ago."""
    until_ms = now_ms + lease_ms
    for _ in range(_ROUNDS_MAX):
        [rows] = await tables.cql.read([tables.cql.serially(tables.bind(cql_text.SELECT_NODES))])
        leased = next((row for row in rows if row[1] == holder), None)
        if leased is None and len(rows) < NODES_MAX:
            node = next(n for n in range(NODES_MAX) if n >= len(rows) or rows[n][0] != n)
            request = tables.bind(cql_text.ADD_NODE, node, holder, until_ms)
        else:
            ended = [row for row in rows if row[2] <= now_ms]
            leased = leased or min(ended, key=lambda row: (row[2], row[0]), default=None)
            if leased is None:
                raise no_node_is_free()
            node = leased[0]
            request = tables.bind(cql_text.MOVE_NODE, holder, until_ms, node, *leased[1:])
        if (await tables.cql.decide([request]))[0]:
            return int(node)
        await tables.cql.clock.sleep(0.03 * tables.cql.clock.jitter())
    raise OutcomeUnknown(tables.cql.system, "too many processes lease node numbers at once")
