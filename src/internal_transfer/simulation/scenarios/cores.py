"""A trading core that is away, refuses, or says nothing; and operators who decide."""

from typing import Any

from internal_transfer.domain.refusal import Code
from internal_transfer.simulation.scenarios.expectation import expect, expect_problem, expect_status, until
from internal_transfer.simulation.scenarios.server_process import ServerProcess


async def core_paused(server: ServerProcess) -> str:
    """While the core is away a transfer stays PENDING with its money held; when it is back the scanner settles it."""
    user = await server.fund("waiting", "100")
    await server.steer_core("pause")
    response = await user.move("funding", "spot", "10", key="slow", wait_seconds=0)
    transfer = expect_status(response, 202)
    expect(transfer["status"] == "PENDING", f"it is {transfer['status']}")
    again = await user.move("funding", "spot", "10", key="slow", wait_seconds=0)
    expect(expect_status(again, 202)["request_id"] == transfer["request_id"], "the retry made another transfer")
    balances = await user.balances()
    expect(balances.get("spot", "absent") is None, f"the balance of the core that is away is shown: {balances}")
    await server.steer_core("resume")

    async def settled() -> dict[str, Any] | None:
        now = await user.transfer(transfer["request_id"])
        return now if now["status"] == "SUCCESS" else None

    await until("the scanner settles it", settled)
    await user.expect_balances(funding="90", spot="10")
    return "202 PENDING, held; the core's balance not shown; core back: the scanner made it SUCCESS"


async def core_refuses(server: ServerProcess) -> str:
    """A core's refusal gives the money back: the hold is voided, and the transfer stays FAILED."""
    user = await server.fund("refused", "100")
    await server.steer_core("refuse")
    problem = expect_problem(await user.move("funding", "spot", "10", key="no"), 422, Code.CORE_REFUSED)
    expect(problem["recorded"] is True, f"recorded is {problem['recorded']}")
    await server.steer_core("resume")
    expect_problem(await user.move("funding", "spot", "10", key="no"), 422, Code.CORE_REFUSED)
    expect_status(await user.move("funding", "spot", "10", key="yes"), 201)
    await user.expect_balances(funding="90", spot="10")
    return "422 CORE_REFUSED, voided, the same when the core is back; under a new key it goes"


async def second_core_refuses(server: ServerProcess) -> str:
    """Where the second of two cores refuses, the first takes its debit back before the hold is voided."""
    user = await server.fund("reversed", "100")
    expect_status(await user.move("funding", "spot", "50", key="in"), 201)
    await server.steer_core("refuse-credits")
    problem = expect_problem(await user.move("spot", "futures", "20", key="no"), 422, Code.CORE_REFUSED)
    await server.steer_core("resume")
    evidence = (await server.admin("show", problem["request_id"])).object()
    told = [(verdict["side"], verdict["action"], verdict["outcome"]) for verdict in evidence["core"]["verdicts"]]
    wanted = [("source", "apply", "applied"), ("target", "apply", "refused"), ("source", "reverse", "reversed")]
    expect(told == wanted, f"the cores were told {told}")
    expect(evidence["ledger"]["hold"] == "voided", f"the hold is {evidence['ledger']['hold']}")
    await user.expect_balances(funding="50", spot="50")
    expect_status(await user.move("spot", "futures", "20", key="yes"), 201)
    await user.expect_balances(funding="50", spot="30", futures="20")
    return "debited, refused, reversed, voided: FAILED, spot 50 again; with both willing it goes"


