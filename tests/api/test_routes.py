import json

import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route as PageRoute

from api.scripted import BODY, ID, RULES, TRANSFERS, Stand, allowed, events, page, token, transfer
from internal_transfer.domain.account import Account
from internal_transfer.domain.refusal import Code, Detail, Refusal
from internal_transfer.domain.request import TransferRequest
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable
from internal_transfer.services.answer import Answer, BalanceLine, Preview

HISTORY = TRANSFERS + "/history"
LOCATION = f"{TRANSFERS}/{ID}"


def problem_in(response, status: int, code: str) -> dict:
    """The problem, after checking that it is one, with this status and code."""
    assert response.headers["content-type"] == "application/problem+json"
    shown = response.json()
    assert (response.status_code, shown["status"], shown["code"]) == (status, status, code), shown
    return shown


@pytest.mark.parametrize(
    ("status", "replayed", "expected"),
    [
        (Status.SUCCESS, False, 201),
        (Status.SUCCESS, True, 200),
        (Status.PENDING, False, 202),
        (Status.PENDING, True, 202),
        (Status.REQUESTING, False, 202),
        (Status.REQUESTING, True, 202),
    ],
)
async def test_create(stand, status, replayed, expected):
    """The status code tells whether a transfer succeeded and whether it is new; the replay is marked as one."""
    stand.services.answer = Answer(transfer(status), replayed=replayed, events=events(Status.REQUESTING))
    response = await stand.create()
    assert response.status_code == expected
    assert response.headers["location"] == LOCATION
    assert response.headers.get("idempotent-replayed") == ("true" if replayed else None)
    assert "preference-applied" not in response.headers
    shown = response.json()
    assert (shown["request_id"], shown["status"]) == (str(ID), status.value)
    assert [event["version"] for event in shown["events"]] == [1]


async def test_what_is_submitted(stand):
    """The gateway gets the canonical request with the caller, tier and key, and the usual wait."""
    await stand.create(BODY | {"amount": "12.50"}, idempotency_key='"k 1"')
    account = Account("alice", "funding", "USDT")
    request = TransferRequest("alice", "standard", "k 1", account, Account("alice", "spot", "USDT"), "12.5")
    assert stand.services.asked == [(request, 0.5)]


@pytest.mark.parametrize("replayed", [False, True])
async def test_failed(stand, replayed):
    """A failed transfer is a problem that says it is recorded and where, the first time and on every replay."""
    stand.services.answer = Answer(transfer(Status.FAILED), replayed=replayed)
    response = await stand.create()
    shown = problem_in(response, 422, "INSUFFICIENT_BALANCE")
    assert (shown["recorded"], shown["request_id"], shown["retry"]) == (True, str(ID), "new_key")
    assert response.headers["location"] == LOCATION
    assert response.headers.get("idempotent-replayed") == ("true" if replayed else None)


async def test_failed_by_a_code_of_another_status(stand):
    """A recorded failure is 422 whatever its code means elsewhere."""
    stand.services.answer = Answer(transfer(Status.FAILED, failure=Code.TIMEOUT))
    assert problem_in(await stand.create(), 422, "TIMEOUT")["recorded"] is True


async def test_key_reused(stand):
    """A reused key names the fields that differ and the first transfer, and is not called a replay."""
    refusal = Refusal(Code.IDEMPOTENCY_KEY_REUSED, "another amount", (Detail("amount", "differs"),))
    stand.services.answer = Answer(transfer(), refusal, replayed=True)
    response = await stand.create()
    shown = problem_in(response, 422, "IDEMPOTENCY_KEY_REUSED")
    assert (shown["recorded"], shown["request_id"], shown["retry"]) == (False, str(ID), "new_key")
    assert shown["details"] == [{"field": "amount", "rule": "differs"}]
    assert response.headers["location"] == LOCATION
    assert "idempotent-replayed" not in response.headers


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Code.INVALID_ASSET, 422),
        (Code.PERMISSION_DENIED, 403),
        (Code.DAILY_LIMIT_EXCEEDED, 422),
        (Code.RATE_LIMITED, 429),
        (Code.SYSTEM_OVERLOADED, 503),
        (Code.CORE_UNAVAILABLE, 503),
    ],
)
async def test_refused(stand, code, status):
    """A refusal records nothing, has no transfer to point to, and tells when to come back where that helps."""
    stand.services.answer = Answer(refusal=Refusal(code, "no", retry_after_seconds=2.0))
    response = await stand.create()
    shown = problem_in(response, status, code.value)
    assert shown["recorded"] is False
    assert "request_id" not in shown
    assert "location" not in response.headers
    assert response.headers.get("retry-after") == ("2" if status in {429, 503} else None)


