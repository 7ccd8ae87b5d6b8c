"""Another rank for every module: by the SVD of ΔW, which is optimal, or by padding and cutting its factors."""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float32, Float64
from torch import Tensor
from torch.nn import functional

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.comparing.deviation import Deviation, batches, deviations, total
from lorabench.adapters.comparing.spectra import spectra, stack
from lorabench.adapters.layouts import written_layout
from lorabench.adapters.names.identity import component
from lorabench.adapters.reading.naming import KEPT
from lorabench.adapters.resizing.ranks import budget_ranks, energy_ranks, limits_by_module, spectral_rank
from lorabench.adapters.resizing.receipt import ModuleReceipt, Receipt
from lorabench.adapters.resizing.rule import ResizeRule, spelled
from lorabench.adapters.writing.converting import about_wrappers, prepare
from lorabench.adapters.writing.refusals import refuse_infinite, refuse_unsupported
from lorabench.adapters.writing.saving import carries_extras, layout_of, save, stored_type
from lorabench.errors import LorabenchError
from lorabench.lowrank import thin_svd
from lorabench.text import some

__all__ = ["RESIZE_KEY", "resize"]

RESIZE_KEY = "lorabench_resize"
"""Metadata entry that says how an adapter was resized."""

_UNTRAINED = "untrained: ΔW is zero, so it has no spectrum"


@dataclass(frozen=True)
class _Resized:
    """A module before it is rounded, and the errors ‖ΔW − ΔW'‖_F that its spectrum promises."""

    module: LoraModule
    predicted: float
    optimal: float
    notes: tuple[str, ...] = ()


def resize(
    adapter: Adapter,
    rule: ResizeRule,
    *,
    dtype: torch.dtype | None = None,
    layout: str | None = None,
) -> tuple[Adapter, Receipt]:
    """The adapter at other ranks, and a receipt of what that changed.

    Where a module is cut by its SVD the scale stays and α' = scale·r'; both factors get √(σ/|scale|), so that neither
    leaves the range of float16. A module that loses nothing keeps its factors to the bit, with rows and columns of
    zeros where its rank grows. Heads, saved modules, biases and token deltas are carried (`Adapter.extras`).

    Args:
        adapter: as `load` gives it; modules may have different ranks and shapes.
        rule: how ranks are chosen.
        dtype: that the factors are rounded to, and `size_mib` reckons with; None is every module's own.
        layout: that `size_mib` reckons with; None is the nearest to the input's.

    Returns:
        The adapter with factors rounded to the stored type, and the receipt: predicted and measured errors by module.
        The predicted ones are right to 1e-9 of themselves or 1e-14 of ‖ΔW‖ (1e-8 for `truncate`'s optimum).

    Raises:
        LorabenchError: a limit that fits no module, DoRA without `drop_dora`, tensors of other kinds without
            `drop_unsupported`, a size that nothing fits into, NaN, or values that leave the stored type's range.

    Example:
        >>> adapter = Adapter(Path("x"), (), {"q": LoraModule(torch.eye(2, 5), torch.eye(4, 2) * 3.0)})
        >>> small, receipt = resize(adapter, ResizeRule(rank=1))
        >>> small.modules["q"].rank, round(receipt.measured, 4)
        (1, 0.7071)
    """
    refuse_infinite(adapter)
    _check_kinds(adapter, rule.drop_dora)
    carried = carries_extras(adapter, layout or layout_of(adapter)) and not rule.drop_unsupported
    refuse_unsupported(adapter, rule.drop_unsupported, carried)
    at_most = limits_by_module(adapter.modules, rule.limits)
    if rule.mode in ("pad", "truncate"):
        resized = _simple(rule, adapter.modules, at_most)
    else:
        resized = _optimal(rule, adapter.modules, at_most, _of_all(rule, adapter, at_most, dtype, layout))
    modules = {name: _rounded(name, resized[name].module, dtype) for name in adapter.modules}
    receipt = _receipt(rule, adapter, resized, modules)
    said = {"mode": rule.mode, "value": rule.value, "from": adapter.path.name, "relative_error": receipt.predicted}
    metadata = {**adapter.metadata, RESIZE_KEY: json.dumps(said)}
    extras = adapter.extras if carried else {}
    return replace(adapter, modules=modules, metadata=metadata, unsupported={}, extras=extras), receipt


