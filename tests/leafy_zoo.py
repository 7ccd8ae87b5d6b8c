"""A planted zoo whose leaves have several adapters each, and a model of it."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lorabench.classifiers import ClassifierFactory
from lorabench.classifiers.linear import Linear
from lorabench.engines import Stacked
from lorabench.evaluation import Evaluator
from lorabench.export.making import calibrated
from lorabench.predict.model import Model
from lorabench.representations import Representation
from lorabench.zoo import Labels, Module, Stack, Zoo
from lorabench.zoo.splits import Split, split_zoo

CPU = torch.device("cpu")
CLASSES = ("ant", "bee", "cow")
STORY = {"dataset": "leafy", "fingerprint": "f", "representation": "mine"}
SIZE, RANK, MODULES = 10, 2, 3


def leafy_zoo(leaves: int, base: int = 0, draw: int = 0, each: int = 2, signal: float = 1.0) -> Zoo:
    """`leaves` leaves of `each` adapters; leaf l is of class l % 3.

    All adapters of a base start from the same down, as trained ones do; a class and a leaf each shift up.

    Args:
        leaves: how many.
        base: whose down, and whose directions of the classes.
        draw: of leaves and noise.
        each: adapters a leaf.
        signal: how far the classes lie apart.
    """
    fixed, rng = np.random.default_rng([base, 1]), np.random.default_rng([base, draw, 2])
    leaf = np.repeat(np.arange(leaves), each)
    category, count = leaf % len(CLASSES), leaves * each
    layers, modules = {}, []
    for number in range(MODULES):
        name = f"unet.mid_block.attentions.{number}.to_q"
        module = Module(name, f"{name}.lora.down.weight", f"{name}.lora.up.weight")
        down = fixed.normal(size=(RANK, SIZE)) + 0.1 * rng.normal(size=(count, RANK, SIZE))
        towards = signal * fixed.normal(size=(len(CLASSES), SIZE, RANK))
        own = rng.normal(size=(leaves, SIZE, RANK))
        up = (
            fixed.normal(size=(SIZE, RANK)) + towards[category] + own[leaf] + 0.5 * rng.normal(size=(count, SIZE, RANK))
        )
        layers |= {module.down: Stack((down.astype(np.float32),)), module.up: Stack((up.astype(np.float32),))}
        modules.append(module)
    labels = Labels.of(
        [f"adapter{i}" for i in range(count)], [CLASSES[c] for c in category], [f"leaf{one:04d}" for one in leaf],
        [f"leaf{one:04d}" for one in leaf],
    )  # fmt: skip
    rank, scale = np.full((count, MODULES), RANK, np.int64), np.ones((count, MODULES), np.float32)
    return Zoo("leafy", layers, tuple(modules), rank, scale, labels, f"leafy-{base}-{draw}")


def split_of(zoo: Zoo) -> Split:
    """Half to train on, a tenth to choose by, the rest to calibrate."""
    return split_zoo(zoo.labels, train=0.5, val=0.1, test=0.4)


def model_of(
    zoo: Zoo,
    representation: Representation,
    cache: Path,
    epochs: int = 15,
    factory: ClassifierFactory | None = None,
    seeds: tuple[int, ...] = (0,),
) -> Model:
    """A model of a zoo, a linear one of one member unless something else is said."""
    split = split_of(zoo)
    evaluator = Evaluator(
        zoo=zoo, split=split, labels=zoo.labels.category, n_classes=len(CLASSES),
        factory=factory or functools.partial(Linear, max_epochs=epochs, learning_rate=0.05),
        engine=Stacked(device="cpu"), device=CPU, seeds=seeds, cache_dir=cache, resume=False,
    )  # fmt: skip
    representation.fit(zoo.rows(split.train), CPU)
    return calibrated(evaluator, "mine", representation, CLASSES, "category", STORY)


def one_adapter(zoo: Zoo, number: int) -> Zoo:
    """The zoo of one adapter."""
    return zoo.rows(np.array([number]))


def scaled(zoo: Zoo, factor: float) -> Zoo:
    """Every ΔW so many times as large."""
    return replace(zoo, scale=zoo.scale * np.float32(factor))
