import pytest

from services.desks import Desks
from services.stack import Stack


@pytest.fixture
async def start(tmp_path):
    """Starts a service on a file of the test's own; all that were started are stopped."""
    stacks = []

    async def start_one(*, deposit=100_000, **settings):
        stack = await Stack(tmp_path / "transfers.db", synced=False, **settings).start()
        stacks.append(stack)
        if deposit:
            await stack.deposit("alice", deposit)
        return stack

    yield start_one
    for stack in stacks:
        await stack.stop()


@pytest.fixture
async def stack(tmp_path):
    """A running service with nothing in it."""
    stack = await Stack(tmp_path / "db").start()
    yield stack
    await stack.stop()


@pytest.fixture
async def desks(stack):
    """The operators' desks on it, after 100 USDT were deposited for alice."""
    desks = Desks(stack)
    await desks.fund("alice", "100")
    return desks
