"""Attention that can be stacked: plain products under `torch.func.vmap`, and dropout that follows from keys."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lorabench.training import Probability, SeededDropout

__all__ = ["TransformerLayer", "masked_softmax"]


def masked_softmax(logits: Float[Tensor, "*batch n"], stands: Bool[Tensor, "*#batch n"]) -> Float[Tensor, "*batch n"]:
    """Softmax over the entries that stand; the others are 0, and all are where none stands.

    >>> masked_softmax(torch.tensor([1.0, 1.0, 9.0]), torch.tensor([True, True, False]))
    tensor([0.5000, 0.5000, 0.0000])
    """
    lowest = torch.finfo(logits.dtype).min
    return logits.masked_fill(~stands, lowest).softmax(-1) * stands


class TransformerLayer(nn.Module):
    """A pre-norm layer without positions (Xiong et al. 2020): x + attention(norm(x)), then x + ff(norm(x)).

    ff is linear → GELU → dropout → linear, four times as wide. `torch.nn.TransformerEncoderLayer(norm_first=True,
    activation="gelu")` is the same network; its attention has no rule for members in a stack.

    Args:
        width: H of a token.
        heads: of the attention; they share H out among them.
        dropout: probability of zeroing what attention and ff add, and ff's hidden units.
    """

    def __init__(self, width: int, heads: int, dropout: Probability) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_ff = nn.LayerNorm(width), nn.LayerNorm(width)
        self.read, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ff_in, self.ff_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop_attention, self.drop_hidden, self.drop_ff = (SeededDropout(dropout) for _ in range(3))

    def forward(
        self, x: Float[Tensor, "batch *sets n width"], stands: Bool[Tensor, "batch *sets n"] | None = None
    ) -> Float[Tensor, "batch *sets n width"]:
        """The tokens of every set, each having looked at those of its set that stand."""
        x = x + self.drop_attention(self._attention(self.norm_attention(x), stands))
        hidden = self.drop_hidden(nn.functional.gelu(self.ff_in(self.norm_ff(x))))
        added: Tensor = self.drop_ff(self.ff_out(hidden))
        return x + added

    def _attention(
        self, x: Float[Tensor, "batch *sets n width"], stands: Bool[Tensor, "batch *sets n"] | None
    ) -> Float[Tensor, "batch *sets n width"]:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in self.read(x).chunk(3, -1)
        )
        logits = query @ key.mT / math.sqrt(query.shape[-1])
        weights = logits.softmax(-1) if stands is None else masked_softmax(logits, stands[..., None, None, :])
        found: Tensor = self.merge((weights @ value).transpose(-3, -2).flatten(-2))
        return found
