"""Low-rank algebra against dense linear algebra, and against the numbers of the definitions."""

import doctest
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorabench import lowrank

SIGMA = torch.tensor([4.0, 2.0, 1.0, 1.0])
RATIOS = (
    lowrank.effective_rank,
    lowrank.stable_rank,
    lowrank.participation_ratio,
    lowrank.rank_utilisation,
    lowrank.condition_number,
)
FEW = settings(deadline=None, max_examples=40)


def draw(seed: int, batch: tuple[int, ...], rank: int, d_out: int, d_in: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(*batch, rank, d_in, generator=generator)
    up = torch.randn(*batch, d_out, rank, generator=generator)
    return down, up, torch.randn(batch, generator=generator)


def dense(down: Tensor, up: Tensor, scale: Tensor | float) -> Tensor:
    factor = torch.as_tensor(scale, dtype=torch.float64)[..., None, None]
    return factor * (up.double() @ down.double())


def dense_values(matrix: Tensor, count: int) -> Tensor:
    """`count` singular values, with the zeros that a matrix with a shorter side leaves out."""
    found = torch.linalg.svdvals(matrix)
    return torch.nn.functional.pad(found, (0, max(0, count - found.shape[-1])))[..., :count]


def same_values(found: Tensor, expected: Tensor) -> bool:
    """Equal to far below float32's rounding of the largest value."""
    return bool(((found - expected).abs() <= 1e-7 * expected[..., :1]).all())


cases = {
    "seed": st.integers(0, 2**20),
    "rank": st.integers(1, 9),
    "d_out": st.integers(1, 24),
    "d_in": st.integers(1, 24),
}


@FEW
@given(**cases, batch=st.sampled_from([(), (3,), (2, 3)]))
def test_singular_values_are_the_dense_ones(
    seed: int, rank: int, d_out: int, d_in: int, batch: tuple[int, ...]
) -> None:
    down, up, scale = draw(seed, batch, rank, d_out, d_in)
    found = lowrank.singular_values(down, up, scale)
    assert found.shape == (*batch, rank)
    assert found.dtype == torch.float64
    assert same_values(found, dense_values(dense(down, up, scale), rank))


@FEW
@given(**cases)
def test_inner_product_and_norm_are_the_dense_ones(seed: int, rank: int, d_out: int, d_in: int) -> None:
    a = draw(seed, (3,), rank, d_out, d_in)
    b = draw(seed + 1, (3,), rank % 4 + 1, d_out, d_in)
    first, second = dense(*a), dense(*b)
    size = first.norm(dim=(-2, -1)) * second.norm(dim=(-2, -1))
    assert ((lowrank.inner_product(a, b) - (first * second).sum((-2, -1))).abs() <= 1e-12 * size).all()
    assert torch.allclose(lowrank.frobenius_norm(*a), first.norm(dim=(-2, -1)), rtol=1e-12)


@FEW
@given(**cases)
def test_spectrum_does_not_see_the_gauge(seed: int, rank: int, d_out: int, d_in: int) -> None:
    down, up, scale = draw(seed, (2,), rank, d_out, d_in)
    gauge = torch.randn(rank, rank, generator=torch.Generator().manual_seed(seed + 2)).double()
    gauge = gauge + 3 * torch.eye(rank) * gauge.norm()
    other = lowrank.singular_values(torch.linalg.solve(gauge, down.double()), up.double() @ gauge, scale)
    assert same_values(other, lowrank.singular_values(down, up, scale))


@FEW
@given(**cases, factor=st.sampled_from([-3.0, 1e-12, 1e12]))
def test_spectrum_scales_and_its_ratios_do_not(seed: int, rank: int, d_out: int, d_in: int, factor: float) -> None:
    down, up, scale = draw(seed, (2,), rank, d_out, d_in)
    sigma = lowrank.singular_values(down, up, scale)
    scaled = lowrank.singular_values(down, up, scale.double() * factor)
    assert torch.allclose(scaled, abs(factor) * sigma, rtol=1e-12, atol=0)
    for quantity in RATIOS:
        assert torch.allclose(quantity(scaled), quantity(sigma), rtol=1e-9)


@FEW
@given(**cases, more=st.integers(1, 3))
def test_padding_adds_zeros_alone(seed: int, rank: int, d_out: int, d_in: int, more: int) -> None:
    down, up, scale = draw(seed, (2,), rank, d_out, d_in)
    pad = torch.nn.functional.pad
    padded = lowrank.singular_values(pad(down, (0, 0, 0, more)), pad(up, (0, more)), scale)
    assert same_values(padded, pad(lowrank.singular_values(down, up, scale), (0, more)))
    assert (padded[:, rank:] == 0).all()


def check_thin_svd(down: Tensor, up: Tensor, scale: Tensor | float) -> Tensor:
    """Hold a decomposition to what it promises, and give its σ."""
    left, sigma, right = lowrank.thin_svd(down, up, scale)
    k = min(down.shape[-2], down.shape[-1], up.shape[-2])
    assert (left.shape[-1], sigma.shape[-1], right.shape[-2]) == (k, k, k)
    assert left.dtype == sigma.dtype == right.dtype == torch.float64
    eye = torch.eye(k, dtype=torch.float64)
    assert ((left.mT @ left - eye).abs() < 1e-9).all()
    assert ((right @ right.mT - eye).abs() < 1e-9).all()
    assert (sigma[..., :-1] >= sigma[..., 1:]).all()
    matrix = dense(down, up, scale)
    size = up.double().norm(dim=(-2, -1)) * down.double().norm(dim=(-2, -1)) * torch.as_tensor(scale).double().abs()
    assert ((left * sigma.unsqueeze(-2) @ right - matrix).norm(dim=(-2, -1)) <= 1e-13 * size).all()
    assert ((sigma - dense_values(matrix, k)).abs() <= 1e-13 * size.unsqueeze(-1)).all()
    return sigma


@FEW
@given(**cases, batch=st.sampled_from([(), (3,), (2, 3)]))
def test_thin_svd_is_the_dense_one(seed: int, rank: int, d_out: int, d_in: int, batch: tuple[int, ...]) -> None:
    check_thin_svd(*draw(seed, batch, rank, d_out, d_in))


@FEW
@given(seed=st.integers(0, 999), power=st.floats(0, 9), other=st.floats(0, 9))
def test_thin_svd_of_nearly_dependent_factors(seed: int, power: float, other: float) -> None:
    down, up, scale = draw(seed, (3,), 5, 30, 40)
    down, up = down.double(), up.double()
    down[1, 4] = down[1, 3] + 10**-power * down[1, 4]
    up[2, :, 0] = up[2, :, 1] - 10**-other * up[2, :, 0]
    check_thin_svd(down, up, scale)


def test_thin_svd_of_what_was_lost_padded_or_never_trained() -> None:
    down, up, scale = draw(0, (5,), 4, 30, 40)
    down[0, 3], up[0, :, 3] = 0, 0
    down[1, 2] = down[1, 0]
    up[2] = 0
    down[3] = 0
    sigma = check_thin_svd(down, up, scale)
    assert (sigma[0, 3:] <= 1e-15 * sigma[0, 0]).all()
    assert (sigma[1, 3:] <= 1e-15 * sigma[1, 0]).all()
    assert (sigma[2:4] == 0).all()
    assert (check_thin_svd(down, up, 0.0) == 0).all()


def test_thin_svd_of_a_badly_balanced_pair() -> None:
    down, up, scale = draw(0, (4,), 4, 30, 40)
    sizes = torch.tensor([1e6, 1.0, 1e-6, 1e3])
    down, up = down.double() * sizes[:, None], up.double() / sizes
    found = lowrank.thin_svd(down, up, scale)[1]
    assert torch.allclose(found, dense_values(dense(down, up, scale), 4), rtol=1e-9)
    assert torch.allclose(lowrank.thin_svd(down * 1e30, up * 1e30, scale)[1], found * 1e60, rtol=1e-12)


def test_thin_svd_keeps_the_digits_of_small_singular_values() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 4, generator=generator).double())[0] for n in (30, 40))
    sigma = torch.tensor([1.0, 1e-3, 1e-6, 1e-9], dtype=torch.float64)
    found = lowrank.thin_svd(right.mT * sigma.sqrt()[:, None], left * sigma.sqrt())[1]
    assert torch.allclose(found, sigma, rtol=1e-9)


