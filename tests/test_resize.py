"""Resizing against dense SVDs, and against the definitions' numbers."""

import doctest
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.adapters.adapter import LoraModule
from lorabench.adapters.comparing.deviation import deviations, total
from lorabench.adapters.resizing import ranks
from lorabench.adapters.resizing.ranks import spectral_rank
from lorabench.adapters.resizing.rule import ResizeRule
from lorabench.adapters.resizing.whole import resize
from lorabench.errors import LorabenchError
from tests.resize_modules import adapter_of, apart, dense, make, one, tail

SIGMA = [4.0, 2.0, 1.0, 1.0]
FEW = settings(deadline=None, max_examples=40)

shapes = {
    "seed": st.integers(0, 2**20),
    "rank": st.integers(1, 8),
    "d_out": st.integers(1, 20),
    "d_in": st.integers(1, 20),
    "scale": st.sampled_from([1.0, 0.125, -3.0, 1e-4, 1e4]),
}


def with_spectrum(sigma: list[float], scale: float = 0.5) -> LoraModule:
    """ΔW [16, 10] with these singular values; every number in it is exact where they are powers of 2."""
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    four = torch.kron(two, two) / 2
    basis = torch.kron(four, four)  # Hadamard's
    up = basis[:, : len(sigma)] @ torch.diag(torch.tensor(sigma)) / scale
    return LoraModule(torch.eye(10)[3 : 3 + len(sigma)], up, scale)


def same_but_zeros(before: LoraModule, after: LoraModule) -> bool:
    down, up = after.down.clone(), after.up.clone()
    same = torch.equal(down[: before.rank], before.down) and torch.equal(up[:, : before.rank], before.up)
    return same and not bool(down[before.rank :].any() or up[:, before.rank :].any())


# The definitions' numbers


@pytest.mark.parametrize(
    ("mode", "value", "rank"), [("sv_ratio", 3, 2), ("sv_cumulative", 0.75, 2), ("sv_fro", 0.9, 2), ("energy", 0.9, 2)]
)
def test_the_vector_of_the_definitions(mode: str, value: float, rank: int) -> None:
    module, receipt = one(with_spectrum(SIGMA), **{mode: value})
    assert (module.rank, receipt.new_rank) == (rank, rank)
    assert module.scale == 0.5
    assert module.alpha == 0.5 * rank
    assert receipt.predicted == pytest.approx(math.sqrt(2 / 22), rel=1e-6)
    assert receipt.measured == pytest.approx(math.sqrt(2 / 22), rel=1e-6)


@pytest.mark.parametrize(("mode", "value"), [("sv_ratio", 3), ("sv_cumulative", 0.75), ("sv_fro", 0.9)])
def test_kohyas_counts_are_one_more(mode: str, value: float) -> None:
    module, receipt = one(with_spectrum(SIGMA), kohya_counts=True, **{mode: value})
    assert module.rank == 3
    assert receipt.predicted == pytest.approx(math.sqrt(1 / 22), rel=1e-6)


@FEW
@given(seed=st.integers(0, 999), count=st.integers(1, 12), share=st.floats(0.01, 1.0), ratio=st.floats(1.0, 50.0))
def test_spectral_ranks_are_those_counted_by_hand(seed: int, count: int, share: float, ratio: float) -> None:
    sigma = np.sort(np.random.default_rng(seed).exponential(size=count) ** 3)[::-1].copy()

    def fewest(values: np.ndarray, part: float) -> int:
        return next(k for k in range(1, count + 1) if values[:k].sum() >= part * values.sum() * (1 - 1e-12))

    expected = {
        "sv_ratio": max(1, sum(value > sigma[0] / ratio for value in sigma)),
        "sv_cumulative": fewest(sigma, share),
        "sv_fro": fewest(sigma**2, share**2),
        "energy": fewest(sigma**2, share),
    }
    for mode, number in expected.items():
        value = ratio if mode == "sv_ratio" else share
        found = spectral_rank(mode, value, torch.from_numpy(sigma))
        assert found.item() == number
        assert spectral_rank(mode, value, torch.from_numpy(sigma), True).item() == min(number + 1, count)


# Optimal truncation


