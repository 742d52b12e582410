"""Failpoints in front of the embedded ports: where the process dies, and what is on disk then."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.ledger import SqliteLedger
from internal_transfer.adapters.sqlite.trading_core import ReferenceCore
from internal_transfer.adapters.sqlite.transfer_store import SqliteTransferStore
from internal_transfer.domain.account import Account, Owner, ledger_account_id
from internal_transfer.domain.identifier import FENCE_HOLD_ID, hold_id, post_id, void_id
from internal_transfer.domain.leg import Action, Leg, LegState, Side
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.transfer import Status, Transfer, advance, command_of, with_leg
from internal_transfer.ports.ledger import Ledger, LedgerAccount, LedgerTransfer, TransferFlag, TransferResult
from internal_transfer.ports.trading_core import TradingCore
from internal_transfer.ports.transfer_store import Change, Proposal, TransferStore
from internal_transfer.simulation.clock import START_MS, SimulatedClock
from internal_transfer.simulation.failpoints import Crash, Failpoint, Failpoints, crash

APPLY, CANCEL, REVERSE = Action.APPLY, Action.CANCEL, Action.REVERSE
SOURCE = Account(Owner("alice"), "funding", "USDT")
TARGET = Account(Owner("alice"), "spot", "USDT")
TRANSFER = Transfer(
    id=SimulatedClock().new_ids(1)[0],
    owner=Owner("alice"),
    key="key",
    source=SOURCE,
    target=TARGET,
    amount=100,
    memo=None,
    legs=(Leg(Side.TARGET, "main"),),
    created_at=START_MS,
    updated_at=START_MS,
    due_at=START_MS,
)
HOLD = LedgerTransfer(
    id=hold_id(TRANSFER.id),
    debit_account_id=ledger_account_id(SOURCE),
    credit_account_id=ledger_account_id(TARGET),
    amount=100,
    ledger=1,
    code=1,
    flags=TransferFlag.PENDING,
)
POST = LedgerTransfer(
    id=post_id(TRANSFER.id, 0), pending_id=HOLD.id, amount=100, flags=TransferFlag.POST_PENDING_TRANSFER
)
VOID = LedgerTransfer(id=void_id(TRANSFER.id, 0), pending_id=HOLD.id, flags=TransferFlag.VOID_PENDING_TRANSFER)
FENCE = LedgerTransfer(id=HOLD.id, pending_id=FENCE_HOLD_ID, flags=TransferFlag.VOID_PENDING_TRANSFER)


class Life:
    """Takes a transfer step by step through the ports, as the services would."""

    def __init__(self, store: TransferStore, ledger: Ledger, core: TradingCore) -> None:
        self.store, self.ledger, self.core = store, ledger, core
        self.transfer = TRANSFER

    async def record(self, after: Transfer) -> None:
        """Records the next state."""
        (recorded,) = await self.store.record([Change(self.transfer.revision, after)])
        assert recorded is not None
        self.transfer = recorded

    async def leg(self, state: LegState) -> None:
        """Records the next state of the only leg."""
        await self.record(with_leg(self.transfer, replace(self.transfer.legs[0], state=state)))

    async def tell(self, action: Action) -> None:
        """Tells the core."""
        await self.core.tell([command_of(self.transfer, self.transfer.legs[0], action)])

    async def succeed(self) -> None:
        """From nothing to SUCCESS, the leg's verdict recorded by itself."""
        await self.hold()
        await self.tell(APPLY)
        await self.leg(LegState.APPLIED)
        await self.ledger.create_transfers([POST])
        await self.record(advance(self.transfer, Status.SUCCESS))

    async def fail(self) -> None:
        """From nothing to FAILED over an applied leg that is cancelled in vain and then reversed."""
        await self.hold()
        await self.tell(APPLY)
        await self.tell(CANCEL)
        await self.leg(LegState.REVERSING)
        await self.tell(REVERSE)
        await self.leg(LegState.REVERSED)
        await self.ledger.create_transfers([VOID])
        await self.record(advance(self.transfer, Status.FAILED, failure=Code.CORE_REFUSED))

    async def expire(self) -> None:
        """From nothing to FAILED over a fence."""
        await self.store.accept([Proposal(TRANSFER, b"", 1000)])
        await self.record(replace(self.transfer, fencing=True))
        await self.ledger.create_transfers([FENCE])
        await self.record(advance(self.transfer, Status.FAILED, failure=Code.EXPIRED))

    async def hold(self) -> None:
        """From nothing to PENDING with the leg asked."""
        await self.store.accept([Proposal(TRANSFER, b"", 1000)])
        await self.ledger.create_accounts(
            [LedgerAccount(id=ledger_account_id(account), ledger=1, code=1) for account in (SOURCE, TARGET)]
        )
        await self.ledger.create_transfers([HOLD])
        asked = with_leg(self.transfer, Leg(Side.TARGET, "main", LegState.ASKED))
        await self.record(advance(asked, Status.PENDING))


