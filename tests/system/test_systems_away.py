"""Systems that are down, slow, or refuse: what users, readiness and `doctor` are told, and that nothing is lost."""

import asyncio
import time

import httpx
import pytest

import real_servers
from internal_transfer.simulation.scenarios.catalogue import STANDARD, new_server
from internal_transfer.simulation.scenarios.expectation import until
from internal_transfer.simulation.scenarios.server_process import run_program
from internal_transfer.simulation.scenarios.surroundings import StackKind

POSTGRESQL = StackKind.POSTGRESQL
AWAY = "127.0.0.1:9"


@pytest.fixture
async def postgresql():
    """A PostgreSQL of the test's own, since it will not answer for a while."""
    with real_servers.own("postgresql") as system:
        yield system


async def readiness(server):
    """Whether the server is ready, and why not."""
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        response = await client.get(f"http://127.0.0.1:{server.admin_port}/readyz")
    return response.status_code, response.text


async def ready(server):
    return True if (await readiness(server))[0] == 200 else None


async def test_a_store_that_does_not_answer(place, environment, postgresql):
    """Requests get 503 with Retry-After and nothing recorded; readiness says why; later the same key succeeds (G16)."""
    environment(POSTGRESQL, postgresql=postgresql.address())
    async with new_server(place, STANDARD, POSTGRESQL) as server:
        await server.start()
        user = await server.fund("patient", "100")
        assert await ready(server)
        postgresql.pause()
        response = await user.move("funding", "spot", "1", key="k")
        status, reason = await readiness(server)
        postgresql.resume()
        assert response.status_code == 503
        problem = response.json()
        assert int(response.headers["retry-after"]) >= 1
        assert (problem["recorded"], problem["retry"]) == (False, "same_key")
        assert status == 503
        assert "store" in reason
        await until("it is ready again", lambda: ready(server))
        assert (await user.move("funding", "spot", "1", key="k")).status_code == 201
        await server.expect_clean()


async def test_a_ledger_that_is_down(place, environment):
    """What is accepted while the ledger is down is on record and finished when it is back; readiness says why (G10)."""
    environment(POSTGRESQL)
    async with new_server(place, STANDARD, POSTGRESQL) as server:
        await server.start()
        user = await server.fund("patient", "100")
        await server.surroundings.ledger.kill()
        response = await user.move("funding", "spot", "1", key="k", wait_seconds=0)
        assert (await readiness(server))[0] == 503
        assert "ledger" in (await readiness(server))[1]
        await server.surroundings.ledger.start()
        assert response.status_code in {202, 503}, response.text

        async def finished():
            again = await user.move("funding", "spot", "1", key="k")
            return True if again.status_code in {200, 201} else None

        await until("the transfer is finished", finished)
        await user.expect_balances(funding="99", spot="1")
        await server.expect_clean()


async def test_a_bus_that_is_down(place, environment):
    """While Kafka is down a transfer stays PENDING, and is finished when it is back; readiness says why (G10)."""
    with real_servers.own("kafka") as kafka:
        environment(POSTGRESQL, kafka=kafka.address())
        async with new_server(place, STANDARD, POSTGRESQL) as server:
            await server.start()
            user = await server.fund("patient", "100")
            kafka.kill()

            async def unready():
                return True if (await readiness(server))[0] == 503 else None

            response = await user.move("funding", "spot", "1", key="k", wait_seconds=0)
            await until("readiness tells", unready)
            kafka.start()
            assert response.json()["status"] == "PENDING"

            async def finished():
                again = await user.move("funding", "spot", "1", key="k")
                return True if again.status_code == 200 else None

            await until("the transfer is finished", finished)
            await server.expect_clean()


@pytest.mark.parametrize("system", ["postgresql", "kafka", "ledger"])
async def test_a_start_without_a_system_is_refused(place, environment, system):
    """`serve` ends with 1 and names the system that is away, and `doctor` names it too."""
    environment(POSTGRESQL)
    async with new_server(place, STANDARD, POSTGRESQL) as server:
        await server.surroundings.migrate()
        if system != "ledger":
            await server.surroundings.ledger.start()
        settings, variables = server.config.read_text(), dict(server.surroundings.environment)
        if system == "postgresql":
            variables["INTERNAL_TRANSFER_POSTGRES_URL"] = f"postgresql://postgres@{AWAY}/postgres"
        elif system == "kafka":
            lines = [f'servers = ["{AWAY}"]' if line.startswith("servers") else line for line in settings.splitlines()]
            server.config.write_text("\n".join(lines))
        words = ("--config", str(server.config), "--data", str(place / "data"))
        started = time.monotonic()
        ran = await run_program("serve", *words, "--port", "0", "--admin-port", "0", "--demo", environment=variables)
        assert ran.exit_code == 1, ran.output
        assert time.monotonic() - started < 60
        assert system in ran.errors.splitlines()[-1].lower(), ran.errors
        examined = await run_program("doctor", *words, "--json", environment=variables)
        wrong = [f"{check['name']} {check['message']}" for check in examined.object()["checks"] if not check["ok"]]
        assert any(system in line.lower() for line in wrong), wrong


@pytest.mark.parametrize("password", ["wrong", None])
async def test_a_refused_password_is_told(place, environment, password):
    """A wrong password, and none, refuse the start with words that say so, and without showing the URL's secret."""
    address = real_servers.need("postgresql", secured=True)
    environment(POSTGRESQL)
    async with new_server(place, STANDARD, POSTGRESQL) as server:
        secret = f":{password}" if password else ""
        url = f"postgresql://{address.user}{secret}@{address.host}:{address.port}/postgres"
        variables = server.surroundings.environment | {"INTERNAL_TRANSFER_POSTGRES_URL": url}
        ran = await run_program("migrate", "--config", str(server.config), environment=variables)
        assert ran.exit_code == 1
        assert "password" in ran.errors
        assert f":{password}@" not in ran.errors


async def test_time_goes_by_for_others(place, environment, postgresql):
    """While one system does not answer, health does, and other requests are refused quickly instead of piling up."""
    environment(POSTGRESQL, postgresql=postgresql.address())
    async with new_server(place, STANDARD, POSTGRESQL) as server:
        await server.start()
        user = await server.fund("patient", "100")
        postgresql.pause()
        answers = await asyncio.gather(*(user.move("funding", "spot", "1", key=str(n)) for n in range(40)))
        async with httpx.AsyncClient(trust_env=False) as client:
            health = await client.get(f"http://127.0.0.1:{server.admin_port}/healthz")
        postgresql.resume()
        assert {answer.status_code for answer in answers} == {503}
        assert health.status_code == 200
        await until("it is ready again", lambda: ready(server))
        for n in range(40):
            response = await user.move("funding", "spot", "1", key=str(n))
            assert response.status_code in {200, 201}, response.text
        await user.expect_balances(funding="60", spot="40")
