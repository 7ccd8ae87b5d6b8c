"""Adam over stacked parameters, with a learning rate a member."""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

__all__ = ["Adam"]


class Adam:
    """Kingma & Ba 2015, by torch's fused kernel: parameters, gradient and both moments are read once.

    The kernel knows one learning rate. Where members have different ones, it moves a tensor of zeros at rate 1,
    and that move is added to the parameters at every member's own rate.

    Args:
        params: stacked parameters, [members, ...] each; they are moved in place.
        rates: learning rates, [members].
    """

    def __init__(self, params: dict[str, Tensor], rates: Float64[Tensor, " members"]) -> None:
        self.mean = {name: torch.zeros_like(p) for name, p in params.items()}
        self.square = {name: torch.zeros_like(p) for name, p in params.items()}
        self.steps = 0
        self._step = torch.zeros((), device=next(iter(params.values())).device)
        self._move: dict[str, Tensor] = {}
        self.set_rates(rates)

    def set_rates(self, rates: Float64[Tensor, " members"]) -> None:
        """Move at these rates from now on; call it once an epoch, for it waits for the device."""
        distinct = set(rates.tolist())
        self._rate = distinct.pop() if len(distinct) == 1 else None
        self._rates = rates

    def step(self, params: dict[str, Tensor], grads: dict[str, Tensor]) -> None:
        """Move all members."""
        self.steps += 1
        self._step += 1
        if self._rate is not None:
            self._kernel(params, grads, self._rate)
            return
        if not self._move or self._move.keys() != params.keys():
            self._move = {name: torch.empty_like(p) for name, p in params.items()}
        for move in self._move.values():
            move.zero_()
        self._kernel(self._move, grads, 1.0)
        for name, p in params.items():
            rates = self._rates.to(p).reshape(-1, *[1] * (p.dim() - 1))
            p.addcmul_(self._move[name], rates)

    def _kernel(self, params: dict[str, Tensor], grads: dict[str, Tensor], rate: float) -> None:
        mean, square = ([group[name] for name in params] for group in (self.mean, self.square))
        self.of_one(list(params.values()), [grads[name] for name in params], mean, square, rate, self._step)

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
        self._move = {}
        self.mean = {name: m[members] for name, m in self.mean.items()}
        self.square = {name: s[members] for name, s in self.square.items()}
