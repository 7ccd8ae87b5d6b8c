"""Metadata strings into what they stand for."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.adapters.metadata.decoding import decode, decode_all


@pytest.mark.parametrize(
    ("string", "value"),
    [
        ("1e-4", 1e-4), ("-3", -3), ("0", 0), ("007", "007"), ("1_000", "1_000"), ("1e400", math.inf),
        (".5", 0.5),
        ("-Infinity", -math.inf), ("True", True), ("false", False), ("None", None), ("null", None), ("", ""),
        (" 5 ", 5),        ("9007199254740993", "9007199254740993"), ("9" * 5000, "9" * 5000),
        ("(512, 768)", [512, 768]), ("(1,)", [1]),
        ("(a, b)", "(a, b)"), ('{"a": {"b": "0.5", "c": "None"}}', {"a": {"b": 0.5, "c": None}}), ("[1, 2", "[1, 2"),
        ("[" * 65 + "]" * 65, "[" * 65 + "]" * 65), ("[" + "9" * 5000 + "]", "[" + "9" * 5000 + "]"), ("{}", {}),
        ('{"a": 9007199254740993}', {"a": "9007199254740993"}),
        ('"quoted"', '"quoted"'), ("５", "５"), ("1.0.2", "1.0.2"),
    ],
)  # fmt: skip
def test_decoding(string: str, value: object) -> None:
    assert decode(string) == value
    assert type(decode(string)) is type(value)


def test_nan_and_names() -> None:
    assert math.isnan(decode("nan"))
    assert math.isnan(decode('{"a": NaN}')["a"])
    assert decode_all({"modelspec.title": "1984", "ss_sd_model_hash": "12345678", "x": "1984"}) == {
        "modelspec.title": "1984", "ss_sd_model_hash": "12345678", "x": 1984}  # fmt: skip


@given(st.text() | st.text(alphabet='[]{}",:0123456789.eE-+naNIfity ()'))
@settings(max_examples=300, deadline=None)
def test_any_text_decodes_to_itself_or_to_what_it_means(string: str) -> None:
    found = decode(string)
    assert isinstance(found, str | int | float | list | dict | bool | None)
    if isinstance(found, str):
        assert found == string
    elif isinstance(found, float) and math.isfinite(found):
        assert found == float(string)
    elif isinstance(found, int) and not isinstance(found, bool):
        assert found == int(string)
