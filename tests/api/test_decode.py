import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.scripted import BODY
from internal_transfer.api.decode import decode
from internal_transfer.domain.account import Account
from internal_transfer.domain.amount import is_amount
from internal_transfer.domain.refusal import Refusal
from internal_transfer.domain.request import TransferRequest


def read(body: bytes):
    return decode(body, caller="alice", tier="vip", key="k")


def with_changes(*, source=None, target=None, **top) -> bytes:
    body = {
        "from_account": BODY["from_account"] | (source or {}),
        "to_account": BODY["to_account"] | (target or {}),
        "amount": "12.5",
    } | top
    return json.dumps(body).encode()


def test_ordinary_body():
    """A plain body becomes a request in canonical form, with the caller as the owner of both accounts."""
    assert read(with_changes(amount="12.500")) == TransferRequest(
        "alice", "vip", "k", Account("alice", "funding", "USDT"), Account("alice", "spot", "USDT"), "12.5", None
    )


@pytest.mark.parametrize(("user_id", "owner"), [("bob", "bob"), (7, "7"), (2**64 - 1, str(2**64 - 1)), ("7", "7")])
def test_user_id(user_id, owner):
    """A user id may be text or a whole number, and both become the same owner."""
    request = read(with_changes(source={"user_id": user_id}))
    assert isinstance(request, TransferRequest)
    assert request.source.owner == owner
    assert request.target.owner == "alice"


@pytest.mark.parametrize(
    "memo", ["", "rent", "m" * 140, "\u00e9\u4e2d\U0001f468\u200d\U0001f469", "a\u00a0b", 'say "x": \\']
)
def test_memo(memo):
    """Ordinary text of any script goes through unchanged, escaped or not."""
    for ascii_only in (True, False):
        body = json.dumps(json.loads(with_changes(memo=memo)), ensure_ascii=ascii_only).encode()
        request = read(body)
        assert isinstance(request, TransferRequest), request
        assert request.memo == memo


def test_null_memo():
    """A memo of null is no memo."""
    assert read(with_changes(memo=None)) == read(with_changes())


FROM = b'"from_account":{"account_type":"funding","asset":"USDT"}'
TO = b'"to_account":{"account_type":"spot","asset":"USDT"}'
PLAIN = b"{" + FROM + b"," + TO + b',"amount":"1"'

