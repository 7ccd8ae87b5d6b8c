"""Altered adapters against dense algebra of their ΔW, and the zoo that has them behind its own."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lorabench.ablation.altered import merged, noisy, regauged, rescaled, resized, stored, with_modules_missing
from lorabench.ablation.copies import copied_zoo
from lorabench.ablation.counterparts import check_counterpart, in_other
from lorabench.errors import LorabenchError
from tests.synthetic_zoo import deltas, make_zoo, with_layers

EVERY = {
    "regauged": lambda zoo, rng: regauged(zoo, rng, 10),
    "float16": lambda zoo, rng: stored(zoo, rng, "float16"),
    "int8": lambda zoo, rng: stored(zoo, rng, "int8"),
    "energy": lambda zoo, rng: resized(zoo, rng, energy=0.9),
    "share": lambda zoo, rng: resized(zoo, rng, share=0.5),
    "rescaled": lambda zoo, rng: rescaled(zoo, rng, 2),
    "missing": lambda zoo, rng: with_modules_missing(zoo, rng, 0.3),
    "merged": merged,
    "noisy": lambda zoo, rng: noisy(zoo, rng, 0.3),
}
UNTRAINED, ABSENT = 4, 5


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def zoo():
    """Ranks 1 to 3, scales of both signs; adapter 4 is all zero, and adapter 5 has no first module."""
    made = make_zoo(18)
    layers = {name: np.array(made.read(name)) for name in made.layers}
    rank, scale = made.rank.copy(), made.scale.copy()
    first = made.modules[0]
    for name, values in layers.items():
        values[UNTRAINED] = 0
        if name in (first.down, first.up):
            values[ABSENT] = 0
    rank[ABSENT, 0] = 0
    scale[::2] *= -1
    return replace(with_layers(made, layers), rank=rank, scale=scale)


def relabelled(zoo, **changes):
    return replace(zoo, labels=replace(zoo.labels, **changes))


def factors(zoo, number):
    module = zoo.modules[number]
    return zoo.read(module.down), zoo.read(module.up)


def numbers(zoo):
    return np.concatenate([zoo.read(name).reshape(len(zoo), -1) for name in zoo.layers], 1)


@pytest.mark.parametrize("name", EVERY)
def test_an_alteration_is_seeded_and_leaves_the_padding_empty(name, zoo):
    before = numbers(zoo)
    one, again, other = (EVERY[name](zoo, rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(numbers(zoo), before), "the zoo itself stays"
    assert np.array_equal(numbers(one), numbers(again))
    assert np.array_equal(one.rank, again.rank)
    drawn = name in ("regauged", "missing", "merged", "noisy")
    assert np.array_equal(numbers(one), numbers(other)) != drawn
    assert one.labels is zoo.labels
    assert np.isfinite(numbers(one)).all()
    for number in range(len(zoo.modules)):
        down, up = factors(one, number)
        for row, rank in enumerate(one.rank[:, number]):
            assert not down[row, rank:].any()
            assert not up[row, :, rank:].any()
    if name not in ("merged", "missing"):
        assert not numbers(one)[UNTRAINED].any()
        assert one.rank[ABSENT, 0] == 0


@pytest.mark.parametrize("condition", [1, 4, 100])
def test_another_gauge_keeps_the_product_and_mixes_the_true_rank(condition, zoo):
    altered = regauged(zoo, rng(), condition)
    assert np.array_equal(altered.rank, zoo.rank)
    for number, module in enumerate(zoo.modules):
        ours, theirs = deltas(altered, module.name), deltas(zoo, module.name)
        assert np.abs(ours - theirs).max() < 1e-5 * max(1, condition**0.5) * np.abs(theirs).max()
        ups = factors(zoo, number)[1].astype(np.float64), factors(altered, number)[1].astype(np.float64)
        conditions = []
        for row, rank in enumerate(zoo.rank[:, number]):
            if row == UNTRAINED or rank == 0:
                continue
            gauge = np.linalg.pinv(ups[0][row, :, :rank]) @ ups[1][row, :, :rank]
            assert not np.allclose(gauge, np.eye(rank), atol=1e-3) or rank == 1
            conditions.append(np.linalg.cond(gauge))
        assert max(conditions) <= condition * (1 + 1e-4)
        assert condition == 1 or max(conditions) > 1.2


def test_what_is_stored_is_rounded_as_said(zoo):
    layers = {name: np.array(zoo.read(name)) for name in zoo.layers}
    name = next(iter(layers))
    layers[name][0, 0, 0] = 1e6
    large = with_layers(zoo, layers)
    half = np.clip(layers[name], -65504, 65504).astype(np.float16).astype(np.float32)
    assert np.array_equal(stored(large, rng(), "float16").read(name), half)
    brain = torch.from_numpy(layers[name]).bfloat16().float().numpy()
    assert np.array_equal(stored(large, rng(), "bfloat16").read(name), brain)
    small = stored(zoo, rng(), "int8").read(name)
    for ours, theirs in zip(zoo.read(name).astype(np.float64), small, strict=True):
        step = np.abs(ours).max() / 127
        expected = np.rint(ours / step) * step if step else ours
        assert np.abs(expected - theirs).max() <= 1e-6 * np.abs(ours).max()
        assert len(np.unique(theirs)) <= 255


@pytest.mark.parametrize("options", [{"energy": 0.95}, {"energy": 0.8}, {"share": 0.5}, {"energy": 1.0}])
def test_a_resized_module_is_the_best_of_its_rank(options, zoo):
    altered = resized(zoo, rng(), **options)
    for number, module in enumerate(zoo.modules):
        before, after = deltas(zoo, module.name), deltas(altered, module.name)
        (old_down, old_up), (down, up) = factors(zoo, number), factors(altered, number)
        for row, rank in enumerate(zoo.rank[:, number]):
            left, sigma, right = np.linalg.svd(before[row])
            energy = np.cumsum(sigma**2) / max((sigma**2).sum(), 1e-30)
            by_energy = int((energy < options.get("energy", 1.0) - 1e-12).sum()) + 1
            wanted = max(1, min(by_energy, int(rank * options.get("share", 1.0))))
            if row == UNTRAINED or wanted >= rank:
                assert np.array_equal(down[row], old_down[row])
                assert np.array_equal(up[row], old_up[row])
                continue
            assert altered.rank[row, number] == wanted
            best = (left[:, :wanted] * sigma[:wanted]) @ right[:wanted]
            assert np.abs(after[row] - best).max() < 1e-5 * sigma[0]
            half = np.sqrt(sigma[:wanted] / abs(zoo.scale[row, number]))
            assert np.allclose(np.linalg.norm(down[row, :wanted], axis=1), half, rtol=1e-4)
            assert np.allclose(np.linalg.norm(up[row, :, :wanted], axis=0), half, rtol=1e-4)


def test_another_alpha_changes_the_scale_alone(zoo):
    altered = rescaled(zoo, rng(), 0.25)
    assert altered.layers == zoo.layers
    for module in zoo.modules:
        assert np.allclose(deltas(altered, module.name), deltas(zoo, module.name) / 4, rtol=1e-6)
    assert np.array_equal(rescaled(zoo, rng(), 1).scale, zoo.scale)


def test_a_share_of_the_modules_goes_whole(zoo):
    altered = with_modules_missing(zoo, rng(), 0.6)
    present, left = (zoo.rank > 0).sum(1), (altered.rank > 0).sum(1)
    assert np.array_equal(present - left, np.clip(np.round(0.6 * present), 1, present - 1))
    for number in range(len(zoo.modules)):
        gone = altered.rank[:, number] == 0
        assert 0 < gone.sum() < len(zoo)
        for ours, theirs in zip(factors(altered, number), factors(zoo, number), strict=True):
            assert not ours[gone].any()
            assert np.array_equal(ours[~gone], theirs[~gone])
    with pytest.raises(LorabenchError, match=r"^ablation\.missing: adapter0, .* of synthetic have a single module"):
        with_modules_missing(make_zoo(6, ((4, 4),)), rng(), 0.5)


def test_a_merged_adapter_is_the_average_with_one_of_another_category(zoo):
    altered = merged(zoo, rng())
    before = {module.name: deltas(zoo, module.name) for module in zoo.modules}
    category = zoo.labels.category
    for row in range(len(zoo)):
        fits = []
        for other in np.flatnonzero(category != category[row]):
            near = True
            for number, module in enumerate(zoo.modules):
                average = (before[module.name][row] + before[module.name][other]) / 2
                rank = max(zoo.rank[row, number], zoo.rank[other, number])
                left, sigma, right = np.linalg.svd(average)
                best = (left[:, :rank] * sigma[:rank]) @ right[:rank]
                near &= np.abs(deltas(altered, module.name)[row] - best).max() < 1e-5 * max(sigma[0], 1)
            fits.append(near)
        assert sum(fits) == 1
    alone = relabelled(zoo, category=np.zeros(len(zoo), np.int64))
    with pytest.raises(LorabenchError, match=r"^ablation\.merged: the 18 test adapters of synthetic are of one"):
        merged(alone, rng())


@pytest.mark.parametrize("share", [0.1, 0.5, 3])
def test_noise_moves_every_product_by_its_share(share, zoo):
    altered = noisy(zoo, rng(), share)
    for number, module in enumerate(zoo.modules):
        before, after = deltas(zoo, module.name), deltas(altered, module.name)
        known = np.linalg.norm(before, axis=(1, 2)) > 0
        moved = np.linalg.norm(after - before, axis=(1, 2))
        assert np.allclose(moved[known], share * np.linalg.norm(before[known], axis=(1, 2)), rtol=1e-4)
        assert not moved[~known].any()
        assert np.array_equal(altered.rank[:, number], zoo.rank[:, number])


def test_noise_of_zero_changes_nothing(zoo):
    assert np.array_equal(numbers(noisy(zoo, rng(), 0.0)), numbers(zoo))


@pytest.mark.parametrize("picked", [False, True], ids=["whole", "rows of another"])
def test_copies_stand_behind_the_zoo(picked, zoo):
    whole = zoo.rows(np.array([3, 1, 7, 2, 9, 12])) if picked else zoo
    rows = np.array([1, 4])
    own = whole.rows(rows)
    copies = {"louder": rescaled(own, rng(), 2), "noisy": noisy(own, rng(), 0.5)}
    wide = copied_zoo(whole, rows, copies)
    n = len(whole)
    assert len(wide) == n + 4
    for name in whole.layers:
        values = wide.read(name)
        assert np.array_equal(values[:n], whole.read(name))
        for k, copy in enumerate(copies.values()):
            assert np.array_equal(values[n + 2 * k : n + 2 * k + 2], copy.read(name))
            assert np.array_equal(wide.layers[name].read(n + 2 * k, n + 2 * k + 1)[0], copy.read(name)[0])
    assert np.array_equal(wide.scale[n : n + 2], 2 * whole.scale[rows])
    assert np.array_equal(wide.labels.category[n:], np.tile(whole.labels.category[rows], 2))
    assert wide.labels.adapters[n] == f"{whole.labels.adapters[1]} (louder)"
    others = {"louder": copies["louder"], "noisy": noisy(own, rng(1), 0.5)}
    prints = [copied_zoo(whole, rows, one).fingerprint for one in (copies, others)] + [whole.fingerprint]
    assert len(set(prints)) == 3
    assert wide.fingerprint == prints[0]


def test_adapters_of_another_zoo_are_found_by_their_names(zoo):
    order = np.array([8, 0, 3, 5, 11])
    other = rescaled(make_zoo(18, ranks=(1, 2)), rng(), 3).rows(order)
    check_counterpart(zoo, other)
    found = in_other(zoo.rows(np.array([0, 11, 5])), rng(), other)
    place = [1, 4, 3]
    for module in zoo.modules:
        assert np.allclose(deltas(found, module.name), deltas(other, module.name)[place])
    assert np.array_equal(found.rank, other.rank[place])
    assert found.labels.adapters == ("adapter0", "adapter11", "adapter5")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda zoo: zoo.without([next(iter(zoo.layers))]), "have other layers, unet.blocks.0.attn1.to_q.lora.down"),
        (lambda _: make_zoo(18, ((6, 5), (4, 7), (6, 9))), r"is \[3, 9\] in synthetic and \[3, 6\] in synthetic"),
        (lambda _: make_zoo(18, ranks=(4,)), "of no higher rank"),
        (lambda zoo: relabelled(zoo, category=1 - zoo.labels.category % 2), "another category"),
        (lambda zoo: relabelled(zoo, adapters=tuple("abcdefghijklmnopqr")), "has the name of"),
    ],
)
def test_a_zoo_that_is_no_counterpart_is_refused(change, said, zoo):
    with pytest.raises(LorabenchError, match=rf"^ablation\.other: .*{said}"):
        check_counterpart(zoo, change(zoo))