@FEW
@given(seed=st.integers(0, 999), rows=st.integers(1, 20), cols=st.integers(1, 20))
def test_a_factor_has_its_dense_singular_values(seed: int, rows: int, cols: int) -> None:
    matrix = torch.randn(3, rows, cols, generator=torch.Generator().manual_seed(seed))
    found = lowrank.matrix_singular_values(matrix)
    assert found.shape == (3, min(rows, cols))
    assert same_values(found, torch.linalg.svdvals(matrix.double()))


def test_a_badly_balanced_pair_stays_exact() -> None:
    down, up, scale = draw(0, (4,), 4, 30, 40)
    sizes = torch.tensor([1e6, 1.0, 1e-6, 1e3])
    down, up = down.double() * sizes[:, None], up.double() / sizes
    assert torch.allclose(lowrank.singular_values(down, up, scale), dense_values(dense(down, up, scale), 4), rtol=1e-9)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_no_size_of_float32_weights_leaves_the_range(size: float) -> None:
    down, up, _ = draw(0, (4,), 3, 8, 9)
    found = lowrank.singular_values(down * size, up * size, 1.0)
    assert torch.allclose(found / size**2, dense_values(dense(down, up, 1.0), 3), rtol=1e-5)


def test_half_precision_is_read_as_it_is() -> None:
    down, up, scale = draw(0, (4,), 3, 8, 9)
    half = lowrank.singular_values(down.half(), up.half(), scale.half())
    assert torch.equal(half, lowrank.singular_values(down.half().float(), up.half().float(), scale.half()))


