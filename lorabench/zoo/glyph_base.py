"""What the glyph zoos have in common: one base model, threads that train on it, and stores that are made once."""

import functools
import hashlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

import numpy as np
import safetensors.torch
from safetensors import SafetensorError, safe_open

from lorabench.adapters.reading.naming import layer_names
from lorabench.errors import LorabenchError, explain_disk_errors
from lorabench.options import AtLeast, Filled, check_arguments
from lorabench.storage import replace_file
from lorabench.zoo import glyph_model, glyph_pictures, making
from lorabench.zoo.glyph_model import MODULES, WIDTH, Base
from lorabench.zoo.glyph_pictures import SIDE, Glyphs
from lorabench.zoo.labels import Labels
from lorabench.zoo.making import REMEDY, check_name, counted, own_seed
from lorabench.zoo.store import Module, Zoo, open_store

__all__ = [
    "MODULES_OF_ZOO",
    "KeepSteps",
    "Pretraining",
    "check_keep_steps",
    "glyph_labels",
    "layer_shapes",
    "made_once",
    "pretrained",
    "step_paths",
    "store_path",
]

MODULES_OF_ZOO = tuple(Module(module, *layer_names(module)) for module in MODULES)
"""The modules of every adapter."""

KeepSteps = Annotated[list[int] | None, AtLeast(1), Filled()]


@runtime_checkable
class Pretraining(Protocol):
    """What the base model depends on; all zoos that agree on it share one."""

    @property
    def categories(self) -> str:
        """Ten of glyphs."""
        ...

    @property
    def styles(self) -> int:
        """Pictures of every leaf."""
        ...

    @property
    def pretrain_steps(self) -> int:
        """Of Adam."""
        ...

    @property
    def pretrain_batch(self) -> int:
        """Pictures a step."""
        ...

    @property
    def seed(self) -> int:
        """Of all that is drawn, the pictures of a leaf among it."""
        ...

    @property
    def base_seed(self) -> int | None:
        """Of the base model; None: the same."""
        ...


def store_path(name: str, cache_dir: str | Path, maker: str, recipe: object) -> Path:
    """Where the zoo of a recipe is kept, by the code that makes it too.

    Args:
        name: how results call the zoo.
        cache_dir: what holds the folder of zoos.
        maker: the module's file.
        recipe: all that the adapters depend on.

    Raises:
        LorabenchError: the name can name no folder.
    """
    check_name(name)
    return Path(cache_dir).expanduser() / "zoos" / f"{name}-{_key(maker, recipe=recipe)}"


def check_keep_steps(steps: KeepSteps, most: int) -> tuple[int, ...]:
    """The steps, ascending and each once.

    Raises:
        LorabenchError: no list of steps, or one beyond `most`, the number that every adapter is trained for.
    """
    check_arguments(check_keep_steps, {"steps": steps}, "dataset.keep_")
    if steps and max(steps) > most:
        raise LorabenchError(f"dataset.keep_steps={steps}: the training has {most} steps; give steps from 1 to {most}")
    return tuple(sorted(set(steps or ())))


def layer_shapes(rank: int) -> dict[str, tuple[int, int]]:
    """Every layer of a store and its shape."""
    sides = {"down": (rank, WIDTH), "up": (WIDTH, rank)}
    return {getattr(module, side): shape for module in MODULES_OF_ZOO for side, shape in sides.items()}


def glyph_labels(glyphs: Glyphs, chosen: Sequence[int], recipe: Mapping[str, np.ndarray]) -> Labels:
    """The labels of adapters, one of each chosen glyph: category, leaf and a name of both."""
    categories = [glyphs.categories[i] for i in chosen]
    leaves = [f"U+{glyphs.code_points[i]:04X}" for i in chosen]
    names = [f"{category.lower().replace(' ', '_')}/{leaf}" for category, leaf in zip(categories, leaves, strict=True)]
    return Labels.of(names, categories, leaves, recipe=recipe)


