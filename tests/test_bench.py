"""The benchmarks run, and the GPU's runs where hardly anything is installed. Nothing is timed here."""

import dataclasses
import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from packaging.requirements import Requirement

from lorabench.conf_dir import conf_dir
from lorabench.configs import make_representation
from lorabench.zoo.splits import split_zoo
from tests.bench import bench_gpu, bench_learned, learned_gpu
from tests.bench.hub_zoo import CLASSES, hub_zoo
from tests.bench.machine import describe
from tests.bench.measured import Measured
from tests.conftest import TINY_ZOO

ROOT = Path(__file__).parents[1]
ALLOWED = ("torch", "pytorch-lightning", "torchmetrics", "safetensors", "numpy")
ABSENT = (
    "jaxtyping", "rich", "hydra", "omegaconf", "datasets", "scipy", "matplotlib", "pyarrow", "huggingface_hub",
    "wandb", "sklearn", "beartype", "pytest",
)  # fmt: skip
TINY = ["--device", "cpu", "--layers", "8", "--adapters", "60", "--runs", "2", "--epochs", "2", "--member-epochs", "3"]


def needed(names):
    """Distributions of these names, and of all that they require here."""
    found, left = {}, [Requirement(name) for name in names]
    while left:
        wanted = left.pop()
        key = (wanted.name.lower().replace("_", "-"), frozenset(wanted.extras))
        if key in found:
            continue
        try:
            found[key] = distribution(wanted.name)
        except PackageNotFoundError:
            continue  # for another platform
        for text in found[key].requires or ():
            one = Requirement(text)
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
                left.append(one)
    return found.values()


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Environment of a Python that finds the allowed packages, what they require, and no other."""
    site = tmp_path_factory.mktemp("site")
    for one in needed(ALLOWED):
        for top in {file.parts[0] for file in one.files or () if file.parts[0] not in ("..", "__pycache__")}:
            link = site / top
            if not link.exists():
                link.symlink_to(one.locate_file(top))
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return {**kept, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}


def run_bare(environment, *arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def test_the_bare_python_is_bare(bare):
    names = json.dumps([*ABSENT, "torch"])
    text = f"import importlib.util as u; print(*[n for n in {names} if u.find_spec(n)])"
    assert run_bare(bare, "-c", text).stdout.split() == ["torch"]


@pytest.mark.slow
def test_the_gpu_benchmark_runs_to_its_end_on_a_bare_machine(bare, tmp_path):
    page = tmp_path / "benchmarks.md"
    page.write_text("# Benchmarks\n\nearlier text\n")
    text = (
        "import pathlib, sys; from tests.bench import bench_gpu; "
        "bench_gpu.main(sys.argv[2:], pathlib.Path(sys.argv[1])); import lorabench.results"
    )
    done = run_bare(bare, "-c", text, str(page), *TINY, "--record")
    before, heading, block = page.read_text().partition("\n\n### ")
    assert before == "# Benchmarks\n\nearlier text"
    assert (heading[2:] + block).strip() == done.stdout.strip()
    lines = done.stdout.splitlines()
    rows = {line.split(" | ")[0].removeprefix("| ").split(" (")[0]: line for line in lines if line.startswith("| ")}
    assert set(rows) >= {bench_gpu.ALONE, *bench_gpu.REPRESENTATIONS}
    members = int(rows["flat"].split(" | ")[3])
    assert members == 2 * 24  # runs × (none, top-5, 20 random, worst, permuted)
    assert int(rows[bench_gpu.ALONE].split(" | ")[3]) == 2 * 8
    assert "members failed" not in rows["flat"]
    assert "4 of 4 best epochs" in done.stdout
    for name in learned_gpu.LEARNED:
        units, _, epochs = rows[name].split(" | ")[3:6]
        assert (units, epochs) == ("8", "16")
        assert f"units of `{name}` as one stack" in done.stdout
    assert rows["vae, scope=all"].split(" | ")[3:6] == ["1", "1", "2"]


def test_one_part_of_the_gpu_benchmark_alone(capsys, monkeypatch):
    monkeypatch.setattr(bench_gpu, "learned_block", lambda *_: "autoencoders")
    monkeypatch.setattr(bench_gpu, "_classifiers", lambda *_: ["members"])
    for part, (there, absent) in {"learned": ("autoenc", "members"), "classifiers": ("members", "autoenc")}.items():
        bench_gpu.main([*TINY, "--only", part])
        said = capsys.readouterr().out
        assert there in said
        assert absent not in said


def test_an_autoencoder_that_fails_is_a_row_that_says_why():
    zoo = hub_zoo(60, 8)
    failed = learned_gpu.measure("vae", learned_gpu.LEARNED["vae"](latent_dim=100000), zoo, torch.device("cpu"))
    assert (failed.units, failed.epochs, failed.peak) == (0, 0, 0)
    assert "representation.latent_dim=100000" in failed.as_row("180 s")


def test_a_machine_without_a_gpu_is_told_so_in_one_line(bare):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = run_bare(bare, "-m", "tests.bench.bench_gpu", code=1)
    assert done.stderr.strip() == (
        "torch finds no CUDA device here; `--device cpu --quick` shows that the benchmark runs"
    )
    assert done.stdout == ""


@pytest.mark.parametrize(("wrong", "said"), [(["--layers", "9"], "--layers 9"), (["--adapters", "9"], "--adapters 9")])
def test_sizes_that_cannot_be_measured_are_refused(wrong, said):
    with pytest.raises(SystemExit, match=said):
        bench_gpu.main([*TINY, *wrong])


def test_what_the_gpu_benchmark_measures_is_what_conf_says():
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", ["ablation=compare"])
        single = {name: compose("config", [f"representation={name}"]).representation for name in config.representations}
    assert list(bench_gpu.REPRESENTATIONS) == list(single)
    for name, make in bench_gpu.REPRESENTATIONS.items():
        assert make() == make_representation(single[name]), name
    by_conf = instantiate(config.ablation, _convert_="all")
    alone = dataclasses.replace(by_conf, controls=False)  # what is timed is the representations
    assert dataclasses.asdict(bench_gpu.COMPARE(top_k=bench_gpu.TOP_K)) == dataclasses.asdict(alone)
    assert config.num_runs == bench_gpu.FULL["runs"]
    for name, make in learned_gpu.LEARNED.items():
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            given = compose("config", [f"representation={name}"]).representation
        assert make() == make_representation(given), name
        assert make().epochs == bench_gpu.FULL["epochs"]
    ours = bench_gpu.FACTORY(in_features=1, n_classes=2, seed=0).hparams
    assert dict(ours) == dict(
        instantiate(config.classifier, _convert_="all")(in_features=1, n_classes=2, seed=0).hparams
    )


def test_the_zoo_has_the_shapes_of_the_hub():
    zoo = hub_zoo(40, 128)
    assert len(zoo.layers) == 128
    assert len(zoo) == 40
    assert sum(rows * cols for _, rows, cols in (stack.shape for stack in zoo.layers.values())) == 99_648
    assert {stack.shape[1] * stack.shape[2] for stack in zoo.layers.values()} == {320, 640, 768, 1280}
    split = split_zoo(zoo.labels)
    assert {len(np.unique(zoo.labels.category[rows])) for rows in (split.train, split.val, split.test)} >= {CLASSES}


def test_the_categories_show_in_the_last_layer_and_not_in_the_first():
    zoo = hub_zoo(1000, 8)
    names = list(zoo.layers)
    assert abs(means_of_extremes(zoo, names[0])) < 0.04 < 0.3 < means_of_extremes(zoo, names[-1]) < 0.42


def means_of_extremes(zoo, layer):
    """Mean of the last class less that of the first."""
    means = zoo.read(layer).mean((1, 2))
    return float(means[zoo.labels.category == CLASSES - 1].mean() - means[zoo.labels.category == 0].mean())


def test_what_is_not_installed_is_left_out_of_the_description(monkeypatch):
    def version(name):
        if name == "datasets":
            raise PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr("tests.bench.machine.version", version)
    assert "torch 1.2.3" in describe()
    assert "datasets" not in describe()


def test_a_row_says_what_failed():
    row = Measured("flat", 3.0, 1.0, 2.0, 10, 500, int(2.5e9), "1 arms and 0 members failed").as_row()
    assert row == "| flat (1 arms and 0 members failed) | 1.00 | 2.00 | 10 | 500 | 250 | 2.5 |"


@pytest.mark.slow
def test_the_benchmark_of_autoencoders_runs(capsys):
    bench_learned.main(("vae",), 1, True, 2, tuple(TINY_ZOO))
    text = capsys.readouterr().out
    assert "ratio" in text
    assert "4 epochs" in text, "two turns of two epochs, both ways"
    assert "all 32 layers" in text
