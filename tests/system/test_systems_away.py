"""Systems that are down or stand still: what users, readiness and `doctor` are told, and that nothing is lost."""

import asyncio
import os
import signal
import time
from itertools import count
from shutil import which

import pytest
from servers.tigerbeetle import HOW_TO_GET_IT

import real_servers
from internal_transfer.simulation.scenarios.catalogue import ONE_PROCESS, STANDARD, new_server
from internal_transfer.simulation.scenarios.expectation import until
from internal_transfer.simulation.scenarios.surroundings import StackKind
from system.told import (
    ask_health,
    expect_unavailable,
    failures_counted,
    found_wrong,
    readiness,
    start_refused,
    until_final,
    until_ready,
    until_unready,
)

POSTGRESQL, CASSANDRA = StackKind.POSTGRESQL, StackKind.CASSANDRA
AWAY = "127.0.0.1:9"


@pytest.fixture
async def postgresql():
    """A PostgreSQL of the test's own, since it will not answer for a while."""
    with real_servers.own("postgresql") as system:
        yield system


async def all_moved(user, keys):
    """The answers to requests that come together, without waiting for their end."""
    return await asyncio.gather(*(user.move("funding", "spot", "1", key=key, wait_seconds=0) for key in keys))


@pytest.fixture(params=["socket", "tigerbeetle"])
def ledger(request, environment, monkeypatch):
    """What holds the money: the process with the role `ledger`, or a TigerBeetle."""
    program = os.environ.get("TIGERBEETLE_BINARY") or which("tigerbeetle")
    if request.param == "tigerbeetle" and program is None:
        pytest.skip(f"tigerbeetle is missing: {HOW_TO_GET_IT}")
    environment(POSTGRESQL)
    if request.param == "tigerbeetle":
        monkeypatch.setenv("TIGERBEETLE_BINARY", program)


async def test_a_store_that_does_not_answer(place, environment, postgresql):
    """Requests get 503 with Retry-After and nothing recorded; readiness says why; later the same key succeeds (G16)."""
    environment(POSTGRESQL, postgresql=postgresql.address())
    async with new_server(place, STANDARD, POSTGRESQL) as server:
        await server.start()
        user = await server.fund("patient", "100")
        assert (await readiness(server))[0] == 200
        postgresql.pause()
        response = await user.move("funding", "spot", "1", key="k")
        status, reason = await readiness(server)
        postgresql.resume()
        expect_unavailable(response)
        assert status == 503
        assert "store" in reason
        await until_ready(server)
        assert (await user.move("funding", "spot", "1", key="k")).status_code == 201
        await server.expect_clean()


async def test_a_cassandra_that_is_away(place, environment):
    """Paused and then killed, it has requests answered 503 with Retry-After, and readiness says why; when it is back
    the same keys end well, each once (G10, G16).
    """
    with real_servers.own("cassandra") as cassandra:
        environment(CASSANDRA, cassandra=cassandra.address())
        async with new_server(place, STANDARD, CASSANDRA) as server:
            await server.start()
            user = await server.fund("patient", "100")
            for go, come in ((cassandra.pause, cassandra.resume), (cassandra.kill, cassandra.start)):
                go()
                response = await user.move("funding", "spot", "1", key=go.__name__)
                await until_unready(server, "store", str(cassandra.ports[0]) if go == cassandra.kill else "no answer")
                await asyncio.to_thread(come)
                expect_unavailable(response, recorded=(False, None))
                await until_ready(server)
                assert (await until_final(user, go.__name__))["status"] == "SUCCESS"
            await user.expect_balances(funding="98", spot="2")
            await server.expect_clean()


@pytest.mark.usefixtures("ledger")
async def test_a_ledger_that_is_away(place):
    """What is accepted while the ledger is paused, and then killed, is on record, and is finished once when it is back;
    what is not is told so; readiness says why (G5, G10).
    """
    async with new_server(place, STANDARD, POSTGRESQL) as server:
        await server.start()
        user = await server.fund("patient", "100")
        companion = server.surroundings.ledger
        for when in ("paused", "killed"):
            if when == "paused":
                os.kill(companion.pid, signal.SIGSTOP)
            else:
                await companion.kill()
            keys = [f"{when}-{number}" for number in range(10)]
            responses = await all_moved(user, keys)
            await until_unready(server, "ledger")
            if when == "paused":
                os.kill(companion.pid, signal.SIGCONT)
            else:
                await companion.start()
            for response in responses:
                if response.status_code != 202:
                    expect_unavailable(response, recorded=(False, None))
            for key in keys:
                assert (await until_final(user, key))["status"] == "SUCCESS"
            await until_ready(server)
        await user.expect_balances(funding="80", spot="20")
        await server.expect_clean()