def _check_kinds(adapter: Adapter, drop_dora: bool) -> None:
    dora = [name for name, module in adapter.modules.items() if module.kind == "dora"]
    if dora and not drop_dora:
        raise LorabenchError(
            f"{adapter.path}: {len(dora)} modules are DoRA, {dora[0]} for one: their update is a low-rank part and a "
            "magnitude by row, and a resize keeps the former alone. Say drop_dora=True (--drop-dora) to lose "
            "the magnitudes, or merge the adapter into its base model first."
        )


def _optimal(
    rule: ResizeRule, modules: Mapping[str, LoraModule], at_most: Mapping[str, int], fixed: Mapping[str, int]
) -> dict[str, _Resized]:
    found = {}
    for names in batches(modules):
        batch = [modules[name] for name in names]
        left, sigma, right = thin_svd(*stack(batch))
        counts = [0] * len(batch)
        if rule.mode not in ("rank", "size_mib", "total_energy", "parameters"):
            counts = spectral_rank(rule.mode, rule.value, sigma, rule.kohya_counts).tolist()
        for i, name in enumerate(names):
            wanted, notes = _wanted(rule, batch[i], sigma[i], fixed.get(name, counts[i]), at_most.get(name))
            tail = float(sigma[i, wanted:].norm())
            found[name] = _Resized(_cut(batch[i], left[i], sigma[i], right[i], wanted), tail, tail, notes)
    return found


def _wanted(
    rule: ResizeRule, module: LoraModule, sigma: Float64[Tensor, " k"], count: int, limit: int | None
) -> tuple[int, tuple[str, ...]]:
    """The new rank of one module, and what is not as asked."""
    notes = [] if sigma[0] > 0 else [_UNTRAINED]
    if rule.mode != "rank":
        count = max(count, min(rule.min_rank, len(sigma)))
        return min([count, *(bound for bound in (limit, rule.max_rank) if bound is not None)]), tuple(notes)
    wanted, most = int(rule.value), min(module.shape)
    if limit is not None:
        wanted = min(wanted, limit)
    if wanted > most:
        notes.append(_clamped(module, wanted, most))
        wanted = most
    if wanted > module.rank:
        notes.append(f"grown from rank {module.rank} with zeros: ΔW is as it was")
    return wanted, tuple(notes)


def _cut(
    module: LoraModule,
    left: Float64[Tensor, "d_out k"],
    sigma: Float64[Tensor, " k"],
    right: Float64[Tensor, "k d_in"],
    rank: int,
) -> LoraModule:
    """The module at its first `rank` singular values; its own factors where that takes nothing away."""
    if rank >= module.rank or not bool(sigma[0] > 0):
        return _with_rows(module, rank)
    half = (sigma[:rank] / abs(module.scale)).sqrt()
    sign = 1.0 if module.scale > 0 else -1.0
    down, up = right[:rank] * half[:, None], left[:, :rank] * (sign * half)
    return _made(module, down.float(), up.float())


def _with_rows(module: LoraModule, rank: int) -> LoraModule:
    """The first rows of down and columns of up, with zeros after the last."""
    more = max(rank - module.rank, 0)
    down, up = module.down[:rank], module.up[:, :rank]
    return _made(module, functional.pad(down, (0, 0, 0, more)), functional.pad(up, (0, more)))


def _made(module: LoraModule, down: Float32[Tensor, "r d_in"], up: Float32[Tensor, "d_out r"]) -> LoraModule:
    return replace(module, down=down, up=up, alpha=module.scale * down.shape[0], kind="lora")


