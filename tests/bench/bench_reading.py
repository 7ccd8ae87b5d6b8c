"""1,000 adapters in the hub's schema to tensors, by buffers and row by row: python -m tests.bench.bench_reading."""

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from datasets import load_from_disk

from lorabench.zoo.hub import load
from tests.bench.machine import describe, interleaved
from tests.hub_schema import write_hub

ADAPTERS = 1000


def main() -> None:
    """Print both times and their ratio a layer."""
    print(describe())
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_hub(Path(scratch) / "set", ADAPTERS)

        def by_buffers() -> int:
            zoo = load("hub", "none", scratch, path=folder)
            return sum(torch.from_numpy(np.array(zoo.read(layer))).numel() for layer in zoo.layers)

        times = interleaved({"by buffers": by_buffers}, 5)["by buffers"]
        table = load_from_disk(str(folder))
        layer = next(name for name in table.column_names if "lora" in name)
        one_layer = table.select_columns([layer]).with_format("torch")
        rows = interleaved({"rows": lambda: torch.stack([row[layer] for row in one_layer])}, 1, warm_up=False)["rows"]
    fast = statistics.median(times)
    print(f"{ADAPTERS} adapters, 128 layers, {ADAPTERS * 99_648 * 4 / 1e9:.2f} GB to tensors")
    print(f"  all layers by Arrow's buffers        {fast:7.2f} s  (goal: under 3)")
    print(f"  one layer, with_format('torch') by row {rows[0]:6.2f} s")
    print(f"  ratio a layer                        {128 * rows[0] / fast:7.0f}")


if __name__ == "__main__":
    main()
