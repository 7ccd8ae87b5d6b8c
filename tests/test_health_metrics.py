"""Metrics of an adapter's modules beside dense linear algebra in numpy, and on what has no spectrum."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.adapters import load
from lorabench.adapters.adapter import LoraModule
from lorabench.errors import LorabenchError
from lorabench.health import module_metrics

CLOSE = {"rel": 1e-6, "abs": 1e-9}


def a_module(rng, out=12, width=9, rank=4, scale=0.5, spectrum=None):
    down, up = rng.normal(size=(rank, width)), rng.normal(size=(out, rank))
    if spectrum is not None:
        left, right = (np.linalg.qr(rng.normal(size=(side, rank)))[0] for side in (out, width))
        up, down = left * np.sqrt(spectrum), (right * np.sqrt(spectrum)).T
    return LoraModule(
        torch.tensor(down, dtype=torch.float32), torch.tensor(up, dtype=torch.float32), scale, scale * rank
    )


def dense(module):
    """The same by numpy's SVD of the product and of the factors."""
    down, up = module.down.double().numpy(), module.up.double().numpy()
    rank = len(down)
    sigma = np.linalg.svd(up @ down, compute_uv=False)[:rank]
    sigma = np.pad(sigma, (0, rank - len(sigma)))

    def entropy_rank(values):
        share = values[values > 1e-12 * values[0]] / values.sum()
        return math.exp(-(share * np.log(share)).sum())

    of_a, of_b = (np.linalg.svd(factor, compute_uv=False) for factor in (down, up))
    energy = np.cumsum(sigma**2) / (sigma**2).sum()
    return {
        "effective_rank_BA": entropy_rank(sigma),
        "stable_rank": (sigma**2).sum() / sigma[0] ** 2,
        "energy_rank": int(np.searchsorted(energy, 0.9 - 1e-12) + 1),
        "rank_utilization": entropy_rank(sigma) / rank,
        "kappa_BA": sigma[0] / sigma[-1] if sigma[-1] else math.inf,
        "sigma_max_BA": sigma[0],
        "frobenius_BA": np.linalg.norm(up @ down),
        "sigma_max": abs(module.scale) * sigma[0],
        "frobenius": abs(module.scale) * np.linalg.norm(up @ down),
        "effective_rank_A": entropy_rank(of_a),
        "effective_rank_B": entropy_rank(of_b),
        "kappa_A": of_a[0] / of_a[-1],
        "kappa_B": of_b[0] / of_b[-1],
    }


@pytest.mark.parametrize("rank", [1, 2, 4, 8])
@pytest.mark.parametrize("scale", [1.0, 0.25, -2.0])
def test_metrics_are_those_of_dense_linear_algebra(rank, scale):
    rng = np.random.default_rng(rank)
    modules = {f"m{i}": a_module(rng, 12 + i % 2, 9, rank, scale) for i in range(5)}
    found = module_metrics(modules)
    assert [one.module for one in found] == list(modules)
    for one in found:
        expected = dense(modules[one.module])
        for name, value in expected.items():
            assert getattr(one, name) == pytest.approx(value, **CLOSE), name
        assert one.numerical_rank == rank
        assert (one.finite, one.untrained, one.dead_dimensions) == (True, False, ())


