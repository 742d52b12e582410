"""What users and operators are told: by an answer, by readiness, by metrics, by `doctor`, and by a start that fails."""

import httpx

from internal_transfer.simulation.scenarios.expectation import until
from internal_transfer.simulation.scenarios.server_process import run_program


async def ask_health(server, path):
    """What the port for health answers."""
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        return await client.get(f"http://127.0.0.1:{server.admin_port}{path}")


async def readiness(server):
    """Whether the server is ready, and why not."""
    response = await ask_health(server, "/readyz")
    return response.status_code, response.text


async def until_ready(server):
    """Waits until the server is ready."""

    async def attempt():
        return True if (await readiness(server))[0] == 200 else None

    await until("it is ready", attempt)


async def until_unready(server, *words):
    """Waits until the server says that it is not ready, with all of these words, and answers what it said."""

    async def attempt():
        status, reason = await readiness(server)
        return reason if status == 503 and all(word in reason for word in words) else None

    return await until(f"readiness tells of {' '.join(words)}", attempt)


async def failures_counted(server, system):
    """How many failures of a system the metrics have counted."""
    lines = (await ask_health(server, "/metrics")).text.splitlines()
    name = "internal_transfer_operating_failures_total{"
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name) and f'"{system}"' in line)


def expect_unavailable(response, *, recorded=(False,)):
    """The problem of an answer that tells its user to come again with the same key."""
    assert response.status_code == 503, response.text
    assert int(response.headers["retry-after"]) >= 1
    problem = response.json()
    assert problem["retry"] == "same_key"
    assert problem["recorded"] in recorded
    return problem


async def until_final(user, key, amount="1"):
    """Asks for a transfer from funding to spot again until it is final, and answers it."""

    async def attempt():
        response = await user.move("funding", "spot", amount, key=key)
        return response.json() if response.status_code in {200, 201} else None

    return await until(f"the transfer {key} is final", attempt)


async def start_refused(server, environment=None):
    """The line that a start ends with which must not succeed."""
    words = ("--config", str(server.config), "--data", str(server.data), "--port", "0", "--admin-port", "0")
    ran = await run_program("serve", *words, "--demo", environment=environment)
    assert ran.exit_code == 1, (ran.output, ran.errors)
    return ran.errors.splitlines()[-1]


async def found_wrong(server, environment=None):
    """What `doctor` finds wrong, by the name of the check."""
    words = ("--config", str(server.config), "--data", str(server.data), "--json")
    examined = (await run_program("doctor", *words, environment=environment)).object()
    return {check["name"]: check["message"] for check in examined["checks"] if not check["ok"]}
