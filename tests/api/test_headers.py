import pytest

from internal_transfer.api.headers import CSV, JSON, Headers, accepted, idempotency_key, is_json, preferred_wait
from internal_transfer.domain.refusal import Refusal


def key_of(*values: bytes):
    return idempotency_key(Headers([(b"host", b"x"), *((b"idempotency-key", value) for value in values)]))


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b"abc", "abc"),
        (b'"abc"', "abc"),
        (b"  abc\t", "abc"),
        (b"a b", "a b"),
        (b'" a "', " a "),
        (b'a"b', 'a"b'),
        (b'"a\\"b\\\\c"', 'a"b\\c'),
        (b"a\\b", "a\\b"),
        (b'"%22"', "%22"),
        (b"k" * 128, "k" * 128),
        (b'"' + b"k" * 128 + b'"', "k" * 128),
    ],
)
def test_key(value, key):
    """A key is the same bare and quoted, and what it stands for is decoded exactly once."""
    assert key_of(value) == key


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ((), "IDEMPOTENCY_KEY_REQUIRED"),
        ((b"",), "IDEMPOTENCY_KEY_REQUIRED"),
        ((b"  ",), "IDEMPOTENCY_KEY_REQUIRED"),
        ((b'""',), "IDEMPOTENCY_KEY_REQUIRED"),
        ((b"k" * 129,), "INVALID_REQUEST"),
        ((b'"abc',), "INVALID_REQUEST"),
        ((b'"',), "INVALID_REQUEST"),
        ((b'"a\\b"',), "INVALID_REQUEST"),
        ((b'"a"b"',), "INVALID_REQUEST"),
        ((b"a\tb",), "INVALID_REQUEST"),
        ((b"caf\xc3\xa9",), "INVALID_REQUEST"),
        ((b"a\x7f",), "INVALID_REQUEST"),
        ((b"a", b"a"), "INVALID_REQUEST"),
    ],
)
def test_no_key(values, code):
    """A missing or empty key is asked for; one that is malformed or given twice is refused."""
    refusal = key_of(*values)
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.details[0].field) == (code, "Idempotency-Key")


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, None),
        (b"wait=5", 5),
        (b"wait=0", 0),
        (b"wait=20", 20),
        (b"wait=21", 20),
        (b"wait=999999999", 20),
        (b"Wait=7", 7),
        (b"respond-async, wait=10", 10),
        (b'wait="3"', 3),
        (b"wait = 3", 3),
        (b"wait=3;x=y", 3),
        (b"wait=1, wait=9", 1),
        (b"", None),
        (b"wait", None),
        (b"wait=", None),
        (b"wait=-1", None),
        (b"wait=1.5", None),
        (b"wait=x, wait=2", None),
        (b"wait=1000000000", None),
        (b"awaits=4", None),
        (b"\xff", None),
    ],
)
def test_prefer(prefer, seconds):
    """Only a well-formed wait counts, at most 20 s; anything malformed is as if it were not there."""
    assert preferred_wait(prefer) == seconds


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (b"application/json", True),
        (b"Application/JSON", True),
        (b"application/json; charset=utf-8", True),
        (b'application/json;charset="UTF-8"', True),
        (b"application/json; charset=latin-1", False),
        (b"application/json5", False),
        (b"application/problem+json", False),
        (b"text/plain", False),
        (b"", False),
        (None, False),
    ],
)
def test_content_type(content_type, expected):
    """Bodies have to be declared as JSON in UTF-8."""
    assert is_json(content_type) is expected


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, JSON),
        (b"", JSON),
        (b"*/*", JSON),
        (b"text/csv", CSV),
        (b"text/*", CSV),
        (b"application/*", JSON),
        (b"text/csv, application/json", JSON),
        (b"text/csv, application/json;q=0.5", CSV),
        (b"text/csv;q=0.1, */*;q=0.9", JSON),
        (b"text/html, */*;q=0.1", JSON),
        (b"application/json;q=0, */*", CSV),
        (b"TEXT/CSV", CSV),
        (b"text/csv; header=present", CSV),
        (b"text/html", None),
        (b"*/*;q=0", None),
        (b"application/json;q=0.0", None),
        (b"nonsense", None),
    ],
)
def test_accept(accept, chosen):
    """The media type is the one that the client likes best, by weight and then by how closely it was named."""
    assert accepted(accept, (JSON, CSV)) == chosen


def test_lists_over_several_headers():
    """Accept and Prefer mean the same in one header and spread over several."""
    headers = Headers(
        [(b"accept", b"text/html"), (b"prefer", b"respond-async"), (b"accept", CSV), (b"prefer", b"wait=2")]
    )
    assert accepted(headers.get(b"accept"), (JSON, CSV)) == CSV
    assert preferred_wait(headers.get(b"prefer")) == 2
