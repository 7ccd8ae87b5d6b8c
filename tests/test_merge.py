"""Merging: its identities, what it refuses, and what its report says."""

import hashlib
import json
import math
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorabench.adapters import Adapter, LoraModule, load, save
from lorabench.adapters.merging.preflight import preflight
from lorabench.adapters.merging.recipe import DENSE, METHODS, Recipe
from lorabench.adapters.merging.whole import merge
from lorabench.adapters.resizing.rule import ResizeRule
from lorabench.adapters.resizing.whole import resize
from lorabench.errors import LorabenchError
from tests.adapter_makers import CONV, LINEAR, SHAPES, TABLE, dense, dense_sum, make_adapter, near
from tests.real_adapters import published, real

FEW = settings(deadline=None, max_examples=25)

ranks = st.lists(st.integers(1, 13), min_size=3, max_size=3)  # over the short sides of 5, 6 and 7 too
scales = st.sampled_from([1.0, 0.5, -2.0, 3.7, 1e-3, 0.0])
weights = st.floats(-3, 3).filter(lambda weight: weight == 0 or abs(weight) > 1e-3)
Made = tuple[int, list[int], float]
recipes = st.tuples(st.integers(0, 2**16), ranks, scales)
"""What `make_adapter` is called with: hypothesis must not see beartype's use of `random`."""


def sizes(adapters: list[Adapter], by: list[float]) -> dict[str, float]:
    """Σ ‖w_i ΔW_i‖ of every module."""
    found: dict[str, float] = {}
    for adapter, weight in zip(adapters, by, strict=True):
        for name, module in adapter.modules.items():
            found[name] = found.get(name, 0.0) + float((weight * dense(module)).norm())
    return found


def assert_sum(merged: Adapter, adapters: list[Adapter], by: list[float], tolerance: float = 1e-6) -> None:
    expected, size = dense_sum(adapters, by), sizes(adapters, by)
    assert merged.modules.keys() == expected.keys()
    for name, module in merged.modules.items():
        assert near(dense(module), expected[name], size[name], tolerance), name


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tail(matrix: Tensor, rank: int) -> float:
    """The least ‖ΔW − ΔW'‖ of any ΔW' of this rank, by numpy."""
    values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    return float(np.sqrt((values[rank:] ** 2).sum()))


@FEW
@given(one=recipes, method=st.sampled_from(METHODS))
def test_one_adapter_with_weight_one_is_itself(one: Made, method: str) -> None:
    adapter = make_adapter(*one)
    merged, report = merge([adapter], [1], Recipe(method=method, density=1.0))
    assert_sum(merged, [adapter], [1.0], 3e-6 if method in DENSE else 1e-6)
    assert report.measured < 3e-6


@FEW
@given(one=recipes, weight=st.floats(0.01, 5), method=st.sampled_from(METHODS))
def test_an_adapter_minus_itself_is_zero(one: Made, weight: float, method: str) -> None:
    adapter = make_adapter(*one)
    merged, _ = merge([adapter, adapter], [weight, -weight], Recipe(method=method, density=1.0, normalize=False))
    for name, module in merged.modules.items():
        assert float(dense(module).norm()) <= 1e-6 * weight * float(dense(adapter.modules[name]).norm())
        if method not in ("concat", "dare_linear", "magnitude_prune"):
            assert not bool(module.up.any() and module.down.any())  # exactly


@FEW
@given(several=st.lists(recipes, min_size=1, max_size=4), data=st.data())
def test_concat_is_the_sum_and_its_ranks_add(several: list[Made], data: st.DataObject) -> None:
    adapters = [make_adapter(*one) for one in several]
    by = data.draw(st.lists(weights, min_size=len(adapters), max_size=len(adapters)))
    merged, report = merge(adapters, by, Recipe(method="concat", normalize=False))
    assert_sum(merged, adapters, by)
    for name, module in merged.modules.items():
        parents = [adapter.modules[name] for adapter in adapters]
        assert module.rank == sum(parent.rank for parent in parents)
        assert torch.equal(module.down, torch.cat([parent.down for parent in parents]))
        assert (module.scale, module.alpha) == (1.0, module.rank)
        assert (module.kernel, module.embedding) == (parents[0].kernel, parents[0].embedding)
    assert all(row.predicted == 0 for row in report.modules)