def test_a_lost_direction_is_exactly_zero() -> None:
    down, up, _ = draw(0, (), 3, 30, 40)
    down[2] = down[0] + down[1]
    sigma = lowrank.singular_values(down, up)
    assert lowrank.numerical_rank(sigma, (30, 40)).item() == 2
    up[:, 2] = 0
    sigma = lowrank.singular_values(down, up)
    assert sigma[2] == 0
    assert lowrank.condition_number(sigma).item() == math.inf


def test_an_untrained_pair_has_no_ratio() -> None:
    down, up, scale = draw(0, (2,), 3, 8, 9)
    sigma = lowrank.singular_values(down, up * 0, scale)
    assert torch.equal(sigma, torch.zeros(2, 3, dtype=torch.float64))
    for quantity in RATIOS:
        assert quantity(sigma).isnan().all()
    assert lowrank.energy_rank(sigma).tolist() == [0, 0]
    assert lowrank.numerical_rank(sigma, (8, 9)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        (lowrank.effective_rank, 3.364),
        (lowrank.stable_rank, 1.375),
        (lowrank.participation_ratio, 1.766),
        (lowrank.rank_utilisation, 0.841),
        (lowrank.energy_rank, 2),
        (lowrank.condition_number, 4),
    ],
)
def test_the_numbers_of_the_definitions(quantity: object, expected: float) -> None:
    assert callable(quantity)
    assert round(quantity(SIGMA).item(), 3) == expected
    for size in (1e-20, 1e20):
        assert torch.allclose(quantity(SIGMA * size), quantity(SIGMA), rtol=1e-6)
    assert quantity(SIGMA.expand(2, 3, 4)).shape == (2, 3)


def test_numerical_rank_of_the_definitions() -> None:
    assert lowrank.numerical_rank(SIGMA, (16, 9)).item() == 4
    eps = torch.finfo(torch.bfloat16).eps
    sigma = torch.tensor([1.0, 16 * eps * 1.01, 16 * eps * 0.99])
    assert lowrank.numerical_rank(sigma, (16, 9), torch.bfloat16).item() == 2
    assert lowrank.numerical_rank(sigma, (16, 9), torch.float32).item() == 3


@FEW
@given(seed=st.integers(0, 999), count=st.integers(1, 12))
def test_spectral_quantities_against_numpy(seed: int, count: int) -> None:
    sigma = np.sort(np.random.default_rng(seed).exponential(size=count) ** 3)[::-1].copy()
    found = torch.from_numpy(sigma)
    share, energy = sigma / sigma.sum(), sigma**2
    entropy = -sum(p * math.log(p) for p in share)
    assert lowrank.effective_rank(found).item() == pytest.approx(math.exp(entropy))
    assert lowrank.rank_utilisation(found).item() == pytest.approx(math.exp(entropy) / count)
    assert lowrank.stable_rank(found).item() == pytest.approx(energy.sum() / energy[0])
    assert lowrank.participation_ratio(found).item() == pytest.approx(energy.sum() ** 2 / (energy**2).sum())
    assert lowrank.condition_number(found).item() == pytest.approx(sigma[0] / sigma[-1])
    for part in (0.5, 0.9, 0.999):
        smallest = next(k for k in range(1, count + 1) if energy[:k].sum() >= part * energy.sum() * (1 - 1e-12))
        assert lowrank.energy_rank(found, part).item() == smallest


def test_energy_rank_of_an_exact_share() -> None:
    assert lowrank.energy_rank(torch.ones(10), 0.3).item() == 3
    assert lowrank.energy_rank(torch.ones(10), 1.0).item() == 10