@pytest.mark.parametrize(
    ("prefer", "wait", "applied"),
    [("wait=5", 5, "wait=5"), ("wait=0", 0, "wait=0"), ("wait=60", 20, "wait=20"), ("wait=soon", 0.5, None)],
)
async def test_prefer(stand, prefer, wait, applied):
    """A wished wait is granted up to 20 s and said in the answer, a replay's and a failure's too."""
    for answer in (Answer(transfer()), Answer(transfer(), replayed=True), Answer(transfer(Status.FAILED))):
        stand.services.answer = answer
        response = await stand.create(prefer=prefer)
        assert response.headers.get("preference-applied") == applied
        assert stand.services.asked[-1][1] == wait


@pytest.mark.parametrize(
    ("failure", "code", "recorded"),
    [
        (Unavailable(System.STORE, "gone"), "STORE_UNAVAILABLE", False),
        (OutcomeUnknown(System.STORE, "silent"), "TIMEOUT", None),
        (TimeoutError(), "TIMEOUT", None),
    ],
)
async def test_operating_failures(stand, failure, code, recorded):
    """When a system fails, the client learns whether anything can be recorded and to come back with the same key."""
    stand.services.answer = failure
    response = await stand.create()
    shown = problem_in(response, 503, code)
    assert (shown["recorded"], shown["retry"]) == (recorded, "same_key")
    assert response.headers["retry-after"] == "1"


async def test_deadline(tmp_path):
    """A gateway that never answers does not keep the client for ever."""
    stand = Stand(tmp_path, deadline_seconds=0.0)
    stand.services.never = True
    shown = problem_in(await stand.create(prefer="wait=0"), 503, "TIMEOUT")
    assert (shown["recorded"], shown["retry"]) == (None, "same_key")


async def test_bug(stand):
    """A bug of ours is a problem that claims nothing, and its words stay inside."""
    stand.services.answer = AssertionError("secret")
    response = await stand.create()
    assert problem_in(response, 500, "INTERNAL")["recorded"] is None
    assert "secret" not in response.text
    assert problem_in(await stand.ask("GET", LOCATION), 500, "INTERNAL")["recorded"] is False


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        ({"authorization": None}, b"", 401, "UNAUTHENTICATED"),
        ({"authorization": "Bearer x"}, b"{", 401, "UNAUTHENTICATED"),
        ({"content-type": None}, BODY, 415, "INVALID_REQUEST"),
        ({"content-type": "text/plain"}, BODY, 415, "INVALID_REQUEST"),
        ({"content-encoding": "gzip"}, BODY, 415, "INVALID_REQUEST"),
        ({"accept": "text/csv"}, BODY, 406, "INVALID_REQUEST"),
        ({"idempotency-key": None}, BODY, 400, "IDEMPOTENCY_KEY_REQUIRED"),
        ({"idempotency-key": "k" * 129}, BODY, 400, "INVALID_REQUEST"),
        ({}, b"", 400, "INVALID_REQUEST"),
        ({}, b'{"a":1}', 400, "INVALID_REQUEST"),
        ({}, BODY | {"amount": "0"}, 400, "INVALID_AMOUNT"),
        ({}, BODY | {"amount": 1}, 400, "INVALID_AMOUNT"),
        ({}, BODY | {"to_account": BODY["from_account"]}, 400, "SAME_ACCOUNT"),
        ({}, BODY | {"to_account": {"account_type": "spot", "asset": "BTC"}}, 400, "ASSET_MISMATCH"),
        ({}, BODY | {"to_account": {"account_type": "spot", "asset": "usdt"}}, 400, "INVALID_ASSET"),
        ({}, b" " * 16_385, 413, "INVALID_REQUEST"),
        ({"authorization": f"Bearer {token(roles=['auditor'])}"}, BODY, 403, "PERMISSION_DENIED"),
    ],
)
async def test_gate(stand, headers, body, status, code):
    """What is wrong with the message itself is refused before any service is asked."""
    response = await stand.create(body, **{name.replace("-", "_"): value for name, value in headers.items()})
    assert problem_in(response, status, code)["recorded"] is False
    assert stand.services.asked == []
    assert response.headers.get("www-authenticate", "").startswith("Bearer") is (status == 401)