@FEW
@given(several=st.lists(recipes, min_size=1, max_size=3), data=st.data())
def test_svd_at_the_full_rank_is_concat(several: list[Made], data: st.DataObject) -> None:
    adapters = [make_adapter(*one) for one in several]
    by = data.draw(st.lists(weights, min_size=len(adapters), max_size=len(adapters)))
    merged, _ = merge(adapters, by, Recipe(rank=1000, normalize=False))
    assert_sum(merged, adapters, by)
    for name, module in merged.modules.items():
        assert module.rank == min(*SHAPES[name], sum(adapter.modules[name].rank for adapter in adapters))


@FEW
@given(several=st.lists(recipes, min_size=2, max_size=3), rank=st.integers(1, 6), data=st.data())
def test_svd_has_the_error_of_eckart_and_young(several: list[Made], rank: int, data: st.DataObject) -> None:
    adapters = [make_adapter(*one) for one in several]
    by = data.draw(st.lists(weights, min_size=len(adapters), max_size=len(adapters)))
    merged, report = merge(adapters, by, Recipe(rank=rank, normalize=False))
    exact, size = dense_sum(adapters, by), sizes(adapters, by)
    for row in report.modules:
        expected, whole = tail(exact[row.module], rank), float(exact[row.module].norm())
        found = float((dense(merged.modules[row.module]) - exact[row.module]).norm())
        slack = 1e-6 * size[row.module]
        assert found == pytest.approx(expected, abs=slack)
        assert row.norm == pytest.approx(whole, abs=slack)
        if whole > slack:
            assert row.predicted * row.norm == pytest.approx(expected, abs=slack)
            assert row.measured * row.norm == pytest.approx(found, abs=1e-9 * size[row.module])
            assert row.measured == row.from_sum


@FEW
@given(
    several=st.lists(recipes, min_size=2, max_size=3),
    method=st.sampled_from(["concat", "svd", "ties", "magnitude_prune"]),
    data=st.data(),
)
def test_the_order_of_the_adapters_does_not_matter(several: list[Made], method: str, data: st.DataObject) -> None:
    adapters = [make_adapter(*one) for one in several]
    by = data.draw(st.lists(st.floats(0.1, 3), min_size=len(adapters), max_size=len(adapters)))
    full, first = (1000 if method != "concat" else None), None
    for order in permutations(range(len(adapters))):
        merged, _ = merge(
            [adapters[i] for i in order], [by[i] for i in order], Recipe(method=method, rank=full, density=0.7)
        )
        first = first or merged
        size = sizes(adapters, by)
        for name, module in merged.modules.items():
            assert near(dense(module), dense(first.modules[name]), size[name], 1e-5)


@FEW
@given(one=recipes, count=st.integers(1, 4), method=st.sampled_from(METHODS), data=st.data())
def test_identical_adapters_give_themselves(one: Made, count: int, method: str, data: st.DataObject) -> None:
    adapter = make_adapter(*one)
    by = data.draw(st.lists(st.floats(0.1, 3), min_size=count, max_size=count))
    if method == "linear":  # its roots of the weights sum to 1 where all are equal
        by = [1.0 / count] * count
        merged, _ = merge([adapter] * count, by, Recipe(method=method))
        for name, module in merged.modules.items():
            assert near(
                dense(module), count * dense(adapter.modules[name]), count * float(dense(adapter.modules[name]).norm())
            )
        return
    merged, _ = merge([adapter] * count, by, Recipe(method=method, density=1.0))
    assert_sum(merged, [adapter], [1.0], 1e-5)


@FEW
@given(
    several=st.lists(recipes, min_size=2, max_size=3), kept=st.integers(1, 4), rank=st.integers(1, 8), data=st.data()
)
def test_cut_adapters_merge_within_the_predicted_error(
    several: list[Made], kept: int, rank: int, data: st.DataObject
) -> None:
    adapters = [make_adapter(*one) for one in several]
    by = data.draw(st.lists(weights, min_size=len(adapters), max_size=len(adapters)))
    cut = [resize(adapter, ResizeRule(rank=kept)) for adapter in adapters]
    merged, report = merge([one for one, _ in cut], by, Recipe(rank=rank, normalize=False))
    exact, size = dense_sum(adapters, by), sizes(adapters, by)
    for row in report.modules:
        before = [next(each for each in one.modules if each.module == row.module) for _, one in cut]
        bound = sum(abs(weight) * (each.measured or 0.0) * each.norm for weight, each in zip(by, before, strict=True))
        bound += row.predicted * row.norm
        found = float((dense(merged.modules[row.module]) - exact[row.module]).norm())
        assert found <= bound + 1e-6 * size[row.module]