def _simple(rule: ResizeRule, modules: Mapping[str, LoraModule], at_most: Mapping[str, int]) -> dict[str, _Resized]:
    rank = int(rule.value)
    if rule.mode == "pad":
        over = [name for name, module in modules.items() if module.rank > rank]
        if over:
            raise LorabenchError(
                f"{spelled('pad', rank)} is below the rank {modules[over[0]].rank} of {over[0]}, and padding takes "
                "nothing away. Use rank or truncate."
            )
        return {name: _padded(module, rank) for name, module in modules.items()}
    ranks = {name: min(rank, at_most.get(name, rank), module.rank) for name, module in modules.items()}
    cut = {name: _with_rows(module, ranks[name]) for name, module in modules.items()}
    errors, sigma = deviations(modules, cut), spectra(modules)
    return {
        name: _Resized(
            module,
            errors[name].difference,
            min(float(sigma[name][ranks[name] :].norm()), errors[name].difference),
            () if sigma[name][0] > 0 else (_UNTRAINED,),
        )
        for name, module in cut.items()
    }


def _padded(module: LoraModule, rank: int) -> _Resized:
    """No rank above the short side of ΔW does more, and one by mistake would fill the memory with zeros."""
    most = max(module.rank, min(rank, *module.shape))
    notes = () if most == rank else (_clamped(module, rank, most),)
    return _Resized(_with_rows(module, most), 0.0, 0.0, notes)


def _clamped(module: LoraModule, rank: int, most: int) -> str:
    what = "short side" if most == min(module.shape) else "old rank"
    return f"rank {rank} is clamped to {most}, the {what} of ΔW {list(module.shape)}"


def _of_all(
    rule: ResizeRule, adapter: Adapter, at_most: Mapping[str, int], dtype: torch.dtype | None, layout: str | None
) -> dict[str, int]:
    """The ranks of modes that look at all modules together; none of other modes."""
    if rule.mode == "size_mib":
        return _by_size(rule, adapter, at_most, dtype, layout)
    if rule.mode == "total_energy":
        return energy_ranks(spectra(adapter.modules), _bounds(rule, adapter.modules, at_most), rule.value)
    if rule.mode != "parameters":
        return {}
    bounds, cost = _bounds(rule, adapter.modules, at_most), _numbers(adapter.modules)
    least = sum(cost[name] * rank for name, (rank, _) in bounds.items())
    if rule.value < least:
        raise LorabenchError(f"{spelled('parameters', rule.value)}: the least ranks have {least}. Allow as many.")
    return budget_ranks(spectra(adapter.modules), cost, bounds, int(rule.value))


def _numbers(modules: Mapping[str, LoraModule]) -> dict[str, int]:
    """Module -> numbers of one rank dimension."""
    return {name: sum(module.shape) for name, module in modules.items()}


def _by_size(
    rule: ResizeRule, adapter: Adapter, at_most: Mapping[str, int], dtype: torch.dtype | None, layout: str | None
) -> dict[str, int]:
    modules, budget = adapter.modules, int(rule.value * 2**20)
    bounds = _bounds(rule, modules, at_most)
    cost = {
        name: numbers * stored_type(modules[name], dtype or "stored").itemsize
        for name, numbers in _numbers(modules).items()
    }
    layout = layout or layout_of(adapter)
    renamed = prepare(adapter, layout)  # as the command writes it; `save` alone keeps the names
    written = [adapter] + [renamed.adapter] * (list(renamed.names) != list(renamed.adapter.modules))
    beside = max(_beside_weights(one, dtype, layout) for one in written)
    try:
        return budget_ranks(spectra(modules), cost, bounds, budget - beside)
    except LorabenchError as error:
        least = beside + sum(cost[name] * bounds[name][0] for name in modules)
        raise LorabenchError(
            f"{spelled('size_mib', rule.value)}: {error}. The smallest file of this adapter has "
            f"{least / 2**20:.4g} MiB ({beside / 2**20:.4g} of them names and metadata). Allow more, or name a "
            "smaller type."
        ) from error


def _bounds(
    rule: ResizeRule, modules: Mapping[str, LoraModule], at_most: Mapping[str, int]
) -> dict[str, tuple[int, int]]:
    """Module -> the least and the largest rank that the rule's limits leave."""
    bounds = {}
    for name, module in modules.items():
        limits = [limit for limit in (at_most.get(name), rule.max_rank) if limit is not None]
        most = min(module.rank, *module.shape, *limits)
        bounds[name] = min(rule.min_rank, most), most
    return bounds


