import httpx
import pytest

from internal_transfer.adapters.sqlite.trading_core import CoreMode
from internal_transfer.api.operators.routes import STEERED_ELSEWHERE
from internal_transfer.api.operators.views import ServerState
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.ports.errors import System
from internal_transfer.simulation.faults import FailBefore, NeverAnswer
from services.desks import ACTOR

ADMIN = "/api/v1/admin"
REASON = {"reason": "r"}
CASH = {"user": "alice", "account": "funding", "asset": "USDT", "amount": "5", "reference": "x", "reason": "wire"}


def client_of(app):
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(base_url=f"http://admin{ADMIN}", transport=transport)


@pytest.fixture
async def client(stack, desks):
    async def set_core_mode(mode):
        stack.core.mode = CoreMode(mode)

    async with client_of(desks.admin_app(set_core_mode=set_core_mode)) as client:
        yield client


async def waiting(stack):
    stack.core.mode = CoreMode.WITHHOLD
    return await stack.accepted("k")


async def test_show(stack, client):
    """The evidence has the transfer, the ledger's rows, the core's verdicts, and the words."""
    transfer = await stack.accepted("k", "1.5", source="funding", target="spot")
    shown = (await client.get(f"/transfers/{transfer.id}")).json()
    assert shown["transfer"]["request_id"] == str(transfer.id)
    assert shown["transfer"]["amount"] == "1.5"
    assert shown["transfer"]["legs"] == [{"side": "target", "core": "alpha", "state": "applied", "reason": ""}]
    assert [event["status"] for event in shown["transfer"]["events"]] == ["REQUESTING", "PENDING", "SUCCESS"]
    assert shown["ledger"]["hold"] == "posted"
    assert [row["kind"] for row in shown["ledger"]["rows"]] == ["hold", "post"]
    [verdict] = shown["core"]["verdicts"]
    assert (verdict["outcome"], verdict["amount"], verdict["debit"]) == ("applied", "1.5", None)
    assert verdict["credit"] == {"user_id": "alice", "account_type": "spot", "asset": "USDT"}
    assert shown["known"]
    assert shown["unknown"] == []
    assert sorted(shown["evidence"]) == ["post", "retry", "void"]


async def test_show_of_systems_that_are_away(stack, client):
    """A system that does not answer is null."""
    transfer = await waiting(stack)
    stack.scripts[System.LEDGER].add("lookup_transfers", FailBefore())
    stack.scripts[System.CORE].add("verdicts", FailBefore())
    shown = (await client.get(f"/transfers/{transfer.id}")).json()
    assert (shown["ledger"], shown["core"]) == (None, None)


async def test_void_with_the_evidence_that_was_shown(stack, client):
    """An act answers what it did, under the audit entry of its evidence; the voided hold is shown as such."""
    transfer = await waiting(stack)
    digest = (await client.get(f"/transfers/{transfer.id}")).json()["evidence"]["void"]
    wrong = await client.post(f"/transfers/{transfer.id}/void", json=REASON | {"evidence": "0" * 64})
    assert (wrong.status_code, wrong.json()["code"]) == (409, "INVALID_STATE_TRANSITION")
    answer = await client.post(f"/transfers/{transfer.id}/void", json=REASON | {"evidence": digest})
    act = answer.json()
    assert answer.status_code == 200
    assert {name: act[name] for name in ("action", "request_id", "outcome", "reason", "status")} == {
        "action": "void",
        "request_id": str(transfer.id),
        "outcome": "completed",
        "reason": "r",
        "status": "FAILED",
    }
    assert act["note"] == "not yet approved by a second person"
    entries = (await client.get("/audit", params={"after": act["audit_id"] - 1, "limit": 1})).json()["entries"]
    assert (entries[0]["action"], entries[0]["actor"], entries[0]["outcome"]) == ("void", ACTOR, "decided")
    shown = (await client.get(f"/transfers/{transfer.id}")).json()
    assert [row["kind"] for row in shown["ledger"]["rows"]] == ["hold", "void"]


