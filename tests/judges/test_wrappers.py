"""Names inside compiled, sharded and parallel models: what is written has none of the wrappers, and PEFT loads it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoraConfig, get_peft_model
from safetensors.torch import save_file

from tests.judges.judging import (
    MARKS,
    TOKENS,
    asked,
    assert_near,
    assert_same_weights,
    edit_config,
    llama,
    merged_in_peft,
    output,
    peft_output,
    save_in_peft,
    tensors_of,
    train,
)

pytestmark = MARKS
WORDS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module")
START = "base_model.model."


def _in_layers(word: str) -> Callable[[str], str]:
    def change(key: str) -> str:
        for i in range(3):
            key = key.replace(f"layers.{i}.", f"layers.{i}.{word}.")
        return key

    return change


WRAPPINGS: dict[str, tuple[str, Callable[[str], str]]] = {
    **{f"{word}-before-all": (word, lambda key, w=word: f"{w}.{key}") for word in WORDS},
    **{f"{word}-after-peft": (word, lambda key, w=word: key.replace(START, f"{START}{w}.")) for word in WORDS},
    **{f"{word}-in-layers": (word, _in_layers(word)) for word in WORDS[:3]},
    "doubled-peft": ("base_model.model", lambda key: START + key),
    "tripled-peft": ("base_model.model", lambda key: START * 2 + key),
    "ddp-of-compiled": ("_orig_mod", lambda key: f"module._orig_mod.{key}"),
    "compiled-in-peft-of-ddp": ("_orig_mod", lambda key: f"module.{key.replace(START, START + '_orig_mod.')}"),
    "sharded-checkpointed": (
        "_fsdp_wrapped_module",
        lambda key: (
            "_fsdp_wrapped_module."
            + _in_layers("_fsdp_wrapped_module._checkpoint_wrapped_module")(
                key.replace(START, f"{START}_fsdp_wrapped_module.")
            )
        ),
    ),
    "doubled-around-compiled": ("_orig_mod", lambda key: f"{START}_orig_mod.{key}"),
    "held-by-a-script": ("model", lambda key: f"model.{key}"),
    "held-and-compiled": ("_orig_mod", lambda key: f"model._orig_mod.module.{key}"),
    "with-adapter-name": (
        "_orig_mod",
        lambda key: f"_orig_mod.{key}".replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default."),
    ),
}
COMMANDS: dict[str, list[str]] = {"convert": ["--to", "peft"], "resize": ["--rank", "4"], "merge": ["-w", "1"]}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(llama(), config)
    train(model)
    return save_in_peft(model, tmp_path_factory.mktemp("wrappers") / "theirs")


def _wrapped(folder: Path, out: Path, change: Callable[[str], str]) -> Path:
    shutil.copytree(folder, out)
    tensors = {change(key): value for key, value in tensors_of(folder).items()}
    save_file(tensors, str(out / "adapter_model.safetensors"))
    return out


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_peft_loads_what_is_written(theirs: Path, wrapping: str, command: str, tmp_path: Path) -> None:
    word, change = WRAPPINGS[wrapping]
    folder = _wrapped(theirs, tmp_path / "wrapped", change)
    answer = asked(command, folder, "-o", tmp_path / "ours", *COMMANDS[command])
    assert word in answer.text, "nothing says that a wrapper was taken off"
    assert tensors_of(tmp_path / "ours").keys() == tensors_of(theirs).keys()
    assert_near(peft_output(llama(), tmp_path / "ours"), peft_output(llama(), theirs), "PEFT's answer is")


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_inspect_says_so(theirs: Path, wrapping: str, tmp_path: Path) -> None:
    word, change = WRAPPINGS[wrapping]
    folder = _wrapped(theirs, tmp_path / "wrapped", change)
    plain, wrapped = asked("inspect", theirs).text, asked("inspect", folder).text
    assert word in wrapped
    assert word in ("base_model.model", "module", "model") or word not in plain


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_it_is_the_same_adapter_as_the_bare_one(theirs: Path, wrapping: str, tmp_path: Path) -> None:
    from lorabench.adapters import load

    folder = _wrapped(theirs, tmp_path / "wrapped", WRAPPINGS[wrapping][1])
    bare, wrapped = load(theirs).modules, load(folder).modules
    assert wrapped.keys() == bare.keys()
    assert all(torch.equal(wrapped[name].delta(), bare[name].delta()) for name in bare)


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "_fsdp_wrapped_module.", "base_model.model.", START * 2])
@pytest.mark.parametrize("part", ["transformer", "unet", "text_encoder"])
@pytest.mark.parametrize("order", ["part-first", "wrapper-first"])
def test_a_part_of_a_pipeline_before_them(theirs: Path, part: str, wrapper: str, order: str, tmp_path: Path) -> None:
    """A file without a configuration, as trainers of pipelines write it: α = r."""
    before = f"{part}.{wrapper}" if order == "part-first" else f"{wrapper}{part}."
    tensors = {before + key.removeprefix(START): value for key, value in tensors_of(theirs).items()}
    save_file(tensors, str(tmp_path / "a.safetensors"))
    asked("convert", tmp_path / "a.safetensors", "-o", tmp_path / "ours", "--to", "peft", "--component", part)
    shutil.copytree(theirs, tmp_path / "expected")
    edit_config(tmp_path / "expected", lambda config: config | {"lora_alpha": 4})
    expected = merged_in_peft(llama(), tmp_path / "expected")
    assert_same_weights(merged_in_peft(llama(), tmp_path / "ours"), expected)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "before", ["text_encoder.", "transformer.", "unet._orig_mod.", "model.unet.", "module.text_encoder_2.", "pipe.dit."]
)
def test_a_part_before_peft_is_taken_off_a_folder(theirs: Path, before: str, command: str, tmp_path: Path) -> None:
    folder = _wrapped(theirs, tmp_path / "wrapped", lambda key: f"{before}{key}")
    answer = asked(command, folder, "-o", tmp_path / "ours", *COMMANDS[command])
    assert "taken off" in answer.text
    assert tensors_of(tmp_path / "ours").keys() == tensors_of(theirs).keys()
    assert_near(peft_output(llama(), tmp_path / "ours"), peft_output(llama(), theirs), "PEFT's answer is")


def test_a_part_before_peft_is_taken_off_what_is_carried_whole(theirs: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    bare = save_in_peft(get_peft_model(llama(), config), tmp_path / "bare")
    folder = _wrapped(bare, tmp_path / "wrapped", lambda key: f"text_encoder.{key}")
    for command, words in COMMANDS.items():
        asked(command, folder, "-o", tmp_path / command, *words)
        assert tensors_of(tmp_path / command).keys() == tensors_of(bare).keys(), command
        head = next(key for key in tensors_of(bare) if "lm_head" in key)
        assert torch.equal(tensors_of(tmp_path / command)[head], tensors_of(bare)[head])


@pytest.mark.parametrize("before", ["", "model.", "text_encoder.", "_orig_mod."])
def test_a_loha_has_pefts_scale_behind_any_prefix(before: str, tmp_path: Path) -> None:
    """Without its prefix it would be LyCORIS', whose scale no configuration says."""
    from lorabench.adapters import load

    config = LoHaConfig(r=2, alpha=8, target_modules=["q_proj"], init_weights=False)
    bare = save_in_peft(get_peft_model(llama(), config), tmp_path / "bare")
    folder = _wrapped(bare, tmp_path / "wrapped", lambda key: f"{before}{key}")
    assert {module.scale for module in load(folder).modules.values()} == {4.0}


