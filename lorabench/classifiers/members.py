"""Many members trained together, each as it would be alone."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from lorabench.classifiers.base import Classifier, ClassifierFactory, OnEpoch
from lorabench.classifiers.building import build
from lorabench.classifiers.dense import DenseNetwork
from lorabench.classifiers.problem import Fitted, Member, Problem
from lorabench.classifiers.stack import MemberStack
from lorabench.classifiers.streamed import Streamed
from lorabench.machine import free_memory, in_lanes, recycle_freed_blocks
from lorabench.training import train

__all__ = ["as_it_is", "failure", "fit_members", "kept_a_row"]

T = TypeVar("T")
_SHARE = 0.7  # of the free memory, for one stack and what its steps take


@dataclass
class _Work:
    """What all lanes share: the chunks of members that are still to do, and who hears of the finished ones."""

    factory: ClassifierFactory
    problem: Problem
    members: Sequence[Member]
    chunks: queue.SimpleQueue[list[int]]
    finish: Callable[[int, Fitted], None]
    on_epoch: OnEpoch | None
    stopped: threading.Event = field(default_factory=threading.Event)


def as_it_is(number: int, fitted: Fitted) -> Fitted:
    """A finished member itself, its weights copied out of the stack to the CPU."""
    del number
    fitted.state = {name: value.cpu().clone() for name, value in fitted.state.items()}
    return fitted


def fit_members(
    factory: ClassifierFactory,
    problem: Problem,
    members: Sequence[Member],
    finish: Callable[[int, Fitted], T],
    on_epoch: OnEpoch | None = None,
    memory: int | None = None,
) -> list[T]:
    """Train all members; each comes out as it would alone.

    Every member has its own initial weights, shuffling, dropout, learning-rate plateau, early stop and best
    weights. The result of a member is what `pl.Trainer` gives for the same `Classifier` up to the order of
    floating-point sums (a test says how close).

    On a GPU, members of one input width are one stack, as large as the memory allows, and those that stop leave
    it. On a CPU there are as many lanes as torch has threads, each one thread wide, and a lane that is free takes
    the next member: products this small lose more to waiting for one another within a product than they gain.
    Members whose network is no plain stack of layers are stacked there too.

    Args:
        factory: makes a member's `Classifier`.
        problem: features, labels and rows, on the device to train on.
        members: the K classifiers to train.
        finish: makes of the number of a finished member, and of the member, what is kept of it; it is called as
            members finish, in any order, perhaps from another thread, and what it drops takes no memory.
            `as_it_is` keeps everything.
        on_epoch: called after every epoch of a stack, perhaps from another thread.
        memory: bytes that one stack may take; None: 70 % of what is free.

    Returns:
        What `finish` made of every member, in order. A member whose validation loss is not finite has an `error`.
    """
    results: dict[int, T] = {}

    def keep(number: int, fitted: Fitted) -> None:
        results[number] = finish(number, fitted)

    recycle_freed_blocks()
    device = problem.inputs.device
    lanes = min(torch.get_num_threads(), len(members)) if device.type == "cpu" else 1
    work = _Work(factory, problem, members, queue.SimpleQueue(), keep, on_epoch)
    for chunk in _chunks(work, lanes, memory):
        work.chunks.put(chunk)
    if device.type != "cpu":
        _lane(work)
    else:  # a single lane too: a member's sums are in the same order whether others are trained beside it or not
        lane = in_lanes(range(lanes), lambda _, stopped: _lane(replace(work, stopped=stopped)), lanes)
        with closing(lane):  # an interruption, or an error in one lane, ends the others too
            for _ in lane:
                pass
    return [results[number] for number in range(len(members))]


def _chunks(work: _Work, lanes: int, memory: int | None) -> Iterator[list[int]]:
    """Numbers of the members that are trained as one stack: of one input width (or modules of the same shapes), and as
    many as memory holds.
    """
    problem = work.problem
    by_shape: dict[tuple[Any, ...], list[int]] = {}
    for number, member in enumerate(work.members):
        shapes = problem.shapes[member.features] if problem.shapes else ()
        by_shape.setdefault((problem.width(member.features), shapes), []).append(number)
    for (width, _), numbers in by_shape.items():
        model = _build(work, numbers[0])
        if problem.inputs.device.type == "cpu" and DenseNetwork.of(model.network) is not None:
            size = 1
        else:
            budget = _SHARE * free_memory(problem.inputs.device) / lanes if memory is None else memory
            budget -= problem.inputs.pool_bytes if isinstance(problem.inputs, Streamed) else 0
            size = max(1, int(budget // _bytes(model, width, problem)))
            size = min(size, -(-len(numbers) // lanes))
        yield from (numbers[start : start + size] for start in range(0, len(numbers), size))


def _bytes(model: Classifier, width: int, problem: Problem) -> int:
    """What one member of a stack takes: seven tensors of its weights' size, and what a step works on."""
    weights = sum(p.numel() for p in model.network.parameters())
    outputs = sum(p.numel() for name, p in model.network.named_parameters() if name.endswith("bias"))
    logits = (len(problem.train) + len(problem.val)) * problem.n_classes
    dense = DenseNetwork.of(model.network) is not None
    row = 8 * outputs if dense else (kept_a_row(model, width, problem.inputs.dtype) // problem.inputs.element_size())
    return problem.inputs.element_size() * (7 * weights + model.batch_size * (2 * width + row) + 3 * logits)


def kept_a_row(model: Classifier, width: int, dtype: torch.dtype) -> int:
    """Bytes that autograd keeps of a row for a step's backward pass; reading its layers would not tell.

    Args:
        model: a member; its network is called, in training.
        width: of its rows.
        dtype: of its rows and weights.
    """

    def kept(rows: int) -> int:
        sizes: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            memory = tensor.untyped_storage()
            sizes[memory.data_ptr()] = memory.nbytes()
            return tensor

        x = torch.zeros(rows, width, dtype=dtype)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            logits = model.network.train()(x)  # what it keeps lives as long as this does
        del logits
        return sum(sizes.values())

    return (kept(4) - kept(2)) // 2  # what a step keeps whatever its rows goes out


def _build(work: _Work, number: int) -> Classifier:
    return build(work.factory, work.problem, work.members[number])


def _lane(work: _Work) -> None:
    """Train chunk after chunk, until none is left."""
    while not work.stopped.is_set():
        try:
            numbers = work.chunks.get_nowait()
        except queue.Empty:
            return
        members = {number: work.members[number] for number in numbers}
        # Initial weights follow from the seed: members of one width and seed start from the same ones.
        first = {member.seed: number for number, member in reversed(members.items())}
        models = {seed: _build(work, number) for seed, number in first.items()}
        stack = MemberStack([models[member.seed] for member in members.values()], list(members.values()), work.problem)
        del models
        _train(stack, numbers, work)


def _train(stack: MemberStack, numbers: Sequence[int], work: _Work) -> None:
    """Train the members of one stack, and hand them over as they finish: best weights and logits, or their error."""
    fitted = [Fitted(work.members[number]) for number in numbers]
    number_of = {id(one): number for one, number in zip(fitted, numbers, strict=True)}

    def close(done: list[int], results: list[Fitted]) -> None:
        for result, (state, logits) in zip(results, stack.finished(torch.tensor(done)), strict=True):
            result.error = failure(result.member.seed, result.error)
            result.state, result.logits = state, logits
            work.finish(number_of[id(result)], result)

    train(stack, fitted, stack.max_epochs, close, work.on_epoch, work.stopped.is_set)


def failure(seed: int, error: str | None) -> str | None:
    """What is said of a member that failed for this reason, or None."""
    return error and f"seed {seed}: {error}; a lower classifier.learning_rate may help"
