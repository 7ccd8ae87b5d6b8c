"""Files of diffusers' families under every naming in use: matched as one, and written so that diffusers loads them."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from tests.judges.diffusion_families import (
    FAMILIES,
    NAMINGS,
    ORIGINAL,
    RANK,
    Pair,
    changes_by_diffusers,
    denoiser,
    original_pairs,
    pairs_of,
    write,
    write_by_diffusers,
)
from tests.judges.judging import MARKS, ask, asked, assert_near

pytestmark = MARKS
ALPHA = 3.0
SOURCES = ("diffusers", "diffusers-with-alpha", "transformer.", "diffusion_model.", "lora_unet_", "lora_transformer_")
LAYOUTS = ("diffusers", "diffusers-peft", "comfyui", "kohya")
READ_AS_KOHYA = ("flux", "qwen-image", "z-image")
KOHYA = [name for name, family in FAMILIES.items() if family.kohya]
SUFFIXES = {
    "diffusers": (".lora.down.weight", ".lora.up.weight"),
    "diffusers-peft": (".lora_A.weight", ".lora_B.weight"),
    "comfyui": (".lora_A.weight", ".lora_B.weight"),
    "kohya": (".lora_down.weight", ".lora_up.weight", ".alpha"),
}


def _source(family: str, source: str, folder: Path) -> tuple[Path, float]:
    """A file and the scale that it says."""
    if source == "diffusers":
        return write_by_diffusers(family, folder, None), 1.0
    if source == "diffusers-with-alpha":
        return write_by_diffusers(family, folder, ALPHA), ALPHA / RANK
    scaled = source.startswith("lora_")
    return write(folder / "a.safetensors", pairs_of(family), source, ALPHA), ALPHA / RANK if scaled else 1.0


def _deltas(pairs: Mapping[str, Pair], scale: float = 1.0) -> dict[str, Tensor]:
    return {name: scale * up.double() @ down.double() for name, (down, up) in pairs.items()}


def _assert_deltas(path: Path, expected: Mapping[str, Tensor], flat: bool = True) -> None:
    """The file's modules are these, whatever stands before their names; `flat` takes dots for underscores."""
    from lorabench.adapters import load

    modules = load(path).modules

    def plain(name: str) -> str:
        return name.replace(".", "_") if flat else name

    assert len(modules) == len(expected)
    for name, delta in expected.items():
        ends = tuple(f"{separator}{plain(name)}" for separator in "._")
        same = [module for other, module in modules.items() if f".{plain(other)}".endswith(ends)]
        exact = [module for module in same if tuple(module.shape) == tuple(delta.shape)]
        assert exact, f"{name} is none of {sorted(modules)[:4]}"
        errors = [float((module.delta().double() - delta).norm() / delta.norm()) for module in exact]
        assert min(errors) < 1e-5, f"{name}: ΔW off by {min(errors):.3g}"


def _keys(path: Path) -> list[str]:
    with safe_open(str(path), "pt") as file:
        return list(file.keys())


# What diffusers loads.


