import asyncio
import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime
from urllib.parse import urlencode

import httpx
import pytest
from starlette.applications import Starlette

from api.scripted import ID, NOW_MS, RULES, Services, Stand, StillClock, page, transfer
from internal_transfer.api.okx.envelope import OKX_CODES
from internal_transfer.api.okx.routes import OkxApi
from internal_transfer.api.okx.signature import KEY_CACHED_SECONDS, WINDOW_MS, Signatures
from internal_transfer.api.submission import ApiContext
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.refusal import Code, Detail, Refusal
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable
from internal_transfer.ports.operations import ApiKey
from internal_transfer.ports.transfer_store import HistoryPage
from internal_transfer.services.answer import Answer, BalanceLine
from internal_transfer.services.operators.api_keys import hash_passphrase, passphrase_matches
from internal_transfer.telemetry import Telemetry

KEY, SECRET, PASSPHRASE = "key-of-alice", "the secret", "the passphrase"
TRANSFER = "/api/v5/asset/transfer"
STATE = "/api/v5/asset/transfer-state"
BILLS = "/api/v5/account/bills-archive"
BODY = {"ccy": "USDT", "amt": "12.5", "type": "0", "from": "6", "to": "18", "clientId": "k1"}
ALICE, BOB = Owner("alice"), Owner("alice.sub")
HASHED = hash_passphrase(PASSPHRASE, b"salt of 16 bytes")


class KnownKeys:
    """Finds the keys that a test put there, or fails as it was told, and counts how often it was asked."""

    def __init__(self):
        self.keys = {
            KEY: ApiKey(key=KEY, secret=SECRET, passphrase_hash=HASHED, owner=ALICE, tier="standard", created_at=1)
        }
        self.error = None
        self.asked = 0

    async def find(self, key):
        """The key, or the failure."""
        self.asked += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return self.keys.get(key)


class OkxStand:
    """The facade over scripted services, and a client that signs as OKX's clients do."""

    def __init__(self, *, deadline_seconds=20.0, **bounds):
        self.clock = StillClock()
        self.services = Services()
        self.keys = KnownKeys()
        self.telemetry = Telemetry()
        context = ApiContext(
            rules=RULES,
            clock=self.clock,
            telemetry=self.telemetry,
            wait_seconds=0.0,
            deadline_seconds=deadline_seconds,
        )
        signatures = Signatures(self.keys, self.clock, **bounds)
        okx = OkxApi(context, gateway=self.services, inquiry=self.services, signatures=signatures)
        self.app = Starlette(routes=okx.routes())

    def sign(self, method, target, body=b"", *, at_ms=None, secret=SECRET):
        """The headers of a request that alice signs."""
        moment = datetime.fromtimestamp((self.clock.ms if at_ms is None else at_ms) / 1000, UTC)
        timestamp = moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
        message = timestamp.encode() + method.encode() + target.encode() + body
        return {
            "ok-access-key": KEY,
            "ok-access-passphrase": PASSPHRASE,
            "ok-access-timestamp": timestamp,
            "ok-access-sign": base64.b64encode(hmac.digest(secret.encode(), message, hashlib.sha256)).decode(),
        }

    async def send(self, method, target, *, headers=None, content=b""):
        """One request with these headers; values of None are left out."""
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://okx") as client:
            sent = {name: value for name, value in (headers or {}).items() if value is not None}
            return await client.request(method, target, headers=sent, content=content)

    async def get(self, path, **query):
        """A signed GET."""
        target = f"{path}?{urlencode(query)}" if query else path
        return await self.send("GET", target, headers=self.sign("GET", target))

    async def post(self, body, **headers):
        """A signed submission; header names with underscores for hyphens."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.clock.ms += 1  # As time goes by, so that no two requests have one signature.
        signed = self.sign("POST", TRANSFER, content) | {"content-type": "application/json"}
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.send("POST", TRANSFER, headers=signed | given, content=content)


@pytest.fixture
def okx():
    return OkxStand()


def refused(response, code):
    """Checks an error envelope and gives its sentence."""
    body = response.json()
    assert body["code"] == code, body
    assert response.status_code >= 400
    return body["msg"]


RAISED = {
    Code.INVALID_REQUEST: "BadRequest",
    Code.INVALID_AMOUNT: "BadRequest",
    Code.INVALID_ASSET: "ExchangeError",
    Code.INVALID_ACCOUNT: "BadRequest",
    Code.ASSET_MISMATCH: "BadRequest",
    Code.SAME_ACCOUNT: "ExchangeError",
    Code.INVALID_PRECISION: "BadRequest",
    Code.AMOUNT_TOO_SMALL: "ExchangeError",
    Code.AMOUNT_TOO_LARGE: "ExchangeError",
    Code.DAILY_LIMIT_EXCEEDED: "ExchangeError",
    Code.IDEMPOTENCY_KEY_REQUIRED: "BadRequest",
    Code.IDEMPOTENCY_KEY_REUSED: "ExchangeError",
    Code.UNAUTHENTICATED: "AuthenticationError",
    Code.PERMISSION_DENIED: "PermissionDenied",
    Code.ACCOUNT_FROZEN: "AccountSuspended",
    Code.ROUTE_PAUSED: "AccountSuspended",
    Code.INSUFFICIENT_BALANCE: "InsufficientFunds",
    Code.TRANSFER_NOT_FOUND: "ExchangeError",
    Code.INVALID_STATE_TRANSITION: "ExchangeError",
    Code.EXPIRED: "ExchangeError",
    Code.CORE_REFUSED: "ExchangeError",
    Code.VOIDED_BY_OPERATOR: "ExchangeError",
    Code.RATE_LIMITED: "RateLimitExceeded",
    Code.SYSTEM_OVERLOADED: "ExchangeNotAvailable",
    Code.LEDGER_UNAVAILABLE: "ExchangeNotAvailable",
    Code.STORE_UNAVAILABLE: "ExchangeNotAvailable",
    Code.CORE_UNAVAILABLE: "ExchangeNotAvailable",
    Code.TIMEOUT: "RequestTimeout",
    Code.INTERNAL: "ExchangeNotAvailable",
}


@pytest.mark.parametrize("code", Code)
async def test_refusals(okx, code, raised_by_ccxt):
    """Every refusal makes ccxt raise the class that says what to do, names its own code, and is no 2xx."""
    okx.services.answer = Answer(refusal=Refusal(code, "the reason"))
    response = await okx.post(BODY)
    assert refused(response, OKX_CODES[code]) == f"{code}: the reason"
    assert raised_by_ccxt(response) == RAISED[code]


async def test_refusal_names_okx_fields(okx):
    """A refusal names parameters as OKX calls them, not as the service's own interface does."""
    details = (Detail("amount", "has more than 6 decimal places"), Detail("to_account.account_type", "is closed"))
    okx.services.answer = Answer(refusal=Refusal(Code.INVALID_PRECISION, "unused", details))
    assert refused(await okx.post(BODY), "51000") == (
        "INVALID_PRECISION: amt: has more than 6 decimal places; to: is closed"
    )


