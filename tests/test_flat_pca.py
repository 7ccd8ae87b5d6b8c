"""Flat, PCA, DeltaPCA and the components beneath them, against scikit-learn on dense matrices."""

import numpy as np
import pytest
import sklearn.decomposition
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench import lowrank
from lorabench.errors import LorabenchError
from lorabench.representations import components as C
from lorabench.representations import delta_pca as D
from lorabench.representations.delta_pca import DeltaPCA
from lorabench.representations.flat import Flat
from lorabench.representations.pca import PCA
from lorabench.zoo import Stack, Zoo
from tests.synthetic_zoo import deltas, make_zoo, regauged, with_layers

CPU = torch.device("cpu")
MODES: tuple[C.Mode, ...] = ("covariance", "gram", "sketch")
TINY = 1e-9  # GB: nothing exact fits


def rows_of(x: np.ndarray, widths: tuple[int, ...] | None = None) -> C.Rows:
    widths = widths or (x.shape[1],)
    starts = np.cumsum([0, *widths])

    def read(block: int, start: int, stop: int) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(x[start:stop, starts[block] : starts[block + 1]]))

    return C.Rows(len(x), widths, read, CPU)


def decaying(n: int, d: int, seed: int, ratio: float = 0.8) -> np.ndarray:
    """Float32 rows with a geometric spectrum and a mean far from zero."""
    rng = np.random.default_rng(seed)
    k = min(n, d)
    u, v = np.linalg.qr(rng.normal(size=(n, k)))[0], np.linalg.qr(rng.normal(size=(d, k)))[0]
    return ((u * ratio ** np.arange(k)) @ v.T * 10 + rng.normal(size=d)).astype(np.float32)


def flatten(zoo: Zoo, layers: list[str]) -> np.ndarray:
    return np.concatenate([zoo.read(name).reshape(len(zoo), -1) for name in layers], axis=1)


def sklearn_scores(train: np.ndarray, new: np.ndarray, k: int) -> np.ndarray:
    pca = sklearn.decomposition.PCA(k, svd_solver="full").fit(train.astype(np.float64))
    return pca.transform(new.astype(np.float64))


