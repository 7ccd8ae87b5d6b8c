"""Results that no run has made: what reports are tested with."""

import json
import math
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from lorabench.ablation.compare import CompareFinding, Taken
from lorabench.ablation.controls import ControlRow, Controls
from lorabench.ablation.none import NoneFinding
from lorabench.findings import Measured, Ranked, Stability
from lorabench.jobs import Job, queue, status_of, write_jobs
from lorabench.results import METRICS, Result, Run, summarise

TRAIN, TEST = 60, 20


LAYERS = [f"unet.{block}.attn.to_{name}.lora.{factor}.weight"
          for block in ("down_blocks.0.attentions.0", "mid_block.attentions.0", "up_blocks.1.attentions.0")
          for name in "qk" for factor in ("down", "up")]  # fmt: skip


def a_ranking(rng):
    """All layers by accuracies that are drawn."""
    drawn = sorted(((float(0.3 + 0.1 * rng.normal()), layer) for layer in LAYERS), reverse=True)
    return [
        Ranked(layer, place, value, value - 0.05, value + 0.05, 0.01, value, value, [value], place, 1.0, 1.0)
        for place, (value, layer) in enumerate(drawn, start=1)
    ]


def with_controls(result, recipe, ceiling=0.9):
    """The result with a recipe's accuracy beside it."""
    rows = [
        ControlRow("recipe", "how they were made", "control", Measured(recipe, 0.01, 2, math.nan, math.nan)),
        ControlRow("norm", "‖ΔW‖", "control", Measured(recipe - 0.1, 0.01, 2, math.nan, math.nan)),
        ControlRow("ceiling", "pictures", "ceiling", Measured(ceiling, 0.01, 2, math.nan, math.nan)),
    ]
    return replace(result, ablation=replace(result.ablation, controls=Controls(rows, [])))


def a_result(accuracies, seed=0, top_k=0, dataset="glyphs", failed=(), ranking=(), fall=0.1, **config):
    """A run of one split: {representation: accuracies of its members}."""
    ablations = ["none"] + ([f"top-{top_k}", f"random-{top_k}"] if top_k else [])
    runs, summary = [], []
    for name, values in accuracies.items():
        for ablation in ablations:
            lower = {"none": 0.0, f"top-{top_k}": fall}.get(ablation, 0.3)
            own = [
                Run(
                    name,
                    ablation,
                    seed + i,
                    1,
                    2,
                    dict.fromkeys((*METRICS, "val_macro_f1"), value - lower),
                    [[7 + i, 3], [4, 6]],
                    [{"train_loss": 1.0}, {"train_loss": 0.5}],
                    seconds=2.0 + seed,
                )
                for i, value in enumerate(values)
            ]
            own += [Run(name, ablation, 99, error=error) for error in failed]
            runs += own
            summary.append(summarise(own, "mlp", 4, 8, None))
    found = NoneFinding("none", [], [])
    if top_k:
        arms = [Taken("none", "none"), Taken(f"top-{top_k}", "top"), Taken(f"random-{top_k}", "random")]
        found = CompareFinding(
            name="top_k", rank_on="val", baseline="stats", folds=2, ranking=list(ranking),
            stability=Stability(None, None, 2), dropped_seeds=[],
            top_k=top_k, removed=[], arms=arms, differences=[], margin=0.03, verdicts=[],
        )  # fmt: skip
    return Result(
        dataset={"name": dataset, "adapters": TRAIN + 10 + TEST, "layers": len(LAYERS)},
        split={"train": TRAIN, "val": 10, "test": TEST, "by_source": False, "splits": 1},
        target="category",
        classes=["a", "b"],
        chance=0.1,
        config={"seed": seed, **config},
        runs=runs,
        summary=summary,
        seconds={f"{phase}/{name}": 2.0 + seed for name in accuracies for phase in ("features", "training")},
        environment={},
        ablation=found,
    )


def several(rng, names, splits, gap=0.0):
    """Runs of one representation and split each; the last representation is better by `gap`."""
    found = []
    for number, name in enumerate(names):
        for seed in range(splits):
            values = 0.5 + 0.02 * rng.normal(size=2) + (gap if number == len(names) - 1 else 0)
            found.append(a_result({name: values}, seed=seed))
    return found


def a_sweep(folder: Path) -> Path:
    """One job done, one failed, one killed, one never started, one whose results are gone, one of an old sweep."""
    jobs = [Job(str(number), f"seed={number}", [f"seed={number}"], f"key {number}") for number in range(8)]
    folder.mkdir()
    write_jobs(folder, jobs[:5])
    for number in (0, 4, 7):
        queue(folder, jobs[number])
        with status_of(folder / str(number)) as note:
            note.running(device="cpu")
            a_result({"a": [0.8, 0.7]}, seed=number).write(folder / str(number) / "results.json")
    (folder / "4" / "results.json").unlink()
    (folder / "1").mkdir()
    with pytest.raises(RuntimeError), status_of(folder / "1"):
        raise RuntimeError("nothing here\nlast line")
    (folder / "2").mkdir()
    (folder / "2" / "status.json").write_text(
        json.dumps({"status": "running", "pid": 2**22 + 1, "host": socket.gethostname()})
    )
    return folder