async def test_waiting_helps(okx):
    """Refusals that pass tell the client how long to wait, and others do not."""
    okx.services.answer = Answer(refusal=Refusal(Code.RATE_LIMITED, "too many", retry_after_seconds=2.5))
    limited = await okx.post(BODY)
    assert (limited.status_code, limited.headers["retry-after"]) == (429, "3")
    okx.services.answer = Answer(refusal=Refusal(Code.SYSTEM_OVERLOADED, "busy"))
    assert (await okx.post(BODY)).headers["retry-after"] == "1"
    okx.services.answer = Answer(refusal=Refusal(Code.ACCOUNT_FROZEN, "frozen"))
    assert "retry-after" not in (await okx.post(BODY)).headers


@pytest.mark.parametrize(
    ("status", "state"), [(Status.SUCCESS, "success"), (Status.PENDING, "pending"), (Status.REQUESTING, "pending")]
)
async def test_transfer(okx, status, state):
    """A transfer that did not fail is answered with its id, its client's, both accounts, its state and its time."""
    okx.services.answer = Answer(transfer(status))
    response = await okx.post(BODY)
    assert response.status_code == 200
    shown = {
        "transId": str(ID),
        "clientId": "k1",
        "ccy": "USDT",
        "from": "6",
        "to": "18",
        "type": "0",
        "subAcct": "",
        "amt": "12.5",
        "state": state,
        "ts": str(NOW_MS),
    }
    assert response.json() == {"code": "0", "msg": "", "data": [shown]}


async def test_request(okx):
    """The gateway gets the signer as caller, the client's id as key, account types for ids, and a normal amount."""
    await okx.post(BODY | {"amt": "12.50"})
    [(request, wait_seconds)] = okx.services.asked
    assert (request.caller, request.tier, request.key, request.amount, request.memo) == (
        "alice",
        "standard",
        "k1",
        "12.5",
        None,
    )
    assert (request.source, request.target) == (Account(ALICE, "funding", "USDT"), Account(ALICE, "spot", "USDT"))
    assert wait_seconds == 0.0


