"""Members as one stack: parameters [K, ...], one set of batched products a step."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from lorabench.classifiers.base import Classifier
from lorabench.classifiers.dense import DenseNetwork
from lorabench.classifiers.dropout import SeededDropout, dropout_keys
from lorabench.classifiers.schedule import Schedule

__all__ = ["Inputs", "Stack", "cross_entropy"]

Inputs = Callable[[Tensor, Tensor], Tensor]
"""Features [K, n, f] of some adapters, from units [K] and rows [K, n]."""

_DRAWN = 4  # steps whose rows are gathered and whose dropout masks are drawn in one go


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
            self.kernel(groups, float(distinct[0]), self.steps)
            return
        for rate in distinct:
            members = torch.nonzero(rates == rate).flatten().tolist()
            self.kernel([[tensor[k] for tensor in group for k in members] for group in groups], float(rate), self.steps)

    def of_member(self, k: int) -> tuple[list[Tensor], list[Tensor]]:
        """The moments of member k, as views."""
        return [tensor[k] for tensor in self.mean.values()], [tensor[k] for tensor in self.square.values()]

    def kernel(self, tensors: list[list[Tensor]], rate: float, steps: int) -> None:
        """Step number `steps`, from 1, of one learning rate: parameters, gradients and both moments."""
        params, grads, mean, square = tensors
        step = torch.tensor(float(steps), device=params[0].device)
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
    def logits(self, inputs: Inputs, rows: Int64[Tensor, " n"]) -> Float[Tensor, "members n classes"]:
        """What every member says of the same rows, in evaluation."""
        if self._dense is not None and rows.device.type == "cpu":
            units = {int(unit): inputs(unit[None], rows[None])[0] for unit in torch.unique(self.units)}
            own = [units[int(unit)] for unit in self.units]
            return torch.stack([self._dense.logits(self._of_member(k), x) for k, x in enumerate(own)])
        x = inputs(self.units, rows.expand(len(self.seeds), -1))
        if self._dense is not None:
            return self._dense.logits(self.params, x)
        self.network.eval()
        return self._general(self.params, x)

    @torch.no_grad()
    def epoch(
        self, inputs: Inputs, labels: Int64[Tensor, " rows"], rows: Int64[Tensor, "members n"], batch_size: int
    ) -> Float[Tensor, " members"]:
        """Adam steps of every member over its own `rows` of the adapters, in their order; the mean losses."""
        if self._dense is not None and rows.device.type == "cpu":
            losses = [self._epoch_of(self._dense, k, inputs, labels, rows[k], batch_size) for k in range(len(rows))]
            self.adam.steps += -(-rows.shape[1] // batch_size)
            return torch.stack(losses) / rows.shape[1]
        total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for batch in torch.split(rows, batch_size, 1):
            total += self._step(inputs(self.units, batch), labels[batch]) * batch.shape[1]
        return total / rows.shape[1]

    def _step(self, x: Float[Tensor, "members n f"], y: Int64[Tensor, "members n"]) -> Float[Tensor, " members"]:
        """One Adam step of all members; the losses before it."""
        if self._dense is None:
            losses, grads = self._autograd(x, y)
        else:
            masks = self._dense.masks(self.params, x.shape[1], self.seeds, [self.adam.steps])
            losses, grads = self._dense.gradients(self.params, x, y, [None if m is None else m[0] for m in masks])
        self.adam.step(self.params, grads, self.schedule.rates)
        return losses

    def _epoch_of(
        self,
        dense: DenseNetwork,
        k: int,
        inputs: Inputs,
        labels: Int64[Tensor, " rows"],
        rows: Int64[Tensor, " n"],
        batch_size: int,
    ) -> Float64[Tensor, ""]:
        """All steps of one member, one after another: its weights and moments stay in the processor's cache."""
        params, moments, rate = self._of_member(k), self.adam.of_member(k), float(self.schedule.rates[k])
        total, step = torch.zeros((), dtype=torch.float64), self.adam.steps
        whole = len(rows) // batch_size * batch_size
        for block in (*torch.split(rows[:whole], batch_size * _DRAWN), rows[whole:]):
            size = min(batch_size, len(block))
            if not size:
                continue
            x, y = inputs(self.units[k : k + 1], block[None])[0], labels[block]
            drawn = dense.masks(params, size, self.seeds[k : k + 1], range(step, step + len(block) // size))
            for number, (x_batch, y_batch) in enumerate(zip(torch.split(x, size), torch.split(y, size), strict=True)):
                masks = [None if mask is None else mask[number, 0] for mask in drawn]
                loss, grads = dense.gradients(params, x_batch, y_batch, masks)
                step += 1
                self.adam.kernel([list(params.values()), list(grads.values()), *moments], rate, step)
                total += loss * size
        return total

    def _of_member(self, k: int) -> dict[str, Tensor]:
        return {name: p[k] for name, p in self.params.items()}

    def _autograd(
        self, x: Float[Tensor, "members n f"], y: Int64[Tensor, "members n"]
    ) -> tuple[Float[Tensor, " members"], dict[str, Tensor]]:
        """Losses and gradients of any network, by one batched call of it."""
        self.network.train()
        keys = dropout_keys(self.seeds, [self.adam.steps], range(len(self._dropouts)))[0]
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