async def test_post_and_retry(stack, client):
    """A post without confirmation needs `break_glass`; a retry says how far it came."""
    transfer = await waiting(stack)
    retried = (await client.post(f"/transfers/{transfer.id}/retry", json=REASON)).json()
    assert (retried["outcome"], retried["status"]) == ("started", "PENDING")
    refused = await client.post(f"/transfers/{transfer.id}/post", json=REASON)
    assert (refused.status_code, refused.json()["recorded"]) == (409, False)
    posted = await client.post(f"/transfers/{transfer.id}/post", json=REASON | {"break_glass": True})
    assert posted.json()["status"] == "SUCCESS"


async def test_acknowledge(stack, client):
    """What was posted by breaking the glass is acknowledged once, with a reason, and then leaves the report."""
    transfer = await waiting(stack)
    path = f"/transfers/{transfer.id}/acknowledge"
    assert (await client.post(path, json=REASON)).status_code == 409
    await client.post(f"/transfers/{transfer.id}/post", json=REASON | {"break_glass": True})
    assert (await client.post("/reconciliation")).json()["clean"] is False
    act = (await client.post(path, json=REASON)).json()
    assert (act["action"], act["outcome"], act["status"]) == ("acknowledge", "completed", "SUCCESS")
    assert (await client.post("/reconciliation")).json()["clean"] is True
    assert (await client.post("/transfers/x/acknowledge", json=REASON)).status_code == 404
    assert (await client.post(path, json={})).status_code == 400


async def test_lists(stack, client):
    """Lists are by status and pages, and stuck transfers have their own."""
    first, second = await stack.accepted("a"), await stack.accepted("b")
    page = (await client.get("/transfers", params={"status": "SUCCESS", "limit": 1})).json()
    assert ([each["request_id"] for each in page["transfers"]], page["next_after"]) == ([str(first.id)], str(first.id))
    page = (await client.get("/transfers", params={"status": "SUCCESS", "after": page["next_after"]})).json()
    assert ([each["request_id"] for each in page["transfers"]], page["next_after"]) == ([str(second.id)], None)
    transfer = await waiting(stack)
    await stack.pass_time(100, step=100)
    stuck = (await client.get("/transfers/stuck")).json()["transfers"]
    assert [each["request_id"] for each in stuck] == [str(transfer.id)]
    assert "events" not in stuck[0]


async def test_cash(client):
    """Deposits and withdrawals echo what they did; a reference works once."""
    first = (await client.post("/deposits", json=CASH)).json()
    again = (await client.post("/deposits", json=CASH)).json()
    assert (first["action"], first["request_id"], first["outcome"]) == ("deposit", None, "created")
    assert again["outcome"] == "exists"
    assert {name: first[name] for name in CASH} == CASH
    out = await client.post("/withdrawals", json=CASH | {"reference": "y", "amount": "5000"})
    assert (out.status_code, out.json()["code"]) == (422, "INSUFFICIENT_BALANCE")


async def test_policy(client):
    """Freezes and pauses are seen in the policy, and undone."""
    assert (await client.post("/users/alice/freeze", json=REASON)).json()["outcome"] == "completed"
    assert (await client.post("/routes/funding:spot/pause")).json()["reason"] == "not given"
    policy = (await client.get("/policy")).json()
    assert (policy["frozen_users"], policy["paused_routes"], policy["version"]) == (["alice"], ["funding:spot"], 2)
    assert (await client.post("/users/alice/unfreeze", json={"version": 1})).status_code == 409
    assert (await client.post("/users/alice/unfreeze", json={"version": 2})).status_code == 200
    assert (await client.post("/routes/funding:spot/resume")).status_code == 200
    policy = (await client.get("/policy")).json()
    assert (policy["frozen_users"], policy["paused_routes"]) == ([], [])


async def test_frozen_assets_and_the_kill_switch(client):
    """Both are seen in the policy and undone; other words are no path."""
    assert (await client.post("/assets/USDT/freeze", json=REASON)).json()["action"] == "freeze_asset"
    assert (await client.post("/policy/stop", json=REASON)).json()["action"] == "stop"
    policy = (await client.get("/policy")).json()
    assert (policy["frozen_assets"], policy["stopped"]) == (["USDT"], True)
    assert (await client.post("/assets/USDT/unfreeze", json=REASON)).status_code == 200
    assert (await client.post("/policy/start", json=REASON)).status_code == 200
    policy = (await client.get("/policy")).json()
    assert (policy["frozen_assets"], policy["stopped"]) == ([], False)
    assert (await client.post("/assets/XXX/freeze", json=REASON)).status_code == 422
    assert (await client.post("/policy/stop", json={"version": 0})).status_code == 409


