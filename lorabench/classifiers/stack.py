"""Many members trained as one stack: parameters [K, ...], one set of batched products a step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torch.optim.adam import adam

from lorabench.classifiers.base import Classifier, ClassifierFactory, LogEpoch, epoch_order
from lorabench.classifiers.dropout import SeededDropout, dropout_keys

__all__ = ["Fitted", "Member", "fit_members"]

_PLATEAU_THRESHOLD, _PLATEAU_EPS = 1e-4, 1e-8  # those of torch's ReduceLROnPlateau


@dataclass(frozen=True)
class Member:
    """One classifier among many: a seed and the feature set it reads."""

    seed: int
    unit: int = 0


@dataclass
class Fitted:
    """A trained member.

    Attributes:
        member: which one.
        state: weights of the epoch with the lowest validation loss, as a `Classifier.network` state dict.
        logits: of every adapter under these weights, [N, classes], on the CPU.
        best_epoch: that epoch, from 0.
        history: a row an epoch: train_loss, val_loss, val_accuracy, learning_rate.
        error: why the member failed, or None.
    """

    member: Member
    state: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)
    error: str | None = None


class _Adam:
    """Adam over stacked parameters with a learning rate a member (Kingma & Ba 2015, torch's fused kernel)."""

    def __init__(self, params: dict[str, Tensor]) -> None:
        self.mean = {name: torch.zeros_like(p) for name, p in params.items()}
        self.square = {name: torch.zeros_like(p) for name, p in params.items()}
        self.steps = 0

    def step(self, params: dict[str, Tensor], grads: Sequence[Tensor], rates: Float[Tensor, " members"]) -> None:
        tensors = [list(params.values()), list(grads), list(self.mean.values()), list(self.square.values())]
        distinct = torch.unique(rates)
        if len(distinct) == 1:
            self._kernel(tensors, float(distinct[0]))
        else:
            for rate in distinct:
                members = torch.nonzero(rates == rate).flatten().tolist()
                self._kernel([[t[k] for t in group for k in members] for group in tensors], float(rate))
        self.steps += 1

    def _kernel(self, tensors: list[list[Tensor]], rate: float) -> None:
        params, grads, mean, square = tensors
        # The fused kernel walks memory, not strides.
        grads = [g.contiguous() for g in grads]
        steps = [torch.tensor(float(self.steps), device=params[0].device) for _ in params]
        adam(
            params, grads, mean, square, [], steps,
            fused=True, foreach=False, amsgrad=False, beta1=0.9, beta2=0.999, lr=rate, weight_decay=0.0,
            eps=1e-8, maximize=False,
        )  # fmt: skip

    def keep(self, members: Int64[Tensor, " kept"]) -> None:
        self.mean = {name: m[members] for name, m in self.mean.items()}
        self.square = {name: s[members] for name, s in self.square.items()}


@dataclass
class _Schedule:
    """Plateau, early stopping and best epoch of every member, as torch and Lightning define them."""

    rates: Float[Tensor, " members"]
    factor: float
    plateau_patience: int
    patience: int
    best: Float[Tensor, " members"] = field(init=False)
    plateau_best: Float[Tensor, " members"] = field(init=False)
    bad: Int64[Tensor, " members"] = field(init=False)
    waited: Int64[Tensor, " members"] = field(init=False)

    def __post_init__(self) -> None:
        infinite = torch.full_like(self.rates, float("inf"))
        self.best, self.plateau_best = infinite, infinite.clone()
        self.bad = torch.zeros_like(self.rates, dtype=torch.int64)
        self.waited = self.bad.clone()

    def update(self, loss: Float[Tensor, " members"]) -> tuple[Bool[Tensor, " members"], Bool[Tensor, " members"]]:
        """Take in one epoch's validation losses; which members improved, and which are to stop."""
        improved = loss < self.best
        self.best = torch.where(improved, loss, self.best)
        self.waited = torch.where(improved, 0, self.waited + 1)
        lower = loss < self.plateau_best * (1 - _PLATEAU_THRESHOLD)
        self.plateau_best = torch.where(lower, loss, self.plateau_best)
        self.bad = torch.where(lower, 0, self.bad + 1)
        due = self.bad > self.plateau_patience
        reduced = self.rates * self.factor
        self.rates = torch.where(due & (self.rates - reduced > _PLATEAU_EPS), reduced, self.rates)
        self.bad = torch.where(due, 0, self.bad)
        return improved, (self.waited >= self.patience) | ~torch.isfinite(loss)

    def keep(self, members: Int64[Tensor, " kept"]) -> None:
        for name in ("rates", "best", "plateau_best", "bad", "waited"):
            setattr(self, name, getattr(self, name)[members])


class _Stack:
    """The members still at work: stacked parameters, optimiser, schedules and best weights."""

    def __init__(self, models: list[Classifier], members: list[Member], device: torch.device) -> None:
        networks = [model.network.to(device) for model in models]
        first = models[0]
        self.network: nn.Module = networks[0]
        stacked, self.buffers = stack_module_state(networks)
        self.params = {name: _turned(p.detach()).contiguous().requires_grad_() for name, p in stacked.items()}
        self.best = {name: p.detach().clone() for name, p in self.params.items()}
        self.members = list(range(len(members)))
        self.seeds = torch.tensor([m.seed for m in members], dtype=torch.int64, device=device)
        self.units = torch.tensor([m.unit for m in members], dtype=torch.int64, device=device)
        self.adam = _Adam(self.params)
        rates = torch.full((len(members),), first.learning_rate, dtype=torch.float64)
        self.schedule = _Schedule(rates, first.plateau_factor, first.plateau_patience, first.patience)
        self._dropouts = [name for name, m in self.network.named_modules() if isinstance(m, SeededDropout)]

    def logits(self, params: dict[str, Tensor], x: Float[Tensor, "members n f"]) -> Float[Tensor, "members n classes"]:
        def one(p: dict[str, Tensor], b: dict[str, Tensor], x_: Tensor) -> Any:
            return functional_call(self.network, (p, b), (x_,))

        upright = {name: _turned(p) for name, p in params.items()}
        found: Tensor = vmap(one, randomness="different")(upright, self.buffers, x)
        return found

    def step(self, x: Float[Tensor, "members n f"], y: Int64[Tensor, "members n"]) -> Float[Tensor, " members"]:
        """One Adam step of every member; the losses before it."""
        for number, name in enumerate(self._dropouts):
            self.buffers[f"{name}.key"] = dropout_keys(self.seeds, self.adam.steps, number)
        losses = _cross_entropy(self.logits(self.params, x), y)
        grads = torch.autograd.grad(losses.sum(), list(self.params.values()))
        with torch.no_grad():
            self.adam.step(self.params, grads, self.schedule.rates)
        return losses.detach()

    def remember(self, improved: Bool[Tensor, " members"]) -> None:
        """Copy the weights of the members that improved."""
        rows = torch.nonzero(improved).flatten().to(self.seeds.device)
        for name, p in self.params.items():
            self.best[name][rows] = p.detach()[rows]

    def keep(self, members: Int64[Tensor, " kept"]) -> None:
        """Drop all members but these."""
        rows = members.to(self.seeds.device)
        self.params = {name: p.detach()[rows].requires_grad_() for name, p in self.params.items()}
        self.buffers = {name: b[rows] for name, b in self.buffers.items()}
        self.best = {name: p[rows] for name, p in self.best.items()}
        self.adam.keep(rows)
        self.schedule.keep(members)
        self.seeds, self.units = self.seeds[rows], self.units[rows]
        self.members = [self.members[k] for k in members.tolist()]


def _turned(p: Tensor) -> Tensor:
    """A stacked matrix, transposed.

    Weights [K, out, in] are held as [K, in, out]: the layout in which batched products give their gradients, so
    that Adam's kernel reads four arrays of one layout.
    """
    return p.mT if p.dim() == 3 else p


def _cross_entropy(
    logits: Float[Tensor, "members n classes"], y: Int64[Tensor, "members n"]
) -> Float[Tensor, " members"]:
    return F.cross_entropy(logits.transpose(1, 2), y, reduction="none").mean(1)


def _gather(
    features: Float[Tensor, "units rows f"], units: Int64[Tensor, " members"], rows: Int[Tensor, "members n"]
) -> Float[Tensor, "members n f"]:
    return features[0][rows] if len(features) == 1 else features[units[:, None], rows]


def _epoch(
    stack: _Stack,
    features: Float[Tensor, "units rows f"],
    labels: Int64[Tensor, " rows"],
    split: tuple[Int64[Tensor, " train"], Int64[Tensor, " val"]],
    epoch: int,
    batch_size: int,
) -> dict[str, Float[Tensor, " members"]]:
    """One pass of every member over its own order of the training rows, then over the validation rows."""
    train, val = split
    orders = torch.stack([epoch_order(int(seed), epoch, len(train)) for seed in stack.seeds]).to(features.device)
    rows = train[orders]
    total = torch.zeros(len(rows), dtype=torch.float64, device=features.device)
    rates = stack.schedule.rates.clone()
    stack.network.train()
    for start in range(0, len(train), batch_size):
        batch = rows[:, start : start + batch_size]
        total += stack.step(_gather(features, stack.units, batch), labels[batch]) * batch.shape[1]
    stack.network.eval()
    rows = val.expand(len(stack.members), -1)
    with torch.no_grad():
        logits = stack.logits(stack.params, _gather(features, stack.units, rows))
    return {
        "train_loss": (total / len(train)).cpu(),
        "val_loss": _cross_entropy(logits, labels[rows]).double().cpu(),
        "val_accuracy": (logits.argmax(-1) == labels[rows]).double().mean(1).cpu(),
        "learning_rate": rates,
    }


def _close(stack: _Stack, done: list[int], fitted: list[Fitted], features: Float[Tensor, "units rows f"]) -> None:
    """Hand the finished members their best weights and logits."""
    for k in done:
        state = {name: _turned(p[k : k + 1])[0].contiguous() for name, p in stack.best.items()}
        result = fitted[stack.members[k]]
        with torch.no_grad():
            logits = functional_call(stack.network, state, (features[int(stack.units[k])],))
        result.state = {name: value.cpu() for name, value in state.items()}
        result.logits = logits.cpu()


def fit_members(
    factory: ClassifierFactory,
    features: Float[Tensor, "units rows f"],
    labels: Int64[Tensor, " rows"],
    train: Int64[Tensor, " train"],
    val: Int64[Tensor, " val"],
    members: Sequence[Member],
    n_classes: int,
    log_epoch: LogEpoch | None = None,
    on_finished: Callable[[int], None] | None = None,
) -> list[Fitted]:
    """Train all members together; each comes out as it would alone.

    Every member has its own initial weights, shuffling, dropout, learning-rate plateau, early stop and best
    weights; those that stop leave the stack. The result of a member is what `pl.Trainer` gives for the same
    `Classifier` up to the order of floating-point sums (a test says how close).

    Args:
        factory: makes a member's `Classifier`.
        features: U feature sets of the same N adapters, standardised, on the device to train on.
        labels: class of every adapter.
        train: rows to train on.
        val: rows that decide when to stop; no other row is looked at before training has ended.
        members: the K classifiers to train.
        n_classes: number of classes.
        log_epoch: called after every epoch with the means over the members at work.
        on_finished: called with the number of members that just stopped.

    Returns:
        One `Fitted` a member, in order. A member whose validation loss is not finite has an `error`.
    """
    models = [factory(in_features=features.shape[2], n_classes=n_classes, seed=m.seed) for m in members]
    models = [model.to(features.dtype) for model in models]
    first = models[0]
    stack = _Stack(models, list(members), features.device)
    fitted = [Fitted(member) for member in members]
    for epoch in range(first.max_epochs):
        columns = _epoch(stack, features, labels, (train, val), epoch, first.batch_size)
        improved, stop = stack.schedule.update(columns["val_loss"])
        stack.remember(improved)
        _record(stack, fitted, columns, improved, epoch)
        if log_epoch is not None:
            log_epoch(epoch, {name: float(values.mean()) for name, values in columns.items()})
        if epoch + 1 == first.max_epochs:
            stop = torch.ones_like(stop)
        done = torch.nonzero(stop).flatten()
        if len(done):
            _close(stack, done.tolist(), fitted, features)
            stack.keep(torch.nonzero(~stop).flatten())
            if on_finished is not None:
                on_finished(len(done))
        if not stack.members:
            break
    return fitted


def _record(
    stack: _Stack,
    fitted: list[Fitted],
    columns: dict[str, Tensor],
    improved: Bool[Tensor, " members"],
    epoch: int,
) -> None:
    rows = {name: values.tolist() for name, values in columns.items()}
    for k, number in enumerate(stack.members):
        result = fitted[number]
        result.history.append({name: values[k] for name, values in rows.items()})
        if improved[k]:
            result.best_epoch = epoch
        if not torch.isfinite(columns["val_loss"][k]):
            result.error = (
                f"seed {result.member.seed}: the validation loss became {rows['val_loss'][k]} in epoch {epoch}"
            )
