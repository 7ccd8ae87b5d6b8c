"""Files as people keep them: transposed, in other containers, renamed by browsers, or no LoRA at all."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorabench.adapters import load
from tests.judges.judging import (
    MARKS,
    ask,
    asked,
    assert_near,
    assert_same_weights,
    edit_config,
    gpt2,
    llama,
    merged_in_peft,
    save_in_peft,
    train,
)

pytestmark = MARKS
NAMES = [f"blocks.{i}.attn.to_q" for i in range(4)]


def _generator(seed: int = 8) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Transposed factors, ΔW = (A B)^T for x A B.


SPELLINGS: dict[str, tuple[str, str]] = {
    "peft": ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"),
    "loralib": ("{}.lora_A", "{}.lora_B"),
    "pipeline": ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight"),
    "down-up": ("unet.{}.lora.down.weight", "unet.{}.lora.up.weight"),
}
SHAPES = {
    "square": (24, 24, 4), "merged-3": (72, 24, 4), "merged-2": (48, 24, 2), "wide": (20, 36, 3), "tall": (50, 30, 8),
    "rank-1": (24, 24, 1),
}  # fmt: skip
"""d_out, d_in, r."""


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_transposed_factors(shape: str, spelling: str, tmp_path: Path) -> None:
    (d_out, d_in, rank), (down_key, up_key) = SHAPES[shape], SPELLINGS[spelling]
    generator, tensors, expected = _generator(), {}, {}
    for name in NAMES:
        a, b = torch.randn(d_in, rank, generator=generator), torch.randn(rank, d_out, generator=generator)
        tensors |= {down_key.format(name): a, up_key.format(name): b}
        expected[name] = (a.double() @ b.double()).T
    save_file(tensors, str(tmp_path / "a.safetensors"))
    modules = load(tmp_path / "a.safetensors").modules
    assert len(modules) == len(NAMES)
    for name, module in modules.items():
        whole = next(full for full in expected if name.endswith(full))
        assert (module.rank, tuple(module.shape)) == (rank, (d_out, d_in))
        assert_near(module.delta().double(), expected[whole], f"ΔW of {name}", 1e-6)
        assert any("transpos" in note for note in module.assumed)
    assert "transpos" in asked("inspect", tmp_path / "a.safetensors").text
    upright = load(_upright(tmp_path, SHAPES[shape], SPELLINGS[spelling]))
    assert not any("transpos" in note for module in upright.modules.values() for note in module.assumed)


def _upright(folder: Path, shape: tuple[int, int, int], keys: tuple[str, str]) -> Path:
    d_out, d_in, rank = shape
    tensors = {}
    for name in NAMES:
        tensors |= {keys[0].format(name): torch.randn(rank, d_in), keys[1].format(name): torch.randn(d_out, rank)}
    save_file(tensors, str(folder / "upright.safetensors"))
    return folder / "upright.safetensors"


# MLX.


def _mlx(folder: Path, container: str = "npz") -> dict[str, Tensor]:
    """`lora_a` [d_in, r] and `lora_b` [r, d_out] with one scale, as mlx-lm's older versions saved them."""
    folder.mkdir(parents=True)
    generator, arrays, expected = _generator(), {}, {}
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"):
        a, b = torch.randn(20, 3, generator=generator), torch.randn(3, 16, generator=generator)
        arrays |= {f"{name}.lora_a": a, f"{name}.lora_b": b}
        expected[name] = 5.0 * (a.double() @ b.double()).T
    if container == "npz":
        np.savez(str(folder / "adapters.npz"), **{key: value.numpy() for key, value in arrays.items()})
    else:
        save_file(arrays, str(folder / "adapters.safetensors"))
    config = {"fine_tune_type": "lora", "model": "m", "lora_parameters": {"rank": 3, "scale": 5.0, "dropout": 0.0}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return expected


@pytest.mark.parametrize("where", ["adapters.npz", ""], ids=["file", "folder"])
def test_mlx_npz(where: str, tmp_path: Path) -> None:
    expected = _mlx(tmp_path / "mlx")
    modules = load(tmp_path / "mlx" / where).modules
    assert modules.keys() == expected.keys()
    for name, module in modules.items():
        assert_near(module.delta().double(), expected[name], f"ΔW of {name}", 1e-6)


def test_mlx_npz_is_a_row_of_a_folders_table(tmp_path: Path) -> None:
    _mlx(tmp_path / "all" / "one")
    _mlx(tmp_path / "all" / "two", "safetensors")
    (tmp_path / "all" / "three").mkdir()
    shutil.copy(tmp_path / "all" / "one" / "adapters.npz", tmp_path / "all" / "three" / "weights.npz")
    answer = asked("inspect", tmp_path / "all")
    assert "adapters.npz" in answer.text
    assert "weights.npz" in answer.text


def test_mlx_npz_is_found_among_duplicates(tmp_path: Path) -> None:
    _mlx(tmp_path / "all" / "one")
    _mlx(tmp_path / "all" / "two", "safetensors")
    groups = json.dumps(asked("compare", "--duplicates", tmp_path / "all").data["groups"])
    assert "all/one" in groups  # a folder's one adapter is called by its folder
    assert "all/two" in groups


@pytest.mark.parametrize("command", ["inspect", "convert", "resize"])
def test_an_npz_that_is_no_archive_is_refused(command: str, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 no archive at all")
    options = {"inspect": [], "convert": ["--to", "peft", "-o", "x"], "resize": ["--rank", "1", "-o", "x"]}[command]
    assert ask(command, tmp_path / "a.npz", *options).code == 1


def test_an_npz_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    np.savez(str(tmp_path / "a.npz"), **{"a.lora_a": np.array([{"x": 1}], dtype=object)})
    assert ask("inspect", tmp_path / "a.npz").code == 1


# Pickles and names.


def _state() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator, tensors, expected = _generator(), {}, {}
    for name in NAMES:
        down, up = torch.randn(3, 20, generator=generator), torch.randn(16, 3, generator=generator)
        tensors |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
        expected[f"transformer.{name}"] = up.double() @ down.double()
    return tensors, expected


NESTINGS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "weights-metadata": lambda state: {"weights": state, "metadata": {"epoch": 3, "name": "x"}},
    "metadata-first": lambda state: {"metadata": {"step": 1}, "weights": state},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model-and-optimizer": lambda state: {"weights": state, "metadata": {}, "optimizer": {"lr": 0.1}},
}


@pytest.mark.parametrize("ending", ["pt", "bin", "pth"])
@pytest.mark.parametrize("nesting", NESTINGS)
def test_nested_pickles(nesting: str, ending: str, tmp_path: Path) -> None:
    state, expected = _state()
    torch.save(NESTINGS[nesting](state), tmp_path / f"a.{ending}")
    modules = load(tmp_path / f"a.{ending}").modules
    assert modules.keys() == expected.keys()
    assert all(torch.allclose(modules[name].delta().double(), expected[name], atol=1e-5) for name in expected)


@pytest.mark.parametrize("ending", ["bin", "pt"])
@pytest.mark.parametrize("command", ["resize", "convert", "merge"])
def test_a_plain_state_dict_is_written(command: str, ending: str, tmp_path: Path) -> None:
    """What `torch.load(weights_only=True)` of every program reads, with the same keys as a safetensors file."""
    state, expected = _state()
    source, out = tmp_path / "a.safetensors", tmp_path / f"ours.{ending}"
    save_file(state, str(source))
    options = {"resize": ["--rank", "3"], "convert": ["--to", "diffusers-peft"], "merge": ["-w", "1"]}[command]
    asked(command, source, "-o", out, *options)
    asked(command, source, "-o", tmp_path / "ours.safetensors", *options)
    written = torch.load(out, weights_only=True)
    assert type(written) is dict
    assert all(isinstance(value, Tensor) for value in written.values())
    beside = load_file(tmp_path / "ours.safetensors")
    assert written.keys() == beside.keys()
    assert all(torch.equal(written[key], beside[key]) for key in beside)
    modules = load(out).modules
    assert all(torch.allclose(modules[name].delta().double(), expected[name], atol=1e-5) for name in expected)


@pytest.mark.parametrize("suffix", ["_lora_down.weight", "_lora_down_weight"])
def test_an_underscore_before_lora_down(suffix: str, tmp_path: Path) -> None:
    generator, tensors, expected = _generator(), {}, {}
    for name in ("lora_unet_mid_block_attentions_0_proj_in", "lora_unet_down_blocks_1_attentions_0_proj_out"):
        down, up = torch.randn(3, 20, generator=generator), torch.randn(16, 3, generator=generator)
        keys = (f"{name}{suffix}", f"{name}{suffix.replace('down', 'up')}")
        tensors |= {keys[0]: down, keys[1]: up, f"{name}{suffix[:1]}alpha": torch.tensor(1.5)}
        expected[name.removeprefix("lora_unet_")] = 0.5 * up.double() @ down.double()
    save_file(tensors, str(tmp_path / "a.safetensors"))
    modules = {name.replace(".", "_"): module for name, module in load(tmp_path / "a.safetensors").modules.items()}
    assert len(modules) == len(expected)
    for name, delta in expected.items():
        module = next(module for flat, module in modules.items() if flat.endswith(name))
        assert_near(module.delta().double(), delta, f"ΔW of {name}", 1e-6)


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    model = get_peft_model(llama(), LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    train(model)
    return save_in_peft(model, tmp_path / "theirs")


@pytest.mark.parametrize(
    ("weights", "config"),
    [
        ("adapter_model (1).safetensors", "adapter_config (1).json"),
        ("adapter_model (12).safetensors", "adapter_config (12).json"),
        ("adapter_model(2).safetensors", "adapter_config(2).json"),
        ("adapter_model - Copy.safetensors", "adapter_config - Copy.json"),
    ],
)
@pytest.mark.parametrize("others", [False, True], ids=["alone", "beside-another"])
def test_copies_of_a_browser(theirs: Path, weights: str, config: str, others: bool, tmp_path: Path) -> None:
    """The configuration of the same copy, not another one's α."""
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    shutil.copy(theirs / "adapter_model.safetensors", downloads / weights)
    shutil.copy(theirs / "adapter_config.json", downloads / config)
    if others:
        shutil.copy(theirs / "adapter_model.safetensors", downloads)
        entries = json.loads((theirs / "adapter_config.json").read_text())
        (downloads / "adapter_config.json").write_text(json.dumps(entries | {"lora_alpha": 100}))
    assert {module.scale for module in load(downloads / weights).modules.values()} == {6 / 4}
    asked("convert", downloads / weights, "-o", tmp_path / "ours", "--to", "peft")
    assert_same_weights(merged_in_peft(llama(), tmp_path / "ours"), merged_in_peft(llama(), theirs))


# Tuners that are no LoRA.


def _others() -> dict[str, tuple[Any, str]]:
    linear: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    tokens: dict[str, Any] = {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"}
    return {
        "prompt-tuning": (peft.PromptTuningConfig(**tokens), "PROMPT_TUNING"),
        "prefix-tuning": (peft.PrefixTuningConfig(**tokens), "PREFIX_TUNING"),
        "p-tuning": (peft.PromptEncoderConfig(**tokens, encoder_hidden_size=8), "P_TUNING"),
        "fourierft": (peft.FourierFTConfig(n_frequency=6, **linear), "FOURIERFT"),
        "hra": (peft.HRAConfig(r=2, **linear), "HRA"),
        "miss": (peft.MissConfig(r=2, **linear), "MISS"),
        "vera": (peft.VeraConfig(r=2, **linear), "VERA"),
        "oft": (peft.OFTConfig(oft_block_size=4, **linear), "OFT"),
        "boft": (peft.BOFTConfig(boft_block_size=4, **linear), "BOFT"),
        "ia3": (peft.IA3Config(feedforward_modules=[], **linear), "IA3"),
        "ln-tuning": (peft.LNTuningConfig(target_modules=["input_layernorm"], task_type="CAUSAL_LM"), "LN_TUNING"),
        "vblora": (peft.VBLoRAConfig(num_vectors=4, vector_length=4, topk=2, **linear), "VBLORA"),
        "randlora": (peft.RandLoraConfig(r=2, **linear), "RANDLORA"),
        "shira": (peft.ShiraConfig(r=2, **linear), "SHIRA"),
        "c3a": (peft.C3AConfig(block_size=4, **linear), "C3A"),
        "road": (peft.RoadConfig(group_size=2, **linear), "ROAD"),
        "tokens": (peft.TrainableTokensConfig(token_indices=[1], task_type="CAUSAL_LM"), "TRAINABLE_TOKENS"),
    }


OTHERS = _others()
LEGACY = {"bone": "BONE"}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("command", ["convert", "resize", "merge"])
@pytest.mark.parametrize("tuner", [*OTHERS, *LEGACY])
def test_a_tuner_that_is_no_lora_is_named(tuner: str, command: str, tmp_path: Path) -> None:
    """By the configuration, whatever its tensors look like; and nothing is written."""
    config, name = OTHERS.get(tuner, (OTHERS["miss"][0], LEGACY.get(tuner, "")))
    model = get_peft_model(llama(), config)
    folder = save_in_peft(model, tmp_path / "theirs", {"peft_type": name})
    options = {"convert": ["--to", "peft"], "resize": ["--rank", "1"], "merge": ["-w", "1"]}[command]
    answer = ask(command, folder, "-o", tmp_path / "ours", *options)
    assert (answer.code, (tmp_path / "ours").exists()) == (1, False), answer.text
    assert name in answer.text
    assert name in ask("inspect", folder).text


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.conv = nn.Conv2d(8, 8, 3, groups=4)
        self.out = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.out(self.conv(image).mean((2, 3)))
        return result


@pytest.mark.filterwarnings("ignore:.*groups > 1")
@pytest.mark.parametrize("rank", [4, 8])
def test_a_grouped_convolution_is_said_to_be_unsupported(rank: int, tmp_path: Path) -> None:
    """PEFT's own file is right, so that exporting it again helps nobody."""
    model = get_peft_model(Grouped(), LoraConfig(r=rank, target_modules=["conv", "out"], init_lora_weights=False))
    model.save_pretrained(str(tmp_path / "theirs"))
    answer = ask("convert", tmp_path / "theirs", "-o", tmp_path / "ours", "--to", "peft")
    assert answer.code == 1
    assert "group" in answer.text.lower()
    assert "export" not in answer.text.lower()


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "diffusers-peft", "comfyui"])
@pytest.mark.parametrize("said", [True, False, None], ids=["true", "false", "absent"])
def test_conv1d_is_refused_whatever_its_configuration_says(said: bool | None, layout: str, tmp_path: Path) -> None:
    """PEFT takes GPT-2's layers for what they are and corrects the entry at loading."""
    settings: dict[str, Any] = {"r": 3, "target_modules": ["c_attn", "c_fc"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(gpt2(), LoraConfig(fan_in_fan_out=True, **settings))
    train(model)
    folder = save_in_peft(model, tmp_path / "theirs", {"fan_in_fan_out": said, "base_model_name_or_path": "gpt2"})
    if said is None:
        edit_config(folder, lambda config: {key: value for key, value in config.items() if key != "fan_in_fan_out"})
    answer = ask("convert", folder, "-o", tmp_path / "ours.safetensors", "--to", layout)
    assert (answer.code, (tmp_path / "ours.safetensors").exists()) == (1, False), answer.text
    assert "fan_in_fan_out" in answer.text


# Metadata, NaN, many errors.


def test_redact_takes_away_the_name(tmp_path: Path) -> None:
    state, _ = _state()
    secret = {"name": "my_secret_person", "title": "fine", "ss_output_name": "my_secret_person"}
    save_file(state, str(tmp_path / "a.safetensors"), secret | {"software": '{"name": "trainer"}'})
    asked("inspect", tmp_path / "a.safetensors", "--redact", "-o", tmp_path / "ours.safetensors")
    from safetensors import safe_open

    with safe_open(str(tmp_path / "ours.safetensors"), "pt") as file:
        assert "my_secret_person" not in json.dumps(file.metadata())


def _with_nan(path: Path) -> Path:
    state, _ = _state()
    state["transformer.blocks.1.attn.to_q.lora_A.weight"][0, 0] = torch.nan
    save_file(state, str(path))
    return path


def _api() -> Mapping[str, Callable[[Any], object]]:
    import lorabench.adapters as toolkit

    return {
        "resize": lambda adapter: toolkit.resize(adapter, toolkit.ResizeRule(rank=1)),
        "merge": lambda adapter: toolkit.merge([adapter, adapter], [0.5, 0.5]),
        "compare": lambda adapter: toolkit.compare(adapter, adapter),
        "convert": lambda adapter: toolkit.convert(adapter, "peft"),
    }


@pytest.mark.parametrize("function", ["resize", "merge", "compare", "convert"])
def test_nan_through_the_api_is_said_as_for_a_file(function: str, tmp_path: Path) -> None:
    import dataclasses

    from lorabench.errors import LorabenchError

    with pytest.raises(LorabenchError, match=r"(?i)nan") as of_file:
        load(_with_nan(tmp_path / "nan.safetensors"))
    state, _ = _state()
    save_file(state, str(tmp_path / "a.safetensors"))
    adapter = load(tmp_path / "a.safetensors")
    name = "transformer.blocks.1.attn.to_q"
    down = adapter.modules[name].down.clone()
    down[0, 0] = torch.nan
    modules = dict(adapter.modules) | {name: dataclasses.replace(adapter.modules[name], down=down)}
    with pytest.raises(LorabenchError, match=r"(?i)nan") as of_function:
        _api()[function](dataclasses.replace(adapter, modules=modules))
    assert name in str(of_function.value)
    assert "blocks.1.attn.to_q" in str(of_file.value)


@pytest.mark.parametrize("missing", ["lora_A", "lora_B"])
def test_one_error_of_many_modules_is_said_once(missing: str, tmp_path: Path) -> None:
    state = {}
    for i in range(48):
        state[f"transformer.blocks.{i}.attn.to_q.lora_A.weight"] = torch.randn(2, 8)
        state[f"transformer.blocks.{i}.attn.to_q.lora_B.weight"] = torch.randn(8, 2)
    state = {key: value for key, value in state.items() if missing not in key}
    save_file(state, str(tmp_path / "a.safetensors"))
    answer = ask("inspect", tmp_path / "a.safetensors")
    assert answer.code == 1
    errors = json.dumps(answer.data["validation_info"]["errors"])
    assert "48" in errors
    assert errors.count("attn.to_q") <= 8, errors[:600]
    whole = ask("convert", tmp_path / "a.safetensors", "-o", tmp_path / "ours", "--to", "peft")
    assert whole.code == 1
    assert "48" in whole.err
    assert whole.err.count("attn.to_q") <= 8
