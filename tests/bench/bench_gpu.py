"""Phase 1, the whole `compare` and autoencoders of a 1k zoo in the hub's schema on one GPU.

`python -m tests.bench.bench_gpu` measures all of it, `--only classifiers` or `--only learned` a part.

Needs a checkout, torch, pytorch-lightning, torchmetrics, safetensors and numpy, and nothing else. It prints Markdown;
`--record` appends it to docs/benchmarks.md.
"""

import argparse
import datetime
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import tests.bench.bare  # noqa: F401  # before anything of lorabench
from lorabench.ablation import Study
from lorabench.ablation.compare import Compare
from lorabench.classifiers.mlp import MLP
from lorabench.engines import Engine, Stacked
from lorabench.representations import Representation
from lorabench.representations.coupling import Coupling
from lorabench.representations.delta_pca import DeltaPCA
from lorabench.representations.delta_spectral import DeltaSpectral
from lorabench.representations.distribution import Distribution
from lorabench.representations.ensemble import Ensemble
from lorabench.representations.flat import Flat
from lorabench.representations.frequency import Frequency
from lorabench.representations.information import Information
from lorabench.representations.norms import Norms
from lorabench.representations.spectral import Spectral
from lorabench.representations.stats import Stats
from tests.bench.agreement import agreement
from tests.bench.hub_zoo import CLASSES, hub_zoo
from tests.bench.learned_gpu import learned_block
from tests.bench.machine import describe, name
from tests.bench.measured import Measured, Measuring

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
ALONE = "stats, each layer alone"
PARTS: dict[str, Callable[[], Representation]] = {
    "spectral": Spectral,
    "norms": Norms,
    "distribution": Distribution,
    "frequency": Frequency,
    "information": Information,
}
REPRESENTATIONS: dict[str, Callable[[], Representation]] = {
    **PARTS,
    "coupling": Coupling,
    "stats": Stats,
    "ensemble": lambda: Ensemble(parts={part: make() for part, make in PARTS.items()}),  # type: ignore[misc]
    "flat": Flat,
    "delta_spectral": lambda: DeltaSpectral(on="delta"),
    "delta_pca": DeltaPCA,
}
"""Those of conf/ablation/compare.yaml, with the values of their yaml (a test compares)."""
FACTORY = functools.partial(MLP, hidden=[512, 512, 512], dropout=0.3)
COMPARE = functools.partial(Compare, baseline="stats", rank_on="val", random_draws=20, worst=True, permuted=True)
FULL = {"adapters": 1000, "runs": 10, "layers": 128, "epochs": 100, "member_epochs": 1000}
QUICK = {"adapters": 200, "runs": 2, "layers": 16, "epochs": 3, "member_epochs": 30}
PARTS_OF_ALL = ("classifiers", "learned")
TOP_K = 5
SECONDS_OF_PHASE_1, SECONDS_OF_COMPARE = 60, 300


@dataclass(frozen=True)
class Sizes:
    """What is measured: adapters, runs and layers, epochs of an autoencoder and of a member at most, and the device."""

    adapters: int
    runs: int
    layers: int
    epochs: int
    member_epochs: int
    device: torch.device

    @property
    def full(self) -> bool:
        """Whether the goals are for these."""
        return {key: getattr(self, key) for key in FULL} == FULL


def main(arguments: Sequence[str] | None = None, page: Path = PAGE) -> None:
    """Measure, print, and append to the page if asked to."""
    asked = _arguments(arguments)
    wanted = {key: getattr(asked, key) or value for key, value in (QUICK if asked.quick else FULL).items()}
    sizes = Sizes(**wanted, device=_device(asked.device))
    if wanted["layers"] % 2 or not TOP_K + 3 <= wanted["layers"] <= FULL["layers"]:
        sys.exit(f"--layers {wanted['layers']}: an even number from {TOP_K + 3} to {FULL['layers']} is needed")
    if wanted["adapters"] < 4 * CLASSES:
        sys.exit(f"--adapters {wanted['adapters']}: at least {4 * CLASSES} are needed, for {CLASSES} classes")
    with tempfile.TemporaryDirectory() as scratch:
        text = _report(sizes, Path(scratch), PARTS_OF_ALL if asked.only is None else (asked.only,))
    print(text)
    if asked.record:
        page.write_text(f"{page.read_text().rstrip()}\n\n{text}\n")
        print(f"\nappended to {page}", file=sys.stderr)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    for key, value in FULL.items():
        parser.add_argument(f"--{key.replace('_', '-')}", type=int, help=f"default: {value}; {QUICK[key]} with --quick")
    parser.add_argument("--only", choices=PARTS_OF_ALL, help="measure this part alone")
    parser.add_argument("--record", action="store_true", help=f"append what is printed to docs/{PAGE.name}")
    parser.add_argument("--quick", action="store_true", help="a small zoo, to see that everything runs")
    return parser.parse_args(arguments)


