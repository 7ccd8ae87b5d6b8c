"""Numbers of the recipe as targets: their classes, errors and controls, against scikit-learn and by hand."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyRegressor
from sklearn.metrics import mean_absolute_error, r2_score

from lorabench.ablation.none import NoAblation
from lorabench.classifiers import expected_values, number_scores
from lorabench.errors import LorabenchError
from lorabench.evaluation.chance import constant_scores
from lorabench.report import table_text
from lorabench.representations.stats import Stats
from lorabench.results import read_result
from lorabench.zoo import Labels
from lorabench.zoo.export import export
from lorabench.zoo.splits import Split, split_zoo
from lorabench.zoo.targets import find_target, follows
from tests.adapter_folders import load_folder
from tests.small_study import evaluator_of, run, study_of
from tests.synthetic_zoo import make_zoo, planted_zoo


def labels_with(**recipe: object) -> Labels:
    count = len(next(iter(recipe.values())))
    names = [f"adapter{i}" for i in range(count)]
    columns = {name: np.array(column, np.float64) for name, column in recipe.items()}
    return Labels.of(names, ["c"] * count, names, recipe=columns)


def test_classes_of_a_number_are_its_values_in_order():
    found = find_target(labels_with(steps=[40, 20, 20, 80]), "steps")
    assert (found.names, found.codes.tolist(), found.unit) == (("20", "40", "80"), [1, 0, 0, 2], "steps")
    np.testing.assert_array_equal(found.values, [20, 40, 80])
    rates = find_target(labels_with(rate=[1e-3, 1e-2, 4e-3]), "rate")
    assert rates.unit == "log2 rate"
    np.testing.assert_allclose(rates.values, np.log2([1e-3, 4e-3, 1e-2]))
    assert find_target(labels_with(images=[0, 1, 20]), "images").unit == "images", "0 has no logarithm"
    near = find_target(labels_with(alpha=[1.0000001, 1.0000002]), "alpha")
    assert near.names == ("1.0000001", "1.0000002"), "classes have names of their own"
    category = find_target(labels_with(steps=[1, 2]), "category")
    assert category.values is None


@pytest.mark.parametrize(
    ("column", "target", "said"),
    [
        ([1, 2], "stepz", r"^target=stepz: allowed are category, leaf, steps$"),
        (range(51), "steps", r"^target=steps: 51 distinct values, and 50 are the most"),
        ([1, np.nan], "steps", r"^target=steps: adapter1 has no finite number"),
    ],
)
def test_what_cannot_be_predicted_is_named(column, target, said):
    with pytest.raises(LorabenchError, match=said):
        find_target(labels_with(steps=list(column)), target)


def test_a_constant_recipe_is_no_target():
    with pytest.raises(LorabenchError, match=r"^target=steps: 1 class left, \['40'\].*or another target\.$"):
        split_zoo(labels_with(steps=[40] * 9), "steps")


def test_splits_of_a_number_are_stratified_by_it_and_keep_groups():
    labels = replace(labels_with(steps=np.tile([10, 20], 60)), group=np.arange(120) // 4)
    split = split_zoo(labels, "steps", train=0.5, val=0.25, test=0.25)
    parts = (split.train, split.val, split.test)
    assert not any(set(labels.group[a]) & set(labels.group[b]) for a in parts for b in parts if a is not b)
    assert all(0.4 <= np.mean(labels.recipe["steps"][part] == 10) <= 0.6 for part in parts)


def test_errors_of_the_expected_number_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    values, true = np.array([1.0, 2.0, 4.0, 8.0]), rng.integers(0, 4, 50)
    logits = rng.normal(size=(50, 4)).astype(np.float32) * 3
    shares = np.exp(logits.astype(np.float64))
    by_hand = (shares / shares.sum(1, keepdims=True)) @ values
    said = expected_values(torch.from_numpy(logits), torch.from_numpy(values))
    np.testing.assert_allclose(said, by_hand, rtol=1e-6)
    found = number_scores(said, torch.from_numpy(values[true]))
    assert found["mae"].item() == pytest.approx(mean_absolute_error(values[true], by_hand))
    assert found["r2"].item() == pytest.approx(r2_score(values[true], by_hand))
    same = number_scores(said, torch.full_like(said, 2.0))
    assert np.isnan(same["r2"].item())
    assert same["mae"].item() == pytest.approx(np.abs(by_hand - 2).mean())


def test_the_best_constant_is_that_of_scikit_learn():
    numbers = np.random.default_rng(1).choice([1.0, 2.0, 8.0], 60)
    split = Split(np.arange(40), np.arange(40, 45), np.arange(45, 60))
    train, test = numbers[split.train], numbers[split.test]
    mae, r2 = constant_scores(numbers, split)
    median, mean = (DummyRegressor(strategy=how).fit(train, train).predict(test) for how in ("median", "mean"))
    assert mae == pytest.approx(mean_absolute_error(test, median))
    assert r2 == pytest.approx(r2_score(test, mean))


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([1, 1, 2, 2], True),  # the target itself
        ([8, 8, 16, 16], True),  # samples = steps x batch
        ([1, 0, 0, 2], True),  # the rank of a module, where it is there
        ([3, 3, 3, 3], False),  # says nothing
        ([1, 0, 1, 0], False),  # presence
        ([1, 2, 2, 1], False),
        ([0, 0, 1, 1], True),
    ],
)
def test_what_follows_from_the_target(column, expected):
    assert follows(np.array(column, np.float64), np.array([0, 0, 1, 1])) is expected


def planted_steps(seed=0):
    """A zoo whose layers shift with the number of steps; its recipe has what follows from it, and what does not."""
    zoo = planted_zoo({0: [0.0, 3.0, 6.0]}, count=120, modules=2, seed=seed)
    steps = np.array([10.0, 20.0, 80.0])[zoo.labels.category]
    rate = np.random.default_rng(3).choice([0.1, 0.2], len(zoo))
    recipe = {"steps": steps, "samples": 4 * steps, "rate": rate}
    category = np.random.default_rng(5).integers(0, 3, len(zoo))
    return replace(zoo, labels=replace(zoo.labels, category=category, recipe=recipe))


def of_steps(zoo, folder, values=None, name="steps"):
    target = find_target(zoo.labels, name)
    split = split_zoo(zoo.labels, name, train=0.5, val=0.25, test=0.25)
    evaluator = evaluator_of(zoo, folder, split=split, values=target.values if values is None else values)
    return replace(evaluator, labels=target.codes)


def test_a_planted_number_is_read_and_the_recipe_without_it_is_not(tmp_path):
    study = study_of(of_steps(planted_steps(), tmp_path))
    found = NoAblation(name="none", controls=True).run(study)
    (row,) = found.summary
    values, split, labels = study.evaluator.values, study.evaluator.split, study.evaluator.labels
    assert row.test_accuracy.mean > 0.8
    assert row.test_mae.mean < 0.5 * constant_scores(values[labels], split)[0]
    assert row.test_r2.mean > 0.7
    controls = {one.name: one for one in found.ablation.controls.rows}
    assert controls["recipe"].text.endswith("but steps, samples")
    assert controls["recipe"].accuracy.mean < 0.6
    assert "ceiling" not in controls


@pytest.mark.parametrize("name", ["scale", "modules"])
def test_missing_modules_do_not_tell_the_recipe_control_what_it_may_not_know(name, tmp_path):
    """A missing module has a scale in the store, which says nothing; and each module is a part of their number."""
    zoo, rng = planted_zoo({}, count=120, modules=3), np.random.default_rng(0)
    there, scale = rng.random(zoo.rank.shape) < 0.6, rng.choice([0.5, 2.0, 4.0], len(zoo))
    there[:, 0] = True
    recipe = {"scale": scale, "modules": there.sum(1).astype(np.float64)}
    zoo = replace(
        zoo, rank=np.where(there, zoo.rank, 0), scale=np.where(there, scale[:, None], 1).astype(np.float32),
        labels=replace(zoo.labels, recipe=recipe),
    )  # fmt: skip
    found = NoAblation(name="none", controls=True).run(study_of(of_steps(zoo, tmp_path, name=name)))
    (row,) = [one for one in found.ablation.controls.rows if one.name == "recipe"]
    what = ("scale",) if name == "scale" else ("rank", "scale", "presence")
    left_out = {f"{part} of {module.name}" for part in what for module in zoo.modules}
    assert set(row.text.partition("but ")[2].split(", ")) == {name, *left_out}
    assert row.accuracy.mean < 0.75


def test_members_of_another_scale_are_other_members(tmp_path):
    zoo = planted_steps()
    first, again, other = (of_steps(zoo, tmp_path, values) for values in (None, None, np.arange(3.0)))
    rows = [one.evaluate("stats", Stats(), [study_of(one).all_layers()])[0].runs for one in (first, again, other)]
    assert (first.trained, again.trained, other.trained) == (2, 0, 2)
    assert rows[0] == rows[1]
    assert [run.metrics["test_mae"] for run in rows[2]] != [run.metrics["test_mae"] for run in rows[0]]
    assert [run.metrics["test_accuracy"] for run in rows[2]] == [run.metrics["test_accuracy"] for run in rows[0]]


# --- a folder -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Exported adapters whose number of steps shows in their weights, with a column of remarks beside."""
    root = tmp_path_factory.mktemp("zoo")
    zoo = make_zoo(count=24, ranks=(2,))
    labels = replace(zoo.labels, recipe={"steps": np.array([10.0, 20.5, 80.0])[zoo.labels.category]})
    file = export(replace(zoo, labels=labels), root / "out", "diffusers")
    rows = list(csv.DictReader(file.read_text().splitlines()))
    with file.open("w", newline="") as written:
        writer = csv.DictWriter(written, [*rows[0], "remark"])
        writer.writeheader()
        writer.writerows({**row, "remark": f"trained at {i}" if i else "7"} for i, row in enumerate(rows))
    return root / "out"


