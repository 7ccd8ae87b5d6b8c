"""Makes data sets in the schema of the hub's `lora-ws-*`, fast, from numpy buffers."""

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from lorabench.zoo import Zoo, hub
from lorabench.zoo.hub_labels import LabelColumns
from lorabench.zoo.hub_source import Part
from tests.bench.hub_shapes import stable_diffusion_modules

__all__ = [
    "COLUMNS",
    "hub_table",
    "layers_of",
    "list_column",
    "load",
    "open_table",
    "put",
    "rows_of",
    "small_modules",
    "stable_diffusion_modules",
    "write_hub",
]

Modules = Mapping[str, tuple[int, int]]
"""Module name -> (d_in, d_out)."""


def small_modules(count: int = 2, width: int = 8) -> dict[str, tuple[int, int]]:
    """A few small modules whose names are those of the real ones."""
    names = list(stable_diffusion_modules())[:count]
    return dict.fromkeys(names, (width, width + 4))


def list_column(values: np.ndarray) -> pa.ListArray:
    """Matrices [n, rows, cols] as one list<list<...>> array that shares their memory."""
    n, rows, cols = values.shape
    inner = pa.ListArray.from_arrays(
        pa.array(np.arange(0, n * rows * cols + 1, cols, dtype=np.int32)), pa.array(values.reshape(-1))
    )
    return pa.ListArray.from_arrays(pa.array(np.arange(0, n * rows + 1, rows, dtype=np.int32)), inner)


def hub_table(
    n: int,
    modules: Modules | None = None,
    rank: int = 1,
    categories: int = 3,
    per_leaf: int = 1,
    seed: int = 0,
    start: int = 0,
) -> pa.Table:
    """Rows `start` to `start + n` of a data set in the hub's schema.

    The category shifts the mean of every layer, so that a probe finds something.
    """
    modules = small_modules() if modules is None else modules
    rng = np.random.default_rng([seed, start])
    row = np.arange(start, start + n)
    leaf = row // per_leaf
    category = leaf % categories
    columns: dict[str, pa.Array] = {
        "category_label": pa.array(category),
        "category_name": pa.array([f"category {c}" for c in category]),
        "leaf_id": pa.array([f"n{number:08d}" for number in leaf]),
        "folder": pa.array([f"lora_{i:06d}" for i in row]),
        "rank": pa.array(np.full(n, rank)),
        "num_images": pa.array(np.full(n, 10)),
        "step_loss": pa.array(rng.random(n)),
    }
    shift = (category.astype(np.float32) / categories)[:, None, None]
    for name, (d_in, d_out) in modules.items():
        for side, shape in (("down", (rank, d_in)), ("up", (d_out, rank))):
            values = rng.standard_normal((n, *shape), dtype=np.float32)
            values += shift
            columns[f"{name}.lora.{side}.weight"] = list_column(values)
    return pa.table(columns)


def _batches(n: int, batch: int, **knobs: object) -> Iterator[pa.Table]:
    for start in range(0, n, batch):
        yield hub_table(min(batch, n - start), start=start, **knobs)  # type: ignore[arg-type]


def write_hub(folder: Path, n: int, modules: Modules | None = None, batch: int = 200, **knobs: object) -> Path:
    """What `Dataset.save_to_disk(folder)` leaves, written batch by batch to keep memory low.

    Args:
        folder: the folder to make.
        n: number of adapters.
        modules: module name -> (d_in, d_out); the real 64 by default.
        batch: rows of a record batch.
        knobs: further arguments of `hub_table`.
    """
    folder.mkdir(parents=True)
    modules = stable_diffusion_modules() if modules is None else modules
    parts = _batches(n, batch, modules=modules, **knobs)
    first = next(parts)
    features = datasets.Features.from_arrow_schema(first.schema)
    schema = features.arrow_schema
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, schema) as writer,
    ):
        for part in itertools.chain([first], parts):
            writer.write_table(part.cast(schema))
    datasets.DatasetInfo(features=features).write_to_directory(str(folder))
    state = {
        "_data_files": [{"filename": "data-00000-of-00001.arrow"}],
        "_fingerprint": f"{n:08x}{knobs.get('seed', 0):08x}",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def put(table: pa.Table, name: str, values: Any) -> pa.Table:
    """The table with the column `name` set."""
    column = values if isinstance(values, pa.Array) else pa.array(values)
    if name in table.schema.names:
        return table.set_column(table.schema.names.index(name), name, column)
    return table.append_column(name, column)


def rows_of(table: pa.Table, layer: str) -> np.ndarray:
    """The slow way: through Python lists."""
    return np.array(table.column(layer).to_pylist(), dtype=np.float32)


def layers_of(table: pa.Table) -> list[str]:
    """The names of the columns that are layers."""
    return [name for name in table.schema.names if "lora" in name]


COLUMNS = LabelColumns("category_label", "category_name", "leaf_id", "leaf_id", "folder")


def open_table(table: pa.Table, cache: Path) -> Zoo:
    return hub.from_parts("toy", [Part(datasets.Dataset(table))], COLUMNS, cache, "toy.arrow")


def load(path: Path, cache: Path, **knobs) -> Zoo:
    return hub.load("toy", None, cache, path=path, **knobs)
