"""The version before: we go on with its data directory and its schema, and its processes run beside ours."""

import asyncio
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from internal_transfer.simulation.scenarios.catalogue import STANDARD
from internal_transfer.simulation.scenarios.expectation import until
from internal_transfer.simulation.scenarios.server_process import ServerProcess, run_program
from internal_transfer.simulation.scenarios.storms import storm
from internal_transfer.simulation.scenarios.surroundings import Companion, StackKind, Surroundings
from internal_transfer.simulation.scenarios.user import User
from real_servers import Missing, do_without

ROOT = Path(__file__).parents[2]
OURS = ROOT / "src"
[PREDECESSOR] = [
    line for line in Path(__file__).with_name("predecessor.txt").read_text().splitlines() if not line.startswith("#")
]
STACKS = [StackKind.POSTGRESQL, pytest.param(StackKind.CASSANDRA, marks=pytest.mark.full)]


@pytest.fixture(scope="module")
def theirs():
    """The predecessor's source, from the repository's own history."""
    with tempfile.TemporaryDirectory(prefix="it-predecessor-") as folder:
        archive = Path(folder) / "source.tar"
        command = ["git", "archive", "--output", str(archive), PREDECESSOR, "src"]
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        if done.returncode:
            fetch = f"fetch the history, with `git fetch --unshallow` ({done.stderr.strip()})"
            do_without("predecessor", Missing(f"commit {PREDECESSOR} is not in this checkout: {fetch}"))
        shutil.unpack_archive(archive, folder)
        source = Path(folder) / "src"
        assert Path(_where_the_program_is(source)).is_relative_to(source)
        yield source


def _where_the_program_is(source):
    """The file that the processes of a version are run from."""
    ask = [sys.executable, "-P", "-c", "import internal_transfer; print(internal_transfer.__file__)"]
    return subprocess.run(ask, env=environment_of(source), check=True, capture_output=True, text=True).stdout.strip()


def environment_of(source, **variables):
    """The environment in which the programs are those of a version's source."""
    return os.environ | variables | {"PYTHONPATH": str(source)}


def embedded(place, source):
    """A server of a version on the embedded database of a place, not started yet."""
    config = place / "settings.toml"
    config.write_text(STANDARD.settings())
    around = Surroundings(StackKind.EMBEDDED, place, environment_of(source))
    return ServerProcess(place / "data", config, surroundings=around)


class Stack:
    """One schema, one prefix and one ledger, on which processes of both versions run."""

    def __init__(self, place, kind):
        self.place = place
        self.config = place / "settings.toml"
        self._named = Surroundings(kind, place)
        self.config.write_text(STANDARD.settings() + self._named.settings)
        self.beside = {}

    def environment(self, source):
        return self._named.environment | {"PYTHONPATH": str(source)}

    async def migrate(self, source):
        """Makes or changes the tables and topics with a version's command."""
        ran = await run_program("migrate", "--config", str(self.config), environment=self.environment(source))
        assert ran.exit_code == 0, ran.errors

    async def start_beside(self, source):
        """Starts the ledger's process and the trading core's, each in the place of the one that runs."""
        await self.stop_beside()
        words = {
            "ledger": ("serve", "--roles", "ledger", "--data", str(self.place / "ledger"), "--admin-port", "0"),
            "core": ("core", "--demo", "--config", str(self.config), "--data", str(self.place / "core")),
        }
        for name, command in words.items():
            log = self.place / f"{name}.log"
            self.beside[name] = Companion(name, command, log, self.environment(source))
            await self.beside[name].start()

    async def stop_beside(self):
        """Stops both, as an operator does who installs another version."""
        for name in ("core", "ledger"):
            if name in self.beside and self.beside[name].is_running:
                assert await self.beside[name].stop() == 0, name

    async def kill(self, *names):
        for name in names:
            await self.beside[name].kill()

    def server(self, source, name):
        """A version's server, not started yet, whose data directory has this name."""
        folder = self.place / name
        folder.mkdir(exist_ok=True)
        around = Surroundings(StackKind.EMBEDDED, folder, self.environment(source))
        return ServerProcess(folder / "data", self.config, surroundings=around)


@asynccontextmanager
async def stack_on(place, kind):
    stack = Stack(place, kind)
    try:
        yield stack
    finally:
        await stack.kill(*stack.beside)


class Both:
    """Two servers as one: what a user asks goes to each in turn, so that a retry mostly reaches the other."""

    def __init__(self, *servers):
        self._servers = servers
        self._turns = itertools.cycle(servers)

    async def fund(self, name, amount):
        user = await self._servers[0].fund(name, amount)
        return User(lambda: next(self._turns).http, name, user.token)


def as_seen_by(server, user):
    """The same user at another server."""
    return User(lambda: server.http, user.name, user.token)


async def leave_open(user, key):
    """Asks for a transfer that the trading core does not confirm, and returns its id."""
    response = await user.move("funding", "spot", "10", key=key, wait_seconds=0)
    assert response.status_code == 202, response.text
    return response.json()["request_id"]


