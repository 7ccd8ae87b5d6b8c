"""Several adapters side by side: their weights, their names, and whether their modules fit each other."""

import math
from collections.abc import Sequence

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.header import ADAPTER_SUFFIXES, FOLDER_FILES
from lorabench.errors import LorabenchError

__all__ = [
    "clashes",
    "file_name",
    "kernel_of",
    "kinds_left",
    "labels",
    "magnitudes",
    "module_names",
    "sums_to_zero",
    "used_weights",
]


def labels(adapters: Sequence[Adapter]) -> list[str]:
    """A short name for each adapter, of its file without its ending or of its folder; numbered where they are equal."""
    names = [_without_ending(file_name(one)) for one in adapters]
    return [f"{name} ({i + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def file_name(adapter: Adapter) -> str:
    """The name of its file, or of its folder where files of such folders are all named alike."""
    path = adapter.path
    return (path.parent.name if path.name in FOLDER_FILES else path.name) or str(path)


def used_weights(count: int, weights: Sequence[float | int] | None, normalize: bool) -> tuple[float, ...]:
    """The weights that a merge of `count` adapters uses: as given (None: all equal), or divided by their sum.

    Raises:
        LorabenchError: no adapter, another number of weights, one that is not finite, or a sum of 0 to divide by.
    """
    if count == 0:
        raise LorabenchError("adapters: none came. Give at least one adapter to merge.")
    given = tuple(float(weight) for weight in ([1.0] * count if weights is None else weights))
    if len(given) != count:
        raise LorabenchError(f"weights: {len(given)} came for {count} adapters. Give one number for each adapter.")
    if not all(math.isfinite(weight) for weight in given):
        raise LorabenchError(f"weights={list(given)}: only finite numbers are allowed.")
    if not normalize:
        return given
    if sums_to_zero(given):
        raise LorabenchError(
            f"weights={list(given)} sum to 0, so they cannot be normalised to sum to 1. "
            "Use them as they are: --no-normalize, or normalize=False."
        )
    total = math.fsum(given)
    return tuple(weight / total for weight in given)


def sums_to_zero(weights: Sequence[float | int]) -> bool:
    """Whether the sum is 0 up to rounding."""
    return abs(math.fsum(weights)) <= 1e-12 * math.fsum(map(abs, weights))


def module_names(adapters: Sequence[Adapter]) -> dict[str, tuple[int, ...]]:
    """Canonical module name -> which adapters have it, in the order of first appearance."""
    found: dict[str, list[int]] = {}
    for i, adapter in enumerate(adapters):
        for name in adapter.modules:
            found.setdefault(name, []).append(i)
    return {name: tuple(owners) for name, owners in found.items()}


def clashes(adapters: Sequence[Adapter]) -> list[str]:
    """Modules of one name whose ΔW cannot be added, each in a sentence; empty where all fit."""
    names = labels(adapters)
    found = []
    for module, owners in module_names(adapters).items():
        kinds = {i: _what(adapters[i].modules[module]) for i in owners}
        if len(set(kinds.values())) > 1:
            said = ", ".join(f"{kind} in {names[i]}" for i, kind in kinds.items())
            found.append(f"module {module} is {said}")
    return found


def magnitudes(adapters: Sequence[Adapter]) -> dict[int, list[str]]:
    """Which adapter has which modules with a DoRA magnitude."""
    found = {i: [name for name, one in each.modules.items() if one.kind == "dora"] for i, each in enumerate(adapters)}
    return {i: modules for i, modules in found.items() if modules}


def kinds_left(adapters: Sequence[Adapter]) -> dict[int, str]:
    """Which adapter has tensors that no merge can take up, in words; DoRA magnitudes are told by `magnitudes`."""
    found = {}
    for i, adapter in enumerate(adapters):
        kinds = [
            f"{len(keys)} of kind {kind} ({keys[0]})" for kind, keys in adapter.unsupported.items() if kind != "dora"
        ]
        if kinds:
            found[i] = ", ".join(kinds)
    return found


def kernel_of(modules: Sequence[LoraModule]) -> tuple[int, ...]:
    """The kernel of modules that fit: a 1×1 convolution's where one file says that, and another says linear."""
    return max((module.kernel for module in modules), key=len)


def _without_ending(name: str) -> str:
    ending = next((ending for ending in ADAPTER_SUFFIXES if name.endswith(ending)), "")
    return name.removesuffix(ending)


def _what(module: LoraModule) -> str:
    kernel = () if math.prod(module.kernel) == 1 else module.kernel  # 1×1 is the same matrix as a linear layer's
    kind = "an embedding" if module.embedding else f"a {kernel} convolution" if kernel else "a matrix"
    return f"{kind} of {module.shape[0]}x{module.shape[1]}"