def test_the_vector_of_the_definitions():
    (found,) = module_metrics({"m": a_module(np.random.default_rng(0), spectrum=np.array([4.0, 2.0, 1.0, 1.0]))})
    assert found.effective_rank_BA == pytest.approx(3.364, abs=5e-4)
    assert found.stable_rank == pytest.approx(1.375, abs=1e-5)
    assert found.rank_utilization == pytest.approx(0.841, abs=5e-4)
    assert (found.energy_rank, found.numerical_rank) == (2, 4)
    assert found.kappa_BA == pytest.approx(4, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_no_gauge_changes_what_is_said_of_the_update(seed, rank):
    rng = np.random.default_rng(seed)
    module = a_module(rng, rank=rank)
    turn = rng.normal(size=(rank, rank)) + 3 * np.eye(rank)
    turned = LoraModule(
        torch.tensor(np.linalg.inv(turn) @ module.down.double().numpy(), dtype=torch.float32),
        torch.tensor(module.up.double().numpy() @ turn, dtype=torch.float32),
        module.scale,
    )
    one, other = module_metrics({"one": module, "other": turned})
    reach = 1e-4 * np.linalg.cond(turn) ** 2
    for name in ("effective_rank_BA", "stable_rank", "rank_utilization", "sigma_max", "frobenius"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=reach), name


def test_what_has_no_spectrum_has_no_ratio():
    rng = np.random.default_rng(0)
    module = a_module(rng)
    zero, broken = torch.zeros_like(module.up), module.down.clone()
    broken[0, 0] = math.nan
    half = module.down.clone()
    half[2] = 0
    untrained, still, nan, dead, nothing = module_metrics(
        {
            "untrained": LoraModule(module.down, zero),
            "scale 0": LoraModule(module.down, module.up, 0.0),
            "nan": LoraModule(broken, module.up),
            "dead": LoraModule(half, module.up),
            "nothing": LoraModule(torch.zeros_like(module.down), zero),
        }
    )
    assert untrained.untrained
    assert untrained.finite
    assert (untrained.effective_rank_BA, untrained.kappa_BA, untrained.energy_rank) == (None, None, None)
    assert (untrained.sigma_max, untrained.frobenius) == (0.0, 0.0)
    assert untrained.dead_dimensions == (0, 1, 2, 3)
    assert untrained.kappa_A == pytest.approx(dense(module)["kappa_A"], **CLOSE)
    assert (untrained.kappa_B, untrained.effective_rank_B) == (None, None)
    assert (still.untrained, still.sigma_max, still.rank_utilization) == (True, 0.0, None)
    assert not nan.finite
    assert not nan.untrained
    assert {nan.sigma_max, nan.frobenius_BA, nan.kappa_A, nan.stable_rank} == {None}
    assert dead.dead_dimensions == (2,)
    assert (dead.kappa_BA, dead.numerical_rank) == (math.inf, 3)
    assert nothing.kappa_A is None


def test_a_rank_above_the_width_is_no_error():
    rng = np.random.default_rng(1)
    module = a_module(rng, out=6, width=3, rank=5)
    (found,) = module_metrics({"m": module})
    assert (found.numerical_rank, found.kappa_BA) == (3, math.inf)
    factors = module.down.double().numpy(), module.up.double().numpy()
    assert (found.kappa_A, found.kappa_B) == pytest.approx([np.linalg.cond(factor) for factor in factors], rel=1e-5)
    assert found.rank_utilization == pytest.approx(dense(module)["effective_rank_BA"] / 5, rel=1e-5)


@pytest.mark.slow
def test_published_files_are_as_dense_linear_algebra_has_them(real_folder):
    seen = 0
    for path in sorted(real_folder.rglob("*.safetensors")):
        if path.stat().st_size > 1e6 or seen >= 4:
            continue
        try:
            adapter = load(path)
        except LorabenchError:  # what is no adapter, which other tests look at
            continue
        seen += 1
        for one in module_metrics(adapter.modules)[::5]:
            module = adapter.modules[one.module]
            assert (one.nominal_rank, one.shape, one.alpha) == (module.rank, module.shape, module.alpha)
            if one.untrained or not one.finite or math.prod(one.shape) > 2e5:  # a vocabulary's is too large when dense
                continue
            delta = module.scale * module.up.double().numpy() @ module.down.double().numpy()
            sigma = np.linalg.svd(delta, compute_uv=False)[: module.rank]
            assert one.sigma_max == pytest.approx(sigma[0], rel=1e-6)
            assert one.frobenius == pytest.approx(np.linalg.norm(delta), rel=1e-6)
            assert one.stable_rank == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-6)
            share = sigma[sigma > 0] / sigma.sum()
            assert one.effective_rank_BA == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-4)
    assert seen


def with_directions(rng, norms_down, norms_up, width):
    """Random directions, whose rows of A and columns of B have these norms."""
    down, up = rng.normal(size=(len(norms_down), width)), rng.normal(size=(width, len(norms_up)))
    down *= (norms_down / np.linalg.norm(down, axis=1))[:, None]
    up *= norms_up / np.linalg.norm(up, axis=0)
    return LoraModule(torch.tensor(down, dtype=torch.float32), torch.tensor(up, dtype=torch.float32))


