"""Principal components: of every layer's weights in one adapter, and of ΔW between several adapters."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.merging.aligning import file_labels
from lorabench.adapters.reading.naming import layer_names
from lorabench.errors import LorabenchError
from lorabench.lowrank import inner_product
from lorabench.progress import track

__all__ = ["AdaptersPCA", "LayerPCA", "LayerVariances", "each_layer", "pca", "pca_across"]

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class _Variances:
    """What both kinds of analysis have in common.

    Attributes:
        explained_variance_ratio: [k], share of the total variance, descending.
        singular_values: [k], of the centred (and standardised) samples.
        total_variance: sum over all features, with n − 1 below; None where there is a `reason`.
        reason: why there are no components; "" where there are.
    """

    explained_variance_ratio: Float64[np.ndarray, " k"]
    singular_values: Float64[np.ndarray, " k"]
    total_variance: float | None
    reason: str

    @property
    def n_components(self) -> int:
        """k; 0 where there is a `reason`."""
        return int(self.singular_values.shape[0])

    @property
    def cumulative(self) -> Float64[np.ndarray, " k"]:
        """[k], share of the total variance that the first 1, 2, ... components explain."""
        shares: Float64[np.ndarray, " k"] = np.cumsum(self.explained_variance_ratio)
        return shares

    def enough(self, share: float = 0.9) -> int | None:
        """The fewest components that explain this share of the variance; None where those kept do not.

        Args:
            share: in (0, 1].
        """
        reached = np.flatnonzero(self.cumulative >= share * (1 - 1e-12))
        return int(reached[0]) + 1 if len(reached) else None


@dataclass(frozen=True)
class LayerVariances(_Variances):
    """The variances of one layer's components; a factor's rows are the samples.

    Attributes:
        layer: `<module>.lora.down.weight` ([r, d_in]: r samples) or `.up.weight` ([d_out, r]: d_out samples).
        samples: rows of the factor.
        features: columns of the factor.
        constant: how many features have one value alone; they are 0 after centring and are not scaled.
    """

    layer: str
    samples: int
    features: int
    constant: int


@dataclass(frozen=True)
class LayerPCA(LayerVariances):
    """Principal components of one layer.

    Attributes:
        components: [k, features], orthonormal rows.
        transformed: [samples, k], the samples in the components' coordinates.
    """

    components: Float64[np.ndarray, "k features"]
    transformed: Float64[np.ndarray, "samples k"]

    def variances(self) -> LayerVariances:
        """The same without components and samples, which need as much memory as the layer."""
        return LayerVariances(**{field.name: getattr(self, field.name) for field in fields(LayerVariances)})


@dataclass(frozen=True)
class AdaptersPCA(_Variances):
    """Principal components of one module's ΔW between adapters.

    Attributes:
        module: canonical name.
        adapters: a short name of every file.
        scores: [n, k], the adapters in the components' coordinates, in units of ‖ΔW‖_F; row distances are the
            distances ‖ΔW_i − ΔW_j‖_F. [n, 0] where there is a `reason`.
    """

    module: str
    adapters: tuple[str, ...]
    scores: Float64[np.ndarray, "n k"]


def pca(
    adapter: Adapter, *, n_components: int | None = None, standardise: bool = True, layers: str | None = None
) -> dict[str, LayerPCA]:
    """Principal components of every layer of an adapter, by scikit-learn (Pearson 1901).

    A factor's rows are samples x; components are the eigenvectors of the covariance of (x − mean)/std. Layers with
    one sample (a down of rank 1) or without any spread have a `reason` in place of numbers.

    Args:
        adapter: what `load` gives.
        n_components: the most to keep; at most samples − 1 and features exist.
        standardise: divide each feature by its standard deviation (constant ones stay 0).
        layers: a pattern such as "*attn2*" for layers' or modules' names; None for all.

    Returns:
        Layer name -> its components, in the adapter's order.

    Raises:
        LorabenchError: `n_components` is below 1, or no layer fits the pattern.

    Example:
        >>> from pathlib import Path
        >>> import torch
        >>> from lorabench.adapters.adapter import LoraModule
        >>> down, up = torch.randn(4, 9), torch.randn(6, 4)
        >>> found = pca(Adapter(Path("a"), (), {"q": LoraModule(down, up)}), n_components=2)
        >>> {name: len(layer.explained_variance_ratio) for name, layer in found.items()}
        {'q.lora.down.weight': 2, 'q.lora.up.weight': 2}
    """
    analyses = each_layer(adapter, n_components=n_components, standardise=standardise, layers=layers)
    return {analysis.layer: analysis for analysis in analyses}


def each_layer(
    adapter: Adapter, *, n_components: int | None = None, standardise: bool = True, layers: str | None = None
) -> Iterator[LayerPCA]:
    """As `pca`, one layer at a time: components of a large adapter need as much memory as the adapter does."""
    if n_components is not None and n_components < 1:
        raise LorabenchError(f"n_components={n_components}: give 1 or more, or None for all.")
    wanted = [
        (name, layer, part)
        for name in adapter.modules
        for layer, part in zip(layer_names(name), ("down", "up"), strict=True)
        if layers is None or fnmatchcase(layer, layers) or fnmatchcase(name, layers)
    ]
    if not wanted:
        raise LorabenchError(_no_match(adapter, layers))
    for name, layer, part in track(wanted, "Principal components"):
        module = adapter.modules[name]
        factor = module.down if part == "down" else module.up
        yield _of_layer(layer, factor.double().numpy(), n_components, standardise)


def pca_across(adapters: Sequence[Adapter], *, modules: str | None = None) -> dict[str, AdaptersPCA]:
    """Principal components of each module's ΔW between adapters, from inner products alone.

    With G_ij = ⟨ΔW_i, ΔW_j⟩ and J = I − 11ᵀ/n, the eigenvalues λ of J·G·J are the squared singular values of the
    centred rows vec(ΔW_i), and the scores are V·√λ (Gower 1966). No ΔW is formed; ranks may differ.

    Args:
        adapters: two or more.
        modules: a pattern for modules' names; None for all.

    Returns:
        Module name -> components; modules that not all adapters have, or in different shapes, or that are all
        equal, have a `reason` in place of numbers.

    Raises:
        LorabenchError: fewer than two adapters, no module fits the pattern, or none of these is in all of them in
            one shape.

    Example:
        >>> from pathlib import Path
        >>> import torch
        >>> from lorabench.adapters.adapter import LoraModule
        >>> a = Adapter(Path("a"), (), {"q": LoraModule(torch.eye(2, 5), torch.eye(4, 2))})
        >>> b = Adapter(Path("b"), (), {"q": LoraModule(torch.eye(2, 5), torch.eye(4, 2), scale=3.0)})
        >>> pca_across([a, b])["q"].explained_variance_ratio.round(6).tolist()
        [1.0]
    """
    if len(adapters) < 2:
        raise LorabenchError(f"{len(adapters)} adapter given: a comparison between adapters needs two or more files.")
    labels = file_labels([adapter.path for adapter in adapters])
    names = list(dict.fromkeys(name for adapter in adapters for name in adapter.modules))
    wanted = [name for name in names if modules is None or fnmatchcase(name, modules)]
    if not wanted:
        raise LorabenchError(_no_match(adapters[0], modules))
    across = {name: [adapter.modules.get(name) for adapter in adapters] for name in wanted}
    if not any(_alike(members) for members in across.values()):
        raise LorabenchError(_nothing_shared(labels, adapters, wanted))
    modules_of = track(across.items(), "Principal components")
    return {name: _of_module(name, labels, members) for name, members in modules_of}


def _no_match(adapter: Adapter, pattern: str | None) -> str:
    if pattern is None:
        return f"{adapter.path}: no module in it. Give an adapter with LoRA factors."
    some = ", ".join(list(adapter.modules)[:3])
    return (
        f"{adapter.path}: no module or layer fits {pattern!r}. Its {len(adapter.modules)} modules are called "
        f'{some}, ...; a pattern has stars: "*{next(iter(adapter.modules), "").rpartition(".")[2]}*".'
    )


def _nothing_shared(labels: Sequence[str], adapters: Sequence[Adapter], wanted: Sequence[str]) -> str:
    firsts = [next((name for name in wanted if name in adapter.modules), "none") for adapter in adapters]
    named = "; ".join(f"{label}: {first}" for label, first in list(zip(labels, firsts, strict=True))[:4])
    return (
        f"no module is in all {len(adapters)} adapters in the same shape, so nothing is there to analyse. "
        f"The first of each: {named}. Give adapters of one base model."
    )


def _of_layer(
    layer: str, values: Float64[np.ndarray, "samples features"], n_components: int | None, standardise: bool
) -> LayerPCA:
    from sklearn.decomposition import PCA  # a second to import, and only this needs it

    samples, features = values.shape
    varies = values.max(axis=0) > values.min(axis=0)
    constant = features - int(varies.sum())
    reason = _why_not(values, constant)
    if reason:
        nothing = np.zeros(0)
        empty = np.zeros((0, features)), np.zeros((samples, 0))
        return LayerPCA(nothing, nothing, None, reason, layer, samples, features, constant, *empty)
    # A constant column's mean may be off by rounding, and must not become variance.
    centred = np.where(varies, values - values.mean(axis=0), 0.0)
    if standardise:
        centred /= np.where(varies, centred.std(axis=0), 1.0)
    most = min(samples - 1, features)
    fitted = PCA(n_components=min(n_components or most, most), svd_solver="full")
    transformed = fitted.fit_transform(centred)
    total = float(centred.var(axis=0, ddof=1).sum())
    return LayerPCA(
        explained_variance_ratio=fitted.explained_variance_ratio_,
        singular_values=fitted.singular_values_,
        total_variance=total,
        reason="",
        layer=layer,
        samples=samples,
        features=features,
        constant=constant,
        components=fitted.components_,
        transformed=transformed,
    )


def _why_not(values: Float64[np.ndarray, "samples features"], constant: int) -> str:
    if not values.any():
        return "untrained: every weight is 0"
    if len(values) == 1:
        return "one sample alone (rank 1): nothing varies"
    if constant == values.shape[1]:
        return f"constant: all {len(values)} samples are equal"
    return ""


def _of_module(name: str, labels: tuple[str, ...], across: Sequence[LoraModule | None]) -> AdaptersPCA:
    members = [module for module in across if module is not None]
    absent = [label for label, module in zip(labels, across, strict=True) if module is None]
    if absent:
        return _without(name, labels, f"not in {', '.join(absent)}")
    if not _alike(members):
        shapes = ", ".join(
            f"{label} {'×'.join(map(str, module.shape))}" for label, module in zip(labels, members, strict=True)
        )
        return _without(name, labels, f"shapes differ: {shapes}")
    gram = _gram(members)
    if not gram.diagonal().any():
        return _without(name, labels, "untrained in every file: ΔW is 0")
    centre = np.eye(len(gram)) - 1 / len(gram)
    values, vectors = np.linalg.eigh(centre @ gram @ centre)
    # What centring leaves of equal matrices is rounding, in proportion to G before it.
    real = values > 16 * len(gram) * _EPS * gram.diagonal().max()
    values, vectors = values[real][::-1], vectors[:, real][:, ::-1]
    if not len(values):
        return _without(name, labels, "ΔW is the same in every file")
    scores = vectors * np.sqrt(values)
    scores = scores * np.sign(scores[np.abs(scores).argmax(axis=0), np.arange(len(values))])
    total = float(values.sum())
    return AdaptersPCA(values / total, np.sqrt(values), total / (len(gram) - 1), "", name, labels, scores)


def _alike(across: Sequence[LoraModule | None]) -> bool:
    """Whether every adapter has the module, in one shape."""
    members = [module for module in across if module is not None]
    spaces = {(module.shape, module.kernel, module.embedding) for module in members}
    return len(members) == len(across) and len(spaces) == 1


def _gram(members: Sequence[LoraModule]) -> Float64[np.ndarray, "n n"]:
    factors: list[tuple[Tensor, Tensor, float | int]] = [
        (module.down.double(), module.up.double(), module.scale) for module in members
    ]
    gram = torch.zeros(len(factors), len(factors), dtype=torch.float64)
    for i, first in enumerate(factors):
        for j, second in enumerate(factors[: i + 1]):
            gram[i, j] = gram[j, i] = inner_product(first, second)
    products: Float64[np.ndarray, "n n"] = gram.numpy()
    return products


def _without(name: str, labels: tuple[str, ...], reason: str) -> AdaptersPCA:
    return AdaptersPCA(np.zeros(0), np.zeros(0), None, reason, name, labels, np.zeros((len(labels), 0)))
