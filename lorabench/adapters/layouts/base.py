"""What a layout is: how a file names the tensors of a module, and what it can say beside them."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

__all__ = ["NUMBER", "Layout", "ModuleKey", "TensorKeys", "WrittenLayout"]

NUMBER = r"(?P<number>\.\d+)?$"
"""The end of a key; in the hub's weight-space sets the adapter's number follows."""


class ModuleKey(NamedTuple):
    """What a key says: the module as the file names it, and which of its tensors this is."""

    module: str
    part: str


class TensorKeys(NamedTuple):
    """The keys of a module's tensors; `alpha` is None where the layout keeps α elsewhere, or has none."""

    down: str
    up: str
    alpha: str | None = None


class Layout(ABC):
    """How a file names tensors; each layout lies in a file of its own and is found there.

    The patterns of all layouts are disjoint: no key fits two of them.
    """

    name: ClassVar[str]
    """The naming scheme, as `Adapter.schemes` has it."""
    patterns: ClassVar[tuple[re.Pattern[str], ...]] = ()
    transposed: ClassVar[bool] = False
    """Whether all factors are kept for x·A·B: A [d_in, r] and B [r, d_out]."""
    merged: ClassVar[bool] = False
    """Whether a pair of two axes may be a merged projection's, which others keep with a third."""
    short_magnitude: ClassVar[bool] = False
    """Whether a DoRA magnitude is called `module.m`."""
    beside: ClassVar[bool] = False
    """Whether adapter_config.json beside the file states the scale."""
    scale_entry: ClassVar[str] = ""
    """The entry of that configuration that is the scale itself; "" where it has α and r."""
    embeds: ClassVar[bool] = False
    """Whether what it names are updates of embedding tables."""

    def read(self, match: re.Match[str]) -> ModuleKey:
        """What a key says that fits one of the patterns: by the groups `module`, `part` and `number`."""
        groups = match.groupdict()
        return ModuleKey(f"{groups['module']}{groups.get('number') or ''}", _ROLES.get(groups["part"], groups["part"]))


_ROLES = {"A": "down", "B": "up", "a": "down", "b": "up"}


class WrittenLayout(Layout):
    """A layout that can be written."""

    place: ClassVar[int]
    """Among the choices of a command."""
    title: ClassVar[str]
    """What it is, for `--help`."""
    folder: ClassVar[bool] = False
    """Whether an adapter is a folder with a configuration, and not one file."""
    alpha: ClassVar[Literal["folded", "tensor", "config"]] = "folded"
    """Where the scale goes: into the up matrix, a tensor a module, or the configuration."""
    own: ClassVar[frozenset[str]]
    """Schemes whose names it keeps; names of others are brought into its own form."""
    carries: ClassVar[frozenset[str]]
    """Schemes whose tensors that are no pair (heads, biases) it carries whole, under the keys that they had."""
    nearest_to: ClassVar[frozenset[str]]
    """Schemes that are written back in it, whatever else a file has; PEFT's names alone do not say whose they are."""
    hashed: ClassVar[bool] = False
    """Whether its trainers leave `sshs_*` hashes in the metadata."""
    needs_dots: ClassVar[bool] = True
    """Whether names are dotted, so that a name that was read flattened must be split."""
    needs_part: ClassVar[bool] = True
    """Whether its loaders look for a part of a pipeline in front of a name."""
    embeddings: ClassVar[bool] = False
    """Whether it has names for the update of an embedding table."""
    configured: ClassVar[bool] = False
    """Whether it has a configuration, and so says `fan_in_fan_out` and PEFT's other options."""
    denoiser: ClassVar[str] = ""
    """The word in front of a denoiser's names, where it is the same for U-Nets and transformers."""
    original_names: ClassVar[bool] = False
    """Whether its loaders know the original models' names, as kohya keeps them."""

    @property
    def of_diffusers(self) -> bool:
        """Whether diffusers' pipelines load it, by their own names of a model's modules."""
        return self.needs_dots and self.needs_part and not self.original_names

    @abstractmethod
    def keys(self, module: str, embedding: bool, names: Mapping[str, str]) -> TensorKeys:
        """The keys of one module's tensors.

        Args:
            module: its name, as `names` was asked for.
            embedding: whether it adapts an embedding table.
            names: what `spell` gave for all modules of the file.
        """

    def spell(self, modules: Mapping[str, str], metadata: Mapping[str, str]) -> dict[str, str]:  # noqa: ARG002
        """Module -> its name in this layout, for all modules of a file.

        Args:
            modules: canonical name -> the part's word as loaders look for it ("" where there is none).
            metadata: of the file, which may name the base model.
        """
        return {module: module for module in modules}
