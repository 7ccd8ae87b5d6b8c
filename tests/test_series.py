"""Which files are checkpoints of one training: by their names, and by what they change."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lorabench.adapters.reading.files import load
from lorabench.adapters.reading.folders import AdapterPlace
from lorabench.health import audit
from lorabench.health.series import as_one, in_series
from tests.test_audit import write


def told(*names):
    """(name, steps) of each series, of names in a folder's order."""
    found = in_series([AdapterPlace(Path(name), Path(name)) for name in sorted(names)])
    return [(str(one.name), *one.steps) for one in found]


@pytest.mark.parametrize(
    ("names", "series"),
    [
        (("checkpoint-500", "checkpoint-1000"), ("checkpoint-…", 500, 1000)),
        (("step_000500", "step_001000"), ("step_…", 500, 1000)),
        (("epoch-2", "epoch-10", "epoch-1"), ("epoch-…", 1, 2, 10)),
        (("epoch=3-step=100", "epoch=4-step=200", "epoch=10-step=1000"), ("epoch=…-step=…", 100, 200, 1000)),
        (("a-step-9-epoch-1.pt", "a-step-20-epoch-0.pt"), ("a-step-…-epoch-….pt", 9, 20)),
        (("x-000002.safetensors", "x-000004.safetensors"), ("x-….safetensors", 2, 4)),
        (("x-000002.safetensors", "x-000004.safetensors", "x.safetensors"), ("x-….safetensors", 2, 4, 5)),
        (("x-step00000500.safetensors", "x.safetensors"), ("x-step….safetensors", 500, 501)),
        (("0000100_adapters.npz", "0000200_adapters.npz"), ("…_adapters.npz", 100, 200)),
    ],
)
def test_checkpoints_of_one_training_by_their_names(names, series):
    assert told(*names) == [series]
    assert told(names[0]) == [(names[0], None)], "one alone is no series"


@pytest.mark.parametrize(
    "names",
    [
        ("sdxl-lora-1.safetensors", "sdxl-lora-2.safetensors"),
        ("x-240131.safetensors", "x-240229.safetensors", "x.safetensors"),
        ("rank4.pt", "rank8.pt"),
        ("a-epoch-1.pt", "b-epoch-2.pt"),
        ("x-000002.pt", "x-000004.safetensors"),
        ("x-000002.pt", "x.safetensors"),
        ("step_1/a", "step_2/a"),
        ("4step.pt", "8step.pt"),
    ],
)
def test_what_shares_a_stem_and_a_number_alone_is_no_training(names):
    assert told(*names) == [(name, None) for name in sorted(names)]


def as_told(*names):
    """(name, steps, files) of what is said to be one training."""
    one = as_one([AdapterPlace(Path(name), Path(name)) for name in names])
    return str(one.name), one.steps, tuple(str(place.file) for place in one.places)


def test_adapters_that_are_said_to_be_one_training():
    assert as_told("b/x-000004.pt", "a/x-000002.pt") == ("x-….pt", (2, 4), ("a/x-000002.pt", "b/x-000004.pt"))
    assert as_told("run/checkpoint-9", "run/checkpoint-10")[:2] == ("run/checkpoint-…", (9, 10))
    assert as_told("b.pt", "a.pt") == ("a.pt", (1, 2), ("b.pt", "a.pt")), "no name says a step: the order counts"
    assert as_told("a/x-000002.pt", "b/x-000002.pt")[1] == (1, 2), "both say the same step"
    assert as_told("x-000002.pt", "y-000004.pt", "z.pt")[1] == (1, 2, 3)
    assert as_told("a.pt") == ("a.pt", (None,), ("a.pt",))


def test_several_files_of_several_folders_as_one_training(tmp_path):
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for number, folder in enumerate(folders):
        write(folder / "adapter_model.safetensors", seed=1, size=0.1 * (number + 1))
    files = [folder / "adapter_model.safetensors" for folder in folders]
    (one,) = audit([*files, files[0]], together=True)
    assert [snapshot.step for snapshot in one.snapshots] == [1, 2, 3]
    assert list(one.files) == files
    assert [found.name for found in audit(files)] == folders, "each for itself where nothing says otherwise"
    said = one.as_dict()["trajectory"]
    assert [entry["step"] for entry in said] == [1, 2, 3]
    for entry, file in zip(said, files, strict=True):
        sigma = [
            torch.linalg.svdvals(module.scale * module.up.double() @ module.down.double())
            for module in load(file).modules.values()
        ]
        assert entry["sigma_max"] == pytest.approx(float(np.median([values[0] for values in sigma])), rel=1e-5)
        stable = [float(values.square().sum() / values[0] ** 2) for values in sigma]
        assert entry["stable_rank"] == pytest.approx(float(np.median(stable)), rel=1e-5)
        assert entry["lowest"] <= entry["rank_utilization"] <= entry["highest"]


def test_files_that_change_other_weights_are_no_checkpoints_of_one(tmp_path):
    for step, width in ((1, 16), (2, 16), (3, 20), (4, 16), (5, 20)):
        write(tmp_path / f"x-{step:06d}.safetensors", width=width, rank=4 + step % 2)  # AdaLoRA prunes ranks
    write(tmp_path / "x-000006.safetensors", name="other.{i}.to_q")
    (tmp_path / "x-000007.safetensors").write_text("no adapter")
    write(tmp_path / "x.safetensors", name="else.{i}.to_q")
    found = [(one.name.name, [file.name for file in one.files], one.unreadable is None) for one in audit(tmp_path)]
    assert found == [
        ("x-….safetensors", [f"x-00000{step}.safetensors" for step in (1, 2, 4)], True),
        ("x-….safetensors", [f"x-00000{step}.safetensors" for step in (3, 5)], True),
        ("x-000006.safetensors", ["x-000006.safetensors"], True),
        ("x-000007.safetensors", ["x-000007.safetensors"], False),
        ("x.safetensors", ["x.safetensors"], True),
    ]
    steps = [[one.step for one in audited.snapshots] for audited in audit(tmp_path)]
    assert steps == [[1, 2, 4], [3, 5], [None], [], [None]]
