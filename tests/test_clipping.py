"""Standardised features do not go beyond ten deviations, by training rows alone."""

import numpy as np
import torch

from lorabench.data import CLIP, side_by_side


def test_features_are_standardised_by_training_rows_and_clipped():
    rng = np.random.default_rng(0)
    values = {"a": rng.standard_normal((60, 3)), "b": rng.standard_cauchy((60, 2)) * 40 + 7}
    values["a"][50] = [1e4, -1e5, 0.1]
    train = np.arange(40)
    inputs, columns = side_by_side(
        {name: torch.from_numpy(one).float() for name, one in values.items()},
        torch.from_numpy(train),
        torch.device("cpu"),
    )
    for name, one in values.items():
        plain = (one - one[train].mean(0)) / one[train].std(0)
        np.testing.assert_allclose(inputs[:, columns[name]].numpy(), np.clip(plain, -CLIP, CLIP), rtol=1e-4, atol=1e-4)
    assert inputs[50, 0] == CLIP == 10
    assert inputs[50, 1] == -CLIP
