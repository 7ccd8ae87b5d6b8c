"""Each field of PEFT's `LoraConfig`, set in a real adapter: after every command PEFT answers as it did before.

The fields are enumerated from the installed PEFT, so that a new field without a case fails by its name.
"""

import copy
import dataclasses
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import config as lora
from torch import nn

from tests.judges.judging import (
    MARKS,
    TOKENS,
    Convolutions,
    ask,
    asked,
    assert_near,
    config_of,
    edit_config,
    gpt2,
    llama,
    output,
    peft_output,
    save_in_peft,
    train,
)

pytestmark = MARKS
RANK = 4


@dataclass(frozen=True)
class Case:
    """One value of one field.

    Attributes:
        settings: of the configuration, over `targets`.
        base: makes the model, the same at every call.
        adapt: puts the adapter into it.
        written: entries set in adapter_config.json after saving, where PEFT itself would need a network or a machine
            to write them.
        matters: whether PEFT answers differently, or fails, where the field has its default again.
        kept: whether the entry itself must be there afterwards; where it is not, it may be said in another way.
        refusal: a word of a refusal that is right too; "" where none is.
        loads: whether the installed PEFT can load such a folder here at all.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    base: Callable[[], nn.Module] = llama
    adapt: Callable[[nn.Module, LoraConfig], Any] = get_peft_model
    written: Mapping[str, Any] = field(default_factory=dict)
    matters: bool = True
    kept: bool = False
    refusal: str = ""
    loads: bool = True


def _corda_base() -> nn.Module:
    from peft.tuners.lora.corda import preprocess_corda

    model = llama()
    config = LoraConfig(init_lora_weights="corda", corda_config=lora.CordaConfig(), **_defaults())
    preprocess_corda(model, config, run_model=lambda: model(input_ids=TOKENS[:1]))
    return model


def _adapt_by_eva(model: nn.Module, config: LoraConfig) -> Any:
    from peft import initialize_lora_eva_weights

    adapted = get_peft_model(model, config)
    rows = [{"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}] * 4
    initialize_lora_eva_weights(adapted, rows, show_progress_bar=False)
    return adapted


def _adapt_by_lora_ga(model: nn.Module, config: LoraConfig) -> Any:
    from peft.tuners.lora.loraga import preprocess_loraga

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a token's number needs no gradient
        preprocess_loraga(model, config, lambda: output(model).square().mean().backward())
    return get_peft_model(model, config)


def _tied() -> nn.Module:
    return llama(tie_word_embeddings=True)


def _defaults() -> dict[str, Any]:
    return {"r": RANK, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}


GPT2 = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
CONV = {"target_modules": ["conv_in", "blocks.1", "out"], "task_type": None}
SAID: dict[str, Any] = {"matters": False, "kept": True}
"""PEFT writes the tensors over the base itself where the entry lacks: a sum of adapters then has none of its own."""

CASES: dict[str, dict[str, Case]] = {
    "task_type": {
        "causal": Case({"task_type": "CAUSAL_LM"}, **SAID),
        "features": Case({"task_type": "FEATURE_EXTRACTION"}, **SAID),
        "none": Case({"task_type": None}, **SAID),
    },
    "peft_type": {"lora": Case(**SAID)},
    "auto_mapping": {"class": Case({"task_type": None}, **SAID)},
    "peft_version": {"other": Case(written={"peft_version": "0.18.0"}, **SAID)},
    "base_model_name_or_path": {
        "name": Case(written={"base_model_name_or_path": "someone/tiny"}, **SAID)
    },
    "revision": {"branch": Case(written={"revision": "tuned"}, **SAID)},
    "inference_mode": {"false": Case(written={"inference_mode": False}, **SAID)},
    "r": {"three": Case({"r": 3}), "convolutions": Case({"r": 3, **CONV}, Convolutions)},
    "target_modules": {
        "suffixes": Case({"target_modules": ["q_proj", "1.mlp.up_proj"]}),
        "regex": Case({"target_modules": r".*layers\.(0|2)\..*(k_proj|gate_proj)"}),
        "all-linear": Case({"target_modules": "all-linear"}),
        "whole-name": Case({"target_modules": ["model.layers.1.self_attn.o_proj"]}),
        "table": Case({"target_modules": ["embed_tokens", "q_proj"]}),
        "lm-head": Case({"target_modules": ["lm_head", "v_proj"]}),
        "convolutions": Case(CONV, Convolutions),
        "conv1d": Case(GPT2, gpt2),
    },
    "exclude_modules": {
        "suffixes": Case({"exclude_modules": ["layers.0.self_attn.q_proj", "down_proj"]}, matters=False),
        "regex": Case({"exclude_modules": r".*\.(1|2)\.self_attn\.v_proj"}, matters=False),
    },
    "lora_alpha": {"five": Case({"lora_alpha": 5}), "below-one": Case({"lora_alpha": 0.3})},
    "lora_dropout": {"half": Case({"lora_dropout": 0.5}, **SAID)},
    "fan_in_fan_out": {
        "true": Case(GPT2, gpt2, matters=False),
        "false-on-conv1d": Case(GPT2, gpt2, written={"fan_in_fan_out": False}, matters=False),
        "false-on-linear": Case({"fan_in_fan_out": True}, matters=False),
    },
    "bias": {
        "all": Case({"bias": "all", **GPT2}, gpt2, **SAID),
        "lora-only": Case({"bias": "lora_only", **GPT2}, gpt2, **SAID),
        "all-of-llama": Case({"bias": "all"}, **SAID),
    },
    "use_rslora": {
        "true": Case({"use_rslora": True}),
        "with-patterns": Case({"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 1}}),
    },
    "modules_to_save": {
        "head": Case({"modules_to_save": ["lm_head"]}, **SAID),
        "head-and-table": Case({"modules_to_save": ["lm_head", "embed_tokens"]}, **SAID),
        "norms": Case({"modules_to_save": ["input_layernorm", "model.norm"]}, **SAID),
        "a-layer": Case({"modules_to_save": ["2.mlp.gate_proj"]}, **SAID),
        "of-convolutions": Case(
            {**CONV, "target_modules": ["conv_in"], "modules_to_save": ["blocks.2"]}, Convolutions, **SAID
        ),
    },
    "init_lora_weights": {
        "false": Case({"init_lora_weights": False}, matters=False),
        "gaussian": Case({"init_lora_weights": "gaussian"}, matters=False),
        "pissa": Case({"init_lora_weights": "pissa"}),
        "pissa-fast": Case({"init_lora_weights": "pissa_niter_4"}),
        # one rank for all is another one for some
        "pissa-with-patterns": Case(
            {"init_lora_weights": "pissa", "rank_pattern": {"q_proj": 2}}, refusal="init_lora_weights"
        ),
        "pissa-rslora": Case({"init_lora_weights": "pissa", "use_rslora": True}),
        "olora": Case({"init_lora_weights": "olora"}),
        "olora-with-patterns": Case({"init_lora_weights": "olora", "alpha_pattern": {"v_proj": 3, "q_proj": 1}}),
        "orthogonal": Case({"init_lora_weights": "orthogonal"}, matters=False),
        "mica": Case({"init_lora_weights": "mica"}, matters=False),
        "eva": Case({"init_lora_weights": "eva", "eva_config": lora.EvaConfig()}, adapt=_adapt_by_eva, matters=False),
    },
    "layers_to_transform": {
        "list": Case({"layers_to_transform": [0, 2]}, matters=False),
        "number": Case({"layers_to_transform": 1}, matters=False),
    },
    "layers_pattern": {
        "word": Case({"layers_to_transform": [1], "layers_pattern": "layers"}, matters=False),
        "list": Case({"layers_to_transform": [2], "layers_pattern": ["blocks", "layers"]}, matters=False),
    },
    "rank_pattern": {
        "suffix": Case({"rank_pattern": {"q_proj": 2, "down_proj": 7}}),
        "regex": Case({"rank_pattern": {r"layers\.1\.self_attn\.v_proj": 6, r"^model\.layers\.0\..*q_proj": 3}}),
        "convolutions": Case({**CONV, "rank_pattern": {"blocks.1": 2}}, Convolutions),
    },
    "alpha_pattern": {
        "suffix": Case({"alpha_pattern": {"q_proj": 16, "down_proj": 1}}),
        "regex": Case({"alpha_pattern": {r"layers\.(0|1)\..*v_proj": 2.5}}),
        "with-ranks": Case({"alpha_pattern": {"q_proj": 3}, "rank_pattern": {"q_proj": 2, "v_proj": 5}}),
    },
    "megatron_config": {
        "dict": Case(written={"megatron_config": {"hidden_size": 16}}, kept=True, refusal="megatron", loads=False)
    },
    "megatron_core": {"own": Case(written={"megatron_core": "mine"}, **SAID, refusal="megatron")},
    "trainable_token_indices": {
        "list": Case({"trainable_token_indices": [1, 5]}),
        "dict": Case({"trainable_token_indices": {"embed_tokens": [7, 9, 30]}}),
        "tied": Case({"trainable_token_indices": [2, 4]}, _tied),
        "table-and-head": Case({"trainable_token_indices": {"embed_tokens": [3], "lm_head": [4, 5]}}),
    },
    "loftq_config": {
        "four-bits": Case(  # PEFT asks for bitsandbytes
            written={"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 2}},
            kept=True, loads=False,
        )
    },
    "eva_config": {
        "rho": Case(
            {"init_lora_weights": "eva", "eva_config": lora.EvaConfig(rho=1.5)},
            adapt=_adapt_by_eva, **SAID,
        ),
    },
    "corda_config": {
        "ipm": Case({"init_lora_weights": "corda", "corda_config": lora.CordaConfig()}, _corda_base, kept=True)
    },
    "lora_ga_config": {
        "stable": Case(
            {"init_lora_weights": "lora_ga", "lora_ga_config": lora.LoraGAConfig()},
            adapt=_adapt_by_lora_ga, **SAID,
        )
    },
    "use_dora": {"true": Case({"use_dora": True}, refusal="dora")},
    "velora_config": {
        "groups": Case({"velora_config": lora.VeloraConfig(num_groups=2)}, matters=False, refusal="velora")
    },
    "alora_invocation_tokens": {
        "two": Case({"alora_invocation_tokens": [5, 7]}, kept=True),
        "one": Case({"alora_invocation_tokens": [1]}, kept=True),
    },
    "use_qalora": {"true": Case({"use_qalora": True}, **SAID, refusal="qalora")},
    "qalora_group_size": {"four": Case({"qalora_group_size": 4}, **SAID)},
    "monteclora_config": {
        "two": Case({"monteclora_config": lora.MontecloraConfig(num_samples=2)}, matters=False, refusal="monteclora")
    },
    "layer_replication": {
        "longer": Case({"layer_replication": [[0, 2], [1, 3]]}, kept=True),
        "shorter": Case({"layer_replication": [[1, 3]]}, kept=True),
    },
    "runtime_config": {
        "not-saved": Case(
            {"runtime_config": lora.LoraRuntimeConfig(ephemeral_gpu_offload=True)}, matters=False
        )
    },
    "lora_bias": {
        "true": Case({"lora_bias": True, "target_modules": ["q_proj", "v_proj"]}),
        "with-patterns": Case({"lora_bias": True, "target_modules": ["q_proj"], "alpha_pattern": {r"1\..*q_proj": 1}}),
        "conv1d": Case({"lora_bias": True, **GPT2}, gpt2),
    },
    "target_parameters": {
        "weight": Case(
            {"target_modules": ["v_proj"], "target_parameters": ["q_proj.weight"]}, refusal="target_parameters"
        )
    },
    "use_bdlora": {
        "blocks": Case(
            {"use_bdlora": lora.BdLoraConfig(["q_proj", "v_proj"], ["down_proj"], nblocks=2)}, refusal="bdlora"
        )
    },
    "arrow_config": {
        "routing": Case(
            written={"arrow_config": {"top_k": 2, "router_temperature": 1.0, "use_gks": False, "rng_seed": None}},
            kept=True, refusal="arrow", loads=False,
        )
    },
    "kasa_config": {"default": Case({"kasa_config": lora.KasaConfig()}, refusal="kasa")},
    "ensure_weight_tying": {
        "saved-table": Case({"ensure_weight_tying": True, "modules_to_save": ["embed_tokens"]}, _tied, kept=True),
        "adapted-table": Case(
            {"ensure_weight_tying": True, "target_modules": ["embed_tokens", "v_proj"]}, _tied, kept=True
        ),
        "tokens": Case({"ensure_weight_tying": True, "trainable_token_indices": [1]}, _tied, **SAID),
    },
}  # fmt: skip
"""Field -> label -> case."""


def _same_rank(folder: Path) -> str:
    config = config_of(folder)
    return str(max([config["r"], *config["rank_pattern"].values()]))


COMMANDS: dict[str, Callable[[Path, Path], list[str | Path]]] = {
    "resize": lambda folder, out: ["resize", folder, "-o", out, "--rank", _same_rank(folder)],
    "convert": lambda folder, out: ["convert", folder, "-o", out, "--to", "peft"],
    "merge-alone": lambda folder, out: ["merge", folder, "-w", "1", "-o", out],
    "merge-halves": lambda folder, out: ["merge", folder, folder, "-w", "0.5", "0.5", "-o", out],
}


@dataclass(frozen=True)
class Trained:
    case: Case
    name: str
    folder: Path
    answer: torch.Tensor


@pytest.fixture(scope="module", params=[f"{name}-{label}" for name, cases in CASES.items() for label in cases])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A real adapter of one case, and what PEFT answers with it in a fresh base."""
    name, _, label = request.param.partition("-")
    case = CASES[name][label]
    torch.manual_seed(1)
    model = case.adapt(case.base(), LoraConfig(**(_defaults() | copy.deepcopy(dict(case.settings)))))
    train(model)
    folder = save_in_peft(model, tmp_path_factory.mktemp(request.param) / "theirs", case.written)
    answer = peft_output(case.base(), folder) if case.loads else torch.zeros(1)
    return Trained(case, name, folder, answer)


