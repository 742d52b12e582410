import pytest

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
