import json
import re
from html.parser import HTMLParser

import jsonschema_rs
import pytest

from api.scripted import BODY, ID, TRANSFERS, allowed, events, page, transfer
from internal_transfer.api.openapi import document
from internal_transfer.api.schemas import (
    ACCOUNT_TYPE_PATTERN,
    AMOUNT_PATTERN,
    ASSET_PATTERN,
    KEY_PATTERN,
    MEMO_PATTERN,
    OWNER_PATTERN,
    TRANSFER_AMOUNT_PATTERN,
)
from internal_transfer.domain.account import Account
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.errors import System, Unavailable
from internal_transfer.services.answer import Answer, BalanceLine, Preview

CONTRACT = document()


def check_answer(path: str, method: str, response) -> None:
    """The contract has this status, this media type, these headers and this body for the operation."""
    described = CONTRACT["paths"][path][method]["responses"]
    assert str(response.status_code) in described, response.text
    answer = described[str(response.status_code)]
    media_type = response.headers["content-type"].partition(";")[0]
    assert media_type in answer["content"]
    plain = {"content-type", "content-length", "cache-control", "vary", "connection"}
    assert set(response.headers) - plain <= {name.lower() for name in answer.get("headers", {})}
    if media_type != "text/csv":
        validate(answer["content"][media_type]["schema"], response.json())


def validate(schema, value) -> None:
    whole = schema | {"components": CONTRACT["components"]}
    jsonschema_rs.validator_for(whole, validate_formats=True).validate(value)


CREATED = [
    Answer(transfer(), events=events(Status.REQUESTING, Status.SUCCESS)),
    Answer(transfer(memo="x"), replayed=True),
    Answer(transfer(Status.PENDING)),
    Answer(transfer(Status.FAILED), replayed=True),
    Answer(transfer(), Refusal(Code.IDEMPOTENCY_KEY_REUSED, "no")),
    *[Answer(refusal=Refusal(code, "no")) for code in (Code.RATE_LIMITED, Code.SYSTEM_OVERLOADED, Code.INVALID_ASSET)],
    Answer(refusal=Refusal(Code.PERMISSION_DENIED, "no")),
    Unavailable(System.LEDGER, "gone"),
    AssertionError("bug"),
]


@pytest.mark.parametrize("answer", CREATED)
async def test_create(stand, answer):
    """Every kind of answer to a create is in the contract, with its body and headers."""
    stand.services.answer = answer
    check_answer(TRANSFERS, "post", await stand.create(prefer="wait=3"))


@pytest.mark.parametrize(
    "changes",
    [
        {"authorization": None},
        {"content_type": "text/plain"},
        {"accept": "text/html"},
        {"idempotency_key": None},
        {"body": b"{"},
        {"body": BODY | {"amount": 5}},
        {"body": b" " * 20_000},
    ],
)
async def test_gate(stand, changes):
    """Every refusal of the gate is in the contract."""
    check_answer(TRANSFERS, "post", await stand.create(**changes))


@pytest.mark.parametrize(
    ("path", "target", "answer"),
    [
        (TRANSFERS + "/{request_id}", f"/{ID}", Answer(transfer(Status.FAILED), events=events(*Status))),
        (TRANSFERS + "/{request_id}", f"/{ID}", None),
        (TRANSFERS, "?idempotency_key=k", Answer(transfer())),
        (TRANSFERS, "?idempotency_key=k", None),
        (TRANSFERS, "", None),
        (TRANSFERS + "/history", "/history", page(3, next_after=5)),
        (TRANSFERS + "/history", "/history?limit=x", None),
        (TRANSFERS + "/options", "/options", None),
    ],
)
async def test_reads(stand, path, target, answer):
    """Every kind of answer to a read is in the contract, also when a system is away."""
    stand.services.answer = answer
    check_answer(path, "get", await stand.ask("GET", TRANSFERS + target))
    stand.services.answer = Unavailable(System.STORE, "gone")
    check_answer(path, "get", await stand.ask("GET", TRANSFERS + target))
    check_answer(path, "get", await stand.ask("GET", TRANSFERS + target, headers={"accept": "image/png"}))


