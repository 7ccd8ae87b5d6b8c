"""What adapters hold besides low-rank pairs, merged: whole tensors and entries of configurations."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.adapters.merging.extras import merged_config, merged_extras
from lorabench.adapters.merging.recipe import Recipe
from lorabench.errors import LorabenchError

FEW = settings(deadline=None, max_examples=40)


@FEW
@given(seed=st.integers(0, 2**16), parts=st.lists(st.integers(-9, 9), min_size=2, max_size=4))
def test_the_sum_of_saved_modules_moves_any_base_as_the_adapters_do(seed: int, parts: list[int]) -> None:
    if sum(parts) == 0:
        parts[0] += 1
    weights = [part / sum(parts) for part in parts]
    generator = torch.Generator().manual_seed(seed)
    base, *heads = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(len(parts) + 1))
    merged = merged_extras([{"head": head} for head in heads], weights)
    moved = sum(weight * (head - base) for weight, head in zip(weights, heads, strict=True))
    assert torch.allclose(merged.tensors["head"] - base, moved, rtol=1e-9, atol=1e-9 * max(map(abs, weights)))
    assert "head" in merged.notes[0]


@FEW
@given(
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]),
    owners=st.lists(st.booleans(), min_size=1, max_size=4).filter(any),
    weights=st.lists(st.floats(-3, 3), min_size=4, max_size=4),
)
def test_what_all_who_have_it_agree_on_is_carried(dtype: torch.dtype, owners: list[bool], weights: list[float]) -> None:
    head = torch.tensor([[1, 0], [1, 1]]).to(dtype)
    merged = merged_extras([{"head": head.clone()} if own else {} for own in owners], weights[: len(owners)])
    assert torch.equal(merged.tensors["head"], head)
    assert merged.tensors["head"].dtype == dtype
    assert bool(merged.notes) != all(owners)


@pytest.mark.parametrize(
    ("second", "weights", "why"),
    [
        (torch.ones(3), [0.5, 0.5], "shapes are 2 and 3"),
        (torch.ones(2), [0.5, 0.6], "weights sum to 1.1"),
        (torch.ones(2, dtype=torch.int64), [0.5, 0.5], "no floating numbers"),
        (None, [0.5, 0.25, 0.25], "some adapters lack it"),
    ],
)
def test_what_cannot_be_summed_is_refused_by_name(second: torch.Tensor | None, weights: list[float], why: str) -> None:
    adapters = [{"head": torch.zeros(2)}, {"head": torch.ones(2) if second is None else second}]
    adapters += [{}] if second is None else []
    with pytest.raises(LorabenchError, match=rf"^head .*{why}.*--drop-unsupported"):
        merged_extras(adapters, weights)
    dropped = merged_extras(adapters, weights, Recipe(drop_unsupported=True))
    assert (dict(dropped.tensors), len(dropped.notes)) == ({}, 1)


@FEW
@given(
    entries=st.dictionaries(st.text(min_size=2), st.none() | st.booleans() | st.integers() | st.lists(st.integers())),
    shares=st.lists(st.booleans(), min_size=1, max_size=4).filter(any),
)
def test_entries_that_nobody_contradicts_are_carried_whatever_they_are(
    entries: dict[str, Any], shares: list[bool]
) -> None:
    merged = merged_config([entries if share else {} for share in shares])
    assert merged.entries == entries
    assert merged.notes == ()


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("fan_in_fan_out", (True, False)),
        ("task_type", ("SEQ_CLS", "CAUSAL_LM")),
        ("layer_replication", ([[0, 2]], [[0, 3]])),
        ("alora_invocation_tokens", ([1], [2])),
        ("target_parameters", (["a"], ["b"])),
        ("nobody_has_heard_of_it", (1, 2)),
    ],
)
def test_entries_that_differ_and_change_the_adapter_are_refused_by_name(key: str, values: tuple[Any, Any]) -> None:
    with pytest.raises(LorabenchError, match=rf"differ in {key}, .*agree"):
        merged_config([{key: value} for value in values])
    assert merged_config([{key: values[0]}, {key: None}]).entries == {key: values[0]}


def test_entries_of_provenance_are_left_out_where_they_differ() -> None:
    merged = merged_config([{"revision": "a", "r": 4, "peft_version": "1"}, {"revision": "b", "r": 8}])
    assert merged.entries == {"peft_version": "1"}
    assert merged.notes == ("revision: 'a' and 'b'; left out",)


@pytest.mark.parametrize("way", ["pissa", "pissa_niter_16", "olora", "corda", "loftq"])
def test_adapters_that_change_their_base_are_merged_with_no_other(way: str) -> None:
    config = {"init_lora_weights": way}
    for other in ({"init_lora_weights": True}, {}):
        with pytest.raises(LorabenchError, match=f"init_lora_weights='{way}'"):
            merged_config([config, other])
    assert merged_config([config]).entries == merged_config([config, config]).entries == config
    assert merged_config([{"init_lora_weights": True}, {"init_lora_weights": "gaussian"}]).entries == {}
