"""Features in a file: what members read of it, in which order, and what comes of it, against features in memory."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats

from lorabench.ablation.attribution import Attribution
from lorabench.classifiers import Member, Problem, as_it_is, fit_members
from lorabench.classifiers.mlp import MLP
from lorabench.classifiers.tuned import Tuned
from lorabench.data import UnitsOfFile, side_by_side, streamed
from lorabench.engines import Lightning, Stacked
from lorabench.errors import LorabenchError
from lorabench.evaluation import Arm
from lorabench.evaluation.memory import Room, together
from lorabench.representations.flat import Flat
from lorabench.representations.stats import Stats
from tests.small_study import SMALL, evaluator_of, study_of
from tests.synthetic_zoo import planted_zoo

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(does not have many workers|lightning_utilities|LeafSpec|callbacks used to create).*"
)

CPU = torch.device("cpu")
COUNT, WIDTHS = 403, {"a": 5, "b": 7, "c": 4}
COLUMNS = {"a": slice(0, 5), "b": slice(5, 12), "c": slice(12, 16)}
SIGNAL = {0: [0.0, 0.15, 0.3], 3: [0.2, 0.0, 0.1], 4: [0.1, 0.0, 0.1]}
SMALLEST = 2e-5
"""GB: less than the features of any zoo here."""


def features_of(seed=0):
    """Of three units; one feature is constant."""
    random = np.random.default_rng(seed)
    found = {unit: torch.from_numpy(random.normal(3, 2, (COUNT, f)).astype(np.float32)) for unit, f in WIDTHS.items()}
    found["b"][:, 2] = 1.5
    return found


@pytest.fixture
def rows():
    """Training rows, and the others."""
    order = torch.from_numpy(np.random.default_rng(1).permutation(COUNT))
    return order[:301], order[301:]


@pytest.fixture(params=[2**11, 2**13, 2**30], ids=["pools of a block", "pools", "one pool"])
def inputs(request, rows, tmp_path):
    """The file; the units come in another order than their columns."""
    coming = list(features_of().items())[::-1]
    with streamed(coming, COLUMNS, rows, tmp_path / "new", CPU, request.param) as opened:
        yield opened


@pytest.fixture(scope="module")
def zoo():
    return planted_zoo(SIGNAL, 240, modules=3)


def test_a_file_holds_what_memory_would_to_the_bit(inputs, rows):
    expected, columns = side_by_side(features_of(), rows[0], CPU)
    assert columns == COLUMNS
    units = UnitsOfFile(inputs, COLUMNS)
    assert list(units) == list(WIDTHS)
    assert torch.equal(torch.cat([units[unit] for unit in units], 1), expected)
    assert torch.equal(inputs.varies, (expected != 0).any(0))
    assert int((~inputs.varies).sum()) == 1


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_any_rows_are_found_in_it(inputs, rows, at_once):
    expected, _ = side_by_side(features_of(), rows[0], CPU)
    wanted = torch.from_numpy(np.random.default_rng(2).permutation(COUNT)[:90])
    found = torch.full((90, 16), torch.nan)
    for part, among in inputs.walk(wanted, at_once):
        found[among] = part
    assert torch.equal(found, expected[wanted])


@pytest.mark.parametrize("batch_size", [1, 8, 32, 1000])
def test_every_training_row_is_read_once_an_epoch(inputs, rows, batch_size):
    expected, _ = side_by_side(features_of(), rows[0], CPU)
    orders = []
    for epoch in (0, 1, 1):
        seen = []
        short = 0
        for part, adapters in inputs.pools(epoch, batch_size):
            assert torch.equal(part, expected[adapters])
            short += len(adapters) % batch_size != 0
            seen.append(adapters.clone())
        assert short <= 1  # so there are as many steps as without a file
        orders.append(torch.cat(seen))
        assert torch.equal(orders[-1].sort().values, rows[0].sort().values)
    assert torch.equal(orders[1], orders[2])
    assert torch.equal(orders[0], orders[1]) == (len(inputs.blocks(batch_size)) == 1)


def test_members_see_every_row_once_and_each_has_its_own_order(inputs, rows):
    labels = torch.zeros(1, COUNT, dtype=torch.int64)
    problem = Problem(inputs, labels, rows[0], rows[1], 2)
    orders = [torch.cat([pool.rows[pool.order] for pool in problem.pools(3, [5, 6, 5], 32)], 1)]
    seen = orders[0]
    assert torch.equal(seen.sort(1).values, rows[0].sort().values.expand(3, -1))
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])


def test_neighbours_in_the_file_are_strangers(rows, tmp_path):
    """However a zoo is sorted, a block is a draw of its training rows: no batch has one class alone."""
    train = rows[0].sort().values
    with streamed(features_of().items(), COLUMNS, (train, rows[1]), tmp_path, CPU, 2**11) as opened:
        sixths = [set((opened.rows[block.start : block.stop] // 68).tolist()) for block in opened.blocks(32)]
    assert all(len(found) >= 5 for found in sixths)


def test_the_file_is_gone_afterwards(rows, tmp_path):
    with streamed(features_of().items(), COLUMNS, rows, tmp_path, CPU, 2**11) as opened:
        assert not list(tmp_path.iterdir())  # it never had a name
    assert opened.file.closed


def test_a_full_disk_is_said_before_anything_is_computed(rows, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with (
        pytest.raises(LorabenchError, match="cache_dir=DIR"),
        streamed({}.items(), COLUMNS, rows, tmp_path, CPU, 2**11),
    ):
        pass


def accuracies(zoo, folder, memory_gb, seeds):
    evaluator = evaluator_of(zoo, folder, seeds, Stacked("cpu", memory_gb=memory_gb), factory=SHUFFLED)
    (found,) = evaluator.evaluate("flat", Flat(), [Arm("none", evaluator.everything)])
    assert evaluator.streams == (set() if memory_gb is None else {"flat"})
    return np.array([run.metrics["test_accuracy"] for run in found.runs])


SHUFFLED = functools.partial(MLP, hidden=[16], dropout=0.1, max_epochs=8, learning_rate=1e-2, batch_size=8)


@pytest.mark.slow
def test_accuracy_from_a_file_is_that_from_memory(zoo, tmp_path):
    """40 members each, of the same initial weights: the interval of the difference holds 0 and is narrow."""
    memory, file = (accuracies(zoo, tmp_path, gb, 40) for gb in (None, SMALLEST))
    assert 0.4 < memory.mean() < 0.95  # of 0.33 by chance
    assert not np.array_equal(memory, file)
    interval = scipy_stats.ttest_rel(file, memory).confidence_interval(0.95)
    assert interval.low < 0 < interval.high
    assert interval.high - interval.low < 0.04
    assert scipy_stats.levene(memory, file).pvalue > 0.05


def test_a_member_is_what_it_is_alone(zoo, tmp_path):
    arms = [Arm("none", tuple(zoo.layers))]
    engine = Stacked("cpu", memory_gb=SMALLEST)
    (both,) = evaluator_of(zoo, tmp_path / "a", 2, engine).evaluate("flat", Flat(), arms)
    second = replace(evaluator_of(zoo, tmp_path / "b", 2, engine), seeds=(1,))
    (alone,) = second.evaluate("flat", Flat(), arms)
    assert both.runs[1].history == alone.runs[0].history
    assert np.array_equal(both.test[1], alone.test[0])


def test_members_from_a_file_are_kept_apart_from_those_from_memory(zoo, tmp_path):
    arms = [Arm("none", tuple(zoo.layers))]
    counts = []
    for memory_gb in (None, SMALLEST, SMALLEST, 2 * SMALLEST, None):
        evaluator = evaluator_of(zoo, tmp_path, 2, Stacked("cpu", memory_gb=memory_gb))
        evaluator.evaluate("flat", Flat(), arms)
        counts.append((evaluator.trained, evaluator.taken))
    assert counts == [(2, 0), (2, 0), (0, 2), (2, 0), (0, 2)]


def test_arms_that_fit_are_trained_in_memory_and_their_numbers_stay(zoo, tmp_path):
    layers = list(zoo.layers)
    arms = [Arm(layer, (layer,)) for layer in layers]
    arms[2:2] = [Arm("none", tuple(layers)), Arm("nothing", ()), Arm("first", tuple(layers[1:]))]
    expected = evaluator_of(zoo, tmp_path / "a", 2).evaluate("flat", Flat(), arms)
    evaluator = evaluator_of(zoo, tmp_path / "b", 2, Stacked("cpu", memory_gb=2e-4))  # two layers at a time
    found = evaluator.evaluate("flat", Flat(), arms)
    assert evaluator.streams == {"flat"}
    assert [one.arm for one in found] == arms
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.units, ours.features, bool(ours.error)) == (theirs.units, theirs.features, bool(theirs.error))
        if len(ours.arm.layers) == 1:
            assert [run.history for run in ours.runs] == [run.history for run in theirs.runs]


def test_arms_are_put_together_as_memory_allows():
    room = Room(allowed=3 * 4 * 100 * 10, adapters=100, lanes=2)
    alone = [{name: 5} for name in "abc"]
    assert [one.arms for one in together(alone[:2], [True] * 2, room)] == [(0, 1)]
    assert [one.arms for one in together(alone, [True] * 3, room)] == [(0, 1), (2,)]
    everything = {"a": 5, "b": 5, "c": 5}
    found = together([everything, {}, *alone, everything], [False, True, True, True, True, True], room)
    assert [one.arms for one in found] == [(2, 3), (4,), (0, 5)]
    assert [one.pool_bytes is None for one in found] == [True, True, False]
    assert together([{}], [True], room) == []
    assert room.pool_bytes == 2048
    assert Room(0, 1, 1).pool_bytes == 1


def test_what_needs_all_features_says_so(zoo, tmp_path):
    tuned = functools.partial(Tuned, hidden=[8], dropout=0.0, max_epochs=1)
    evaluator = evaluator_of(zoo, tmp_path, 1, Stacked("cpu", memory_gb=SMALLEST), factory=tuned)
    with pytest.raises(LorabenchError, match=r"96 features of 240 adapters are read from a file.*classifier=mlp"):
        evaluator.evaluate("flat", Flat(), [Arm("none", evaluator.everything)])


def test_a_unit_larger_than_memory_is_refused_by_name(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr("lorabench.evaluation.evaluator.free_memory", lambda _device: 100_000)
    evaluator = evaluator_of(zoo, tmp_path, 1)
    with pytest.raises(LorabenchError, match=r"makes 16 numbers of unet.* of each of 240 adapters.*per_category"):
        evaluator.evaluate("flat", Flat(), [Arm("none", evaluator.everything)])


def test_gradients_are_attributed_to_units_of_a_file(zoo, tmp_path):
    evaluator = evaluator_of(zoo, tmp_path, 1, Stacked("cpu", memory_gb=1e-4))
    study = study_of(evaluator, {"flat": Flat}, ("flat", Flat))
    found = Attribution("flat", "val", 4).run(study).ablation
    assert evaluator.streams == {"flat"}
    assert sum(row.share for row in found.attribution.rows) == pytest.approx(1)


class Sum(torch.nn.Module):
    """No plain stack of layers."""

    def __init__(self, f, classes):
        super().__init__()
        self.one, self.two = torch.nn.Linear(f, classes), torch.nn.Linear(f, classes)

    def forward(self, x):
        return self.one(x) + self.two(x).tanh()


class Branched(MLP):
    def build(self):
        return Sum(self.in_features, self.n_classes)


def test_members_of_one_stack_share_what_is_read(rows, tmp_path):
    with streamed(features_of().items(), COLUMNS, rows, tmp_path, CPU, 2**13) as inputs:
        compare_stacks(inputs, rows)


def compare_stacks(inputs, rows):
    labels = (torch.arange(COUNT) % 3)[None]
    sets = (slice(None), torch.tensor([*range(0, 16, 2), *range(1, 16, 2)]))
    problem = Problem(inputs, labels, rows[0], rows[1][:60], 3, sets)
    factory = functools.partial(Branched, hidden=[], dropout=0.0, max_epochs=2, batch_size=16)
    members = [Member(seed, seed % 2) for seed in range(3)]
    stacked, alone = (fit_members(factory, problem, members, as_it_is, memory=memory) for memory in (10**9, 1))
    for ours, theirs in zip(stacked, alone, strict=True):
        assert len(ours.history) == 2
        assert torch.allclose(ours.logits, theirs.logits, atol=1e-5)


def test_columns_of_zeros_are_left_out_and_their_weights_stay():
    """Against the reference, which goes through all of them."""
    random = torch.Generator().manual_seed(0)
    x = torch.zeros(200, 2000)
    kept = torch.randperm(2000, generator=random)[:40].sort().values
    labels = torch.arange(200) % 3
    x[:, kept] = torch.randn(200, 40, generator=random) + labels[:, None] / 2
    part = torch.arange(1999, -1, -1)
    problem = Problem(x, labels[None], torch.arange(120), torch.arange(120, 160), 3, (slice(None), part))
    factory = functools.partial(MLP, hidden=[12], dropout=0.2, max_epochs=5)
    members = [Member(0), Member(1, 1)]
    assert torch.equal(problem.varying(0), kept)
    for ours, theirs in zip(
        *(e("cpu").fit(factory, problem, members, as_it_is) for e in (Stacked, Lightning)), strict=True
    ):
        first = factory(in_features=2000, n_classes=3, seed=ours.member.seed).network.state_dict()["0.weight"]
        order = torch.arange(2000) if ours.member.features == 0 else part
        still = ~torch.isin(order, kept)
        assert torch.equal(ours.state["0.weight"][:, still], first[:, still])
        assert torch.allclose(ours.state["0.weight"], theirs.state["0.weight"], atol=1e-5)
        assert torch.allclose(ours.logits, theirs.logits, atol=1e-4)
    assert Problem(x[:, :900], labels[None], problem.train, problem.val, 3).varying(0) is None
    assert Problem(x[:, kept].repeat(1, 50), labels[None], problem.train, problem.val, 3).varying(0) is None


def test_stats_of_a_file_that_is_read_anew_by_another_split(zoo, tmp_path):
    """Two evaluators of other training rows standardise by their own."""
    arms = [Arm("none", tuple(zoo.layers))]
    for seed in (0, 1):
        evaluator = evaluator_of(zoo, tmp_path, 1, Stacked("cpu", memory_gb=SMALLEST), factory=SMALL)
        split = replace(evaluator.split, train=evaluator.split.train[seed * 5 :])
        evaluator = replace(evaluator, split=split)
        (found,) = evaluator.evaluate("stats", Stats(), arms)
        assert found.runs[0].error is None
        assert (evaluator.trained, evaluator.taken) == (1, 0)
