"""The embedded zoo: LoRA adapters, each trained here to draw one glyph; the category is the glyph's Unicode block."""

import hashlib
import importlib.metadata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from lorabench.adapters.reading.naming import layer_names
from lorabench.errors import LorabenchError, explain_disk_errors
from lorabench.options import Above, AtLeast, AtMost, OneOf, check_arguments
from lorabench.storage import locked, replace_file
from lorabench.zoo import glyph_model, glyph_pictures, making
from lorabench.zoo.glyph_model import MODULES, WIDTH, Base, Leaf, Training, train_loras
from lorabench.zoo.glyph_pictures import CATEGORIES, SIDE, Glyphs, draw_glyphs
from lorabench.zoo.labels import Labels
from lorabench.zoo.making import REMEDY, check_name, counted, workers
from lorabench.zoo.store import Module, StoreWriter, Zoo, open_store

__all__ = ["load"]

Categories = Annotated[str, OneOf(CATEGORIES)]
Init = Annotated[str, OneOf(["shared", "independent"])]
Rank = Annotated[int, AtLeast(1), AtMost(WIDTH)]
Count = Annotated[int, AtLeast(1)]
Rate = Annotated[float | int, Above(0)]
Seed = Annotated[int, AtLeast(0), AtMost(2**63 - 1)]


@dataclass(frozen=True)
class _Recipe:
    """All that the adapters depend on, besides the code."""

    categories: Categories
    init: Init
    rank: Rank
    per_category: Count
    styles: Count
    pretrain_steps: Count
    pretrain_batch: Count
    steps: Count
    learning_rate: Rate
    batch_size: Count
    together: Count
    seed: Seed

    def __post_init__(self) -> None:
        check_arguments(_Recipe, vars(self), "dataset.")


def load(
    name: str,
    categories: Categories,
    init: Init,
    rank: Rank,
    per_category: Count,
    styles: Count,
    pretrain_steps: Count,
    pretrain_batch: Count,
    steps: Count,
    learning_rate: Rate,
    batch_size: Count,
    together: Count,
    seed: Seed,
    cache_dir: str | Path,
) -> Zoo:
    """The glyph zoo: trained on the first call, memory-mapped from `cache_dir`/zoos afterwards.

    A denoising transformer is pretrained by flow matching on all glyphs of ten categories in Matplotlib's DejaVu
    fonts; then one LoRA (scale 1) on q, k, v and out of its four blocks is fine-tuned for each chosen code point. All
    have the same recipe, which `labels.recipe` says; the mean picture of each is the zoo's `ceiling`.

    Args:
        name: how results call the zoo.
        categories: `blocks`, Unicode blocks that look different; `scripts`, which share letter forms.
        init: `shared`, every adapter starts from the same down matrix; `independent`, each from its own.
        rank: r of every module.
        per_category: at most so many adapters of each category, by a seeded choice.
        styles: pictures of every leaf, a seeded choice among the fonts that draw it; fewer fonts, no leaf.
        pretrain_steps: steps of Adam for the base model, which all zoos of the same seed, categories and styles share.
        pretrain_batch: pictures a step of pretraining.
        steps: steps of Adam for an adapter.
        learning_rate: of Adam for the adapters.
        batch_size: pictures a step for an adapter.
        together: adapters trained at once; changes speed and rounding alone.
        seed: of everything that is drawn.
        cache_dir: where the zoo and its base model are kept.

    Raises:
        LorabenchError: an argument is out of range, a category has no glyph in so many styles, or the disk is full.
    """
    recipe = _Recipe(
        categories,
        init,
        rank,
        per_category,
        styles,
        pretrain_steps,
        pretrain_batch,
        steps,
        learning_rate,
        batch_size,
        together,
        seed,
    )
    check_name(name)
    path = Path(cache_dir).expanduser() / "zoos" / f"{name}-{_key(recipe=recipe)}"
    zoo = open_store(path)
    return _built(name, recipe, path) if zoo is None else zoo


