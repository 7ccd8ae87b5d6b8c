"""The steps of one dense member by itself on a CPU, with as little around its products as there can be."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.nn import functional as F

from lorabench.classifiers.dense import ONEDNN, DenseNetwork, by_onednn
from lorabench.training import Adam

__all__ = ["Solo"]

_DRAWN = 8  # steps whose rows are gathered and whose dropout masks are drawn in one go (measured)


@dataclass
class Solo:
    """One member's weights and moments, and what it learns from.

    Every operation costs its call, and lanes wait for one another between calls, Python being one thread at a time.
    So nothing is done twice, nothing is looked up, and every layer is moved as soon as its gradient is there, while
    both are in the processor's cache. The numbers are those of `DenseNetwork.gradients` and `Adam.step`.

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

    def __post_init__(self) -> None:
        self._turned = [weight.t() for weight in self.weights]
        self._big = [by_onednn(self.x, self.batch_size * weight.numel()) for weight in self.weights]

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
        counts = torch.arange(taken + 1, taken + 1 + len(keys), dtype=torch.float32).unbind()
        found = []
        for start in range(0, len(rows), size * _DRAWN):
            stop, first = min(start + size * _DRAWN, len(rows)), start // size
            batches = torch.split(self.x[rows[start:stop]], size)
            masks = self._masks(keys[first : first + len(batches)])
            for i, (x, to) in enumerate(zip(batches, torch.split(target[start:stop], size), strict=True)):
                n = len(x)
                drawn = masks[i] if n == size else [None if mask is None else mask[:n] for mask in masks[i]]
                found.append(self._step(x, to.div_(-n), drawn, rate, counts[first + i]))
        return F.cross_entropy(torch.cat(found), y)

    def _masks(self, keys: Int[Tensor, "steps dropouts"]) -> list[list[Tensor | None]]:
        """What the output of every layer is multiplied by, for some steps."""
        params = {f"{name}bias": bias for name, bias in zip(self.dense.names, self.biases, strict=True)}
        layers = self.dense.masks(params, self.batch_size, keys[:, :, None])
        none = [None] * len(keys)
        by_layer = [none if mask is None else mask[:, 0].unbind() for mask in layers]
        return [list(step) for step in zip(*by_layer, strict=True)]

    def _step(
        self,
        x: Float[Tensor, "n f"],
        target: Float[Tensor, "n classes"],
        masks: list[Tensor | None],
        rate: float,
        count: Float[Tensor, ""],
    ) -> Float[Tensor, "n classes"]:
        """One step; the logits before it."""
        weights, biases, turned, big, active, passed = self.weights, self.biases, self._turned, self._big, [x], []
        last = len(weights) - 1
        for i, mask in enumerate(masks[:last]):
            z = _forward(active[i], weights[i], turned[i], biases[i], big[i])
            through = torch.ops.aten.threshold_backward(torch.ones_like(z) if mask is None else mask, z, 0)
            z.mul_(through)
            passed.append(through)
            active.append(z)
        logits = _forward(active[last], weights[last], turned[last], biases[last], big[last])
        delta = torch.add(target, logits.softmax(-1), alpha=1 / len(x))
        for i in range(last, -1, -1):
            a, own = active[i], delta
            steep = ONEDNN(own.t(), a.t(), None, "none", [], "") if big[i] else torch.mm(own.t(), a)
            if i:
                delta = ONEDNN(own, turned[i], None, "none", [], "") if big[i] else torch.mm(own, weights[i])
                delta.mul_(passed[i - 1])
            moved = [weights[i], biases[i]]
            Adam.of_one(moved, [steep, own.sum(0)], self.means[i], self.squares[i], rate, count)
        return logits


def _forward(
    a: Float[Tensor, "n k"], weight: Float[Tensor, "m k"], turned: Float[Tensor, "k m"], bias: Float[Tensor, " m"],
    big: bool,
) -> Float[Tensor, "n m"]:  # fmt: skip
    found: Tensor = ONEDNN(a, weight, bias, "none", [], "") if big else torch.addmm(bias, a, turned)
    return found
