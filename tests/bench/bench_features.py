"""Time of the hand-crafted features of 1,000 layers of 4 × 320, batched and one sample at a time.

    python -m tests.bench.bench_features

Times are the best of several rounds, in microseconds a layer; what counts is their ratio within one run.
"""

import time
from collections.abc import Callable

import numpy as np
import torch

from lorabench.representations.coupling import Coupling
from lorabench.representations.delta_spectral import DeltaSpectral
from lorabench.representations.distribution import Distribution
from lorabench.representations.dsire import DSiRe
from lorabench.representations.ensemble import Ensemble
from lorabench.representations.frequency import Frequency
from lorabench.representations.handcrafted import HandCrafted
from lorabench.representations.health import Health
from lorabench.representations.information import Information
from lorabench.representations.matrices import FactorMatrices
from lorabench.representations.norms import Norms
from lorabench.representations.projectors import Projectors
from lorabench.representations.sketch import GaussianSketch
from lorabench.representations.spectral import Spectral
from lorabench.representations.stats import Stats
from lorabench.zoo import Labels, Module, Stack, Zoo
from tests.bench.machine import describe

COUNT, RANK, WIDTH = 1000, 4, 320
DOWN, UP, MODULE = "m.lora.down.weight", "m.lora.up.weight", "m"
GOAL = 15.0


def synthetic_zoo() -> Zoo:
    """One module of 1,000 adapters of rank 4, 320 × 320."""
    random = np.random.default_rng(0)
    down = random.standard_normal((COUNT, RANK, WIDTH), dtype=np.float32)
    up = random.standard_normal((COUNT, WIDTH, RANK), dtype=np.float32)
    names = [str(i) for i in range(COUNT)]
    return Zoo(
        name="synthetic",
        layers={DOWN: Stack((down,)), UP: Stack((up,))},
        modules=(Module(MODULE, DOWN, UP),),
        rank=np.full((COUNT, 1), RANK, np.int64),
        scale=np.ones((COUNT, 1), np.float32),
        labels=Labels.of(names, names, names),
        fingerprint="synthetic",
    )


def ensemble() -> tuple[Ensemble, dict[str, HandCrafted]]:
    """The ensemble of 67 features and its parts."""
    parts: dict[str, HandCrafted] = {
        "spectral": Spectral(),
        "norms": Norms(),
        "distribution": Distribution(),
        "frequency": Frequency(),
        "information": Information(),
    }
    return Ensemble(parts=parts), parts


def best_seconds(work: Callable[[], object], rounds: int) -> float:
    """Shortest wall time of `rounds` calls, after one to warm up."""
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print the table."""
    zoo, cpu = synthetic_zoo(), torch.device("cpu")
    whole, parts = ensemble()
    values = torch.from_numpy(zoo.read(DOWN))

    def one_by_one() -> None:
        for i in range(COUNT):
            whole.compute(FactorMatrices(values[i : i + 1]))

    print(describe())
    batched = best_seconds(lambda: whole.features(zoo, DOWN, cpu), 15) / COUNT * 1e6
    single = best_seconds(one_by_one, 2) / COUNT * 1e6
    print(f"ensemble of {COUNT} x [{RANK}, {WIDTH}] layers, µs a layer")
    print(f"  batched            {batched:8.2f}")
    print(f"  one at a time      {single:8.2f}")
    print(f"  ratio              {single / batched:8.1f}  (goal: at least {GOAL:.0f})")
    print("each alone, µs a unit; parts of the ensemble share their sort, spectrum and moments")
    alone = {**parts, "stats": Stats(), "spectral of up": Spectral(), "ensemble of up": whole}
    for name, part in alone.items():
        layer = UP if name.endswith("up") else DOWN
        seconds = best_seconds(lambda part=part, layer=layer: part.features(zoo, layer, cpu), 5)
        print(f"  {name:18s} {seconds / COUNT * 1e6:8.2f}")
    pairs = {
        "coupling": Coupling(), "delta_spectral": DeltaSpectral(), "health": Health(), "projectors": Projectors(),
        "sketch": GaussianSketch(), "dsire": DSiRe().fit(zoo, cpu),
    }  # fmt: skip
    for name, pair in pairs.items():
        seconds = best_seconds(lambda pair=pair: pair.features(zoo, MODULE, cpu), 5)
        print(f"  {name:18s} {seconds / COUNT * 1e6:8.2f}")


if __name__ == "__main__":
    main()
