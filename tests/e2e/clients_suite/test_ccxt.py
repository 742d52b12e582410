"""The unmodified ccxt package, its OKX class, against a real server process over loopback."""

import asyncio

import ccxt
import ccxt.async_support as asynchronous
import httpx
import pytest

from e2e.lossy_proxy import Fate

SETTINGS = """
[rate_limit]
per_minute = 1
burst = 5

[[sub_accounts]]
master = "parent"
subs = ["child"]
"""
BURST = 5
NAMES = ("margin", "futures", "earn")


@pytest.fixture
def connect(server):
    """Makes clients: ccxt's OKX class with a new key of a user, configured as the guide says."""
    clients = []

    def connect(user, *, url=None, options=None):
        key = server.act("/api-keys", user=user)
        accounts = {name: name for name in NAMES}
        config = {
            "apiKey": key["api_key"],
            "secret": key["secret"],
            "password": key["passphrase"],
            "urls": {"api": {"rest": url or server.url}},
            "options": {"accountsByType": accounts, "accountsById": accounts} | (options or {}),
            "enableRateLimit": False,
        }
        clients.append(ccxt.okx(config))
        return clients[-1]

    yield connect
    for client in clients:
        client.session.close()


@pytest.fixture
def okx(connect, user):
    return connect(user)


def move(client, amount, client_id, *, source="funding", target="spot"):
    return client.transfer("USDT", amount, source, target, {"clientId": client_id})


def balance(client, **params):
    """What the account has of USDT, in all."""
    return client.fetch_balance(params)["total"].get("USDT", 0.0)


def test_there_and_back(okx):
    """A transfer from funding to spot and one back are done when they are answered, and change both balances."""
    there = move(okx, 30, "there")
    assert (there["status"], there["amount"], there["currency"]) == ("ok", 30.0, "USDT")
    assert (there["fromAccount"], there["toAccount"]) == ("funding", "trading")
    assert there["id"].isdigit()
    assert there["datetime"] is not None
    assert (balance(okx, type="funding"), balance(okx)) == (70.0, 30.0)
    back = move(okx, 12.5, "back", source="spot", target="funding")
    assert (back["status"], back["fromAccount"], back["toAccount"]) == ("ok", "trading", "funding")
    assert (balance(okx, type="funding"), balance(okx)) == (82.5, 17.5)


@pytest.mark.parametrize("name", NAMES)
def test_other_accounts(okx, name):
    """The accounts that OKX does not have go by their names, and so do their balances."""
    moved = move(okx, 5, f"to {name}", target=name)
    assert (moved["status"], moved["toAccount"]) == ("ok", name)
    assert balance(okx, type="funding", account=name) == 5.0
    assert move(okx, 5, f"from {name}", source=name, target="funding")["fromAccount"] == name
    assert balance(okx, type="funding") == 100.0


def test_sub_accounts(connect, server):
    """A master moves money to a sub-account and back; to somebody else's account it may not."""
    server.deposit("parent", "50")
    parent, child = connect("parent"), connect("child")
    down = parent.transfer("USDT", 20, "master", "child", {"clientId": "down"})
    assert (down["status"], down["info"]["type"], down["info"]["subAcct"]) == ("ok", "1", "child")
    assert (balance(parent, type="funding"), balance(child, type="funding")) == (30.0, 20.0)
    up = parent.transfer("USDT", 5, "child", "master", {"clientId": "up"})
    assert (up["status"], up["info"]["type"]) == ("ok", "2")
    assert (balance(parent, type="funding"), balance(child, type="funding")) == (35.0, 15.0)
    with pytest.raises(ccxt.PermissionDenied, match="subAcct"):
        parent.transfer("USDT", 5, "master", "alice", {"clientId": "away"})


def test_fetch_transfer(okx):
    """A transfer is found by its id and by the client's, and is the same in all."""
    moved = move(okx, 1, "found")
    by_id = okx.fetch_transfer(moved["id"])
    by_key = okx.fetch_transfer(None, None, {"clientId": "found"})
    assert by_id == by_key
    assert {name: by_id[name] for name in moved if name != "info"} == {
        name: moved[name] for name in moved if name != "info"
    }
    with pytest.raises(ccxt.ExchangeError, match="TRANSFER_NOT_FOUND"):
        okx.fetch_transfer("1")
    with pytest.raises(ccxt.ExchangeError, match="TRANSFER_NOT_FOUND"):
        okx.fetch_transfer(None, None, {"clientId": "never used"})


def test_others_transfers(connect, okx):
    """Nobody finds the transfer of somebody else, by its id or in a list."""
    moved = move(okx, 1, "private")
    other = connect("bob")
    with pytest.raises(ccxt.ExchangeError, match="TRANSFER_NOT_FOUND"):
        other.fetch_transfer(moved["id"])
    assert moved["id"] not in {transfer["id"] for transfer in other.fetch_transfers()}


