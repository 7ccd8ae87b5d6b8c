"""What the judges share: the command line in-process, small random models, and PEFT's own word on a folder."""

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

MARKS = [
    pytest.mark.slow,
    # Their own deprecations, and advice that says nothing of what is judged.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*"),
    pytest.mark.filterwarnings("ignore:.*with eva initialization"),
    pytest.mark.filterwarnings("ignore:You have requested .ensure_weight_tying"),
    pytest.mark.filterwarnings("ignore:.*LoRA tensor.s. have invalid shape.*lora_B.bias"),
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out is set to .*"),
]
TOKENS = torch.tensor([[3, 1, 5, 7, 2, 9], [4, 5, 1, 5, 7, 30]])
"""Input of every language model here; tokens 5, 7 are in both rows (aLoRA's invocation)."""


@dataclass(frozen=True)
class Answer:
    """What one command said."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)

    @property
    def text(self) -> str:
        return f"{self.out}\n{self.err}"


def ask(*arguments: str | Path) -> Answer:
    """Run `lorabench adapters ARGUMENTS --json` in this process."""
    from lorabench.adapters.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments] + ["--json"])
        except SystemExit as usage:
            code = int(usage.code or 0)
    return Answer(code, out.getvalue(), err.getvalue())


def asked(*arguments: str | Path) -> Answer:
    """`ask`, where nothing but success is right."""
    answer = ask(*arguments)
    assert answer.code == 0, f"exit code {answer.code}: {arguments}\n{answer.text}"
    return answer


# Small random models, the same at every call.


def llama(**changes: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 32, "max_position_embeddings": 16, "tie_word_embeddings": False,
        "attention_bias": True,
    }  # fmt: skip
    torch.manual_seed(11)
    return _spread(LlamaForCausalLM(LlamaConfig(**(sizes | changes))))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(12)
    sizes: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 32, "n_positions": 16}
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return _spread(GPT2LMHeadModel(GPT2Config(**sizes, **quiet)))


def bert(kind: str, **changes: Any) -> nn.Module:
    """`kind` is the end of the class's name: ForSequenceClassification, ..."""
    import transformers

    torch.manual_seed(13)
    sizes = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32,
        "max_position_embeddings": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    config = transformers.BertConfig(**(sizes | changes))
    return _spread(getattr(transformers, f"Bert{kind}")(config))


def _spread(model: nn.Module) -> nn.Module:
    """Weights and biases of a size at which every one of them shows in the output."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "ln_" not in name:
                parameter.normal_(std=0.3)
    return model.eval()


class Convolutions(nn.Module):
    """An image model of two convolutions and a linear layer; `blocks` is a name that PEFT does not guess."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(14)
        self.conv_in = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(6, 6, 1) for _ in range(3))
        self.out = nn.Linear(6, 5)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.conv_in(image)
        for block in self.blocks:
            hidden = torch.tanh(block(hidden))
        return self.out(hidden.mean((2, 3)))


def output(model: nn.Module) -> Tensor:
    """The model's answer to the input that all tests give it."""
    return _answer(model.eval())


def _answer(model: nn.Module) -> Tensor:
    if any(isinstance(part, Convolutions) for part in model.modules()):
        generator = torch.Generator().manual_seed(15)
        result = model(torch.randn(2, 3, 5, 5, generator=generator))
    else:
        result = model(input_ids=TOKENS)
    if isinstance(result, Tensor):
        return result
    if "start_logits" in result:
        return torch.stack([result.start_logits, result.end_logits])
    logits: Tensor = result.logits if "logits" in result else result.last_hidden_state
    return logits


def train(model: nn.Module, steps: int = 2, rate: float = 0.05) -> None:
    """A few steps on an arbitrary goal, so that no factor is zero any more."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    model.train()
    for _ in range(steps):
        answer = _answer(model)
        (answer - torch.linspace(-1, 1, answer.shape[-1])).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


# PEFT's own word.


def load_in_peft(base: nn.Module, folder: Path) -> nn.Module:
    """`PeftModel.from_pretrained`, where a missing, unexpected or unloaded tensor is an error."""
    from peft import PeftModel, set_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected|Unexpected|not match).*")
        torch.manual_seed(0)
        model = PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=False)
    result = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    assert not result.unexpected_keys, f"PEFT has no place for {result.unexpected_keys[:5]}"
    return model.eval()


def peft_output(base: nn.Module, folder: Path) -> Tensor:
    """What a fresh base answers with the folder's adapter in it."""
    with torch.no_grad():
        return output(load_in_peft(base, folder))


def save_in_peft(model: Any, folder: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """`save_pretrained`, then entries of the configuration set as another writer would have set them."""
    model.save_pretrained(str(folder))
    if changes:
        edit_config(folder, lambda config: config | dict(changes))
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    entries: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return entries


def edit_config(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(change(config_of(folder))))


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(str(folder / "adapter_model.safetensors"))


def assert_near(actual: Tensor, expected: Tensor, message: str = "", tolerance: float = 2e-5) -> None:
    """Equal to float32's rounding of numbers as large as the expected ones."""
    size = max(float(expected.abs().max()), 1.0)
    error = float((actual - expected).abs().max())
    assert error <= tolerance * size, f"{message} off by {error:.3g}, where numbers are up to {size:.3g}"


def merged_in_peft(base: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Every weight of the base after PEFT has merged the folder's adapter into it."""
    return weights_of(load_in_peft(base, folder).merge_and_unload())


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().double().clone() for name, value in model.state_dict().items()}


def assert_same_weights(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_near(actual[name], value, name, 1e-5)
