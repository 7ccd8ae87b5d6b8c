"""Metadata strings into the numbers, lists and objects that they stand for."""

import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["decode", "decode_all"]

_WORDS: Mapping[str, bool | None] = {
    "True": True,
    "true": True,
    "False": False,
    "false": False,
    "None": None,
    "null": None,
}
_INTEGER = re.compile(r"-?(0|[1-9]\d{0,15})")
_FLOAT = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d{1,4})?|[-+]?(nan|inf|infinity)", re.IGNORECASE)
_TUPLE = re.compile(r"\(\s*\d{1,9}(\s*,\s*\d{1,9})*\s*,?\s*\)")
_AS_TEXT = re.compile(r"hash|commit|version|title|author|name|comment|description|license|spec$|phrase|^<")
_LARGEST = 2**53
_DEEPEST = 64


def decode_all(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Every entry of a file's metadata decoded; what names something (a hash, a title) stays text."""
    return {key: text if _is_text(key, text) else decode(text) for key, text in metadata.items()}


def decode(text: str) -> Any:
    """What a string stands for: a number, a truth, None, a tuple of numbers, a JSON value; else the string itself.

    Integers beyond 2^53 stay text, since JSON's readers round them, and so does JSON nested more than 64 deep. NaN
    and the infinities are numbers. Strings inside JSON are decoded the same way, but not as JSON again.

    >>> decode("1e-4"), decode("None"), decode("(512, 768)"), decode('{"conv_dim": "4"}'), decode("007")
    (0.0001, None, [512, 768], {'conv_dim': 4}, '007')
    """
    found = _simple(text)
    if not isinstance(found, str):
        return found
    bare = text.strip()
    if not bare or (bare[0], bare[-1]) not in (("{", "}"), ("[", "]")) or _too_deep(bare):
        return text
    try:
        return _inside(json.loads(bare))
    except ValueError:  # also for an integer of thousands of digits
        return text


def _is_text(key: str, text: str) -> bool:
    return _AS_TEXT.search(key) is not None and not text.startswith(("{", "[")) and text not in _WORDS


def _simple(text: str) -> Any:
    bare = text.strip()
    if bare in _WORDS:
        return _WORDS[bare]
    if _INTEGER.fullmatch(bare):
        return int(bare) if abs(int(bare)) <= _LARGEST else text
    if _FLOAT.fullmatch(bare):
        return float(bare)
    if _TUPLE.fullmatch(bare):
        return [int(one) for one in re.findall(r"\d+", bare)]
    return text


def _inside(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _inside(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_inside(one) for one in value]
    if isinstance(value, int) and abs(value) > _LARGEST:
        return str(value)
    return _simple(value) if isinstance(value, str) else value


def _too_deep(text: str) -> bool:
    """Whether brackets nest too deep; those inside strings count too, which errs on the safe side."""
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth += 1 if bracket in "[{" else -1
        if depth > _DEEPEST:
            return True
    return False
