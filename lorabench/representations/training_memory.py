"""How much memory the training of one autoencoder takes, counted on a dry run without any data."""

import copy
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from lorabench.representations.autoencoder import AutoEncoder
from lorabench.representations.fitting import held_rows

__all__ = ["member_bytes"]


def member_bytes(module: AutoEncoder, rows: int, batch_size: int, val_share: float | int = 0.1) -> int:
    """What one unit takes in a stack, counted: its tensors, its rows, and the most that a step or a validation takes.

    Args:
        module: the unit's; only its structure is used.
        rows: training rows.
        batch_size: adapters a step.
        val_share: share of the rows that decide when to stop.
    """
    twin = copy.deepcopy(module).to("meta")
    held = held_rows(rows, val_share)
    weights = sum(p.nbytes for p in twin.parameters())
    row = twin.mean.element_size() * module.in_features
    steps = []
    for count, training in ((min(batch_size, rows), True), (held, False)):
        x = torch.empty(count, module.in_features, dtype=twin.mean.dtype, device="meta")
        with torch.set_grad_enabled(training), _Live([x, *twin.parameters(), *twin.buffers()]) as live:
            loss = twin.train(training).losses(x)["loss"]
            if training:
                _grads = torch.autograd.grad(loss, list(twin.parameters()))
        steps.append(live.most + count * row)
    # The module's own weights, the stack's, both moments, the best ones.
    return int(5 * weights + (rows + held) * row + max(steps))


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that are alive at once, at most (`most`), of what is made while it is on.

    Args:
        known: tensors that were there before.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._before = [tensor.untyped_storage() for tensor in known]
        self._seen = WeakIdKeyDictionary()
        for storage in self._before:
            self._seen[storage] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for storage in [leaf.untyped_storage() for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]:
            if storage not in self._seen:
                self._seen[storage] = True
                weakref.finalize(storage, self._freed, storage.nbytes())
                self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        return found

    def _freed(self, size: int) -> None:
        self.now -= size