@pytest.mark.parametrize(
    ("given", "types"),
    [
        (("18", "6"), ("spot", "funding")),
        (("funding", "margin"), ("funding", "margin")),
        (("futures", "6"), ("futures", "funding")),
        (("6", "earn"), ("funding", "earn")),
    ],
)
async def test_accounts(okx, given, types):
    """Accounts go by OKX's numbers or by the names of account types."""
    await okx.post(BODY | {"from": given[0], "to": given[1]})
    [(request, _)] = okx.services.asked
    assert (request.source.type, request.target.type) == types


async def test_sub_accounts(okx):
    """Type 1 moves to a sub-account and type 2 from one, between two accounts of the same type if need be."""
    sides = {"from": "6", "to": "6", "subAcct": "alice.sub"}
    await okx.post(BODY | sides | {"type": "1"})
    await okx.post(BODY | sides | {"type": "2"})
    master, sub = Account(ALICE, "funding", "USDT"), Account(BOB, "funding", "USDT")
    assert [(request.source, request.target) for request, _ in okx.services.asked] == [(master, sub), (sub, master)]


@pytest.mark.parametrize(
    ("source", "target", "shown"),
    [
        (ALICE, ALICE, ("0", "")),
        (ALICE, BOB, ("1", "alice.sub")),
        (BOB, ALICE, ("2", "alice.sub")),
        (BOB, Owner("alice.two"), ("4", "alice.two")),
    ],
)
async def test_sub_accounts_shown(okx, source, target, shown):
    """A transfer shows between whom it is as OKX's types do."""
    sides = {"source": Account(source, "funding", "USDT"), "target": Account(target, "earn", "USDT")}
    okx.services.answer = Answer(transfer(**sides))
    [entry] = (await okx.get(STATE, transId=str(ID))).json()["data"]
    assert (entry["type"], entry["subAcct"], entry["from"], entry["to"]) == (*shown, "6", "earn")


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"clientId": None}, "50014", "clientId: is required"),
        ({"clientId": ""}, "50014", "clientId: is required"),
        ({"clientId": "None"}, "50014", "clientId: is required"),
        ({"clientId": "ä"}, "51000", "clientId: may only contain printable ASCII"),
        ({"clientId": "a\n"}, "51000", "clientId: may only contain printable ASCII"),
        ({"clientId": "x" * 129}, "51000", "clientId: is longer than 128"),
        ({"clientId": 7}, "51000", "clientId: must be a string"),
        ({"ccy": None}, "51000", "ccy: is required"),
        ({"ccy": "usdt"}, "58006", "ccy: is not an asset code"),
        ({"amt": ""}, "51000", "amt: is required"),
        ({"amt": 12.5}, "51000", "amt: must be a string"),
        ({"amt": "9e-05"}, "51000", "amt: has an exponent; write it out"),
        ({"amt": "1E+2"}, "51000", "amt: has an exponent; write it out"),
        ({"amt": "-1"}, "51000", "amt: is not a plain decimal number"),
        ({"amt": "1_000"}, "51000", "amt: is not a plain decimal number"),
        ({"amt": "0.00"}, "51000", "amt: must be larger than zero"),
        ({"amt": "1" * 129}, "51000", "amt: is longer than 128"),
        ({"from": None}, "51000", "from: is required"),
        ({"from": "Funding"}, "51000", "from: is not an account"),
        ({"to": "7"}, "51000", "to: is not an account"),
        ({"to": "funding"}, "58123", "to: is the same account as from"),
        ({"type": "3"}, "51000", "type: must be 0"),
        ({"type": "1"}, "51000", "subAcct: is required"),
        ({"type": "2", "subAcct": "a b"}, "51000", "subAcct: does not match"),
        ({"subAcct": "alice.sub"}, "51000", "subAcct: needs type 1"),
        ({"loanTrans": "true"}, "51000", "loanTrans: is not a known parameter"),
    ],
)
async def test_malformed(okx, changes, code, said):
    """A body that is wrong in itself is refused, naming the parameter and the rule, before the gateway is asked."""
    response = await okx.post(BODY | changes)
    assert said in refused(response, code)
    assert response.status_code == 400
    assert okx.services.asked == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "body: is not valid JSON"),
        (b"{", "body: is not valid JSON"),
        (b"[]", "body: Expected `object`"),
        (b'{"ccy":"\xff"}', "body: is not valid JSON"),
        (json.dumps(BODY).encode()[:-1] + b', "amt": "1250"}', "amt: is given more than once"),
        (json.dumps(BODY).encode()[:-1] + b', "\\u0061mt": "1250"}', "amt: is given more than once"),
        (b'{"ccy":' + b"[" * 10_000, "ccy: must be a string"),
    ],
)
async def test_malformed_json(okx, body, said):
    """What is no JSON object of strings, or names a parameter twice, is refused."""
    assert said in refused(await okx.post(body), "51000")


