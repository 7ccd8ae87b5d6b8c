"""The steps of one dense member, written so that TorchScript reads them (`lorabench.training.scripted`)."""

import torch
from torch import Tensor
from torch.nn.functional import linear

from lorabench.training import bare, move, without_python

__all__ = ["plain_steps", "take_steps"]


@bare
def _step(
    x: Tensor, target: Tensor, masks: list[Tensor | None], weights: list[Tensor], biases: list[Tensor],
    means: list[list[Tensor]], squares: list[list[Tensor]], rate: float, count: Tensor,
) -> Tensor:  # fmt: skip
    """One step; the logits before it. Every layer is moved as soon as its gradient is there."""
    active, last = [x], len(weights) - 1
    passed: list[Tensor] = []
    for i in range(last):
        z = linear(active[i], weights[i], biases[i])
        mask = masks[i]
        drawn = torch.ones_like(z) if mask is None else mask
        through = torch.ops.aten.threshold_backward(drawn, z, 0)
        z.mul_(through)
        passed.append(through)
        active.append(z)
    logits = linear(active[last], weights[last], biases[last])
    delta = torch.add(target, logits.softmax(-1), alpha=1 / x.size(0))
    for back in range(last + 1):
        i = last - back
        a, own = active[i], delta
        steep = torch.mm(own.t(), a)
        if i > 0:
            delta = torch.mm(own, weights[i])
            delta.mul_(passed[i - 1])
        move([weights[i], biases[i]], [steep, own.sum(0)], means[i], squares[i], rate, count)
    return logits


@bare
def plain_steps(
    x: Tensor, target: Tensor, masks: list[Tensor | None], weights: list[Tensor], biases: list[Tensor],
    means: list[list[Tensor]], squares: list[list[Tensor]], rate: float, counts: Tensor, size: int,
) -> Tensor:  # fmt: skip
    """Steps of `size` rows each; the logits before each.

    Args:
        x: rows of all these steps, [m, f].
        target: one at every row's class and zero elsewhere, [m, classes]; it is overwritten.
        masks: what the output of every layer is multiplied by, [steps, size, width], or None.
        weights: of every layer, moved in place.
        biases: likewise, moved in place.
        means: first moments of every layer's weights and biases.
        squares: second moments.
        rate: learning rate.
        counts: number of every step, from 1, float32, [steps].
        size: rows a step; the last may have fewer.
    """
    found: list[Tensor] = []
    targets, numbers = torch.split(target, size), counts.unbind()
    for s, batch in enumerate(torch.split(x, size)):
        n = batch.size(0)
        drawn: list[Tensor | None] = []
        for mask in masks:
            drawn.append(None if mask is None else mask[s, :n])  # noqa: PERF401 (TorchScript cannot type the other)
        to = targets[s].div_(-n)
        found.append(_step(batch, to, drawn, weights, biases, means, squares, rate, numbers[s]))
    return torch.cat(found)


take_steps = without_python(plain_steps)
"""`plain_steps`, which other threads need not wait for."""
