"""The splits: whole, stratified, disjoint in groups, the same every time; and what they refuse."""

import subprocess
import sys

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.errors import LorabenchError
from lorabench.zoo import Labels
from lorabench.zoo.splits import Split, split_zoo


def make_labels(category, leaf=None, group=None, split=None) -> Labels:
    n = len(category)
    return Labels.of(
        [f"adapter {i}" for i in range(n)],
        [f"c{c:03d}" for c in category],
        [f"l{i:04d}" for i in (range(n) if leaf is None else leaf)],
        None if group is None else [f"g{g:04d}" for g in group],
        None if split is None else np.asarray(split, np.int64),
    )


def parts(split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return split.train, split.val, split.test


def is_partition(split: Split, rows: np.ndarray) -> bool:
    return np.array_equal(np.sort(np.concatenate(parts(split))), rows)


class_sizes = st.lists(st.integers(3, 40), min_size=2, max_size=6)
SHARES = (0.7, 0.1, 0.2)


@settings(deadline=None, max_examples=60)
@given(sizes=class_sizes, seed=st.integers(0, 1000), train=st.floats(0.2, 0.8), val=st.floats(0.1, 0.9))
def test_partition_and_stratification_within_rounding(sizes, seed, train, val):
    shares = np.array([train, (1 - train) * val, (1 - train) * (1 - val)])
    category = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    split = split_zoo(make_labels(category), "category", *shares, seed=seed)
    assert is_partition(split, np.arange(len(category)))
    for code, size in enumerate(sizes):
        counts = np.array([(category[part] == code).sum() for part in parts(split)])
        assert counts.min() >= 1
        # Within rounding, or a part was lifted to its one adapter at the cost of the others.
        lifted = np.maximum(1 - shares * size, 0).sum()
        assert (np.abs(counts - shares * size) < 1 + lifted).all()


@settings(deadline=None, max_examples=60)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_groups_stay_together_and_every_part_sees_every_class(data, seed):
    sizes = [data.draw(st.lists(st.integers(1, 6), min_size=3, max_size=12)) for _ in range(3)]
    category = np.concatenate([np.full(sum(groups), code) for code, groups in enumerate(sizes)])
    flat = [size for groups in sizes for size in groups]
    group = np.repeat(np.arange(len(flat)), flat)
    order = np.random.default_rng(seed).permutation(len(category))
    labels = make_labels(category[order], group=group[order])
    split = split_zoo(labels, seed=seed)
    assert is_partition(split, np.arange(len(category)))
    found = [set(group[order][part].tolist()) for part in parts(split)]
    assert sum(map(len, found)) == len(set.union(*found))
    for part in parts(split):
        assert set(labels.category[part]) == {0, 1, 2}


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000))
def test_groups_that_cross_classes_stay_together(seed):
    rng = np.random.default_rng(seed)
    group, category = rng.integers(0, 40, 300), rng.integers(0, 3, 300)
    split = split_zoo(make_labels(category, group=group), seed=seed)
    assert is_partition(split, np.arange(300))
    found = [set(group[part].tolist()) for part in parts(split)]
    assert sum(map(len, found)) == len(set.union(*found))
    largest = np.bincount(group).max()
    for part, share in zip(parts(split), SHARES, strict=True):
        assert abs(len(part) - 300 * share) <= 2 * largest
        assert set(category[part].tolist()) == {0, 1, 2}


def test_shares_are_exact_where_they_divide():
    split = split_zoo(make_labels(np.repeat(np.arange(10), 100)))
    assert [len(part) for part in parts(split)] == [700, 100, 200]


def test_the_seed_decides():
    labels = make_labels(np.repeat(np.arange(4), 25))
    first, again, other = split_zoo(labels, seed=3), split_zoo(labels, seed=3), split_zoo(labels, seed=4)
    for a, b in zip(parts(first), parts(again), strict=True):
        assert np.array_equal(a, b)
    assert not np.array_equal(first.test, other.test)


def test_no_row_is_favoured_over_many_seeds():
    labels = make_labels(np.repeat([0, 1], 10))
    tested = np.zeros(20)
    for seed in range(300):
        tested[split_zoo(labels, seed=seed).test] += 1
    # 300 draws of share 0.2: 60 ± 6.9; five deviations either way.
    assert tested.min() > 25
    assert tested.max() < 95