def assert_same_up_to_sign(found: np.ndarray, expected: np.ndarray, rtol: float = 1e-5) -> None:
    signs = np.sign((found * expected).sum(0))
    assert np.abs(signs).all()
    np.testing.assert_allclose(found * signs, expected, atol=rtol * np.abs(expected).max(), rtol=0)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loop over pieces runs more than once."""
    monkeypatch.setattr(C, "_CHUNK_BYTES", 8 * 100)
    monkeypatch.setattr(D, "_STACKED_ROWS", 12)
    monkeypatch.setattr("lorabench.representations.base._CHUNK_BYTES", 4 * 100)


# components


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(60, 20), (20, 60), (40, 40)])
def test_every_mode_is_sklearns_pca(mode: C.Mode, shape: tuple[int, int], small_chunks: None) -> None:
    x, new = decaying(*shape, seed=1), decaying(9, shape[1], seed=2)
    k = 8
    basis = C.principal_components(rows_of(x, (7, shape[1] - 7)), k, 1e9, seed=3, mode=mode)
    reference = sklearn.decomposition.PCA(k, svd_solver="full").fit(x.astype(np.float64))
    np.testing.assert_allclose(basis.variance, reference.explained_variance_, rtol=1e-6)
    np.testing.assert_allclose(basis.mean, reference.mean_, atol=1e-6)
    # Signs too are scikit-learn's: the entry of largest size is positive in both.
    np.testing.assert_allclose(basis.directions, reference.components_, atol=1e-5)
    found = C.scores(rows_of(new), basis, k)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, reference.transform(new.astype(np.float64)), atol=1e-4)


def test_randomised_components_of_a_flat_spectrum_hold_nearly_all_variance() -> None:
    x = np.random.default_rng(0).normal(size=(400, 300)).astype(np.float32)
    exact = C.principal_components(rows_of(x), 20, 1e9, seed=0)
    near = C.principal_components(rows_of(x), 20, 1e9, seed=0, mode="sketch")
    assert near.variance.sum() <= exact.variance.sum() * (1 + 1e-12)
    assert near.variance.sum() > 0.98 * exact.variance.sum()


def test_the_sketch_is_seeded() -> None:
    rows = rows_of(np.random.default_rng(0).normal(size=(100, 90)).astype(np.float32))
    one, same, other = (C.principal_components(rows, 5, 0, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.directions, same.directions)
    assert not torch.equal(one.directions, other.directions)
    assert C.unit_seed(0, "a") != C.unit_seed(0, "b") != C.unit_seed(1, "b")


def test_mode_follows_the_budget() -> None:
    assert C.choose_mode(1000, 10, 24 * 100) == "covariance"
    assert C.choose_mode(10, 1000, 24 * 100) == "gram"
    assert C.choose_mode(10, 1000, 24 * 100 - 1) == "sketch"
    assert C.choose_mode(1000, 10, 24 * 100 - 1) == "sketch"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", ["constant", "zero", "one row", "rank one", "one column"])
def test_degenerate_rows_have_no_made_up_components(mode: C.Mode, case: str) -> None:
    rng = np.random.default_rng(0)
    line = rng.normal(size=(12, 1)).astype(np.float32)
    x = {
        "constant": np.full((12, 9), 0.1, np.float32),
        "zero": np.zeros((12, 9), np.float32),
        "one row": rng.normal(size=(1, 9)).astype(np.float32),
        "rank one": line @ np.array([[1, 2, 4, 8, 16, 1, 1, 0, 0.5]], np.float32),
        "one column": line,
    }[case]
    basis = C.principal_components(rows_of(x), 5, 1e9, seed=0, mode=mode)
    expected = 1 if case in ("rank one", "one column") else 0
    assert basis.directions.shape == (expected, x.shape[1])
    found = C.scores(rows_of(rng.normal(size=(4, x.shape[1])).astype(np.float32)), basis, 5)
    assert found.shape == (4, 5)
    assert torch.isfinite(found).all()
    assert (found[:, expected:] == 0).all()
    assert (found[:, :expected] != 0).all()


@settings(deadline=None, max_examples=25)
@given(n=st.integers(2, 12), d=st.integers(1, 12), seed=st.integers(0, 10_000))
def test_three_modes_agree(n: int, d: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    first, second, third = (C.principal_components(rows_of(x), 12, 1e9, seed, mode) for mode in MODES)
    assert len(first.variance) == min(n - 1, d)
    for other in (second, third):
        np.testing.assert_allclose(first.variance, other.variance, rtol=1e-7)
    for basis in (first, second, third):
        identity = np.eye(len(basis.directions))
        np.testing.assert_allclose(basis.directions @ basis.directions.T, identity, atol=1e-6)


# flat


def test_flat_is_the_layer_in_row_order(small_chunks: None) -> None:
    zoo = make_zoo()
    for layer in zoo.layers:
        found = Flat().features(zoo, layer, CPU)
        np.testing.assert_array_equal(found, zoo.read(layer).reshape(len(zoo), -1))
        names = Flat().feature_names(zoo, layer)
        _, _, cols = zoo.layers[layer].shape
        assert names[cols + 2] == "w[1,2]"


# pca


@pytest.mark.parametrize("memory", [0.1, TINY])
@pytest.mark.parametrize("scope", ["layer", "all"])
def test_pca_is_sklearns_on_flat_weights(scope: str, memory: float, small_chunks: None) -> None:
    zoo = make_zoo(40)
    train = np.arange(0, 40, 2)
    pca = PCA(components=4, scope=scope, memory_gb=memory).fit(zoo.rows(train), CPU)
    for unit in pca.units(zoo):
        flat = flatten(zoo, list(zoo.layers) if scope == "all" else [unit])
        expected = sklearn_scores(flat[train], flat, 4)
        assert_same_up_to_sign(pca.features(zoo, unit, CPU).numpy(), expected, 1e-5 if memory == 0.1 else 1e-3)


def test_pca_is_zero_beyond_the_components_there_are() -> None:
    zoo = make_zoo(5)
    pca = PCA(components=9).fit(zoo, CPU)
    found = pca.features(zoo, next(iter(zoo.layers)), CPU)
    assert found.shape == (5, 9)
    assert (found[:, 4:] == 0).all()
    assert found[:, :4].abs().sum(0).min() > 0


def test_pca_streams_and_never_reads_all_rows_at_once(monkeypatch: pytest.MonkeyPatch, small_chunks: None) -> None:
    zoo = make_zoo(60)
    read, largest = Stack.read, 0

    def watch(self: Stack, start: int, stop: int) -> np.ndarray:
        nonlocal largest
        found = read(self, start, stop)
        largest = max(largest, found.nbytes)
        return found

    monkeypatch.setattr(Stack, "read", watch)
    for representation in (PCA(scope="all", memory_gb=TINY), PCA(), DeltaPCA(), DeltaPCA(memory_gb=TINY)):
        representation.fit(zoo, CPU).transform(zoo, CPU)
    assert 0 < largest <= 4 * 100


@pytest.mark.parametrize(
    ("representation", "said"),
    [
        (PCA(components=0), "components=0"),
        (PCA(scope="module"), "allowed are layer and all"),
        (DeltaPCA(scope="layer"), "allowed are module and all"),
        (DeltaPCA(sketch=0), "sketch=0"),
        (DeltaPCA(components=-1), "components=-1"),
    ],
)
def test_wrong_arguments_are_named(representation: PCA | DeltaPCA, said: str) -> None:
    with pytest.raises(LorabenchError, match=said):
        representation.fit(make_zoo(), CPU)


@pytest.mark.parametrize("kind", [PCA, DeltaPCA])
def test_unfitted_refitted_and_empty(kind: type[PCA] | type[DeltaPCA]) -> None:
    zoo = make_zoo()
    unit = kind().units(zoo)[0]
    with pytest.raises(LorabenchError, match="call fit"):
        kind().features(zoo, unit, CPU)
    whole = kind(scope="all").fit(zoo, CPU)
    with pytest.raises(LorabenchError, match="call fit"):
        whole.features(zoo.without([next(iter(zoo.layers))]), "all", CPU)
    with pytest.raises(LorabenchError, match="no training rows"):
        kind().fit(zoo.rows(np.array([], np.int64)), CPU)
    nobody = kind(components=3).fit(zoo, CPU).features(zoo.rows(np.array([], np.int64)), unit, CPU)
    assert nobody.shape == (0, 3)


# delta_pca


@pytest.mark.parametrize("scope", ["module", "all"])
def test_delta_pca_is_sklearns_on_dense_deltas(scope: str, small_chunks: None) -> None:
    zoo = make_zoo(40)
    train = np.arange(1, 40, 2)
    found = DeltaPCA(components=6, scope=scope).fit(zoo.rows(train), CPU)
    for unit in found.units(zoo):
        modules = [m.name for m in zoo.modules] if scope == "all" else [unit]
        dense = np.concatenate([deltas(zoo, m).reshape(len(zoo), -1) for m in modules], axis=1)
        assert isinstance(found.bases_[unit], D.Dual)
        assert_same_up_to_sign(found.features(zoo, unit, CPU).numpy(), sklearn_scores(dense[train], dense, 6))


@pytest.mark.parametrize("scope", ["module", "all"])
def test_a_sketch_as_wide_as_the_layer_loses_nothing(scope: str, small_chunks: None) -> None:
    zoo = make_zoo(40)
    exact = DeltaPCA(components=6, scope=scope).fit(zoo, CPU).transform(zoo, CPU)
    near = DeltaPCA(components=6, scope=scope, memory_gb=TINY, sketch=7).fit(zoo, CPU)
    for unit, features in near.transform(zoo, CPU).items():
        assert isinstance(near.bases_[unit], D.Sketch)
        assert_same_up_to_sign(features.numpy(), exact[unit].numpy(), 1e-3)


def structured_zoo(count: int, d: int, rank: int, seed: int = 0) -> Zoo:
    """Adapters whose factors, each from its own start, lean towards a few common directions."""
    zoo = make_zoo(count, shapes=((d, d),), ranks=(rank,), seed=seed)
    rng = np.random.default_rng(seed)
    module = zoo.modules[0]
    common_in, common_out = (np.linalg.qr(rng.normal(size=(d, 6)))[0] for _ in range(2))
    down = rng.normal(size=(count, rank, d)) / np.sqrt(d) + rng.normal(size=(count, rank, 6)) @ common_in.T
    up = rng.normal(size=(count, d, rank)) / np.sqrt(d) + common_out @ rng.normal(size=(count, 6, rank))
    return with_layers(zoo, {module.down: down.astype(np.float32), module.up: up.astype(np.float32)})


def test_a_narrow_sketch_holds_the_leading_subspace() -> None:
    zoo = structured_zoo(200, 64, 2)
    unit = zoo.modules[0].name
    exact = DeltaPCA(components=10).fit(zoo, CPU).features(zoo, unit, CPU).double()
    near = DeltaPCA(components=10, memory_gb=0.0009, sketch=16).fit(zoo, CPU)
    assert isinstance(near.bases_[unit], D.Sketch)
    sketched = near.features(zoo, unit, CPU).double()
    share = (sketched.var(0).sum() / exact.var(0).sum()).item()
    cosines = torch.linalg.svdvals(torch.linalg.qr(exact)[0].T @ torch.linalg.qr(sketched)[0])
    assert 0.97 < share <= 1 + 1e-6
    assert cosines.min() > 0.9
    one_at_random = torch.linalg.svdvals(
        torch.linalg.qr(exact)[0].T @ torch.linalg.qr(torch.randn(200, 10, dtype=torch.float64))[0]
    )
    assert one_at_random.min() < 0.3


def test_the_sketch_of_deltas_is_seeded() -> None:
    zoo = structured_zoo(60, 32, 2)
    narrow = {"components": 5, "memory_gb": TINY, "sketch": 4}
    one, same, other = (DeltaPCA(**narrow, seed=s).fit(zoo, CPU).transform(zoo, CPU) for s in (1, 1, 2))
    (unit,) = one
    assert torch.equal(one[unit], same[unit])
    assert not torch.equal(one[unit], other[unit])


@settings(deadline=None, max_examples=20)
@given(n=st.integers(1, 5), m=st.integers(1, 5), r=st.integers(1, 4), q=st.integers(1, 4), seed=st.integers(0, 9999))
def test_inner_products_are_lowranks_and_dense(n: int, m: int, r: int, q: int, seed: int) -> None:
    """Of 5 × 6, which are formed from r · q = 3 on, and which are not below."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    left, right = (draw(n, r, 6), draw(n, 5, r)), (draw(m, q, 6), draw(m, 5, q))
    found = lowrank.inner_products(left, right)
    dense = torch.einsum("nab,mab->nm", left[1] @ left[0], right[1] @ right[0])
    torch.testing.assert_close(found, dense)
    for i in range(n):
        for j in range(m):
            one = lowrank.inner_product((left[0][i], left[1][i], 1.0), (right[0][j], right[1][j], 1.0))
            torch.testing.assert_close(found[i, j], one)


