"""The methods on dense ΔW against PEFT's own, by hand where the two differ, and whole merges against PEFT's."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorabench.adapters import Adapter, LoraModule
from lorabench.adapters.comparing.deviation import distance, stacked
from lorabench.adapters.merging.methods.dare_linear import target as dare_linear
from lorabench.adapters.merging.methods.dare_ties import target as dare_ties
from lorabench.adapters.merging.methods.magnitude_prune import target as magnitude_prune
from lorabench.adapters.merging.methods.ties import target as ties
from lorabench.adapters.merging.recipe import DENSE, METHODS, Recipe
from lorabench.adapters.merging.sparsify import drop, trim
from lorabench.adapters.merging.truncating import best_pair
from lorabench.adapters.merging.whole import merge
from lorabench.errors import LorabenchError
from tests.adapter_makers import LINEAR, dense, make_adapter, make_module

FEW = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**16)
densities = st.sampled_from([0.05, 0.2, 0.5, 0.77, 1.0])


@pytest.fixture(scope="module")
def theirs() -> ModuleType:
    """PEFT's `utils/merge_utils.py` alone: importing the whole of it takes seconds."""
    found = importlib.util.find_spec("peft")
    if found is None or found.origin is None:
        pytest.skip("PEFT is not installed")
    path = Path(found.origin).parent / "utils" / "merge_utils.py"
    spec = importlib.util.spec_from_file_location("peft_merge_utils", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def matrices(seed: int, count: int, shape: tuple[int, int] = (9, 14)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


@FEW
@given(seed=seeds, count=st.integers(1, 4), density=st.sampled_from([0.05, 0.2, 0.5, 0.77]), data=st.data())
def test_ties_and_pruning_are_those_of_peft(
    theirs: ModuleType, seed: int, count: int, density: float, data: st.DataObject
) -> None:
    by = data.draw(st.lists(st.floats(0.1, 3), min_size=count, max_size=count))
    deltas = matrices(seed, count)
    assert close(trim(deltas[0], density), theirs.magnitude_based_pruning(deltas[0], density))
    assert close(magnitude_prune(deltas, by, density), theirs.magnitude_prune(deltas, torch.tensor(by), density))
    assert close(ties(deltas, by, density), theirs.ties(deltas, torch.tensor(by), density))


@FEW
@given(seed=seeds, count=st.integers(1, 5), density=st.sampled_from([0.2, 0.5, 0.77]))
def test_signs_by_count_are_those_of_peft_but_where_as_many_disagree(
    theirs: ModuleType, seed: int, count: int, density: float
) -> None:
    deltas = matrices(seed, count)
    trimmed = [trim(delta, density) for delta in deltas]
    tied = sum(delta.sign() for delta in trimmed) == 0
    found = ties(deltas, [1.0] * count, density, "count")
    expected = theirs.ties(deltas, torch.ones(count), density, "frequency")
    assert close(found[~tied], expected[~tied])
    assert close(found[tied], ties(deltas, [1.0] * count, density, "total")[tied])


@FEW
@given(seed=seeds, density=st.sampled_from([0.2, 0.5, 0.77]))
def test_dare_is_that_of_peft_under_the_same_masks(theirs: ModuleType, seed: int, density: float) -> None:
    deltas, by, chosen = matrices(seed, 3), [0.7, 0.2, 1.5], [1, 2, 3]
    masks = [(drop(torch.ones(9, 14), density, one) > 0).float() for one in chosen]
    for ours, other in ((dare_linear, theirs.dare_linear), (dare_ties, theirs.dare_ties)):
        given_out = iter(masks)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "bernoulli", lambda *_, masks=given_out, **__: next(masks))
            expected = other(deltas, torch.tensor(by), density)
        assert close(ours(deltas, by, density, chosen), expected)


def test_ties_on_the_entries_of_a_small_example() -> None:
    first, second, third = (
        torch.tensor([[4.0, -3, 1, 0.5]]),
        torch.tensor([[2.0, 3, -5, 0]]),
        torch.tensor([[-1.0, 1, 2, 6]]),
    )
    # density 0.5 keeps 4, -3 | 3, -5 | 2, 6
    found = ties([first, second, third], [1, 1, 1], 0.5)
    assert found.tolist() == [[4.0, 0.0, -5.0, 6.0]]  # -3 and 3 cancel: no sign wins
    # all kept: sums 5, 1, -2, 6.5; of those that agree the mean
    found = ties([first, second, third], [1, 1, 1], 1.0)
    assert found.tolist() == [[3.0, 2.0, -5.0, 3.25]]
    # by count: + + -, - + +, + - +, + 0 +
    found = ties([first, second, third], [1, 1, 1], 1.0, "count")
    assert found.tolist() == [[3.0, 2.0, 1.5, 3.25]]
    # weights multiply after the election; a negative one turns its adapter round, 0 has no vote
    assert ties([first, second], [2, 0.5], 1.0).tolist() == [[4.5, 0.0, -2.5, 1.0]]
    assert ties([first, first], [1, -1], 1.0).tolist() == [[0.0, 0.0, 0.0, 0.0]]
    assert ties([first, second], [1, 0], 1.0).tolist() == first.tolist()
    assert ties([first], [-1], 1.0).tolist() == (-first).tolist()


def test_trimming_keeps_all_that_equal_the_smallest_kept_and_one_at_least() -> None:
    assert trim(torch.tensor([[2.0, -2, 1, 3]]), 0.5).tolist() == [[2.0, -2.0, 0.0, 3.0]]
    assert trim(torch.tensor([[2.0, -2.5, 1, 3]]), 0.01).tolist() == [[0.0, 0.0, 0.0, 3.0]]
    assert trim(torch.zeros(2, 2), 0.5).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_drop_is_seeded_keeps_its_share_and_the_mean() -> None:
    delta = torch.full((400, 500), 2.0)
    found = drop(delta, 0.3, 7)
    assert torch.equal(found, drop(delta, 0.3, 7))
    assert not torch.equal(found, drop(delta, 0.3, 8))
    assert float((found != 0).double().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(found.mean()) == pytest.approx(2.0, rel=0.02)
    assert torch.equal(drop(delta, 1.0, 7), delta)


@FEW
@given(seed=seeds, rows=st.integers(1, 12), cols=st.integers(1, 12), rank=st.integers(1, 14), true=st.integers(0, 12))
def test_the_best_pair_is_the_truncated_svd(seed: int, rows: int, cols: int, rank: int, true: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(rows, true, generator=generator) @ torch.randn(true, cols, generator=generator)
    before = delta.clone()
    down, up, predicted = best_pair(delta, rank)
    k = min(rank, rows, cols)
    assert (down.shape, up.shape) == ((k, cols), (rows, k))
    left, sigma, right = torch.linalg.svd(delta.double(), full_matrices=False)
    size = float(sigma.norm()) + 1e-30
    assert predicted == pytest.approx(float(sigma[k:].norm()), abs=1e-6 * size)
    best = left[:, :k] * sigma[:k] @ right[:k]
    assert float((up.double() @ down.double() - delta).norm()) == pytest.approx(
        float((best - delta).norm()), abs=1e-6 * size
    )
    assert torch.equal(delta, before)


@FEW
@given(
    seed=seeds,
    several=st.lists(
        st.tuples(st.integers(1, 9), st.sampled_from([-2.0, -1e-3, 0.0, 0.3, 1.0, 50.0])), min_size=1, max_size=3
    ),
    rank=st.integers(1, 9),
    shift=st.sampled_from([0.0, 1e-9, 1e-6, 1e-2, 1.0]),
)
def test_distances_are_the_dense_ones(seed: int, several: list[tuple[int, float]], rank: int, shift: float) -> None:
    terms = []
    for i, (width, factor) in enumerate(several):
        one = make_module(seed + i, width, (7, 11))
        terms.append((one.down.double(), one.up.double(), factor))
    down, up = stacked(terms)
    extra = make_module(seed + 9, rank, (7, 11))
    found = torch.cat([down, extra.down.double()]), torch.cat([up, shift * extra.up.double()], dim=1), 1.0
    apart, norm = distance(found, terms)
    expected = shift * float((extra.up.double() @ extra.down.double()).norm())
    size = float((up.norm(dim=0) * down.norm(dim=1)).sum()) + expected
    assert apart == pytest.approx(expected, rel=1e-4, abs=1e-13 * size)
    assert norm == pytest.approx(float((up @ down).norm()), rel=1e-6, abs=1e-13 * size)


@pytest.mark.parametrize("method", DENSE)
def test_whole_merges_cut_what_the_method_gives(method: str) -> None:
    a, b = make_adapter(1, [2, 3, 4], scale=0.5), make_adapter(2, [3, 1, 2], scale=-2.0)
    merged, report = merge([a, b], [3, 1], Recipe(method=method, density=0.6, seed=3))
    again, _ = merge([a, b], [3, 1], Recipe(method=method, density=0.6, seed=3))
    other, _ = merge([a, b], [3, 1], Recipe(method=method, density=0.6, seed=4))
    for row in report.modules:
        name = row.module
        found = dense(merged.modules[name])
        assert torch.equal(found, dense(again.modules[name]))
        assert torch.equal(found, dense(other.modules[name])) != method.startswith("dare")
        exact = 0.75 * dense(a.modules[name]) + 0.25 * dense(b.modules[name])
        assert row.from_sum == pytest.approx(float((found - exact).norm() / exact.norm()), rel=1e-5)
        assert row.rank == min(a.modules[name].rank + b.modules[name].rank, *a.modules[name].shape)
        if method in ("ties", "magnitude_prune"):
            function, by = (ties, [1.5, 0.5]) if method == "ties" else (magnitude_prune, [0.75, 0.25])
            target = function([dense(one.modules[name]).float() for one in (a, b)], by, 0.6).double()
            left, sigma, right = torch.linalg.svd(target, full_matrices=False)
            cut = left[:, : row.rank] * sigma[: row.rank] @ right[: row.rank]
            assert float((found - cut).norm()) <= 1e-5 * float(target.norm())
            assert row.measured == pytest.approx(float((found - target).norm() / target.norm()), abs=1e-6)
            assert row.predicted == pytest.approx(row.measured, abs=1e-6)


def test_every_adapter_and_every_module_has_its_own_mask() -> None:
    one = make_adapter(1, 3, names=(LINEAR,))
    a = replace(one, modules={LINEAR: one.modules[LINEAR], "unet.other": one.modules[LINEAR]})
    alone, _ = merge([a], recipe=Recipe(method="dare_linear", rank=100))
    twice, _ = merge([a, a], recipe=Recipe(method="dare_linear", rank=100))
    first = dense(alone.modules[LINEAR])
    assert not torch.allclose(first, dense(alone.modules["unet.other"]), atol=1e-3)
    assert not torch.allclose(first, dense(twice.modules[LINEAR]), atol=1e-3)


def test_the_mean_of_the_two_ties_is_plain_for_equal_weights() -> None:
    a, b = make_adapter(1, 2), make_adapter(2, 2)
    merged, _ = merge([a, b], [5, 5], Recipe(method="ties", density=1.0, rank=100))
    raw, _ = merge([a, b], [5, 5], Recipe(method="ties", density=1.0, rank=100, normalize=False))
    for name in merged.modules:
        target = ties([dense(one.modules[name]) for one in (a, b)], [1, 1], 1.0)
        assert float((dense(merged.modules[name]) - target).norm()) <= 1e-5 * float(target.norm())
        assert float((dense(raw.modules[name]) - 5 * target).norm()) <= 5e-5 * float(target.norm())


def test_what_is_too_large_to_be_dense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorabench.adapters.merging.clashing._MOST_ENTRIES", 50)
    for method in METHODS:
        if method not in DENSE:
            merge([make_adapter(1)], recipe=Recipe(method=method))
            continue
        with pytest.raises(
            LorabenchError, match=f"module {LINEAR}: its ΔW of 7x11 is too large.*--method svd or concat"
        ):
            merge([make_adapter(1)], recipe=Recipe(method=method))


def test_linear_averages_roots_of_weights_and_needs_equal_ranks() -> None:
    a, b = make_adapter(1, 3, scale=2.0), make_adapter(2, 3, scale=0.5)
    merged, report = merge([a, b], [0.9, -0.4], Recipe(method="linear", normalize=False))
    for row in report.modules:
        first, second = a.modules[row.module], b.modules[row.module]
        up = 1.8**0.5 * first.up.double() + 0.2**0.5 * second.up.double()
        down = 1.8**0.5 * first.down.double() - 0.2**0.5 * second.down.double()
        exact = 0.9 * dense(first) - 0.4 * dense(second)
        assert torch.allclose(dense(merged.modules[row.module]), up @ down, rtol=1e-5, atol=1e-5)
        assert row.measured == pytest.approx(float((up @ down - exact).norm() / exact.norm()), rel=1e-5)
        assert row.predicted == pytest.approx(row.measured, rel=1e-5)
    with pytest.raises(
        LorabenchError, match=rf"module {LINEAR} has rank 3 in made-1, 2 in made-2 .and 2 more.*Use --method svd"
    ):
        merge([a, make_adapter(2, 2)], recipe=Recipe(method="linear"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "combination", "options"),
    [
        ("concat", "cat", {}),
        ("svd", "svd", {"rank": 3}),
        ("linear", "linear", {}),
        ("ties", "ties_svd", {"rank": 5, "density": 0.6}),
        ("magnitude_prune", "magnitude_prune_svd", {"rank": 5, "density": 0.6}),
    ],
)
def test_real_peft_merges_the_same(method: str, combination: str, options: dict[str, float]) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(11, 7, bias=False), torch.nn.Conv2d(2, 6, 3))
    configs = [peft.LoraConfig(r=3, lora_alpha=alpha, target_modules=["0", "1"]) for alpha in (6, 1)]
    lora = peft.get_peft_model(model, configs[0], "first")
    lora.add_adapter("second", configs[1])
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    own = [_read(lora, name, alpha / 3) for name, alpha in (("first", 6), ("second", 1))]
    by = [0.7, 0.4]
    keys = {"rank": "svd_rank", "density": "density"}
    lora.base_model.add_weighted_adapter(
        ["first", "second"],
        by,
        "both",
        combination_type=combination,
        **{keys[key]: value for key, value in options.items()},
    )
    merged, _ = merge(own, by, Recipe(method=method, normalize=False, **options))
    for i, name in enumerate(("0", "1")):
        expected = lora.base_model.model[i].get_delta_weight("both").detach().flatten(1)
        assert torch.allclose(dense(merged.modules[name]).float(), expected, rtol=1e-4, atol=1e-5)


def _read(lora: torch.nn.Module, name: str, scale: float) -> Adapter:
    layers: Callable[[int], torch.nn.Module] = lambda i: lora.base_model.model[i]  # noqa: E731
    modules = {
        str(i): LoraModule(
            layers(i).lora_A[name].weight.detach().flatten(1).clone(),
            layers(i).lora_B[name].weight.detach().flatten(1).clone(),
            scale,
            kernel=(3, 3) if i else (),
        )
        for i in range(2)
    }
    return Adapter(Path(f"{name}.safetensors"), ("peft",), modules)
