"""A model asked of 1,000 adapters of 3 MB.

python -m tests.bench.bench_predict
"""

import functools
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from lorabench.classifiers.linear import Linear
from lorabench.engines import Stacked
from lorabench.evaluation import Evaluator
from lorabench.export.making import calibrated
from lorabench.predict.answers import ask
from lorabench.predict.folder import read_model, write_model
from lorabench.representations.delta_spectral import DeltaSpectral
from lorabench.zoo import Labels, Module, Stack, Zoo
from lorabench.zoo.export import export
from lorabench.zoo.splits import split_zoo
from tests.bench.machine import describe
from tests.leafy_zoo import CPU, STORY

ASKED, FILES, GOAL = 1000, 40, 60.0
SIDES = ((320, 320), (640, 640), (1280, 1280), (640, 768))
MODULES, RANK = 128, 4


def zoo_of(adapters: int, modules: int) -> Zoo:
    """Random adapters of a diffusion model's sides, of three classes."""
    rng = np.random.default_rng(0)
    layers, pairs = {}, []
    for number in range(modules):
        d_out, d_in = SIDES[number % len(SIDES)]
        name = f"unet.down_blocks.{number}.attentions.0.to_q"
        module = Module(name, f"{name}.lora.down.weight", f"{name}.lora.up.weight")
        layers[module.down] = Stack((rng.standard_normal((adapters, RANK, d_in), np.float32),))
        layers[module.up] = Stack((rng.standard_normal((adapters, d_out, RANK), np.float32),))
        pairs.append(module)
    names = [f"adapter{i}" for i in range(adapters)]
    labels = Labels.of(names, [f"c{i % 3}" for i in range(adapters)], names)
    rank, scale = np.full((adapters, modules), RANK, np.int64), np.ones((adapters, modules), np.float32)
    return Zoo("wide", layers, tuple(pairs), rank, scale, labels, f"wide-{modules}")


def main(asked: int = ASKED, modules: int = MODULES) -> None:
    """Print the seconds, and the files' size."""
    print(describe())
    with tempfile.TemporaryDirectory() as scratch:
        place, zoo = Path(scratch), zoo_of(FILES, modules)
        evaluator = Evaluator(
            zoo=zoo, split=split_zoo(zoo.labels, train=0.4, val=0.2, test=0.4), labels=zoo.labels.category,
            n_classes=3, factory=functools.partial(Linear, max_epochs=5), engine=Stacked(device="cpu"), device=CPU,
            seeds=(0, 1, 2), cache_dir=place / "cache", resume=False,
        )  # fmt: skip
        made = calibrated(evaluator, "delta_spectral", DeltaSpectral(), ("c0", "c1", "c2"), "category", STORY)
        write_model(made, place / "model")
        export(zoo, place / "files", "kohya")
        files = sorted((place / "files").glob("*/*.safetensors"))
        named = []
        for number in range(asked):  # every file under many names: what is read stays the same size
            link = place / f"{number:04d}.safetensors"
            os.link(files[number % len(files)], link)
            named.append(link)
        size = files[0].stat().st_size
        start, used = time.perf_counter(), time.process_time()
        said = ask(read_model(place / "model"), named)
        wall, used = time.perf_counter() - start, time.process_time() - used
    print(f"{len(said)} adapters of {size / 1e6:.1f} MB, {modules} modules, delta_spectral, three members")
    print(f"  {wall:.1f} s by the clock, {used:.1f} s of a processor (goal: under {GOAL:g} s)")


if __name__ == "__main__":
    main()
