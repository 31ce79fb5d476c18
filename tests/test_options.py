"""Values of Python, of the command line and of YAML files: one meaning, or one line on what is wrong."""

import math

import pytest

from cxrl.config import Config
from cxrl.errors import CxrlError
from cxrl.options import coerce, is_text, to_number


@pytest.mark.parametrize(
    ("tp", "given", "expected"),
    [
        (int, "12", 12),
        (int, 12.0, 12),
        (int, "0100", 100),
        (int, "+7", 7),
        (int, " 7 ", 7),
        (int, "1e3", 1000),
        (int, "12.0", 12),
        (float, "0100.50", 100.5),
        (float, "5.", 5.0),
        (float, "1e-4", 1e-4),
        (float, 3, 3.0),
        (bool, "yes", True),
        (bool, "False", False),
        (bool, "on", True),
        (bool, "OFF", False),
        (bool, "0", False),
        (str, "0100", "0100"),
        (str, "no", "no"),
        (str, "a", "a"),
        (tuple[str, ...], "a, b", ("a", "b")),
        (tuple[str, ...], "none", ()),
        (tuple[str, ...], ["a"], ("a",)),
        (tuple[float, ...], "1,.5", (1.0, 0.5)),
        (tuple[float, ...], 2, (2.0,)),
    ],
)
def test_values_are_converted(tp, given, expected):
    value = coerce("x.y", given, tp)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("tp", "given", "words"),
    [
        (int, "1.5", "a whole number"),
        (int, True, "a whole number"),
        (int, "inf", "a whole number"),
        (int, None, "a whole number"),
        (int, "", "a whole number"),
        (int, "1_000", "a whole number"),
        (int, "1,000", "a whole number"),
        (int, "0x10", "a whole number"),
        (int, "0o17", "a whole number"),
        (int, "1:30", "a whole number"),
        (int, "1 000", "a whole number"),
        (int, "١٢", "a whole number"),
        (int, "²", "a whole number"),
        (int, "１２", "a whole number"),
        (int, "--3", "a whole number"),
        (int, "9" * 400, "a whole number"),
        (int, 10**400, "a whole number"),
        (int, "1e400", "a whole number"),
        (int, math.inf, "a whole number"),
        (float, 10**400, "a finite number"),
        (float, "1e400", "a finite number"),
        (float, "-inf", "a finite number"),
        (float, "infinity", "a finite number"),
        (float, "1_0.0", "a finite number"),
        (float, "1,5", "a finite number"),
        (float, "0x1p3", "a finite number"),
        (float, "١٫٥", "a finite number"),
        (float, "1" + "0" * 50, "a finite number"),
        (float, "5%", "a finite number"),
        (float, "nan", "a finite number"),
        (float, [1.0], "a finite number"),
        (bool, "maybe", "true or false"),
        (bool, 1, "true or false"),
        (bool, "", "true or false"),
        (bool, None, "true or false"),
        (bool, "y", "true or false"),
        (str, 3, "text"),
        (str, None, "text"),
        (str, ["a"], "text"),
        (tuple[str, ...], [["a"]], "text"),
        (tuple[str, ...], [None], "text"),
        (tuple[str, ...], {"a": 1}, "text"),
        (tuple[float, ...], "1,x", "a finite number"),
    ],
)
def test_values_that_do_not_convert_are_named(tp, given, words):
    with pytest.raises(CxrlError, match=rf"^x\.y_z: .* is not {words} \(change --x\.y-z\)$"):
        coerce("x.y_z", given, tp)


@pytest.mark.parametrize("given", ["a,,b", "a,", ",a", ",", "a, ,b", ["a", ""], [""]])
def test_an_empty_entry_of_a_list_is_refused(given):
    with pytest.raises(CxrlError, match=r"^x\.y: '.*' has an empty entry \(change --x\.y\)$"):
        coerce("x.y", given, tuple[str, ...])


def test_a_name_twice_in_a_list_is_refused():
    with pytest.raises(CxrlError, match=r"^x\.y: 'a' is given twice"):
        coerce("x.y", "a,b,a", tuple[str, ...])
    assert coerce("x.y", "1,1", tuple[float, ...]) == (1.0, 1.0)


@pytest.mark.parametrize("text", ["a\0b", "\0", "\ud800", "x\udcffy"])
def test_nul_and_lone_surrogates_are_no_text(text):
    assert not is_text(text)
    for tp, given in ((str, text), (tuple[str, ...], ["ok", text]), (tuple[str, ...], f"ok,{text}")):
        with pytest.raises(CxrlError, match=r"^x\.y: '.*' holds NUL or bytes that are not UTF-8") as caught:
            coerce("x.y", given, tp)
        str(caught.value).encode()  # can be printed
    assert is_text("Ödem, 肺 \U0001f642\n")


def test_a_long_value_is_not_repeated_whole():
    with pytest.raises(CxrlError, match="thousands of digits is not a whole number"):
        coerce("x.y", 10**5000, int)
    for tp in (int, float, bool):
        with pytest.raises(CxrlError) as caught:
            coerce("x.y", "x" * 100_000, tp)
        assert len(str(caught.value)) < 300
    with pytest.raises(CxrlError, match=r"x\.y: 'xxx.*… has more than 4095 characters"):
        coerce("x.y", "x" * 100_000, str)
    with pytest.raises(CxrlError) as caught:
        Config.from_dict({"y" * 100_000: {}})
    assert len(str(caught.value)) < 500


def test_a_number_is_decimal_or_none():
    assert to_number("0123") == 123
    assert math.isnan(to_number(True))
    assert math.isnan(to_number("abc"))


def test_a_field_twice_in_two_spellings_is_refused():
    with pytest.raises(CxrlError, match=r"optim\.clip_range is given twice"):
        Config.from_dict({"optim": {"clip_range": 0.5, "clip-range": 0.25}})