def _built(name: str, recipe: _Recipe, path: Path) -> Zoo:
    shared = ("categories", "styles", "pretrain_steps", "pretrain_batch", "seed")
    base_key = _key(**{part: getattr(recipe, part) for part in shared})
    base_file = path.with_name(f"glyph-base-{base_key}.safetensors")
    with locked(base_file.with_suffix(".lock"), REMEDY):
        zoo = open_store(path)
        if zoo is None:
            # The caller's inference mode is not ours: its tensors could not be trained with.
            with torch.inference_mode(False), workers() as pool:
                zoo = _build(name, recipe, path, base_file, pool)
    return zoo


def _key(**parts: object) -> str:
    """A hash of `parts`, of the code that makes a zoo of them, and of the packages that it stands on."""
    files = (__file__, glyph_model.__file__, glyph_pictures.__file__, making.__file__)
    code = [Path(str(file)).read_bytes() for file in files]
    packages = [importlib.metadata.version(package) for package in ("torch", "numpy", "pillow", "matplotlib")]
    return hashlib.sha256(repr((sorted(parts.items()), code, packages)).encode()).hexdigest()[:16]


def _build(name: str, recipe: _Recipe, path: Path, base_file: Path, pool: ThreadPoolExecutor) -> Zoo:
    glyphs = draw_glyphs(recipe.categories, recipe.styles, recipe.seed)
    base = _pretrained(recipe, glyphs, base_file, pool)
    chosen = glyphs.sample(recipe.per_category, recipe.seed)
    labels = _labels(recipe, glyphs, chosen)
    training = Training(
        recipe.rank, recipe.init == "shared", recipe.steps, recipe.learning_rate, recipe.batch_size, recipe.seed
    )
    modules = tuple(Module(module, *layer_names(module)) for module in MODULES)
    shapes = {
        layer: shape
        for module in modules
        for layer, shape in ((module.down, (recipe.rank, WIDTH)), (module.up, (WIDTH, recipe.rank)))
    }
    leaves = [Leaf(labels.adapters[i], glyph_model.patches(glyphs.pictures[leaf])) for i, leaf in enumerate(chosen)]
    groups = [leaves[start : start + recipe.together] for start in range(0, len(leaves), recipe.together)]
    with StoreWriter(path, shapes) as store, counted(f"Training {name}", len(chosen)) as advance:
        for loras in pool.map(lambda group: train_loras(base, group, training, advance), groups):
            store.append(loras.layers())
        size = (len(chosen), len(modules))
        ceiling = glyphs.pictures[list(chosen)].mean(1)
        store.finish(name, modules, np.full(size, recipe.rank), np.ones(size, np.float32), labels, ceiling)
    zoo = open_store(path)
    if zoo is None:
        raise LorabenchError(f"{path} was changed while the zoo was written. Start again.")
    return zoo


def _labels(recipe: _Recipe, glyphs: Glyphs, chosen: tuple[int, ...]) -> Labels:
    categories = [glyphs.categories[i] for i in chosen]
    leaves = [f"U+{glyphs.code_points[i]:04X}" for i in chosen]
    names = [f"{category.lower().replace(' ', '_')}/{leaf}" for category, leaf in zip(categories, leaves, strict=True)]
    made = {
        "pictures": glyphs.pictures.shape[1],
        "steps": recipe.steps,
        "samples": recipe.steps * recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "shared_start": recipe.init == "shared",
    }
    columns = {key: np.full(len(chosen), value, np.float64) for key, value in made.items()}
    return Labels.of(names, categories, leaves, recipe=columns)


def _pretrained(recipe: _Recipe, glyphs: Glyphs, file: Path, pool: ThreadPoolExecutor) -> Base:
    base = _read_base(file)
    if base is None:
        pictures = glyph_model.patches(glyphs.pictures.reshape(-1, SIDE, SIDE))
        steps, batch = recipe.pretrain_steps, recipe.pretrain_batch
        with counted("Pretraining the glyph model", steps) as advance:
            base, _ = pool.submit(glyph_model.pretrain, pictures, steps, batch, recipe.seed, advance).result()
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