async def test_history_as_csv(stand):
    """The CSV form of history is in the contract."""
    stand.services.answer = page()
    response = await stand.ask("GET", f"{TRANSFERS}/history", headers={"accept": "text/csv"})
    check_answer(f"{TRANSFERS}/history", "get", response)


async def test_balances(stand):
    """Balances with and without figures are in the contract."""
    account = Account("alice", "spot", "USDT")
    stand.services.answer = [BalanceLine(account, -3, 1, -4), BalanceLine(account, None, None, None, unavailable=True)]
    check_answer("/api/v1/user/balances", "get", await stand.ask("GET", "/api/v1/user/balances"))


@pytest.mark.parametrize("answer", [allowed(), Preview(Refusal(Code.INVALID_ASSET, "no"), None, None, 0)])
async def test_preview(stand, answer):
    """A preview that allows and one that does not are in the contract."""
    stand.services.answer = answer
    response = await stand.ask("POST", f"{TRANSFERS}/preview", json=BODY)
    check_answer(f"{TRANSFERS}/preview", "post", response)


def test_examples():
    """Every example of the contract is of its own schema, and every reference leads somewhere."""
    seen = 0
    for operations in CONTRACT["paths"].values():
        for operation in operations.values():
            contents = [response.get("content", {}) for response in operation["responses"].values()]
            for content in [*contents, operation.get("requestBody", {}).get("content", {})]:
                for media in content.values():
                    for example in media.get("examples", {}).values():
                        validate(media["schema"], example["value"])
                        seen += 1
    for schema in CONTRACT["components"]["schemas"].values():
        for example in schema.get("examples", []):
            validate(schema, example)
            seen += 1
    assert seen >= 12
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(CONTRACT)))
    assert names <= set(CONTRACT["components"]["schemas"])


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (AMOUNT_PATTERN, ["0", "1.50"], ["01", "1.", ".5", "-1", "1e3"]),
        (TRANSFER_AMOUNT_PATTERN, ["1", "1.0", "0.01", "10"], ["0", "0.0", "01", "1.", ".5", "00.1"]),
        (OWNER_PATTERN, ["a", "A-b_c.d:9"], ["", "a b", "a" * 65]),
        (ACCOUNT_TYPE_PATTERN, ["spot", "a_1"], ["Spot", "1a"]),
        (ASSET_PATTERN, ["USDT", "1INCH"], ["usdt", "-A"]),
        (KEY_PATTERN, ["k", "a b", '"a b"', r'"\""', "k" * 128], ["", " a", "k" * 129, '"a', "\u00e9"]),
        (MEMO_PATTERN, ["", "caf\u00e9"], ["a\nb", "\u202e"]),
    ],
)
def test_patterns(pattern, good, bad):
    """The patterns of the contract allow and refuse what the gate does."""
    assert all(re.search(pattern, text) for text in good)
    assert not any(re.search(pattern, text) for text in bad)


async def test_served(stand):
    """The contract is served to everybody, as JSON."""
    response = await stand.ask("GET", "/openapi.json", headers={"authorization": None})
    assert response.headers["content-type"] == "application/json"
    assert response.json() == json.loads(json.dumps(CONTRACT))


class Page(HTMLParser):
    """What a page has: ids, links, and anything that would load or run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids, self.links, self.loads, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Notes what a tag brings."""
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" else []
        if tag in {"script", "img", "link", "iframe", "object"} or any(name.startswith("on") for name in given):
            self.loads.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        """Checks that tags close in order."""
        assert self.open.pop() == tag


async def test_documentation(stand):
    """The page documents every operation, code and schema, is well-formed, and loads and runs nothing."""
    response = await stand.ask("GET", "/docs", headers={"authorization": None})
    shown = Page(response.text)
    assert (response.status_code, shown.open, shown.loads) == (200, [], [])
    operations = {o["operationId"] for operations in CONTRACT["paths"].values() for o in operations.values()}
    wanted = operations | {code.value for code in Code} | {f"schema-{n}" for n in CONTRACT["components"]["schemas"]}
    assert wanted <= set(shown.ids)
    assert len(shown.ids) == len(set(shown.ids))
    assert {link[1:] for link in shown.links if link.startswith("#")} <= set(shown.ids)
    assert {link for link in shown.links if not link.startswith("#")} == {"/openapi.json"}
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
