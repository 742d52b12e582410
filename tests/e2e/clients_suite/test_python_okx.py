"""The unmodified python-okx package, OKX's own, against a real server process over loopback.

It raises nothing for a refusal: each method returns the answer as a dict, whose `code` is "0" for a success.
"""

import httpx
import pytest
from okx.Account import AccountAPI
from okx.consts import FUNDS_TRANSFER, GET, POST, TRANSFER_STATE
from okx.Funding import FundingAPI

from e2e.lossy_proxy import Fate

# The package's own ways with its libraries: text given to httpx as `data`, and a clock that Python 3.12 deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]


class Funding(FundingAPI):
    """Adds the `clientId`, for which the package's own methods have no parameter, as the guide says."""

    def transfer(self, ccy, amt, from_, to, client_id):
        body = {"ccy": ccy, "amt": amt, "from": from_, "to": to, "clientId": client_id}
        return self._request_with_params(POST, FUNDS_TRANSFER, body)

    def transfer_of(self, client_id):
        return self._request_with_params(GET, TRANSFER_STATE, {"clientId": client_id})


@pytest.fixture
def connect(server, user):
    """Makes clients of a class of the package, with a key of the user."""
    key = server.act("/api-keys", user=user)
    clients = []

    def connect(kind, *, url=server.url):
        clients.append(kind(key["api_key"], key["secret"], key["passphrase"], domain=url))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def funding(connect):
    return connect(Funding)


def succeeded(answer):
    """Returns the data of an answer that is a success."""
    assert (answer["code"], answer["msg"]) == ("0", "")
    return answer["data"]


def in_funding(client):
    """Returns what is available of USDT in the funding account."""
    [line] = succeeded(client.get_balances("USDT"))
    return line["availBal"]


def test_transfer(funding, connect):
    """A transfer from funding to spot is done when it is answered, and both accounts and the bills show it."""
    [moved] = succeeded(funding.transfer("USDT", "12.5", "6", "18", "there"))
    assert (moved["state"], moved["ccy"], moved["amt"]) == ("success", "USDT", "12.5")
    assert (moved["from"], moved["to"], moved["clientId"]) == ("6", "18", "there")
    account = connect(AccountAPI)
    [trading] = succeeded(account.get_account_balance("USDT"))
    assert (in_funding(funding), trading["details"][0]["availBal"]) == ("87.5", "12.5")
    [bill] = succeeded(account.get_account_bills_archive(ccy="USDT", type="1"))
    assert (bill["transId"], bill["sz"]) == (moved["transId"], "12.5")


def test_look_up(funding):
    """A transfer is found by its id, with the package's own method, and by the client's."""
    [moved] = succeeded(funding.transfer("USDT", "1", "6", "18", "found"))
    assert succeeded(funding.transfer_state(moved["transId"])) == [moved]
    assert succeeded(funding.transfer_state(moved["transId"], type="0")) == [moved]
    assert succeeded(funding.transfer_of("found")) == [moved]
    for missing in (funding.transfer_state("1"), funding.transfer_of("never-used")):
        assert (missing["code"], missing["data"]) == ("58129", [])
        assert missing["msg"].startswith("TRANSFER_NOT_FOUND: ")


def test_the_same_again(funding):
    """A transfer that is sent again is the same transfer, and moves nothing more."""
    [moved] = succeeded(funding.transfer("USDT", "1", "6", "18", "once"))
    assert succeeded(funding.transfer("USDT", "1", "6", "18", "once")) == [moved]
    assert in_funding(funding) == "99"


def test_lost_answer(connect, proxy):
    """After a lost answer the transfer is found by the client's id, and sending it again moves nothing more."""
    funding = connect(Funding, url=proxy.url)
    proxy.fates.append(Fate.LOST)
    with pytest.raises(httpx.TransportError):
        funding.transfer("USDT", "40", "6", "18", "lost")
    [found] = succeeded(funding.transfer_of("lost"))
    assert succeeded(funding.transfer("USDT", "40", "6", "18", "lost")) == [found]
    assert (found["state"], in_funding(funding)) == ("success", "60")


def test_client_id_is_reused(funding):
    """A client's id that belongs to another transfer is refused, naming what differs, and moves nothing."""
    succeeded(funding.transfer("USDT", "1", "6", "18", "taken"))
    refused = funding.transfer("USDT", "2", "6", "18", "taken")
    assert (refused["code"], refused["data"]) == ("50016", [])
    assert refused["msg"].startswith("IDEMPOTENCY_KEY_REUSED: amt: differs")
    assert in_funding(funding) == "99"


def test_insufficient_balance(funding):
    """More than is there is refused with the failed transfer, which can be looked up, and moves nothing."""
    refused = funding.transfer("USDT", "100.01", "6", "18", "too-much")
    assert refused["code"] == "58350"
    assert refused["msg"].startswith("INSUFFICIENT_BALANCE: ")
    [failed] = refused["data"]
    assert (failed["state"], failed["sCode"], failed["sMsg"]) == ("failed", "58350", refused["msg"])
    [found] = succeeded(funding.transfer_of("too-much"))
    assert (found["state"], found["transId"]) == ("failed", failed["transId"])
    assert in_funding(funding) == "100"


def test_the_packages_own_transfer(funding):
    """`funds_transfer` names no `clientId` and sends parameters unknown here, so it is refused and moves nothing."""
    refused = funding.funds_transfer("USDT", "1", "6", "18")
    assert (refused["code"], refused["data"]) == ("51000", [])
    assert refused["msg"].startswith("INVALID_REQUEST: instId: ")
    assert in_funding(funding) == "100"


def test_currencies(funding):
    """The assets are listed, with the limits of the key's tier."""
    [usdt] = succeeded(funding.get_currencies("USDT"))
    assert (usdt["ccy"], usdt["wdTickSz"]) == ("USDT", "6")


def test_client_id_with_a_space(funding):
    """The package signs a query before it is encoded, so it cannot look for a client's id with a space."""
    succeeded(funding.transfer("USDT", "1", "6", "18", "a space"))
    assert funding.transfer_of("a space")["code"] == "50113"


def test_wrong_secret(funding):
    """A signature with another secret is refused."""
    funding.API_SECRET_KEY = "another"
    assert funding.get_balances()["code"] == "50113"
