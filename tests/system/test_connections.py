"""What a client meets at the port: the printed curl, tokens that have expired, requests that never end."""

import asyncio
import shlex

import httpx
import jwt

from internal_transfer.domain.account import Owner
from internal_transfer.settings.demo_issuer import DemoIssuer
from internal_transfer.simulation.scenarios.expectation import until


def _parts(curl):
    """The address, headers and body of a curl command."""
    words = shlex.split(curl)
    assert words[:2] == ["curl", "-s"]
    headers = {}
    body = None
    for option, value in zip(words[3::2], words[4::2], strict=True):
        if option == "-H":
            name, _, text = value.partition(": ")
            headers[name] = text
        else:
            assert option == "-d"
            body = value
    return words[2], headers, body


async def test_the_printed_curl(server):
    """The command that a demonstration prints at its start makes a transfer, and repeated it finds the same one."""
    await server.start()
    curl, ready = server.announced
    assert ready == f"internal-transfer is ready on {server.address}"
    address, headers, body = _parts(curl)
    first = await server.http.post(address, headers=headers, content=body)
    again = await server.http.post(address, headers=headers, content=body)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()


async def test_expired_token(server):
    """A token that has expired is 401, and the answer says how to get a new one."""
    await server.start()
    user = server.user("late")
    issued = jwt.decode(user.token, options={"verify_signature": False})["iat"]
    issuer = DemoIssuer.read(server.data)
    user.token = issuer.token(Owner("late"), roles=("user",), tier="standard", now_seconds=issued - 7200)
    response = await user.get("/history")
    assert response.status_code == 401
    assert response.json()["code"] == "UNAUTHENTICATED"
    assert "internal-transfer token --data" in response.json()["detail"]


async def _cut_off(server, text):
    """What the server answers to a request that goes on for ever, up to the end of the connection."""
    host, _, port = server.address.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(text)
    await writer.drain()
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_requests_that_do_not_arrive(server):
    """Headers and bodies that are not complete within the deadline are cut off with a problem, and others go on."""
    server.config.write_text(
        server.config.read_text().replace("[server]\n", "[server]\nreceive_deadline_seconds = 0.5\n")
    )
    await server.start()
    user = await server.fund("patient", "100")
    head = b"POST /api/v1/user/internal_transfer HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer %s\r\n" % (
        user.token.encode()
    )
    rest = b"Idempotency-Key: slow\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    answers = await asyncio.gather(_cut_off(server, head), _cut_off(server, head + rest + b'{"from_account":'))
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"did not arrive in time" in answer
    assert await _cut_off(server, b"") == b""
    assert (await user.move("funding", "spot", "1", key="slow")).status_code == 201


async def test_health_port(server):
    """The health port says that the server lives and is ready, and gives metrics that count its transfers."""
    await server.start()
    user = await server.fund("counted", "100")
    assert (await user.move("funding", "spot", "1", key="one")).status_code == 201
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.admin_port}", trust_env=False) as health:
        assert (await health.get("/healthz")).status_code == 200
        assert (await health.get("/readyz")).status_code == 200

        async def counted():
            metrics = (await health.get("/metrics")).text
            return True if 'requests_total{code="",outcome="answered",route="transfers"} 1.0' in metrics else None

        await until("the metrics count the request", counted)