REFUSED = [
    # Repeated keys, at every level, also escaped, also with a value of another kind.
    (PLAIN + b',"amount":"1"}', "INVALID_REQUEST", "amount"),
    (PLAIN + b',"amoun\\u0074":"1"}', "INVALID_REQUEST", "amount"),
    (PLAIN + b',"\\u0061mount":"2"}', "INVALID_REQUEST", "amount"),
    (PLAIN + b',"memo":null,"memo":null}', "INVALID_REQUEST", "memo"),
    (PLAIN + b',"memo":"x","memo":null}', "INVALID_REQUEST", "memo"),
    (PLAIN + b',"memo":"\\"","memo":"x"}', "INVALID_REQUEST", "memo"),
    (PLAIN + b"," + FROM + b"}", "INVALID_REQUEST", "from_account"),
    (PLAIN.replace(b'"asset":"USDT"', b'"asset":"USDT","asset":"USDT"', 1) + b"}", "INVALID_REQUEST", "asset"),
    (
        PLAIN.replace(b'"asset":"USDT"', b'"asset":"USDT","user_id":1,"user_id":1', 1) + b"}",
        "INVALID_REQUEST",
        "user_id",
    ),
    (
        PLAIN.replace(b'"asset":"USDT"', b'"asset":"USDT","user_id":"a","user_id":1', 1) + b"}",
        "INVALID_REQUEST",
        "user_id",
    ),
    # Unknown and missing fields.
    (with_changes(note="x"), "INVALID_REQUEST", "note"),
    (with_changes(source={"owner": "x"}), "INVALID_REQUEST", "from_account.owner"),
    (with_changes(**{"x" * 500: 1}), "INVALID_REQUEST", "x" * 64 + "..."),
    (b"{" + FROM + b"," + TO + b"}", "INVALID_REQUEST", "amount"),
    (b"{" + FROM + b',"amount":"1"}', "INVALID_REQUEST", "to_account"),
    (b'{"from_account":{}}', "INVALID_REQUEST", "from_account.account_type"),
    (b"{}", "INVALID_REQUEST", "from_account"),
    # Wrong types.
    (b"[]", "INVALID_REQUEST", "body"),
    (b"null", "INVALID_REQUEST", "body"),
    (b'"text"', "INVALID_REQUEST", "body"),
    (with_changes(memo=5), "INVALID_REQUEST", "memo"),
    (with_changes(from_account="funding"), "INVALID_REQUEST", "from_account"),
    (with_changes(source={"asset": 5}), "INVALID_REQUEST", "from_account.asset"),
    (with_changes(target={"account_type": None}), "INVALID_REQUEST", "to_account.account_type"),
    *[
        (with_changes(source={"user_id": bad}), "INVALID_REQUEST", "from_account.user_id")
        for bad in (None, True, 1.0, 1.5, [], {})
    ],
    (
        PLAIN.replace(b'"asset":"USDT"', b'"asset":"USDT","user_id":1e3', 1) + b"}",
        "INVALID_REQUEST",
        "from_account.user_id",
    ),
    # Numbers and everything else that is not an amount.
    *[(with_changes(amount=bad), "INVALID_AMOUNT", "amount") for bad in (1, 1.5, 0, None, True, [], {})],
    *[
        (with_changes(amount=bad), "INVALID_AMOUNT", "amount")
        for bad in (
            *("", " 1", "1 ", "+1", "-1", "1e3", "1E3", "1_000", "1,5", ".5", "1.", "01", "00", "0x10"),
            *("NaN", "Infinity", "-Infinity", "nan", "\u0661", "\uff11", "1\n", "\u22121", "1.0.0", "1" * 129),
            *("0", "0.0", "0.000000000"),
        )
    ],
    # What Python's own decoder would take.
    (PLAIN.replace(b'"1"', b"NaN") + b"}", "INVALID_REQUEST", "body"),
    (PLAIN.replace(b'"1"', b"-Infinity") + b"}", "INVALID_REQUEST", "body"),
    # Text that is none.
    (PLAIN + b',"memo":"\\ud800"}', "INVALID_REQUEST", "body"),
    (PLAIN + b',"memo":"\\udc00\\ud800"}', "INVALID_REQUEST", "body"),
    (PLAIN + b',"memo":"\xff"}', "INVALID_REQUEST", "body"),
    (PLAIN + b',"memo":"\xed\xa0\x80"}', "INVALID_REQUEST", "body"),
    (PLAIN + b',"memo":"\xc0\xaf"}', "INVALID_REQUEST", "body"),
    (b"\xef\xbb\xbf" + PLAIN + b"}", "INVALID_REQUEST", "body"),
    ((PLAIN + b"}").decode().encode("utf-16"), "INVALID_REQUEST", "body"),
    # Memos.
    (with_changes(memo="m" * 141), "INVALID_REQUEST", "memo"),
    *[
        (with_changes(memo=f"a{bad}b"), "INVALID_REQUEST", "memo")
        for bad in "\x00\n\r\t\x1b\x7f\x85\u2028\u2029\u202e\u2066"
    ],
    # Not JSON, or more than one.
    (b"", "INVALID_REQUEST", "body"),
    (PLAIN, "INVALID_REQUEST", "body"),
    (PLAIN + b",}", "INVALID_REQUEST", "body"),
    (PLAIN + b"}x", "INVALID_REQUEST", "body"),
    (PLAIN + b"}{}", "INVALID_REQUEST", "body"),
    (PLAIN + b"}/* no */", "INVALID_REQUEST", "body"),
    (b"a=1", "INVALID_REQUEST", "body"),
    # Nested without end, where something else belongs.
    (b"[" * 16_000, "INVALID_REQUEST", "body"),
    (PLAIN + b',"memo":' + b"[" * 16_000, "INVALID_REQUEST", "memo"),
    (PLAIN + b',"x":' + b'{"a":' * 3_000, "INVALID_REQUEST", "x"),
    (b'{"from_account":' * 1_000, "INVALID_REQUEST", "from_account.from_account"),
    # Names, owners and combinations.
    *[
        (with_changes(source={"asset": bad}), "INVALID_ASSET", "from_account.asset")
        for bad in ("", "usdt", "US DT", "U" * 33, "\u0410BC")
    ],
    *[
        (with_changes(target={"account_type": bad}), "INVALID_ACCOUNT", "to_account.account_type")
        for bad in ("", "Spot", "sp-ot", "s" * 33, "spot\n")
    ],
    *[
        (with_changes(target={"user_id": bad}), "INVALID_ACCOUNT", "to_account.user_id")
        for bad in ("", "a b", "a" * 65, "\u00e9", "a\n", -1, 2**64)
    ],
    (with_changes(target={"asset": "BTC"}), "ASSET_MISMATCH", "to_account.asset"),
    (with_changes(target={"account_type": "funding"}), "SAME_ACCOUNT", "to_account"),
    (with_changes(target={"account_type": "funding", "user_id": "alice"}), "SAME_ACCOUNT", "to_account"),
]


