"""Whether members trained as one stack come out as each does by itself, on the device at hand."""

from collections.abc import Sequence

import torch

from lorabench.classifiers import Fitted, Member, Problem, as_it_is, fit_members
from lorabench.data import side_by_side
from lorabench.representations.stats import Stats
from tests.bench.measured import Measuring

__all__ = ["agreement"]


def agreement(evaluator: Measuring, layers: int, seeds: int) -> str:
    """Train `stats` of the last layers together, one by one, and (where that is a GPU) on the CPU; a sentence each."""
    problem = _problem(evaluator, layers, evaluator.device)
    members = [Member(seed, number) for number in range(layers) for seed in range(seeds)]
    together = fit_members(evaluator.factory, problem, members, as_it_is)
    alone = [fit_members(evaluator.factory, problem, [member], as_it_is)[0] for member in members]
    lines = [
        f"{layers} layers × {seeds} seeds as one stack of {len(members)}, against the same members one at a time: "
        + _differences(together, alone)
    ]
    if evaluator.device.type != "cpu":
        cpu = _problem(evaluator, layers, torch.device("cpu"))
        on_cpu = fit_members(evaluator.factory, cpu, members, as_it_is)
        lines.append(f"Against the same members on the CPU: {_differences(together, on_cpu)}")
    return " ".join(lines)


def _problem(evaluator: Measuring, layers: int, device: torch.device) -> Problem:
    zoo, split = evaluator.zoo, evaluator.split
    train, val = (torch.from_numpy(rows) for rows in (split.train, split.val))
    features = {layer: Stats().features(zoo, layer, device) for layer in list(zoo.layers)[-layers:]}
    inputs, columns = side_by_side(features, train, device)
    labels = torch.from_numpy(evaluator.labels)[None].to(device)
    return Problem(inputs, labels, train.to(device), val.to(device), evaluator.n_classes, tuple(columns.values()))


def _differences(first: Sequence[Fitted], second: Sequence[Fitted]) -> str:
    pairs = list(zip(first, second, strict=True))
    largest = max(float((a.logits - b.logits).abs().max()) for a, b in pairs)
    equal = sum(int((a.logits.argmax(-1) == b.logits.argmax(-1)).sum()) for a, b in pairs)
    count = sum(len(a.logits) for a, _ in pairs)
    epochs = sum(a.best_epoch == b.best_epoch for a, b in pairs)
    return (
        f"logits differ by {largest:.1e} at most, {100 * equal / count:.2f} % of the predictions are equal, and "
        f"{epochs} of {len(pairs)} best epochs."
    )
