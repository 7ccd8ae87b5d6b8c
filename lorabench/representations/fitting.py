"""Autoencoders of many units trained together, each as it would be alone."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from lorabench.representations.autoencoder import JUDGED, AutoEncoder
from lorabench.training import Keyed, Schedule, Stack, draw_keys, epoch_order, train

__all__ = ["Course", "Schooling", "batches", "fit_together", "held_rows", "split_rows"]


@dataclass(frozen=True)
class Schooling:
    """How long and in what steps an autoencoder is trained.

    Attributes:
        batch_size: adapters a step.
        epochs: at most.
        patience: epochs without a lower validation loss before training stops.
        val_share: share of the rows that decide when to stop; seeded by the unit.
    """

    batch_size: int
    epochs: int
    patience: int
    val_share: float | int


@dataclass
class Course:
    """How the training of one unit went.

    Attributes:
        history: a row an epoch: `train_` and `val_` of every loss, and the learning rate.
        best_epoch: the one whose weights were kept, from 0.
        error: why it failed, or None.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    error: str | None = None


def held_rows(n: int, share: float | int) -> int:
    """How many of n rows decide when to stop: at least two."""
    return max(2, round(share * n))


def split_rows(
    seed: int, n: int, share: float | int, classes: Int64[Tensor, " n"] | None = None
) -> tuple[Int64[Tensor, " train"], Int64[Tensor, " val"]]:
    """Rows to train on and rows to stop by, at least two of these; where classes are known, two of a class at a time.

    These are four at least then: two pairs.
    """
    order, held = epoch_order(seed, -1, n), held_rows(n, share)
    if classes is not None:
        order, held = order[_in_pairs(classes.cpu()[order])], max(held, 4)
    return order[held:].sort().values, order[:held].sort().values


def _in_pairs(classes: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """An order that takes two of every class, two more of every class, and so on; what has no partner comes last."""
    n, counts = len(classes), torch.bincount(classes)
    by_class = classes.argsort(stable=True)
    first = by_class[counts.cumsum(0) - counts]  # of each class, for an order of classes that is the rows' own
    turn = torch.empty_like(classes)
    turn[by_class] = torch.arange(n) - (counts.cumsum(0) - counts)[classes[by_class]]
    alone = ((turn | 1) >= counts[classes]).long()
    return ((alone * n + turn // 2) * n + first[classes]).argsort(stable=True)


def batches(n: int, size: int) -> list[slice]:
    """Ranges of `size` places; batch norm knows no batch of one, so a single one at the end joins the last."""
    starts = list(range(0, n, size))
    if len(starts) > 1 and n - starts[-1] == 1:
        starts.pop()
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], n], strict=True)]


def fit_together(
    modules: Sequence[AutoEncoder],
    inputs: Float[Tensor, "units n d"],
    schooling: Schooling,
    on_epoch: Callable[[], None] | None = None,
    classes: Int64[Tensor, " n"] | None = None,
) -> list[Course]:
    """Train modules of one architecture; each ends with the weights of its best epoch.

    Every unit has its own order of rows, random numbers, learning-rate plateau, early stop and best weights. What comes
    out is what a `pl.Trainer` gives up to the order of floating-point sums (a test says how close).

    Args:
        modules: on the device of the inputs; changed in place.
        inputs: standardised training rows of every unit.
        schooling: how long.
        on_epoch: called after every epoch; what it raises ends the training.
        classes: of the rows, for modules whose losses ask for them.
    """
    courses = [Course() for _ in modules]
    stack = _UnitStack(list(modules), inputs, schooling, classes)
    heard = None if on_epoch is None else lambda _epoch, _done: on_epoch()
    train(stack, courses, schooling.epochs, lambda done, _: stack.close(done), heard)
    return courses


_Rows = tuple[Tensor, ...]
"""Weights [members, b, d] of some rows of every unit, and their classes [members, b] where these are known."""


class _Losses(nn.Module):
    """A module whose `forward` is the other's losses: `functional_call` knows `forward` alone."""

    def __init__(self, module: AutoEncoder) -> None:
        super().__init__()
        self.module = module

    def forward(self, *rows: Tensor) -> dict[str, Tensor]:
        return self.module.losses(*rows)