async def what_is_left(path: Path) -> tuple[Status | None, LegState | None, list[str], list[Action]]:
    """The transfer's status and leg, what is in the ledger, and what the core was told, after a restart."""
    database = Database(path)
    store, ledger, core = (
        SqliteTransferStore(database),
        SqliteLedger(database, SimulatedClock()),
        ReferenceCore(database),
    )
    names = {HOLD.id: "hold", POST.id: "post", VOID.id: "void"}
    (transfer,) = await store.get([TRANSFER.id])
    created = await ledger.lookup_transfers(list(names))
    (verdicts,) = await core.verdicts([TRANSFER.id])
    await database.durable()
    database.close()
    return (
        transfer.status if transfer is not None else None,
        transfer.legs[0].state if transfer is not None else None,
        [names[each.id] for each in created],
        [verdict.action for verdict in verdicts],
    )


REQUESTING, PENDING, SUCCESS, FAILED = Status
NOT_ASKED, ASKED = LegState.NOT_ASKED, LegState.ASKED


@pytest.mark.parametrize("each_call", [False, True], ids=["turn", "each_call"])
@pytest.mark.parametrize(
    ("life", "failpoint", "left"),
    [
        (Life.succeed, Failpoint.BEFORE_ACCEPT, (None, None, [], [])),
        (Life.succeed, Failpoint.AFTER_ACCEPT, (REQUESTING, NOT_ASKED, [], [])),
        (Life.succeed, Failpoint.BEFORE_HOLD, (REQUESTING, NOT_ASKED, [], [])),
        (Life.succeed, Failpoint.AFTER_HOLD, (REQUESTING, NOT_ASKED, ["hold"], [])),
        (Life.succeed, Failpoint.AFTER_PENDING, (PENDING, ASKED, ["hold"], [])),
        (Life.succeed, Failpoint.BEFORE_TELL, (PENDING, ASKED, ["hold"], [])),
        (Life.succeed, Failpoint.AFTER_TELL, (PENDING, ASKED, ["hold"], [APPLY])),
        (Life.succeed, Failpoint.AFTER_LEG, (PENDING, LegState.APPLIED, ["hold"], [APPLY])),
        (Life.succeed, Failpoint.BEFORE_POST, (PENDING, LegState.APPLIED, ["hold"], [APPLY])),
        (Life.succeed, Failpoint.AFTER_POST, (PENDING, LegState.APPLIED, ["hold", "post"], [APPLY])),
        (Life.succeed, Failpoint.AFTER_SUCCESS, (SUCCESS, LegState.APPLIED, ["hold", "post"], [APPLY])),
        (Life.fail, Failpoint.AFTER_CANCEL, (PENDING, ASKED, ["hold"], [APPLY, CANCEL])),
        (Life.fail, Failpoint.AFTER_REVERSE, (PENDING, LegState.REVERSING, ["hold"], [APPLY, CANCEL, REVERSE])),
        (Life.fail, Failpoint.BEFORE_VOID, (PENDING, LegState.REVERSED, ["hold"], [APPLY, CANCEL, REVERSE])),
        (Life.fail, Failpoint.AFTER_VOID, (PENDING, LegState.REVERSED, ["hold", "void"], [APPLY, CANCEL, REVERSE])),
        (Life.fail, Failpoint.AFTER_FAILED, (FAILED, LegState.REVERSED, ["hold", "void"], [APPLY, CANCEL, REVERSE])),
        (Life.expire, Failpoint.AFTER_FENCING, (REQUESTING, NOT_ASKED, [], [])),
        (Life.expire, Failpoint.AFTER_FENCE, (REQUESTING, NOT_ASKED, [], [])),
    ],
)
async def test_dies_at_its_step_with_all_before_it_on_disk(tmp_path, life, failpoint, left, each_call):
    """A failpoint is reached at its step: everything before it is on disk, and nothing after it was ever done."""
    database = Database(tmp_path / "data.db", each_call=each_call)
    points = Failpoints(failpoint, database, die=crash)
    store = points.wrap_store(SqliteTransferStore(database))
    ledger = points.wrap_ledger(SqliteLedger(database, SimulatedClock()))
    core = points.wrap_core(ReferenceCore(database))
    with pytest.raises(Crash):
        await life(Life(store, ledger, core))
    database.close()
    assert await what_is_left(tmp_path / "data.db") == left