async def test_largest_body(stand):
    """A body of exactly 16 KiB is read, in one piece and in many; one byte more is refused in both."""
    whole = json.dumps(BODY).encode().ljust(16 * 1024)

    async def pieces(body):
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    headers = {"content-type": "application/json", "idempotency-key": "k"}
    assert (await stand.create(whole)).status_code == 201
    assert (await stand.ask("POST", TRANSFERS, content=pieces(whole), headers=headers)).status_code == 201
    response = await stand.ask("POST", TRANSFERS, content=pieces(whole + b" "), headers=headers)
    problem_in(response, 413, "INVALID_REQUEST")


async def test_gone_client(stand):
    """A client that goes away in the middle of its body has asked for nothing and is answered nothing."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": TRANSFERS,
        "query_string": b"",
        "headers": [
            (b"authorization", stand.headers["authorization"].encode()),
            (b"content-type", b"application/json"),
            (b"idempotency-key", b"k"),
        ],
    }
    for first in ([], [{"type": "http.request", "body": b"{", "more_body": True}]):
        messages = [*first, {"type": "http.disconnect"}]
        sent = []

        async def receive(messages=messages):
            return messages.pop(0)

        async def send(message, sent=sent):
            sent.append(message)

        await stand.app(scope, receive, send)
        assert (messages, sent, stand.services.asked) == ([], [], [])


async def test_by_id(stand):
    """A transfer is read with its timeline, a failed one too, and is not to be cached."""
    stand.services.answer = Answer(transfer(Status.FAILED), events=events(Status.REQUESTING, Status.FAILED))
    response = await stand.ask("GET", LOCATION)
    shown = response.json()
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    assert (shown["status"], shown["failure"]["code"]) == ("FAILED", "INSUFFICIENT_BALANCE")
    assert [event["code"] for event in shown["events"]] == [None, "CORE_REFUSED"]
    assert stand.services.asked == [("alice", ID)]


@pytest.mark.parametrize(
    "text",
    ["0", "007", "-1", "+1", "1.0", "abc", "x1", "1 ", "%D9%A1", "1" * 20, str(2**63), str(2**64), "1e3", "", "1%00"],
)
async def test_no_request_id(stand, text):
    """What cannot be an id is an unknown transfer, and nobody is asked about it."""
    problem_in(await stand.ask("GET", f"{TRANSFERS}/{text}"), 404, "TRANSFER_NOT_FOUND")
    assert stand.services.asked == []


async def test_unknown_transfer(stand):
    """A transfer that the inquiry does not know for this caller is 404."""
    stand.services.answer = None
    problem_in(await stand.ask("GET", f"{TRANSFERS}/{2**63 - 1}"), 404, "TRANSFER_NOT_FOUND")
    problem_in(await stand.ask("GET", TRANSFERS, params={"idempotency_key": "k"}), 404, "TRANSFER_NOT_FOUND")
    assert stand.services.asked == [("alice", 2**63 - 1), ("alice", "k")]


async def test_by_key(stand):
    """A key in the query is percent-decoded once, and finds its transfer."""
    response = await stand.ask("GET", f"{TRANSFERS}?idempotency_key=a%2Bb%2520%22c")
    assert response.status_code == 200
    assert stand.services.asked == [("alice", 'a+b%20"c')]
    assert "idempotent-replayed" not in response.headers


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "idempotency_key"),
        ("idempotency_key=", "idempotency_key"),
        ("idempotency_key=%C3%A9", "idempotency_key"),
        ("idempotency_key=%09", "idempotency_key"),
        ("idempotency_key=" + "k" * 129, "idempotency_key"),
        ("idempotency_key=a&idempotency_key=a", "idempotency_key"),
        ("idempotency_key=a&limit=1", "limit"),
    ],
)
async def test_bad_key(stand, query, field):
    """A key that is missing, malformed or ambiguous is refused, naming the parameter."""
    shown = problem_in(await stand.ask("GET", f"{TRANSFERS}?{query}"), 400, "INVALID_REQUEST")
    assert shown["details"][0]["field"] == field


async def test_history(stand):
    """A page links to the next one, whose cursor brings the inquiry to the same walk."""
    stand.services.answer = page(2, next_after=700)
    first = await stand.ask("GET", f"{HISTORY}?limit=2&asset=USDT")
    shown = first.json()
    assert len(shown["transfers"]) == 2
    assert all("events" not in entry for entry in shown["transfers"])
    assert first.headers["link"] == f'<{HISTORY}?limit=2&asset=USDT&cursor={shown["next_cursor"]}>; rel="next"'
    stand.services.answer = page(0)
    second = await stand.ask("GET", first.links["next"]["url"])
    assert second.json() == {"transfers": [], "next_cursor": None}
    assert "link" not in second.headers
    [query] = stand.services.asked[1]
    assert (query.after, query.until, query.asset, query.most) == (700, 900, "USDT", 2)


async def test_history_as_csv(stand):
    """History is CSV for those who ask for it, with the same link to the next page."""
    stand.services.answer = page(2, next_after=700)
    response = await stand.ask("GET", HISTORY, headers={"accept": "text/csv"})
    assert response.headers["content-type"].startswith("text/csv; charset=utf-8")
    assert response.text.count("\r\n") == 3
    assert 'rel="next"' in response.headers["link"]
    assert response.headers["vary"] == "accept"


@pytest.mark.parametrize("query", ["limit=1000", "page=2", "direction=in", "cursor=x", "status=OPEN", "from=now"])
async def test_bad_history(stand, query):
    """Parameters of history that are unknown or malformed are refused before anybody is asked."""
    problem_in(await stand.ask("GET", f"{HISTORY}?{query}"), 400, "INVALID_REQUEST")
    assert stand.services.asked == []


async def test_preview(stand):
    """A preview needs no key, and a business no is a 200 that carries the problem."""
    stand.services.answer = allowed()
    headers = {"content-type": "application/json"}
    response = await stand.ask("POST", f"{TRANSFERS}/preview", json=BODY, headers=headers)
    assert (response.status_code, response.json()["allowed"]) == (200, True)
    refusal = Refusal(Code.AMOUNT_TOO_LARGE, "amount: too large", (Detail("amount", "too large"),))
    stand.services.answer = Preview(refusal, 5, RULES.limits["standard"]["USDT"], 0)
    shown = (await stand.ask("POST", f"{TRANSFERS}/preview", json=BODY)).json()
    assert shown["allowed"] is False
    assert (shown["problem"]["code"], shown["problem"]["status"]) == ("AMOUNT_TOO_LARGE", 422)
    assert shown["max_amount"] == "0.000005"


async def test_preview_shape_errors(stand):
    """A preview of a malformed request is 400."""
    response = await stand.ask("POST", f"{TRANSFERS}/preview", json=BODY | {"amount": "1e3"})
    problem_in(response, 400, "INVALID_AMOUNT")
    assert stand.services.asked == []


async def test_preview_never_records(stand):
    """A preview whose outcome is unknown still says that nothing is recorded."""
    stand.services.answer = OutcomeUnknown(System.STORE, "silent")
    shown = problem_in(await stand.ask("POST", f"{TRANSFERS}/preview", json=BODY), 503, "TIMEOUT")
    assert shown["recorded"] is False


async def test_balances(stand):
    """Balances are the caller's."""
    stand.services.answer = [BalanceLine(Account("alice", "funding", "USDT"), 3_000_000, 1_000_000, 2_000_000)]
    response = await stand.ask("GET", "/api/v1/user/balances")
    line = {"account_type": "funding", "asset": "USDT", "posted": "3", "held": "1", "available": "2"}
    assert response.json() == {"balances": [line]}
    assert stand.services.asked == [("alice",)]