class _UnitStack(Stack):
    """Autoencoders that are trained together.

    A unit by itself goes through its own module, without the leading axis.
    """

    def __init__(
        self,
        modules: list[AutoEncoder],
        inputs: Float[Tensor, "units n d"],
        schooling: Schooling,
        classes: Int64[Tensor, " n"] | None,
    ) -> None:
        self.modules, self.inputs, self.schooling = modules, inputs, schooling
        self._classes = None if classes is None else classes.to(inputs.device)
        first = modules[0]
        self._alone = len(modules) == 1
        # In a stack only its structure is needed.
        self._call = _Losses(first if self._alone else copy.deepcopy(first).to("meta"))
        if self._alone:  # views: Adam moves the module's own
            params = {name: p.detach()[None] for name, p in self._call.named_parameters()}
            buffers = {name: b[None] for name, b in self._call.named_buffers()}
        else:
            stacked, buffers = stack_module_state([_Losses(module) for module in modules])
            params = {name: self._turned(p.detach()).contiguous() for name, p in stacked.items()}
        rates = torch.full((len(modules),), first.learning_rate, dtype=torch.float64)
        schedule = Schedule(rates, first.plateau_factor, first.plateau_patience, schooling.patience)
        super().__init__(self._call, params, buffers, schedule)
        self._keyed = [name for name, m in self._call.named_modules() if isinstance(m, Keyed)]
        self._seeds = torch.tensor([module.seed for module in modules], dtype=torch.int64, device=self.device)
        parts = [split_rows(module.seed, inputs.shape[1], schooling.val_share, classes) for module in modules]
        self._train, val = (torch.stack([part[i] for part in parts]).to(self.device) for i in (0, 1))
        self._units = torch.arange(len(modules), device=self.device)[:, None]
        self._held = self._rows(val)

    def _rows(self, rows: Int64[Tensor, "members b"]) -> _Rows:
        x = self.inputs[self._units, rows]
        return (x,) if self._classes is None else (x, self._classes[rows])

    def epoch(self, number: int) -> dict[str, Float[Tensor, " members"]]:
        """See `Stack.epoch`."""
        self._call.train()
        n = self._train.shape[1]
        orders = torch.stack([epoch_order(module.seed, number, n) for module in self.modules]).to(self.device)
        rows = self._train.gather(1, orders)
        self.adam.set_rates(self.schedule.rates)
        parts = batches(n, self.schooling.batch_size)
        keys = draw_keys(
            self._seeds, range(self.adam.steps, self.adam.steps + len(parts)), range(max(1, len(self._keyed)))
        )
        found = [self._step(self._rows(rows[:, part]), key) for part, key in zip(parts, keys, strict=True)]
        sizes = torch.tensor([part.stop - part.start for part in parts], dtype=torch.float64)
        losses_of = torch.stack([torch.stack(list(one.values())) for one in found]).cpu().double()  # one wait an epoch
        means = (losses_of * (sizes / n)[:, None, None]).sum(0)
        return {f"train_{name}": mean for name, mean in zip(found[0], means, strict=True)}

    def _step(self, x: _Rows, keys: Int[Tensor, "draws members"]) -> dict[str, Tensor]:
        """One step of Adam on a batch; its losses."""
        with torch.enable_grad():
            if self._alone:
                leaves: dict[str, Tensor] = dict(self._call.named_parameters())
            else:
                leaves = {name: self._turned(p).detach().requires_grad_() for name, p in self.params.items()}
            losses = self._losses(leaves, x, keys)
            slopes = torch.autograd.grad(losses["loss"].sum(), list(leaves.values()))
        # Adam's fused kernel walks memory, not strides.
        turned = [(g[None] if self._alone else self._turned(g)).contiguous() for g in slopes]
        self.adam.step(self.params, dict(zip(leaves, turned, strict=True)))
        return {name: loss.detach() for name, loss in losses.items()}

    def _turned(self, weights: Float[Tensor, "*shape"]) -> Float[Tensor, "*turned"]:
        """Matrices as [members, in, out], or back; in a stack, autograd gives their gradients in that order of memory.

        Kept so, they need no copy of every gradient.
        """
        return weights.mT if weights.dim() == 3 and not self._alone else weights

    def _losses(self, params: dict[str, Tensor], x: _Rows, keys: Int[Tensor, "draws members"]) -> dict[str, Tensor]:
        self._set_keys(keys)
        if self._alone:
            return {name: loss[None] for name, loss in self._call(*(part[0] for part in x)).items()}

        def one(p: dict[str, Tensor], b: dict[str, Tensor], *x_: Tensor) -> Any:
            return functional_call(self._call, (p, b), x_)

        found: dict[str, Tensor] = vmap(one, randomness="different")(params, self.buffers, *x)
        return found

    def _set_keys(self, keys: Int[Tensor, "draws members"]) -> None:
        if self._keyed:  # in one call: a unit of many modules has hundreds
            torch._foreach_copy_([self.buffers[f"{name}.key"] for name in self._keyed], list(keys.unbind()))

    @torch.no_grad()
    def validate(self) -> dict[str, Float[Tensor, " members"]]:
        """Losses of every unit on the rows that it stops by."""
        self._call.eval()
        keys = draw_keys(self._seeds, [JUDGED], range(max(1, len(self._keyed))))[0]
        found = self._losses({name: self._turned(p) for name, p in self.params.items()}, self._held, keys)
        values = torch.stack(list(found.values())).cpu().double()
        return {f"val_{name}": value for name, value in zip(found, values, strict=True)}

    def close(self, done: Sequence[int]) -> None:
        """Give the modules of finished units their best weights."""
        with torch.no_grad():
            for k in done:
                own = _Losses(self.modules[k]).state_dict()
                for name, value in self.best.items():
                    own[name].copy_(self._turned(value)[k] if name in self.params else value[k])

    def keep(self, left: Int64[Tensor, " kept"]) -> None:
        """See `Stack.keep`."""
        super().keep(left)
        rows = left.to(self.device)
        self.modules = [self.modules[k] for k in left.tolist()]
        self._seeds, self._train, self._units = self._seeds[rows], self._train[rows], self._units[rows]
        self._held = tuple(part[rows] for part in self._held)
