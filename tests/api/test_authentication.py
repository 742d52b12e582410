import base64
import hashlib
import hmac
import json

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from api.scripted import AUDIENCE, ISSUER, NOW_MS, SIGNING_KEY, StillClock, public_jwk, token, write_keys
from internal_transfer.api.authentication import Authenticator, Caller
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.settings.issuers import read_issuer

NOW = NOW_MS // 1000
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))


@pytest.fixture
def clock():
    return StillClock()


def build(directory, clock, *keys, **options):
    issuer = read_issuer(issuer=ISSUER, audience=AUDIENCE, keys_file=write_keys(directory, *(keys or (public_jwk(),))))
    return Authenticator([issuer], clock, **options)


def ask(authenticator, text):
    return authenticator.authenticate(f"Bearer {text}".encode())


def test_caller(tmp_path, clock):
    """A good token names its user, tier and roles; the tier is standard and the roles none where it says nothing."""
    authenticator = build(tmp_path, clock)
    assert ask(authenticator, token()) == Caller("alice", "standard", frozenset(), NOW + 3600)
    named = ask(authenticator, token(sub="bob", tier="vip", roles=["user", "auditor"], aud=["x", AUDIENCE]))
    assert named == Caller("bob", "vip", frozenset({"user", "auditor"}), NOW + 3600)


@pytest.mark.parametrize(
    ("roles", "may"), [([], True), (["user"], True), (["operator", "user"], True), (["operator"], False)]
)
def test_roles(tmp_path, clock, roles, may):
    """A token without roles is a user's; one with other roles only is not."""
    caller = ask(build(tmp_path, clock), token(roles=roles))
    assert isinstance(caller, Caller)
    assert caller.may_act_as_user() is may


def test_scheme(tmp_path, clock):
    """The scheme's case does not matter, and other schemes are refused."""
    authenticator = build(tmp_path, clock)
    assert isinstance(authenticator.authenticate(f"bearer {token()}".encode()), Caller)
    for bad in (None, b"", b"Bearer", b"Bearer ", b"Basic YTpi", token().encode(), b"\xff\xfe"):
        assert isinstance(authenticator.authenticate(bad), Refusal)


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://evil.example.com"},
        {"iss": None},
        {"iss": [ISSUER]},
        {"aud": "another"},
        {"aud": None},
        {"exp": NOW},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": True},
        {"exp": 1e300},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"iat": NOW + 3600},
        {"iat": None},
        {"nbf": NOW + 3600},
        {"sub": None},
        {"sub": ""},
        {"sub": "a b"},
        {"sub": "a" * 65},
        {"sub": 7},
        {"roles": "user"},
        {"roles": [1]},
        {"roles": ["user"] * 33},
        {"tier": ""},
        {"tier": 5},
        {"tier": "\ud800"},
    ],
)
def test_bad_claims(tmp_path, clock, claims):
    """Each claim that is missing, foreign, early, late or of the wrong kind makes the token worthless."""
    refusal = ask(build(tmp_path, clock), token(**claims))
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.UNAUTHENTICATED


def segment(value) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def test_forgeries(tmp_path, clock):
    """Tokens without a signature, with another key's, or signed with the public key as a shared secret are refused."""
    authenticator = build(tmp_path, clock)
    header, payload, signature = token().split(".")
    public = SIGNING_KEY.public_key().public_bytes_raw()
    shared = segment({"alg": "HS256", "typ": "JWT"}) + "." + payload
    forgeries = [
        f"{segment({'alg': 'none'})}.{payload}.",
        token(key=OTHER_KEY),
        shared + "." + segment(hmac.digest(public, shared.encode(), hashlib.sha256)),
        f"{header}.{payload}.{segment(bytes(64))}",
        f"{header}.{segment({'sub': 'mallory'})}.{signature}",
        f"{header}.{payload}",
        token(headers={"crit": ["exp"], "exp": 1}),
        token(headers={"kid": "unknown"}),
        token(headers={"crit": ["\ud800"]}),
        "a.b.c",
        "é.é.é",
        "." * 10,
        f"{segment([1])}.{segment([2])}.x",
        f"{segment(b'[' * 5000)}.{payload}.{signature}",
        f"{header}.{segment(b'[' * 5000)}.{signature}",
    ]
    for forgery in forgeries:
        refusal = ask(authenticator, forgery)
        assert isinstance(refusal, Refusal), forgery
        assert refusal.message.isascii()