async def core_withholds(server: ServerProcess) -> str:
    """A core that owes its answer leaves a transfer stuck, until an operator voids it after the core's cancel."""
    user = await server.fund("stuck", "100")
    await server.steer_core("withhold")
    transfer = expect_status(await user.move("funding", "spot", "10", key="owed", wait_seconds=0), 202)
    request_id = transfer["request_id"]

    async def listed() -> bool | None:
        stuck = expect_status(await server.operators.get("transfers/stuck"), 200)["transfers"]
        return True if request_id in [each["request_id"] for each in stuck] else None

    await until("it is listed as stuck", listed)
    shown = (await server.admin("stuck")).object()["transfers"]
    expect([each["request_id"] for each in shown] == [request_id], f"the command line lists {len(shown)} as stuck")
    await user.expect_balances(funding="100", held="10")
    refused = await server.admin("post", request_id, "--reason", "the core does not say that it applied it")
    expect(refused.exit_code == 1, f"a post without the core's word ended with {refused.exit_code}: {refused.output}")
    act = (await server.admin("void", request_id, "--reason", "the core owes its answer")).object()
    # Where the core answers over a bus, the act is on its way when the command returns.
    expect(act.get("outcome") in {"completed", "started"}, f"the void answered {act}")

    async def failed() -> bool | None:
        return True if (await user.transfer(request_id))["status"] == "FAILED" else None

    await until("it has failed", failed)
    evidence = (await server.admin("show", request_id)).object()
    told = [(verdict["action"], verdict["outcome"]) for verdict in evidence["core"]["verdicts"]]
    expect(told == [("cancel", "cancelled")], f"the core was told {told}")
    await server.steer_core("resume")
    expect_problem(await user.move("funding", "spot", "10", key="owed"), 422, Code.VOIDED_BY_OPERATOR)
    await user.expect_balances(funding="100")
    return "stuck with 10 held; post refused without the core's word; void: cancelled, then FAILED; funding 100"


async def silent_core_sheds(server: ServerProcess) -> str:
    """When a core has owed an answer for too long, its routes are shed before anything is recorded; others go on."""
    user = await server.fund("shed", "100")
    await server.steer_core("withhold")
    expect_status(await user.move("funding", "spot", "1", key="probe-0", wait_seconds=0), 202)
    keys = ["probe-0"]

    async def shed() -> dict[str, Any] | None:
        key = f"probe-{len(keys)}"
        response = await user.move("funding", "spot", "1", key=key, wait_seconds=0)
        if response.status_code == 202:
            keys.append(key)
            return None
        expect(int(response.headers["retry-after"]) >= 1, "there is no Retry-After")
        expect(not await user.is_recorded(key), "a request that was shed used its key up")
        return expect_problem(response, 503, Code.CORE_UNAVAILABLE)

    problem = await until("the silent core's route is shed", shed)
    expect(problem["recorded"] is False, f"recorded is {problem['recorded']}")
    expect_status(await user.move("funding", "earn", "1", key="elsewhere"), 201)
    await server.steer_core("resume")
    for key in keys:
        expect_status(await user.move("funding", "spot", "1", key=key), 200)
    await user.expect_balances(funding=str(99 - len(keys)), earn="1", spot=str(len(keys)))
    return f"after {len(keys)} without an answer 503 CORE_UNAVAILABLE; funding to earn goes on; all settled later"


async def open_transfers_shed(server: ServerProcess) -> str:
    """When as many transfers are open as may be, new ones are shed before anything is recorded."""
    user = await server.fund("crowd", "100")
    await server.steer_core("withhold")
    for number in range(5):
        expect_status(await user.move("funding", "spot", "1", key=f"open-{number}", wait_seconds=0), 202)
    problem = expect_problem(
        await user.move("funding", "spot", "1", key="one-more", wait_seconds=0), 503, Code.SYSTEM_OVERLOADED
    )
    expect(problem["recorded"] is False, f"recorded is {problem['recorded']}")
    expect(not await user.is_recorded("one-more"), "a request that was shed used its key up")
    await server.steer_core("resume")
    for number in range(5):
        expect_status(await user.move("funding", "spot", "1", key=f"open-{number}"), 200)
    expect_status(await user.move("funding", "spot", "1", key="one-more"), 201)
    await user.expect_balances(funding="94", spot="6")
    return "5 open, the sixth 503 SYSTEM_OVERLOADED and nothing recorded; later its key succeeds"