async def until_success(user, request_id):
    async def succeeded():
        return True if (await user.transfer(request_id))["status"] == "SUCCESS" else None

    await until(f"the transfer {request_id}, left open by the other version, succeeds", succeeded)


async def expect_replayed(user, key, request_id, *, amount="10", status=200):
    """The key still stands for its transfer, which ended as it had."""
    again = await user.move("funding", "spot", amount, key=key)
    assert (again.status_code, again.json()["request_id"]) == (status, request_id), again.text
    assert again.headers["idempotent-replayed"] == "true"


async def test_a_data_directory_goes_on(place, theirs):
    """We finish what the version before left open when it was killed, its keys replay, and it can take over again."""
    async with embedded(place, theirs) as before:
        await before.start()
        mover = await before.fund("mover", "100")
        words = ("--data", str(before.data), "--user", mover.name)
        token = (await run_program("token", *words, environment=environment_of(theirs))).output.strip()
        done = (await mover.move("funding", "spot", "10", key="done")).json()["request_id"]
        failed = (await mover.move("funding", "spot", "1000", key="failed")).json()["request_id"]
        await before.operate("core/withhold")
        opened = {"withheld": await leave_open(mover, "withheld")}
        await before.operate("core/pause")
        opened["unheard"] = await leave_open(mover, "unheard")
        await before.kill()
    async with embedded(place, OURS) as after:
        await after.start()
        user = User(lambda: after.http, mover.name, token)
        for key, request_id in opened.items():
            await until_success(user, request_id)
            await expect_replayed(user, key, request_id)
        await expect_replayed(user, "done", done)
        await expect_replayed(user, "failed", failed, amount="1000", status=422)
        later = await user.move("funding", "spot", "10", key="later")
        assert later.status_code == 201
        await user.expect_balances(funding="60", spot="40")
        await after.expect_clean()
        assert await after.stop() == 0
    async with embedded(place, theirs) as again:
        await again.start()
        user = User(lambda: again.http, mover.name, token)
        for key, request_id in {**opened, "done": done, "later": later.json()["request_id"]}.items():
            await expect_replayed(user, key, request_id)
        await again.expect_clean()
        assert await again.stop() == 0


@pytest.mark.parametrize("kind", STACKS)
async def test_a_schema_goes_on(place, environment, theirs, kind):
    """We migrate what the version before served, and finish what it left open when all its processes were killed."""
    environment(kind)
    async with stack_on(place, kind) as stack:
        await stack.migrate(theirs)
        await stack.start_beside(theirs)
        async with stack.server(theirs, "before") as before:
            await before.start()
            mover = await before.fund("mover", "100")
            done = (await mover.move("funding", "spot", "10", key="done")).json()["request_id"]
            await stack.kill("core")
            opened = {key: await leave_open(mover, key) for key in ("one", "two", "three")}
            await before.kill()
        await stack.kill("ledger")
        await stack.migrate(OURS)
        await stack.start_beside(OURS)
        async with stack.server(OURS, "before") as after:
            await after.start()
            user = as_seen_by(after, mover)
            for key, request_id in opened.items():
                await until_success(user, request_id)
                await expect_replayed(user, key, request_id)
            await expect_replayed(user, "done", done)
            assert (await user.move("spot", "funding", "5", key="back")).status_code == 201
            await user.expect_balances(funding="65", spot="35")
            await after.expect_clean()
            assert await after.stop() == 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", STACKS)
async def test_both_versions_side_by_side(place, environment, theirs, kind):
    """Both serve one schema at once, whichever version the core and the ledger have: each key is one transfer."""
    environment(kind)
    async with stack_on(place, kind) as stack:
        await stack.migrate(theirs)
        await stack.start_beside(theirs)
        async with stack.server(theirs, "theirs") as old, stack.server(OURS, "ours") as new:
            await old.start()
            await stack.migrate(OURS)
            # Users keep their tokens through an upgrade.
            new.data.mkdir(mode=0o700)
            shutil.copy(old.data / "demo-issuer.json", new.data / "demo-issuer.json")
            await new.start()
            await storm(Both(old, new), lambda: stack.start_beside(OURS), name="forward")
            await expect_one_transfer_each(old, new, "twice-forward")
            await storm(Both(new, old), lambda: stack.start_beside(theirs), name="back")
            await expect_one_transfer_each(new, old, "twice-back")
            for server in (old, new):
                await server.expect_clean()
                assert await server.stop() == 0


async def expect_one_transfer_each(first, second, name):
    """Every key that goes to both servers in the same moment is one transfer, which both show in the same state."""
    user = await first.fund(name, "100")
    doors = (user, as_seen_by(second, user))
    asked = [door.move("funding", "spot", "1", key=f"{number}") for number in range(20) for door in doors]
    answers = await asyncio.gather(*asked)
    assert {answer.status_code for answer in answers} <= {200, 201}, {answer.text for answer in answers}
    assert len({answer.json()["request_id"] for answer in answers}) == 20
    assert await doors[0].history() == await doors[1].history()
    for door in doors:
        await door.expect_balances(funding="80", spot="20")