def test_another_hash_seed_gives_the_same_split():
    code = (
        "import numpy as np; from lorabench.zoo import Labels; from lorabench.zoo.splits import split_zoo;"
        "n = [str(i) for i in range(60)]; l = Labels.of(n, [i[-1] for i in n], n, [i[0] + i[-1] for i in n]);"
        "s = split_zoo(l, seed=5); print(s.train.tolist(), s.val.tolist(), s.test.tolist())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_leaves_stay_together_for_categories_and_are_stratified_for_leaves():
    leaf = np.repeat(np.arange(20), 10)
    labels = make_labels(leaf // 5, leaf=leaf, group=leaf)
    by_category, by_leaf = split_zoo(labels, "category"), split_zoo(labels, "leaf")
    assert not set(leaf[by_category.train]) & set(leaf[by_category.test])
    for part, count in zip(parts(by_leaf), (7, 1, 2), strict=True):
        assert np.array_equal(np.bincount(leaf[part]), np.full(20, count))


def test_authors_still_bind_when_leaves_are_the_target():
    leaf, author = np.tile(np.arange(4), 30), np.repeat(np.arange(30), 4)
    split = split_zoo(make_labels(leaf, leaf=leaf, group=author), "leaf")
    assert not set(author[split.train]) & set(author[split.test])
    assert set(leaf[split.val]) == set(range(4))


def test_the_sources_own_split_wins():
    own = np.tile([0, 2, 1, 0, 0], 8)
    split = split_zoo(make_labels(np.tile([0, 1], 20), split=own))
    for number, part in enumerate(parts(split)):
        assert np.array_equal(part, np.flatnonzero(own == number))


def test_what_the_source_lacks_is_cut_from_its_training_rows():
    own = np.repeat([0, 2], [160, 40])
    group = np.arange(200) // 2
    split = split_zoo(make_labels(group % 2, group=group, split=own))
    assert np.array_equal(split.test, np.flatnonzero(own == 2))
    assert is_partition(split, np.arange(200))
    assert len(split.val) == 160 // 8
    assert not set(group[split.train]) & set(group[split.val])
    without_test = split_zoo(make_labels(group % 2, split=np.repeat([0, 1], [180, 20])))
    assert np.array_equal(without_test.val, np.arange(180, 200))
    assert len(without_test.test) == 40


def test_a_source_of_one_split_is_split_here():
    split = split_zoo(make_labels(np.tile([0, 1], 50), split=np.zeros(100)))
    assert [len(part) for part in parts(split)] == [70, 10, 20]


def test_small_classes_are_left_out_on_request():
    category = np.repeat([0, 1, 2], [20, 20, 2])
    split = split_zoo(make_labels(category), min_per_class=3)
    assert is_partition(split, np.arange(40))


@pytest.mark.parametrize(
    ("knobs", "labels", "words"),
    [
        ({"train": 0.7, "val": 0.2, "test": 0.2}, make_labels([0, 1] * 9), ["train=0.7", "val=0.2", "sum to 1"]),
        ({"train": 0.8, "val": 0.0, "test": 0.2}, make_labels([0, 1] * 9), ["val=0.0", "above 0"]),
        ({}, make_labels([0] * 9), ["1 class", "'c000'", "at least 2"]),
        ({}, make_labels([0] * 9 + [1]), ["'c001'", "has 1 adapters", "3 are needed", "split.min_per_class=3"]),
        ({"target": "leaf"}, make_labels([0, 1] * 9), ["has 1 adapters", "18 classes are too small"]),
        (
            {},
            make_labels([0] * 9 + [1] * 9, group=[*range(9), *[9, 10] * 4, 9]),
            ["'c001'", "has 2 groups (9 adapters)", "3 are needed"],
        ),
        ({"min_per_class": 20}, make_labels([0] * 20 + [1] * 9), ["1 class", "of 2", "min_per_class=20"]),
        ({}, make_labels([0, 1] * 9, split=[1] * 9 + [2] * 9), ["no training rows"]),
        ({}, make_labels([0, 1, 0, 1, 2, 2], split=[0, 0, 1, 1, 2, 2]), ["'c002'", "no adapter to train on"]),
    ],
)
def test_what_cannot_be_split_is_named(knobs, labels, words):
    with pytest.raises(LorabenchError) as error:
        split_zoo(labels, **knobs)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("group", [[0] * 20, [0, 1] * 10, [0] * 10 + [1] * 10])
@pytest.mark.parametrize("target", ["category", "leaf"])
def test_groups_that_hold_too_much_are_never_torn(group, target):
    with pytest.raises(LorabenchError, match=r"has [12] groups \(\d+ adapters\)"):
        split_zoo(make_labels([0, 1] * 10, leaf=np.tile(np.arange(4), 5), group=group), target)


def test_a_sources_own_split_that_tears_a_group_is_refused_unless_allowed():
    own = np.repeat([0, 1, 2], [40, 20, 20])
    group = np.arange(80) // 2
    torn = group.copy()
    torn[[0, 79]] = 90
    labels = make_labels(np.tile([0, 1], 40), group=torn, split=own)
    assert split_zoo(make_labels(np.tile([0, 1], 40), group=group, split=own)).test.tolist() == list(range(60, 80))
    with pytest.raises(
        LorabenchError, match=r"^the data set's own split tears 1 group: '.*' \(train\) and '.*' \(test\)"
    ):
        split_zoo(labels)
    assert split_zoo(labels, allow_group_overlap=True).test.tolist() == list(range(60, 80))
    leaves = np.tile(np.arange(4), 20)
    by_leaf = make_labels(np.tile([0, 1], 40), leaf=leaves, group=leaves, split=own)
    assert len(split_zoo(by_leaf, "leaf").test) == 20, "groups that are the classes do not bind"


def test_a_torn_group_outside_the_rows_that_are_kept_does_not_matter():
    category = np.r_[np.tile([0, 1], 39), 2, 2]
    group = np.r_[np.arange(78), 90, 90]
    labels = make_labels(category, group=group, split=np.r_[np.repeat([0, 1, 2], [38, 20, 20]), 0, 2])
    with pytest.raises(LorabenchError, match="tears 1 group"):
        split_zoo(labels)
    assert len(split_zoo(labels, min_per_class=3).test) == 20


def test_without_groups_a_group_may_be_on_several_sides_and_classes_still_have_their_shares():
    category = np.repeat(np.arange(4), 50)
    labels = make_labels(category, group=np.repeat(np.arange(20), 10))
    split = split_zoo(labels, train=0.7, val=0.1, test=0.2, seed=42, grouped=False)
    assert [np.bincount(category[part]).tolist() for part in parts(split)] == [[35] * 4, [5] * 4, [10] * 4]
    assert labels.group is not None
    assert len(np.intersect1d(labels.group[split.train], labels.group[split.test])) > 10


def test_without_groups_a_sources_own_split_that_tears_one_is_taken():
    labels = make_labels([0, 0, 0, 1, 1, 1], group=[0, 0, 0, 1, 1, 1], split=[0, 1, 2, 0, 1, 2])
    assert split_zoo(labels, grouped=False).test.tolist() == [2, 5]


@settings(deadline=None, max_examples=40)
@given(count=st.integers(40, 3000), seed=st.integers(0, 100))
def test_without_strata_the_rows_are_those_of_datasets_train_test_split_twice(count, seed):
    labels = make_labels([0, 1] * (count // 2))
    split = split_zoo(labels, "category", 0.7, 0.099, 0.201, seed, grouped=False, stratified=False)
    rows = datasets.Dataset.from_dict({"row": list(range(count // 2 * 2))})
    outer = rows.train_test_split(test_size=0.3, seed=seed)
    inner = outer["test"].train_test_split(test_size=0.67, seed=seed)
    for found, theirs in zip(parts(split), (outer["train"], inner["train"], inner["test"]), strict=True):
        assert found.tolist() == sorted(theirs["row"])


def test_without_strata_what_the_source_lacks_is_cut_from_its_training_rows():
    labels = make_labels([0, 1] * 50, split=[0] * 80 + [2] * 20)
    split = split_zoo(labels, "category", 0.75, 0.15, 0.1, 3, grouped=False, stratified=False)
    assert split.test.tolist() == list(range(80, 100))
    assert is_partition(split, np.arange(100))
    assert len(split.val) == 14  # ⌈80 · 0.15 / 0.9⌉


def test_strata_cannot_go_while_groups_bind():
    with pytest.raises(LorabenchError, match=r"split\.stratified=false .* set split\.grouped=false too"):
        split_zoo(make_labels([0, 1] * 20), stratified=False)


def test_without_strata_a_class_that_is_not_trained_on_is_named():
    held_out = np.random.default_rng(0).permutation(40)[0]
    labels = make_labels([int(row == held_out) for row in range(40)])
    with pytest.raises(LorabenchError, match=r"class 'c001' has no adapter to train on .* a draw without strata"):
        split_zoo(labels, seed=0, grouped=False, stratified=False)