@FEW
@given(**shapes, new=st.integers(1, 8))
def test_truncation_is_optimal_and_foretold(
    seed: int, rank: int, d_out: int, d_in: int, scale: float, new: int
) -> None:
    module = make(seed, rank, d_out, d_in, scale)
    found, receipt = one(module, rank=new)
    assert found.rank == min(new, d_out, d_in)
    assert found.scale == scale
    assert found.alpha == scale * found.rank
    best = tail(module, new)
    assert receipt.predicted == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert apart(module, found) == pytest.approx(best, rel=1e-5, abs=3e-7)
    assert receipt.measured == pytest.approx(apart(module, found), rel=1e-6, abs=1e-13)


@FEW
@given(**shapes)
def test_more_rank_never_means_more_error(seed: int, rank: int, d_out: int, d_in: int, scale: float) -> None:
    module = make(seed, rank, d_out, d_in, scale)
    errors = [one(module, rank=new)[1] for new in range(1, rank + 1)]
    assert all(a.predicted >= b.predicted for a, b in itertools.pairwise(errors))
    assert all(a.measured >= b.measured - 3e-7 for a, b in itertools.pairwise(errors))
    assert errors[-1].predicted == pytest.approx(0, abs=1e-12)


@FEW
@given(**shapes, dtype=st.sampled_from([torch.float16, torch.bfloat16]), new=st.integers(1, 8))
def test_the_measured_error_is_of_the_rounded_factors(
    seed: int, rank: int, d_out: int, d_in: int, scale: float, dtype: torch.dtype, new: int
) -> None:
    module = make(seed, rank, d_out, d_in, scale, dtype=dtype)
    found, receipt = one(module, rank=new)
    assert found.dtype == dtype
    assert torch.equal(found.down, found.down.to(dtype).float())
    assert torch.equal(found.up, found.up.to(dtype).float())
    assert receipt.measured == pytest.approx(apart(module, found), rel=1e-6)
    rounding = 4 * torch.finfo(dtype).eps
    assert abs(receipt.measured - receipt.predicted) < rounding


@FEW
@given(**shapes, more=st.integers(0, 5))
def test_padding_keeps_delta_to_the_bit(seed: int, rank: int, d_out: int, d_in: int, scale: float, more: int) -> None:
    module = make(seed, rank, d_out, d_in, scale)
    found, receipt = one(module, pad=rank + more)
    assert found.rank == max(rank, min(rank + more, d_out, d_in))
    assert bool(receipt.notes) == (found.rank < rank + more)
    assert same_but_zeros(module, found)
    assert torch.allclose(dense(found), dense(module), rtol=1e-12, atol=0)
    assert found.scale == scale
    assert (receipt.predicted, receipt.measured) == (0, 0)


@FEW
@given(**shapes)
def test_the_same_rank_and_more_keep_delta(seed: int, rank: int, d_out: int, d_in: int, scale: float) -> None:
    module = make(seed, rank, d_out, d_in, scale)
    for how in ({"rank": rank}, {"rank": rank + 2}, {"energy": 1.0}, {"truncate": rank}):
        found, receipt = one(module, **how)
        assert apart(module, found) < 2e-6
        assert receipt.measured == pytest.approx(apart(module, found), rel=1e-3, abs=1e-13)
        if rank <= min(d_out, d_in):
            assert same_but_zeros(module, found) or "energy" in how


@FEW
@given(**shapes, new=st.integers(1, 8))
def test_truncated_factors_say_what_they_lose(
    seed: int, rank: int, d_out: int, d_in: int, scale: float, new: int
) -> None:
    module = make(seed, rank, d_out, d_in, scale)
    found, receipt = one(module, truncate=new)
    assert torch.equal(found.down, module.down[:new])
    assert torch.equal(found.up, module.up[:, :new])
    assert receipt.predicted == pytest.approx(apart(module, found), rel=1e-6, abs=1e-12)
    assert receipt.measured == pytest.approx(apart(module, found), rel=1e-6, abs=1e-12)
    assert receipt.optimal == pytest.approx(tail(module, new), rel=1e-5, abs=1e-7)
    assert receipt.optimal <= receipt.predicted


