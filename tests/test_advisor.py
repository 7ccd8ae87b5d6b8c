"""The ranks that are advised, beside every other choice of ranks on small adapters, and beside what resize does."""

import itertools
import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.adapters import ResizeRule, load, resize, save
from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.resizing.ranks import energy_ranks
from lorabench.errors import LorabenchError
from lorabench.health.advisor import advise
from lorabench.health.kohya import block_dims
from tests.test_adapter_commands import run


def a_module(sigma, d_out=7, d_in=9, scale=0.5, seed=0):
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(side, len(sigma))))[0] for side in (d_out, d_in))
    parts = (right.T, left * np.asarray(sigma) / abs(scale))
    return LoraModule(*(torch.tensor(part, dtype=torch.float32) for part in parts), scale, scale * len(sigma))


def three():
    return {
        "t.h.0.attn.q": a_module([5.0, 3.0, 0.5, 0.1], seed=1),
        "t.h.0.attn.v": a_module([2.0, 1.0, 0.2, 0.1], seed=2),
        "t.h.0.mlp.fc": a_module([4.0, 3.5, 3.0, 0.1], d_out=20, seed=3),
    }


def dense_error(modules, ranks):
    lost = whole = 0.0
    for name, module in modules.items():
        sigma = np.linalg.svd(module.delta().double().numpy(), compute_uv=False)
        lost, whole = lost + (sigma[ranks[name] :] ** 2).sum(), whole + (sigma**2).sum()
    return math.sqrt(lost / whole)


def every_choice(modules):
    for ranks in itertools.product(*(range(1, module.rank + 1) for module in modules.values())):
        yield dict(zip(modules, ranks, strict=True))


@pytest.mark.parametrize("loss", [0.3, 0.1, 0.01, 1e-3, 0.0])
def test_no_choice_of_fewer_values_loses_as_little(loss):
    modules = three()
    found = advise(modules, loss)
    assert found.advised.error == pytest.approx(dense_error(modules, found.advised.ranks), rel=1e-5, abs=1e-6)
    assert found.advised.error**2 <= loss + 1e-9
    count = sum(found.advised.ranks.values())
    for ranks in every_choice(modules):
        if sum(ranks.values()) < count:
            assert dense_error(modules, ranks) ** 2 > loss
    assert found.now.error == 0.0


@pytest.mark.parametrize("parameters", [75, 100, 130, 200, 400])
def test_no_choice_within_the_budget_loses_less(parameters):
    modules = three()
    found = advise(modules, parameters=parameters)
    numbers = sum(sum(modules[name].shape) * rank for name, rank in found.advised.ranks.items())
    assert found.advised.parameters == numbers <= parameters
    best = min(
        dense_error(modules, ranks)
        for ranks in every_choice(modules)
        if sum(sum(modules[name].shape) * rank for name, rank in ranks.items()) <= parameters
    )
    # What does not fill the budget exactly may miss by one step (Fox 1966).
    step = max(sum(module.shape) for module in modules.values())
    assert advise(modules, parameters=parameters + step).advised.error <= best + 1e-6
    assert found.uniform.parameters <= found.advised.parameters
    assert len(set(found.uniform.ranks.values())) == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 1.0))
def test_one_threshold_is_what_sorting_all_values_gives(seed, share):
    rng = np.random.default_rng(seed)
    spectra = {name: torch.tensor(np.sort(rng.exponential(size=4))[::-1].copy()) for name in "abc"}
    ranks = energy_ranks(spectra, dict.fromkeys(spectra, (0, 4)), share)
    values = np.sort(np.concatenate([sigma.numpy() for sigma in spectra.values()]))[::-1] ** 2
    fewest = int(np.searchsorted(np.cumsum(values) / values.sum(), share - 1e-12) + 1)
    assert sum(ranks.values()) == min(fewest, 12)
    kept = [float(sigma[i]) for name, sigma in spectra.items() for i in range(ranks[name])]
    left = [float(sigma[i]) for name, sigma in spectra.items() for i in range(ranks[name], 4)]
    assert min(kept) >= max(left, default=0.0)


def test_the_baselines_and_the_types_are_what_they_say():
    modules, pair = three(), ("t.h.0.attn.q", "t.h.0.attn.v")
    found = advise(modules, 0.05)
    assert len(found.shuffled_errors) == 20
    orders = itertools.permutations([found.advised.ranks[name] for name in pair])
    possible = [dense_error(modules, {**found.advised.ranks, **dict(zip(pair, one, strict=True))}) for one in orders]
    assert all(any(error == pytest.approx(one, rel=1e-5) for one in possible) for error in found.shuffled_errors)
    assert len({round(error, 6) for error in found.shuffled_errors}) == len({round(one, 6) for one in possible})
    assert found.by_type["attention"][0] == 2
    assert found.by_type["feed-forward"] == (1, 4.0, float(found.advised.ranks["t.h.0.mlp.fc"]))
    assert advise(modules, 0.05, seed=3).advised == found.advised


