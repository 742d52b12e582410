"""Amounts: whole numbers of an asset's smallest unit, written as decimal strings on the wire."""

import re

AMOUNT_UNITS_MAX = 2**112 - 1
"""The largest amount of one transfer. Ledger sums are u128; the cap keeps them from ever overflowing."""

_WHOLE_DIGITS_MAX = 39
"""The digits of the largest u128. A longer text is not converted: that is slow, and Python refuses 4,301 digits."""

_SYNTAX = re.compile(r"(0|[1-9][0-9]*)(?:\.([0-9]+))?", re.ASCII)


class AmountSyntaxError(ValueError):
    """The text is not a decimal amount as the wire writes it."""


class AmountPrecisionError(ValueError):
    """The amount has more decimal places than allowed."""


def is_amount(text: str) -> bool:
    r"""Tells whether the text matches `^(0|[1-9][0-9]*)(\.[0-9]+)?$`; no other text is ever parsed."""
    return _SYNTAX.fullmatch(text) is not None


def normal_amount(text: str) -> str:
    """Returns the amount without trailing zeros; raises `AmountSyntaxError` for a text that `is_amount` refuses."""
    match = _SYNTAX.fullmatch(text)
    if match is None:
        raise AmountSyntaxError(f"not a decimal amount: {text!r}")
    whole, fraction = match.group(1), match.group(2)
    fraction = fraction.rstrip("0") if fraction else ""
    return f"{whole}.{fraction}" if fraction else whole


def parse_amount(text: str, *, scale: int, precision: int) -> int:
    """Returns the number of smallest units in a decimal string.

    `scale` is the number of places that the ledger holds, `precision` (at most `scale`) the number that the text may
    use, not counting trailing zeros. Raises `AmountSyntaxError` and `AmountPrecisionError`. The result may exceed
    `AMOUNT_UNITS_MAX`; for a text with more digits than any u128 it is `AMOUNT_UNITS_MAX` + 1.
    """
    whole, _, fraction = normal_amount(text).partition(".")
    if len(fraction) > precision:
        raise AmountPrecisionError(f"more than {precision} decimal places: {text!r}")
    if len(whole) > _WHOLE_DIGITS_MAX:
        return AMOUNT_UNITS_MAX + 1
    return int(whole + fraction.ljust(scale, "0"))


def format_amount(units: int, *, scale: int) -> str:
    """Returns the decimal string of a number of smallest units, without trailing zeros and with its sign."""
    sign, digits = ("-", str(-units)) if units < 0 else ("", str(units))
    if scale == 0:
        return sign + digits
    digits = digits.rjust(scale + 1, "0")
    fraction = digits[-scale:].rstrip("0")
    return f"{sign}{digits[:-scale]}.{fraction}" if fraction else sign + digits[:-scale]
