"""Heads, saved modules, biases and token deltas: carried whole, averaged by a merge, or dropped with their entries."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from tests.judges.judging import (
    MARKS,
    ask,
    asked,
    assert_near,
    assert_same_weights,
    bert,
    config_of,
    edit_config,
    gpt2,
    llama,
    load_in_peft,
    merged_in_peft,
    output,
    tensors_of,
    train,
    weights_of,
)

pytestmark = MARKS
RANK = 4


def _llama_classifier() -> nn.Module:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(17)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=32, num_labels=3,
        max_position_embeddings=16, pad_token_id=0,
    )  # fmt: skip
    return LlamaForSequenceClassification(config).eval()


@dataclass(frozen=True)
class Task:
    """One adapter that is more than low-rank pairs.

    Attributes:
        base: makes the model.
        settings: of `LoraConfig`.
        head: the weights that only the file's other tensors can change.
        gone: entries that claim those tensors, which must have PEFT's default without them.
        saving: of `save_pretrained`.
        shown_as: the class that PEFT makes of it.
    """

    base: Callable[[], nn.Module]
    settings: Mapping[str, Any]
    head: tuple[str, ...]
    gone: tuple[str, ...] = ("modules_to_save",)
    saving: Mapping[str, Any] = field(default_factory=dict)
    shown_as: str = "PeftModelForCausalLM"


def _bert(kind: str, **changes: Any) -> Callable[[], nn.Module]:
    return lambda: bert(kind, **changes)


ATTENTION = {"target_modules": ["query", "value"]}
PROJECTIONS = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
CONV1D = {"target_modules": ["c_attn"], "fan_in_fan_out": True, "task_type": "CAUSAL_LM"}
TASKS = {
    "seq-cls": Task(
        _bert("ForSequenceClassification", num_labels=3), {**ATTENTION, "task_type": "SEQ_CLS"}, ("classifier.",),
        ("task_type", "modules_to_save"), shown_as="PeftModelForSequenceClassification",
    ),
    "seq-cls-llama": Task(
        _llama_classifier, {"target_modules": ["q_proj", "v_proj"], "task_type": "SEQ_CLS"}, ("score.",),
        ("task_type", "modules_to_save"), shown_as="PeftModelForSequenceClassification",
    ),
    "seq-cls-and-pooler": Task(
        _bert("ForSequenceClassification", num_labels=2),
        {**ATTENTION, "task_type": "SEQ_CLS", "modules_to_save": ["pooler.dense"]}, ("classifier.", "bert.pooler."),
        ("task_type", "modules_to_save"), shown_as="PeftModelForSequenceClassification",
    ),
    "token-cls": Task(
        _bert("ForTokenClassification", num_labels=5), {**ATTENTION, "task_type": "TOKEN_CLS"}, ("classifier.",),
        ("task_type", "modules_to_save"), shown_as="PeftModelForTokenClassification",
    ),
    "question-answering": Task(
        _bert("ForQuestionAnswering"), {**ATTENTION, "task_type": "QUESTION_ANS"}, ("qa_outputs.",),
        ("task_type", "modules_to_save"), shown_as="PeftModelForQuestionAnswering",
    ),
    "lm-head": Task(llama, {**PROJECTIONS, "modules_to_save": ["lm_head"]}, ("lm_head.",)),
    "table-and-head": Task(
        llama, {**PROJECTIONS, "modules_to_save": ["lm_head", "embed_tokens"]}, ("lm_head.", "model.embed_tokens."),
    ),
    "norms": Task(llama, {**PROJECTIONS, "modules_to_save": ["input_layernorm"]}, ("model.layers.0.input_layernorm.",)),
    "saved-embeddings": Task(
        llama, PROJECTIONS, ("lm_head.", "model.embed_tokens."), (), {"save_embedding_layers": True}
    ),
    "tokens": Task(
        llama, {**PROJECTIONS, "trainable_token_indices": [1, 5]}, ("model.embed_tokens.",),
        ("trainable_token_indices",),
    ),
    "all-biases": Task(gpt2, {**CONV1D, "bias": "all"}, ("transformer.ln_f.bias",), ("bias",)),
    "own-biases": Task(gpt2, {**CONV1D, "bias": "lora_only"}, ("transformer.h.0.attn.c_attn.bias",), ("bias",)),
    "lora-bias": Task(gpt2, {**CONV1D, "lora_bias": True}, ("transformer.h.1.attn.c_attn.bias",), ("lora_bias",)),
}  # fmt: skip


def _make(task: Task, folder: Path, seed: int, r: int = RANK, alpha: int = 6) -> Path:
    torch.manual_seed(seed)
    model = get_peft_model(task.base(), LoraConfig(r=r, lora_alpha=alpha, **task.settings))
    if task.saving:  # PEFT saves the whole embeddings where the vocabulary has grown: let them have changed
        model.get_input_embeddings().requires_grad_(True)
        model.get_output_embeddings().requires_grad_(True)
    train(model, rate=0.05 + 0.02 * seed)
    model.save_pretrained(str(folder), **task.saving)
    return folder


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest) -> Task:
    return TASKS[request.param]


@pytest.fixture(scope="module")
def folder(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _make(task, tmp_path_factory.mktemp("heads") / "theirs", 1)


def _is_head(task: Task, name: str) -> bool:
    return name.startswith(task.head)


def _truncated(delta: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    return left[:, :rank] * values[:rank] @ right[:rank]


def test_the_head_is_trained(task: Task, folder: Path) -> None:
    before, after = weights_of(task.base()), merged_in_peft(task.base(), folder)
    changed = [name for name in before if _is_head(task, name) and not torch.equal(before[name], after[name])]
    assert changed
    assert type(load_in_peft(task.base(), folder)).__name__ == task.shown_as


@pytest.mark.parametrize(
    "arguments", [("resize", "--rank", str(RANK)), ("convert", "--to", "peft"), ("resize", "--pad", "6")]
)
def test_it_comes_through_whole(task: Task, folder: Path, arguments: tuple[str, ...], tmp_path: Path) -> None:
    command, *options = arguments
    asked(command, folder, "-o", tmp_path / "ours", *options)
    loaded = load_in_peft(task.base(), tmp_path / "ours")
    assert type(loaded).__name__ == task.shown_as
    with torch.no_grad():
        assert_near(output(loaded), output(load_in_peft(task.base(), folder)), "PEFT's answer is")
    assert_same_weights(weights_of(loaded.merge_and_unload()), merged_in_peft(task.base(), folder))
    for entry in ("task_type", "modules_to_save", "bias", "trainable_token_indices", "lora_bias"):
        assert config_of(tmp_path / "ours").get(entry) == config_of(folder).get(entry)


def test_a_smaller_rank_leaves_the_head(task: Task, folder: Path, tmp_path: Path) -> None:
    """ΔW is cut to its best rank 2; everything else is as it was."""
    asked("resize", folder, "-o", tmp_path / "ours", "--rank", "2")
    base, whole = weights_of(task.base()), merged_in_peft(task.base(), folder)
    adapted = {name for name in tensors_of(folder) if ".lora_A." in name}
    expected = dict(whole)
    for key in adapted:
        name = key.removeprefix("base_model.model.").replace(".lora_A", "")
        expected[name] = base[name] + _truncated(whole[name] - base[name], 2)
    assert_same_weights(merged_in_peft(task.base(), tmp_path / "ours"), expected)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.7, 0.3)], ids=["halves", "unequal"])
def test_a_merge_averages_every_weight(task: Task, folder: Path, weights: tuple[float, float], tmp_path: Path) -> None:
    """Σ w_i W_i over everything that either adapter changes, as the weights sum to 1."""
    other = _make(task, tmp_path / "other", 2, r=3, alpha=12)
    said = [str(weight) for weight in weights]
    asked("merge", folder, other, "-w", *said, "--method", "concat", "--no-check", "-o", tmp_path / "ours")
    one, two = (merged_in_peft(task.base(), path) for path in (folder, other))
    expected = {name: weights[0] * one[name] + weights[1] * two[name] for name in one}
    assert_same_weights(merged_in_peft(task.base(), tmp_path / "ours"), expected)
    assert type(load_in_peft(task.base(), tmp_path / "ours")).__name__ == task.shown_as


@pytest.mark.parametrize("command", ["resize", "convert", "merge"])
def test_what_is_dropped_is_no_longer_claimed(task: Task, folder: Path, command: str, tmp_path: Path) -> None:
    out = tmp_path / "ours"
    options = {"resize": ["--rank", str(RANK)], "convert": ["--to", "peft"], "merge": ["-w", "1"]}[command]
    asked(command, folder, "-o", out, "--drop-unsupported", *options)
    assert all(".lora_" in key and not key.endswith("bias") for key in tensors_of(out))
    defaults, written = LoraConfig().to_dict(), config_of(out)
    assert {entry: written.get(entry, defaults[entry]) for entry in task.gone} == {e: defaults[e] for e in task.gone}
    base, merged = weights_of(task.base()), merged_in_peft(task.base(), out)
    whole = merged_in_peft(task.base(), folder)
    heads = {name for name in base if _is_head(task, name)}
    assert heads
    for name in base:
        if name in heads:
            assert torch.equal(merged[name], base[name]), name
        elif name.endswith("weight") and "norm" not in name:
            assert_near(merged[name], whole[name], name, 1e-5)


@pytest.mark.parametrize("command", ["resize", "convert", "merge"])
def test_auto_classes_load_it(command: str, tmp_path: Path) -> None:
    """As a user of the Hub does: the folder alone, which names its base."""
    from peft import AutoPeftModelForSequenceClassification

    task = TASKS["seq-cls"]
    task.base().save_pretrained(tmp_path / "base")
    folder = _make(task, tmp_path / "theirs", 1)
    edit_config(folder, lambda config: config | {"base_model_name_or_path": str(tmp_path / "base")})
    options = {"resize": ["--rank", "4"], "convert": ["--to", "peft"], "merge": ["-w", "1"]}[command]
    asked(command, folder, "-o", tmp_path / "ours", *options)
    with torch.no_grad():
        ours, theirs = (
            output(AutoPeftModelForSequenceClassification.from_pretrained(str(path)))
            for path in (tmp_path / "ours", folder)
        )
    assert_near(ours, theirs, "PEFT's answer is")


def test_heads_of_other_shapes_do_not_merge(tmp_path: Path) -> None:
    """Three labels and two: nothing can be averaged, and the head is named."""
    three = _make(TASKS["seq-cls"], tmp_path / "three", 1)
    two = _make(TASKS["seq-cls-and-pooler"], tmp_path / "two", 1)
    answer = ask("merge", three, two, "-o", tmp_path / "ours")
    assert (answer.code, (tmp_path / "ours").exists()) == (1, False), answer.text
    assert "classifier" in answer.text


def test_a_head_that_one_parent_has_is_said(tmp_path: Path) -> None:
    """Its base is unknown here, so the head is taken as it is, or refused; never in silence."""
    task = TASKS["lm-head"]
    with_head = _make(task, tmp_path / "with", 1)
    bare = Task(task.base, PROJECTIONS, ())
    without = _make(bare, tmp_path / "without", 2)
    answer = ask("merge", with_head, without, "-o", tmp_path / "ours")
    assert "lm_head" in answer.text
    if answer.code == 0:
        head = merged_in_peft(task.base(), tmp_path / "ours")["lm_head.weight"]
        assert_near(head, merged_in_peft(task.base(), with_head)["lm_head.weight"], "the head is")
    assert isinstance(load_in_peft(task.base(), with_head), PeftModel)