def test_key_ids(tmp_path, clock):
    """With several keys the token's key id chooses, and a key never checks what another one signed."""
    keys = (public_jwk(kid="a"), public_jwk(OTHER_KEY, kid="b"))
    authenticator = build(tmp_path, clock, *keys)
    assert isinstance(ask(authenticator, token(headers={"kid": "a"})), Caller)
    assert isinstance(ask(authenticator, token(key=OTHER_KEY, headers={"kid": "b"})), Caller)
    assert isinstance(ask(authenticator, token(headers={"kid": "b"})), Refusal)
    assert isinstance(ask(authenticator, token()), Refusal)


def test_algorithm_of_the_key(tmp_path, clock):
    """A key is used with its own algorithm only."""
    key = ec.generate_private_key(ec.SECP256R1())
    jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    authenticator = build(tmp_path, clock, jwk)
    assert isinstance(ask(authenticator, token(key=key, algorithm="ES256")), Caller)
    assert isinstance(ask(authenticator, token()), Refusal)


def test_expiry_of_remembered_tokens(tmp_path, clock):
    """A token that was verified before is worth nothing from the moment it expires."""
    authenticator = build(tmp_path, clock)
    text = token(exp=NOW + 10)
    assert isinstance(ask(authenticator, text), Caller)
    clock.ms += 9_000
    assert isinstance(ask(authenticator, text), Caller)
    clock.ms = (NOW + 10) * 1000
    for _ in range(2):
        refusal = ask(authenticator, text)
        assert isinstance(refusal, Refusal)
        assert refusal.message == "the token has expired; get a new one from its issuer"


def test_memory_is_bounded(tmp_path, clock, monkeypatch):
    """Only so many tokens are remembered; the ones used last stay."""
    authenticator = build(tmp_path, clock, cached_most=2)
    texts = [token(sub=f"u{number}") for number in range(3)]
    verify, verified = jwt.decode_complete, []

    def decode_complete(text, **options):
        verified.append(text.decode())
        return verify(text, **options)

    monkeypatch.setattr(jwt, "decode_complete", decode_complete)
    for number in (0, 1, 0, 2, 0, 2, 1):
        assert isinstance(ask(authenticator, texts[number]), Caller)
    assert verified == [texts[0], texts[1], texts[2], texts[1]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("", "is not a JWK set"),
        ("[]", "is not a JWK set"),
        ("{}", "is not a JWK set"),
        ('{"keys":{}}', "at least one key"),
        ('{"keys":[]}', "at least one key"),
        ('{"keys":[5]}', r"keys\[0\]: must be an object"),
        ('{"keys":[{"kty":"OKP"}]}', r"keys\[0\]: is not a key"),
        ('{"keys":[{"kty":"oct","k":"c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}]}', "HS256 is not supported"),
        (
            json.dumps({"keys": [public_jwk(kid="a"), public_jwk(kid="a")]}),
            "kid must be a string that no other key has",
        ),
        (json.dumps({"keys": [json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(SIGNING_KEY))]}), "private key"),
    ],
)
def test_bad_key_files(tmp_path, content, message):
    """A start with a keys file that cannot be used is refused, naming the file and never quoting a key."""
    file = tmp_path / "keys.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(StartRefusedError, match=message) as raised:
        read_issuer(issuer=ISSUER, audience=AUDIENCE, keys_file=file)
    assert str(file) in str(raised.value)
    assert "c2VjcmV0" not in str(raised.value)