async def test_options(stand):
    """Options show the limits of the caller's tier."""
    assert set((await stand.ask("GET", f"{TRANSFERS}/options")).json()["limits"]) == {"USDT"}
    vip = {"authorization": f"Bearer {token(tier='vip')}"}
    shown = (await stand.ask("GET", f"{TRANSFERS}/options", headers=vip)).json()
    assert (shown["tier"], shown["limits"]) == ("vip", {})


GETS = [LOCATION, f"{TRANSFERS}?idempotency_key=k", HISTORY, f"{TRANSFERS}/options", "/api/v1/user/balances"]
PATHS = {
    LOCATION: "GET, HEAD, OPTIONS",
    TRANSFERS: "GET, HEAD, POST, OPTIONS",
    HISTORY: "GET, HEAD, OPTIONS",
    f"{TRANSFERS}/preview": "POST, OPTIONS",
    f"{TRANSFERS}/options": "GET, HEAD, OPTIONS",
    "/api/v1/user/balances": "GET, HEAD, OPTIONS",
}


@pytest.mark.parametrize("path", PATHS)
async def test_methods(stand, path):
    """Other methods are refused with a problem that lists the right ones, and OPTIONS lists them too."""
    for method in ("DELETE", "PUT", "PATCH", "TRACE", "BREW", *(() if "POST" in PATHS[path] else ("POST",))):
        response = await stand.ask(method, path)
        problem_in(response, 405, "INVALID_REQUEST")
        assert response.headers["allow"] == PATHS[path]
    response = await stand.ask("OPTIONS", path)
    assert (response.status_code, response.headers["allow"], response.content) == (204, PATHS[path], b"")


