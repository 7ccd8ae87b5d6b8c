"""The ranks that a rule gives to an adapter's modules, by their spectra: before anything is cut."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.comparing.spectra import spectra
from lorabench.adapters.layouts import written_layout
from lorabench.adapters.resizing.ranks import budget_ranks, energy_ranks, limits_by_module, spectral_rank
from lorabench.adapters.resizing.rule import ResizeRule, spelled
from lorabench.adapters.writing.converting import prepare
from lorabench.adapters.writing.saving import layout_of, save, stored_type
from lorabench.errors import LorabenchError

__all__ = ["UNTRAINED", "Choice", "Sizes", "clamped"]

UNTRAINED = "untrained: ΔW is zero, so it has no spectrum"


class Sizes:
    """What an adapter's ranks cost in its file.

    Args:
        adapter: that is resized.
        dtype: of the weights; None is every module's own.
        layout: of the file; None is the nearest to the input's.
    """

    def __init__(self, adapter: Adapter, dtype: torch.dtype | None = None, layout: str | None = None) -> None:
        self._adapter, self._dtype = adapter, dtype
        self._layout = layout or layout_of(adapter)
        self.numbers = {name: sum(module.shape) for name, module in adapter.modules.items()}
        """Module -> numbers of one rank dimension."""

    def bytes_of(self, ranks: Mapping[str, int]) -> int:
        """Bytes of all factors at these ranks."""
        return sum(cost * ranks[name] for name, cost in self.cost.items())

    @cached_property
    def cost(self) -> dict[str, int]:
        """Module -> bytes of one rank dimension."""
        modules = self._adapter.modules
        return {
            name: numbers * stored_type(modules[name], self._dtype or "stored").itemsize
            for name, numbers in self.numbers.items()
        }

    @cached_property
    def beside(self) -> int:
        """Bytes of the file that are no factors."""
        renamed = prepare(self._adapter, self._layout)  # as the command writes it; `save` alone keeps the names
        written = [self._adapter] + [renamed.adapter] * (list(renamed.names) != list(renamed.adapter.modules))
        return max(_beside_weights(one, self._dtype, self._layout) for one in written)


class Choice:
    """The rank of each module under a rule.

    Args:
        rule: how ranks are chosen, by anything but `pad` and `truncate`.
        adapter: whose modules get ranks.
        sizes: what they cost, of the same adapter.
        sigma: module -> σ of ΔW, descending, where it is known; else it is computed by the rules that need all.

    Raises:
        LorabenchError: a limit that fits no module, or a budget that the least ranks exceed.
    """

    def __init__(
        self,
        rule: ResizeRule,
        adapter: Adapter,
        sizes: Sizes,
        sigma: Mapping[str, Float64[Tensor, " _"]] | None = None,
    ) -> None:
        self._rule, self._modules, self._sizes, self._sigma = rule, adapter.modules, sizes, sigma
        self._at_most = limits_by_module(adapter.modules, rule.limits)
        self._fixed = self._of_all()

    def rank(self, name: str, sigma: Float64[Tensor, " k"]) -> tuple[int, tuple[str, ...]]:
        """The new rank of one module, and what is not as asked.

        Args:
            name: of the module.
            sigma: of its ΔW, descending.
        """
        rule, module, limit = self._rule, self._modules[name], self._at_most.get(name)
        notes = [] if sigma[0] > 0 else [UNTRAINED]
        if rule.mode != "rank":
            count = self._fixed[name] if self._fixed else self._by_spectrum(sigma)
            count = max(count, min(rule.min_rank, len(sigma)))
            return min([count, *(bound for bound in (limit, rule.max_rank) if bound is not None)]), tuple(notes)
        wanted, most = int(rule.value), min(module.shape)
        if limit is not None:
            wanted = min(wanted, limit)
        if wanted > most:
            notes.append(clamped(module, wanted, most))
            wanted = most
        if wanted > module.rank:
            notes.append(f"grown from rank {module.rank} with zeros: ΔW is as it was")
        return wanted, tuple(notes)

    def _by_spectrum(self, sigma: Float64[Tensor, " k"]) -> int:
        return int(spectral_rank(self._rule.mode, self._rule.value, sigma, self._rule.kohya_counts))

    def _of_all(self) -> dict[str, int]:
        """The ranks of modes that look at all modules together; none of other modes."""
        rule = self._rule
        if rule.mode == "size_mib":
            return self._by_size()
        if rule.mode == "total_energy":
            return energy_ranks(self._spectra(), self._bounds(), rule.value)
        if rule.mode != "parameters":
            return {}
        bounds, cost = self._bounds(), self._sizes.numbers
        least = sum(cost[name] * rank for name, (rank, _) in bounds.items())
        if rule.value < least:
            raise LorabenchError(f"{spelled('parameters', rule.value)}: the least ranks have {least}. Allow as many.")
        return budget_ranks(self._spectra(), cost, bounds, int(rule.value))

    def _by_size(self) -> dict[str, int]:
        bounds, cost, beside = self._bounds(), self._sizes.cost, self._sizes.beside
        try:
            return budget_ranks(self._spectra(), cost, bounds, int(self._rule.value * 2**20) - beside)
        except LorabenchError as error:
            least = beside + sum(cost[name] * bounds[name][0] for name in cost)
            raise LorabenchError(
                f"{spelled('size_mib', self._rule.value)}: {error}. The smallest file of this adapter has "
                f"{least / 2**20:.4g} MiB ({beside / 2**20:.4g} of them names and metadata). Allow more, or name a "
                "smaller type."
            ) from error

    def _spectra(self) -> Mapping[str, Float64[Tensor, " _"]]:
        return spectra(self._modules) if self._sigma is None else self._sigma

    def _bounds(self) -> dict[str, tuple[int, int]]:
        """Module -> the least and the largest rank that the rule's limits leave."""
        rule, bounds = self._rule, {}
        for name, module in self._modules.items():
            limits = [limit for limit in (self._at_most.get(name), rule.max_rank) if limit is not None]
            most = min(module.rank, *module.shape, *limits)
            bounds[name] = min(rule.min_rank, most), most
        return bounds


def clamped(module: LoraModule, rank: int, most: int) -> str:
    """Why a module does not get the rank that was asked for."""
    what = "short side" if most == min(module.shape) else "old rank"
    return f"rank {rank} is clamped to {most}, the {what} of ΔW {list(module.shape)}"


def _beside_weights(adapter: Adapter, dtype: torch.dtype | None, layout: str) -> int:
    """A file of rank 1 is written to a scratch folder and weighed."""
    thin = {
        name: replace(
            module, down=torch.ones_like(module.down[:1]), up=torch.ones_like(module.up[:, :1]),
            alpha=module.scale, kind="lora",
        )
        for name, module in adapter.modules.items()
    }  # fmt: skip
    weights = sum(sum(module.shape) * stored_type(module, dtype or "stored").itemsize for module in thin.values())
    with tempfile.TemporaryDirectory(prefix="lorabench-") as folder:
        in_folder = written_layout(layout).folder
        path = Path(folder) / ("thin" if in_folder else "thin.safetensors")
        save(path, replace(adapter, modules=thin), layout, dtype="stored" if dtype is None else dtype)
        file = path / "adapter_model.safetensors" if in_folder else path
        # Higher ranks write longer numbers (one shape, two offsets) for three tensors; 1 KiB is for metadata.
        return file.stat().st_size - weights + 9 * 3 * len(thin) + 1024
