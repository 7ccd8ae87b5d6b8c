"""Words for people and JSON for machines."""

import json
import math
from pathlib import Path

import numpy as np

from lorabench.text import counted, plain, some, table, to_json


def test_a_table_is_aligned() -> None:
    text = table(("name", "rank"), [("a", 4), ("longer", 16)], numbers=("rank",))
    assert text.split("\n") == ["name    rank", "------  ----", "a          4", "longer    16"]
    assert table(("name",), []).split("\n") == ["name", "----"]


def test_json_says_null_for_what_is_no_number() -> None:
    data = {"x": (1.0, math.nan), 3: Path("p"), "y": {True}, "z": {"deep": [-math.inf, np.float64("nan"), None]}}
    assert plain(data) == {"x": [1.0, None], "3": "p", "y": [True], "z": {"deep": [None, None, None]}}
    assert json.loads(to_json(data, indent=1)) == plain(data)


def test_names_and_counts() -> None:
    assert [some("abcd"[:count]) for count in range(5)] == ["", "a", "a, b", "a, b, c", "a, b, c and 1 more"]
    assert some({"a": 1, "b": 2, "c": 3}, most=1) == "a and 2 more"
    assert [counted(count, "class", "classes") for count in (0, 1, 2)] == ["0 classes", "1 class", "2 classes"]