async def test_failed_transfer(okx, raised_by_ccxt):
    """A transfer that failed is an error for whoever submits it, with its id, and a mere state for who looks it up."""
    okx.services.answer = Answer(transfer(Status.FAILED))
    response = await okx.post(BODY)
    assert response.status_code == 422
    assert "under another clientId" in refused(response, "58350")
    [entry] = response.json()["data"]
    assert (entry["transId"], entry["state"], entry["sCode"]) == (str(ID), "failed", "58350")
    assert raised_by_ccxt(response) == "InsufficientFunds"
    found = await okx.get(STATE, transId=str(ID))
    assert found.status_code == 200
    assert found.json()["data"][0]["state"] == "failed"


async def test_reused_key(okx):
    """A client's id that stands for another transfer is an error, and does not show that transfer as this one's."""
    okx.services.answer = Answer(transfer(), Refusal(Code.IDEMPOTENCY_KEY_REUSED, "used with another amount"))
    response = await okx.post(BODY)
    refused(response, "50016")
    assert response.json()["data"] == []


@pytest.mark.parametrize(
    ("error", "code", "raised"),
    [
        (Unavailable(System.LEDGER, "x"), "50005", "ExchangeNotAvailable"),
        (Unavailable(System.OPERATIONS, "x"), "50005", "ExchangeNotAvailable"),
        (OutcomeUnknown(System.STORE, "x"), "50004", "RequestTimeout"),
        (TimeoutError(), "50004", "RequestTimeout"),
        (ZeroDivisionError(), "50026", "ExchangeNotAvailable"),
    ],
)
async def test_failures(okx, error, code, raised, raised_by_ccxt):
    """A system's failure is an envelope too, and makes ccxt raise what it tries again: the same id is safe."""
    okx.services.answer = error
    response = await okx.post(BODY)
    refused(response, code)
    assert response.status_code in {500, 503}
    assert raised_by_ccxt(response, "OperationFailed") == raised


async def test_deadline():
    """A gateway that does not answer is given up on, and the client is told to ask again."""
    okx = OkxStand(deadline_seconds=0.0)
    okx.services.never = True
    refused(await okx.post(BODY), "50004")


async def test_look_up(okx):
    """A transfer is found by its id, by its client's, and by both; what ccxt leaves out as None or empty is absent."""
    for query in (
        {"transId": str(ID)},
        {"transId": "None", "clientId": "k1"},
        {"transId": "", "clientId": "k1", "type": "0"},
        {"transId": str(ID), "clientId": "k1"},
    ):
        [entry] = (await okx.get(STATE, **query)).json()["data"]
        assert entry["transId"] == str(ID)
    assert okx.services.asked == [("alice", ID), ("alice", "k1"), ("alice", "k1"), ("alice", ID)]


@pytest.mark.parametrize(
    ("query", "code", "said"),
    [
        ({}, "51000", "transId: or clientId is required"),
        ({"transId": "None", "clientId": "None"}, "51000", "transId: or clientId is required"),
        ({"transId": str(ID), "clientId": "k2"}, "51000", "clientId: belongs to another transfer"),
        ({"clientId": "ä"}, "51000", "clientId: may only contain"),
        ({"id": "1"}, "51000", "id: is not a known parameter"),
    ],
)
async def test_wrong_look_up(okx, query, code, said):
    """A look-up that names no transfer, or two, or something else is refused."""
    assert said in refused(await okx.get(STATE, **query), code)


@pytest.mark.parametrize("query", [b"transId=1&transId=2", b"transId", b"transId=%ff", b"\xff"])
async def test_wrong_query(okx, query):
    """A query that is ambiguous or malformed is refused, though its signature is good."""
    target = f"{STATE}?{query.decode('latin-1')}"
    headers = okx.sign("GET", httpx.URL(f"http://okx{target}").raw_path.decode())
    refused(await okx.send("GET", target, headers=headers), "51000")


@pytest.mark.parametrize("text", ["0", "-1", "abc", "01", "9" * 19, "9" * 30, "٣"])
async def test_ids_of_no_transfer(okx, text):
    """What cannot be an id of ours is asked for as id 0, which no transfer has, and is not found."""
    okx.services.answer = None
    response = await okx.get(STATE, transId=text)
    refused(response, "58129")
    assert response.status_code == 404
    assert okx.services.asked == [("alice", 0)]