def test_weights_are_normalised_unless_told_otherwise() -> None:
    a, b = make_adapter(1), make_adapter(2)
    assert_sum(merge([a, b], [3, 1], Recipe(method="concat"))[0], [a, b], [0.75, 0.25])
    assert_sum(merge([a, b], recipe=Recipe(method="concat"))[0], [a, b], [0.5, 0.5])
    assert_sum(merge([a, b], [3, 1], Recipe(method="concat", normalize=False))[0], [a, b], [3, 1])
    assert_sum(merge([a, b], [2, -1], Recipe(method="concat"))[0], [a, b], [2, -1])
    assert merge([a, b], [3, 1])[1].weights == (0.75, 0.25)
    assert [parent.given for parent in merge([a, b], [3, 1])[1].parents] == [3, 1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"weights": [1, -1]}, "sum to 0.*no-normalize"),
        ({"weights": [0, 0]}, "sum to 0"),
        ({"weights": [0.1, 0.2, -0.3], "three": True}, "sum to 0"),
        ({"weights": [1]}, "1 came for 2 adapters"),
        ({"weights": [1, math.nan]}, "finite"),
        ({"method": "average"}, "method='average'.*svd, concat"),
        ({"rank": 0}, "rank=0"),
        ({"rank": 4, "method": "concat"}, "sum of the parents"),
        ({"rank": 4, "method": "linear"}, "keeps the parents"),
        ({"density": 0.0}, r"density=0\.0"),
        ({"density": 1.5}, r"density=1\.5"),
        ({"majority": "most"}, "total, count"),
        ({"missing": "fill"}, "zero, skip, error"),
        ({"dtype": "float64"}, "float32"),
    ],
)
def test_arguments_that_are_refused(arguments: dict[str, Any], said: str) -> None:
    adapters = [make_adapter(seed) for seed in range(3 if arguments.pop("three", False) else 2)]
    by = arguments.pop("weights", None)
    with pytest.raises(LorabenchError, match=said):
        merge(adapters, by, Recipe(**arguments))


def test_no_adapter_is_refused() -> None:
    with pytest.raises(LorabenchError, match="none came"):
        merge([])


def test_other_shapes_are_refused_by_name() -> None:
    a, b = make_adapter(1), make_adapter(2)
    other = LoraModule(torch.ones(2, 12), torch.ones(7, 2))
    clash = replace(b, modules={**b.modules, LINEAR: other})
    with pytest.raises(LorabenchError, match=rf"{LINEAR} is a matrix of 7x11 in made-1.* a matrix of 7x12 in made-2"):
        merge([a, clash])
    as_table = replace(b.modules[LINEAR], embedding=True)
    with pytest.raises(LorabenchError, match=r"a matrix of 7x11.*an embedding of 7x11"):
        merge([a, replace(b, modules={LINEAR: as_table})])
    assert preflight([a, clash]).level == "error"
    assert preflight([a, clash]).pairs == ()


def test_a_one_by_one_convolution_fits_a_linear_layer() -> None:
    a, b = make_adapter(1, names=(LINEAR,)), make_adapter(2, names=(LINEAR,))
    b = replace(b, modules={LINEAR: replace(b.modules[LINEAR], kernel=(1, 1))})
    merged, _ = merge([a, b], recipe=Recipe(method="concat"))
    assert merged.modules[LINEAR].kernel == (1, 1)
    assert_sum(merged, [a, b], [0.5, 0.5])


def test_dora_is_refused_unless_its_magnitudes_are_dropped() -> None:
    a, b = make_adapter(1), make_adapter(2, kind="dora")
    with pytest.raises(LorabenchError, match=r"made-2 has 3.*drop-dora"):
        merge([a, b])
    merged, report = merge([a, b], recipe=Recipe(method="concat", drop_dora=True))
    assert_sum(merged, [a, b], [0.5, 0.5])
    assert any("magnitudes of 3 modules are dropped" in note for note in report.notes)
    assert {module.kind for module in merged.modules.values()} == {"lora"}
    assert preflight([a, b]).level == "error"
    assert preflight([a, b], recipe=Recipe(drop_dora=True)).level == "warning"