@pytest.mark.parametrize(("body", "code", "field"), REFUSED)
def test_refused(body, code, field):
    """Each of these is refused with its code, and the refusal names the field and a rule."""
    refusal = read(body)
    assert isinstance(refusal, Refusal), refusal
    assert (refusal.code, refusal.details[0].field) == (code, field)
    assert refusal.details[0].rule


@pytest.mark.parametrize("amount", ["1", "0.1", "10.50", "0.000000000000000001", "1" * 40, "1." + "0" * 120])
def test_amounts(amount):
    """Amounts of the wire's syntax go through, whatever the assets' scales; those are checked later."""
    request = read(with_changes(amount=amount))
    assert isinstance(request, TransferRequest)


def test_own_accounts_of_others():
    """The same type of account of another user is another account."""
    assert isinstance(read(with_changes(target={"account_type": "funding", "user_id": "bob"})), TransferRequest)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
field_values = json_values | st.sampled_from(
    ["funding", "spot", "USDT", "BTC", "1", "0.5", "alice", BODY["from_account"]]
)
account_names = st.sampled_from(["account_type", "asset", "user_id", "x"])
accounts = st.lists(st.tuples(account_names, field_values), max_size=5)
top_names = st.sampled_from(["from_account", "to_account", "amount", "memo", "x"])


def encode_pairs(pairs) -> str:
    inner = (f"{json.dumps(name)}:{value if isinstance(value, str) else json.dumps(value)}" for name, value in pairs)
    return "{" + ",".join(inner) + "}"


@st.composite
def near_bodies(draw):
    """Objects of nearly the right shape, in which keys may be repeated or missing and values may be anything."""
    pairs = []
    for name in draw(st.lists(top_names, min_size=2, max_size=6)):
        value = draw(accounts.map(encode_pairs) | field_values.map(json.dumps))
        pairs.append((name, value))
    return encode_pairs(pairs).encode("utf-8", "surrogatepass")


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()) | near_bodies())
def test_anything(body):
    """Whatever is sent, the gate gives a request or a refusal and raises nothing; a request has what it promises."""
    outcome = read(body)
    assert isinstance(outcome, TransferRequest | Refusal)
    if isinstance(outcome, TransferRequest):
        assert is_amount(outcome.amount)
        assert outcome.source != outcome.target
        assert outcome.source.asset == outcome.target.asset
        assert_no_repeated_keys(body)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_repeated_key_anywhere(data):
    """A valid body in which any one member is said twice is refused, whatever the members' values look like."""
    source = {"account_type": "funding", "asset": "USDT"}
    if data.draw(st.booleans()):
        source["user_id"] = data.draw(st.sampled_from(["alice", 7]))
    members = [("from_account", source), ("to_account", BODY["to_account"]), ("amount", "1")]
    if data.draw(st.booleans()):
        members.append(("memo", data.draw(st.none() | st.text(alphabet='ab"\\:{},', max_size=6))))
    plain = [(name, json.dumps(value)) for name, value in members]
    assert isinstance(read(encode_pairs(plain).encode()), TransferRequest)
    if data.draw(st.booleans()):
        inner = [(name, json.dumps(value)) for name, value in source.items()]
        plain[0] = ("from_account", encode_pairs([*inner, data.draw(st.sampled_from(inner))]))
    else:
        plain.append(data.draw(st.sampled_from(plain)))
    assert isinstance(read(encode_pairs(plain).encode()), Refusal)


def assert_no_repeated_keys(body: bytes) -> None:
    def check(pairs):
        names = [name for name, _ in pairs]
        assert len(names) == len(set(names)), names

    json.loads(body, object_pairs_hook=check)
