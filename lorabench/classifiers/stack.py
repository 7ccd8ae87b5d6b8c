"""Members as one stack: parameters [K, ...], one set of batched products a step."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from lorabench.classifiers.base import Classifier
from lorabench.classifiers.dense import DenseNetwork
from lorabench.classifiers.dropout import SeededDropout, dropout_keys
from lorabench.classifiers.schedule import Schedule

__all__ = ["Stack", "cross_entropy"]


class _Adam:
    """Adam over stacked parameters with a learning rate a member (Kingma & Ba 2015, torch's fused kernel)."""

    def __init__(self, params: dict[str, Tensor]) -> None:
        self.mean = {name: torch.zeros_like(p) for name, p in params.items()}
        self.square = {name: torch.zeros_like(p) for name, p in params.items()}
        self.steps = 0

    def step(self, params: dict[str, Tensor], grads: dict[str, Tensor], rates: Float[Tensor, " members"]) -> None:
        """Move all members."""
        self.steps += 1
        groups = [list(group.values()) for group in (params, grads, self.mean, self.square)]
        distinct = torch.unique(rates)
        if len(distinct) == 1:
            self._kernel(groups, float(distinct[0]))
            return
        for rate in distinct:
            members = torch.nonzero(rates == rate).flatten().tolist()
            self._kernel([[tensor[k] for tensor in group for k in members] for group in groups], float(rate))

    def step_one(self, k: int, params: dict[str, Tensor], grads: dict[str, Tensor], rate: float) -> None:
        """Move member k, whose parameters and gradients these are; `steps` is for the caller to count."""
        moments = [[tensor[k] for tensor in group.values()] for group in (self.mean, self.square)]
        self._kernel([list(params.values()), list(grads.values()), *moments], rate)

    def _kernel(self, tensors: list[list[Tensor]], rate: float) -> None:
        params, grads, mean, square = tensors
        step = torch.tensor(float(self.steps), device=params[0].device)
        torch._fused_adam_(
            params, grads, mean, square, [], [step] * len(params),
            lr=rate, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
        )  # fmt: skip

    def keep(self, members: Int64[Tensor, " kept"]) -> None:
        self.mean = {name: m[members] for name, m in self.mean.items()}
        self.square = {name: s[members] for name, s in self.square.items()}


class Stack:
    """The members still at work: stacked parameters, optimiser, schedules and best weights."""

    def __init__(self, models: list[Classifier], units: list[int], device: torch.device) -> None:
        networks = [model.network.to(device) for model in models]
        first = models[0]
        self.network: nn.Module = networks[0]
        stacked, self.buffers = stack_module_state(networks)
        self.params = {name: p.detach() for name, p in stacked.items()}
        self.best = {name: p.clone() for name, p in self.params.items()}
        self._dense = DenseNetwork.of(self.network)
        self.seeds = torch.tensor([model.seed for model in models], dtype=torch.int64, device=device)
        self.units = torch.tensor(units, dtype=torch.int64, device=device)
        self.adam = _Adam(self.params)
        rates = torch.full((len(models),), first.learning_rate, dtype=torch.float64)
        self.schedule = Schedule(rates, first.plateau_factor, first.plateau_patience, first.patience)
        self._dropouts = [name for name, m in self.network.named_modules() if isinstance(m, SeededDropout)]

    @torch.no_grad()
    def logits(self, x: Float[Tensor, "members n f"]) -> Float[Tensor, "members n classes"]:
        """What every member says of its own rows, in evaluation."""
        if self._dense is not None:
            return self._dense.logits(self.params, x)
        self.network.eval()
        return self._general(self.params, x)

    @torch.no_grad()
    def step(self, x: Float[Tensor, "members n f"], y: Int64[Tensor, "members n"]) -> Float[Tensor, " members"]:
        """One Adam step of every member; the losses before it."""
        step = self.adam.steps
        if self._dense is None:
            losses, grads = self._autograd(x, y)
        else:
            masks = self._dense.masks(self.params, x.shape[1], self.seeds, step)
            if x.device.type == "cpu":
                return self._step_by_member(self._dense, x, y, masks)
            losses, grads = self._dense.gradients(self.params, x, y, masks)
        self.adam.step(self.params, grads, self.schedule.rates)
        return losses

    def _step_by_member(
        self, dense: DenseNetwork, x: Float[Tensor, "members n f"], y: Int64[Tensor, "members n"], masks: list[Any]
    ) -> Float[Tensor, " members"]:
        """Forward, backward and Adam of one member after another, so that its weights stay in the core's cache."""
        losses = torch.empty(len(x), dtype=x.dtype)
        self.adam.steps += 1
        for k, rate in enumerate(self.schedule.rates.tolist()):
            params = {name: p[k] for name, p in self.params.items()}
            own = [None if mask is None else mask[k] for mask in masks]
            losses[k], grads = dense.gradients(params, x[k], y[k], own)
            self.adam.step_one(k, params, grads, rate)
        return losses

    def _autograd(
        self, x: Float[Tensor, "members n f"], y: Int64[Tensor, "members n"]
    ) -> tuple[Float[Tensor, " members"], dict[str, Tensor]]:
        """Losses and gradients of any network, by one batched call of it."""
        self.network.train()
        keys = dropout_keys(self.seeds, self.adam.steps, range(len(self._dropouts)))
        self.buffers |= {f"{name}.key": key for name, key in zip(self._dropouts, keys, strict=True)}
        leaves = {name: p.detach().requires_grad_() for name, p in self.params.items()}
        with torch.enable_grad():
            losses = cross_entropy(self._general(leaves, x), y)
            found = torch.autograd.grad(losses.sum(), list(leaves.values()))
        # Adam's fused kernel walks memory, not strides.
        return losses.detach(), {name: grad.contiguous() for name, grad in zip(leaves, found, strict=True)}

    def _general(
        self, params: dict[str, Tensor], x: Float[Tensor, "members n f"]
    ) -> Float[Tensor, "members n classes"]:
        def one(p: dict[str, Tensor], b: dict[str, Tensor], x_: Tensor) -> Any:
            return functional_call(self.network, (p, b), (x_,))

        found: Tensor = vmap(one, randomness="different")(params, self.buffers, x)
        return found

    def remember(self, improved: Bool[Tensor, " members"]) -> None:
        """Copy the weights of the members that improved."""
        rows = torch.nonzero(improved).flatten().to(self.seeds.device)
        for name, p in self.params.items():
            self.best[name][rows] = p[rows]

    def keep(self, members: Int64[Tensor, " kept"]) -> None:
        """Drop all members but these."""
        rows = members.to(self.seeds.device)
        self.params = {name: p[rows] for name, p in self.params.items()}
        self.buffers = {name: b[rows] for name, b in self.buffers.items()}
        self.best = {name: p[rows] for name, p in self.best.items()}
        self.adam.keep(rows)
        self.schedule.keep(members)
        self.seeds, self.units = self.seeds[rows], self.units[rows]


def cross_entropy(
    logits: Float[Tensor, "members n classes"], y: Int64[Tensor, "members n"]
) -> Float[Tensor, " members"]:
    """Mean over the rows, for every member."""
    return F.cross_entropy(logits.transpose(1, 2), y, reduction="none").mean(1)
