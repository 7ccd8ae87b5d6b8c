"""The plan of an adapter file, module by module; of a safetensors file from the header alone, without torch."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabench.adapters.kinds import kinds
from lorabench.adapters.kinds.base import BESIDE, Fit, Shapes
from lorabench.adapters.layouts import layout_called
from lorabench.adapters.names.identity import component, has_peft_prefix, part_before_peft
from lorabench.adapters.reading import limits
from lorabench.adapters.reading.beside import CONFIG, config_beside
from lorabench.adapters.reading.experts import set_experts_aside
from lorabench.adapters.reading.header import (
    Header,
    TensorInfo,
    find_adapter_file,
    first_look,
    read_header,
    read_json,
    read_scalars,
)
from lorabench.adapters.reading.scaling import Stated, saved_config
from lorabench.adapters.reading.sorting import ModuleKeys, SortedKeys, sort_keys
from lorabench.adapters.reading.switching import switches
from lorabench.errors import LorabenchError
from lorabench.text import counted

if TYPE_CHECKING:
    from lorabench.adapters.reading.container import Container

__all__ = ["PART_OUTSIDE", "WRAPPED", "ModuleRow", "Table", "plan", "read_table"]

_READ = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0")
"""Types that `load` makes float32 of."""

WRAPPED = "the wrapper"
"""How what `ModuleRow.assumed` says of a wrapper begins."""
PART_OUTSIDE = "{} stands before base_model.model in its name"
"""What it says of a pipeline's part before PEFT's own prefix."""

_GROUPED = "grouped_convolution"


@dataclass(frozen=True)
class ModuleRow:
    """One module.

    Attributes:
        module: canonical name.
        part: the model's part that it belongs to (`identity.component`).
        kind: "linear", "conv", "tucker" or "embedding" for a pair, the name of another kind (`kinds`), or "dora" for
            any of them with a magnitude.
        rank: r of the stored factors; 0 for LoKr of two whole matrices, and for what AdaLoRA pruned away.
        alpha: α, or None where nothing says it.
        alpha_source: where α was found, or what was assumed.
        scale: the factor in front of up @ down.
        scale_rule: how it follows from α and r.
        shapes: part -> shape.
        dtype: safetensors' name of the type that the factors are stored in.
        keys: part -> key.
        assumed: in words, what the file did not say.
        scheme: how its keys are named.
        form: the kind whose factors it has (`kinds`).
        fit: what its shapes say.
        switched_on: of a merged projection: which parts of the layer have rows in the file.
        dots_known: whether the dots of its name are the file's own, or those of a table of names.
    """

    module: str
    part: str
    kind: str
    rank: int
    alpha: float | None
    alpha_source: str
    scale: float
    scale_rule: str
    shapes: Shapes
    dtype: str
    keys: Mapping[str, str]
    assumed: tuple[str, ...] = ()
    scheme: str = field(default="", repr=False)
    form: str = field(default="lora", repr=False)
    fit: Fit = field(default=Fit(0), repr=False)
    switched_on: tuple[bool, ...] = field(default=(), repr=False)
    dots_known: bool = field(default=True, repr=False)


@dataclass(frozen=True)
class Table:
    """What an adapter file holds.

    Attributes:
        file: the file that was read.
        format: "safetensors", "npz" or "pickle".
        header: of a safetensors file.
        rows: the modules that can be analysed, by name.
        unsupported: kind -> keys that cannot be analysed.
        problems: what is wrong with modules, in words; they have no row. What is wrong with many alike is said once.
        schemes: naming schemes.
        metadata: of a safetensors file.
        config: adapter_config.json beside the file.
        tensors: key -> shape and type of every tensor.
    """

    file: Path
    format: str
    header: Header | None = field(repr=False)
    rows: tuple[ModuleRow, ...]
    unsupported: Mapping[str, tuple[str, ...]]
    problems: tuple[str, ...]
    schemes: tuple[str, ...]
    metadata: Mapping[str, str] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, TensorInfo] = field(repr=False)


def read_table(path: Path | str) -> Table:
    """The table of an adapter file or folder.

    Args:
        path: as for `load`.

    Raises:
        LorabenchError: the file cannot be read at all; what is wrong with single modules is in `problems`.

    Example:
        >>> import tempfile, torch
        >>> from lorabench.adapters import LoraModule, save
        >>> file = Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> _ = save(file, {"unet.mid_block.to_q": LoraModule(torch.eye(2, 5), torch.eye(4, 2))}, "diffusers-peft")
        >>> [(row.module, row.rank, row.shapes["down"]) for row in read_table(file).rows]
        [('unet.mid_block.to_q', 2, (2, 5))]
    """
    file = find_adapter_file(Path(path))
    if first_look(file)[1] is None:
        return plan(file, read_header(file))
    # Only a pickle needs torch: its header is a program.
    from lorabench.adapters.reading.container import read_container

    return plan(file, None, read_container(file))


def plan(file: Path, header: Header | None, container: "Container | None" = None) -> Table:
    """The table of a file whose header, or whose tensors, were read.

    Args:
        file: the file.
        header: of a safetensors file.
        container: of any other file.

    Raises:
        LorabenchError: its keys or its configuration contradict themselves.
    """
    if container is not None:
        from lorabench.adapters.reading.container import infos_of

        tensors, alphas = infos_of(file, container)
        metadata, leftovers, form = container.metadata, container.leftovers, container.format
    else:
        assert header is not None  # noqa: S101 - one of the two is given
        tensors, metadata, leftovers, form = header.tensors, header.metadata, (), "safetensors"
    keys = sort_keys(file, tensors, metadata, leftovers)
    beside, inside = read_json(config_beside(file)), saved_config(file, metadata)
    set_experts_aside(keys, inside or beside)
    _set_grouped_aside(keys, tensors)
    if header is not None:
        alphas = read_scalars(header, [one.parts["alpha"] for one in keys.modules.values() if "alpha" in one.parts])
    planner = _Planner(file, tensors, alphas, metadata, inside, beside)
    rows, problems = planner.rows(keys)
    return Table(
        file=file,
        format=form,
        header=header,
        rows=rows,
        unsupported={kind: tuple(listed) for kind, listed in sorted(keys.unsupported.items())},
        problems=problems,
        schemes=keys.schemes,
        metadata=metadata,
        config=beside,
        tensors=tensors,
    )


_NAMES = re.compile(r"module \S+|(?:[\w-]+\.)+[\w-]+")
"""The names of modules and keys in an error: two errors that differ in these alone are one."""


class _ModuleError(LorabenchError):
    """What is wrong with a module; many modules may have the same fault."""

    def __init__(self, fault: str, message: str) -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True)
class _Planner:
    """What a file says to all of its modules."""

    file: Path
    tensors: Mapping[str, TensorInfo]
    alphas: Mapping[str, float]
    header: Mapping[str, str]
    inside: Mapping[str, Any]
    beside: Mapping[str, Any]

    def rows(self, keys: SortedKeys) -> tuple[tuple[ModuleRow, ...], tuple[str, ...]]:
        """The rows of the modules that can be read, and what is wrong with the others."""
        fits: dict[str, Fit] = {}
        problems: dict[str, list[str]] = {}
        for name, module in keys.modules.items():
            try:
                fits[name] = self._fit(name, module)
            except LorabenchError as error:
                self._note(problems, error)
        rows = []
        for name, fit in _turned(fits).items():
            try:
                rows.append(self._row(name, keys.modules[name], fit))
            except LorabenchError as error:
                self._note(problems, error)
        return tuple(rows), tuple(_counted(texts) for texts in problems.values())

    def _note(self, problems: dict[str, list[str]], error: LorabenchError) -> None:
        text = str(error).removeprefix(f"{self.file}: ")
        fault = error.fault if isinstance(error, _ModuleError) else _NAMES.sub("module", text)
        problems.setdefault(fault, []).append(text)

    def _fit(self, name: str, module: ModuleKeys) -> Fit:
        self._refuse_missing(name, module)
        kind, shapes = kinds()[module.form], _shapes(module, self.tensors)
        shown = ", ".join(f"{key} {list(shapes[part])}" for part, key in module.parts.items() if part not in BESIDE)
        try:
            fit = kind.fit(layout_called(module.scheme), shapes)
        except ValueError as error:
            form = "" if module.pair else f" ({module.form})"
            raise _ModuleError(
                f"shapes {module.form}",
                f"{self.file}: the shapes of module {name}{form} do not fit together: {shown}. "
                f"{str(error) or kind.wanted} Export the adapter again.",
            ) from error
        if fit.entries > limits.MOST_ENTRIES:
            raise LorabenchError(
                f"{self.file}: module {name} ({module.form}) unfolds to {fit.entries} numbers, {limits.MOST_ENTRIES} "
                "are the most. Check where the file is from."
            )
        return fit

    def _row(self, name: str, module: ModuleKeys, fit: Fit) -> ModuleRow:
        self._refuse_quantised(module)
        switched_on, merged = switches(self.file, name, fit, self.inside or self.beside)
        stated = Stated(
            self.file, name, module.scheme, fit.rank, self.alphas.get(module.parts.get("alpha", "")),
            config=self.inside or (self.beside if layout_called(module.scheme).beside else {}),
            config_from="lora_adapter_metadata" if self.inside else CONFIG,
            header=self.header,
            of_peft=any(map(has_peft_prefix, module.parts.values())),
        )  # fmt: skip
        scale = kinds()[module.form].scale(stated)
        shapes = _shapes(module, self.tensors)
        first = next(key for part, key in module.parts.items() if part != "alpha")
        wrapped = tuple(f"{WRAPPED} {wrapper} was taken off its name" for wrapper in module.wrappers)
        if word := part_before_peft(first):
            wrapped = (*wrapped, PART_OUTSIDE.format(word))
        return ModuleRow(
            module=name, part=component(name), kind=_kind(module, shapes), rank=fit.rank,
            alpha=scale.alpha, alpha_source=scale.source, scale=scale.value, scale_rule=scale.rule,
            shapes={part: shape for part, shape in shapes.items() if part != "alpha"},
            dtype=self.tensors[module.parts.get("down", first)].dtype, keys=module.parts,
            assumed=merged + scale.assumed + wrapped, scheme=module.scheme, form=module.form, fit=fit,
            switched_on=switched_on, dots_known=module.dots_known,
        )  # fmt: skip

    def _refuse_missing(self, name: str, module: ModuleKeys) -> None:
        needed = kinds()[module.form].needed
        lacking = ["/".join(sorted(parts)) for parts in needed if not parts & set(module.parts)]
        if lacking:
            have = ", ".join(key for part, key in module.parts.items() if part not in BESIDE)
            raise _ModuleError(
                f"lacks {lacking}",
                f"{self.file}: module {name} ({module.form}) lacks {', '.join(lacking)}; it has {have or 'nothing'}. "
                "Export the adapter again, or remove these keys.",
            )
        for part, other in (("down", "up"), ("up", "down")) if module.pair else ():
            if part not in module.parts:
                have = module.parts.get(other) or next(iter(module.parts.values()))
                raise _ModuleError(
                    f"no {part}",
                    f"{self.file}: module {name} has {have} but no {part} matrix; half of the pair is missing. "
                    "Export the adapter again, or remove these keys.",
                )

    def _refuse_quantised(self, module: ModuleKeys) -> None:
        for part, key in module.parts.items():
            if part not in BESIDE and self.tensors[key].dtype not in _READ:
                raise _ModuleError(
                    "quantised",
                    f"{self.file}: {key} is stored as {self.tensors[key].dtype}; quantised factors "
                    "cannot be read. Export the adapter in float16, bfloat16 or float32.",
                )


def _turned(fits: Mapping[str, Fit]) -> dict[str, Fit]:
    """Square modules are stored as the others of the file are; alone, in the one sensible way."""
    pairs = [fit for fit in fits.values() if not fit.groups and not fit.entries and fit.rank]
    plain = any(not fit.transposed for fit in pairs) and not any(fit.transposed and not fit.plain for fit in pairs)
    return {name: fit.plain if plain and fit.plain else fit for name, fit in fits.items()}


def _set_grouped_aside(keys: SortedKeys, tensors: Mapping[str, TensorInfo]) -> None:
    """The LoRA of a grouped convolution is right and no matrix product: down has g times the rows that up takes."""
    for name, module in list(keys.modules.items()):
        shapes = _shapes(module, tensors)
        down, up = shapes.get("down", ()), shapes.get("up", ())
        if module.pair and min(len(down), len(up)) > 2 and 0 < up[1] < down[0] and down[0] % up[1] == 0:
            keys.set_aside(name, _GROUPED)


def _shapes(module: ModuleKeys, tensors: Mapping[str, TensorInfo]) -> dict[str, tuple[int, ...]]:
    return {part: tensors[key].shape for part, key in module.parts.items()}


def _counted(texts: Iterable[str]) -> str:
    first, *others = texts
    return f"in {len(others) + 1} modules: {first} ({counted(len(others), 'more module')} alike)" if others else first


def _kind(module: ModuleKeys, shapes: Shapes) -> str:
    if module.kind != "lora":
        return module.kind
    if layout_called(module.scheme).embeds:
        return "embedding"
    if "mid" in shapes:
        return "tucker"
    return "conv" if len(shapes["down"]) > 2 else "linear"
