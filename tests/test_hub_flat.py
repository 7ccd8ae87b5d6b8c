"""Layers that are one list of numbers an adapter, and numbers of the recipe: each fault is one message."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorabench.errors import LorabenchError
from tests.hub_schema import load, put
from tests.published_sets import attention_names, flat_table, write_lora_wise

pytestmark = pytest.mark.usefixtures("no_datasets_bars")
DOWN, UP = (f"{attention_names()[0]}.lora.{side}.weight" for side in ("down", "up"))
COLUMNS: dict[str, Any] = {
    "category": "label", "category_name": None, "leaf": "name", "group": "name", "adapter": "name", "rank": 2,
    "recipe": {"images": "label"},
}  # fmt: skip


def other_length(table: pa.Table) -> pa.Table:
    lists = table.column(UP).to_pylist()
    lists[4] = lists[4][:-1]
    return put(table, UP, pa.array(lists, pa.list_(pa.float64())))


def other_width(table: pa.Table) -> pa.Table:
    lists = table.column(DOWN).to_pylist()
    lists[5] = lists[5][:-2]
    return put(table, DOWN, pa.array(lists, pa.list_(pa.float64())))


def without_number(table: pa.Table) -> pa.Table:
    return put(table, "label", pa.array([None, *range(1, len(table))], pa.float64()))


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (
            lambda table: table,
            {"rank": None},
            "A layer is a list of lists of float32 an adapter, or one list with",
        ),
        (lambda table: table, {"rank": 3}, "has 10 numbers in row 0, no multiple of the rank 3. Set dataset.rank"),
        (lambda table: table, {"rank": 0}, "dataset.rank=0"),
        (other_length, {}, "has 11 numbers in row 4, no multiple of the rank 2"),
        (other_width, {}, "is [2, 5] in row 0 and [2, 4] in row 5: not adapters of one base model"),
        (lambda table: table.drop_columns(["label"]), {}, "dataset.category=label is no column"),
        (lambda table: table, {"recipe": {"images": "count"}}, "dataset.recipe.images=count is no column"),
        (lambda table: table, {"recipe": {"images": "name"}}, "dataset.recipe.images=name holds string"),
        (without_number, {"category": "name"}, "dataset.recipe.images=label has 1 rows without a number"),
        (lambda table: table.slice(0, 0), {}, "the data set has no rows"),
        (lambda table: table.select(["label", "name"]), {}, "no column is a layer"),
    ],
)
def test_each_fault_is_one_message(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], arguments: dict[str, Any], words: str
) -> None:
    root = write_lora_wise(tmp_path / "set", change(flat_table()))
    with pytest.raises(LorabenchError, match=re.escape(words)):
        load(root, tmp_path / "cache", **COLUMNS | arguments)


def test_the_recipe_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    root = write_lora_wise(tmp_path / "set")
    zoo = load(root, tmp_path / "cache", **COLUMNS)
    assert zoo.labels.recipe["images"].tolist() == [1, 2, 3, 4, 5, 6] * 6
    assert load(root, tmp_path / "cache", **COLUMNS | {"recipe": None}).fingerprint != zoo.fingerprint


def test_a_file_without_rows_is_passed_over(tmp_path: Path) -> None:
    root = write_lora_wise(tmp_path / "set")
    pq.write_table(flat_table().slice(0, 0), root / "train-00001-of-00002.parquet")
    assert len(load(root, tmp_path / "cache", **COLUMNS)) == 36
