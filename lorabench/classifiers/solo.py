"""The steps of one dense member by itself on a CPU, with as little around its products as there can be."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.nn import functional as F

from lorabench.classifiers.dense import DenseNetwork
from lorabench.classifiers.steps import take_steps
from lorabench.training import Adam

__all__ = ["Solo"]

_DRAWN = 8  # steps whose rows are gathered and whose dropout masks are drawn in one go (measured)


@dataclass
class Solo:
    """One member's weights and moments, and what it learns from.

    Every operation costs its call, and lanes wait for one another where they need Python. So some steps are one call
    (`take_steps`), nothing is done twice, and every layer is moved as soon as its gradient is there, while both are
    in the processor's cache. The numbers are those of `DenseNetwork.gradients` and `Adam.step`.

    Attributes:
        dense: the network's form.
        weights: weights of every layer, moved in place; biases, and both moments of each, likewise.
        x: features of all adapters.
        y: classes of all adapters.
        n_classes: number of classes.
        batch_size: adapters a step.
    """

    dense: DenseNetwork
    weights: list[Tensor]
    biases: list[Tensor]
    means: list[list[Tensor]]
    squares: list[list[Tensor]]
    x: Float[Tensor, "n f"]
    y: Int64[Tensor, " n"]
    n_classes: int
    batch_size: int

    @classmethod
    def of(
        cls,
        dense: DenseNetwork,
        params: dict[str, Tensor],
        adam: Adam,
        x: Float[Tensor, "n f"],
        y: Int64[Tensor, " n"],
        n_classes: int,
        batch_size: int,
    ) -> "Solo":
        """The only member of stacked parameters and moments, as views."""
        names = [(f"{name}weight", f"{name}bias") for name in dense.names]
        means, squares = ([[group[w][0], group[b][0]] for w, b in names] for group in (adam.mean, adam.square))
        weights, biases = ([params[pair[i]][0] for pair in names] for i in (0, 1))
        return cls(dense, weights, biases, means, squares, x, y, n_classes, batch_size)

    def epoch(
        self,
        rows: Int64[Tensor, " m"],
        keys: Int[Tensor, "steps dropouts"],
        taken: int,
        rate: float,
    ) -> Float[Tensor, ""]:
        """Steps over `rows`, after `taken` earlier ones; the mean loss."""
        size = self.batch_size
        y = self.y[rows]
        target = F.one_hot(y, self.n_classes).to(self.x.dtype)
        counts = torch.arange(taken + 1, taken + 1 + len(keys), dtype=torch.float32)
        found = []
        for start in range(0, len(rows), size * _DRAWN):
            stop, first = min(start + size * _DRAWN, len(rows)), start // size
            masks = self._masks(keys[first : first + _DRAWN])
            found.append(
                take_steps(
                    self.x[rows[start:stop]], target[start:stop], masks, self.weights, self.biases,
                    self.means, self.squares, rate, counts[first : first + _DRAWN], size,
                )
            )  # fmt: skip
        return F.cross_entropy(torch.cat(found), y)

    def _masks(self, keys: Int[Tensor, "steps dropouts"]) -> list[Float[Tensor, "steps batch _"] | None]:
        """What the output of every layer is multiplied by, for some steps."""
        params = {f"{name}bias": bias for name, bias in zip(self.dense.names, self.biases, strict=True)}
        layers = self.dense.masks(params, self.batch_size, keys[:, :, None])
        return [None if mask is None else mask[:, 0] for mask in layers]