@pytest.mark.parametrize("source", ["diffusers", "diffusers-with-alpha"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_judge_loads_its_own_file(family: str, source: str, tmp_path: Path) -> None:
    path, scale = _source(family, source, tmp_path)
    _assert_changes(changes_by_diffusers(family, path), _deltas(pairs_of(family), scale))


def _assert_changes(changes: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert changes.keys() == expected.keys()
    for name, delta in expected.items():
        assert_near(changes[name], delta, f"ΔW of {name}", 5e-6)


@pytest.mark.parametrize("layout", ["diffusers", "diffusers-peft"])
@pytest.mark.parametrize(
    ("family", "source"),
    [(f, s) for f, s in itertools.product(FAMILIES, SOURCES) if f in KOHYA or not s.startswith("lora_")],
)
def test_diffusers_loads_what_is_written(family: str, source: str, layout: str, tmp_path: Path) -> None:
    path, scale = _source(family, source, tmp_path / "theirs")
    out = tmp_path / "ours.safetensors"
    asked("convert", path, "-o", out, "--to", layout)
    assert all(key.startswith("transformer.") and key.endswith(SUFFIXES[layout]) for key in _keys(out))
    _assert_changes(changes_by_diffusers(family, out), _deltas(pairs_of(family), scale))


@pytest.mark.parametrize("source", ["diffusers", "diffusers-with-alpha"])
@pytest.mark.parametrize("family", KOHYA)
def test_kohya_is_loaded_or_refused(family: str, source: str, tmp_path: Path) -> None:
    """diffusers drops names that no trainer writes: then nothing may be written.

    Few families' kohya files are read by diffusers, Wan's only with all modules of a block: of the others what comes
    back into diffusers' names is loaded.
    """
    path, scale = _source(family, source, tmp_path / "theirs")
    out = tmp_path / "ours.safetensors"
    answer = ask("convert", path, "-o", out, "--to", "kohya")
    if answer.code == 1:
        assert not out.exists()
        assert "kohya" in answer.text
        return
    assert answer.code == 0, answer.text
    assert all(key.startswith("lora_unet_") and key.endswith(SUFFIXES["kohya"]) for key in _keys(out))
    if family not in READ_AS_KOHYA:
        asked("convert", out, "-o", tmp_path / "back.safetensors", "--to", "diffusers-peft")
        out = tmp_path / "back.safetensors"
    _assert_changes(changes_by_diffusers(family, out), _deltas(pairs_of(family), scale))


@pytest.mark.parametrize("source", ["diffusers", "diffusers-with-alpha", "diffusion_model."])
@pytest.mark.parametrize("family", FAMILIES)
def test_comfyui_keeps_every_delta(family: str, source: str, tmp_path: Path) -> None:
    path, scale = _source(family, source, tmp_path / "theirs")
    asked("convert", path, "-o", tmp_path / "ours.safetensors", "--to", "comfyui")
    keys = _keys(tmp_path / "ours.safetensors")
    assert all(key.startswith("diffusion_model.") and key.endswith(SUFFIXES["comfyui"]) for key in keys)
    _assert_deltas(tmp_path / "ours.safetensors", _deltas(pairs_of(family), scale), flat=False)


@pytest.mark.parametrize("source", ["transformer.", "lora_unet_", "diffusion_model.", "pipe.dit."])
@pytest.mark.parametrize("family", KOHYA)
def test_peft_loads_the_part(family: str, source: str, tmp_path: Path) -> None:
    """Into the denoiser itself, without a pipeline."""
    import copy

    from peft import PeftModel

    path = write(tmp_path / "a.safetensors", pairs_of(family), source)
    asked("convert", path, "-o", tmp_path / "ours", "--to", "peft", "--component", "transformer")
    model = PeftModel.from_pretrained(copy.deepcopy(denoiser(family)), str(tmp_path / "ours")).merge_and_unload()
    before, after = denoiser(family).state_dict(), model.state_dict()
    changes = {name: after[name].double() - value.double() for name, value in before.items()}
    changes = {name.removesuffix(".weight"): change for name, change in changes.items() if change.any()}
    _assert_changes(changes, _deltas(pairs_of(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_the_model_alone_need_the_component(family: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", pairs_of(family), "base_model.model.")
    out = tmp_path / "ours.safetensors"
    asked("convert", path, "-o", out, "--to", "diffusers-peft", "--component", "transformer")
    _assert_changes(changes_by_diffusers(family, out), _deltas(pairs_of(family)))


# One adapter under several namings.


def _pairs(family: str, names: str) -> Mapping[str, Pair]:
    return pairs_of(family) if names == "diffusers" else original_pairs(family)


NAMED = [(family, "diffusers") for family in FAMILIES] + [(family, "original") for family in ORIGINAL]


@pytest.mark.parametrize("naming", NAMINGS[1:])
@pytest.mark.parametrize(("family", "names"), NAMED)
def test_compare_matches_every_module(family: str, names: str, naming: str, tmp_path: Path) -> None:
    pairs = _pairs(family, names)
    one = write(tmp_path / "one.safetensors", pairs, NAMINGS[0])
    other = write(tmp_path / "other.safetensors", pairs, naming)
    data = asked("compare", one, other).data
    text = json.dumps(data)
    assert data["cosine"] == pytest.approx(1.0, abs=1e-6), text[:500]
    assert len(data["modules"]) == len(pairs), text[:500]
    assert not data["only_a"], text[:500]
    assert not data["only_b"], text[:500]


@pytest.mark.parametrize("namings", [("lora_unet_", "diffusion_model."), ("transformer.", "pipe.dit.")], ids="+".join)
@pytest.mark.parametrize(("family", "names"), NAMED)
def test_merging_two_namings_is_merging_one(family: str, names: str, namings: tuple[str, str], tmp_path: Path) -> None:
    """½ ΔW + ½ ΔW = ΔW, in as many modules; half of it in twice as many is the fault."""
    pairs = _pairs(family, names)
    files = [write(tmp_path / f"{i}.safetensors", pairs, naming) for i, naming in enumerate(namings)]
    for order in (files, files[::-1]):
        asked("merge", *order, "-w", "0.5", "0.5", "-o", tmp_path / "ours.safetensors", "--force")
        _assert_deltas(tmp_path / "ours.safetensors", _deltas(pairs))


@pytest.mark.parametrize(("family", "names"), NAMED)
def test_duplicates_are_found_across_namings(family: str, names: str, tmp_path: Path) -> None:
    for i, naming in enumerate(NAMINGS):
        write(tmp_path / "all" / f"{i}.safetensors", _pairs(family, names), naming)
    data = asked("compare", "--duplicates", tmp_path / "all").data
    assert all(f"{i}.safetensors" in json.dumps(data) for i in range(len(NAMINGS)))


@pytest.mark.parametrize("naming", ["lora_unet_", "diffusion_model."])
@pytest.mark.parametrize("family", ORIGINAL)
def test_original_names_come_through_comfyui(family: str, naming: str, tmp_path: Path) -> None:
    """There the denoiser bears its own repository's names; a flattened name is split by what the family knows."""
    path = write(tmp_path / "a.safetensors", original_pairs(family), naming)
    out = tmp_path / "ours.safetensors"
    asked("convert", path, "-o", out, "--to", "comfyui", *_names_from(tmp_path, family, naming))
    expected = {f"diffusion_model.{name}" for name in ORIGINAL[family]}
    assert {key.rsplit(".lora_", 1)[0] for key in _keys(out)} == expected
    _assert_deltas(out, _deltas(original_pairs(family)), flat=False)


def _names_from(folder: Path, family: str, naming: str) -> list[str]:
    """A few names of a few widths are no family that anyone could recognise: the key list says them."""
    if not naming.startswith("lora_"):
        return []
    (folder / "names.txt").write_text("\n".join(f"{name}.weight" for name in ORIGINAL[family]))
    return ["--names-from", str(folder / "names.txt")]


# Splitting flattened names.


STRANGE = {"alpha_beta.0.gamma_delta": (6, 5), "alpha.beta_9.gamma.0.delta_e": (4, 7), "out_proj.x_y": (3, 3)}


def _strange() -> dict[str, Pair]:
    generator = torch.Generator().manual_seed(5)
    return {
        name: (torch.randn(RANK, d_in, generator=generator), torch.randn(d_out, RANK, generator=generator))
        for name, (d_out, d_in) in STRANGE.items()
    }


@pytest.mark.parametrize("layout", ["diffusers", "diffusers-peft", "comfyui", "peft"])
def test_an_unknown_family_is_refused_by_name(layout: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", _strange(), "lora_unet_", ALPHA)
    answer = ask("convert", path, "-o", tmp_path / "ours", "--to", layout)
    assert (answer.code, (tmp_path / "ours").exists()) == (1, False), answer.text
    assert "alpha_beta_0_gamma_delta" in answer.text
    assert "names-from" in answer.text or "names_from" in answer.text


@pytest.mark.parametrize("kind", ["txt", "json", "adapter", "checkpoint", "peft-folder"])
@pytest.mark.parametrize("layout", ["diffusers-peft", "comfyui", "peft"])
def test_a_list_of_names_splits_them(layout: str, kind: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    pairs, names = _strange(), tmp_path / f"names.{'json' if kind == 'json' else 'txt'}"
    path = write(tmp_path / "a.safetensors", pairs, "lora_unet_", ALPHA)
    keys = [f"{name}.weight" for name in STRANGE] + ["alpha_beta.0.gamma.weight", "norm.bias"]
    if kind == "txt":
        names.write_text("\n".join(keys) + "\n")
    elif kind == "json":
        names.write_text(json.dumps(keys))
    elif kind == "checkpoint":
        names = tmp_path / "model.safetensors"
        save_file({key: torch.zeros(2, 2) for key in keys}, str(names))
    elif kind == "adapter":
        names = write(tmp_path / "other.safetensors", pairs, "transformer.")
    else:
        names = tmp_path / "folder"
        write(names / "adapter_model.safetensors", pairs, "base_model.model.")
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(STRANGE)}
        (names / "adapter_config.json").write_text(json.dumps(config))
    out = tmp_path / ("ours" if layout == "peft" else "ours.safetensors")
    asked("convert", path, "-o", out, "--to", layout, "--names-from", names)
    _assert_deltas(out, _deltas(pairs, ALPHA / RANK), flat=False)


def test_two_modules_with_one_flattened_name_stay_two(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(6)
    pairs = {
        name: (torch.randn(RANK, 5, generator=generator), torch.randn(4, RANK, generator=generator))
        for name in ("blocks.0.a_b", "blocks.0.a.b", "blocks_0.a_b")
    }
    one = write(tmp_path / "one.safetensors", pairs, "transformer.")
    other = write(tmp_path / "other.safetensors", pairs, "diffusion_model.")
    assert asked("compare", one, other).data["cosine"] == pytest.approx(1.0, abs=1e-6)
    asked("merge", one, other, "-w", "0.5", "0.5", "-o", tmp_path / "ours.safetensors")
    _assert_deltas(tmp_path / "ours.safetensors", _deltas(pairs), flat=False)


def test_gpt2_has_no_part_called_transformer(tmp_path: Path) -> None:
    pairs = {f"transformer.h.{i}.attn.c_attn": (torch.randn(RANK, 8), torch.randn(24, RANK)) for i in range(2)}
    path = write(tmp_path / "a.safetensors", pairs, "base_model.model.")
    asked("convert", path, "-o", tmp_path / "ours", "--to", "peft")
    assert {key.split(".lora_")[0] for key in _keys(tmp_path / "ours" / "adapter_model.safetensors")} == {
        f"base_model.model.{name}" for name in pairs
    }