async def test_bills(okx):
    """History is bills of type 1, each with its amount as size, its state, and the transfer's id."""
    okx.services.answer = HistoryPage([transfer(), transfer(Status.FAILED, id=TransferId(ID - 1))], 900, None)
    entries = (await okx.get(BILLS, type="1")).json()["data"]
    assert [(e["transId"], e["billId"], e["sz"], e["state"], e["type"]) for e in entries] == [
        (str(ID), str(ID), "12.5", "success", "1"),
        (str(ID - 1), str(ID - 1), "12.5", "failed", "1"),
    ]
    assert "amt" not in entries[0]


async def test_bills_query(okx):
    """Bills are asked for by asset and by time, both ends inclusive."""
    okx.services.answer = page()
    await okx.get(BILLS, type="1", ccy="USDT", begin="1000", end="2000", limit="5")
    [(query,)] = okx.services.asked
    assert (query.owner, query.asset, query.from_ms, query.to_ms, query.most) == ("alice", "USDT", 1000, 2001, 5)


async def test_bills_go_on(okx):
    """The last line of a page has a billId with which the same query goes on after it, and no other query does."""
    okx.services.answer = page(2, next_after=7)
    entries = (await okx.get(BILLS, type="1", ccy="USDT")).json()["data"]
    assert entries[0]["billId"] == entries[0]["transId"]
    after = entries[1]["billId"]
    await okx.get(BILLS, type="1", ccy="USDT", after=after)
    assert (okx.services.asked[-1][0].after, okx.services.asked[-1][0].until) == (7, 900)
    assert "after: is not the billId" in refused(await okx.get(BILLS, type="1", ccy="BTC", after=after), "51000")
    assert "after: is not the billId" in refused(await okx.get(BILLS, after=entries[0]["billId"]), "51000")


@pytest.mark.parametrize(
    "query",
    [{"limit": "0"}, {"limit": "101"}, {"begin": "now"}, {"end": "-1"}, {"begin": "1" * 14}, {"before": "1"}],
)
async def test_wrong_bills(okx, query):
    """Bills with a parameter that is out of range or unknown are refused by its name."""
    assert f"{next(iter(query))}: " in refused(await okx.get(BILLS, **query), "51000")
    assert okx.services.asked == []


async def test_wrong_bills_asset(okx):
    """Bills of what is no asset code are refused."""
    refused(await okx.get(BILLS, ccy="usdt"), "58006")


async def test_other_bills(okx):
    """There are no bills of other types, such as trades."""
    assert (await okx.get(BILLS, type="2")).json() == {"code": "0", "msg": "", "data": []}


BALANCES = [
    BalanceLine(Account(ALICE, "funding", "BTC"), 5, 0, 5),
    BalanceLine(Account(ALICE, "funding", "USDT"), 87_500_000, 500_000, 87_000_000),
    BalanceLine(Account(ALICE, "spot", "USDT"), 12_500_000, 0, 12_500_000),
]


async def test_balances(okx):
    """Funding balances and trading balances are those of the two accounts, as their endpoints word them."""
    okx.services.answer = BALANCES
    assert (await okx.get("/api/v5/asset/balances")).json()["data"] == [
        {"ccy": "BTC", "bal": "0.00000005", "frozenBal": "0", "availBal": "0.00000005"},
        {"ccy": "USDT", "bal": "87.5", "frozenBal": "0.5", "availBal": "87"},
    ]
    [trading] = (await okx.get("/api/v5/account/balance")).json()["data"]
    [detail] = trading["details"]
    assert (detail["ccy"], detail["eq"], detail["availBal"], detail["frozenBal"]) == ("USDT", "12.5", "12.5", "0")
    assert trading["uTime"] == str(NOW_MS)


async def test_balances_chosen(okx):
    """Balances can be narrowed to assets, and asked for of another account."""
    okx.services.answer = BALANCES
    chosen = (await okx.get("/api/v5/asset/balances", ccy="USDT,JPY")).json()["data"]
    assert [entry["ccy"] for entry in chosen] == ["USDT"]
    other = (await okx.get("/api/v5/asset/balances", account="18")).json()["data"]
    assert [entry["bal"] for entry in other] == ["12.5"]
    refused(await okx.get("/api/v5/account/balance", account="savings"), "51000")