def test_fetch_transfers(okx):
    """History has every transfer with its amount and state, failed ones too; it can be narrowed and read by pages."""
    for number in (1, 2, 3):
        move(okx, number, f"n{number}")
    with pytest.raises(ccxt.InsufficientFunds):
        move(okx, 1000, "n4")
    found = okx.fetch_transfers("USDT")
    assert sorted((transfer["amount"], transfer["status"]) for transfer in found) == [
        (1.0, "ok"),
        (2.0, "ok"),
        (3.0, "ok"),
        (1000.0, "failed"),
    ]
    assert len({transfer["id"] for transfer in found}) == 4
    assert okx.fetch_transfers("BTC") == []
    assert okx.fetch_transfers("USDT", since=okx.milliseconds() + 60_000) == []

    seen, params = [], {}
    while page := okx.fetch_transfers("USDT", limit=3, params=params):
        seen += [transfer["id"] for transfer in page]
        if len(page) < 3:
            break
        # ccxt sorts a page by time, so its last line is the one whose billId is more than an id.
        [last] = [transfer["info"]["billId"] for transfer in page if not transfer["info"]["billId"].isdigit()]
        params = {"after": last}
    assert sorted(seen) == sorted(transfer["id"] for transfer in found)


def test_precision(okx):
    """Ccxt knows the precision of every currency and rounds amounts to it; a plain OKX client's exponent is refused."""
    okx.load_markets()
    assert (okx.currencies["USDT"]["precision"], okx.currencies["JPY"]["precision"]) == (1e-06, 1.0)
    assert okx.currency_to_precision("USDT", 9e-05) == "0.00009"
    assert move(okx, 1.23456789, "rounded")["amount"] == 1.234568
    body = {"ccy": "USDT", "amt": "9e-05", "type": "0", "from": "6", "to": "18", "clientId": "small"}
    with pytest.raises(ccxt.BadRequest, match="amt: has an exponent"):
        okx.private_post_asset_transfer(body)
    with pytest.raises(ccxt.ExchangeError, match="AMOUNT_TOO_SMALL: amt: "):
        move(okx, 9e-05, "small")


def test_lost_answer(connect, user, proxy):
    """After a lost answer the transfer is found by the client's id, and sending it again finds it and moves nothing."""
    okx = connect(user, url=proxy.url)
    okx.load_markets()
    proxy.fates.append(Fate.LOST)
    with pytest.raises(ccxt.NetworkError):
        move(okx, 40, "once")
    found = okx.fetch_transfer(None, None, {"clientId": "once"})
    assert (found["status"], found["amount"]) == ("ok", 40.0)
    again = move(okx, 40, "once")
    assert (again["id"], again["status"]) == (found["id"], "ok")
    assert (balance(okx, type="funding"), balance(okx)) == (60.0, 40.0)
    assert [status for status, _ in proxy.posts] == [200, 200]


def test_hanging_answer(connect, user, proxy):
    """A client that gives up waiting finds its transfer as well."""
    okx = connect(user, url=proxy.url)
    okx.load_markets()
    okx.timeout = 1_500
    proxy.fates.append(Fate.HUNG)
    with pytest.raises(ccxt.RequestTimeout):
        move(okx, 40, "slow")
    okx.timeout = 30_000
    assert okx.fetch_transfer(None, None, {"clientId": "slow"})["status"] == "ok"
    assert move(okx, 40, "slow")["status"] == "ok"
    assert balance(okx) == 40.0


def test_automatic_retries(connect, user, proxy):
    """Ccxt's own retries send the same client's id, so three submissions are one transfer that moves once."""
    okx = connect(user, url=proxy.url, options={"maxRetriesOnFailure": 2})
    okx.load_markets()
    proxy.fates.extend([Fate.LOST, Fate.LOST])
    moved = move(okx, 40, "thrice")
    assert moved["status"] == "ok"
    assert [status for status, _ in proxy.posts] == [200, 200, 200]
    assert len({body for _, body in proxy.posts}) == 1
    assert [transfer["id"] for transfer in okx.fetch_transfers()] == [moved["id"]]
    assert (balance(okx, type="funding"), balance(okx)) == (60.0, 40.0)


def test_client_id_is_required(okx):
    """A transfer without a client's id is refused with a sentence that says what to do."""
    with pytest.raises(ccxt.BadRequest, match=r"clientId: is required.*params="):
        okx.transfer("USDT", 1, "funding", "spot")
    assert balance(okx, type="funding") == 100.0


def test_client_id_is_reused(okx):
    """A client's id that stands for another transfer is refused, naming what differs, and moves nothing."""
    move(okx, 1, "taken")
    with pytest.raises(ccxt.ExchangeError, match="IDEMPOTENCY_KEY_REUSED: amt: differs"):
        move(okx, 2, "taken")
    assert balance(okx) == 1.0


def test_insufficient_funds(okx):
    """More than is there is refused, the same again is refused the same, and the failed transfer can be looked up."""
    for _ in range(2):
        with pytest.raises(ccxt.InsufficientFunds, match="under another clientId"):
            move(okx, 100.01, "too much")
    assert okx.fetch_transfer(None, None, {"clientId": "too much"})["status"] == "failed"
    assert balance(okx, type="funding") == 100.0


