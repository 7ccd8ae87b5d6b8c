"""Raw kurtosis, the sample's standard deviation and padded factors against numpy and scipy."""

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.errors import LorabenchError
from lorabench.representations.coupling import Coupling, coupling
from lorabench.representations.distribution import Distribution
from lorabench.representations.handcrafted import HandCrafted
from lorabench.representations.matrices import FactorMatrices
from lorabench.representations.moments import Moments
from lorabench.representations.stats import Stats
from tests.synthetic_zoo import make_zoo

CHOICES = list(itertools.product(("excess", "raw"), ("population", "sample")))
CPU = torch.device("cpu")


def of(kind: HandCrafted, x: np.ndarray) -> dict[str, float]:
    """Features of one matrix by their names."""
    found = kind.compute(FactorMatrices(torch.from_numpy(x[None].astype(np.float32))))[0]
    return dict(zip(kind.names, found.tolist(), strict=True))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**20), rows=st.integers(1, 12), cols=st.integers(2, 12), choice=st.sampled_from(CHOICES))
def test_moments_are_those_of_numpy_and_scipy(seed: int, rows: int, cols: int, choice: tuple[str, str]) -> None:
    x = np.random.default_rng(seed).gumbel(0.3, 0.02, (rows, cols)).astype(np.float32).astype(np.float64)
    kurtosis, std = choice
    deviation = x.std(ddof=int(std == "sample"))
    fourth = scipy.stats.moment(x, 4, axis=None) / deviation**4
    want = {
        "std": deviation,
        "variation": deviation / abs(x.mean()),
        "skewness": scipy.stats.moment(x, 3, axis=None) / deviation**3,
        "kurtosis": fourth - 3 * (kurtosis == "excess"),
    }
    for kind in (Stats(kurtosis=kurtosis, std=std), Distribution(kurtosis=kurtosis, std=std)):
        found = of(kind, x)
        known = want.keys() & found.keys()
        assert len(known) == 3
        assert [found[name] for name in known] == pytest.approx([want[name] for name in known], rel=1e-4, abs=1e-4)


def test_raw_kurtosis_is_scipys_without_fishers_three() -> None:
    x = np.random.default_rng(0).standard_normal((4, 320)).astype(np.float32)
    assert of(Stats(kurtosis="raw"), x)["kurtosis"] == pytest.approx(
        scipy.stats.kurtosis(x.astype(np.float64), axis=None, fisher=False), rel=1e-5
    )


def test_the_options_touch_no_other_feature_and_nothing_by_default() -> None:
    x = np.random.default_rng(0).standard_normal((4, 320))
    for kind in (Stats, Distribution):
        default, other = of(kind(), x), of(kind(kurtosis="raw", std="sample"), x)
        assert default == of(kind(kurtosis="excess", std="population"), x)
        changed = {name for name in default if default[name] != other[name]}
        assert changed == {"std", "variation", "skewness", "kurtosis"} & set(default)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("x", [np.full((3, 5), 0.1), np.zeros((2, 2)), np.array([[0.7]])])
def test_a_constant_matrix_has_no_moments(x: np.ndarray, choice: tuple[str, str]) -> None:
    for kind in (Stats(kurtosis=choice[0], std=choice[1]), Distribution(kurtosis=choice[0], std=choice[1])):
        found = of(kind, x)
        assert not any(found[name] for name in ("std", "variation", "skewness", "kurtosis") if name in found)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Stats(kurtosis="fisher"), r"representation\.kurtosis=fisher: allowed are excess and raw"),
        (Distribution(std="bessel"), r"representation\.std=bessel: allowed are population and sample"),
        (Coupling(lengths="longest"), r"representation\.lengths=longest: allowed are cut and pad"),
    ],
)
def test_what_an_option_cannot_be_is_told(kind: Moments | Coupling, words: str) -> None:
    with pytest.raises(LorabenchError, match=words):
        kind.units(make_zoo())


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**20), rank=st.integers(1, 4), d_out=st.integers(4, 20), d_in=st.integers(4, 20))
def test_padded_factors_correlate_as_scipy_says(seed: int, rank: int, d_out: int, d_in: int) -> None:
    rng = np.random.default_rng(seed)
    down, up = rng.normal(0.3, 1, (3, rank, d_in)), rng.normal(0.3, 1, (3, d_out, rank))
    factors = [torch.from_numpy(one.astype(np.float32)) for one in (down, up)]
    cut, padded = (coupling(*factors, torch.ones(3), lengths).numpy() for lengths in ("cut", "pad"))
    for i in range(3):
        a, b = (np.zeros(rank * max(d_out, d_in)) for _ in range(2))
        a[: rank * d_in], b[: rank * d_out] = down[i].ravel(), up[i].ravel()
        assert padded[i, 0] == pytest.approx(scipy.stats.pearsonr(a, b).statistic, abs=1e-5)
        assert padded[i, 1] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
    np.testing.assert_array_equal(cut[:, 2:], padded[:, 2:])
    assert (d_out == d_in) == np.array_equal(cut, padded)


def test_padding_goes_through_the_representation() -> None:
    zoo = make_zoo()
    unit = Coupling().units(zoo)[0]
    cut, padded = (Coupling(lengths=lengths).features(zoo, unit, CPU) for lengths in ("cut", "pad"))
    assert not torch.equal(cut[:, :2], padded[:, :2])
    assert torch.equal(cut[:, 2:], padded[:, 2:])