@pytest.mark.parametrize("memory", [0.1, TINY])
@pytest.mark.parametrize("scope", ["module", "all"])
def test_delta_pca_does_not_see_the_gauge(scope: str, memory: float) -> None:
    zoo = make_zoo(30)
    settings_ = {"components": 8, "scope": scope, "memory_gb": memory, "sketch": 4}
    before = DeltaPCA(**settings_).fit(zoo, CPU)
    other = regauged(zoo)
    after = DeltaPCA(**settings_).fit(other, CPU)
    for unit in before.units(zoo):
        a, b, c = (r.features(z, unit, CPU) for r, z in ((before, zoo), (before, other), (after, other)))
        tolerance = 1e-5 * a.abs().max().item()
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)
        torch.testing.assert_close(a, c, atol=tolerance, rtol=0)


def test_untrained_adapters_have_zero_scores() -> None:
    zoo = make_zoo(12)
    blank = with_layers(zoo, {m.up: np.zeros(zoo.layers[m.up].shape, np.float32) for m in zoo.modules})
    for memory in (0.1, TINY):
        for features in DeltaPCA(memory_gb=memory).fit(blank, CPU).transform(blank, CPU).values():
            assert features.shape == (12, 64)
            assert (features == 0).all()


def test_costly_products_are_sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = make_zoo(20)
    unit = zoo.modules[0].name
    assert isinstance(DeltaPCA().fit(zoo, CPU).bases_[unit], D.Dual)
    monkeypatch.setattr(D, "_MAX_FLOPS", 1000)
    assert isinstance(DeltaPCA().fit(zoo, CPU).bases_[unit], D.Sketch)


def test_delta_pca_needs_pairs() -> None:
    zoo = make_zoo()
    halves = zoo.only([m.down for m in zoo.modules])
    for scope in ("module", "all"):
        with pytest.raises(LorabenchError, match="both their layers"):
            DeltaPCA(scope=scope).units(halves)
    rest = zoo.without([zoo.modules[0].up])
    assert DeltaPCA(scope="all").layers_of(rest, "all") == tuple(
        name for m in zoo.modules[1:] for name in (m.down, m.up)
    )