async def test_reconciliation(client):
    """A run answers its report, which can be read again."""
    assert (await client.get("/reconciliation")).json() == {"clean": None, "items": [], "at": None}
    ran = (await client.post("/reconciliation")).json()
    assert (ran["clean"], ran["items"]) == (True, [])
    assert (await client.get("/reconciliation")).json() == {"clean": True, "items": [], "at": ran["at"]}


async def test_the_audit_chain_can_be_verified(stack, client):
    """A chain that was tampered with is called broken at the entry."""
    assert (await client.get("/audit/verification")).json() == {"whole": True, "broken_at": None}
    stack.database.connection.execute("UPDATE operations_audit SET actor = 'nobody' WHERE number = 1")
    assert (await client.get("/audit/verification")).json() == {"whole": False, "broken_at": 1}


async def test_api_keys(client):
    """A key is shown once, and can be revoked; an unknown one cannot."""
    made = (await client.post("/api-keys", json={"user": "alice"})).json()
    assert sorted(made) == ["api_key", "passphrase", "secret"]
    revoked = await client.post(f"/api-keys/{made['api_key']}/revoke", json=REASON)
    assert revoked.json() == {"api_key": made["api_key"], "revoked": True}
    assert (await client.post("/api-keys/none/revoke")).status_code == 400
    assert (await client.post("/api-keys", json={"user": "alice", "tier": "gold"})).status_code == 400


async def test_the_core_is_steered_in_demonstrations_only(stack, desks, client):
    """Each word sets its mode and is audited; without a demonstration, and where the core is elsewhere, it is
    refused.
    """
    for word, mode in (("pause", "paused"), ("refuse", "refuse"), ("withhold", "withhold"), ("resume", "normal")):
        assert (await client.post(f"/core/{word}")).json()["action"] == f"core_{word}"
        assert stack.core.mode == mode
    async with client_of(desks.admin_app()) as other:
        assert (await other.post("/core/pause")).status_code == 403
    async with client_of(desks.admin_app(set_core_mode=STEERED_ELSEWHERE)) as elsewhere:
        refused = await elsewhere.post("/core/pause")
        assert (refused.status_code, refused.json()["code"]) == (409, "INVALID_STATE_TRANSITION")
        assert "the directory of that core" in refused.json()["detail"]
    assert stack.core.mode is CoreMode.NORMAL


async def test_the_server_tells_of_itself(desks, client):
    """Where a server runs it says where it listens, whether it is ready and what it was started with."""
    state = ServerState(
        host="127.0.0.1",
        port=8080,
        admin_port=9464,
        ready=False,
        reason="the trading core 'core' does not answer",
        config="/etc/settings.toml",
        settings="abc",
        demo=False,
        version="1.2.3",
    )

    async def describe_server():
        return state

    async with client_of(desks.admin_app(describe_server=describe_server)) as other:
        assert (await other.get("/server")).json() == {
            "host": "127.0.0.1",
            "port": 8080,
            "admin_port": 9464,
            "ready": False,
            "reason": "the trading core 'core' does not answer",
            "config": "/etc/settings.toml",
            "settings": "abc",
            "demo": False,
            "version": "1.2.3",
        }
    assert (await client.get("/server")).status_code == 404


async def test_who_is_not_let_in_does_nothing(desks):
    """The mounting application decides who the caller is; its refusal is the answer."""
    refusal = Refusal(Code.PERMISSION_DENIED, "the token does not carry the role operator")
    async with client_of(desks.admin_app(actor_of=lambda _: refusal)) as client:
        answer = await client.post("/deposits", json=CASH)
    assert (answer.status_code, answer.json()["code"]) == (403, "PERMISSION_DENIED")
    assert ("deposit", "x", "decided") not in await desks.entries()


