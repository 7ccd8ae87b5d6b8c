"""Another rank for every module: by the SVD of ΔW, which is optimal, or by padding and cutting its factors."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32, Float64
from torch import Tensor
from torch.nn import functional

from lorabench.adapters.adapter import MAGNITUDES, Adapter, LoraModule
from lorabench.adapters.comparing.deviation import Deviation, batches, deviations, total
from lorabench.adapters.comparing.spectra import spectra, stack
from lorabench.adapters.names.identity import component
from lorabench.adapters.reading.naming import KEPT
from lorabench.adapters.resizing.choosing import UNTRAINED, Choice, Sizes, clamped
from lorabench.adapters.resizing.ranks import limits_by_module
from lorabench.adapters.resizing.receipt import ModuleReceipt, Receipt
from lorabench.adapters.resizing.rule import ResizeRule, spelled
from lorabench.adapters.writing.refusals import refuse_infinite, refuse_unsupported
from lorabench.adapters.writing.remarks import about_wrappers
from lorabench.adapters.writing.saving import carries_extras, layout_of, stored_type
from lorabench.errors import LorabenchError
from lorabench.lowrank import thin_svd
from lorabench.progress import bar
from lorabench.text import some

__all__ = ["RESIZE_KEY", "resize"]

RESIZE_KEY = "lorabench_resize"
"""Metadata entry that says how an adapter was resized."""


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
        >>> from pathlib import Path
        >>> adapter = Adapter(Path("x"), (), {"q": LoraModule(torch.eye(2, 5), torch.eye(4, 2) * 3.0)})
        >>> small, receipt = resize(adapter, ResizeRule(rank=1))
        >>> small.modules["q"].rank, round(receipt.measured, 4)
        (1, 0.7071)
    """
    refuse_infinite(adapter)
    _check_kinds(adapter, rule.drop_dora)
    carried = carries_extras(adapter, layout or layout_of(adapter)) and not rule.drop_unsupported
    refuse_unsupported(adapter, rule.drop_unsupported, carried)
    if rule.mode in ("pad", "truncate"):
        resized = _simple(rule, adapter.modules)
    else:
        resized = _optimal(adapter.modules, Choice(rule, adapter, Sizes(adapter, dtype, layout)))
    modules = {name: _rounded(name, resized[name].module, dtype) for name in adapter.modules}
    receipt = _receipt(rule, adapter, resized, modules)
    said = {"mode": rule.mode, "value": rule.value, "from": adapter.path.name, "relative_error": receipt.predicted}
    metadata = {**adapter.metadata, RESIZE_KEY: json.dumps(said)}
    extras = adapter.extras if carried else {}
    return replace(adapter, modules=modules, metadata=metadata, unsupported={}, extras=extras), receipt


def _check_kinds(adapter: Adapter, drop_dora: bool) -> None:
    dora = [name for name, module in adapter.modules.items() if module.has_magnitude]
    if dora and not drop_dora:
        raise LorabenchError(
            f"{adapter.path}: {len(dora)} modules are DoRA, {dora[0]} for one: their update is a low-rank part and a "
            "magnitude by row, and a resize keeps the former alone. Say drop_dora=True (--drop-dora) to lose "
            "the magnitudes, or merge the adapter into its base model first."
        )


def _optimal(modules: Mapping[str, LoraModule], choice: Choice) -> dict[str, _Resized]:
    found = {}
    with bar("Resizing modules", len(modules)) as shown:
        for names in batches(modules):
            batch = [modules[name] for name in names]
            left, sigma, right = thin_svd(*stack(batch))
            for i, name in enumerate(names):
                wanted, notes = choice.rank(name, sigma[i])
                tail = float(sigma[i, wanted:].norm())
                found[name] = _Resized(_cut(batch[i], left[i], sigma[i], right[i], wanted), tail, tail, notes)
            shown.advance(len(names))
    return found


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


def _simple(rule: ResizeRule, modules: Mapping[str, LoraModule]) -> dict[str, _Resized]:
    rank, at_most = int(rule.value), limits_by_module(modules, rule.limits)
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
            () if sigma[name][0] > 0 else (UNTRAINED,),
        )
        for name, module in cut.items()
    }


def _padded(module: LoraModule, rank: int) -> _Resized:
    """No rank above the short side of ΔW does more, and one by mistake would fill the memory with zeros."""
    most = max(module.rank, min(rank, *module.shape))
    notes = () if most == rank else (clamped(module, rank, most),)
    return _Resized(_with_rows(module, most), 0.0, 0.0, notes)


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
        lost = "; the magnitudes are dropped" if kind == MAGNITUDES else ""
        notes.append(f"{count} modules were {kind} and are ordinary LoRA now{lost}")
    for kind, keys in adapter.unsupported.items():
        if kind != MAGNITUDES:
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