@pytest.mark.parametrize("path", GETS)
async def test_every_get(stand, path):
    """Every GET wants a token, refuses unknown parameters and other media types, and has a HEAD."""
    stand.services.answer = {HISTORY: page(), "/api/v1/user/balances": []}.get(path, Answer(transfer()))
    problem_in(await stand.ask("GET", path, headers={"authorization": None}), 401, "UNAUTHENTICATED")
    joint = "&" if "?" in path else "?"
    problem_in(await stand.ask("GET", f"{path}{joint}surprise=1"), 400, "INVALID_REQUEST")
    problem_in(await stand.ask("GET", path, headers={"accept": "image/png"}), 406, "INVALID_REQUEST")
    get, head = await stand.ask("GET", path), await stand.ask("HEAD", path)
    assert (get.status_code, head.status_code) == (200, 200)
    assert get.headers["content-length"] == head.headers["content-length"] == str(len(get.content))


async def test_posts_take_no_parameters(stand):
    """A query on a POST is refused."""
    headers = {"idempotency-key": "k"}
    problem_in(await stand.ask("POST", f"{TRANSFERS}?dry_run=1", json=BODY, headers=headers), 400, "INVALID_REQUEST")
    assert stand.services.asked == []


@pytest.mark.parametrize(
    "path", ["/", "/api", TRANSFERS + "/1/2", TRANSFERS + "/history/", "/healthz", "/metrics", "/docs/"]
)
async def test_unknown_paths(stand, path):
    """Paths that are not served are problems too."""
    problem = problem_in(await stand.ask("GET", path), 404, "INVALID_REQUEST")
    assert problem["retry"] == "never"
    assert problem["detail"] == "path: is not served here; /docs lists the paths that are"


async def test_pages(tmp_path):
    """Pages that are added are served behind the users' endpoints; their bugs are problems as well."""

    async def hello(_):
        return PlainTextResponse("hello")

    async def broken(_):
        raise AssertionError("secret")

    stand = Stand(tmp_path, pages=[PageRoute("/hello", hello), PageRoute("/broken", broken)])
    assert (await stand.ask("GET", "/hello")).text == "hello"
    problem_in(await stand.ask("POST", "/hello"), 405, "INVALID_REQUEST")
    response = await stand.ask("GET", "/broken")
    problem_in(response, 500, "INTERNAL")
    assert "secret" not in response.text


async def test_metrics(stand):
    """Requests are counted by route, outcome and code."""
    await stand.create()
    await stand.create()
    await stand.create(b"")
    stand.services.answer = Unavailable(System.STORE, "gone")
    await stand.ask("GET", LOCATION)

    def count(route, outcome, code):
        labels = {"route": route, "outcome": outcome, "code": code}
        return stand.telemetry.registry.get_sample_value("internal_transfer_requests_total", labels)

    assert count("transfers", "answered", "") == 2
    assert count("transfers", "refused", "INVALID_REQUEST") == 1
    assert count("transfer", "failed", "STORE_UNAVAILABLE") == 1