@pytest.mark.parametrize("path", ["/api/v5/asset/balances", "/api/v5/account/balance"])
async def test_balances_unknown_parameter(okx, path):
    """A parameter that is not known is refused rather than ignored."""
    assert "acount: is not a known parameter" in refused(await okx.get(path, acount="earn"), "51000")


@pytest.mark.parametrize("path", ["/api/v5/asset/balances", "/api/v5/account/balance"])
async def test_balances_while_core_is_away(okx, path):
    """A balance that the core does not tell is an error, never a zero."""
    okx.services.answer = [BalanceLine(Account(ALICE, "spot", "USDT"), None, None, None, unavailable=True)]
    refused(await okx.get(path, account="spot"), "50005")


async def test_currencies(okx):
    """The open assets are listed with their precision and the limits of the signer's tier, if it has any."""
    entries = {entry["ccy"]: entry for entry in (await okx.get("/api/v5/asset/currencies")).json()["data"]}
    assert set(entries) == {"USDT", "BTC", "JPY"}
    assert (entries["USDT"]["wdTickSz"], entries["USDT"]["minWd"], entries["USDT"]["maxWd"]) == ("6", "0.01", "1000000")
    assert "minWd" not in entries["BTC"]
    assert (entries["BTC"]["wdTickSz"], entries["JPY"]["wdTickSz"]) == ("8", "0")
    some = (await okx.get("/api/v5/asset/currencies", ccy="BTC")).json()["data"]
    assert [entry["ccy"] for entry in some] == ["BTC"]
    refused(await okx.get("/api/v5/asset/currencies", chain="x"), "51000")


async def test_public(okx):
    """The clock and the (empty) list of instruments are told to anybody."""
    assert (await okx.send("GET", "/api/v5/public/time")).json()["data"] == [{"ts": str(NOW_MS)}]
    instruments = await okx.send("GET", "/api/v5/public/instruments?instType=SPOT")
    assert instruments.json() == {"code": "0", "msg": "", "data": []}


async def test_wrong_message(okx, raised_by_ccxt):
    """A wrong path, method, type or size is an envelope as well."""
    assert (await okx.send("GET", "/api/v5/trade/order")).status_code == 404
    wrong = await okx.send("GET", TRANSFER)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert raised_by_ccxt(wrong) == "BadRequest"
    refused(await okx.post(BODY, content_type="text/plain"), "50006")
    large = await okx.post(b" " * 16_385)
    assert large.status_code == 413
    target = f"{TRANSFER}?ccy=USDT"
    headers = okx.sign("POST", target) | {"content-type": "application/json"}
    assert "query: must be empty" in refused(await okx.send("POST", target, headers=headers), "51000")


async def test_client_goes(okx):
    """A client that goes before its body is whole gets no answer, and nothing is submitted."""
    sent = []
    scope = {"type": "http", "method": "POST", "path": TRANSFER, "raw_path": TRANSFER.encode(), "query_string": b""}

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await okx.app(scope | {"headers": [(b"content-type", b"application/json")]}, receive, send)
    assert sent == []
    assert okx.services.asked == []


async def test_metrics(okx):
    """Requests are counted by path, outcome and OKX's or the service's own code."""
    await okx.post(BODY)
    await okx.post(BODY, ok_access_sign="x")
    await okx.send("GET", "/api/v5/no/such/path")
    labels = {
        tuple(sample.labels.values())
        for metric in okx.telemetry.registry.collect()
        for sample in metric.samples
        if sample.name == "internal_transfer_requests_total"
    }
    assert labels == {
        ("okx_transfer", "answered", ""),
        ("okx_transfer", "refused", "50113"),
        ("okx_unknown", "refused", "INVALID_REQUEST"),
    }


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("ok-access-key", "50103"),
        ("ok-access-passphrase", "50104"),
        ("ok-access-sign", "50106"),
        ("ok-access-timestamp", "50107"),
    ],
)
async def test_missing_headers(okx, header, code, raised_by_ccxt):
    """Each header that is missing, empty or sent twice has its own error, which ccxt takes for one of credentials."""
    headers = okx.sign("GET", STATE)
    for wrong in (None, ""):
        response = await okx.send("GET", STATE, headers=headers | {header: wrong})
        assert f"{header.upper()} is missing or empty" in refused(response, code)
        assert response.status_code == 401
        assert raised_by_ccxt(response) == "AuthenticationError"
    transport = httpx.ASGITransport(app=okx.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://okx") as client:
        twice = await client.get(STATE, headers=[*headers.items(), (header, headers[header])])
    assert "more than once" in refused(twice, code)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"ok-access-key": "another"}, "50111"),
        ({"ok-access-key": "k" * 200}, "50111"),
        ({"ok-access-key": "k\xe9y"}, "50111"),
        ({"ok-access-passphrase": "another"}, "50105"),
        ({"ok-access-passphrase": "p" * 300}, "50105"),
        ({"ok-access-passphrase": "p\xe9"}, "50105"),
        ({"ok-access-sign": "another"}, "50113"),
        ({"ok-access-sign": "\xe9"}, "50113"),
        ({"ok-access-timestamp": "1795512600"}, "50112"),
        ({"ok-access-timestamp": "2026-11-24T09:30:00.120"}, "50112"),
        ({"ok-access-timestamp": "2026-02-30T09:30:00.120Z"}, "50112"),
    ],
)
async def test_wrong_credentials(okx, changes, code, raised_by_ccxt):
    """A wrong key, passphrase, signature or timestamp is told apart, and ccxt takes it for one of credentials."""
    headers = {name: value.encode("latin-1") for name, value in (okx.sign("GET", STATE) | changes).items()}
    response = await okx.send("GET", STATE, headers=headers)
    refused(response, code)
    assert raised_by_ccxt(response) == "AuthenticationError"
    assert okx.services.asked == []


