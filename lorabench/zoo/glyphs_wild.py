"""The glyph zoo as adapters in the wild are: each draws a recipe of its own, which says nothing of its category."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64

from lorabench.options import Above, AtLeast, AtMost, Below, Filled, check_arguments
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
from lorabench.zoo.glyph_model import BLOCKS, MODULES, WIDTH, Base, Leaf, Loras, Training, train_loras
from lorabench.zoo.glyph_pictures import SIDE, draw_glyphs
from lorabench.zoo.glyphs import Categories
from lorabench.zoo.making import Count, Init, OwnSeed, Seed, counted, own_seed
from lorabench.zoo.store import StoreWriter, Zoo

__all__ = ["Drawn", "Wild", "load", "moved_pictures"]

Ranks = Annotated[list[int], AtLeast(1), AtMost(WIDTH), Filled()]
Rates = Annotated[list[float | int], Above(0), Filled()]
Counts = Annotated[list[int], AtLeast(1), Filled()]
Share = Annotated[float | int, AtLeast(0), Below(1)]
_MOVES = tuple((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1))
Images = Annotated[int, AtLeast(1), AtMost(len(_MOVES))]


@dataclass(frozen=True)
class Wild:
    """All that the adapters depend on, besides the code."""

    categories: Categories
    init: Init
    rank: Ranks
    per_category: Count
    styles: Count
    pretrain_steps: Count
    pretrain_batch: Count
    steps: Counts
    learning_rate: Rates
    batch_size: Count
    together: Count
    seed: Seed
    images: Images
    scale: Rates
    missing: Share
    training_seed: OwnSeed = None
    base_seed: OwnSeed = None

    def __post_init__(self) -> None:
        check_arguments(Wild, vars(self), "dataset.")

    @property
    def own_seed(self) -> int:
        """Of what is drawn for each adapter: its recipe, pictures, start, batches and noise."""
        return own_seed(self.seed, self.training_seed)


def load(name: str, cache_dir: str | Path, keep_steps: KeepSteps = None, **recipe: Any) -> Zoo:
    """The wild glyph zoo: trained on the first call, memory-mapped from `cache_dir`/zoos afterwards.

    Base model, glyphs and modules are those of `lorabench.zoo.glyphs`. Every adapter draws, by a seed of its own that
    its category has no part in, its rank, learning rate, steps, scale (ΔW = scale · up · down, while it trains too),
    how many pictures it sees, and which modules it has; `labels.recipe` has all of it. Ranks are padded with zeros to
    the largest, and a module that is missing has rank 0 and no numbers.

    Args:
        name: how results call the zoo.
        cache_dir: where the zoo and its base model are kept.
        keep_steps: as in `glyphs.load`, up to the smallest of `steps`.
        recipe: what `glyphs.load` takes, of which rank, steps and learning_rate are lists to draw from; and

            - images: the most pictures of an adapter: it sees 1 to so many, no two alike;
            - scale: the scales to draw from;
            - missing: the share of modules that are missing, each drawn alone; one is always left;
            - training_seed: of each adapter's recipe, pictures, start, batches and noise; None: `seed`.

    Raises:
        LorabenchError: an argument is out of range, a category has no glyph in so many styles, or the disk is full.
    """
    wild = Wild(**recipe)
    kept = check_keep_steps(keep_steps, min(wild.steps))
    path = store_path(name, cache_dir, __file__, (wild, kept))
    return made_once(path, kept, wild, functools.partial(_build, name, wild, kept, path))


@dataclass(frozen=True)
class Drawn:
    """The recipes of all adapters, one entry each."""

    rank: Int64[np.ndarray, " n"]
    steps: Int64[np.ndarray, " n"]
    learning_rate: np.ndarray
    scale: np.ndarray
    images: Int64[np.ndarray, " n"]
    present: Bool[np.ndarray, "n modules"]

    @classmethod
    def of(cls, wild: Wild, names: tuple[str, ...]) -> "Drawn":
        """A draw an adapter, by the seed and its name."""
        rngs = [np.random.default_rng([wild.own_seed, *name.encode()]) for name in names]
        present = np.stack([rng.random(len(MODULES)) >= wild.missing for rng in rngs])
        left = np.array([rng.integers(len(MODULES)) for rng in rngs])
        present[np.arange(len(names)), left] |= ~present.any(1)
        return cls(
            rank=np.array([rng.choice(wild.rank) for rng in rngs]),
            steps=np.array([rng.choice(wild.steps) for rng in rngs]),
            learning_rate=np.array([rng.choice(wild.learning_rate) for rng in rngs], np.float64),
            scale=np.array([rng.choice(wild.scale) for rng in rngs], np.float64),
            images=np.array([1 + rng.integers(wild.images) for rng in rngs]),
            present=present,
        )

    def alike(self, together: int) -> list[Int64[np.ndarray, " _group"]]:
        """Adapters that can be trained at once: of the same rank, steps and learning rate."""
        keys = np.stack([self.rank, self.steps, self.learning_rate], 1)
        group = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
        found = [np.flatnonzero(group == number) for number in range(group.max() + 1)]
        return [rows[start : start + together] for rows in found for start in range(0, len(rows), together)]

    def columns(self, wild: Wild, steps: int | None = None) -> dict[str, np.ndarray]:
        """The recipe as the labels have it, after all steps or so many."""
        done = self.steps if steps is None else np.full(len(self.rank), steps)
        return {
            "images": self.images.astype(np.float64),
            "steps": done.astype(np.float64),
            "samples": (done * wild.batch_size).astype(np.float64),
            "learning_rate": self.learning_rate,
            "rank": self.rank.astype(np.float64),
            "scale": self.scale,
            "modules": self.present.sum(1).astype(np.float64),
            "shared_start": np.full(len(self.rank), float(wild.init == "shared")),
        }


def moved_pictures(
    styles: Float32[np.ndarray, "styles 24 24"], count: int, rng: np.random.Generator
) -> Float32[np.ndarray, "count 24 24"]:
    """`count` pictures of one glyph, no two alike: its styles in turn, each moved by at most a pixel a side.

    Many glyphs look the same in all fonts; no two pictures are moved alike, so that their number is what it says.

    Args:
        styles: the glyph in every style, -1 is paper.
        count: at most nine.
        rng: of the order of styles and of the moves.
    """
    order, moves = rng.permutation(len(styles)), rng.permutation(len(_MOVES))[:count]
    found = np.full((count, SIDE, SIDE), -1, np.float32)
    wide = np.pad(styles, ((0, 0), (1, 1), (1, 1)), constant_values=-1)
    for number, move in enumerate(moves):
        down, right = 1 + _MOVES[move][0], 1 + _MOVES[move][1]
        found[number] = wide[order[number % len(styles)], down : down + SIDE, right : right + SIDE]
    return found


def _build(
    name: str, wild: Wild, kept: tuple[int, ...], path: Path, base_file: Path, workers: ThreadPoolExecutor
) -> None:
    glyphs = draw_glyphs(wild.categories, wild.styles, wild.seed)
    base = pretrained(wild, glyphs, base_file, workers)
    chosen = glyphs.sample(wild.per_category, wild.seed)
    names = glyph_labels(glyphs, chosen, {}).adapters
    drawn = Drawn.of(wild, names)
    pictures = [
        moved_pictures(glyphs.pictures[leaf], int(count), np.random.default_rng([wild.own_seed, 1, *of.encode()]))
        for leaf, count, of in zip(chosen, drawn.images, names, strict=True)
    ]
    leaves = [Leaf(of, glyph_model.patches(own)) for of, own in zip(names, pictures, strict=True)]
    groups = drawn.alike(wild.together)
    with counted(f"Training {name}", len(chosen)) as advance:
        trained = list(workers.map(lambda rows: _train(base, leaves, wild, kept, drawn, rows, advance), groups))
    width, ceiling = max(wild.rank), np.stack([one.mean(0) for one in pictures])
    # The last step comes last: where its store is, all are.
    for step, place in [*step_paths(path, kept).items(), (None, path)]:
        labels = glyph_labels(glyphs, chosen, drawn.columns(wild, step))
        own = [one if step is None else one.earlier.get(step, one) for one in trained]
        with StoreWriter(place, layer_shapes(width)) as store:
            store.append(_layers(drawn, width, groups, own))
            rank, scale = drawn.present * drawn.rank[:, None], np.where(drawn.present, drawn.scale[:, None], 1)
            store.finish(name, MODULES_OF_ZOO, rank, scale.astype(np.float32), labels, ceiling)


def _train(
    base: Base,
    leaves: Sequence[Leaf],
    wild: Wild,
    kept: tuple[int, ...],
    drawn: Drawn,
    rows: Int64[np.ndarray, " group"],
    advance: Callable[[float], None],
) -> Loras:
    """The adapters of a group; what is missing is scaled to nothing."""
    rank, steps, rate = int(drawn.rank[rows[0]]), int(drawn.steps[rows[0]]), float(drawn.learning_rate[rows[0]])
    training = Training(rank, wild.init == "shared", steps, rate, wild.batch_size, wild.own_seed, kept)
    scale = torch.from_numpy((drawn.present[rows] * drawn.scale[rows, None]).astype(np.float32))
    by_place = scale.reshape(len(rows), BLOCKS, -1).transpose(0, 1).contiguous()
    return train_loras(base, [leaves[row] for row in rows], training, advance, by_place)


def _layers(
    drawn: Drawn, width: int, groups: Sequence[Int64[np.ndarray, " _group"]], trained: Sequence[Loras]
) -> dict[str, Float32[np.ndarray, "n rows cols"]]:
    """Every layer of all adapters in the order of their labels, padded; a missing module's is zero."""
    found = {layer: np.zeros((len(drawn.rank), *shape), np.float32) for layer, shape in layer_shapes(width).items()}
    for rows, loras in zip(groups, trained, strict=True):
        own, rank = loras.layers(), loras.down.shape[-2]
        for number, module in enumerate(MODULES_OF_ZOO):
            there = drawn.present[rows, number]
            found[module.down][rows[there], :rank] = own[module.down][there]
            found[module.up][rows[there], :, :rank] = own[module.up][there]
    return found
