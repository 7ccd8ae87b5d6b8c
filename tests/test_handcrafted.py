"""Hand-crafted features against numpy and scipy, on odd shapes, sizes and ranks, and on degenerate input.

Accuracy asked for: 1e-4 relative plus 1e-6 of the largest value of the same kind in the matrix.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.errors import LorabenchError
from lorabench.representations import handcrafted
from lorabench.representations.coupling import Coupling, coupling
from lorabench.representations.delta_spectral import DeltaSpectral
from lorabench.representations.distribution import Distribution
from lorabench.representations.ensemble import Ensemble
from lorabench.representations.frequency import Frequency
from lorabench.representations.handcrafted import LARGEST_RATIO, HandCrafted
from lorabench.representations.health import Health
from lorabench.representations.information import Information
from lorabench.representations.matrices import DeltaMatrices, FactorMatrices
from lorabench.representations.norms import Norms
from lorabench.representations.spectral import Spectral
from lorabench.representations.stats import Stats
from lorabench.zoo import Labels, Module, Stack, Zoo

CPU = torch.device("cpu")
CONF = Path(__file__).parents[1] / "conf"
MODULE, DOWN, UP = "m", "m.lora.down.weight", "m.lora.up.weight"
KINDS: tuple[type[HandCrafted], ...] = (Stats, Spectral, Norms, Distribution, Frequency, Information)
LENGTHS = {Stats: 7, Spectral: 32, Norms: 7, Distribution: 12, Frequency: 14, Information: 2}
Rows = np.ndarray


def make_ensemble(on: str = "factors") -> Ensemble:
    parts = {kind.__name__.lower(): kind(on) for kind in (Spectral, Norms, Distribution, Frequency, Information)}
    return Ensemble(on, parts)


def of(kind: HandCrafted, *matrices: Rows) -> Rows:
    """Features of equally shaped matrices, as the zoo gets them."""
    values = torch.from_numpy(np.stack(matrices).astype(np.float32))
    return handcrafted.to_float32(kind.compute(FactorMatrices(values))).numpy()


# ---------------------------------------------------------------- what numpy and scipy say, one matrix at a time


def padded(values: Rows, length: int) -> Rows:
    return np.concatenate([values[:length], np.zeros(max(0, length - len(values)))])


def want_shape(x: Rows) -> tuple[float, float]:
    if np.ptp(x) == 0:
        return 0.0, 0.0
    return float(scipy.stats.skew(x, axis=None)), float(scipy.stats.kurtosis(x, axis=None))


def want_stats(x: Rows) -> Rows:
    return np.array([x.mean(), x.std(), np.median(x), x.min(), x.max(), *want_shape(x)])


def want_spectral(x: Rows, values: int | None = None) -> Rows:
    sigma = np.linalg.svd(x, compute_uv=False)
    sigma = sigma if values is None else padded(sigma, values)
    # What float64 arithmetic leaves of an exact zero.
    sigma = np.where(sigma < 1e-12 * sigma[0], 0.0, sigma)
    if sigma[0] == 0:
        return np.zeros(32)
    share = sigma / sigma.sum()
    gaps = np.array([1 - low / high if high > 0 else 0.0 for high, low in pairwise(sigma[:10])])
    entropy = -sum(p * math.log(p) for p in share if p > 0)
    condition = sigma[0] / sigma[-1] if sigma[-1] > 0 else math.inf
    summary = [math.exp(entropy), min(condition, 2.0**23), sigma.sum()]
    return np.concatenate([padded(sigma, 10), padded(share, 10), padded(gaps, 9), summary])


def want_health(x: Rows, rank: int) -> Rows:
    sigma = padded(np.linalg.svd(x, compute_uv=False), rank)
    if sigma[0] == 0:
        return np.zeros(7)
    share, energy = sigma / sigma.sum(), sigma**2
    effective = math.exp(-sum(p * math.log(p) for p in share if p > 0))
    most = int(np.searchsorted(energy.cumsum() / energy.sum(), 0.9 - 1e-12) + 1)
    condition = sigma[0] / sigma[-1] if sigma[-1] > 0 else LARGEST_RATIO
    stable = energy.sum() / energy[0]
    return np.array([effective, effective / rank, stable, most, condition, sigma[0], np.linalg.norm(x)])


def want_norms(x: Rows) -> Rows:
    norms = [float(np.linalg.norm(x, order)) for order in ("fro", "nuc", 2, 1, np.inf)]
    return np.array([*norms, norms[1] / norms[0], norms[2] / norms[0]])


def want_distribution(x: Rows) -> Rows:
    quantiles = np.quantile(x, [0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95])
    deviation = np.abs(x - x.mean()).mean()
    variation = min(x.std() / abs(x.mean()), 2.0**23)
    return np.array([*quantiles, scipy.stats.iqr(x), deviation, variation, *want_shape(x)])


def want_frequency(x: Rows) -> Rows:
    magnitudes = np.abs(np.fft.fft2(x)).ravel()
    top = padded(np.sort(magnitudes)[::-1], 10)
    energy = (top**2).sum() / (magnitudes**2).sum()
    return np.array([*top, magnitudes.mean(), magnitudes.std(), magnitudes.max(), energy])


def want_information(x: Rows) -> Rows:
    counts = np.histogram(x, bins=50)[0]
    entropy = float(scipy.stats.entropy(counts))
    return np.array([entropy, entropy / math.log(50)])


def same(found: Rows, expected: Rows, size: float = 0.0, rtol: float = 1e-4) -> None:
    """Raise unless equal to `rtol` plus 1e-6 of `size`."""
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-6 * size)


def same_spectral(found: Rows, expected: Rows) -> None:
    """σ, shares and summaries as they are; gaps and condition as far as float32 knows σ relative to σ₁."""
    same(found[:10], expected[:10], expected[0])
    same(found[10:20], expected[10:20], 1.0)
    same(found[20:29] * found[:9], expected[20:29] * expected[:9], expected[0])
    same(found[[29, 31]], expected[[29, 31]])
    same(1 / found[30], 1 / expected[30], 0.1)


# ---------------------------------------------------------------- agreement


def entries(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> Rows:
    normal = rng.standard_normal(shape)
    return {
        "normal": normal,
        "heavy": normal / rng.uniform(0.01, 1, shape) ** 2,
        "skewed": np.exp(2 * normal),
        "mean far above spread": 1000 + normal,
        "whole numbers": np.round(3 * normal) + 1,
        "mostly zero": np.where(rng.uniform(size=shape) < 0.8, 0.0, normal) + (np.arange(shape[-1]) == 0) * 0.5,
        "one outlier": normal + 1e5 * (np.arange(math.prod(shape)).reshape(shape) == 0),
    }[kind]


SORTS = ["normal", "heavy", "skewed", "mean far above spread", "whole numbers", "mostly zero", "one outlier"]


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**20),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 24), st.integers(2, 24)),
    sort=st.sampled_from(SORTS),
    unit=st.sampled_from([1e-20, 1e-3, 1.0, 1e15]),
)
def test_all_features_are_those_of_numpy_and_scipy(
    seed: int, shape: tuple[int, int, int], sort: str, unit: float
) -> None:
    values = (entries(np.random.default_rng(seed), sort, shape) * unit).astype(np.float32)
    whole = of(make_ensemble(), *values)
    stats = of(Stats(), *values)
    for row, x in enumerate(values.astype(np.float64)):
        largest, total = np.abs(x).max(), np.abs(x).sum()
        if np.ptp(x) == 0 or abs(x.mean()) < 1e-9 * largest:
            continue  # constants and exact balance have tests of their own
        spectral, norms, distribution, frequency, information = np.split(whole[row], [32, 39, 51, 65])
        same(stats[row, :5], want_stats(x)[:5], largest)
        same(stats[row, 5:], want_stats(x)[5:], 100.0)
        same_spectral(spectral, want_spectral(x))
        same(norms, want_norms(x))
        same(distribution[:9], want_distribution(x)[:9], largest)
        same(distribution[9], want_distribution(x)[9])
        same(distribution[10:], want_distribution(x)[10:], 100.0)
        same(frequency, want_frequency(x), total)
        same(frequency[13], want_frequency(x)[13])
        same(information, want_information(x), rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 320), (320, 4), (1, 768), (768, 1), (40, 41), (12, 12), (128, 10)])
def test_layers_as_they_are(shape: tuple[int, int]) -> None:
    values = (np.random.default_rng(0).standard_normal((3, *shape)) * 0.02 + 1e-4).astype(np.float32)
    whole = of(make_ensemble(), *values)
    for row, x in enumerate(values.astype(np.float64)):
        same_spectral(whole[row, :32], want_spectral(x))
        rest = np.concatenate([want_norms(x), want_distribution(x), want_frequency(x), want_information(x)])
        same(whole[row, 32:], rest, 0.1)


def test_a_mean_far_above_the_spread_costs_no_digits() -> None:
    x = (1e6 + np.random.default_rng(0).standard_normal((8, 40))).astype(np.float32)
    exact = x.astype(np.float64)
    same(of(Stats(), x)[0], want_stats(exact), 1.0)
    found, expected = of(Frequency(), x)[0], want_frequency(exact)
    same(found, expected)
    same(found[1:10], expected[1:10])


def test_a_batch_gives_what_its_rows_give_one_by_one() -> None:
    values = np.random.default_rng(0).standard_normal((7, 5, 30)).astype(np.float32)
    for kind in (*(kind() for kind in KINDS), make_ensemble()):
        together = of(kind, *values)
        alone = np.concatenate([of(kind, x) for x in values])
        np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


def test_histogram_counts_are_exactly_numpys_on_edges() -> None:
    rng = np.random.default_rng(0)
    for x in (
        np.arange(51.0),
        np.arange(101.0) / 100,
        rng.integers(0, 51, 400) / 10,
        rng.integers(-25, 26, 300) * 0.3,
        1e6 + np.arange(60.0) / 16,
    ):
        stored = x.astype(np.float32)
        same(of(Information(), stored[None])[0], want_information(stored.astype(np.float64)), rtol=1e-6)


# ---------------------------------------------------------------- degenerate input

TINY = np.array([[3.0, -1.0, 2.0], [0.5, 4.0, -2.0]])
DEGENERATE = {
    "zero": np.zeros((4, 20)),
    "constant": np.full((4, 20), 0.1),
    "negative constant": np.full((20, 4), -1e-20),
    "rank one": np.outer(np.arange(1.0, 5), np.linspace(-1, 2, 20)),
    "one number": np.array([[0.7]]),
    "one zero": np.zeros((1, 1)),
    "one row": np.arange(7.0)[None],
    "one column": np.arange(7.0)[:, None],
    "two numbers": np.array([[1.0, -1.0]]),
    "tiny": TINY,
    "one in many": np.eye(1, 300),
    "largest float32": np.array([[3.4e38, -3.4e38, 3.4e38], [3.4e38, 3.4e38, -3.4e38]]),
    "smallest float32": np.array([[1e-45, 0.0, 3e-45], [0.0, 1e-45, 1e-45]]),
    "both": np.array([[3.4e38, 1e-45], [-1e-45, 3.4e38]]),
    "identity": np.eye(12),
    "one ulp apart": np.nextafter(np.full((2, 9), 0.1, np.float32), np.eye(2, 9, dtype=np.float32)),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_input_has_finite_features(name: str) -> None:
    x = DEGENERATE[name]
    for kind in (*(kind() for kind in KINDS), make_ensemble()):
        found = of(kind, x, x * 0, x)
        assert found.shape == (3, len(kind.names))
        assert np.isfinite(found).all(), dict(zip(kind.names, found[0], strict=True))
        np.testing.assert_allclose(found[0], found[2], rtol=1e-6)
        np.testing.assert_array_equal(found[1], of(kind, x * 0)[0])


def test_an_all_zero_matrix_has_no_features_but_zeros() -> None:
    assert not of(make_ensemble(), np.zeros((4, 20))).any()
    assert not of(Stats(), np.zeros((4, 20))).any()


@pytest.mark.parametrize("value", [0.1, -3e-20, 7e15])
def test_a_constant_matrix_has_no_shape(value: float) -> None:
    x = np.full((3, 17), value, np.float32)
    exact = float(x[0, 0])
    same(of(Stats(), x)[0], np.array([exact, 0, exact, exact, exact, 0, 0]), rtol=1e-6)
    same(of(Distribution(), x)[0], np.array([exact] * 7 + [0] * 5), rtol=1e-6)
    assert not of(Information(), x).any()
    only = abs(exact) * 51
    same(of(Frequency(), x)[0], np.array([only] + [0] * 9 + [only / 51, want_frequency(x)[11], only, 1]), rtol=1e-5)


def test_missing_singular_values_are_zero_and_enter_no_ratio() -> None:
    found = dict(zip(Spectral().names, of(Spectral(), np.diag([4.0, 2.0, 1.0, 1.0])[:, ::-1])[0], strict=True))
    assert [found[f"sigma_{i}"] for i in range(1, 11)] == pytest.approx([4, 2, 1, 1] + [0] * 6)
    assert [found[f"share_{i}"] for i in range(1, 11)] == pytest.approx([0.5, 0.25, 0.125, 0.125] + [0] * 6)
    assert [found[f"gap_{i}"] for i in range(1, 10)] == pytest.approx([0.5, 0.5, 0] + [0] * 6, abs=1e-6)
    assert found["effective_rank"] == pytest.approx(3.3636, abs=1e-4)
    assert found["condition_number"] == pytest.approx(4)
    assert found["nuclear_norm"] == pytest.approx(8)


def test_one_singular_value() -> None:
    found = of(Spectral(), np.array([[3.0, 4.0]]))[0]
    same(found, np.array([5] + [0] * 9 + [1] + [0] * 9 + [0] * 9 + [1, 1, 5]))


def test_a_lost_direction_has_the_largest_condition_number() -> None:
    found = dict(zip(Spectral().names, of(Spectral(), np.diag([2.0, 1.0, 0.0]))[0], strict=True))
    assert found["condition_number"] == LARGEST_RATIO == 2**23
    assert found["gap_2"] == 1
    assert found["gap_3"] == 0


def test_exactly_balanced_entries_have_no_variation() -> None:
    x = np.array([[2.0, -2.0, 1.0, -1.0]])
    assert of(Distribution(), x)[0][9] == 0
    assert of(Distribution(), x + 1e-9)[0][9] <= LARGEST_RATIO


def test_fewer_than_ten_coefficients_are_padded() -> None:
    same(of(Frequency(), TINY)[0], want_frequency(TINY), rtol=1e-5, size=1.0)
    assert not of(Frequency(), TINY)[0][6:10].any()


# ---------------------------------------------------------------- over a zoo


def make_zoo(ranks: list[int], d_out: int = 9, d_in: int = 14, seed: int = 0) -> Zoo:
    """One module; adapter i has rank ranks[i], padded to the largest."""
    rng = np.random.default_rng(seed)
    count, top = len(ranks), max(ranks)
    rank = np.array(ranks, np.int64)[:, None]
    down = (0.2 + rng.standard_normal((count, top, d_in))).astype(np.float32)
    up = rng.standard_normal((count, d_out, top)).astype(np.float32)
    for i, r in enumerate(ranks):
        down[i, r:], up[i, :, r:] = 0, 0
    return zoo_of(down, up, rank, rng.uniform(0.5, 2, (count, 1)).astype(np.float32))


def zoo_of(down: Rows, up: Rows, rank: Rows, scale: Rows) -> Zoo:
    names = [f"a{i}" for i in range(len(down))]
    half = len(down) // 2
    layers = {DOWN: Stack((down[:half], down[half:])), UP: Stack((up,))}
    return Zoo("z", layers, (Module(MODULE, DOWN, UP),), rank, scale, Labels.of(names, names, names), "f")


def regauged(zoo: Zoo, seed: int = 1) -> Zoo:
    """The same ΔW from other factors."""
    rng = np.random.default_rng(seed)
    down, up = zoo.read(DOWN).astype(np.float64), zoo.read(UP).astype(np.float64)
    for i, r in enumerate(zoo.rank[:, 0]):
        gauge = np.linalg.qr(rng.standard_normal((r, r)))[0] * rng.uniform(0.5, 2, r)
        up[i, :, :r], down[i, :r] = up[i, :, :r] @ gauge, np.linalg.solve(gauge, down[i, :r])
    return zoo_of(down.astype(np.float32), up.astype(np.float32), zoo.rank, zoo.scale)


def cut_factors(zoo: Zoo, i: int) -> tuple[Rows, Rows, float]:
    r = int(zoo.rank[i, 0])
    return zoo.read(DOWN)[i, :r], zoo.read(UP)[i, :, :r], float(zoo.scale[i, 0])


@pytest.mark.parametrize("make", [*KINDS, make_ensemble])
@pytest.mark.parametrize("layer", [DOWN, UP])
def test_padding_enters_no_feature(make: Callable[[], HandCrafted], layer: str) -> None:
    zoo = make_zoo([2, 5, 1, 2, 3, 5, 1, 1, 2])
    found = make().features(zoo, layer, CPU)
    assert found.dtype == torch.float32
    for i in range(len(zoo)):
        down, up, _ = cut_factors(zoo, i)
        np.testing.assert_allclose(found[i], of(make(), down if layer == DOWN else up)[0], rtol=1e-5, atol=1e-6)


def test_a_module_that_an_adapter_lacks_is_all_zero() -> None:
    zoo = make_zoo([2, 0, 3])
    assert not make_ensemble().features(zoo, DOWN, CPU)[1].any()
    assert not make_ensemble("delta").features(zoo, MODULE, CPU)[1].any()
    assert not Coupling().features(zoo, MODULE, CPU)[1].any()


def test_a_lone_layer_is_whole() -> None:
    zoo = make_zoo([2, 5, 1]).only([DOWN])
    expected = np.concatenate([of(Stats(), x) for x in zoo.read(DOWN)])
    np.testing.assert_allclose(Stats().features(zoo, DOWN, CPU), expected, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999), rank=st.integers(1, 6), d_out=st.integers(3, 40), d_in=st.integers(3, 40))
def test_on_delta_is_that_of_the_dense_product(seed: int, rank: int, d_out: int, d_in: int) -> None:
    zoo = make_zoo([rank, 1, rank], d_out, d_in, seed)
    whole = make_ensemble("delta").features(zoo, MODULE, CPU).numpy()
    stats = Stats("delta").features(zoo, MODULE, CPU).numpy()
    spectral = DeltaSpectral().features(zoo, MODULE, CPU).numpy()
    for i in range(len(zoo)):
        down, up, scale = cut_factors(zoo, i)
        x = scale * (up.astype(np.float64) @ down.astype(np.float64))
        largest = np.abs(x).max()
        same_spectral(spectral[i], want_spectral(x, len(down)))
        same(whole[i, :32], spectral[i], rtol=1e-6)
        same(whole[i, 32:39], want_norms(x), largest)
        same(whole[i, 39:48], want_distribution(x)[:9], 10 * largest)
        same(1 / whole[i, 48], 1 / want_distribution(x)[9], 1.0)
        same(whole[i, 49:51], want_distribution(x)[10:], 100.0)
        same(whole[i, 51:65], want_frequency(x), np.abs(x).sum())
        same(stats[i, :5], want_stats(x)[:5], 10 * largest)


@pytest.mark.parametrize("make", [*KINDS, make_ensemble])
def test_what_is_on_delta_is_gauge_invariant_and_what_is_on_factors_is_not(make: Callable[[str], HandCrafted]) -> None:
    zoo = make_zoo([3, 2, 4, 1])
    other = regauged(zoo)
    assert make("delta").gauge_invariant
    before, after = (make("delta").features(each, MODULE, CPU) for each in (zoo, other))
    # Rounding moves single entries across an edge of the histogram: a count of 126 entries, at most.
    torch.testing.assert_close(after, before, rtol=1e-3, atol=0.05)
    assert not make("factors").gauge_invariant
    for layer in (DOWN, UP):
        before, after = (make("factors").features(each, layer, CPU) for each in (zoo, other))
        assert not torch.allclose(after, before, rtol=0.02, atol=0.02)


def test_big_products_are_formed_in_batches_of_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = make_zoo([2] * 20, d_out=64, d_in=64)
    expected = Stats("delta").features(zoo, MODULE, CPU)
    seen: list[int] = []

    class Watched(Stats):
        def compute(self, matrices: handcrafted.Matrices) -> torch.Tensor:
            seen.append(len(matrices.values))
            return super().compute(matrices)

    for budget, largest in ((3 * 64 * 64 * 4, 3), (1, 1)):
        seen.clear()
        monkeypatch.setattr(handcrafted, "_BATCH_BYTES", {"cpu": budget, "gpu": 0})
        torch.testing.assert_close(Watched("delta").features(zoo, MODULE, CPU), expected)
        assert max(seen) == largest
        assert sum(seen) == len(zoo)


def test_the_spectrum_of_delta_forms_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: DeltaMatrices) -> torch.Tensor:
        raise AssertionError("ΔW was formed")

    monkeypatch.setattr(DeltaMatrices, "values", property(refuse))
    assert DeltaSpectral().features(make_zoo([2, 3]), MODULE, CPU).shape == (2, 32)
    with pytest.raises(AssertionError, match="was formed"):
        Stats("delta").features(make_zoo([2, 3]), MODULE, CPU)


@pytest.mark.parametrize("make", [*KINDS, make_ensemble])
def test_nothing_leaves_the_device(make: Callable[[], HandCrafted]) -> None:
    values = torch.empty(5, 4, 32, device="meta")
    found = make().compute(FactorMatrices(values))
    assert found.device.type == "meta"
    assert found.shape == (5, len(make().names))
    delta = DeltaMatrices(values, torch.empty(5, 9, 4, device="meta"), torch.empty(5, device="meta"))
    assert make().compute(delta).device.type == "meta"


def test_what_float32_cannot_hold_becomes_its_largest_value() -> None:
    found = handcrafted.to_float32(torch.tensor([[1e300, -1e300, 1.0]], dtype=torch.float64))
    assert found.tolist() == [[torch.finfo(torch.float32).max, torch.finfo(torch.float32).min, 1.0]]


# ---------------------------------------------------------------- coupling


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), rank=st.integers(2, 6), d_out=st.integers(2, 30), d_in=st.integers(2, 30))
def test_coupling_is_that_of_scipy(seed: int, rank: int, d_out: int, d_in: int) -> None:
    zoo = make_zoo([rank, 2, rank], d_out, d_in, seed)
    found = Coupling().features(zoo, MODULE, CPU).numpy()
    for i in range(len(zoo)):
        down, up, scale = cut_factors(zoo, i)
        a, b = down.astype(np.float64), up.astype(np.float64)
        length = min(a.size, b.size)
        x, y = a.ravel()[:length], b.ravel()[:length]
        spectra = [np.linalg.svd(factor, compute_uv=False) for factor in (a, b)]
        values = min(map(len, spectra))
        expected = [
            scipy.stats.pearsonr(x, y).statistic,
            x @ y / (np.linalg.norm(x) * np.linalg.norm(y)),
            np.linalg.norm(scale * b @ a),
            scipy.stats.pearsonr(spectra[0][:values], spectra[1][:values]).statistic,
        ]
        same(found[i], np.array(expected), 1.0)


def test_coupling_without_a_correlation() -> None:
    down, up = torch.full((1, 1, 6), 0.1), torch.arange(4.0).reshape(1, 4, 1)
    one = coupling(down, up, torch.tensor([2.0]))[0]
    assert one[0] == 0, "a constant factor"
    assert one[3] == 0, "rank 1"
    same(one[1:3].numpy(), np.array([6 / (2 * 14**0.5), 2 * (6 * 0.01 * 14) ** 0.5]))
    orthogonal, _ = torch.linalg.qr(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    two = coupling(orthogonal.mT[None].contiguous(), torch.randn(1, 5, 3), torch.ones(1))[0]
    assert two[3] == 0, "singular values that do not differ"
    assert not coupling(torch.zeros(1, 2, 6), torch.zeros(1, 4, 2), torch.ones(1)).any()


def test_coupling_sees_the_gauge_but_for_the_norm() -> None:
    zoo = make_zoo([3, 2, 4])
    before, after = (Coupling().features(each, MODULE, CPU) for each in (zoo, regauged(zoo)))
    assert not Coupling().gauge_invariant
    torch.testing.assert_close(before[:, 2], after[:, 2])
    for column in (0, 1, 3):
        assert not torch.allclose(before[:, column], after[:, column], atol=1e-3)


# ---------------------------------------------------------------- names, config, errors


def test_lengths_are_those_of_the_issue() -> None:
    zoo = make_zoo([2, 3])
    for kind, length in LENGTHS.items():
        assert len(kind().feature_names(zoo, DOWN)) == length == kind().features(zoo, DOWN, CPU).shape[1]
    assert len(make_ensemble().feature_names(zoo, DOWN)) == 67
    assert len(Coupling().feature_names(zoo, MODULE)) == 4
    assert len(DeltaSpectral().feature_names(zoo, MODULE)) == 32


def test_the_ensemble_is_composed_from_the_others_yaml() -> None:
    def build(choice: str, *changes: str) -> HandCrafted:
        with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            config = compose(overrides=[f"+representation={choice}", *changes])
        found = instantiate(config.representation, _convert_="all")
        assert isinstance(found, HandCrafted)
        return found

    whole = build("ensemble")
    assert isinstance(whole, Ensemble)
    assert whole == make_ensemble()
    assert list(whole.parts) == ["spectral", "norms", "distribution", "frequency", "information"]
    delta = build("ensemble", "representation.on=delta")
    assert delta == make_ensemble("delta")
    assert delta.unit == "module"
    assert build("delta_spectral") == DeltaSpectral("delta")
    assert whole.config()["parts"]["norms"] == Norms().config()
    zoo = make_zoo([2, 3])
    joined = torch.cat([part.features(zoo, DOWN, CPU) for part in whole.parts.values()], dim=1)
    torch.testing.assert_close(whole.features(zoo, DOWN, CPU), joined)


def test_what_an_ensemble_cannot_be() -> None:
    zoo = make_zoo([2, 3])
    with pytest.raises(LorabenchError, match=r"parts is empty"):
        Ensemble().units(zoo)
    with pytest.raises(LorabenchError, match=r"parts\.norms\.on is 'delta' and representation\.on 'factors'"):
        Ensemble("factors", {"norms": Norms("delta")}).units(zoo)


def test_another_word_than_factors_or_delta() -> None:
    with pytest.raises(LorabenchError, match=r"representation\.on=deltas: allowed are factors and delta$"):
        Stats("deltas").units(make_zoo([2, 3]))


def test_a_zoo_without_pairs_has_no_delta() -> None:
    with pytest.raises(LorabenchError, match="needs a module"):
        DeltaSpectral().units(make_zoo([2, 3]).only([DOWN]))


def test_weights_that_are_not_finite_are_refused() -> None:
    zoo = make_zoo([2, 3])
    zoo.layers[DOWN].pieces[1][0, 0, 0] = np.nan
    with pytest.raises(LorabenchError, match=r"NaN or infinite weights in layer .* of a1"):
        Stats().features(zoo, DOWN, CPU)


def test_health_is_what_the_dense_update_says_and_a_padded_rank_is_no_rank() -> None:
    made = make_zoo([2, 5, 1, 3, 5, 2])
    up = made.read(UP).copy()
    up[5] = 0.0
    zoo = zoo_of(made.read(DOWN), up, made.rank, -made.scale)
    found, zeros = Health().features(zoo, MODULE, CPU).numpy(), np.zeros(7)
    for i in range(len(zoo)):
        down, cut, scale = cut_factors(zoo, i)
        same(found[i], zeros if i == 5 else want_health(scale * cut.astype(float) @ down, len(down)))
        same(Health("factors").features(zoo, DOWN, CPU).numpy()[i], want_health(down, len(down)))
    same(Health().features(regauged(zoo), MODULE, CPU).numpy()[:5], found[:5], rtol=1e-3)
