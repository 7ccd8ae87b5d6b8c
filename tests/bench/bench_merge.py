"""Two adapters merged by every method, here and by PEFT's `add_weighted_adapter`, side by side.

python -m tests.bench.bench_merge

Both do all of it: PEFT on a model that holds both adapters, lorabench from loaded adapters with its report, whose
errors are measured. PEFT calls the methods on ΔW `..._svd`. Errors are those against the ΔW that a method aims at;
under DARE, where the masks are random, PEFT's is not known.
"""

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.merging.recipe import DENSE, METHODS, Recipe
from lorabench.adapters.merging.whole import merge
from tests.bench.machine import describe, interleaved, ratio

MODULES, SIDE, RANK = 64, 512, 8
WEIGHTS = [0.7, 0.3]
PEFTS = {"concat": "cat", **{name: f"{name}_svd" for name in DENSE}}
GOALS = {"ties": 5, "dare_ties": 5, "magnitude_prune": 5}
SDXL = {(1280, 1280): 540, (640, 640): 100, (1280, 640): 30, (640, 1280): 30}
SD15 = {(320, 320): 56, (640, 640): 56, (1280, 1280): 56, (320, 768): 8, (640, 768): 8, (1280, 768): 8}


def adapter(seed: int, shapes: dict[tuple[int, int], int], rank: int) -> Adapter:
    """Modules with spectra that fall as those of trained adapters do."""
    generator = torch.Generator().manual_seed(seed)
    fall = torch.arange(1, rank + 1) ** -0.8
    modules = {
        f"unet.blocks.{i}.to_{d_out}_{d_in}": LoraModule(
            torch.randn(rank, d_in, generator=generator) / d_in**0.5,
            torch.randn(d_out, rank, generator=generator) / d_out**0.5 * fall,
        )
        for (d_out, d_in), count in shapes.items()
        for i in range(count)
    }
    return Adapter(Path(f"synthetic-{seed}"), ("kohya",), modules)


class Peft:
    """A model of linear layers with both adapters in it."""

    def __init__(self, adapters: list[Adapter]) -> None:
        from peft import LoraConfig, get_peft_model

        names = [name.replace(".", "_") for name in adapters[0].modules]
        layers = nn.ModuleDict({name: nn.Linear(SIDE, SIDE, bias=False) for name in names})
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names)
        self.model = get_peft_model(layers, config, "0")
        self.model.add_adapter("1", config)
        for i, each in enumerate(adapters):
            for name, module in each.modules.items():
                layer = self.layer(name)
                layer.lora_A[str(i)].weight.data, layer.lora_B[str(i)].weight.data = module.down, module.up

    def layer(self, name: str) -> Any:
        """One of the layers, by the adapter's name for it."""
        layers: Any = self.model.base_model.model
        return layers[name.replace(".", "_")]

    def merge(self, method: str) -> None:
        """The result is the adapter "both"; the one before is dropped."""
        if "both" in self.model.peft_config:
            self.model.delete_adapter("both")
        dense = (
            {"svd_rank": 2 * RANK, "density": 0.5} if method in DENSE else {"svd_rank": RANK} if method == "svd" else {}
        )
        name = PEFTS.get(method, method)
        combine: Any = self.model.base_model.add_weighted_adapter
        combine(["0", "1"], WEIGHTS, "both", combination_type=name, **dense)

    def error(self, targets: dict[str, torch.Tensor]) -> float:
        """Of "both", relative to what was aimed at."""
        found = {name: self.layer(name).get_delta_weight("both").detach() for name in targets}
        return distance(found, targets)


def distance(found: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> float:
    """Of all modules together, relative."""
    apart = sum(float((found[name] - targets[name]).double().square().sum()) for name in targets)
    whole = sum(float(target.double().square().sum()) for target in targets.values())
    return math.sqrt(apart / whole)


def side_by_side() -> None:
    """Every method: ratio of the times, and both errors."""
    adapters = [adapter(seed, {(SIDE, SIDE): MODULES}, RANK) for seed in (0, 1)]
    theirs = Peft(adapters)
    print(f"{MODULES} modules of {SIDE} x {SIDE}, rank {RANK}, two adapters, ms a merge")
    for method in METHODS:
        recipe = Recipe(method, normalize=False)
        works: dict[str, Callable[[], object]] = {
            "PEFT": lambda method=method: theirs.merge(method),  # type: ignore[misc]
            "here": lambda recipe=recipe: merge(adapters, WEIGHTS, recipe),  # type: ignore[misc]
        }
        times = interleaved(works, 3)
        _, report = merge(adapters, WEIGHTS, recipe)
        slow, fast = (1e3 * statistics.median(times[name]) for name in works)
        other = "" if method.startswith("dare") else f", PEFT's {theirs.error(_targets(adapters, method)):.9f}"
        print(
            f"  {method:<16} PEFT {slow:8.0f}  here {fast:8.0f}  ratio {ratio(times['PEFT'], times['here']):6.2f}  "
            f"(goal: {GOALS.get(method, 1)})  error {report.measured:.9f}{other}"
        )


def _targets(adapters: list[Adapter], method: str) -> dict[str, torch.Tensor]:
    from peft.utils.merge_utils import magnitude_prune, task_arithmetic, ties

    targets = {}
    for name in adapters[0].modules:
        deltas, weights = [each.modules[name].delta() for each in adapters], torch.tensor(WEIGHTS)
        functions = {"ties": ties, "magnitude_prune": magnitude_prune}
        targets[name] = (
            functions[method](deltas, weights, 0.5) if method in functions else task_arithmetic(deltas, weights)
        )
    return targets


def main() -> None:
    """Print the ratios, and the seconds of two whole merges."""
    print(describe())
    side_by_side()
    for title, shapes, rank, method in (
        ("SDXL's shapes", SDXL, 16, "svd"), ("SDXL's shapes", SDXL, 32, "svd"), ("SD 1.5's shapes", SD15, 4, "ties"),
    ):  # fmt: skip
        adapters = [adapter(seed, shapes, rank) for seed in (0, 1)]
        start = time.perf_counter()
        merge(adapters, WEIGHTS, Recipe(method))
        seconds = time.perf_counter() - start
        print(f"{title}, {sum(shapes.values())} modules, rank {rank}, {method}: {seconds:6.1f} s")


if __name__ == "__main__":
    main()