def test_modules_that_only_some_have() -> None:
    a, b = make_adapter(1), make_adapter(2, names=(LINEAR, CONV))
    merged, report = merge([a, b], [0.25, 0.75], Recipe(method="concat"))
    assert_sum(merged, [a, b], [0.25, 0.75])
    assert merged.modules[TABLE].rank == 3
    assert [row.ranks for row in report.modules if row.module == TABLE] == [(3, None)]
    assert any("1 modules are in some of the adapters only; the others count as zero" in note for note in report.notes)
    averaged, _ = merge([a, b], [0.25, 0.75], Recipe(method="linear"))
    assert near(dense(averaged.modules[TABLE]), 0.25 * dense(a.modules[TABLE]), 10)
    skipped, report = merge([a, b], [0.25, 0.75], Recipe(method="concat", missing="skip"))
    assert skipped.modules.keys() == {LINEAR, CONV}
    exact = dense_sum([a, b], [0.25, 0.75])
    whole = math.sqrt(sum(float(delta.norm()) ** 2 for delta in exact.values()))
    assert report.measured == pytest.approx(float(exact[TABLE].norm()) / whole, rel=1e-6)
    assert report.worst.module == TABLE
    with pytest.raises(LorabenchError, match=f"1 modules, first {TABLE}"):
        merge([a, b], recipe=Recipe(missing="error"))
    with pytest.raises(LorabenchError, match="no module in common"):
        merge([make_adapter(1, names=(LINEAR,)), make_adapter(2, names=(CONV,))], recipe=Recipe(missing="skip"))


def test_untrained_adapters() -> None:
    a = make_adapter(1)
    zero = replace(a, modules={name: replace(one, up=torch.zeros_like(one.up)) for name, one in a.modules.items()})
    for method in METHODS:
        merged, report = merge([zero, zero], recipe=Recipe(method=method))
        assert all(not bool(dense(module).any()) for module in merged.modules.values())
        assert (report.predicted, report.measured, report.from_sum) == (0.0, 0.0, 0.0)
        merged, _ = merge([a, zero], [1, 1], Recipe(method="svd"))
        assert_sum(merged, [a], [0.5])
    looked = preflight([a, zero])
    assert math.isnan(looked.pairs[0].cosine)
    assert looked.level == "warning"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_errors_are_those_of_the_factors_as_stored(dtype: torch.dtype, method: str, tmp_path: Path) -> None:
    names = (LINEAR, CONV)  # kohya's layout has no place for embeddings
    a, b = make_adapter(1, 2, 1e-6, names), make_adapter(2, 2, 3e-7, names)  # float16 has no normal numbers there
    merged, report = merge(
        [a, b], [0.7, 0.3], Recipe(method=method, dtype=str(dtype).removeprefix("torch."), density=0.5)
    )
    stored = load(save(tmp_path / "merged.safetensors", merged, "kohya", dtype="stored"))
    exact = dense_sum([a, b], [0.7, 0.3])
    difference = math.sqrt(sum(float((dense(stored.modules[name]) - exact[name]).norm()) ** 2 for name in exact))
    whole = math.sqrt(sum(float(delta.norm()) ** 2 for delta in exact.values()))
    assert report.from_sum == pytest.approx(difference / whole, rel=1e-6)
    assert {module.dtype for module in stored.modules.values()} == {dtype}
    if method == "concat":
        assert 0 < report.measured < torch.finfo(dtype).eps


