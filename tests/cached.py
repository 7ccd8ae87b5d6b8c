"""All features of a representation, as tests compare them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lorabench.representations import Representation
from lorabench.representations.cache import features_as_they_come
from lorabench.zoo import Zoo


def cached_features(
    representation: Representation,
    zoo: Zoo,
    train_rows: np.ndarray,
    cache_dir: Path,
    device: torch.device,
    on_unit: Callable[[str], None] = lambda _: None,
    labels: np.ndarray | None = None,
) -> dict[str, Tensor]:
    """{unit: [N, f]} in the order of units; `on_unit` is called with each as it comes."""
    ready = {}
    for unit, features in features_as_they_come(representation, zoo, train_rows, cache_dir, device, labels):
        ready[unit] = features
        on_unit(unit)
    return {unit: ready[unit] for unit in representation.units(zoo)}
