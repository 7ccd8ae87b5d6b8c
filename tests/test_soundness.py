"""The check of a zoo: what it reads, what it calls a fault, and how the command says it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lorabench.evaluation.complexity import mean_effective_rank, picture_entropy, rank_complexity
from lorabench.evaluation.soundness import CLASSIFIERS, Reading, Soundness, judge, measure
from lorabench.zoo import Stack
from lorabench.zoo.__main__ import main
from tests.conftest import TINY_ZOO
from tests.synthetic_zoo import planted_zoo


def read(name: str, *accuracy: float) -> Reading:
    return Reading(name, dict(zip(CLASSIFIERS, map(float, accuracy), strict=True)))


GOOD = Soundness(
    dataset="z", adapters=870, categories=10, splits=3, chance=10.0, at_chance=17.0,
    readings=(
        read("pictures", 88, 91, 87), read("delta_pca", 60, 80, 79), read("flat", 9, 12, 15), read("recipe", 10, 10, 10)
    ),
)  # fmt: skip


def changed(name: str, *accuracy: float) -> Soundness:
    readings = tuple(read(name, *accuracy) if one.features == name else one for one in GOOD.readings)
    return replace(GOOD, readings=readings)


@pytest.mark.parametrize("shared", [True, False])
def test_a_zoo_with_headroom_and_without_confounds_is_sound(shared):
    found = judge(GOOD, shared)
    assert found.sound
    assert found.faults == found.unknown == ()


@pytest.mark.parametrize(
    ("name", "accuracy", "faults"),
    [
        ("pictures", (88, 89.9, 87), ["pictures read 89.9 % by the best classifier, 90 are needed"]),
        ("pictures", (91, 88, 85.9), ["pictures read 85.9 % by the MLP, 86 are needed"]),
        ("delta_pca", (60, 78.5, 79), []),
        ("delta_pca", (60, 78, 74), ["delta_pca reads 78.0 % by the best", "delta_pca reads 74.0 % by the MLP"]),
        ("flat", (9, 15, 17.5), ["flat reads 17.5 %, where chance ends at 17.0"]),
        ("flat", (30, 30, 15), []),
        ("recipe", (30, 10, 10), ["recipe reads 30.0 %, where chance ends at 17.0"]),
    ],
)
def test_faults_are_named_with_their_numbers(name, accuracy, faults):
    found = judge(changed(name, *accuracy), shared_start=False)
    assert len(found.faults) == len(faults)
    assert all(fault.startswith(start) for fault, start in zip(found.faults, faults, strict=True))
    assert found.sound is (not faults)


def test_factors_may_tell_where_the_start_is_shared():
    assert judge(changed("flat", 90, 90, 90), shared_start=True).sound


def test_what_is_not_known_is_not_called_sound():
    without = replace(GOOD, readings=GOOD.readings[1:])
    found = judge(without, shared_start=None)
    assert not found.faults
    assert len(found.unknown) == 2
    assert not found.sound


def test_a_recipe_that_tells_is_found_and_one_that_does_not_is_not():
    zoo = planted_zoo({}, count=150)
    same = {"steps": np.full(len(zoo), 60.0)}
    telling = {"pictures": 4.0 + 8 * zoo.labels.category}
    pictures = np.random.default_rng(0).standard_normal((len(zoo), 3, 3)).astype(np.float32)
    pictures[:, 0, 0] += 20 * zoo.labels.category
    readings = {}
    for key, recipe in {"same": same, "telling": telling}.items():
        labels = replace(zoo.labels, recipe=recipe)
        found = measure(replace(zoo, labels=labels, ceiling=Stack((pictures,))), splits=1)
        readings[key] = {one.features: one.best for one in found.readings}
        assert any(fault.startswith("recipe") for fault in found.faults) is (key == "telling")
    assert readings["same"]["recipe"] <= found.at_chance
    assert readings["telling"]["recipe"] > found.at_chance
    assert readings["same"]["pictures"] > 95


@pytest.mark.slow
def test_the_command_prints_a_table_a_zoo_and_fails_for_an_unsound_one(cache_dir: Path, capsys):
    words = ["check", "glyphs", "glyphs_independent", "--splits", "1", *TINY_ZOO]
    assert main(words) == 1, "80 adapters are too few"
    text = capsys.readouterr().out
    assert [line.split(":")[0] for line in text.splitlines() if "categories;" in line] == [
        "glyphs",
        "glyphs_independent",
    ]
    assert text.count("not sound: pictures read ") == 2
    assert main(["check", "glyphs", "--splits", "1", "--json", *TINY_ZOO]) == 1
    (zoo,) = json.loads(capsys.readouterr().out)["zoos"]
    assert zoo["sound"] is False
    assert zoo["chance"] == 10.0
    features = [reading["features"] for reading in zoo["readings"]]
    assert features == ["pictures", "delta_pca", "flat", "lengths", "recipe"]


def test_a_zoo_of_files_is_read_as_far_as_it_is_known(cache_dir: Path, tmp_path: Path, capsys):
    assert main(["export", "glyphs", str(tmp_path / "files"), *TINY_ZOO]) == 0
    assert main(["check", "folder", f"dataset.path={tmp_path / 'files'}", "--splits", "1"]) == 1
    text = capsys.readouterr().out
    assert "pictures" not in text
    assert "cannot be judged: what the adapters were trained on is not known" in text


@pytest.mark.parametrize("words", [["check"], ["check", "dataset.seed=1"], ["check", "glyphs", "--much"]])
def test_wrong_usage_is_told(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: " in capsys.readouterr().err


def test_effective_ranks_and_entropies_are_those_of_dense_matrices():
    zoo = planted_zoo({}, count=12, modules=2)
    expected = []
    for module in zoo.modules:
        down, up = zoo.read(module.down).astype(np.float64), zoo.read(module.up).astype(np.float64)
        share = np.linalg.svd(up @ down, compute_uv=False)[:, : down.shape[1]]
        share /= share.sum(1, keepdims=True)
        expected.append(np.exp(-(share * np.log(share)).sum(1)))
    np.testing.assert_allclose(mean_effective_rank(zoo), np.mean(expected, 0), rtol=1e-5)
    grey = np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 4, 4)
    pictures = np.concatenate([grey, np.full_like(grey, 0.3), np.where(grey > 0, 1, -1).astype(np.float32)])
    np.testing.assert_allclose(picture_entropy(pictures), [4, 0, 1])


@pytest.mark.parametrize("sign", [1, -1])
def test_ranks_that_go_with_the_pictures_are_found(sign):
    zoo = planted_zoo({}, count=80, modules=1)
    order = np.argsort(np.argsort(sign * mean_effective_rank(zoo)))
    pictures = np.full((80, 9, 9), -1, np.float32)
    for one, count in enumerate(order):
        pictures[one].flat[: count // 2] = 1
    found = rank_complexity(replace(zoo, ceiling=Stack((pictures,))), draws=200)
    assert found.rho * sign > 0.9
    assert -1 <= found.low < found.high <= 1
    assert found.low * sign > 0.5
    assert rank_complexity(zoo) is None