def test_parts_of_two_models_are_no_folder_of_one(theirs: Path, tmp_path: Path) -> None:
    change = {"q_proj": "text_encoder.", "v_proj": "transformer."}
    folder = _wrapped(
        theirs,
        tmp_path / "wrapped",
        lambda key: next((part for name, part in change.items() if name in key), "") + key,
    )
    for command, words in COMMANDS.items():
        with pytest.raises(AssertionError, match="a PEFT folder is of one model"):
            asked(command, folder, "-o", tmp_path / command, *words)
        assert not (tmp_path / command).exists()


def test_a_compiled_model_of_torch_itself(theirs: Path, tmp_path: Path) -> None:
    """The names are those that torch and PEFT make, not this test's idea of them."""
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(llama(), config)
    compiled = torch.compile(model)
    with torch.no_grad():
        expected = output(model)
    state = {k.replace(".default", ""): v for k, v in compiled.state_dict().items() if ".lora_" in k}
    assert all(key.startswith("_orig_mod.") for key in state)
    model.save_pretrained(str(tmp_path / "theirs"))
    save_file(state, str(tmp_path / "theirs" / "adapter_model.safetensors"))
    asked("convert", tmp_path / "theirs", "-o", tmp_path / "ours", "--to", "peft")
    assert expected.shape[:2] == TOKENS.shape
    assert_near(peft_output(llama(), tmp_path / "ours"), expected, "PEFT's answer is")
