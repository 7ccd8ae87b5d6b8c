"""Whether an adapter is like those that a model was trained on at all, or of another make."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from lorabench.predict.character import Span, mean_traits, trait_text
from lorabench.predict.conformal import Held
from lorabench.representations.components import Basis, Rows, principal_components
from lorabench.training import Scaling

__all__ = ["Cloud", "Novelty"]

_COMPONENTS = 32
_MEMORY = 1e8
_LEAST = 1e-9


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
        usual: traits of the training adapters in the mean over modules: mean and deviation, [2, traits].
        level: mean and deviation of the four distances over the validation adapters, [2, 4].
        held: the scores of the test adapters.
    """

    spans: dict[str, Span]
    inputs: Cloud
    traits: Cloud
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
        means = mean_traits(traits[train])
        usual = np.stack([np.nanmean(means, 0), np.nanstd(means, 0)])
        clouds = Cloud.of(inputs[train]), Cloud.of(_filled(traits[train], usual[0]))
        first = cls(known, *clouds, usual, np.stack([np.zeros(4), np.ones(4)]), Held.of(np.zeros(0), []))
        far = first.distances(inputs[val], traits[val])
        level = np.stack([far.mean(0), np.maximum(far.std(0), 1e-3)])
        ready = cls(known, *clouds, usual, level, first.held)
        return cls(known, *clouds, usual, level, Held.of(ready.scores(inputs[test], traits[test]), groups))

    def distances(
        self, inputs: Float[Tensor, "n f"], traits: Float[np.ndarray, "n modules traits"]
    ) -> Float64[np.ndarray, "n 4"]:
        """The four, in the deviations of the validation adapters."""
        filled = _filled(traits, self.usual[0])
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
        return f"of another make than the training adapters: {trait_text(mean_traits(traits[None])[0], *self.usual)}"

    def arrays(self) -> dict[str, Tensor]:
        """All its numbers by name."""
        spans = {
            f"novelty/span/{n}/{side}": one for n, span in self.spans.items() for side, one in span._asdict().items()
        }
        found = {**spans, **self.inputs.arrays("novelty/inputs"), **self.traits.arrays("novelty/traits")}
        own = {"usual": self.usual, "level": self.level, "scores": self.held.scores, "weights": self.held.weights}
        return found | {f"novelty/{name}": torch.from_numpy(values) for name, values in own.items()}

    @classmethod
    def from_arrays(cls, modules: list[str], arrays: Mapping[str, Tensor]) -> "Novelty":
        """From what `arrays` gave."""
        known = {n: Span(*(arrays[f"novelty/span/{n}/{side}"].double() for side in Span._fields)) for n in modules}
        inputs, traits = (Cloud.from_arrays(f"novelty/{name}", arrays) for name in ("inputs", "traits"))
        usual, level, scores, weights = (
            arrays[f"novelty/{name}"].numpy() for name in ("usual", "level", "scores", "weights")
        )
        return cls(known, inputs, traits, usual, level, Held(scores, weights))


def _filled(
    traits: Float[np.ndarray, "n modules traits"], usual: Float[np.ndarray, " traits"]
) -> Float64[Tensor, "n f"]:
    """Traits side by side; a module without a ΔW, which has none, has the training adapters' mean."""
    found: Float64[Tensor, "n f"] = torch.from_numpy(np.where(np.isnan(traits), usual, traits)).flatten(1)
    return found
