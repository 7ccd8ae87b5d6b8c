"""Adam over stacked parameters, with a learning rate a member."""

import itertools

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

__all__ = ["Adam"]


class Adam:
    """Kingma & Ba 2015, by torch's fused kernel: parameters, gradient and both moments are read once.

    The kernel knows one learning rate: it is called once for every run of neighbours that share one, so members
    are best kept in order of their rates.

    Args:
        params: stacked parameters, [members, ...] each; they are moved in place.
        rates: learning rates, [members].
    """

    def __init__(self, params: dict[str, Tensor], rates: Float64[Tensor, " members"]) -> None:
        self.mean = {name: torch.zeros_like(p) for name, p in params.items()}
        self.square = {name: torch.zeros_like(p) for name, p in params.items()}
        self.steps = 0
        self._step = torch.zeros((), device=next(iter(params.values())).device)
        self.set_rates(rates)

    def set_rates(self, rates: Float64[Tensor, " members"]) -> None:
        """Move at these rates from now on."""
        self._runs: list[tuple[float, slice]] = []
        start = 0
        for rate, same in itertools.groupby(rates.tolist()):
            stop = start + len(list(same))
            self._runs.append((rate, slice(start, stop)))
            start = stop

    def step(self, params: dict[str, Tensor], grads: dict[str, Tensor]) -> None:
        """Move all members."""
        self.steps += 1
        self._step += 1
        for rate, run in self._runs:
            p, grad, mean, square = (
                [group[name][run] for name in params] for group in (params, grads, self.mean, self.square)
            )
            self.of_one(p, grad, mean, square, rate, self._step)

    @staticmethod
    def of_one(
        params: list[Tensor],
        grads: list[Tensor],
        mean: list[Tensor],
        square: list[Tensor],
        rate: float,
        step: Float[Tensor, ""],
    ) -> None:
        """Step number `step`, from 1, at one rate: parameters, gradients and both moments."""
        torch._fused_adam_(
            params, grads, mean, square, [], [step] * len(params),
            lr=rate, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
        )  # fmt: skip

    def keep(self, members: Int64[Tensor, " kept"]) -> None:
        """Drop all members but these."""
        for group in (self.mean, self.square):
            for name in group:  # one tensor at a time: the old one goes before the next is made
                group[name] = group[name][members]