def test_small_predicted_errors_are_right() -> None:
    sigma = [1.0, 1e-2, 1e-4, 1e-6]
    for rank in (1, 2, 3):
        module = with_spectrum(sigma)
        assert one(module, rank=rank)[1].predicted == pytest.approx(tail(module, rank), rel=1e-6)


def test_total_error_is_of_all_modules_as_one() -> None:
    modules = [make(0, 4, 9, 8), make(1, 6, 9, 8, 2.0), make(2, 6, 5, 30, -1.0), make(3, 6, 9, 8)]
    before = adapter_of(*modules)
    after, receipt = resize(before, ResizeRule(rank=2))
    differences = [dense(before.modules[name]) - dense(after.modules[name]) for name in before.modules]
    norms = [dense(module).norm() for module in modules]
    whole = torch.stack([d.norm() for d in differences]).norm() / torch.stack(norms).norm()
    assert receipt.measured == pytest.approx(float(whole), rel=1e-6)
    assert receipt.predicted == pytest.approx(float(whole), rel=1e-4)
    relative = [float(d.norm() / n) for d, n in zip(differences, norms, strict=True)]
    assert receipt.worst == list(before.modules)[int(np.argmax(relative))]
    assert receipt.by_error()[0].module == receipt.worst
    assert [m.module for m in receipt.modules] == list(before.modules) == list(after.modules)


@pytest.mark.parametrize("size", [1e-3, 1e-6])
def test_a_small_change_is_measured_without_cancellation(size: float) -> None:
    before = make(0, 6, 40, 30)
    noise = torch.randn(6, 30, generator=torch.Generator().manual_seed(5))
    after = replace(before, down=before.down + size * noise)
    found = deviations({"m": before}, {"m": after})["m"]
    assert found.relative == pytest.approx(apart(before, after), rel=1e-6)
    assert total({"m": found}).relative == pytest.approx(found.relative)


def test_a_change_of_one_rounding_is_measured() -> None:
    before = make(0, 6, 40, 30)
    after = replace(before, down=torch.nextafter(before.down, torch.tensor(math.inf)))
    found = deviations({"m": before}, {"m": after})["m"]
    assert 1e-9 < found.relative < 1e-7
    assert found.relative == pytest.approx(apart(before, after), rel=1e-5)


# Degenerate modules


def test_an_untrained_module_has_no_error_and_the_least_rank() -> None:
    module = make(0, 4, 9, 8)
    for blank in (replace(module, up=module.up * 0), replace(module, scale=0.0)):
        for how in ({"energy": 0.9}, {"sv_ratio": 10}, {"size_mib": 1}):
            found, receipt = one(blank, **how)
            assert found.rank == 1
            assert (receipt.predicted, receipt.optimal, receipt.measured) == (None, None, None)
            assert any("untrained" in note for note in receipt.notes)
            assert torch.equal(found.delta(), torch.zeros(9, 8))
        assert one(blank, rank=3)[0].rank == 3
        assert one(blank, energy=0.9, min_rank=2)[0].rank == 2
        assert resize(adapter_of(blank), ResizeRule(rank=2))[1].worst is None


def test_a_rank_above_the_short_side_is_clamped() -> None:
    found, receipt = one(make(0, 8, 5, 30), rank=6)
    assert found.rank == 5
    assert receipt.predicted == pytest.approx(0, abs=1e-12)
    assert "clamped to 5" in receipt.notes[0]


def test_growing_says_so() -> None:
    found, receipt = one(make(0, 2, 9, 8), rank=5)
    assert found.rank == 5
    assert "grown from rank 2 with zeros" in receipt.notes[0]


def test_what_a_module_is_stays_and_what_it_was_made_from_goes() -> None:
    conv = make(0, 6, 9, 8 * 9, kernel=(3, 3))
    table = make(1, 6, 9, 30, embedding=True)
    hadamard = make(2, 6, 9, 8, kind="loha", assumed=("something",))
    resized, receipt = resize(adapter_of(conv, table, hadamard), ResizeRule(rank=3))
    first, second, third = resized.modules.values()
    assert first.kernel == (3, 3)
    assert second.embedding
    assert third.kind == "lora"
    assert any("1 modules were loha" in note for note in receipt.notes)