def step_paths(path: Path, steps: Sequence[int]) -> dict[int, Path]:
    """Where the same adapters after fewer steps are kept, beside their zoo."""
    return {step: path.with_name(f"{path.name}-step{step}") for step in steps}


def made_once(
    path: Path,
    keep_steps: Sequence[int],
    recipe: Pretraining,
    build: Callable[[Path, ThreadPoolExecutor], None],
) -> Zoo:
    """The zoo in `path`, with those of `keep_steps` as its checkpoints, made by one process while others wait.

    Args:
        path: of its store.
        keep_steps: which steps of training are there too.
        recipe: says which base model.
        build: makes the stores, the last of them in `path`, given the file of the base model and workers.
    """
    shared = ("categories", "styles", "pretrain_steps", "pretrain_batch", "seed")
    known = {part: getattr(recipe, part) for part in shared}
    base_key = _key(**known, base_seed=own_seed(recipe.seed, recipe.base_seed))
    base_file = path.with_name(f"glyph-base-{base_key}.safetensors")
    lock, opened = base_file.with_suffix(".lock"), functools.partial(_opened, path, keep_steps)
    zoo = making.made_once(path, lock, opened, functools.partial(build, base_file))
    return replace(zoo, texts=functools.partial(_unicode_names, zoo.labels.leaf_names))


def _unicode_names(leaves: Sequence[str]) -> dict[str, str]:
    """The name of every code point; its number where Unicode gives none."""
    return {leaf: unicodedata.name(chr(int(leaf.removeprefix("U+"), 16)), leaf).lower() for leaf in leaves}


def _opened(path: Path, keep_steps: Sequence[int]) -> Zoo | None:
    zoo = open_store(path)
    found = {step: open_store(place) for step, place in step_paths(path, keep_steps).items()}
    earlier = {step: one for step, one in found.items() if one is not None}
    return None if zoo is None or len(earlier) < len(found) else replace(zoo, checkpoints=earlier)


def _key(*makers: str, **parts: object) -> str:
    """See `making.hash_of`."""
    files = (__file__, glyph_model.__file__, glyph_pictures.__file__, *makers)
    return making.hash_of(sorted(parts.items()), files, ("torch", "numpy", "pillow", "matplotlib"))


def pretrained(recipe: Pretraining, glyphs: Glyphs, file: Path, pool: ThreadPoolExecutor) -> Base:
    """The base model in `file`, trained on all glyphs and written there where it is not."""
    base = _read_base(file)
    if base is None:
        pictures = glyph_model.patches(glyphs.pictures.reshape(-1, SIDE, SIDE))
        steps, batch = recipe.pretrain_steps, recipe.pretrain_batch
        with counted("Pretraining the glyph model", steps) as advance:
            seed = own_seed(recipe.seed, recipe.base_seed)
            base, _ = pool.submit(glyph_model.pretrain, pictures, steps, batch, seed, advance).result()
        _write_base(file, base)
    return base


def _read_base(file: Path) -> Base | None:
    """The base model in a file; None where there is none, or what is there is not whole."""
    try:
        with safe_open(file, "pt") as opened:
            base = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (no mapping)
            whole = (opened.metadata() or {}).get("digest") == _digest(base)
    except (FileNotFoundError, SafetensorError):
        return None
    return base if whole else None


def _write_base(file: Path, base: Base) -> None:
    data = safetensors.torch.save(base, {"digest": _digest(base)})
    with explain_disk_errors(file, REMEDY):
        replace_file(file, data, durable=False)  # its digest tells whether it is whole


def _digest(base: Base) -> str:
    found = hashlib.blake2b(digest_size=16)
    for key in sorted(base):
        found.update(f"{key}{tuple(base[key].shape)}".encode())
        found.update(base[key].contiguous().numpy().data)
    return found.hexdigest()
