"""Whether an adapter is like those that a model was trained on at all, or of another make."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from lorabench.predict.character import TRAITS, Span, mean_traits, trait_text
from lorabench.predict.conformal import Held
from lorabench.representations.components import Basis, Rows, principal_components
from lorabench.training import Scaling

__all__ = ["Cloud", "Novelty"]

_COMPONENTS = 32
_MEMORY = 1e8
_LEAST = 1e-9
_OWN = ("absent", "usual", "level")


@dataclass(frozen=True)
class Cloud:
    """Training adapters in some space: how far another one is out within what they span, and beside it.

    With z = (x - μ)/σ and the leading directions of the training rows: Hotelling's T², Mahalanobis' distance within
    the directions, and Q, the squared length of what lies beside them (Jackson & Mudholkar 1979). No two rows are
    compared, so no training adapter is kept.

    Attributes:
        scaling: μ and σ of the training rows.
        basis: directions of z and the variance along each.
    """

    scaling: Scaling
    basis: Basis

    @classmethod
    def of(cls, rows: Float[Tensor, "n f"]) -> "Cloud":
        """From the training rows."""
        scaling = Scaling.of(rows)
        wide = scaling.applied(rows)
        read = Rows(len(wide), (wide.shape[1],), lambda _, start, stop: wide[start:stop], torch.device("cpu"))
        return cls(scaling, principal_components(read, _COMPONENTS, _MEMORY, seed=0))

    def distances(self, rows: Float[Tensor, "n f"]) -> Float64[np.ndarray, "n 2"]:
        """Logarithms of T² and Q of every row."""
        wide = self.scaling.applied(rows) - self.basis.mean
        along = wide @ self.basis.directions.T
        within = (along.square() / self.basis.variance).sum(1)
        beside = (wide - along @ self.basis.directions).square().sum(1)
        found: Float64[np.ndarray, "n 2"] = torch.stack([within, beside], 1).clamp(min=_LEAST).log().numpy()
        return found

    def arrays(self, name: str) -> dict[str, Tensor]:
        """Its numbers, by names that begin with `name`."""
        return {f"{name}/shift": self.scaling.mean, f"{name}/scale": self.scaling.scale, **self.basis.arrays(name)}

    @classmethod
    def from_arrays(cls, name: str, arrays: Mapping[str, Tensor]) -> "Cloud":
        """From what `arrays` gave."""
        return cls(Scaling(arrays[f"{name}/shift"], arrays[f"{name}/scale"]), Basis.of(name, arrays))


@dataclass(frozen=True)
class Novelty:
    """A test of "it is one of these": the farthest of four distances, against adapters that trained nothing.

    T² and Q of the classifier's inputs, T² and Q of the traits of ΔW (`lorabench.predict.character`), each in the
    deviations of its logarithm over the validation adapters; the largest of the four is the score, and `held` has
    those of the test adapters. Since these had no part in anything before, one of their kind is taken for a stranger
    with the probability that was asked for, at most.

    Attributes:
        spans: where the training adapters read and write.
        inputs: the training adapters as the classifier sees them.
        traits: the same by the traits of ΔW, all modules side by side.
        absent: mean traits of the training adapters, which a module without a ΔW is taken to have.
        usual: traits of the training adapters in the mean over modules: mean and deviation, [2, traits].
        level: mean and deviation of the four distances over the validation adapters, [2, 4].
        held: the scores of the test adapters.
    """

    spans: dict[str, Span]
    inputs: Cloud
    traits: Cloud
    absent: Float64[np.ndarray, "modules traits"]
    usual: Float64[np.ndarray, "2 traits"]
    level: Float64[np.ndarray, "2 4"]
    held: Held

    @classmethod
    def of(
        cls,
        known: dict[str, Span],
        inputs: Float32[Tensor, "n f"],
        traits: Float64[np.ndarray, "n modules traits"],
        rows: tuple[np.ndarray, np.ndarray, np.ndarray],
        groups: np.ndarray,
    ) -> "Novelty":
        """From the inputs and traits of all adapters.

        Args:
            known: where the training adapters read and write.
            inputs: of the classifier.
            traits: of ΔW.
            rows: those to train on, to choose by, and to test by.
            groups: of the test rows.
        """
        train, val, test = rows
        absent = mean_traits(traits[train])
        filled = _filled(traits[train], absent)
        means = filled.mean(1)
        usual = np.stack([means.mean(0), means.std(0)])
        clouds = Cloud.of(inputs[train]), Cloud.of(_side_by_side(filled))
        level, none = np.stack([np.zeros(4), np.ones(4)]), Held.of(np.zeros(0), [])
        first = cls(known, *clouds, absent, usual, level, none)
        far = first.distances(inputs[val], traits[val])
        ready = replace(first, level=np.stack([far.mean(0), np.maximum(far.std(0), 1e-3)]))
        return replace(ready, held=Held.of(ready.scores(inputs[test], traits[test]), groups))

    def check(self, modules: int) -> None:
        """Refuse what `of` would not give of so many modules, such as a stranger's file may hold.

        Raises:
            ValueError: an array has another shape, or a number is none.
        """
        self.held.check()
        wanted = {"absent": (modules, len(TRAITS)), "usual": (2, len(TRAITS)), "level": (2, 4)}
        for name, shape in wanted.items():
            values = getattr(self, name)
            if values.shape != shape or not np.isfinite(values).all():
                raise ValueError(f"novelty/{name} is {list(values.shape)}, and {list(shape)} numbers are needed")

    def distances(
        self, inputs: Float[Tensor, "n f"], traits: Float[np.ndarray, "n modules traits"]
    ) -> Float64[np.ndarray, "n 4"]:
        """The four, in the deviations of the validation adapters."""
        filled = _side_by_side(_filled(traits, self.absent))
        found = np.concatenate([self.inputs.distances(inputs), self.traits.distances(filled)], 1)
        scaled: Float64[np.ndarray, "n 4"] = (found - self.level[0]) / self.level[1]
        return scaled

    def scores(
        self, inputs: Float[Tensor, "n f"], traits: Float[np.ndarray, "n modules traits"]
    ) -> Float64[np.ndarray, " n"]:
        """The largest of the four."""
        found: Float64[np.ndarray, " n"] = self.distances(inputs, traits).max(1)
        return found

    def reason(self, distances: Float[np.ndarray, " 4"], traits: Float[np.ndarray, "modules traits"]) -> str:
        """In words, in what an adapter is farthest out."""
        number = int(np.argmax(distances))
        if number < 2:
            where = "farther out than theirs" if number == 0 else "beside all that theirs span"
            return f"unlike the training adapters: its features lie {where}"
        own = _filled(traits, self.absent).mean(0)
        return f"of another make than the training adapters: {trait_text(own, *self.usual)}"

    def arrays(self) -> dict[str, Tensor]:
        """All its numbers by name."""
        spans = {
            f"novelty/span/{n}/{side}": one for n, span in self.spans.items() for side, one in span._asdict().items()
        }
        found = {**spans, **self.inputs.arrays("novelty/inputs"), **self.traits.arrays("novelty/traits")}
        own = {name: getattr(self, name) for name in _OWN} | vars(self.held)
        return found | {f"novelty/{name}": torch.from_numpy(values) for name, values in own.items()}

    @classmethod
    def from_arrays(cls, modules: list[str], arrays: Mapping[str, Tensor]) -> "Novelty":
        """From what `arrays` gave."""
        known = {n: Span(*(arrays[f"novelty/span/{n}/{side}"].double() for side in Span._fields)) for n in modules}
        inputs, traits = (Cloud.from_arrays(f"novelty/{name}", arrays) for name in ("inputs", "traits"))
        own = {name: arrays[f"novelty/{name}"].numpy() for name in _OWN}
        held = Held(arrays["novelty/scores"].numpy(), arrays["novelty/weights"].numpy())
        return cls(known, inputs, traits, **own, held=held)


def _filled(
    traits: Float[np.ndarray, "*n modules traits"], absent: Float64[np.ndarray, "modules traits"]
) -> Float64[np.ndarray, "*n modules traits"]:
    """A module without a ΔW, which has no traits, has those that the training adapters have there in the mean."""
    return np.where(np.isnan(traits), absent, traits)


def _side_by_side(traits: Float64[np.ndarray, "n modules traits"]) -> Float64[Tensor, "n f"]:
    return torch.from_numpy(traits).flatten(1)
