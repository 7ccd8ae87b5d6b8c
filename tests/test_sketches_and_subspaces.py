"""Projectors, the Gaussian sketch and DSiRe's spectra against dense ΔW in numpy, and where they are degenerate."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lorabench import lowrank
from lorabench.errors import LorabenchError
from lorabench.representations import Representation
from lorabench.representations.delta_spectral import DeltaSpectral
from lorabench.representations.dsire import DSiRe
from lorabench.representations.projectors import Projectors, projector_diagonals
from lorabench.representations.sketch import GaussianSketch, sketching_matrix
from lorabench.zoo import Stack, Zoo
from tests.synthetic_zoo import deltas, make_zoo, regauged, with_layers

CPU = torch.device("cpu")
SHAPES = ((6, 5), (40, 30), (30, 40))
ALL = [
    Projectors(), Projectors(k=2), GaussianSketch(), GaussianSketch(3, 5, normalised=True), DSiRe(), DSiRe("invariant")
]  # fmt: skip


@pytest.fixture(params=ALL, ids=repr)
def representation(request: pytest.FixtureRequest) -> Representation:
    found: Representation = request.param
    return replace(found)  # type: ignore[type-var]  # what another test has fitted stays behind


@pytest.fixture
def zoo() -> Zoo:
    """Ranks from 1 to 3; adapter 5 lacks every module, adapter 6's are zero."""
    made = make_zoo(12, SHAPES)
    layers = {name: stack.read(0, len(made)).copy() for name, stack in made.layers.items()}
    for module in made.modules:
        layers[module.down][5], layers[module.up][5:7] = 0, 0
    rank, scale = made.rank.copy(), made.scale.copy()
    rank[5] = 0
    scale[3] *= -1
    return replace(with_layers(made, layers), rank=rank, scale=scale)


def same(found: torch.Tensor, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def wanted_projectors(delta: np.ndarray, most: int | None) -> np.ndarray:
    u, sigma, vt = np.linalg.svd(delta)
    k = int((sigma > sigma[0] * max(delta.shape) * np.finfo(np.float32).eps).sum())
    k = k if most is None else min(k, most)
    return np.concatenate([np.diag(u[:, :k] @ u[:, :k].T), np.diag(vt[:k].T @ vt[:k])])


@pytest.mark.parametrize("k", [None, 1, 2, 9])
def test_projectors_are_diagonals_of_dense_projections(k: int | None, zoo: Zoo) -> None:
    for module in zoo.modules:
        found = Projectors(k).features(zoo, module.name, CPU)
        dense = deltas(zoo, module.name)
        same(found, np.stack([wanted_projectors(one, k) for one in dense]))
        d_out = dense.shape[1]
        kept = np.minimum(zoo.rank[:, zoo.module_index(module.name)], k or 9) * dense.any((1, 2))
        same(found[:, :d_out].sum(1), kept)
        same(found[:, d_out:].sum(1), kept)


def test_projectors_do_not_jump_where_singular_values_are_nearly_the_same() -> None:
    """The leading two vectors turn freely within their plane, and the projection stays."""
    rng = np.random.default_rng(0)
    u, v = (torch.from_numpy(np.linalg.qr(rng.normal(size=(d, 3)))[0]) for d in (9, 7))
    for size in (0.0, 1e-9, 1e-7):
        ups = torch.stack([u * torch.tensor([1.0, 1.0 + size, 0.5]), u * torch.tensor([1.0 + size, 1.0, 0.5])])
        found = projector_diagonals(v.mT.expand(2, -1, -1), ups, torch.ones(2))
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)
        np.testing.assert_allclose(found[0, :9].numpy(), u.square().sum(1).numpy(), atol=1e-9)


@pytest.mark.parametrize("normalised", [False, True])
def test_the_sketch_is_that_of_dense_weights(normalised: bool, zoo: Zoo) -> None:
    sketch = GaussianSketch(7, 4, seed=3, normalised=normalised)
    for module in zoo.modules:
        dense = deltas(zoo, module.name)
        _, d_out, d_in = dense.shape
        left = sketching_matrix(3, module.name, "out", d_out, min(7, d_out)).numpy()
        right = sketching_matrix(3, module.name, "in", d_in, 4).numpy()
        norm = np.linalg.norm(dense, axis=(1, 2), keepdims=True)
        wanted = left.T @ (dense / np.where(norm > 0, norm, 1) if normalised else dense) @ right
        same(sketch.features(zoo, module.name, CPU), wanted.reshape(len(zoo), -1))


def test_a_sketch_depends_on_nothing_beside_its_module_and_its_seed(zoo: Zoo) -> None:
    unit = zoo.modules[1].name
    before = GaussianSketch().features(zoo, unit, CPU)
    alone = zoo.only([zoo.modules[1].down, zoo.modules[1].up]).rows(np.array([4]))
    same(GaussianSketch().features(alone, unit, CPU), before[4:5].numpy(), 1e-6)
    assert not torch.allclose(GaussianSketch(seed=1).features(zoo, unit, CPU), before, atol=0.1)
    first, second = (sketching_matrix(0, name, "in", 30, 24) for name in ("a", "b"))
    assert not torch.allclose(first, second, atol=0.1)


