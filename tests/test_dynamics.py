"""When the category becomes legible: a zoo whose early steps say nothing, and whose late ones do."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lorabench.ablation.dynamics import Dynamics, DynamicsFinding
from lorabench.errors import LorabenchError
from lorabench.findings import read_finding
from lorabench.pictures import house_style, save_picture
from lorabench.report.phases.dynamics import figures, sheets
from lorabench.representations.pca import PCA
from lorabench.representations.stats import Stats
from lorabench.sheet import sheets_text
from lorabench.zoo.splits import split_zoo
from tests.ablation_findings import an_ablation, as_json
from tests.small_study import SHARES, evaluator_of, study_of
from tests.synthetic_zoo import planted_zoo

TELLING = [0.0, 1.0, 2.0]


def trained_zoo():
    """Layer 0 tells the class from step 4 on, layer 3 when the adapters are finished; step 1 has noise alone."""
    early, late = planted_zoo({}, modules=2), planted_zoo({0: TELLING}, modules=2, seed=1)
    zoo = planted_zoo({0: TELLING, 3: TELLING}, modules=2, seed=2)
    recipe = {"steps": np.full(len(zoo), 9.0)}
    return replace(zoo, labels=replace(zoo.labels, recipe=recipe), checkpoints={4: late, 1: early, 9: early})


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    evaluator = evaluator_of(trained_zoo(), tmp_path_factory.mktemp("cache"), seeds=1)
    splits = {seed: split_zoo(evaluator.zoo.labels, **SHARES, seed=seed) for seed in (1, 2, 3)}
    study = replace(
        study_of(evaluator), others=[replace(evaluator, split=split, seeds=(seed,)) for seed, split in splits.items()]
    )
    return study, Dynamics(name="dynamics").run(study)


def test_a_layer_is_legible_from_the_step_at_which_it_was_planted(found):
    study, findings = found
    told = findings.ablation
    assert told.steps == [1, 4, 9]
    assert [(one.name, one.legible) for one in told.representations] == [("stats", 4)]
    assert [one.legible for one in told.layers] == [4, None, None, 9]
    assert [one.name for one in told.layers] == list(study.zoo.layers)
    telling = told.layers[0].accuracy
    assert telling[0].mean < 0.5 < 0.8 < min(telling[1].mean, telling[2].mean)
    assert all(one.low <= one.mean <= one.high for one in telling)
    assert all(one.accuracy[2].n == 4 for one in told.layers)
    (row,) = findings.summary
    assert row.test_accuracy.mean == pytest.approx(told.representations[0].accuracy[-1].mean)


def test_the_same_splits_and_seeds_read_every_step(found):
    """What the phase says of a step is what a study of that step's adapters alone says."""
    study, findings = found
    for number, step in enumerate((1, 4)):
        alone = study_of(replace(study.evaluator, zoo=study.zoo.checkpoints[step]))
        others = [replace(one, zoo=study.zoo.checkpoints[step]) for one in study.others]
        accuracies = [
            run.metrics["test_accuracy"]
            for one in (alone.evaluator, *others)
            for run in one.evaluate("stats", Stats(), [alone.all_layers()])[0].runs
        ]
        assert findings.ablation.representations[0].accuracy[number].mean == pytest.approx(np.mean(accuracies))


def test_the_table_and_the_picture_say_when(found, tmp_path):
    told = found[1].ablation
    result = replace(an_ablation("layers", "glyphs-12"), ablation=told)
    text = sheets_text(sheets(result, told))
    rows = [line.split() for line in text.splitlines()]
    assert next(row for row in rows if row[:1] == ["stats"])[-1] == "4"
    order = [row[-1] for row in rows if row and row[0].startswith("unet.")]
    assert order == ["4", "9", "–", "–"], "first those that are legible first"
    with house_style():
        drawn = save_picture(figures(result, told)["dynamics"](), tmp_path / "dynamics.png")
    with Image.open(drawn) as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20


def test_what_failed_is_a_dash_and_says_why(found):
    told: DynamicsFinding = found[1].ablation
    gone = replace(told.layers[0], accuracy=[None, *told.layers[0].accuracy[1:]], legible=None, error="it is constant")
    broken = replace(told, layers=[gone], representations=[replace(gone, name="pca", accuracy=[None] * 3)])
    result = replace(an_ablation("layers", "glyphs-12"), ablation=broken)
    assert "pca failed: it is constant" in sheets_text(sheets(result, broken))
    with house_style():
        figures(result, broken)["dynamics"]().canvas.draw()


class Broken(Stats):
    """Cannot be made."""

    def features(self, *_):
        raise LorabenchError("it is broken")


def test_the_others_are_told_of_where_one_fails(tmp_path):
    study = study_of(evaluator_of(trained_zoo(), tmp_path), {"stats": Stats, "broken": Broken})
    told = Dynamics(name="dynamics").run(study).ablation
    fine, broken = told.representations
    assert (fine.error, fine.legible) == (None, 4)
    assert (broken.error, broken.legible) == ("it is broken", None)


def test_a_zoo_without_kept_steps_is_told_what_to_give(tmp_path):
    study = study_of(evaluator_of(planted_zoo({}, 60, modules=1), tmp_path))
    with pytest.raises(LorabenchError, match=r"planted has none before the last step: give dataset.keep_steps="):
        Dynamics(name="dynamics").run(study)


def test_layers_are_read_by_what_reads_layers(tmp_path):
    study = study_of(evaluator_of(trained_zoo(), tmp_path), baseline=("pca", lambda: PCA(scope="all", components=2)))
    with pytest.raises(LorabenchError, match=r"reads layer by layer, and pca describes whole adapters: put .* stats"):
        Dynamics(name="dynamics").run(study)


def test_the_finding_comes_back_from_json(found):
    assert read_finding(as_json(found[1].ablation)) == found[1].ablation
