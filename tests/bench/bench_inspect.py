"""One file looked at and drawn, and a library of files, headers only: python -m tests.bench.bench_inspect."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.bench.machine import describe

FILES, SECONDS, ONE, VALUES, PICTURES = 1000, 10.0, 0.5, 0.7, 3.0
_WIDTHS = (320, 640, 1280)


def main(files: int = FILES) -> None:
    """Print the seconds of `inspect` on one file, and of `scan` on a folder of `files` files of 3 MB."""
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        size = make_library(root, files)
        file = str(next(root.glob("*.safetensors")))
        one = min(_seconds("inspect", file) for _ in range(5))
        values = [_seconds("inspect", file, "--values") for _ in range(5)]
        draw = ("plot", file, "--kind", "all", "--force", "--out", f"{folder}/pictures")
        pictures = [_seconds(*draw) for _ in range(5)]
        table = ("inspect", folder, "--output", str(root / "table.jsonl"), "--force")
        alone = _seconds(*table, "--jobs", "1")
        every = min(_seconds(*table) for _ in range(2))
        rows = [json.loads(line) for line in (root / "table.jsonl").read_text().splitlines()]
    if len(rows) != files or not all(row["valid"] for row in rows):
        raise SystemExit(f"{len(rows)} rows of {files}, {sum(row['valid'] for row in rows)} valid")
    print(f"inspect of one file of {size / 1e6:.1f} MB, its hashes checked: {one:.2f} s  (goal: below {ONE} s)")
    print(f"  and its values: {statistics.median(values):.2f} s  (goal: below {VALUES:g} s)")
    print(f"plot --kind all of it: {statistics.median(pictures):.2f} s  (goal: below {PICTURES:g} s)")
    print(f"inspect of {files} such files, headers only:    {every:.2f} s  (goal: below {SECONDS:g} s)")
    print(f"  by one process: {alone:.2f} s")


def make_library(root: Path, files: int) -> int:
    """Files of 264 modules each, as kohya's trainer writes them for Stable Diffusion 1, and the size of one.

    Eight are written, the others are links to them: no header is read twice in a row, and no page of weights at all.
    """
    kinds = [root / f"kind-{kind}.safetensors" for kind in range(min(8, files))]
    for kind, path in enumerate(kinds):
        _write(path, kind)
    for number in range(files - len(kinds)):
        os.link(kinds[number % len(kinds)], root / f"{number:05d}.safetensors")
    return kinds[0].stat().st_size


def _write(path: Path, kind: int) -> None:
    tensors = {}
    rng = np.random.default_rng(kind)
    block = "unet_down_blocks_{}_attentions_{}_transformer_blocks_0_attn{}_to_{}"
    names = [block.format(i // 48, i // 24 % 2, i % 2 + 1, f"{'qkvo'[i % 4]}{kind}x{i}") for i in range(192)]
    names += [f"te_text_model_encoder_layers_{i // 6}_self_attn_{'qkvo'[i % 4]}_proj{kind}x{i}" for i in range(72)]
    for i, name in enumerate(names):
        width = _WIDTHS[i % 3]
        tensors[f"lora_{name}.lora_down.weight"] = rng.standard_normal((4, width)).astype(np.float16)
        tensors[f"lora_{name}.lora_up.weight"] = rng.standard_normal((width, 4)).astype(np.float16)
        tensors[f"lora_{name}.alpha"] = np.array(4, np.float16)
    tags = {f"{kind}_fox": {f"tag {i}": i for i in range(500)}}
    save_file(tensors, path, {"ss_network_dim": "4", "ss_learning_rate": "1e-4", "ss_tag_frequency": json.dumps(tags)})


def _seconds(*arguments: str) -> float:
    start = time.perf_counter()
    command = [sys.executable, "-m", "lorabench.adapters", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