def test_the_numbers_of_a_sketch_stay_what_they_were() -> None:
    """What an exported model stands on; torch draws fewer than sixteen numbers in another way."""
    few, many = sketching_matrix(0, "m", "out", 3, 2), sketching_matrix(0, "m", "in", 30, 24)
    assert (few * 2**0.5)[0].tolist() == pytest.approx([-1.0237955742878513, 0.9117023479049727])
    assert (many * 24**0.5)[0, :2].tolist() == pytest.approx([-1.3314309087656502, 0.2191934240553009])


def test_norms_and_inner_products_are_kept_in_the_mean_over_seeds(zoo: Zoo) -> None:
    unit = zoo.modules[1].name
    dense = deltas(zoo, unit)[:3].reshape(3, -1)
    few = zoo.rows(np.arange(3))
    found = [GaussianSketch(seed=seed).features(few, unit, CPU).double() for seed in range(300)]
    gram = torch.stack([one @ one.mT for one in found])
    off = (gram.mean(0).numpy() - dense @ dense.T) / (gram.std(0).numpy() / 300**0.5)
    assert np.abs(off).max() < 4, "standard errors"


@pytest.mark.parametrize("spectra", ["published", "invariant"])
def test_dsire_is_dense_spectra(spectra: str, zoo: Zoo) -> None:
    for column, module in enumerate(zoo.modules):
        down, up = (zoo.read(name).astype(np.float64) for name in (module.down, module.up))
        up = up * zoo.scale[:, column, None, None]
        parts = [down, up, up @ down] if spectra == "published" else [up @ down]
        wanted = [np.linalg.svd(part, compute_uv=False)[:, :3] for part in parts]
        same(DSiRe(spectra).features(zoo, module.name, CPU), np.concatenate(wanted, 1))


def test_dsires_last_spectrum_is_what_delta_spectral_begins_with(zoo: Zoo) -> None:
    unit = zoo.modules[0].name
    found = DSiRe("invariant").features(zoo, unit, CPU)
    torch.testing.assert_close(found, DeltaSpectral().features(zoo, unit, CPU)[:, :3], rtol=1e-5, atol=1e-6)


def test_a_padded_rank_an_absent_module_and_the_order_of_adapters(representation: Representation, zoo: Zoo) -> None:
    wider = {
        name: np.pad(stack.read(0, len(zoo)), ((0, 0), *((0, 2 * (size == 3)) for size in stack.shape[1:])))
        for name, stack in zoo.layers.items()
    }
    padded = with_layers(zoo, wider)
    order = np.random.default_rng(0).permutation(len(zoo))
    for unit in representation.fit(zoo, CPU).units(zoo):
        found = representation.features(zoo, unit, CPU)
        names = representation.feature_names(zoo, unit)
        torch.testing.assert_close(representation.features(zoo.rows(order), unit, CPU), found[order])
        other = replace(representation).fit(padded, CPU)  # type: ignore[type-var]
        at = [other.feature_names(padded, unit).index(name) for name in names]
        torch.testing.assert_close(other.features(padded, unit, CPU)[:, at], found, rtol=1e-5, atol=1e-6)
        if not isinstance(representation, DSiRe):
            assert not found[5:7].any()
            assert found[[0, 1, 2, 3, 4, 7]].abs().amax(1).min() > 0


def test_a_random_gauge_in_float64_changes_nothing() -> None:
    """What the float32 of a zoo hides: a G of condition 100, to 1e-9."""
    rng = np.random.default_rng(1)
    down, up = (torch.from_numpy(rng.normal(size=shape)) for shape in ((4, 3, 12), (4, 9, 3)))
    q, p = (np.linalg.qr(rng.normal(size=(4, 3, 3)))[0] for _ in range(2))
    gauge = torch.from_numpy(q @ (np.array([10.0, 1.0, 0.1])[:, None] * p))
    other = torch.linalg.solve(gauge, down), up @ gauge
    ones = torch.ones(4)
    before, after = (projector_diagonals(*pair, ones) for pair in ((down, up), other))
    torch.testing.assert_close(before, after, rtol=0, atol=1e-9)
    before, after = (lowrank.singular_values(*pair) for pair in ((down, up), other))
    torch.testing.assert_close(before, after, rtol=1e-9, atol=0)


def test_the_gauge_of_a_zoo(representation: Representation, zoo: Zoo) -> None:
    there = zoo.rows(np.array([0, 1, 2, 3, 4, 7, 8]))
    other = regauged(there)
    for unit in representation.fit(there, CPU).units(there):
        pair = representation.features(there, unit, CPU), representation.features(other, unit, CPU)
        assert torch.allclose(*pair, rtol=1e-4, atol=1e-4) == representation.gauge_invariant


def test_weights_that_are_no_numbers_are_refused(representation: Representation, zoo: Zoo) -> None:
    broken = zoo.read(zoo.modules[0].up).copy()
    broken[2, 0, 0] = np.nan
    bad = replace(zoo, layers={**zoo.layers, zoo.modules[0].up: Stack((broken,))})
    with pytest.raises(LorabenchError, match=r"NaN or infinite weights in layer .* of adapter2"):
        representation.fit(bad, CPU).transform(bad, CPU)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Projectors(0), r"representation\.k=0"),
        (GaussianSketch(rows=0), r"representation\.rows=0"),
        (DSiRe("private"), r"representation\.spectra=private: allowed are published and invariant"),
    ],
)
def test_what_is_no_option(wrong: Representation, message: str, zoo: Zoo) -> None:
    with pytest.raises(LorabenchError, match=message):
        wrong.units(zoo)
