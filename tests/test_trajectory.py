"""Checkpoints of one training are found by their names, and what their modules did over its steps is told."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.adapters import LoraModule
from lorabench.adapters.reading.folders import AdapterPlace, adapter_files
from lorabench.health import Snapshot, dynamics, module_metrics
from lorabench.health.series import in_series


@cache
def a_row():
    (row,) = module_metrics({"m": LoraModule(torch.eye(4, 8), torch.eye(9, 4))})
    return row


def looks(used, steps=None, **more):
    """Snapshots of one module whose use of its rank goes through these values."""
    steps = steps or range(10, 10 * len(used) + 1, 10)
    rows = [replace(a_row(), rank_utilization=one, **{k: v[i] for k, v in more.items()}) for i, one in enumerate(used)]
    return [Snapshot(step, {"m": row}) for step, row in zip(steps, rows, strict=True)]


def told(snapshots):
    (found,) = dynamics(snapshots)
    assert (found.module, found.step) == ("m", snapshots[-1].step)
    return found


@pytest.mark.parametrize(
    ("used", "trend"),
    [
        ([0.5, 0.5], None),
        ([0.5, 0.5, 0.5], "stable"),
        ([0.5, 0.9, 0.54], "stable"),
        ([0.5, 0.1, 0.56], "increasing"),
        ([0.5, 0.9, 0.44], "collapsing"),
        ([0.5, 0.5, 0.9, 0.9, 0.54, 0.54], "stable"),
        ([0.4, 0.6, 0.1, 0.1, 0.7, 0.5], "increasing"),
        ([0.5, 0.5, 0.9, 0.9, 0.9, 0.5, 0.3], "collapsing"),
        ([None, 0.5, None, 0.5, 0.9], "increasing"),
        ([None, None, 0.5, 0.9], None),
        ([None, None, None], None),
    ],
)
def test_the_trend_is_that_of_the_thirds(used, trend):
    assert told(looks(used)).rank_utilization_trend == trend


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.05, 1.0), min_size=3, max_size=20))
def test_a_trend_turns_about_with_time(used):
    opposite = {"increasing": "collapsing", "collapsing": "increasing", "stable": "stable"}
    third = len(used) // 3
    first, last = np.mean(used[:third]), np.mean(used[-third:])
    expected = "stable" if abs(last - first) <= 0.1 * first else "increasing" if last > first else "collapsing"
    if abs(abs(last - first) - 0.1 * first) > 1e-9:  # rounding may go either way on the limit itself
        assert told(looks(used)).rank_utilization_trend == expected
    if min(first, last) < 0.85 * max(first, last):
        assert told(looks(used[::-1])).rank_utilization_trend == opposite[expected]


@pytest.mark.parametrize(
    ("used", "step"),
    [
        ([0.2, 0.4, 0.5, 0.505, 0.5], 30),
        ([0.5, 0.5, 0.5], 10),
        ([0.5, 0.4, 0.5, 0.5], 30),
        ([0.2, 0.4, 0.6], None),
        ([0.5, 0.511], None),
        ([0.5, 0.509], 10),
        ([0.5], None),
        ([None, None], None),
        ([None, 0.5, 0.5], 20),
        ([0.5, None, 0.5], 10),
    ],
)
def test_saturation_is_the_step_from_which_no_use_differs_from_the_last(used, step):
    assert told(looks(used)).steps_to_saturation == step


def test_volatility_is_the_deviation_over_the_mean_of_what_is_finite():
    kappas = [3.0, float("inf"), 5.0, None, 10.0]
    found = told(looks([0.5] * 5, kappa_A=kappas, kappa_B=[2.0, None, None, None, float("inf")]))
    finite = np.array([3.0, 5.0, 10.0])
    assert found.kappa_A_volatility == pytest.approx(finite.std() / finite.mean())
    assert found.kappa_B_volatility is None
    assert told(looks([0.5] * 3, kappa_A=[4.0] * 3)).kappa_A_volatility == 0


def test_of_modules_that_come_and_go_the_last_looks_are_told():
    row = a_row()
    snapshots = [
        Snapshot(1, {"gone": row, "m": row}),
        Snapshot(2, {"m": row}, {"m": 2.0}),
        Snapshot(3, {"m": row, "new": row}, {"m": 3.0}),
    ]
    found = {one.module: one for one in dynamics(snapshots)}
    assert list(found) == ["m", "new"]
    assert found["m"].rank_utilization_trend == "stable"
    assert (found["new"].rank_utilization_trend, found["new"].steps_to_saturation) == (None, None)
    assert (found["m"].gradient_rank, found["new"].gradient_rank) == (3.0, None)


def places(*names, suffix="/adapter_model.safetensors"):
    return [AdapterPlace(Path(name), Path(f"{name}{suffix if '.' not in Path(name).name else ''}")) for name in names]


def found_in(*names):
    return [(str(one.name), one.steps) for one in in_series(places(*names))]


@pytest.mark.parametrize(
    ("names", "name", "steps"),
    [
        (("out/checkpoint-500", "out/checkpoint-1000", "out/checkpoint-1500"), "out/checkpoint-…", (500, 1000, 1500)),
        (("a/0000200_adapters.safetensors", "a/0000100_adapters.safetensors"), "a/…_adapters.safetensors", (100, 200)),
        (("k/style-000002.safetensors", "k/style-000010.safetensors"), "k/style-….safetensors", (2, 10)),
        (("k/s-step00000500.pt", "k/s-step00001000.pt"), "k/s-step….pt", (500, 1000)),
        (("d/step_20.pt", "d/step_3.pt"), "d/step_….pt", (3, 20)),
        (("e/epoch1", "e/epoch12"), "e/epoch…", (1, 12)),
        (("i/iter-5.bin", "i/iter-6.bin"), "i/iter-….bin", (5, 6)),
        (("i/iteration_5.npz", "i/iteration_6.npz"), "i/iteration_….npz", (5, 6)),
        (("c/Checkpoint-1", "c/Checkpoint-2"), "c/Checkpoint-…", (1, 2)),
        (("c/r8-checkpoint-7", "c/r8-checkpoint-9"), "c/r8-checkpoint-…", (7, 9)),
        (("checkpoint-0", "checkpoint-1"), "checkpoint-…", (0, 1)),
        (("e/epoch2_step7.pt", "e/epoch2_step9.pt"), "e/epoch2_step….pt", (7, 9)),
        ((f"h/checkpoint-{10**40}", "h/checkpoint-3"), "h/checkpoint-…", (3, 10**40)),
    ],
)  # fmt: skip
def test_checkpoints_of_one_training_are_one_series_by_their_steps(names, name, steps):
    assert found_in(*names) == [(name, steps)]
    assert found_in(*reversed(names)) == [(name, steps)]
    (series,) = in_series(places(*names))
    by_step = {step: place.path for step, place in zip(series.steps, series.places, strict=True)}
    assert sorted(map(str, by_step.values())) == sorted(names)
    assert [str(int(step)) in str(path) for step, path in by_step.items()] == [True] * len(steps)


@pytest.mark.parametrize(
    "names",
    [
        ("s/rank2", "s/rank4", "s/rank8"),
        ("lora_weights/lora_rank2.safetensors", "lora_weights/lora_rank4.safetensors"),
        ("s/style-1.safetensors", "s/style-2.safetensors"),
        ("s/style-240131.safetensors", "s/style-240201.safetensors"),  # days
        ("s/style_v1.safetensors", "s/style_v2.safetensors"),
        ("s/12345", "s/23456"),
        ("a/checkpoint-5", "b/checkpoint-6"),
        ("checkpoint-5/legal", "checkpoint-6/legal"),
        ("a/checkpoint-5", "a/checkpoint_6", "a/step-7"),
        ("a/checkpoint-5", "a/final"),
        ("a/x-checkpoint-5", "a/y-checkpoint-6"),
        ("a/style-000004.safetensors", "a/style-000004.pt"),
        ("a/checkpoint-", "a/checkpoint-last"),
        ("a/checkpoint-5",),
        (),
    ],
)
def test_what_is_no_series_stays_alone(names):
    assert found_in(*names) == [(name, (None,)) for name in names]


def test_a_mixture_keeps_its_order_and_each_training_its_own():
    names = (
        "a/checkpoint-2", "a/checkpoint-10", "a/final", "b/checkpoint-1", "b/checkpoint-3", "c/checkpoint-4",
        "k/style-000001.safetensors", "k/style-000002.safetensors", "k/style.safetensors",
    )  # fmt: skip
    assert found_in(*names) == [
        ("a/checkpoint-…", (2, 10)),
        ("a/final", (None,)),
        ("b/checkpoint-…", (1, 3)),
        ("c/checkpoint-4", (None,)),
        ("k/style-….safetensors", (1, 2, 3)),  # kohya gives the end no number
    ]


def test_checkpoints_on_the_disk_are_found_whatever_the_trainer_keeps_beside_them(tmp_path):
    for step in (9, 80, 700):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name in (
            "adapter_model.safetensors",
            "adapter_config.json",
            "optimizer.pt",
            "rng_state_0.pth",
            "scheduler.pt",
        ):
            (folder / name).touch()
    (series,) = in_series(adapter_files(tmp_path).adapters)
    assert (series.name, series.steps) == (tmp_path / "run" / "checkpoint-…", (9, 80, 700))
    assert [place.file.name for place in series.places] == ["adapter_model.safetensors"] * 3


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 99_999), min_size=2, max_size=8), st.randoms())
def test_no_order_of_the_files_changes_a_series(steps, random):
    for pattern in ("run/checkpoint-{}", "run/style-{:06d}.safetensors", "run/{:07d}_adapters.safetensors"):
        names = [pattern.format(step) for step in steps]
        random.shuffle(names)
        (series,) = in_series(places(*names))
        assert list(series.steps) == sorted(steps)
        assert [str(place.path) for place in series.places] == [pattern.format(step) for step in sorted(steps)]
