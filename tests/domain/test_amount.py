import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal_transfer.domain.amount import (
    AMOUNT_UNITS_MAX,
    AmountPrecisionError,
    AmountSyntaxError,
    format_amount,
    is_amount,
    normal_amount,
    parse_amount,
)

SCALES = st.integers(0, 30)
LOOSE = [
    "",
    " 1",
    "1 ",
    "1\n",
    "01",
    "00",
    ".5",
    "1.",
    "-1",
    "+1",
    "1e3",
    "1E3",
    "1_000",
    "1,5",
    "0x1",
    "NaN",
    "Infinity",
]


@pytest.mark.parametrize("text", ["0", "1", "10", "0.1", "1.50", "123456789.000000001", "0.0"])
def test_decimal_strings_are_amounts(text):
    """Whole numbers and fractions without leading zeros are amounts."""
    assert is_amount(text)


@pytest.mark.parametrize(
    "text",
    ["١", "1.٢", "１", "1.5.0", "²", "--1", "1.-5", *LOOSE],  # noqa: RUF001
)
def test_nothing_looser_is_an_amount(text):
    """Signs, exponents, spaces, separators, leading zeros and digits of other scripts are refused everywhere."""
    assert not is_amount(text)
    with pytest.raises(AmountSyntaxError):
        normal_amount(text)
    with pytest.raises(AmountSyntaxError):
        parse_amount(text, scale=6, precision=6)


@pytest.mark.parametrize(
    ("text", "normal"), [("1", "1"), ("1.50", "1.5"), ("1.00", "1"), ("0.0", "0"), ("10", "10"), ("0.010", "0.01")]
)
def test_trailing_zeros_do_not_count(text, normal):
    """One amount has one canonical text."""
    assert normal_amount(text) == normal


@pytest.mark.parametrize(
    ("text", "scale", "precision", "units"),
    [
        ("1.5", 6, 6, 1_500_000),
        ("0.000001", 6, 6, 1),
        ("1.500000", 6, 1, 1_500_000),
        ("3", 0, 0, 3),
        ("3.0", 0, 0, 3),
        ("1", 30, 0, 10**30),
        ("0", 6, 6, 0),
        (str(AMOUNT_UNITS_MAX + 1), 0, 0, AMOUNT_UNITS_MAX + 1),
    ],
)
def test_amounts_in_smallest_units(text, scale, precision, units):
    """A decimal string becomes an exact whole number of the ledger's smallest unit."""
    assert parse_amount(text, scale=scale, precision=precision) == units


def test_an_endless_number_is_above_every_limit():
    """A number of thousands of digits is neither converted (slow, and Python refuses it) nor cut short."""
    assert parse_amount("9" * 16_000, scale=6, precision=6) > AMOUNT_UNITS_MAX
    assert parse_amount("1" + "0" * 40, scale=0, precision=0) > AMOUNT_UNITS_MAX
    with pytest.raises(AmountPrecisionError):
        parse_amount("0." + "1" * 16_000, scale=6, precision=6)


@pytest.mark.parametrize(("text", "scale", "precision"), [("1.23", 6, 1), ("0.1", 0, 0), ("1.0000001", 6, 6)])
def test_more_places_than_the_precision_are_refused(text, scale, precision):
    """An amount is never rounded."""
    with pytest.raises(AmountPrecisionError, match=f"more than {precision} decimal places"):
        parse_amount(text, scale=scale, precision=precision)


@pytest.mark.parametrize(
    ("units", "scale", "text"),
    [
        (0, 0, "0"),
        (0, 6, "0"),
        (1, 6, "0.000001"),
        (1_500_000, 6, "1.5"),
        (10, 0, "10"),
        (10, 1, "1"),
        (-5, 0, "-5"),
        (-15, 1, "-1.5"),
        (-1, 6, "-0.000001"),
    ],
)
def test_smallest_units_as_text(units, scale, text):
    """A number of units is written without trailing zeros, and a mirror's negative figure with its sign."""
    assert format_amount(units, scale=scale) == text


@given(st.integers(0, 2**128 - 1), SCALES)
def test_what_is_shown_is_read_back(units, scale):
    """Formatting and parsing lose nothing, for every u128 and every scale."""
    text = format_amount(units, scale=scale)
    assert is_amount(text)
    assert normal_amount(text) == text
    assert parse_amount(text, scale=scale, precision=scale) == units


@given(st.from_regex(r"(0|[1-9][0-9]{0,38})(\.[0-9]{1,30})?", fullmatch=True, alphabet=st.characters(codec="ascii")))
def test_what_is_read_is_shown_in_its_normal_form(text):
    """Parsing and formatting keep every amount that the wire can carry."""
    assert format_amount(parse_amount(text, scale=30, precision=30), scale=30) == normal_amount(text)


@given(st.text(max_size=8))
def test_any_text_is_an_amount_or_refused(text):
    """No text raises anything but the two errors, and every parsed text had the right syntax."""
    try:
        parse_amount(text, scale=6, precision=6)
    except AmountSyntaxError:
        assert not is_amount(text)
    except AmountPrecisionError:
        assert is_amount(text)
    else:
        assert is_amount(text)
