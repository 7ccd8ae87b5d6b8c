"""What the preflight of a merge says, its numbers against independent ones."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from lorabench.adapters import Adapter, LoraModule
from lorabench.adapters.merging.preflight import preflight
from lorabench.adapters.merging.recipe import Recipe
from lorabench.adapters.merging.whole import merge
from tests.adapter_makers import CONV, LINEAR, SHAPES, dense, make_adapter

XL = "stable-diffusion-xl-v1-base/lora"


def test_the_preflight_measures_overlap_by_independent_means() -> None:
    a, b = make_adapter(1, [2, 3, 1], scale=-1.5), make_adapter(2, [4, 1, 2], scale=0.5)
    looked = preflight([a, b], [0.7, 0.3])
    for row in looked.pairs[0].modules:
        first, second = (weight * dense(one.modules[row.module]).numpy() for one, weight in ((a, 0.7), (b, 0.3)))
        left, right = (
            np.cos(subspace_angles(x.numpy(), y.numpy())) ** 2
            for x, y in (
                (a.modules[row.module].up, b.modules[row.module].up),
                (a.modules[row.module].down.mT, b.modules[row.module].down.mT),
            )
        )
        assert row.left == pytest.approx(left.mean(), rel=1e-5)
        assert row.right == pytest.approx(right.mean(), rel=1e-5)
        cosine = np.vdot(first, second) / np.linalg.norm(first) / np.linalg.norm(second)
        assert row.cosine == pytest.approx(cosine, rel=1e-5)
        assert row.norm_ratio == pytest.approx(np.linalg.norm(first) / np.linalg.norm(second), rel=1e-5)
        assert row.sign_conflict == pytest.approx((np.sign(first) != np.sign(second)).mean())
    firsts, seconds = (
        np.concatenate([(weight * dense(one.modules[name])).numpy().ravel() for name in SHAPES])
        for one, weight in ((a, 0.7), (b, 0.3))
    )
    assert looked.pairs[0].cosine == pytest.approx(
        firsts @ seconds / np.linalg.norm(firsts) / np.linalg.norm(seconds), rel=1e-5
    )


def test_signs_of_a_large_module_are_sampled() -> None:
    generator = torch.Generator().manual_seed(0)
    modules = [
        {LINEAR: LoraModule(torch.randn(4, 300, generator=generator), torch.randn(2000, 4, generator=generator))}
        for _ in range(2)
    ]
    a, b = (Adapter(Path(f"{i}.safetensors"), (), held) for i, held in enumerate(modules))
    true = float((dense(a.modules[LINEAR]).sign() != dense(b.modules[LINEAR]).sign()).double().mean())
    found = preflight([a, b]).pairs[0].sign_conflict
    assert found == pytest.approx(true, abs=0.05)
    assert found != true
    assert found == preflight([a, b]).pairs[0].sign_conflict


def by_check(adapters: list[Adapter], given: list[float] | None = None, **options: Any) -> dict[str, tuple[str, str]]:
    looked = preflight(adapters, given, Recipe(**options))
    return {finding.check: (finding.level, finding.message) for finding in looked.findings}


def test_the_preflight_warns_of_what_clashes() -> None:
    a, b = make_adapter(1), make_adapter(2)
    assert by_check([a, b], [1, -1])["weights"][0] == "error"
    assert by_check([a, b], [1, -1], normalize=False)["weights"][0] == "ok"
    assert by_check([a, b], [1, -0.99])["weights"][0] == "warning"
    assert "turns every sign" in by_check([a, b], [1, -2])["weights"][1]
    assert by_check([a, a])["overlap"][0] == "warning"
    assert by_check([a, a], [2, -1])["signs"][0] == "warning"
    assert by_check([a, a])["signs"][0] == "ok"
    turned = preflight([a, a], [2, -1]).pairs[0]
    assert (turned.sign_conflict, turned.cosine, turned.norm_ratio) == pytest.approx((1.0, -1.0, 2.0))
    assert by_check([a, b], [20, 1])["norms"][0] == "warning"
    assert by_check([a, b])["norms"][0] == "ok"
    only = make_adapter(3, names=(LINEAR,))
    assert by_check([a, only])["modules"] == (
        "warning", "1 of 3 are in every adapter; made-3 lacks 2",
    )  # fmt: skip
    chain = [only, make_adapter(4, names=(CONV,)), a]
    assert by_check(chain)["modules"] == ("warning", "none of 3 is in every adapter")
    assert len(preflight([a, b, only]).pairs) == 3
    assert preflight([a]).pairs == ()


@pytest.mark.parametrize("place", [0, 1])
def test_nothing_clashes_with_an_update_of_nothing(place: int) -> None:
    adapters = [make_adapter(1), make_adapter(2)]
    looked = preflight(adapters, [1 - place, place], Recipe(normalize=False))
    assert all(row["clashes"] == () for pair in looked.as_dict()["pairs"] for row in pair["modules"])
    assert math.isnan(looked.pairs[0].norm_ratio)


def test_every_module_says_what_clashes_in_it() -> None:
    """As the whole adapters do, by the same bounds."""
    a, b = make_adapter(1), make_adapter(2)
    looked = preflight([a, b, a], [20, 1, -20], Recipe(normalize=False))
    shown = looked.as_dict()
    for pair, said in zip(looked.pairs, shown["pairs"], strict=True):
        for row, one in zip(pair.modules, said["modules"], strict=True):
            shared = (row.left + row.right) / 2
            expected = {
                "directions": shared > row.chance + 0.5 * (1 - row.chance),
                "signs": row.cosine < -0.1 or row.sign_conflict > 0.6,
                "norms": not 0.1 <= row.norm_ratio <= 10,
            }
            assert one["clashes"] == tuple(name for name, wrong in expected.items() if wrong)
    first, same = shown["pairs"][0]["modules"], shown["pairs"][1]["modules"]
    assert all("norms" in one["clashes"] for one in first)
    assert all(one["clashes"] == ("directions", "signs") for one in same)


@pytest.mark.parametrize(
    ("first", "second", "level"),
    [
        ({"ss_base_model_version": "sd_v1"}, {"ss_base_model_version": "sdxl_base_v1-0"}, "warning"),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, {"modelspec.architecture": XL}, "ok"),
        ({"ss_base_model_version": "sd_v1"}, {"modelspec.architecture": "stable-diffusion-v1/lora"}, "ok"),
        ({"ss_base_model_version": "flux1"}, {"ss_base_model_version": "sd3"}, "warning"),
        ({"ss_sd_model_name": "anime.safetensors"}, {"ss_sd_model_name": "anime"}, "ok"),
        ({"ss_sd_model_name": "anime.safetensors"}, {"ss_sd_model_name": "photo.safetensors"}, "warning"),
        ({"ss_sd_model_name": "anime.safetensors"}, {}, "ok"),
        ({}, {}, "warning"),
    ],
)  # fmt: skip
def test_base_models_are_compared(first: dict[str, str], second: dict[str, str], level: str) -> None:
    a, b = make_adapter(1, metadata=first), make_adapter(2, metadata=second)
    assert by_check([a, b])["base model"][0] == level


def test_base_models_of_peft_by_their_last_folder() -> None:
    a, b = make_adapter(1), make_adapter(2)
    hub = replace(a, config={"base_model_name_or_path": "openai-community/gpt2"})
    local = replace(b, config={"base_model_name_or_path": "C:\\cache\\models--openai-community--gpt2\\snapshots\\1f\\"})
    other = replace(b, config={"base_model_name_or_path": "distilgpt2"})
    assert by_check([hub, local])["base model"][0] == "ok"
    assert by_check([hub, other])["base model"][0] == "warning"
    assert merge([hub, other])[0].config == {}
    assert merge([hub, b])[0].config == {"base_model_name_or_path": "openai-community/gpt2"}