def _beside_weights(adapter: Adapter, dtype: torch.dtype | None, layout: str) -> int:
    """Bytes of the file that are no factors: a file of rank 1 is written to a scratch folder and weighed."""
    thin = {
        name: _made(module, torch.ones_like(module.down[:1]), torch.ones_like(module.up[:, :1]))
        for name, module in adapter.modules.items()
    }
    weights = sum(sum(module.shape) * stored_type(module, dtype or "stored").itemsize for module in thin.values())
    with tempfile.TemporaryDirectory(prefix="lorabench-") as folder:
        in_folder = written_layout(layout).folder
        path = Path(folder) / ("thin" if in_folder else "thin.safetensors")
        save(path, replace(adapter, modules=thin), layout, dtype="stored" if dtype is None else dtype)
        file = path / "adapter_model.safetensors" if in_folder else path
        # Higher ranks write longer numbers (one shape, two offsets) for three tensors; 1 KiB is for metadata.
        return file.stat().st_size - weights + 9 * 3 * len(thin) + 1024


def _rounded(name: str, module: LoraModule, dtype: torch.dtype | None) -> LoraModule:
    stored = stored_type(module, dtype or "stored")
    down, up = (factor.to(stored).float() for factor in (module.down, module.up))
    if not bool(torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise LorabenchError(
            f"module {name}: values up to {max(module.down.abs().max(), module.up.abs().max()):.3g} do not fit "
            f"{stored}. Say dtype=torch.bfloat16 or torch.float32 (--dtype)."
        )
    return replace(module, down=down, up=up, dtype=stored)


def _receipt(
    rule: ResizeRule,
    adapter: Adapter,
    resized: Mapping[str, _Resized],
    modules: Mapping[str, LoraModule],
) -> Receipt:
    found = deviations(adapter.modules, modules)
    predicted = {name: Deviation(found[name].norm, one.predicted) for name, one in resized.items()}
    optimal = {name: Deviation(found[name].norm, one.optimal) for name, one in resized.items()}
    receipts = tuple(
        ModuleReceipt(
            module=name,
            part=component(name),
            shape=old.shape,
            kind=old.kind,
            norm=found[name].norm,
            old_rank=old.rank,
            new_rank=modules[name].rank,
            predicted=predicted[name].relative,
            optimal=optimal[name].relative,
            measured=None,
            notes=resized[name].notes,
        )
        for name, old in adapter.modules.items()
    )
    weights = sum(sum(one.shape) * one.rank * one.dtype.itemsize for one in modules.values())
    return Receipt(
        mode=rule.mode,
        value=rule.value,
        modules=receipts,
        predicted=total(predicted).relative,
        optimal=total(optimal).relative,
        measured=None,
        worst=None,
        bytes_before=adapter.path.stat().st_size if adapter.path.is_file() else None,
        bytes_after=None,
        weight_bytes=weights,
        notes=_notes(rule, adapter, resized, weights),
    ).measured_as(found)


def _notes(rule: ResizeRule, adapter: Adapter, resized: Mapping[str, _Resized], weights: int) -> tuple[str, ...]:
    notes = []
    kinds = Counter(module.kind for module in adapter.modules.values() if module.kind != "lora")
    for kind, count in sorted(kinds.items()):
        lost = "; the magnitudes are dropped" if kind == "dora" else ""
        notes.append(f"{count} modules were {kind} and are ordinary LoRA now{lost}")
    for kind, keys in adapter.unsupported.items():
        if kind != "dora":
            carried = not rule.drop_unsupported and kind in KEPT
            notes.append(f"{'carried whole' if carried else 'left out'}: {kind} ({len(keys)}: {some(keys)})")
    notes += about_wrappers(adapter.modules)
    before = adapter.path.stat().st_size if adapter.path.is_file() else None
    if before is not None and weights > before:
        notes.append(f"the weights alone are larger than the file that was read, {weights} over {before} bytes")
    kept = sum(resized[name].module.rank == old.rank for name, old in adapter.modules.items())
    if kept:
        notes.append(f"{kept} of {len(resized)} modules keep their rank")
    if rule.mode == "size_mib" and all(one.predicted == 0 for one in resized.values()):
        notes.append("everything fits: nothing but zero singular values was taken away")
    return tuple(notes)