def test_rate_limit(okx):
    """Who asks too often is told so, and what was asked before is found all the same."""
    for number in range(BURST):
        move(okx, 1, f"n{number}")
    with pytest.raises(ccxt.RateLimitExceeded):
        move(okx, 1, "one too many")
    assert okx.last_response_headers["retry-after"].isdigit()
    assert move(okx, 1, "n0")["status"] == "ok"
    assert balance(okx) == float(BURST)


def test_frozen(okx, server, user):
    """A frozen user moves nothing, finds what was moved before, and moves again when the freeze is over."""
    move(okx, 1, "before")
    server.act(f"/users/{user}/freeze")
    with pytest.raises(ccxt.AccountSuspended, match="ACCOUNT_FROZEN"):
        move(okx, 1, "after")
    assert move(okx, 1, "before")["status"] == "ok"
    server.act(f"/users/{user}/unfreeze")
    assert move(okx, 1, "after")["status"] == "ok"
    assert balance(okx) == 2.0


def test_paused_route(okx, server):
    """A paused route takes nothing; the others do."""
    server.act("/routes/funding:margin/pause")
    with pytest.raises(ccxt.AccountSuspended, match="ROUTE_PAUSED"):
        move(okx, 1, "paused", target="margin")
    assert move(okx, 1, "open")["status"] == "ok"
    server.act("/routes/funding:margin/resume")
    assert move(okx, 1, "paused", target="margin")["status"] == "ok"


@pytest.mark.parametrize(("name", "code"), [("apiKey", "50111"), ("secret", "50113"), ("password", "50105")])
def test_wrong_credentials(okx, name, code):
    """A wrong key, secret or passphrase is an error of credentials that says which, and moves nothing."""
    move(okx, 1, "right")
    right = getattr(okx, name)
    setattr(okx, name, "wrong")
    with pytest.raises(ccxt.AuthenticationError, match=code):
        move(okx, 1, "wrong")
    setattr(okx, name, right)
    assert balance(okx) == 1.0


def test_revoked_key(connect, server, user):
    """A key that was revoked before its first use opens nothing."""
    okx = connect(user)
    server.act(f"/api-keys/{okx.apiKey}/revoke")
    with pytest.raises(ccxt.AuthenticationError, match="revoked"):
        okx.fetch_balance()


@pytest.mark.parametrize("apart_ms", [-31_000, 60_000])
def test_wrong_clock(okx, monkeypatch, apart_ms):
    """What was signed too long ago, or ahead of time, is refused, and ccxt can set its clock by the server's."""
    okx.load_markets()
    right = okx.milliseconds
    monkeypatch.setattr(okx, "milliseconds", lambda: right() + apart_ms)
    with pytest.raises(ccxt.InvalidNonce, match="public/time"):
        move(okx, 1, "old")
    okx.load_time_difference()
    assert move(okx, 1, "old")["status"] == "ok"


def test_replay(okx):
    """The bytes of a signed submission work once."""
    okx.load_markets()
    body = {"ccy": "USDT", "amt": "1", "type": "0", "from": "6", "to": "18", "clientId": "stolen"}
    request = okx.sign("asset/transfer", ["private"], "POST", body)
    sent = (request["url"], request["method"], request["headers"], request["body"])
    assert okx.fetch(*sent)["data"][0]["state"] == "success"
    with pytest.raises(ccxt.InvalidNonce, match="received before"):
        okx.fetch(*sent)


def test_same_key_on_both_ways(okx, server, user):
    """A client's id and an idempotency key are one namespace: either way finds the other's transfer."""
    moved = move(okx, 1, "shared")
    headers = {"Authorization": f"Bearer {server.token(user)}"}
    collection = f"{server.url}/api/v1/user/internal_transfer"
    found = httpx.get(collection, params={"idempotency_key": "shared"}, headers=headers).json()
    assert (found["request_id"], found["amount"], found["status"]) == (moved["id"], "1", "SUCCESS")
    body = {
        "from_account": {"account_type": "funding", "asset": "USDT"},
        "to_account": {"account_type": "spot", "asset": "USDT"},
        "amount": "1",
    }
    again = httpx.post(collection, json=body, headers=headers | {"Idempotency-Key": "shared"})
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (200, "true")
    assert balance(okx) == 1.0


def test_asynchronous_client(connect, user):
    """Ccxt's asynchronous class works in the same way."""
    blocking = connect(user)

    async def run():
        client = asynchronous.okx(
            {name: getattr(blocking, name) for name in ("apiKey", "secret", "password", "urls")}
            | {"enableRateLimit": False}
        )
        try:
            moved = await client.transfer("USDT", 1, "funding", "spot", {"clientId": "async"})
            return moved, await client.fetch_transfer(moved["id"])
        finally:
            await client.close()

    moved, found = asyncio.run(run())
    assert (moved["status"], found["status"], found["id"]) == ("ok", "ok", moved["id"])