def test_patterns_give_every_module_its_rank_and_its_scale():
    modules = three() | {"t.h.1.attn.q": a_module([1.0, 0.9], scale=2.0)}
    found = advise(modules, 0.02)
    for name, rank in found.advised.ranks.items():
        assert found.rank_pattern.get(name, found.rank) == rank
        assert found.alpha_pattern.get(name, found.alpha) / rank == pytest.approx(modules[name].scale)


def test_what_is_untrained_needs_no_rank_and_nothing_at_all_is_told():
    modules = three()
    zero = LoraModule(torch.ones(2, 9), torch.zeros(7, 2))
    found = advise({**modules, "t.h.9.attn.q": zero})
    assert found.advised.ranks["t.h.9.attn.q"] == 0
    assert "t.h.9.attn.q" not in found.rank_pattern
    with pytest.raises(LorabenchError, match="no module is trained"):
        advise({"q": zero})
    with pytest.raises(LorabenchError, match="rank 1 everywhere takes 61"):
        advise(modules, parameters=60)
    for loss in (-0.1, 1.0, math.nan):
        with pytest.raises(LorabenchError, match="a share of the energy"):
            advise(modules, loss)


@pytest.mark.parametrize("how", [{"loss": 0.05}, {"parameters": 150}])
def test_resize_does_what_is_advised(tmp_path, how):
    adapter = Adapter(tmp_path / "x", (), three())
    found = advise(adapter.modules, **how)
    smaller, receipt = resize(adapter, ResizeRule(**({"total_energy": 0.95} if "loss" in how else how)))
    assert {name: module.rank for name, module in smaller.modules.items()} == found.advised.ranks
    assert receipt.measured == pytest.approx(found.advised.error, rel=1e-5)


def test_block_dims_are_placed_as_kohya_counts_the_blocks():
    """The way in, four stages down of three, the middle, four stages up of three."""
    down = [f"down_blocks.{i}.{part}" for i in range(4) for part in ("attentions.0", "attentions.1", "downsamplers.0")]
    up = [f"up_blocks.{i}.attentions.{j}" for i in range(4) for j in range(3)]
    for place, name in enumerate([None, *down[:11], "mid_block.attentions.0", *up]):
        if name is not None:
            dims = block_dims({f"unet.{name}.proj_in": 3, "text_encoder.text_model.encoder.layers.0.mlp.fc1": 9})
            assert dims is not None
            assert [i for i, dim in enumerate(dims) if dim] == [place]
    both = block_dims({"unet.mid_block.attentions.0.proj_in": 2, "unet.mid_block.resnets.1.conv1": 5})
    assert both is not None
    assert both[12] == 5
    assert block_dims({"transformer.h.0.attn.c_attn": 4}) is None
    assert block_dims({"text_encoder.text_model.encoder.layers.0.mlp.fc1": 9}) is None


@pytest.mark.slow
def test_the_command_writes_what_peft_takes_and_names_what_resizes(tmp_path):
    file, ranks, small = (tmp_path / name for name in ("a.safetensors", "ranks.json", "small.safetensors"))
    save(file, Adapter(file, (), three()), "diffusers")
    said = run("advise", str(file), "--loss", "0.05", "-o", str(ranks)).stdout
    assert "one threshold" in said
    written = json.loads(ranks.read_text())
    assert written.keys() == {"r", "lora_alpha", "rank_pattern", "alpha_pattern"}
    found = json.loads(run("advise", str(file), "--loss", "0.05", "--json").stdout)
    assert found["rank_pattern"] == written["rank_pattern"]
    words = re.search(r"lorabench-adapter (resize .*) -o SMALLER", said)
    assert words is not None
    assert run(*words[1].split(), "-o", str(small)).returncode == 0
    resized = {name: module.rank for name, module in load(small).modules.items()}
    assert resized == found["advised"]["ranks"]
    assert run("advise", str(file), "-o", str(ranks)).returncode == 1
    assert run("advise", str(file), "--loss", "1.5").returncode == 2
    assert run("advise", str(file), "--loss", "0.1", "--parameters", "100").returncode == 2
