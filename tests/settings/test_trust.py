import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from msgspec.structs import replace

from api.scripted import AUDIENCE, ISSUER, SIGNING_KEY, StillClock, public_jwk, token, write_keys
from internal_transfer.api.authentication import Authenticator, Caller
from internal_transfer.server.http_workers.worker import Inheritance
from internal_transfer.settings.issuers import read_issuer
from internal_transfer.settings.load import load
from internal_transfer.settings.settings import Issuer, Secrets
from internal_transfer.settings.trust import from_keys, to_keys, trusted_issuers

RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def _jwk(algorithm, key, **more):
    return algorithm.to_jwk(key.public_key(), as_dict=True) | more


@pytest.mark.parametrize(
    ("jwk", "key", "algorithm", "headers"),
    [
        (public_jwk(), SIGNING_KEY, "EdDSA", None),
        (public_jwk(kid="a", use="sig"), SIGNING_KEY, "EdDSA", {"kid": "a"}),
        (_jwk(ECAlgorithm, EC_KEY, kid="b"), EC_KEY, "ES256", {"kid": "b"}),
        (_jwk(RSAAlgorithm, RSA_KEY, kid="c"), RSA_KEY, "RS256", {"kid": "c"}),
        (_jwk(RSAAlgorithm, RSA_KEY, kid="d", alg="PS384"), RSA_KEY, "PS384", {"kid": "d"}),
    ],
)
def test_keys_that_a_worker_is_told(tmp_path, jwk, key, algorithm, headers):
    """An HTTP worker verifies the same tokens as the service, for one algorithm only, with keys sent as JSON."""
    issuer = read_issuer(issuer=ISSUER, audience=AUDIENCE, keys_file=write_keys(tmp_path, jwk))
    settings = load(None, {})
    told = msgspec.json.encode(Inheritance(settings, to_keys([issuer])))
    authenticator = Authenticator(from_keys(msgspec.json.decode(told, type=Inheritance).issuers), StillClock())
    signed = token(key=key, algorithm=algorithm, headers=headers)
    assert isinstance(authenticator.authenticate(b"Bearer " + signed.encode()), Caller)
    if key is RSA_KEY:
        other = token(key=key, algorithm="RS512", headers=headers)
        assert not isinstance(authenticator.authenticate(b"Bearer " + other.encode()), Caller)


def test_the_demo_issuer_is_told(tmp_path):
    """The demo issuer is sent as well, with its advice on how to get a new token."""
    [issuer] = trusted_issuers(load(None, {}), tmp_path, demo=True)
    [told] = from_keys(to_keys([issuer]))
    assert (told.issuer, told.audience, told.renewal, told.keys.keys()) == (
        issuer.issuer,
        issuer.audience,
        issuer.renewal,
        issuer.keys.keys(),
    )


def test_settings_that_a_worker_is_told():
    """An HTTP worker gets all settings as they were read, but no secret."""
    settings = replace(
        load(None, {"INTERNAL_TRANSFER_POSTGRES_URL": "postgres://u:hush@h/d"}),
        issuers=(Issuer(ISSUER, "keys.json"),),
    )
    told = msgspec.json.encode(Inheritance(replace(settings, secrets=Secrets()), ()))
    assert b"hush" not in told
    assert msgspec.json.decode(told, type=Inheritance).settings == replace(settings, secrets=Secrets())
