"""Amounts: whole numbers of an asset's smallest unit, decimal strings on the wire."""

import re

AMOUNT_UNITS_MAX = 2**112 - 1
"""The largest amount of one transfer. Ledger sums are u128; the cap keeps them from ever overflowing."""

_WHOLE_DIGITS_MAX = 39
"""The digits of the largest u128. Converting thousands of digits takes long, and Python refuses it with an error."""

_SYNTAX = re.compile(r"(0|[1-9][0-9]*)(?:\.([0-9]+))?", re.ASCII)


class AmountSyntaxError(ValueError):
    """The text is not a decimal amount of the wire's syntax."""


class AmountPrecisionError(ValueError):
    """The amount has more decimal places than allowed."""


def is_amount(text: str) -> bool:
    r"""Tells whether the text matches `^(0|[1-9][0-9]*)(\.[0-9]+)?$`; nothing looser is ever parsed."""
    return _SYNTAX.fullmatch(text) is not None


def normal_amount(text: str) -> str:
    """The same amount without trailing zeros; raises `AmountSyntaxError` for anything `is_amount` refuses."""
    match = _SYNTAX.fullmatch(text)
    if match is None:
        raise AmountSyntaxError(f"not a decimal amount: {text!r}")
    whole, fraction = match.group(1), match.group(2)
    fraction = fraction.rstrip("0") if fraction else ""
    return f"{whole}.{fraction}" if fraction else whole


def parse_amount(text: str, *, scale: int, precision: int) -> int:
    """The number of smallest units in a decimal string.

    `scale` is the places that the ledger holds, `precision` (at most `scale`) those that may be used; trailing zeros
    do not count. Raises `AmountSyntaxError` and `AmountPrecisionError`. The result may exceed `AMOUNT_UNITS_MAX`; where
    the text has more digits than any u128, it is one more than that.
    """
    whole, _, fraction = normal_amount(text).partition(".")
    if len(fraction) > precision:
        raise AmountPrecisionError(f"more than {precision} decimal places: {text!r}")
    if len(whole) > _WHOLE_DIGITS_MAX:
        return AMOUNT_UNITS_MAX + 1
    return int(whole + fraction.ljust(scale, "0"))


def format_amount(units: int, *, scale: int) -> str:
    """The decimal string of a number of smallest units, without trailing zeros; negative figures keep their sign."""
    sign, digits = ("-", str(-units)) if units < 0 else ("", str(units))
    if scale == 0:
        return sign + digits
    digits = digits.rjust(scale + 1, "0")
    fraction = digits[-scale:].rstrip("0")
    return f"{sign}{digits[:-scale]}.{fraction}" if fraction else sign + digits[:-scale]