def test_values_that_a_type_cannot_hold_are_refused() -> None:
    a = make_adapter(1, scale=1e12)
    with pytest.raises(LorabenchError, match=r"do not fit torch\.float16"):
        merge([a], recipe=Recipe(dtype="float16"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["concat", "svd"])
def test_what_cancels_to_rounding_is_no_error(method: str, dtype: torch.dtype) -> None:
    a = make_adapter(1)
    _, report = merge([a] * 3, [0.1, 0.2, -0.3], Recipe(method=method, normalize=False, dtype=name_of(dtype)))
    assert [(row.measured, row.norm) for row in report.modules] == [(0.0, 0.0)] * 3


def test_an_infinite_error_is_said() -> None:
    a = make_adapter(1)
    twice = {name: replace(one, down=one.down * 2, up=one.up / 2) for name, one in a.modules.items()}
    merged, report = merge([a, replace(a, modules=twice)], [1, -1], Recipe(method="linear", normalize=False))
    assert report.measured == math.inf
    assert "infinite" in report.notes[-1]
    assert bool(merged.modules[LINEAR].up.any())
    json.dumps(report.as_dict())
    assert report.metadata()["lorabench_merge_error"] == "inf"


def test_what_the_result_says_of_itself(tmp_path: Path) -> None:
    base = {"ss_base_model_version": "sd_v1", "modelspec.architecture": "stable-diffusion-v1/lora"}
    a = make_adapter(
        1, names=(LINEAR, CONV), metadata={**base, "ss_tag": "cats", "ss_note": "same", "sshs_model_hash": "old"}
    )
    b = make_adapter(2, names=(LINEAR, CONV), metadata={"ss_tag": "dogs", "ss_note": "same"})
    paths = [tmp_path / "a.safetensors", tmp_path / "b"]
    for path, one, layout in zip(paths, (a, b), ("kohya", "peft"), strict=True):
        save(path, one, layout)
    read = [load(path) for path in paths]
    merged, report = merge(read, [0.7, 0.3], Recipe(method="dare_ties", seed=5))
    said = merged.metadata
    assert said["lorabench_merge_method"] == "dare_ties"
    assert json.loads(said["lorabench_merge_weights"]) == [0.7, 0.3]
    parents = json.loads(said["lorabench_merge_parents"])
    assert [parent["name"] for parent in parents] == ["a.safetensors", "b"]
    assert [parent["sha256"] for parent in parents] == [
        hashlib.sha256(one.path.read_bytes()).hexdigest() for one in read
    ]
    assert said["lorabench_merge_seed"] == "5"
    assert said["lorabench_merge_rank"] == str(max(module.rank for module in merged.modules.values()))
    assert float(said["lorabench_merge_error"]) == pytest.approx(report.measured, rel=1e-5)
    assert said["ss_base_model_version"] == "sd_v1"  # one says it, the other does not deny it
    assert said["ss_note"] == "same"
    assert "ss_tag" not in said
    assert "sshs_model_hash" not in said
    again = load(save(tmp_path / "merged.safetensors", merged, "kohya"))
    assert {key: again.metadata[key] for key in said} == said
    once_more, _ = merge([again], [1])
    assert json.loads(once_more.metadata["lorabench_merge_parents"])[0]["name"] == "merged.safetensors"
    assert str(tmp_path) not in json.dumps(dict(said))
    json.dumps(report.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    "paths",
    [
        ["peft/opt", "peft/opt_rslora"],
        ["sam/lora_weights/lora_rank2.safetensors", "sam/lora_weights/lora_rank8.safetensors"],
        ["diffusers", "cloneofsimo/style.safetensors"],  # no module of one is in the other
        *published(
            [f"parikshit-06__domain-skeleton-gpt2/adapters/{kind}" for kind in ("legal", "medical")],
            [f"MathieuNlp__Sam_LoRA/lora_weights/lora_rank{rank}.safetensors" for rank in (2, 8)],
            [
                "catundchat__stable-diffusion-v1.5-lora/pytorch_lora_weights.safetensors",
                "cloneofsimo__lora/example_loras/lora_disney.safetensors",
            ],
        ),
    ],
    ids=lambda paths: paths[0].replace("/", "-"),
)
def test_real_adapters(paths: list[str]) -> None:
    adapters = [load(real(path)) for path in paths]
    # every dozenth module: the dense check is slow
    adapters = [replace(one, modules=dict(list(one.modules.items())[::12])) for one in adapters]
    by = [1.5, -0.4]
    merged, report = merge(adapters, by, Recipe(method="concat", normalize=False, drop_unsupported=True))
    assert_sum(merged, adapters, by)
    assert report.measured < 1e-6
    cut, report = merge(adapters, by, Recipe(rank=2, normalize=False, drop_unsupported=True))
    exact = dense_sum(adapters, by)
    for row in report.modules:
        expected = tail(exact[row.module], 2)
        assert row.measured * row.norm == pytest.approx(expected, rel=1e-4, abs=1e-6 * row.norm)
        assert cut.modules[row.module].rank <= 2
    looked = preflight(adapters, by, Recipe(normalize=False, drop_unsupported=True))
    kin = adapters[0].modules.keys() & adapters[1].modules.keys()
    assert (looked.level == "error") == (not kin)
    assert not looked.refused
