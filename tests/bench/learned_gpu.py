"""The three learned representations: every layer of a zoo by itself, and one autoencoder of all layers together."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorabench.errors import LorabenchError
from lorabench.representations.contrastive import Contrastive
from lorabench.representations.denoising import Denoising
from lorabench.representations.learned import Learned
from lorabench.representations.vae import VAE
from lorabench.zoo import Zoo
from lorabench.zoo.splits import split_zoo

__all__ = ["LEARNED", "SECONDS_OF_EACH", "Trained", "learned_block", "measure"]

LEARNED: dict[str, Callable[..., Learned]] = {"vae": VAE, "denoising": Denoising, "contrastive": Contrastive}
"""With the values of their yaml (a test compares)."""
SECONDS_OF_EACH = 180
_COMPARED, _EPOCHS_COMPARED = 3, 5  # units and epochs of the comparison


@dataclass(frozen=True)
class Trained:
    """What one representation took.

    Attributes:
        name: of the representation, and what is not by default.
        training: seconds for all autoencoders, their data included.
        features: seconds for the features of all adapters.
        units: how many autoencoders were trained.
        stacks: in how many stacks.
        epochs: theirs together.
        peak: bytes that tensors took of a GPU at most; 0 on a CPU.
        error: why it came to nothing, or None.
    """

    name: str
    training: float
    features: float
    units: int
    stacks: int
    epochs: int
    peak: int
    error: str | None = None

    def as_row(self, goal: str) -> str:
        """A row of a Markdown table."""
        title = f"{self.name} ({self.error})" if self.error else self.name
        peak = f"{self.peak / 1e9:.1f}" if self.peak else ""
        return (
            f"| {title} | {self.training:.1f} | {self.features:.2f} | {self.units} | {self.stacks} | {self.epochs:,} "
            f"| {peak} | {goal} |"
        )


def learned_block(zoo: Zoo, device: torch.device, epochs: int, full: bool, said: Callable[[str], None]) -> str:
    """All measurements as Markdown.

    Args:
        zoo: training rows and others.
        device: where to train.
        epochs: at most, of every autoencoder.
        full: whether the goal is for this zoo.
        said: is told of every measurement.
    """
    plans: list[tuple[str, str, dict[str, object], bool]] = [(name, name, {}, full) for name in LEARNED]
    plans += [(f"{name}, no early stop", name, {"patience": epochs}, full) for name in LEARNED]
    plans += [("vae, scope=all", "vae", {"scope": "all"}, False)]
    rows = []
    for title, name, options, aims in plans:
        found = measure(title, LEARNED[name](epochs=epochs, **options), zoo, device)
        rows.append(found.as_row(f"{SECONDS_OF_EACH} s" if aims else ""))
        said(f"{title}: {found.training:.1f} s")
    head = [
        f"Learned representations, {len(_training_rows(zoo))} training rows, at most {epochs} epochs:",
        "",
        "| autoencoders | training, s | features, s | units | stacks | unit-epochs | peak, GB | goal: at most |",
        "|---|---|---|---|---|---|---|---|",
    ]
    same = " ".join(_agreement(name, zoo, device) for name in LEARNED)
    return "\n".join([*head, *rows, "", same])


def measure(title: str, representation: Learned, zoo: Zoo, device: torch.device) -> Trained:
    """Train on a zoo's training rows and compute the features of all its adapters."""
    known = _training_rows(zoo)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    units = representation.units(known)
    stacks = len(representation._chunks(known, units, device))
    error, start = None, time.perf_counter()
    try:
        representation.fit(known, device)
        _wait(device)
    except (LorabenchError, torch.OutOfMemoryError) as raised:
        error = str(raised)
    between = time.perf_counter()
    if error is None:
        representation.transform(zoo, device)
    after = time.perf_counter()
    fitted = representation.fitted_
    return Trained(
        name=title,
        training=between - start,
        features=after - between,
        units=len(fitted),
        stacks=stacks,
        epochs=sum(len(one.notes["history"]) for one in fitted.values()),
        peak=torch.cuda.max_memory_allocated() if on_gpu else 0,
        error=error,
    )


def _agreement(name: str, zoo: Zoo, device: torch.device) -> str:
    """How far the features of a few units are from those of the same units trained one by one, and on the CPU."""
    known = _training_rows(zoo)
    representation = LEARNED[name](epochs=_EPOCHS_COMPARED)
    units = _alike(zoo)
    together = _features(representation, known, [units], device)
    alone = _features(representation, known, [[unit] for unit in units], device)
    text = f"{len(units)} units of `{name}` as one stack, {_EPOCHS_COMPARED} epochs: features differ from those of the "
    text += f"same units one by one by {_difference(together, alone):.1e} of the largest at most"
    if device.type != "cpu":
        cpu = _features(representation, known, [[unit] for unit in units], torch.device("cpu"))
        text += f", and from those of the same on the CPU by {_difference(together, cpu):.1e}"
    return f"{text}."


def _alike(zoo: Zoo) -> list[str]:
    """A few layers of the shape that most have."""
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for layer, stack in zoo.layers.items():
        by_shape.setdefault(stack.shape[1:], []).append(layer)
    return max(by_shape.values(), key=len)[:_COMPARED]


def _features(
    representation: Learned, zoo: Zoo, stacks: Sequence[Sequence[str]], device: torch.device
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for units in stacks:
        for unit, fitted in representation._train(zoo, units, device, threading.Event()).items():
            module = fitted.on(representation.kind(), device)
            with torch.no_grad():
                found[unit] = module(torch.from_numpy(zoo.read(unit).copy()).flatten(1).to(device)).cpu()
    return found


def _difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max(float((first[unit] - second[unit]).abs().max() / second[unit].abs().max()) for unit in first)


def _training_rows(zoo: Zoo) -> Zoo:
    return zoo.rows(split_zoo(zoo.labels).train)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
