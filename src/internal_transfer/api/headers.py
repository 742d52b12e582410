"""Reads request headers: the idempotency key, the preferred wait, the media types."""

import re

from internal_transfer.domain.refusal import Code, Detail, Refusal, refuse_field

KEY_CHARACTERS_MAX = 128
WAIT_SECONDS_MAX = 20
WAIT_SECONDS_DEFAULT = 0.5

JSON = b"application/json"
CSV = b"text/csv"

_KEY = "Idempotency-Key"
_PRINTABLE = re.compile(rb"[\x20-\x7e]+")
_QUOTED = re.compile(rb'"((?:[^"\\]|\\["\\])*)"')
_ESCAPED = re.compile(rb'\\(["\\])')
_WAIT = re.compile(rb'wait[ \t]*=[ \t]*(?:([0-9]{1,9})|"([0-9]{1,9})")[ \t]*(?:;.*)?', re.IGNORECASE)
_WEIGHT = re.compile(rb"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)


class Headers:
    """The headers of one request, by lower-case name.

    A repeated header has no single meaning: its value is `None`, and code that needs it refuses the request.
    """

    __slots__ = ("_values",)

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        values: dict[bytes, bytes | None] = dict(raw)
        if len(values) != len(raw):
            seen = set()
            for name, _ in raw:
                if name in seen:
                    values[name] = None
                seen.add(name)
            # Lists may be spread over several headers (RFC 9110, 5.3).
            for name in (b"accept", b"prefer"):
                if name in values:
                    values[name] = b",".join(value for other, value in raw if other == name)
        self._values = values

    def get(self, name: bytes) -> bytes | None:
        """Returns the header's value, or None if it is missing or repeated."""
        return self._values.get(name)

    def is_repeated(self, name: bytes) -> bool:
        """Returns whether the header occurs more than once."""
        return name in self._values and self._values[name] is None


def idempotency_key(headers: Headers) -> str | Refusal:
    """Returns the key in the `Idempotency-Key` header: bare, or a quoted string, whose escapes are undone once."""
    raw = headers.get(b"idempotency-key")
    if raw is None:
        if headers.is_repeated(b"idempotency-key"):
            return refuse_field(_KEY, "is given more than once")
        return Refusal(
            Code.IDEMPOTENCY_KEY_REQUIRED,
            "Idempotency-Key: is required; choose one per transfer and send it again with every retry",
            (Detail(_KEY, "is required"),),
        )
    key = raw.strip(b" \t")
    if key[:1] == b'"':
        quoted = _QUOTED.fullmatch(key)
        if quoted is None:
            return refuse_field(_KEY, "is not a well-formed quoted string")
        key = _ESCAPED.sub(rb"\1", quoted[1])
    return check_key(key)


def check_key(key: bytes) -> str | Refusal:
    """Returns the key as text, or a refusal unless it is 1 to 128 printable ASCII characters."""
    if not key:
        return refuse_field(_KEY, "must not be empty", Code.IDEMPOTENCY_KEY_REQUIRED)
    if len(key) > KEY_CHARACTERS_MAX:
        return refuse_field(_KEY, f"is longer than {KEY_CHARACTERS_MAX} characters")
    if _PRINTABLE.fullmatch(key) is None:
        return refuse_field(_KEY, "may only contain printable ASCII characters")
    return key.decode("ascii")


def preferred_wait(prefer: bytes | None) -> int | None:
    """Returns the N of `Prefer: wait=N`, at most `WAIT_SECONDS_MAX`, or None if it is absent or malformed.

    Only the first `wait` counts (RFC 7240, 2).
    """
    if prefer is None:
        return None
    for preference in prefer.split(b","):
        match = _WAIT.fullmatch(preference.strip(b" \t"))
        if match is not None:
            return min(int(match[1] or match[2]), WAIT_SECONDS_MAX)
        if preference.strip(b" \t")[:4].lower() == b"wait":
            return None
    return None


def is_json(content_type: bytes | None) -> bool:
    """Returns whether a body is declared as JSON; a charset, if named, must be UTF-8."""
    if content_type == JSON:
        return True
    if content_type is None:
        return False
    media_type, _, parameters = content_type.partition(b";")
    if media_type.strip(b" \t").lower() != JSON:
        return False
    for parameter in parameters.split(b";"):
        name, _, value = parameter.strip(b" \t").partition(b"=")
        if name.lower() == b"charset" and value.strip(b'"').lower() not in {b"utf-8", b"utf8"}:
            return False
    return True


def accepted(accept: bytes | None, offered: tuple[bytes, ...]) -> bytes | None:
    """Returns the offered media type that the client prefers (the first of equals), or None if it accepts none."""
    if accept is None or accept in {b"*/*", b"", offered[0]}:
        return offered[0]
    best, best_weight = None, 0.0
    for media_type in offered:
        weight = _weight_of(media_type, accept)
        if weight > best_weight:
            best, best_weight = media_type, weight
    return best


def _weight_of(media_type: bytes, accept: bytes) -> float:
    """Returns the weight, 0 to 1, of the most specific range that covers a media type."""
    weight, specificity = 0.0, -1
    whole_family = media_type.partition(b"/")[0] + b"/*"
    for item in accept.split(b","):
        media_range, *parameters = (part.strip(b" \t").lower() for part in item.split(b";"))
        if media_range == media_type:
            found = 2
        elif media_range == whole_family:
            found = 1
        elif media_range == b"*/*":
            found = 0
        else:
            continue
        if found > specificity:
            weight, specificity = _quality(parameters), found
    return weight


def _quality(parameters: list[bytes]) -> float:
    for parameter in parameters:
        match = _WEIGHT.fullmatch(parameter)
        if match is not None:
            return float(match[1])
    return 1.0
