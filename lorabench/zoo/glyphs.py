"""The embedded zoo: LoRA adapters, each trained here to draw one glyph; the category is the glyph's Unicode block."""

import contextlib
import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from lorabench.options import AtLeast, AtMost, OneOf, check_arguments
from lorabench.zoo import glyph_model
from lorabench.zoo.glyph_base import (
    MODULES_OF_ZOO,
    KeepSteps,
    check_keep_steps,
    glyph_labels,
    layer_shapes,
    made_once,
    pretrained,
    step_paths,
    store_path,
)
from lorabench.zoo.glyph_model import WIDTH, Leaf, Training, train_loras
from lorabench.zoo.glyph_pictures import CATEGORIES, Glyphs, draw_glyphs
from lorabench.zoo.labels import Labels
from lorabench.zoo.making import Count, Init, OwnSeed, Rate, Seed, counted, own_seed
from lorabench.zoo.store import StoreWriter, Zoo

__all__ = ["load"]

Categories = Annotated[str, OneOf(CATEGORIES)]
Rank = Annotated[int, AtLeast(1), AtMost(WIDTH)]


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
    training_seed: OwnSeed
    base_seed: OwnSeed

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
    keep_steps: KeepSteps = None,
    training_seed: OwnSeed = None,
    base_seed: OwnSeed = None,
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
        pretrain_steps: steps of Adam for the base model, which all zoos of the same seeds, categories and styles share.
        pretrain_batch: pictures a step of pretraining.
        steps: steps of Adam for an adapter.
        learning_rate: of Adam for the adapters.
        batch_size: pictures a step for an adapter.
        together: adapters trained at once; changes speed and rounding alone.
        seed: of everything that is drawn, but for what a seed of its own draws.
        cache_dir: where the zoo and its base model are kept.
        keep_steps: steps of training after which the adapters are kept too (`Zoo.checkpoints`); None for none.
        training_seed: of start, batches and noise of the adapters; None: `seed`.
        base_seed: of the base model, start and pretraining; None: `seed`.

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
        training_seed,
        base_seed,
    )
    kept = tuple(step for step in check_keep_steps(keep_steps, steps) if step < steps)
    path = store_path(name, cache_dir, __file__, (recipe, kept))
    return made_once(path, kept, recipe, functools.partial(_build, name, recipe, kept, path))


def _build(
    name: str, recipe: _Recipe, kept: tuple[int, ...], path: Path, base_file: Path, workers: ThreadPoolExecutor
) -> None:
    glyphs = draw_glyphs(recipe.categories, recipe.styles, recipe.seed)
    base = pretrained(recipe, glyphs, base_file, workers)
    chosen = glyphs.sample(recipe.per_category, recipe.seed)
    seed = own_seed(recipe.seed, recipe.training_seed)
    training = Training(
        recipe.rank, recipe.init == "shared", recipe.steps, recipe.learning_rate, recipe.batch_size, seed, kept
    )
    # The last step comes last: where its store is, all are.
    labels = {step: _labels(recipe, step, glyphs, chosen) for step in (*kept, recipe.steps)}
    names = labels[recipe.steps].adapters
    leaves = [Leaf(names[i], glyph_model.patches(glyphs.pictures[leaf])) for i, leaf in enumerate(chosen)]
    groups = [leaves[start : start + recipe.together] for start in range(0, len(leaves), recipe.together)]
    size, ceiling = (len(chosen), len(MODULES_OF_ZOO)), glyphs.pictures[list(chosen)].mean(1)
    with contextlib.ExitStack() as opened, counted(f"Training {name}", len(chosen)) as advance:
        stores = {
            step: opened.enter_context(StoreWriter(place, layer_shapes(recipe.rank)))
            for step, place in (step_paths(path, kept) | {recipe.steps: path}).items()
        }
        for loras in workers.map(lambda group: train_loras(base, group, training, advance), groups):
            for step, store in stores.items():
                store.append(loras.earlier.get(step, loras).layers())
        for step, store in stores.items():
            rank, scale = np.full(size, recipe.rank), np.ones(size, np.float32)
            store.finish(name, MODULES_OF_ZOO, rank, scale, labels[step], ceiling)


def _labels(recipe: _Recipe, steps: int, glyphs: Glyphs, chosen: tuple[int, ...]) -> Labels:
    made = {
        "pictures": glyphs.pictures.shape[1],
        "steps": steps,
        "samples": steps * recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "shared_start": recipe.init == "shared",
    }
    columns = {key: np.full(len(chosen), value, np.float64) for key, value in made.items()}
    return glyph_labels(glyphs, chosen, columns)