async def test_what_is_signed(okx):
    """The signature covers time, method, path, query and body: with any of them changed it is not taken."""
    body = json.dumps(BODY).encode()
    other = json.dumps(BODY | {"amt": "1250"}).encode()
    good = okx.sign("POST", TRANSFER, body) | {"content-type": "application/json"}
    refused(await okx.send("POST", TRANSFER, headers=good, content=other), "50113")
    later = okx.sign("POST", TRANSFER, body, at_ms=NOW_MS + 1)["ok-access-timestamp"]
    refused(await okx.send("POST", TRANSFER, headers=good | {"ok-access-timestamp": later}, content=body), "50113")
    query = f"{STATE}?transId={ID}"
    signed = okx.sign("GET", query)
    refused(await okx.send("GET", f"{STATE}?transId={ID - 1}", headers=signed), "50113")
    refused(await okx.send("GET", "/api/v5/asset/balances", headers=signed), "50113")
    wrong = okx.sign("GET", query, secret="another")
    refused(await okx.send("GET", query, headers=wrong), "50113")
    assert okx.services.asked == []


@pytest.mark.parametrize("apart_ms", [-WINDOW_MS, WINDOW_MS])
async def test_window(okx, apart_ms, raised_by_ccxt):
    """A timestamp may be as far from the clock as the window is, both ways, and no millisecond further."""
    query = f"{STATE}?transId={ID}"
    taken = await okx.send("GET", query, headers=okx.sign("GET", query, at_ms=NOW_MS + apart_ms))
    assert taken.status_code == 200
    beyond = NOW_MS + apart_ms + (1 if apart_ms > 0 else -1)
    response = await okx.send("GET", query, headers=okx.sign("GET", query, at_ms=beyond))
    assert "30.001 s " in refused(response, "50102")
    assert raised_by_ccxt(response) == "InvalidNonce"


async def test_timestamp_without_fraction(okx):
    """A timestamp may be of whole seconds."""
    query = f"{STATE}?transId={ID}"
    timestamp = "2026-11-24T09:30:00Z"
    sign = base64.b64encode(hmac.digest(SECRET.encode(), f"{timestamp}GET{query}".encode(), hashlib.sha256)).decode()
    headers = okx.sign("GET", query) | {"ok-access-timestamp": timestamp, "ok-access-sign": sign}
    assert (await okx.send("GET", query, headers=headers)).status_code == 200


async def test_replay(okx, raised_by_ccxt):
    """A signed POST works once: the same bytes again are refused until their timestamp is too old, and from then on."""
    body = json.dumps(BODY).encode()
    headers = okx.sign("POST", TRANSFER, body, at_ms=NOW_MS + WINDOW_MS) | {"content-type": "application/json"}
    assert (await okx.send("POST", TRANSFER, headers=headers, content=body)).status_code == 200
    for passed_ms, said in ((0, "received before"), (2 * WINDOW_MS, "received before"), (1, "behind")):
        okx.clock.ms += passed_ms
        response = await okx.send("POST", TRANSFER, headers=headers, content=body)
        assert said in refused(response, "50102")
        assert raised_by_ccxt(response) == "InvalidNonce"
    assert len(okx.services.asked) == 1


async def test_replayed_get(okx):
    """A signed GET may be repeated within the window; it changes nothing."""
    query = f"{STATE}?transId={ID}"
    headers = okx.sign("GET", query)
    for _ in range(2):
        assert (await okx.send("GET", query, headers=headers)).status_code == 200