def test_every_field_has_a_case() -> None:
    assert {f.name for f in dataclasses.fields(LoraConfig)} == CASES.keys()


def test_the_case_says_something(trained: Trained, tmp_path: Path) -> None:
    """The adapter changes the answer; without the field, where it matters, PEFT answers otherwise or fails."""
    case = trained.case
    if not case.loads:
        pytest.skip("the installed PEFT cannot load it here")
    with torch.no_grad():
        without = output(case.base())
    assert without.shape != trained.answer.shape or float((without - trained.answer).abs().max()) > 1e-2
    if not case.matters:
        return
    copied = Path(shutil.copytree(trained.folder, tmp_path / "default"))
    default = json.loads(json.dumps(getattr(LoraConfig(), trained.name), default=dict))
    edit_config(copied, lambda config: config | {trained.name: default})
    try:
        answer = peft_output(case.base(), copied)
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError, Warning):
        return
    assert answer.shape != trained.answer.shape or float((answer - trained.answer).abs().max()) > 1e-3


@pytest.mark.parametrize("command", COMMANDS)
def test_peft_answers_as_before(trained: Trained, command: str, tmp_path: Path) -> None:
    case, out = trained.case, tmp_path / "ours"
    answer = ask(*COMMANDS[command](trained.folder, out))
    if answer.code == 1 and case.refusal:
        assert case.refusal in answer.text.lower()
        assert not out.exists()
        return
    assert answer.code == 0, answer.text
    if case.kept:
        assert config_of(out).get(trained.name) == config_of(trained.folder)[trained.name]
    if case.loads:
        assert_near(peft_output(case.base(), out), trained.answer, "PEFT's answer is")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_entry_that_nobody_knows_is_carried(trained_plainly: Path, command: str, tmp_path: Path) -> None:
    entries = {"entry_nobody_knows": 3, "another_of_them": {"deep": [1, None, "x"]}, "false_one": False}
    edit_config(trained_plainly, lambda config: config | entries)
    asked(*COMMANDS[command](trained_plainly, tmp_path / "ours"))
    written = config_of(tmp_path / "ours")
    assert {key: written.get(key, "absent") for key in entries} == entries