def test_dora_is_refused_unless_its_magnitudes_may_go() -> None:
    adapter = adapter_of(make(0, 4, 9, 8), make(1, 4, 9, 8, kind="dora"))
    adapter = replace(adapter, unsupported={"dora": ("unet.1.to_q.dora_scale",), "bias": ("b.bias",)})
    with pytest.raises(LorabenchError, match=r"1 modules are DoRA, unet\.1\.to_q .*drop_dora"):
        resize(adapter, ResizeRule(rank=2, drop_unsupported=True))
    resized, receipt = resize(adapter, ResizeRule(rank=2, drop_dora=True, drop_unsupported=True))
    assert {module.kind for module in resized.modules.values()} == {"lora"}
    assert any("magnitudes are dropped" in note for note in receipt.notes)
    assert "left out: bias (1: b.bias)" in receipt.notes


def test_what_is_no_pair_is_refused_by_name_unless_it_may_go() -> None:
    kept = {"full_weight": ("head.weight",), "textual_inversion": ("<s1>", "<s2>")}
    adapter = replace(adapter_of(make(0, 4, 9, 8)), unsupported=kept)
    with pytest.raises(LorabenchError, match=r"full_weight: head\.weight; textual_inversion: <s1>, <s2>.*--drop-unsup"):
        resize(adapter, ResizeRule(rank=2, drop_dora=True))
    resized, receipt = resize(adapter, ResizeRule(rank=2, drop_unsupported=True))
    assert resized.unsupported == {}
    assert sum("left out" in note for note in receipt.notes) == 2


def test_a_file_that_grows_is_said(tmp_path: Path) -> None:
    path = tmp_path / "lokr.safetensors"
    path.write_bytes(b"x" * 100)  # LoKr's own factors are smaller than any pair
    adapter = replace(adapter_of(make(0, 4, 9, 8, kind="lokr")), path=path)
    notes = resize(adapter, ResizeRule(size_mib=1.0))[1].notes
    assert "the weights alone are larger than the file that was read, 272 over 100 bytes" in notes
    path.write_bytes(b"x" * 300)
    assert not any("larger than the file" in note for note in resize(adapter, ResizeRule(size_mib=1.0))[1].notes)


def test_padding_beyond_every_use_is_clamped() -> None:
    wide, over = make(0, 4, 9, 30), make(1, 12, 9, 8)  # the second has more rank already than ΔW's short side
    resized, receipt = resize(adapter_of(wide, over), ResizeRule(pad=10**9))
    assert [module.rank for module in resized.modules.values()] == [9, 12]
    assert receipt.modules[0].notes == ("rank 1000000000 is clamped to 9, the short side of ΔW [9, 30]",)
    assert receipt.modules[1].notes == ("rank 1000000000 is clamped to 12, the old rank of ΔW [9, 8]",)
    assert receipt.measured == 0


def test_factors_are_balanced_whatever_the_scale() -> None:
    for scale in (1e-4, 1.0, 1e4, -1e4):
        module = replace(make(0, 6, 30, 30), dtype=torch.float16)
        module = replace(module, down=module.down * 1e4, up=module.up * 1e-6 / scale, scale=scale)
        found, receipt = one(module, rank=5)
        assert found.down.norm() == pytest.approx(float(found.up.norm()), rel=1e-2)
        assert receipt.measured == pytest.approx(receipt.predicted, rel=1e-2)


def test_values_that_leave_the_stored_type_are_refused() -> None:
    module = replace(make(0, 4, 9, 8), scale=1e-9, dtype=torch.float16)
    module = replace(module, down=module.down * 1e6, up=module.up * 1e6)
    with pytest.raises(LorabenchError, match=r"unet\.0\.to_q.*do not fit torch\.float16"):
        resize(adapter_of(module), ResizeRule(rank=2))
    assert resize(adapter_of(module), ResizeRule(rank=2), dtype=torch.bfloat16)[1].measured < 1


def test_eight_bit_factors_become_bfloat16() -> None:
    assert one(make(0, 4, 9, 8, dtype=torch.float8_e4m3fn), rank=2)[0].dtype == torch.bfloat16


def test_examples_in_the_docstrings() -> None:
    found = doctest.testmod(ranks)
    assert found.attempted > 0
    assert found.failed == 0