async def test_memory_of_signatures_is_bounded(raised_by_ccxt):
    """Where no signature can be remembered no POST is taken, and when old ones are forgotten they are taken again."""
    okx = OkxStand(signatures_per_key_max=2)
    for _ in range(2):
        assert (await okx.post(BODY)).status_code == 200
    busy = await okx.post(BODY)
    assert "signed 2 requests within" in refused(busy, "50011")
    assert (busy.status_code, raised_by_ccxt(busy)) == (429, "RateLimitExceeded")
    okx.clock.ms += 2 * WINDOW_MS + 2_000
    assert (await okx.post(BODY)).status_code == 200

    full = OkxStand(signatures_max=1)
    assert (await full.post(BODY)).status_code == 200
    response = await full.post(BODY)
    refused(response, "50013")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


async def test_revoked_key(okx, raised_by_ccxt):
    """A revoked key opens nothing once the seconds for which keys are remembered are over."""
    await okx.get(STATE, transId=str(ID))
    key = okx.keys.keys[KEY]
    okx.keys.keys[KEY] = ApiKey(**{name: getattr(key, name) for name in key.__struct_fields__} | {"revoked": True})
    okx.clock.ms += int(KEY_CACHED_SECONDS * 1000)
    response = await okx.get(STATE, transId=str(ID))
    assert "revoked" in refused(response, "50114")
    assert raised_by_ccxt(response) == "AuthenticationError"


async def test_deleted_key(okx):
    """A key that is gone from the store is no key any more."""
    await okx.get(STATE, transId=str(ID))
    del okx.keys.keys[KEY]
    okx.clock.ms += int(KEY_CACHED_SECONDS * 1000)
    refused(await okx.get(STATE, transId=str(ID)), "50111")


async def test_new_passphrase(okx):
    """A passphrase that was taken before is not taken any more once the key has another."""
    await okx.get(STATE, transId=str(ID))
    key = okx.keys.keys[KEY]
    hashed = hash_passphrase("a new passphrase", b"salt of 16 bytes")
    okx.keys.keys[KEY] = ApiKey(
        **{name: getattr(key, name) for name in key.__struct_fields__} | {"passphrase_hash": hashed}
    )
    okx.clock.ms += int(KEY_CACHED_SECONDS * 1000)
    refused(await okx.get(STATE, transId=str(ID)), "50105")


async def test_keys_are_cached(okx):
    """A key is read once in some seconds, and an unknown one every time."""
    for _ in range(3):
        await okx.get(STATE, transId=str(ID))
    assert okx.keys.asked == 1
    okx.clock.ms += int(KEY_CACHED_SECONDS * 1000)
    await okx.get(STATE, transId=str(ID))
    assert okx.keys.asked == 2


async def test_cache_of_keys_is_bounded(okx, monkeypatch):
    """The key that was not used for longest is read again when there are too many."""
    monkeypatch.setattr("internal_transfer.api.okx.signature.KEYS_CACHED_MAX", 1)
    await okx.get(STATE, transId=str(ID))
    okx.keys.keys["other"] = okx.keys.keys[KEY]
    await okx.send("GET", STATE, headers=okx.sign("GET", STATE) | {"ok-access-key": "other"})
    await okx.get(STATE, transId=str(ID))
    assert okx.keys.asked == 3


async def test_passphrase_is_hashed_once(okx, monkeypatch):
    """Requests that come together wait for one check of the passphrase, which is slow, instead of making one each."""
    checked = []

    def check(given, stored):
        checked.append(given)
        return passphrase_matches(given, stored)

    monkeypatch.setattr("internal_transfer.api.okx.signature.passphrase_matches", check)
    answers = await asyncio.gather(*(okx.get(STATE, transId=str(ID)) for _ in range(3)))
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert checked == [PASSPHRASE]


async def test_keys_cannot_be_read(okx, raised_by_ccxt):
    """A store of keys that fails is a failure of the service, not of the credentials."""
    okx.keys.error = Unavailable(System.OPERATIONS, "away")
    response = await okx.post(BODY)
    assert raised_by_ccxt(response) == "ExchangeNotAvailable"


async def test_mounted_and_not_in_contract(tmp_path, okx):
    """Beside the service's own interface the facade answers under its paths, and is left out of the contract."""
    stand = Stand(tmp_path, pages=okx.app.routes)
    assert (await stand.ask("GET", "/api/v5/public/time")).json()["code"] == "0"
    assert "/api/v5" not in (await stand.ask("GET", "/openapi.json")).text