@pytest.mark.parametrize(
    ("route", "content", "status", "field"),
    [
        ("POST /transfers/5/void", b"{", 400, "body"),
        ("POST /transfers/5/void", b"\xff", 400, "body"),
        ("POST /transfers/5/void", b"[" * 9000, 400, "body"),
        ("POST /transfers/5/void", b"[]", 400, "body"),
        ("POST /transfers/5/void", b"{}", 400, "body"),
        ("POST /transfers/5/void", b'{"reason":1}', 400, "reason"),
        ("POST /transfers/5/void", b'{"reason":"r","x":1}', 400, "body"),
        ("POST /transfers/5/void", b'{"reason":"r","reas\\u006fn":"r"}', 400, "reason"),
        ("POST /transfers/5/void", b'{"reason":"r","break_glass":true}', 400, "break_glass"),
        ("POST /transfers/5/void", b'{"reason":"' + b"r" * 20_000 + b'"}', 413, "body"),
        ("POST /transfers/5/void", b'{"reason":" "}', 400, "reason"),
        ("POST /transfers/5/erase", b'{"reason":"r"}', 404, "path"),
        ("POST /routes/funding/pause", b"", 400, "route"),
        ("POST /routes/funding:spot/stop", b"", 404, "path"),
        ("POST /users/alice/ban", b"", 404, "path"),
        ("POST /users/alice/freeze", b'{"reason":""}', 400, "reason"),
        ("POST /core/stop", b"", 404, "path"),
        ("POST /core/pause", b'{"reason":""}', 400, "reason"),
        ("POST /api-keys", b'{"user":"a","reason":""}', 400, "reason"),
        ("POST /api-keys/k/revoke", b'{"reason":""}', 400, "reason"),
        ("GET /transfers", b"", 400, "status"),
        ("GET /transfers?status=DONE", b"", 400, "status"),
        ("GET /transfers?status=SUCCESS&after=x", b"", 400, "after"),
        ("GET /transfers?status=SUCCESS&limit=0", b"", 400, "limit"),
        ("GET /transfers?status=SUCCESS&status=FAILED", b"", 400, "status"),
        ("GET /transfers?status=SUCCESS&page=2", b"", 400, "page"),
        ("GET /policy?x=1", b"", 400, "x"),
        ("DELETE /policy", b"", 405, "method"),
        ("GET /nothing", b"", 404, "path"),
    ],
)
async def test_bad_input_names_the_field_and_the_rule(client, route, content, status, field):
    """What is wrong with a request is said in a problem, and nothing is done."""
    answer = await client.request(*route.split(" "), content=content)
    problem = answer.json()
    assert (answer.status_code, problem["details"][0]["field"]) == (status, field)
    assert problem["recorded"] is False
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("text", ["0", "01", "x", "9" * 19, "1" * 30, "7"])
async def test_ids_that_nobody_has(client, text):
    """A text that is no id is answered like an id that does not exist."""
    for answer in (await client.get(f"/transfers/{text}"), await client.post(f"/transfers/{text}/void", json=REASON)):
        assert (answer.status_code, answer.json()["code"]) == (404, "TRANSFER_NOT_FOUND")


async def test_failures_of_systems_are_problems(stack, client, monkeypatch):
    """A store that is away is 503, a time-out is 503 with an open outcome, and a bug is 500; none of them hangs up."""
    stack.scripts[System.STORE].add("by_status", FailBefore())
    answer = await client.get("/transfers", params={"status": "SUCCESS"})
    assert (answer.status_code, answer.json()["code"]) == (503, "STORE_UNAVAILABLE")

    stack.scripts[System.OPERATIONS].add("change_policy", NeverAnswer())
    answer = await stack.patiently(client.post("/users/alice/freeze", json=REASON))
    assert (answer.status_code, answer.json()["code"], answer.json()["recorded"]) == (503, "TIMEOUT", None)

    async def broken():
        raise KeyError

    monkeypatch.setattr(stack.operations, "policy", broken)
    answer = await client.get("/policy")
    assert (answer.status_code, answer.json()["code"]) == (500, "INTERNAL")


async def test_reading_the_audit_chain_has_a_bound_too(client, stack):
    """A store that does not answer in time is unavailable: nothing was done."""
    stack.scripts[System.OPERATIONS].add("audit", NeverAnswer())
    answer = await stack.patiently(client.get("/audit"))
    assert (answer.status_code, answer.json()["code"], answer.json()["recorded"]) == (503, "STORE_UNAVAILABLE", False)
