"""What the spectra foresee is what a resize then does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.resizing.preview import Preview
from lorabench.adapters.resizing.rule import ResizeRule
from lorabench.adapters.resizing.whole import resize
from lorabench.errors import LorabenchError

RULES = [
    ResizeRule(rank=2),
    ResizeRule(rank=3, limits={"*0*": 1}),
    ResizeRule(energy=0.8),
    ResizeRule(total_energy=0.9, min_rank=2),
    ResizeRule(sv_ratio=2, max_rank=3),
    ResizeRule(sv_cumulative=0.5),
    ResizeRule(sv_fro=0.7),
    ResizeRule(parameters=1200),
    ResizeRule(size_mib=0.012),
    ResizeRule(pad=9),
    ResizeRule(pad=10**6),
]


@pytest.fixture
def adapter() -> Adapter:
    """Three shapes, two ranks, falling spectra, and one module that was never trained."""
    torch.manual_seed(0)

    def module(rank: int, out: int, within: int) -> LoraModule:
        fall = 0.6 ** torch.arange(rank)
        return LoraModule(torch.randn(rank, within), torch.randn(out, rank) * fall, alpha=4.0)

    modules = {f"block.{i}.q": module(4, 20, 16) for i in range(3)}
    modules |= {f"block.{i}.v": module(6, 12, 30) for i in range(2)}
    modules["block.2.v"] = replace(modules["block.0.v"], up=torch.zeros(12, 6))
    return Adapter(Path("made.safetensors"), ("peft",), modules)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.mode)
def test_what_is_foreseen_is_what_a_resize_promises(rule: ResizeRule, adapter: Adapter) -> None:
    _, receipt = resize(adapter, rule)
    seen = Preview(adapter).under(rule)
    assert seen.ranks == {one.module: one.new_rank for one in receipt.modules}
    assert seen.error == pytest.approx(receipt.predicted or 0.0, rel=1e-9, abs=1e-14)
    assert seen.weight_bytes == receipt.weight_bytes
    assert seen.parameters * 4 == seen.weight_bytes  # all float32
    for one in receipt.modules:
        assert seen.errors[one.module] == pytest.approx(one.predicted or 0.0, rel=1e-9, abs=1e-14)


def test_the_curve_falls_to_nothing_as_dense_algebra_has_it(adapter: Adapter) -> None:
    curve = list(Preview(adapter).uniform())
    assert [max(one.ranks.values()) for one in curve] == [1, 2, 3, 4, 5, 6]
    updates = [one.scale * one.up.double() @ one.down.double() for one in adapter.modules.values()]
    sigma = [torch.linalg.svdvals(update) for update in updates]
    whole = torch.cat(sigma).norm()
    for rank, one in enumerate(curve, 1):
        left = torch.cat([values[rank:] for values in sigma]).norm()
        assert one.error == pytest.approx(float(left / whole), rel=1e-6, abs=1e-7)
    assert curve[-1].error == 0


def test_truncation_is_not_in_the_spectra(adapter: Adapter) -> None:
    with pytest.raises(LorabenchError, match="known when it is done"):
        Preview(adapter).under(ResizeRule(truncate=2))
