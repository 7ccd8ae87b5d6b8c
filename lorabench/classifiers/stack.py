"""Members as one stack: one set of batched products a step."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from lorabench.classifiers.base import Classifier
from lorabench.classifiers.dense import DenseNetwork
from lorabench.classifiers.problem import Member, Pool, Problem, gather
from lorabench.classifiers.solo import Solo
from lorabench.classifiers.streamed import Streamed
from lorabench.training import Keyed, Schedule, Stack, draw_keys

__all__ = ["MemberStack"]

_EVALUATED_BYTES = {"cpu": 2**26, "cuda": 2**30}  # of inputs and hidden units that are evaluated in one go


class MemberStack(Stack):
    """Classifiers that are trained together.

    A member by itself on a CPU, if its network is dense, goes through its steps without the leading axis: its
    products take the fastest way there is, and its weights stay in the processor's cache.

    Args:
        models: the classifiers, of one architecture.
        members: what each of them reads and learns; feature sets of one length.
        problem: features, labels and rows, on the device to train on.
    """

    def __init__(self, models: list[Classifier], members: list[Member], problem: Problem) -> None:
        self.problem = problem
        networks = [model.network.to(problem.inputs.device) for model in models]
        first = models[0]
        self.network: nn.Module = networks[0]
        stacked, buffers = stack_module_state(networks)
        self._dense = DenseNetwork.of(self.network)
        self._alone = self._dense is not None and len(models) == 1 and problem.inputs.device.type == "cpu"
        self._varying = problem.varying(members[0].features) if self._alone else None
        if self._dense is not None and self._varying is not None:
            self._entry = f"{self._dense.names[0]}weight"
            self._whole = stacked[self._entry].detach()  # its other columns stay what they are now
            stacked[self._entry] = self._whole[..., self._varying]
        rates = torch.full((len(models),), first.learning_rate, dtype=torch.float64)
        schedule = Schedule(rates, first.plateau_factor, first.plateau_patience, first.patience, first.stop_on)
        super().__init__(self.network, {name: p.detach() for name, p in stacked.items()}, buffers, schedule)
        self.batch_size, self.max_epochs = first.batch_size, first.max_epochs
        self._keyed = [name for name, m in self.network.named_modules() if isinstance(m, Keyed)]
        self._onehot = torch.eye(problem.n_classes, dtype=problem.inputs.dtype, device=self.device)
        self._take(members)

    def _take(self, members: list[Member]) -> None:
        self.members = members
        self._seeds = torch.tensor([m.seed for m in members], dtype=torch.int64, device=self.device)
        if self._alone:
            self._y = self.problem.labels[members[0].labels]
            self._x = None if isinstance(self.problem.inputs, Streamed) else self._read(self.problem.inputs)
        else:
            self._index = self.problem.index([m.features for m in members])
            self._labels = torch.tensor([m.labels for m in members], dtype=torch.int64, device=self.device)

    @torch.no_grad()
    def epoch(self, number: int) -> dict[str, Float[Tensor, " members"]]:
        """See `Stack.epoch`."""
        self.adam.set_rates(self.schedule.rates)
        loss = torch.zeros((), device=self.device)
        for pool in self.problem.pools(number, [m.seed for m in self.members], self.batch_size):
            loss = loss + self._steps(pool) * (pool.order.shape[1] / len(self.problem.train))
        return {"train_loss": loss}

    def _steps(self, pool: Pool) -> Float[Tensor, " members"]:
        """Steps over the training rows of a pool; the mean losses."""
        first = self.adam.steps
        steps = range(first, first + -(-pool.order.shape[1] // self.batch_size))
        keys = draw_keys(self._seeds, steps, range(max(len(self._keyed), 1)))
        if self._dense is not None and self._alone:
            rate = float(self.schedule.rates[0])
            solo = Solo.of(
                self._dense, self.params, self.adam, self._own(pool.inputs), self._y[pool.rows],
                self.problem.n_classes, self.batch_size,
            )  # fmt: skip
            self.adam.steps += len(steps)
            return solo.epoch(pool.order[0], keys[..., 0], first, rate)[None]
        found = []
        for batch, key in zip(torch.split(pool.order, self.batch_size, 1), keys, strict=True):
            x, y = gather(pool.inputs, self._index, batch), self._classes(pool.rows[batch])
            dense = self._dense
            logits, grads = self._autograd(x, y, key) if dense is None else self._closed_form(dense, x, y, key)
            self.adam.step(self.params, grads)
            found.append(logits)
        return cross_entropy(torch.cat(found, 1), self._classes(pool.rows[pool.order]))

    def _own(self, inputs: Float[Tensor, "m f"]) -> Float[Tensor, "m _f"]:
        """What the member that is alone reads of the features at hand."""
        return self._read(inputs) if self._x is None else self._x

    def _read(self, inputs: Float[Tensor, "m f"]) -> Float[Tensor, "m _f"]:
        own = self.problem.picked(inputs, self.members[0].features)
        return own if self._varying is None else own[:, self._varying]

    def _classes(self, rows: Int64[Tensor, "members n"]) -> Int64[Tensor, "members n"]:
        return self.problem.labels[self._labels[:, None], rows]

    def _closed_form(
        self, dense: DenseNetwork, x: Float[Tensor, "members n f"], y: Int64[Tensor, "members n"], keys: Tensor
    ) -> tuple[Float[Tensor, "members n classes"], dict[str, Tensor]]:
        masks = [None if mask is None else mask[0] for mask in dense.masks(self.params, x.shape[1], keys[None])]
        return dense.gradients(self.params, x, self._onehot[y].div_(-x.shape[1]), masks)

    def _autograd(
        self, x: Float[Tensor, "members n f"], y: Int64[Tensor, "members n"], keys: Tensor
    ) -> tuple[Float[Tensor, "members n classes"], dict[str, Tensor]]:
        """Logits and gradients of any network, by one batched call of it."""
        self.network.train()
        self.buffers |= {f"{name}.key": key for name, key in zip(self._keyed, keys, strict=False)}
        leaves = {name: p.detach().requires_grad_() for name, p in self.params.items()}
        with torch.enable_grad():
            logits = self._general(leaves, self.buffers, x)
            grads = torch.autograd.grad(cross_entropy(logits, y).sum(), list(leaves.values()))
        return logits.detach(), {name: self._lying(name, grad) for name, grad in zip(leaves, grads, strict=True)}

    def _lying(self, name: str, grad: Tensor) -> Tensor:
        """A gradient in memory as its parameter is: Adam's fused kernel walks memory, not strides.

        Where the two differ the parameter is laid as the gradient comes, once: a linear layer's comes turned, and to
        turn it back in every step costs as much as the products of a small network.
        """
        if grad.stride() == self.params[name].stride():
            return grad
        room = torch.empty_like(grad)  # strides as they are, where no two entries share a place
        by_member = room.stride(0) * len(room) == room.numel()  # Adam moves some members at one rate, some at another
        if by_member and room.stride() != self.params[name].stride():
            for group in (self.params, self.adam.mean, self.adam.square):
                group[name] = torch.empty_like(room).copy_(group[name])
        param = self.params[name]
        return grad if grad.stride() == param.stride() else torch.empty_like(param).copy_(grad)

    def _general(
        self, params: dict[str, Tensor], buffers: dict[str, Tensor], x: Float[Tensor, "members n f"]
    ) -> Float[Tensor, "members n classes"]:
        def one(p: dict[str, Tensor], b: dict[str, Tensor], x_: Tensor) -> Any:
            return functional_call(self.network, (p, b), (x_,))

        found: Tensor = vmap(one, randomness="different")(params, buffers, x)
        return found

    def validate(self) -> dict[str, Float[Tensor, " members"]]:
        """Cross-entropy and accuracy of every member on the validation rows."""
        rows = self.problem.val
        logits = self._logits(self.params, torch.arange(len(self.members), device=self.device), rows)
        y = self._y[rows][None] if self._alone else self._classes(rows.expand(len(self.members), -1))
        return {"val_loss": cross_entropy(logits, y), "val_accuracy": (logits.argmax(-1) == y).double().mean(1)}

    @torch.no_grad()
    def _logits(
        self, params: dict[str, Tensor], which: Int64[Tensor, " some"], rows: Int64[Tensor, " n"]
    ) -> Float[Tensor, "some n classes"]:
        """What the members `which` say of the same rows under `params` [some, ...], in evaluation."""
        inputs = self.problem.inputs
        if not isinstance(inputs, Streamed):
            return self._evaluated(params, which, inputs, rows)
        found = torch.empty(len(which), len(rows), self.problem.n_classes, dtype=inputs.dtype, device=self.device)
        at_once = max(1, min(_EVALUATED_BYTES[self.device.type], inputs.pool_bytes) // (8 * inputs.width))
        for part, among in inputs.walk(rows, at_once):
            found[:, among] = self._evaluated(params, which, part, torch.arange(len(part), device=self.device))
        return found

    def _evaluated(
        self,
        params: dict[str, Tensor],
        which: Int64[Tensor, " some"],
        inputs: Float[Tensor, "m f"],
        rows: Int64[Tensor, " n"],
    ) -> Float[Tensor, "some n classes"]:
        """The same of rows of `inputs`."""
        if self._alone and self._dense is not None:
            return self._dense.logits({name: p[0] for name, p in params.items()}, self._own(inputs)[rows])[None]
        index = self._index if isinstance(self._index, slice) else self._index[which]
        buffers = {name: b[which] for name, b in self.buffers.items()}
        widest = max(self.problem.width(self.members[0].features), *(p.shape[1] for p in params.values()))
        at_once = max(1, _EVALUATED_BYTES[self.device.type] // (16 * widest * len(which)))
        self.network.eval()
        found = []
        for part in torch.split(rows, at_once):
            x = gather(inputs, index, part.expand(len(which), -1))
            dense = self._dense
            found.append(self._general(params, buffers, x) if dense is None else dense.logits(params, x))
        return torch.cat(found, 1)

    def finished(self, which: Int64[Tensor, " some"]) -> list[tuple[dict[str, Tensor], Float[Tensor, "n classes"]]]:
        """Best weights, as a state dict of the network, and the logits of all adapters under them.

        The weights are views of the stack's.
        """
        rows = which.to(self.device)
        best = {name: value[rows] for name, value in self.best.items()}
        everyone = torch.arange(len(self.problem.inputs), device=self.device)
        logits = self._logits({name: best[name] for name in self.params}, rows, everyone).cpu()
        if self._varying is not None:
            moved, best[self._entry] = best[self._entry], self._whole.clone()
            best[self._entry][..., self._varying] = moved
        return [({name: value[i] for name, value in best.items()}, logits[i]) for i in range(len(rows))]

    def keep(self, left: Int64[Tensor, " kept"]) -> None:
        """See `Stack.keep`."""
        super().keep(left)
        self._take([self.members[k] for k in left.tolist()])


def cross_entropy(
    logits: Float[Tensor, "members n classes"], y: Int64[Tensor, "members n"]
) -> Float[Tensor, " members"]:
    """Mean over the rows, for every member."""
    return F.cross_entropy(logits.transpose(1, 2), y, reduction="none").mean(1)
