"""The steps of one dense member, written so that TorchScript reads them (`lorabench.training.scripted`)."""

import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from lorabench.training import ONEDNN, without_python

__all__ = ["plain_steps", "take_steps"]

P = ParamSpec("P")
T = TypeVar("T")


def _bare(function: Callable[P, T]) -> Callable[P, T]:
    """Without the type checker that tests wrap around it: TorchScript reads the function itself, and no axis names."""
    return cast("Callable[P, T]", inspect.unwrap(function))


@_bare
def _by_onednn(a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(a, weight, bias, "none", [], "")  # noqa: SLF001
    return found


@_bare
def _by_torch(a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(a, weight, bias)


# TorchScript refuses an operation that this torch lacks, also where it is never reached.
_large = _by_torch if ONEDNN is None else _by_onednn


@_bare
def _forward(a: Tensor, weight: Tensor, turned: Tensor, bias: Tensor, big: bool) -> Tensor:
    if big:
        return _large(a, weight, bias)
    return torch.addmm(bias, a, turned)


@_bare
def _move(
    params: list[Tensor], grads: list[Tensor], means: list[Tensor], squares: list[Tensor], rate: float, count: Tensor
) -> None:
    """As `Adam.of_one`."""
    torch._fused_adam_(
        params, grads, means, squares, [], [count] * len(params),
        lr=rate, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
    )  # fmt: skip


@_bare
def _step(
    x: Tensor, target: Tensor, masks: list[Tensor | None], weights: list[Tensor], turned: list[Tensor],
    biases: list[Tensor], means: list[list[Tensor]], squares: list[list[Tensor]], big: list[bool], rate: float,
    count: Tensor,
) -> Tensor:  # fmt: skip
    """One step; the logits before it. Every layer is moved as soon as its gradient is there."""
    active, last = [x], len(weights) - 1
    passed: list[Tensor] = []
    for i in range(last):
        z = _forward(active[i], weights[i], turned[i], biases[i], big[i])
        mask = masks[i]
        drawn = torch.ones_like(z) if mask is None else mask
        through = torch.ops.aten.threshold_backward(drawn, z, 0)
        z.mul_(through)
        passed.append(through)
        active.append(z)
    logits = _forward(active[last], weights[last], turned[last], biases[last], big[last])
    delta = torch.add(target, logits.softmax(-1), alpha=1 / x.size(0))
    for back in range(last + 1):
        i = last - back
        a, own = active[i], delta
        steep = _large(own.t(), a.t(), None) if big[i] else torch.mm(own.t(), a)
        if i > 0:
            delta = _large(own, turned[i], None) if big[i] else torch.mm(own, weights[i])
            delta.mul_(passed[i - 1])
        _move([weights[i], biases[i]], [steep, own.sum(0)], means[i], squares[i], rate, count)
    return logits


@_bare
def plain_steps(
    x: Tensor, target: Tensor, masks: list[Tensor | None], weights: list[Tensor], turned: list[Tensor],
    biases: list[Tensor], means: list[list[Tensor]], squares: list[list[Tensor]], big: list[bool], rate: float,
    counts: Tensor, size: int,
) -> Tensor:  # fmt: skip
    """Steps of `size` rows each; the logits before each.

    Args:
        x: rows of all these steps, [m, f].
        target: one at every row's class and zero elsewhere, [m, classes]; it is overwritten.
        masks: what the output of every layer is multiplied by, [steps, size, width], or None.
        weights: of every layer, moved in place.
        turned: their transposes, as views.
        biases: likewise, moved in place.
        means: first moments of every layer's weights and biases.
        squares: second moments.
        big: whether the products of a layer go to oneDNN.
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
        found.append(_step(batch, to, drawn, weights, turned, biases, means, squares, big, rate, numbers[s]))
    return torch.cat(found)


take_steps = without_python(plain_steps)
"""`plain_steps`, which other threads need not wait for."""