@pytest.mark.parametrize("width", [64, 256, 1024])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_random_directions_have_the_effective_rank_of_their_norms(width, decay):
    rank, rng = 8, np.random.default_rng(width)
    norms_down, norms_up = np.arange(1.0, rank + 1) ** -decay, rng.permutation(np.linspace(1, 2, rank))
    modules = {str(i): with_directions(rng, norms_down, norms_up, width) for i in range(40)}
    rows = module_metrics(modules)
    product = norms_down * norms_up
    share = product / product.sum()
    expected = math.exp(-(share * np.log(share)).sum())
    assert [row.effective_rank_norms for row in rows] == pytest.approx([expected] * 40, rel=1e-6)
    # Unit rows of d random numbers have inner products of 1/√d: σ² moves by its square, r times.
    mean = float(np.mean([row.effective_rank_BA for row in rows]))
    assert mean == pytest.approx(expected, rel=1.5 * rank / width)


def test_directions_that_agree_use_less_than_their_norms_allow():
    rng = np.random.default_rng(0)
    module = with_directions(rng, np.ones(4), np.ones(4), 256)
    same = LoraModule(module.down[:1].expand(4, -1).contiguous(), module.up)
    (row,) = module_metrics({"m": same})
    assert row.effective_rank_norms == pytest.approx(4, rel=1e-6)
    assert row.effective_rank_BA == pytest.approx(1, rel=1e-3)


def test_stuck_dimensions_are_zero_on_both_sides():
    module = a_module(np.random.default_rng(3), rank=5)
    down, up = module.down.clone(), module.up.clone()
    down[[1, 3]], up[:, [3, 4]] = 0, 0
    (found,) = module_metrics({"m": LoraModule(down, up)})
    assert found.dead_dimensions == (1, 3, 4)
    assert found.stuck_dimensions == (3,)
    assert found.effective_rank_norms == pytest.approx(
        entropy_rank_of(np.linalg.norm(down.numpy(), axis=1) * np.linalg.norm(up.numpy(), axis=0)), rel=1e-6
    )
    (padded,) = module_metrics({"m": LoraModule(torch.cat([module.down, 0 * module.down]), torch.cat([up, 0 * up], 1))})
    assert padded.stuck_dimensions == (5, 6, 7, 8, 9)
    (broken,) = module_metrics({"m": LoraModule(down * math.nan, up)})
    assert (broken.stuck_dimensions, broken.dead_dimensions, broken.effective_rank_norms) == ((), (), None)


def entropy_rank_of(values):
    share = values[values > 0] / values.sum()
    return math.exp(-(share * np.log(share)).sum())


def test_ratios_to_the_base_are_of_the_scaled_update():
    module = a_module(np.random.default_rng(4), scale=-0.25)
    (row,) = module_metrics({"m": module})
    assert (row.dominance, row.effective_lr_scale) == (None, None)
    beside = replace(row, base_sigma_max=3.0, base_frobenius=5.0)
    delta = module.delta().double().numpy()
    assert beside.dominance == pytest.approx(np.linalg.norm(delta, 2) / 3, rel=1e-6)
    assert beside.effective_lr_scale == pytest.approx(np.linalg.norm(delta) / 5, rel=1e-6)
    zero = replace(row, base_sigma_max=0.0, base_frobenius=0.0)
    assert (zero.dominance, zero.effective_lr_scale) == (None, None)
    (nan,) = module_metrics({"m": LoraModule(module.down * math.nan, module.up)})
    unknown = replace(nan, base_sigma_max=3.0, base_frobenius=5.0)
    assert (unknown.dominance, unknown.effective_lr_scale) == (None, None)
    (untrained,) = module_metrics({"m": LoraModule(module.down, 0 * module.up)})
    assert replace(untrained, base_sigma_max=3.0).dominance == 0


def test_factor_condition_is_the_larger_that_is_defined():
    module = a_module(np.random.default_rng(5), rank=3)
    for down, up in ((module.down * torch.tensor([[1.0], [1.0], [50.0]]), module.up), (module.down, module.up * 9)):
        (row,) = module_metrics({"m": LoraModule(down, up)})
        expected = max(np.linalg.cond(down.double().numpy()), np.linalg.cond(up.double().numpy()))
        assert row.factor_condition == pytest.approx(expected, rel=1e-6)
    (untrained,) = module_metrics({"m": LoraModule(module.down, 0 * module.up)})
    assert untrained.factor_condition == untrained.kappa_A
    (nothing,) = module_metrics({"m": LoraModule(0 * module.down, 0 * module.up)})
    assert nothing.factor_condition is None


def test_no_module_is_no_error():
    assert module_metrics({}) == []