@pytest.fixture
def trained_plainly(tmp_path: Path) -> Path:
    model = get_peft_model(llama(), LoraConfig(**_defaults()))
    train(model)
    return save_in_peft(model, tmp_path / "theirs")


def test_entries_that_differ_between_parents_are_said(trained_plainly: Path, tmp_path: Path) -> None:
    """Two parents contradict each other: one value may be taken, but never in silence."""
    other = Path(shutil.copytree(trained_plainly, tmp_path / "other"))
    edit_config(trained_plainly, lambda config: config | {"entry_nobody_knows": 3})
    edit_config(other, lambda config: config | {"entry_nobody_knows": 4})
    answer = ask("merge", trained_plainly, other, "-o", tmp_path / "ours")
    assert "entry_nobody_knows" in answer.text


@pytest.mark.parametrize("init", ["pissa", "olora", "loftq", "pissa_niter_2"])
@pytest.mark.parametrize("arguments", [("--rank", "2"), ("--pad", "6")], ids=["smaller", "padded"])
def test_a_base_that_depends_on_the_rank_forbids_another_rank(
    init: str, arguments: tuple[str, str], trained_plainly: Path, tmp_path: Path
) -> None:
    """PEFT takes r components out of the base at loading, so that ΔW alone does not say what the adapter does."""
    edit_config(trained_plainly, lambda config: config | {"init_lora_weights": init})
    answer = ask("resize", trained_plainly, "-o", tmp_path / "ours", *arguments)
    assert (answer.code, (tmp_path / "ours").exists()) == (1, False), answer.text
    assert "init_lora_weights" in answer.text


def test_dropping_dora_drops_its_entry_too(tmp_path: Path) -> None:
    model = get_peft_model(llama(), LoraConfig(use_dora=True, **_defaults()))
    train(model)
    folder = save_in_peft(model, tmp_path / "theirs")
    for command, make in COMMANDS.items():
        out = tmp_path / command
        asked(*make(folder, out), "--drop-dora")
        assert not config_of(out).get("use_dora")
        peft_output(llama(), out)