def test_columns_of_numbers_come_back_as_the_recipe(folder, tmp_path):
    zoo = load_folder(folder, tmp_path)
    assert list(zoo.labels.recipe) == ["steps"]
    assert sorted(set(zoo.labels.recipe["steps"].tolist())) == [10.0, 20.5, 80.0]


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|LeafSpec).*")
def test_a_run_on_a_number_says_its_errors_beside_the_best_constant(folder, tmp_path):
    words = ["dataset=folder", f"dataset.path={folder}", f"cache_dir={tmp_path / 'cache'}", "target=steps"]
    words += ["representation=stats", "num_runs=2", "classifier.hidden=[8]", "classifier.max_epochs=3"]
    result = run(tmp_path / "run", *words, "split.train=0.5", "split.val=0.25", "split.test=0.25")
    assert (result.target, result.classes) == ("steps", ["10", "20.5", "80"])
    assert (result.numbers.unit, result.numbers.values) == ("steps", [10.0, 20.5, 80.0])
    stored = read_result(tmp_path / "run" / "results.json")
    assert stored == result
    (row,) = result.summary
    assert row.test_mae.n == row.test_r2.n == 2
    text = table_text(result)
    assert f"{row.test_mae.mean:.2f} ± {row.test_mae.std:.2f}" in text
    assert f"{result.numbers.constant_mae:.2f}" in next(
        line for line in text.splitlines() if "the best constant" in line
    )
    assert "in steps" in text
