"""Reconciliation: not clean after somebody changed a row by hand."""

from typing import NamedTuple

import apsw

from internal_transfer.simulation.scenarios.expectation import expect, expect_status
from internal_transfer.simulation.scenarios.server_process import ServerProcess


class Planted(NamedTuple):
    """A change made by hand, what undoes it, and the kind that reconciliation reports."""

    kind: str
    change: str
    undo: str


PLANTED = (
    Planted(
        "mismatched_state",
        # The database guards final rows; the guard has to go first.
        "DROP TRIGGER transfer_final;"
        "UPDATE transfer SET status = 'FAILED', failure = 'CORE_REFUSED' WHERE key = 'planted'",
        "UPDATE transfer SET status = 'SUCCESS', failure = NULL WHERE key = 'planted';",
    ),
    Planted(
        "missing_core_effect",
        "UPDATE core_verdict SET outcome = 'refused' WHERE side = 'target'",
        "UPDATE core_verdict SET outcome = 'applied' WHERE side = 'target';",
    ),
    Planted(
        "balance_differs",
        "CREATE TABLE planted AS SELECT timestamp, credits_posted FROM ledger_account;"
        "UPDATE ledger_account SET credits_posted = x'000000000000000000000000000003e7' WHERE code = 1",
        "UPDATE ledger_account SET credits_posted = "
        "(SELECT credits_posted FROM planted WHERE planted.timestamp = ledger_account.timestamp);"
        "DROP TABLE planted",
    ),
)


async def planted_changes(server: ServerProcess) -> str:
    """Each change made by hand in the database is found and named, and no longer found after it was undone."""
    user = await server.fund("honest", "100")
    expect_status(await user.move("funding", "spot", "10", key="planted"), 201)
    await server.expect_clean()
    undo = ""
    for planted in PLANTED:
        await _change(server, undo + planted.change)
        if planted.kind == "missing_core_effect":
            # It looks like a core that was restored to before the transfer, so no role may start on it.
            expect(not await server.launch(), "it started beside a core that has forgotten what it did")
            await server.end()
        ran = await server.admin("reconcile")
        report = ran.object()
        kinds = {item["kind"] for item in report["items"]}
        expect(report["clean"] is False and ran.exit_code == 1, f"it is called clean: {planted.change}")
        others = {each.kind for each in PLANTED} - {planted.kind}
        expect(
            planted.kind in kinds and not kinds & others, f"it is called {kinds} instead of {planted.kind}: {planted}"
        )
        undo = planted.undo
    await _change(server, undo)
    await server.start()
    await server.expect_clean()
    return f"not clean, named {', '.join(planted.kind for planted in PLANTED)}; taken back: clean"


async def _change(server: ServerProcess, statements: str) -> None:
    """Stops the server and changes its database."""
    if server.is_running:
        code = await server.stop()
        expect(code == 0, f"the server ended with {code}:\n{server.log_end()}")
    connection = apsw.Connection(str(server.data / "internal-transfer.db"))
    try:
        connection.execute(statements)
    finally:
        connection.close()
