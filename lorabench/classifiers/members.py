"""Many members trained together, each as it would be alone."""

import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from torch.func import functional_call

from lorabench.classifiers.base import ClassifierFactory, epoch_order
from lorabench.classifiers.stack import Stack, cross_entropy
from lorabench.memory import recycle_freed_blocks

__all__ = ["Fitted", "Member", "OnEpoch", "divergence", "fit_members"]

OnEpoch = Callable[[int, int], None]
"""Called after an epoch of some members with its number, from 0, and how many of them have just stopped."""


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


@dataclass
class _Task:
    """What all lanes share."""

    features: Float[Tensor, "units rows f"]
    labels: Int64[Tensor, " rows"]
    train: Int64[Tensor, " train"]
    val: Int64[Tensor, " val"]
    batch_size: int
    max_epochs: int
    on_epoch: OnEpoch | None
    stopped: threading.Event = field(default_factory=threading.Event)


def fit_members(
    factory: ClassifierFactory,
    features: Float[Tensor, "units rows f"],
    labels: Int64[Tensor, " rows"],
    train: Int64[Tensor, " train"],
    val: Int64[Tensor, " val"],
    members: Sequence[Member],
    n_classes: int,
    on_epoch: OnEpoch | None = None,
) -> list[Fitted]:
    """Train all members together; each comes out as it would alone.

    Every member has its own initial weights, shuffling, dropout, learning-rate plateau, early stop and best
    weights; those that stop leave the stack. The result of a member is what `pl.Trainer` gives for the same
    `Classifier` up to the order of floating-point sums (a test says how close). On a CPU the members are shared
    out among as many stacks as torch has threads, each trained by one thread: products this small lose more to
    waiting for one another within a product than they gain.

    Args:
        factory: makes a member's `Classifier`.
        features: U feature sets of the same N adapters, standardised, on the device to train on.
        labels: class of every adapter.
        train: rows to train on.
        val: rows that decide when to stop; no other row is looked at before training has ended.
        members: the K classifiers to train.
        n_classes: number of classes.
        on_epoch: called after every epoch of a stack, perhaps from another thread.

    Returns:
        One `Fitted` a member, in order. A member whose validation loss is not finite has an `error`.
    """
    models = [factory(in_features=features.shape[2], n_classes=n_classes, seed=m.seed) for m in members]
    models = [model.to(features.dtype) for model in models]
    recycle_freed_blocks()
    task = _Task(features, labels, train, val, models[0].batch_size, models[0].max_epochs, on_epoch)
    fitted = [Fitted(member) for member in members]
    count = min(torch.get_num_threads(), len(members)) if features.device.type == "cpu" else 1
    lanes = [range(lane, len(members), count) for lane in range(count)]
    stacks = [Stack([models[i] for i in lane], [members[i].unit for i in lane], features.device) for lane in lanes]
    jobs = [(stack, [fitted[i] for i in lane]) for stack, lane in zip(stacks, lanes, strict=True)]
    if count == 1:
        _train(*jobs[0], task)
        return fitted
    with _one_thread_an_operation(), ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(_train, stack, results, task) for stack, results in jobs]
        try:
            for future in futures:
                future.result()
        finally:
            task.stopped.set()  # an interruption ends the other lanes too
    return fitted


@contextmanager
def _one_thread_an_operation() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(stack: Stack, fitted: list[Fitted], task: _Task) -> None:
    """Train the members of one stack; `fitted` takes the results and shrinks with the stack."""
    for epoch in range(task.max_epochs):
        if task.stopped.is_set():
            return
        columns = _epoch(stack, task, epoch)
        improved, stop = stack.schedule.update(columns["val_loss"])
        stack.remember(improved)
        _record(fitted, columns, improved, epoch)
        if epoch + 1 == task.max_epochs:
            stop = torch.ones_like(stop)
        done = torch.nonzero(stop).flatten().tolist()
        if done:
            for k in done:
                _close(stack, k, fitted[k], task.features)
            left = torch.nonzero(~stop).flatten()
            stack.keep(left)
            fitted[:] = [fitted[k] for k in left.tolist()]
        if task.on_epoch is not None:
            task.on_epoch(epoch, len(done))
        if not fitted:
            return


def _epoch(stack: Stack, task: _Task, epoch: int) -> dict[str, Float[Tensor, " members"]]:
    """One pass of every member over its own order of the training rows, then over the validation rows."""
    train, labels, device = task.train, task.labels, task.features.device
    orders = torch.stack([epoch_order(seed, epoch, len(train)) for seed in stack.seeds.tolist()]).to(device)
    rates = stack.schedule.rates.clone()
    inputs = functools.partial(_gather, task.features)
    train_loss = stack.epoch(inputs, labels, train[orders], task.batch_size)
    rows = task.val.expand(len(stack.seeds), -1)
    logits = stack.logits(inputs, task.val)
    return {
        "train_loss": train_loss.cpu(),
        "val_loss": cross_entropy(logits, labels[rows]).double().cpu(),
        "val_accuracy": (logits.argmax(-1) == labels[rows]).double().mean(1).cpu(),
        "learning_rate": rates,
    }


def _gather(
    features: Float[Tensor, "units rows f"], units: Int64[Tensor, " members"], rows: Int[Tensor, "members n"]
) -> Float[Tensor, "members n f"]:
    return features[0][rows] if len(features) == 1 else features[units[:, None], rows]


def _record(fitted: list[Fitted], columns: dict[str, Tensor], improved: Bool[Tensor, " members"], epoch: int) -> None:
    rows = {name: values.tolist() for name, values in columns.items()}
    for k, result in enumerate(fitted):
        result.history.append({name: values[k] for name, values in rows.items()})
        if improved[k]:
            result.best_epoch = epoch


def divergence(seed: int, history: Sequence[dict[str, float]]) -> str | None:
    """Why a member with this history failed; None if its validation loss was always finite."""
    for epoch, row in enumerate(history):
        if not math.isfinite(row["val_loss"]):
            return (
                f"seed {seed}: the validation loss became {row['val_loss']} in epoch {epoch}; "
                "a lower classifier.learning_rate may help"
            )
    return None


def _close(stack: Stack, k: int, result: Fitted, features: Float[Tensor, "units rows f"]) -> None:
    """Hand a finished member its best weights and logits, or its error; what is not finite stops at once."""
    result.error = divergence(result.member.seed, result.history)
    state = {name: p[k].clone() for name, p in stack.best.items()}
    buffers = {name: b[k] for name, b in stack.buffers.items()}
    kept = stack.network.state_dict().keys()  # without what is not persistent
    stack.network.eval()
    with torch.no_grad():
        logits = functional_call(stack.network, {**state, **buffers}, (features[int(stack.units[k])],))
    state |= {name: b.clone() for name, b in buffers.items() if name in kept}
    result.state = {name: value.cpu() for name, value in state.items()}
    result.logits = logits.cpu()
