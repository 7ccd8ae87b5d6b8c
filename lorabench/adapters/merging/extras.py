"""What adapters hold besides low-rank pairs, merged: whole tensors, and the entries of their configurations."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lorabench.adapters.merging.recipe import Recipe
from lorabench.adapters.reading.naming import is_added
from lorabench.adapters.writing.refusals import changed_base
from lorabench.errors import LorabenchError
from lorabench.text import some

__all__ = ["MergedConfig", "MergedExtras", "merged_config", "merged_extras"]

_WRITERS = frozenset(
    {
        "alpha_pattern", "exclude_modules", "layers_pattern", "layers_to_transform", "lora_alpha", "peft_type",
        "r", "rank_pattern", "target_modules", "use_dora", "use_rslora",
    }
)  # fmt: skip
"""Entries that whoever writes the result makes anew from what is in it."""
_PROVENANCE = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "inference_mode", "init_lora_weights",
        "loftq_config", "lora_dropout", "lora_ga_config", "peft_version", "revision", "runtime_config",
    }
)  # fmt: skip
"""Entries that say where an adapter comes from or how it was trained, and nothing of what it does."""


@dataclass(frozen=True)
class MergedExtras:
    """Whole tensors of a merged adapter.

    Attributes:
        tensors: by key.
        notes: in sentences, what was carried and what was summed.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MergedConfig:
    """Entries of a merged adapter's configuration.

    Attributes:
        entries: those that are carried.
        notes: in sentences, what was left out.
    """

    entries: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def merged_extras(
    adapters: Sequence[Mapping[str, Tensor]], weights: Sequence[float], recipe: Recipe | None = None
) -> MergedExtras:
    """Tensors that are no low-rank pair, such as saved modules and biases, of a merged adapter.

    What is added to the base, as ΔW is (`naming.is_added`), is Σ w_i · tensor_i, whatever the weights. Of what takes
    the place of the base's weights, a tensor that all who have it agree on is carried. Where floating tensors of one
    shape differ and all adapters have them, their weighted sum takes their place if the weights sum to 1: it moves a
    weight by Σ w_i · (tensor_i − base), whatever the base is.

    Args:
        adapters: the tensors of each, by key.
        weights: w_i as used.
        recipe: with `drop_unsupported`, nothing is carried.

    Raises:
        LorabenchError: tensors differ and cannot be summed.

    Example:
        >>> merged = merged_extras([{"head": torch.tensor([1.0])}, {"head": torch.tensor([3.0])}], [0.5, 0.5])
        >>> merged.tensors["head"].item(), merged.notes
        (2.0, ('1 tensors besides low-rank pairs (head) are weighted sums',))
    """
    keys = dict.fromkeys(key for each in adapters for key in each)
    if recipe is not None and recipe.drop_unsupported:
        return MergedExtras(notes=_counted(list(keys), "are left out"))
    tensors: dict[str, Tensor] = {}
    partial, summed = [], []
    for key in keys:
        own = [each[key] for each in adapters if key in each]
        if is_added(key):
            shares = [weight for each, weight in zip(adapters, weights, strict=True) if key in each]
            _check_sum(key, own, len(own), [1.0])
            tensors[key] = _sum(own, shares)
            summed.append(key)
        elif all(_equal(tensor, own[0]) for tensor in own):
            tensors[key] = own[0]
            partial += [key] if len(own) < len(adapters) else []
        else:
            _check_sum(key, own, len(adapters), weights)
            tensors[key] = _sum(own, weights)
            summed.append(key)
    return MergedExtras(
        tensors,
        (*_counted(partial, "are in some of the adapters only, and carried"), *_counted(summed, "are weighted sums")),
    )


def merged_config(configs: Sequence[Mapping[str, Any]]) -> MergedConfig:
    """Entries of adapter_config.json for a merged adapter.

    What all agree on is carried, whatever it is, and what only some state; null, an empty list and an empty mapping
    state nothing. What differs is left out where it is of provenance or training, and refused where it changes what an
    adapter does. Entries that the writer makes anew (rank, alpha, targets, ...) are none of this function's business.

    Args:
        configs: of each adapter; empty where it has none.

    Raises:
        LorabenchError: entries differ and change what the adapter does; or an adapter changes the base's weights as it
            is loaded (PiSSA, OLoRA, ...), which none with another configuration can share.

    Example:
        >>> merged = merged_config([{"task_type": "CAUSAL_LM", "revision": "a"}, {"new": 1, "revision": "b"}])
        >>> merged.entries, merged.notes
        ({'task_type': 'CAUSAL_LM', 'new': 1}, ("revision: 'a' and 'b'; left out",))
    """
    if all(config == configs[0] for config in configs):
        return MergedConfig(dict(configs[0]))
    _check_bases(configs)
    entries: dict[str, Any] = {}
    notes: list[str] = []
    for key in dict.fromkeys(key for config in configs for key in config if key not in _WRITERS):
        values = [config[key] for config in configs if key in config]
        stated = [value for value in values if value not in (None, [], {})]
        different = [value for i, value in enumerate(stated) if value not in stated[:i]]
        if key == "modules_to_save" and len(different) > 1:  # tensors that differ are refused by themselves
            different = [list(dict.fromkeys(name for names in different for name in names))]
        if len(different) < 2:
            entries[key] = different[0] if different else values[0]
            continue
        shown = " and ".join(repr(value) for value in different[:2])
        if key not in _PROVENANCE:
            raise LorabenchError(
                f"adapter_config.json: the adapters differ in {key}, {shown}, which may change what an adapter does. "
                "Merge adapters that agree in it, or make the entries equal where you know that they mean the same."
            )
        notes.append(f"{key}: {shown}; left out")
    return MergedConfig(entries, tuple(notes))


def _check_bases(configs: Sequence[Mapping[str, Any]]) -> None:
    for config in configs:
        way = changed_base(config)
        if way:
            raise LorabenchError(
                f"adapter_config.json: init_lora_weights={way!r} changes the weights of the base model whenever the "
                "adapter is loaded, and no other adapter was made for such a base. Make an ordinary LoRA of it first "
                "(PEFT's save_pretrained with path_initial_model_for_weight_conversion)."
            )


def _check_sum(key: str, own: Sequence[Tensor], count: int, weights: Sequence[float]) -> None:
    shapes = dict.fromkeys(tuple(tensor.shape) for tensor in own)
    why = ""
    if len(own) < count:
        why = "some adapters lack it"
    elif len(shapes) > 1:
        why = "their shapes are " + " and ".join("x".join(map(str, shape)) for shape in shapes)
    elif not all(tensor.is_floating_point() for tensor in own):
        why = "they are no floating numbers"
    elif not math.isclose(math.fsum(weights), 1.0, rel_tol=1e-6):
        why = f"the weights sum to {math.fsum(weights):.4g}, and only a sum of 1 has a mean of whole tensors"
    if why:
        raise LorabenchError(
            f"{key} is no low-rank pair, differs between the adapters, and cannot be summed: {why}. "
            "Leave such tensors out with --drop-unsupported (drop_unsupported=True)."
        )


def _sum(own: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = torch.stack([tensor.double() * weight for tensor, weight in zip(own, weights, strict=True)]).sum(0)
    return total.to(own[0].dtype)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def _counted(keys: Sequence[str], fate: str) -> tuple[str, ...]:
    return (f"{len(keys)} tensors besides low-rank pairs ({some(keys)}) {fate}",) if keys else ()