async def test_a_bus_that_is_away(place, environment):
    """While Kafka is paused, and then killed, transfers stay PENDING, and are finished once when it is back; readiness
    says why (G5, G10).
    """
    with real_servers.own("kafka") as kafka:
        environment(POSTGRESQL, kafka=kafka.address())
        async with new_server(place, STANDARD, POSTGRESQL) as server:
            await server.start()
            user = await server.fund("patient", "100")
            for go, come in ((kafka.pause, kafka.resume), (kafka.kill, kafka.start)):
                go()
                keys = [f"{go.__name__}-{number}" for number in range(5)]
                responses = await all_moved(user, keys)
                await until_unready(server, "Kafka")
                await asyncio.to_thread(come)
                assert [response.json()["status"] for response in responses] == ["PENDING"] * len(keys)
                for key in keys:
                    assert (await until_final(user, key))["status"] == "SUCCESS"
                await until_ready(server)
            await user.expect_balances(funding="90", spot="10")
            await server.expect_clean()


async def test_a_core_that_stands_still(place, environment):
    """A core process that hangs leaves its transfers PENDING, then readiness names it and its routes are refused before
    anything is recorded; when it goes on all is finished (G10, G16).
    """
    environment(POSTGRESQL)
    async with new_server(place, STANDARD._replace(core_silence_seconds=1), POSTGRESQL) as server:
        await server.start()
        user = await server.fund("patient", "100")
        os.kill(server.surroundings.core.pid, signal.SIGSTOP)
        waiting = await user.move("funding", "spot", "1", key="waiting", wait_seconds=0)
        assert (waiting.status_code, waiting.json()["status"]) == (202, "PENDING")
        await until_unready(server, "the trading core", "does not answer")
        # One request every few seconds is let through, to see whether the core is back.
        keys = ["first", "second"]
        answers = [await user.move("funding", "spot", "1", key=key, wait_seconds=0) for key in keys]
        assert expect_unavailable(answers[-1])["code"] == "CORE_UNAVAILABLE"
        os.kill(server.surroundings.core.pid, signal.SIGCONT)
        for key in ("waiting", *keys):
            assert (await until_final(user, key))["status"] == "SUCCESS"
        await user.expect_balances(funding="97", spot="3")
        await server.expect_clean()


async def test_a_limiter_that_is_away(place, monkeypatch):
    """While Valkey is away each process limits by itself: that is counted, logged, and told by `doctor`; its buckets
    count again when it is back, and it keeps no server from starting (G13).
    """
    with real_servers.own("valkey") as valkey:
        monkeypatch.setenv("INTERNAL_TRANSFER_REDIS_URL", valkey.address().url)
        async with new_server(place, ONE_PROCESS._replace(per_minute=1, burst=5)) as server:
            server.config.write_text(server.config.read_text() + '[systems]\nrate_limiter = "valkey"\n')
            await server.start()
            first, second = [await server.fund(name, "100") for name in ("first", "second")]
            valkey.pause()
            responses = [await first.move("funding", "spot", "1", key=str(number)) for number in range(6)]
            assert [response.status_code for response in responses] == [201] * 5 + [429]
            assert await failures_counted(server, "limiter") >= len(responses)
            assert "rate_limiter_fallback" in server.log.read_text()
            assert (await readiness(server))[0] == 200
            assert "no answer" in (await found_wrong(server))["valkey connection"]
            valkey.resume()
            answers = count()

            async def counts_again():
                before = await failures_counted(server, "limiter")
                await second.move("funding", "spot", "1", key=str(next(answers)))
                return True if await failures_counted(server, "limiter") == before else None

            await until("the shared buckets count", counts_again)
            valkey.kill()
            assert await server.stop() == 0
            await server.start()
            assert "rate_limiter_away" in server.log.read_text()
            assert (await first.move("funding", "spot", "1", key="after")).status_code == 201
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
        started = time.monotonic()
        assert system in (await start_refused(server, variables)).lower()
        assert time.monotonic() - started < 60
        wrong = await found_wrong(server, variables)
        assert any(system in f"{name} {message}".lower() for name, message in wrong.items()), wrong


async def test_time_goes_by_for_others(place, environment, postgresql):
    """While one system does not answer, health does, and other requests are refused quickly instead of piling up."""
    environment(POSTGRESQL, postgresql=postgresql.address())
    async with new_server(place, STANDARD, POSTGRESQL) as server:
        await server.start()
        user = await server.fund("patient", "100")
        postgresql.pause()
        answers = await asyncio.gather(*(user.move("funding", "spot", "1", key=str(n)) for n in range(40)))
        health = await ask_health(server, "/healthz")
        postgresql.resume()
        assert {answer.status_code for answer in answers} == {503}
        assert health.status_code == 200
        await until_ready(server)
        for n in range(40):
            response = await user.move("funding", "spot", "1", key=str(n))
            assert response.status_code in {200, 201}, response.text
        await user.expect_balances(funding="60", spot="40")
