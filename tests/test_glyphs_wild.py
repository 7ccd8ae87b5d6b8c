"""The wild zoo: recipes of their own that say nothing of the category; and zoos that keep steps of their training."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lorabench.conf_dir import conf_dir
from lorabench.errors import LorabenchError
from lorabench.representations.stats import Stats
from lorabench.zoo import Zoo, glyphs, glyphs_wild
from lorabench.zoo.glyph_model import Leaf, Training, patches, pretrain, train_loras
from lorabench.zoo.glyph_pictures import SIDE, draw_glyphs
from lorabench.zoo.glyphs_wild import moved_pictures

SHARED: dict[str, Any] = {
    "categories": "blocks", "init": "independent", "per_category": 3, "styles": 4, "pretrain_steps": 3,
    "pretrain_batch": 16, "batch_size": 2, "together": 64, "seed": 0,
}  # fmt: skip
WILD = {
    **SHARED, "rank": [1, 3], "steps": [2, 3], "learning_rate": [1e-3, 1e-2], "scale": [0.5, 2.0], "images": 8,
    "missing": 0.3, "training_seed": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn():
    return draw_glyphs("blocks", 4, 0)


@pytest.fixture(scope="module", autouse=True)
def _draw_once(drawn):
    with pytest.MonkeyPatch.context() as patch:
        for module in (glyphs, glyphs_wild):
            patch.setattr(module, "draw_glyphs", lambda *_: drawn)
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def zoo(cache) -> Zoo:
    return glyphs_wild.load("wild", cache, [1, 2], **WILD)


@pytest.fixture(scope="module")
def base(drawn):
    return pretrain(patches(drawn.pictures[:40].reshape(-1, SIDE, SIDE)), 20, 16, 0, lambda _: None)[0]


def test_every_adapter_has_a_recipe_of_its_own(zoo):
    recipe = zoo.labels.recipe
    assert {name: sorted(set(recipe[name])) for name in ("rank", "steps", "learning_rate", "scale")} == {
        name: sorted(map(float, WILD[name])) for name in ("rank", "steps", "learning_rate", "scale")
    }
    assert (recipe["images"].min(), recipe["images"].max()) == (1, 8)
    np.testing.assert_array_equal(recipe["samples"], 2 * recipe["steps"])
    np.testing.assert_array_equal(recipe["modules"], (zoo.rank > 0).sum(1))
    assert not recipe["shared_start"].any()
    there = zoo.rank > 0
    assert (zoo.rank == there * recipe["rank"][:, None]).all()
    np.testing.assert_array_equal(zoo.scale, np.where(there, recipe["scale"][:, None], 1))
    assert 0.15 < 1 - there.mean() < 0.45
    assert there.any(1).all()


def test_another_training_seed_draws_every_recipe_anew(zoo, tmp_path):
    again = glyphs_wild.load("wild", tmp_path, **{**WILD, "training_seed": 1})
    assert again.labels.adapters == zoo.labels.adapters
    ours, theirs = zoo.labels.recipe, again.labels.recipe
    for name in ("rank", "steps", "learning_rate", "scale", "images", "modules"):
        assert (ours[name] == theirs[name]).mean() < 0.9, name
    same = glyphs_wild.load("wild", tmp_path, **{**WILD, "training_seed": WILD["seed"]})
    for layer in zoo.layers:
        np.testing.assert_array_equal(same.read(layer), zoo.read(layer))


def test_ranks_are_padded_and_missing_modules_are_zero(zoo):
    for number, module in enumerate(zoo.modules):
        down, up = zoo.read(module.down), zoo.read(module.up)
        assert (down.shape[1], up.shape[2]) == (3, 3)
        for row, rank in enumerate(zoo.rank[:, number]):
            assert not down[row, rank:].any()
            assert not up[row, :, rank:].any()
            assert down[row, :rank].any(1).all()
            assert up[row, :, :rank].any() == (rank > 0)


def test_the_recipe_says_nothing_of_the_category():
    """By the χ² of each drawn quantity over 2,000 names; the draws need no training."""
    from scipy.stats import chi2_contingency

    names = tuple(f"{category}/U+{i:04X}" for category in ("braille", "arrows", "hebrew", "arabic") for i in range(500))
    wild = glyphs_wild.Wild(**WILD)
    found = glyphs_wild.Drawn.of(wild, names)
    category = np.repeat(np.arange(4), 500)
    for column in (found.rank, found.steps, found.learning_rate, found.scale, found.images, found.present[:, 5]):
        codes = np.unique(column, return_inverse=True)[1]
        table = np.zeros((4, codes.max() + 1))
        np.add.at(table, (category, codes), 1)
        assert chi2_contingency(table).pvalue > 1e-3
        assert table.sum(0).min() > 0.7 * len(names) * min(0.3, 1 / (codes.max() + 1)), "all values are drawn"


def test_the_pictures_of_an_adapter_are_all_different(drawn):
    for leaf in range(0, len(drawn), 97):
        for count in (1, 4, 9):
            found = moved_pictures(drawn.pictures[leaf], count, np.random.default_rng(leaf))
            assert len({picture.tobytes() for picture in found}) == count


def test_a_moved_picture_is_the_picture_moved(drawn):
    one = moved_pictures(drawn.pictures[5][:1], 9, np.random.default_rng(0))
    inner = {picture[1:-1, 1:-1].tobytes() for picture in one}
    wanted = {
        np.roll(drawn.pictures[5][0], move, (0, 1))[1:-1, 1:-1].tobytes()
        for move in ((a, b) for a in (-1, 0, 1) for b in (-1, 0, 1))
    }
    assert inner == wanted


def test_a_wild_zoo_is_the_same_again(zoo, cache, tmp_path):
    again = glyphs_wild.load("wild", tmp_path, [2, 1, 1], **{**WILD, "together": 5})
    for layer in zoo.layers:
        np.testing.assert_allclose(again.read(layer), zoo.read(layer), rtol=1e-3, atol=2e-4)
    assert glyphs_wild.load("wild", cache, [1, 2], **WILD).fingerprint == zoo.fingerprint


def test_representations_read_adapters_that_lack_modules(zoo):
    found = Stats(on="delta").transform(zoo, torch.device("cpu"))
    assert all(torch.isfinite(one).all() for one in found.values())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": []}, r"dataset\.rank=\[\]: a list of whole numbers from 1 to 32 is needed"),
        ({"images": 10}, r"dataset\.images=10: a whole number from 1 to 9 is needed"),
        ({"missing": 1}, r"dataset\.missing=1: a number from 0 and below 1 is needed"),
        ({"scale": [0]}, r"dataset\.scale=\[0\]: a list of numbers above 0"),
    ],
)
def test_wrong_arguments_are_named(wrong, message, tmp_path):
    with pytest.raises(LorabenchError, match=message):
        glyphs_wild.load("wild", tmp_path, **{**WILD, **wrong})


def test_the_configuration_is_the_loaders(tmp_path):
    own = yaml.safe_load((conf_dir() / "dataset" / "glyphs_wild.yaml").read_text())
    assert {"rank", "steps", "learning_rate", "scale", "images", "missing"} <= set(own)
    assert set(WILD) >= set(own) - {"defaults", "_target_", "name"}


# --- scale and kept steps while training ----------------------------------------------------------------------------


def test_a_scale_is_part_of_the_training_and_nothing_has_no_adapter(base, drawn):
    """The first step of Adam goes by the sign of the gradient, which no scale changes; the next ones do not."""
    leaves = [Leaf("a", patches(drawn.pictures[3])), Leaf("b", patches(drawn.pictures[9]))]
    scale = torch.full((4, 2, 4), 2.0)
    scale[1, 0, 2] = 0
    training = Training(rank=2, shared_down=False, steps=2, learning_rate=0.01, batch_size=2, seed=0)
    scaled = train_loras(base, leaves, training, lambda _: None, scale)
    plain = train_loras(base, leaves, training, lambda _: None)
    assert not scaled.up[1, 0, 2].any()
    assert scaled.up[1, 1, 2].any()
    ones = train_loras(base, leaves, training, lambda _: None, torch.ones(4, 2, 4))
    assert torch.equal(ones.up, plain.up)
    assert torch.equal(ones.down, plain.down)
    once = replace(training, steps=1)
    first, doubled = (train_loras(base, leaves, once, lambda _: None, by) for by in (None, 2 * torch.ones(4, 2, 4)))
    large = first.up.abs() > 0.009  # not so small that Adam's epsilon is seen
    assert large.float().mean() > 0.5
    assert torch.equal(first.up[large].sign(), doubled.up[large].sign())
    assert not torch.allclose(scaled.up[0], plain.up[0])


@pytest.mark.parametrize("keep", [(1, 2), (2,), ()])
def test_kept_steps_are_the_same_training_interrupted(base, drawn, keep):
    leaves = [Leaf("a", patches(drawn.pictures[3]))]
    training = Training(rank=2, shared_down=True, steps=3, learning_rate=0.01, batch_size=2, seed=0)
    whole = train_loras(base, leaves, training, lambda _: None)
    kept = train_loras(base, leaves, replace(training, keep_steps=keep), lambda _: None)
    assert torch.equal(whole.up, kept.up)
    assert tuple(kept.earlier) == keep
    for step, loras in kept.earlier.items():
        # from zero, an entry of up is moved by at most the rate a step
        assert 0 < loras.up.abs().max() <= 0.01 * step * 1.001
        assert not torch.equal(loras.up, kept.up)


def test_a_zoo_keeps_steps_as_stores_of_their_own(cache):
    settings = {**SHARED, "rank": 2, "steps": 3, "learning_rate": 0.01}
    whole = glyphs.load(name="plain", **settings, cache_dir=cache)
    kept = glyphs.load(name="plain", **settings, cache_dir=cache, keep_steps=[2, 1, 3])
    assert not whole.checkpoints
    assert kept.fingerprint == whole.fingerprint, "the finished adapters are the same"
    assert list(kept.checkpoints) == [1, 2]
    layer = kept.modules[0].up
    assert len({kept.fingerprint, *(one.fingerprint for one in kept.checkpoints.values())}) == 3
    assert all(set(one.labels.recipe["steps"]) == {step} for step, one in kept.checkpoints.items())
    few = kept.rows(np.array([4, 1])).only([layer])
    np.testing.assert_array_equal(few.checkpoints[2].read(layer), kept.checkpoints[2].read(layer)[[4, 1]])
    assert list(few.checkpoints[1].layers) == [layer]


def test_a_lost_step_is_made_again(cache):
    settings = {**SHARED, "rank": 2, "steps": 3, "learning_rate": 0.01, "name": "lost", "cache_dir": cache}
    first = glyphs.load(**settings, keep_steps=[1])
    (folder,) = cache.glob("zoos/lost-*-step1/zoo.json")
    folder.unlink()
    assert glyphs.load(**settings, keep_steps=[1]).checkpoints[1].fingerprint == first.checkpoints[1].fingerprint


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([4], r"dataset\.keep_steps=\[4\]: the training has 3 steps; give steps from 1 to 3"),
        ([0], r"dataset\.keep_steps=\[0\]: a list of whole numbers from 1 is needed, or null"),
        ([], r"dataset\.keep_steps=\[\]: a list"),
    ],
)
def test_steps_that_cannot_be_kept_are_named(cache, steps, message):
    with pytest.raises(LorabenchError, match=message):
        glyphs.load(name="plain", **SHARED, rank=2, learning_rate=0.01, cache_dir=cache, steps=3, keep_steps=steps)