@pytest.mark.parametrize("life", [Life.succeed, Life.fail, Life.expire])
async def test_other_steps_pass(tmp_path, life):
    """A transfer that does not reach the failpoint's step goes to its end, and the ports' other methods work."""
    database = Database(tmp_path / "data.db")
    points = Failpoints(Failpoint.AFTER_FENCE if life is not Life.expire else Failpoint.AFTER_VOID, database, die=crash)
    store = points.wrap_store(SqliteTransferStore(database))
    ledger = points.wrap_ledger(SqliteLedger(database, SimulatedClock()))
    core = points.wrap_core(ReferenceCore(database))
    await life(Life(store, ledger, core))
    (transfer,) = await store.get([TRANSFER.id])
    assert transfer is not None
    assert transfer.status in {SUCCESS, FAILED}
    await database.durable()
    database.close()


async def test_a_start_is_no_step(tmp_path):
    """The hold that a start burns for fences triggers no failpoint, so a server that dies before a hold can start."""
    database = Database(tmp_path / "data.db")
    ledger = Failpoints(Failpoint.BEFORE_HOLD, database, die=crash).wrap_ledger(
        SqliteLedger(database, SimulatedClock())
    )
    (burnt,) = await ledger.create_transfers([replace(HOLD, id=FENCE_HOLD_ID)])
    assert burnt.status is TransferResult.DEBIT_ACCOUNT_NOT_FOUND
    with pytest.raises(Crash):
        await ledger.create_transfers([HOLD])
    database.close()


PROGRAM = """
import asyncio, sys
from pathlib import Path
from internal_transfer.adapters.sqlite.trading_core import ReferenceCore
from internal_transfer.domain.leg import Action
from internal_transfer.domain.account import Account
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Command, Side
from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.simulation.failpoints import Failpoint, Failpoints

async def main():
    database = Database(Path(sys.argv[1]))
    core = Failpoints(Failpoint.AFTER_TELL, database).wrap_core(ReferenceCore(database))
    account = Account("alice", "spot", "USDT")
    await core.tell([Command(TransferId(1), "main", Side.TARGET, Action.APPLY, "USDT", 100, None, account)])
    print("survived")

asyncio.run(main())
"""


async def test_a_server_kills_itself(tmp_path):
    """Outside of tests a failpoint ends the process with SIGKILL, after the step is on disk."""
    path = tmp_path / "data.db"
    program = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", PROGRAM, str(path)], capture_output=True, check=False
    )
    assert (program.returncode, program.stdout) == (-signal.SIGKILL, b""), program.stderr
    database = Database(path)
    (balance,) = await ReferenceCore(database).balances(Owner("alice"))
    assert balance.posted == 100
    await database.durable()
    database.close()