def _device(asked: str) -> torch.device:
    if asked == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device here; `--device cpu --quick` shows that the benchmark runs")
    return torch.device(asked)


def _report(sizes: Sizes, scratch: Path, parts: Sequence[str]) -> str:
    """All measurements as one block of Markdown."""
    found = [f"### {name()}", _what(sizes)]
    if "classifiers" in parts:
        found += _classifiers(sizes, scratch)
    if "learned" in parts:
        zoo = hub_zoo(sizes.adapters, sizes.layers)
        found.append(learned_block(zoo, sizes.device, sizes.epochs, sizes.full, _progress))
    return "\n\n".join(part for part in found if part)


def _classifiers(sizes: Sizes, scratch: Path) -> list[str]:
    """Phase 1 and the whole `compare`, in blocks of Markdown."""
    engine: Engine = Stacked(sizes.device.type)
    factory = functools.partial(FACTORY, max_epochs=sizes.member_epochs)
    evaluator = functools.partial(
        Measuring.of, hub_zoo(sizes.adapters, sizes.layers), factory, engine, sizes.device, sizes.runs
    )
    same = agreement(evaluator(scratch / "agreement"), layers=2, seeds=2)  # warms the device up too
    _progress("members as one agree with members one by one: measured")
    first, alone = _phase_1(evaluator(scratch / "phase_1"))
    _progress(f"phase 1: {first.seconds:.1f} s")
    changed = None
    if sizes.device.type == "cuda":
        with _tf32():
            changed = _phase_1(evaluator(scratch / "phase_1"))
        _progress(f"phase 1 with TF32: {changed[0].seconds:.1f} s")
    whole, rows = _compare(evaluator(scratch / "compare"))
    return [
        _table_of_phases(sizes, first, whole, rows),
        _table_of_representations(rows),
        _about_tf32(first, alone, changed),
        same,
    ]


def _phase_1(evaluator: Measuring) -> tuple[Measured, np.ndarray]:
    """Every layer alone; what it took, and the mean test accuracy of every layer."""
    arms = [evaluator.alone(layer) for layer in evaluator.everything]
    found = evaluator.evaluate(ALONE, Stats(), arms)
    return evaluator.measured[ALONE], np.array([one.test_correct.mean() for one in found])


def _compare(evaluator: Measuring) -> tuple[float, list[Measured]]:
    """Phases 1 to 3, as `ablation=compare` runs them; the seconds of all, and what every evaluation took."""
    classes = tuple(str(number) for number in range(CLASSES))
    start = time.perf_counter()
    COMPARE(top_k=TOP_K).run(Study(evaluator, "mlp", classes, REPRESENTATIONS, (ALONE, Stats)))
    return time.perf_counter() - start, list(evaluator.measured.values())


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _what(sizes: Sizes) -> str:
    return (
        f"{describe()}; {datetime.datetime.now(datetime.UTC):%d %B %Y}. {sizes.adapters} adapters of rank 1, "
        f"{sizes.layers} layers, {sizes.runs} runs, MLP 3 × 512; random weights in the hub's schema, float32."
    )


def _table_of_phases(sizes: Sizes, first: Measured, whole: float, rows: Sequence[Measured]) -> str:
    goals = (f"{SECONDS_OF_PHASE_1} s", f"{SECONDS_OF_COMPARE} s") if sizes.full else ("", "")
    return "\n".join([
        "| what | seconds | members | goal: at most |",
        "|---|---|---|---|",
        f"| phase 1, every layer alone (`stats`) | {first.seconds:.1f} | {first.members} | {goals[0]} |",
        f"| the whole `compare`, phase 1 among it | {whole:.1f} | {sum(row.members for row in rows)} | {goals[1]} |",
    ])  # fmt: skip


def _table_of_representations(rows: Sequence[Measured]) -> str:
    head = [
        "| `compare` | features, s | training, s | members | member-epochs | member-epochs a second | peak, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join(head + [row.as_row() for row in rows])


def _about_tf32(first: Measured, alone: np.ndarray, changed: tuple[Measured, np.ndarray] | None) -> str:
    if changed is None:
        return ""
    other, accuracy = changed
    change = np.abs(accuracy - alone)
    return (
        f"TF32 in phase 1 (off by default): training {other.training:.1f} s in place of {first.training:.1f} s; a "
        f"layer's mean test accuracy changes by {100 * change.max():.2f} points at most, {100 * change.mean():.2f} on "
        "average."
    )


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
