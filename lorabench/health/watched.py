"""What of a model in training is looked at: its LoRA modules, found again when they change, and their gradients."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from lorabench.adapters.adapter import LoraModule
from lorabench.adapters.comparing.deviation import batches
from lorabench.errors import LorabenchError
from lorabench.health.analyzer import LiveBase
from lorabench.health.base import Sizes, against_base, not_held
from lorabench.health.live import LiveModule, adapters_of, live_modules, read_all
from lorabench.health.metrics import LoRAAdapterMetrics, module_metrics
from lorabench.health.trajectory import Snapshot
from lorabench.lowrank import effective_rank, singular_values
from lorabench.text import counted, some

__all__ = ["Watched", "gradient_ranks"]


class Watched:
    """The LoRA modules of one model.

    Args:
        adapter: PEFT's name of one; None: all that train, or all where none does.
        base: whether metrics are held against the model's own weights, which are measured once.
        warn: is given what is odd of the model.
    """

    def __init__(self, adapter: str | None, base: bool, warn: Callable[[str], None]) -> None:
        self._adapter, self._base, self._warn = adapter, base, warn
        self._found: dict[str, LiveModule] = {}
        self._modules: dict[str, LiveModule] = {}
        self._seen: object = None
        self._sizes: Sizes = {}

    def look(self, model: nn.Module, step: int) -> Snapshot:
        """The metrics now.

        Args:
            model: the same each time, or another.
            step: of the optimiser.

        Raises:
            LorabenchError: the model has no LoRA module, or they cannot be read.
        """
        if self._seen is None or self._state(model) != self._seen:
            self._find(model)
        factors = read_all(self._modules)
        rows = {row.module: row for row in module_metrics(factors)}
        if self._base:
            rows = self._beside_base(rows, factors)
        return Snapshot(step, rows, gradient_ranks(self._modules))

    def _find(self, model: nn.Module) -> None:
        self._seen = None
        self._found = live_modules(model, self._adapter)
        training = {name: one for name, one in self._found.items() if one.trains}
        self._modules = training or self._found
        merged = [name for name, one in self._modules.items() if one.merged]
        if not training:
            self._warn(
                f"no factor of its {counted(len(self._found), 'LoRA module')} requires a gradient, so none will "
                "change. Set requires_grad, or name the adapter that trains (PEFT: model.set_adapter)."
            )
        if merged:
            self._warn(
                f"{some(merged)}: the adapter is merged into the base's weights, so its factors get no gradient. "
                "Unmerge it before training (PEFT: model.unmerge_adapter())."
            )
        self._seen = self._state(model)

    def _state(self, model: nn.Module) -> object:
        """What changes when modules have to be found again: their number, adapters, shapes, and which are frozen."""
        owners = {id(one.owner): one.owner for one in self._found.values()}
        try:
            parts = [part for one in self._found.values() for part in one.parameters()]
        except LorabenchError:  # an adapter was deleted
            return None
        return (
            id(model),
            sum(1 for _ in model.modules()),
            [adapters_of(owner) for owner in owners.values()],
            [(part.shape, part.requires_grad) for part in parts],
            [one.merged for one in self._found.values()],
        )

    def _beside_base(
        self, rows: Mapping[str, LoRAAdapterMetrics], factors: Mapping[str, LoraModule]
    ) -> dict[str, LoRAAdapterMetrics]:
        try:
            measured = against_base(list(rows.values()), factors, LiveBase(self._modules), sizes=self._sizes)
        except LorabenchError as error:
            self._warn(f"nothing is held against the base: {error}")
            self._base = False
            return dict(rows)
        for said in not_held(measured, factors):
            self._warn(f"{said}.")
        return {row.module: row for row in measured}


def gradient_ranks(modules: Mapping[str, LiveModule]) -> dict[str, float]:
    """Module -> effective rank of ∂B·A + B·∂A, of those whose factors hold a gradient that is finite and not zero."""
    with torch.no_grad():
        pairs = {name: pair for name, one in modules.items() if (pair := one.gradient()) is not None}
    ranks: dict[str, float] = {}
    for names in batches(pairs):
        down = torch.stack([pairs[name].down for name in names]).double()
        up = torch.stack([pairs[name].up for name in names]).double()
        finite = torch.isfinite(down).flatten(1).all(1) & torch.isfinite(up).flatten(1).all(1)
        down, up = (torch.where(finite[:, None, None], part, 0.0) for part in (down, up))
        ranks |= zip(names, effective_rank(singular_values(down, up)).tolist(), strict=True)
    return {name: ranks[name] for name in pairs if not math.isnan(ranks[name])}
