"""A rank-128 adapter of SDXL's size to rank 32, by r×r algebra and by the SVD of dense ΔW.

python -m tests.bench.bench_resize
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.reading.files import load
from lorabench.adapters.resizing.rule import ResizeRule
from lorabench.adapters.resizing.whole import resize
from lorabench.adapters.writing.saving import save
from tests.bench.machine import describe, interleaved, ratio

RANK, NEW, GOAL = 128, 32, 10.0
SHAPES = {(1280, 1280): 540, (640, 640): 100, (1280, 640): 30, (640, 1280): 30}
SIDE_BY_SIDE = {(1280, 1280): 2, (640, 640): 2}


def adapter(shapes: dict[tuple[int, int], int]) -> Adapter:
    """Modules of rank 128 in float16 with spectra that fall as those of trained adapters do."""
    generator = torch.Generator().manual_seed(0)
    fall = torch.arange(1, RANK + 1) ** -0.8
    modules = {}
    for (d_out, d_in), count in shapes.items():
        for i in range(count):
            down = torch.randn(RANK, d_in, generator=generator) / d_in**0.5
            up = torch.randn(d_out, RANK, generator=generator) / d_out**0.5 * fall
            modules[f"unet.blocks.{i}.to_{d_out}_{d_in}"] = LoraModule(
                down.half().float(), up.half().float(), 0.5, alpha=64.0, dtype=torch.float16
            )
    return Adapter(Path("synthetic"), ("kohya",), modules)


def dense(module: LoraModule) -> tuple[torch.Tensor, torch.Tensor]:
    """What the usual tools do: ΔW, all its singular values, and the first columns."""
    left, sigma, right = torch.linalg.svd(module.delta(), full_matrices=False)
    root = (sigma[:NEW] / module.scale).sqrt()
    return right[:NEW] * root[:, None], left[:, :NEW] * root


def main() -> None:
    """Print both times a module, their ratio, and the seconds of the whole adapter."""
    print(describe())
    expected = 0.0
    for shape, count in SIDE_BY_SIDE.items():
        few = adapter({shape: count})
        works = {
            "dense": lambda few=few: [dense(module) for module in few.modules.values()],
            "low rank": lambda few=few: resize(few, ResizeRule(rank=NEW)),
        }
        times = interleaved(works, 3)
        slow, fast = (statistics.median(times[name]) / count for name in works)
        expected += slow * sum(number for one, number in SHAPES.items() if max(one) == shape[0])
        print(f"{shape[0]} x {shape[1]}, rank {RANK} to {NEW}, ms a module")
        print(f"  SVD of dense ΔW in float32                 {1e3 * slow:8.1f}")
        print(f"  r x r algebra in float64, with its receipt {1e3 * fast:8.1f}")
        print(f"  ratio                                      {ratio(times['dense'], times['low rank']):8.1f}")
    whole = adapter(SHAPES)
    start = time.perf_counter()
    resized, receipt = resize(whole, ResizeRule(rank=NEW))
    seconds = time.perf_counter() - start
    print(f"{len(whole.modules)} modules, rank {RANK} to {NEW}, float16, seconds")
    print(f"  resize with its receipt                    {seconds:8.2f}  (goal: under {GOAL:.0f})")
    print(f"  SVD of dense ΔW, reckoned from the above   {expected:8.0f}")
    print(f"  predicted error {receipt.predicted:.6f}, measured {receipt.measured:.6f}")
    with tempfile.TemporaryDirectory() as scratch:
        path = save(Path(scratch) / "whole.safetensors", whole, "kohya", dtype="stored")
        del whole, resized
        start = time.perf_counter()
        small, _ = resize(load(path), ResizeRule(rank=NEW))
        save(Path(scratch) / "small.safetensors", small, "kohya", dtype="stored")
        seconds = time.perf_counter() - start
        print(f"  file to file, {path.stat().st_size / 2**20:4.0f} MiB                    {seconds:8.2f}")


if __name__ == "__main__":
    main()
