"""The base model of a study: MiniLM out of a PyPI package, or any that transformers can load."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lorabench.errors import LorabenchError
from lorabench.zoo.minilm import MINILM, minilm_folder

__all__ = ["Base", "TextClassifier", "load_base", "round_to_nf4"]

_BLOCK = 64
# The 16 levels of NF4: quantiles of a normal distribution, scaled to [-1, 1] (Dettmers et al. 2023, QLoRA).
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Base:
    """Where a model lies, and what makes ids of texts.

    Attributes:
        name: as it was asked for.
        path: of its folder, or its name on a hub.
        tokenizer: transformers'.
    """

    name: str
    path: str
    tokenizer: Any

    def encode(self, texts: list[str], length: int) -> tuple[Int64[Tensor, "n t"], Int64[Tensor, "n t"]]:
        """Ids and attention masks, cut to a length."""
        found = self.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return found["input_ids"], found["attention_mask"]

    def fresh(self) -> nn.Module:
        """The model, as it is on the disk."""
        from transformers import AutoModel

        model: nn.Module = AutoModel.from_pretrained(self.path, dtype=torch.float32)
        return model


class TextClassifier(nn.Module):
    """A linear head on the mean of the last hidden states.

    Args:
        body: transformers' model.
        width: of its hidden states.
        classes: that are told apart.
    """

    def __init__(self, body: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, classes)

    def forward(self, ids: Int64[Tensor, "n t"], mask: Int64[Tensor, "n t"]) -> Float[Tensor, "n classes"]:
        """Logits."""
        states = self.body(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(states.dtype)
        logits: Tensor = self.head((states * weight).sum(1) / weight.sum(1).clamp_min(1))
        return logits


def load_base(name: str) -> Base:
    """The model of a name: "minilm", or a folder or a hub's name for transformers.

    Raises:
        LorabenchError: it is not there, or MiniLM is not what it was.
    """
    try:
        from transformers import AutoTokenizer
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise LorabenchError("studies need transformers: pip install 'lorabench[studies]'.") from error
    disable_progress_bar()  # type: ignore[no-untyped-call]
    path = str(minilm_folder()) if name == MINILM else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise LorabenchError(f"model={name}: it cannot be loaded ({reason}). Give {MINILM} or a folder.") from error
    return Base(name, path, tokenizer)


def round_to_nf4(weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The weight as 4-bit NormalFloat holds it: blocks of 64 numbers, each by its largest magnitude and 16 levels.

    This stands in for bitsandbytes' kernels, which a CPU may lack; scales are kept in float32 (no double quantisation).

    Example:
        >>> round_to_nf4(torch.tensor([1.0, 0.5, -0.02, 0.0])).tolist()
        [1.0, 0.44070982933044434, 0.0, 0.0]
    """
    flat = weight.detach().flatten()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % _BLOCK)).view(-1, _BLOCK)
    largest = padded.abs().amax(1, keepdim=True)
    levels = torch.tensor(_NF4, dtype=weight.dtype)
    share = padded / torch.where(largest == 0, torch.ones_like(largest), largest)
    nearest = torch.bucketize(share, (levels[1:] + levels[:-1]) / 2)
    return (levels[nearest] * largest).flatten()[: len(flat)].view_as(weight)