def test_numerical_rank_is_that_of_dense_algebra() -> None:
    down, up, scale = draw(3, (5,), 6, 30, 20)
    down[2, 4:] = 0
    up[3, :, 0] = up[3, :, 1]
    matrices = dense(down, up, scale).float()
    found = lowrank.numerical_rank(lowrank.singular_values(down, up, scale), (30, 20))
    assert torch.equal(found, torch.linalg.matrix_rank(matrices))
    assert found.tolist() == [6, 6, 4, 5, 6]


def of_spectrum(seed: int, rows: int, cols: int, sigma: list[float]) -> np.ndarray:
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(side, len(sigma))))[0] for side in (rows, cols))
    return (left * np.array(sigma)) @ right.T


@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (64, 64), (1, 50), (50, 1), (1, 1), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_largest_singular_value_is_numpys(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = torch.from_numpy(np.random.default_rng(sum(shape)).normal(size=shape)).to(dtype)
    expected = np.linalg.norm(matrix.double().numpy(), 2)
    assert lowrank.largest_singular_value(matrix) == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize(
    "sigma",
    [[3.0], [1.0] * 30, [2.0] * 29 + [1.9999], [5.0, 4.999999, 4.99], list(np.geomspace(1e3, 1e-9, 30)), [1e-4] * 2],
    ids=["rank 1", "orthonormal", "all but equal", "two close", "12 decades", "small"],
)
@pytest.mark.parametrize("shape", [(30, 80), (80, 30), (30, 30)])
def test_largest_singular_value_of_a_known_spectrum(sigma: list[float], shape: tuple[int, int]) -> None:
    matrix = torch.from_numpy(of_spectrum(1, *shape, sigma))
    for dtype, reach in ((torch.float64, 1e-6), (torch.float32, 3e-6)):
        found = lowrank.largest_singular_value(matrix.to(dtype))
        assert found == pytest.approx(max(sigma), rel=reach)
        assert found <= max(sigma) * (1 + reach / 3)


def test_largest_singular_value_of_what_is_nothing_or_no_number() -> None:
    assert lowrank.largest_singular_value(torch.zeros(5, 7)) == 0
    assert lowrank.largest_singular_value(torch.zeros(0, 7)) == 0
    assert lowrank.largest_singular_value(torch.zeros(7, 0)) == 0
    single = torch.zeros(5, 7)
    single[3, 2] = -4.0
    assert lowrank.largest_singular_value(single) == pytest.approx(4)
    for wrong in (math.nan, math.inf, -math.inf):
        single[1, 1] = wrong
        assert math.isnan(lowrank.largest_singular_value(single))
        assert math.isnan(lowrank.largest_singular_value(single.half()))


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30])
def test_no_size_of_float32_leaves_the_range_of_the_largest(size: float) -> None:
    matrix = draw(2, (), 20, 30, 30)[0]
    found = lowrank.largest_singular_value(matrix * size)
    assert found / size == pytest.approx(np.linalg.norm(matrix.double().numpy(), 2), rel=1e-5)


@FEW
@given(
    seed=st.integers(0, 2**20), rows=st.integers(1, 40), cols=st.integers(1, 40), decay=st.floats(0.0, 3.0),
    turned=st.booleans(),
)  # fmt: skip
def test_largest_singular_value_is_the_same_turned_and_scaled(
    seed: int, rows: int, cols: int, decay: float, turned: bool
) -> None:
    sigma = [(i + 1.0) ** -decay for i in range(min(rows, cols))]
    matrix = torch.from_numpy(of_spectrum(seed, rows, cols, sigma))
    matrix = matrix.mT if turned else matrix
    found = lowrank.largest_singular_value(matrix)
    assert found == pytest.approx(1.0, rel=1e-6)
    assert lowrank.largest_singular_value(-8.0 * matrix) == pytest.approx(8 * found, rel=1e-9)


def test_a_wide_matrix_takes_few_of_its_steps_and_is_the_same_each_time() -> None:
    matrix = torch.from_numpy(of_spectrum(4, 400, 700, list(np.linspace(2, 1, 400)))).float()
    torch.manual_seed(1)
    first = lowrank.largest_singular_value(matrix)
    torch.manual_seed(2)
    assert lowrank.largest_singular_value(matrix) == first
    assert first == pytest.approx(2, rel=1e-5)
    assert lowrank.largest_singular_value(matrix, most=2) < 2 * (1 - 1e-3)


def test_examples_in_the_docstrings() -> None:
    found = doctest.testmod(lowrank)
    assert found.attempted > 0
    assert found.failed == 0
