"""The same adapters in another zoo: of the same names and modules, made in another way."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float32

from lorabench.errors import LorabenchError
from lorabench.zoo import Stack, Zoo

__all__ = ["called_beside", "check_counterpart", "check_other", "in_other"]


def check_other(other: object) -> None:
    """Whether `ablation.other` is a zoo, where it is anything.

    Raises:
        LorabenchError: it is something else.
    """
    if other is not None and not isinstance(other, Zoo):
        raise LorabenchError(f"ablation.other={other}: a zoo is needed, chosen by dataset@ablation.other=NAME")


def check_counterpart(zoo: Zoo, other: Zoo) -> None:
    """Whether a zoo can stand in for another: the layers, their sides, and the categories of adapters of one name.

    Raises:
        LorabenchError: it cannot.
    """
    lacking = [name for name in zoo.layers if name not in other.layers]
    if lacking or len(other.layers) > len(zoo.layers):
        name = lacking[0] if lacking else next(name for name in other.layers if name not in zoo.layers)
        raise LorabenchError(
            f"ablation.other: {other.name} and {zoo.name} have other layers, {name} for one; another zoo of the same "
            "modules is needed"
        )
    downs = {module.down for module in zoo.modules}
    for name, stack in zoo.layers.items():
        ours, theirs = stack.shape[1:], other.layers[name].shape[1:]
        side = 1 if name in downs else 0  # the one that is no rank
        if ours[side] != theirs[side] or any(theirs[i] > ours[i] for i in (0, 1)):
            raise LorabenchError(
                f"ablation.other: {name} is {list(theirs)} in {other.name} and {list(ours)} in {zoo.name}; a zoo of "
                "the same base model, and of no higher rank, is needed"
            )
    theirs_of, ours_of = (one.labels.of_adapters("category") for one in (other, zoo))
    differing = [name for name, category in ours_of.items() if theirs_of.get(name, category) != category]
    if differing:
        raise LorabenchError(
            f"ablation.other: {differing[0]} is of another category in {other.name} than in {zoo.name}"
        )
    if not set(theirs_of) & set(zoo.labels.adapters):
        raise LorabenchError(
            f"ablation.other: no adapter of {other.name} has the name of one of {zoo.name}, and names tell what is "
            "paired"
        )


def called_beside(zoo: Zoo, other: Zoo) -> str:
    """What tables of a zoo call the other one, which may have its name."""
    return f"another {other.name}" if other.name == zoo.name else other.name


def in_other(zoo: Zoo, rng: np.random.Generator, other: Zoo) -> Zoo:
    """The adapters of the same names in another zoo, padded to the zoo's ranks; labels stay the zoo's.

    Args:
        zoo: adapters, all of which the other zoo has (`check_counterpart`).
        rng: nothing is drawn.
        other: where they are looked up.
    """
    del rng
    place = {name: row for row, name in enumerate(other.labels.adapters)}
    there = other.rows(np.array([place[name] for name in zoo.labels.adapters], np.int64))
    columns = [there.module_index(module.name) for module in zoo.modules]
    layers = {
        name: Stack((_padded(there.read(name), stack.shape[1], stack.shape[2]),)) for name, stack in zoo.layers.items()
    }
    return replace(zoo, layers=layers, rank=there.rank[:, columns], scale=there.scale[:, columns])


def _padded(values: Float32[np.ndarray, "n r c"], rows: int, cols: int) -> Float32[np.ndarray, "n rows cols"]:
    return np.pad(values, ((0, 0), (0, rows - values.shape[1]), (0, cols - values.shape[2])))
