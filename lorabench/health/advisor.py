"""Which rank an adapter needs, read off its spectrum: one threshold over all modules, beside two baselines."""

import random
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from jaxtyping import Float64
from torch import Tensor

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.comparing.spectra import spectra
from lorabench.adapters.fusing import as_diffusers, family_of, sort_of_denoiser
from lorabench.adapters.layouts import written_layout
from lorabench.adapters.names.families import Family
from lorabench.adapters.names.identity import identity, joined, split_part
from lorabench.adapters.names.unet import clip_name
from lorabench.adapters.places import module_type
from lorabench.adapters.resizing.ranks import budget_ranks, energy_ranks
from lorabench.adapters.writing.configuration import configuration
from lorabench.adapters.writing.renaming import with_names_of
from lorabench.errors import LorabenchError
from lorabench.health.alerts import read_thresholds
from lorabench.health.base import Weights, against_base
from lorabench.health.kohya import Blocks, block_ranks
from lorabench.health.metrics import module_metrics
from lorabench.health.rules import rules
from lorabench.health.shuffling import shuffled
from lorabench.text import some

__all__ = ["Advice", "Choice", "ScaleAdvice", "advise"]

_DRAWS = 20
_OF_PEFT = ("r", "lora_alpha", "rank_pattern", "alpha_pattern")
_OF_SAM = re.compile(r"w_\d+")
_HERE = Path("this adapter")  # for messages
_TEXT_LEVEL = "text_model."


@dataclass(frozen=True)
class Choice:
    """Ranks of all modules, and what they lose.

    Attributes:
        name: how they were chosen.
        ranks: module -> rank; 0 where ΔW is zero.
        parameters: numbers in all factors.
        error: ‖ΔW − ΔW'‖_F / ‖ΔW‖_F of the whole adapter, cut at these ranks by SVD.
    """

    name: str
    ranks: Mapping[str, int]
    parameters: int
    error: float


@dataclass(frozen=True)
class ScaleAdvice:
    """The median of ‖ΔW‖_F / ‖W‖_F over the trained modules, beside the rules `scale_too_small` and `scale_too_large`.

    A rule of thumb: it says what the same factors would do at another α/r, and training at that finds others.

    Attributes:
        median: what was measured.
        judged: of how many modules.
        low, high: the rules' limits.
        factor: by which every α/r is multiplied: 1 within the limits, else what brings the median to where the rule
            falls silent again (its `clear`).
        before: the commonest α/r.
        after: the same times `factor`.
        sources: rule -> where its limit comes from.
    """

    median: float
    judged: int
    low: float
    high: float
    factor: float
    before: float
    after: float
    sources: Mapping[str, str]


@dataclass(frozen=True)
class Advice:
    """What to take, and what it stands beside.

    Attributes:
        now: the ranks that the adapter has.
        advised: by one threshold over all modules.
        uniform: one rank for all modules, the largest that takes no more parameters than the advised ones.
        shuffled: the advised ranks on other modules of the same shape and rank: the mean error of 20 draws. The gap
            to it is what knowing the modules is worth; where there is hardly one, any modules would do.
        shuffled_errors: of each draw.
        by_type: attention, feed-forward or other -> (modules, their mean rank now, their mean advised rank).
        peft: part of the pipeline, "model" where the names say none -> `r`, `lora_alpha`, `rank_pattern` and
            `alpha_pattern` of PEFT's LoraConfig for that part's model. A pattern fits one module alone; every scale
            stays, or changes as `scale` says. Names are those that `convert` writes into a PEFT folder.
        no_patterns: why `peft` is empty; "" where it is not.
        blocks: kohya's arguments for the blocks of an SD 1 or SD 2 U-Net; None of others.
        no_blocks: why there are none; "" where there are.
        scale: what α/r the base asks for; None where no base was given.
        resize: options of `lorabench-adapter resize` that give the file these ranks.
    """

    now: Choice
    advised: Choice
    uniform: Choice
    shuffled: float
    shuffled_errors: Sequence[float]
    by_type: Mapping[str, tuple[int, float, float]]
    peft: Mapping[str, Mapping[str, Any]]
    no_patterns: str
    blocks: Blocks | None
    no_blocks: str
    scale: ScaleAdvice | None
    resize: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        parts = {name: getattr(self, name) for name in ("now", "advised", "uniform", "blocks", "scale")}
        return {**vars(self), **{name: None if part is None else vars(part) for name, part in parts.items()}}


def advise(
    modules: Mapping[str, LoraModule],
    loss: float = 0.01,
    parameters: int | None = None,
    seed: int = 0,
    base: Weights | None = None,
    transposed: bool = False,
) -> Advice:
    """Ranks for a loss of energy, or for a number of parameters.

    For a loss, one threshold of σ over all modules keeps the fewest values; for a budget, the values that save most
    energy for their parameters. Both are of the spectrum as it is: what a training at these ranks would have found is
    not known from it.

    Args:
        modules: an adapter's.
        loss: share of Σσ² over all modules that may go, from 0 to below 1.
        parameters: numbers that all factors may have; None: as many as the loss asks for.
        seed: of the shuffled baseline.
        base: where W is, for `scale`; None: nothing is said of it.
        transposed: PEFT's `fan_in_fan_out`.

    Raises:
        LorabenchError: no module is trained, the loss or the budget cannot be, or the base is another model's.

    Example:
        >>> import torch
        >>> down = torch.eye(3, 8)
        >>> strong, weak = torch.tensor([9.0, 5.0, 0.1]).diag(), torch.tensor([1.0, 0.1, 0.1]).diag()
        >>> found = advise({"a.q": LoraModule(down, strong), "a.v": LoraModule(down, weak)}, loss=0.01)
        >>> found.advised.ranks, found.uniform.ranks, round(found.advised.error, 3)
        ({'a.q': 2, 'a.v': 1}, {'a.q': 1, 'a.v': 1}, 0.017)
    """
    if not 0 <= loss < 1:
        raise LorabenchError(f"loss={loss!r}: a share of the energy from 0 to below 1 is needed, 0.01 say.")
    sigmas = spectra(modules)
    trained = {name: sigma for name, sigma in sigmas.items() if bool(sigma.any())}
    if not trained:
        raise LorabenchError("no module is trained, every ΔW is zero: there is no spectrum to read a rank off.")
    tally = _tally(modules, sigmas)
    cost = {name: sum(modules[name].shape) for name in trained}
    bounds = {name: (1, min(modules[name].rank, *modules[name].shape)) for name in trained}
    if parameters is None:
        ranks = energy_ranks(trained, bounds, 1.0 - loss)
    else:
        least = sum(cost.values())
        if parameters < least:
            raise LorabenchError(f"parameters={parameters}: rank 1 everywhere takes {least}. Allow that many at least.")
        ranks = budget_ranks(trained, cost, bounds, parameters)
    advised = tally("one threshold" if parameters is None else "budget", ranks)
    uniform = _uniform(advised, bounds, tally)
    errors = _shuffled(advised.ranks, modules, tally, seed)
    scale = None if base is None else _scale({name: modules[name] for name in trained}, base, transposed)
    scales = {name: abs(module.scale) * (scale.factor if scale else 1.0) for name, module in modules.items()}
    family = family_of(modules)
    peft, no_patterns = _configurations(modules, ranks, scales, family)
    blocks, no_blocks = block_ranks(advised.ranks, scales, family)
    return Advice(
        now=tally("now", {name: modules[name].rank for name in trained}),
        advised=advised,
        uniform=uniform,
        shuffled=statistics.fmean(errors),
        shuffled_errors=errors,
        by_type=_by_type(modules, ranks),
        peft=peft,
        no_patterns=no_patterns,
        blocks=blocks,
        no_blocks=no_blocks,
        scale=scale,
        resize=("--total-energy", repr(1.0 - loss)) if parameters is None else ("--parameters", str(parameters)),
    )


def _tally(
    modules: Mapping[str, LoraModule], sigmas: Mapping[str, Float64[Tensor, " r"]]
) -> Callable[[str, Mapping[str, int]], Choice]:
    """What makes a choice of ranks: its parameters and its error, from running sums of σ²."""
    kept = {name: [0.0, *accumulate(sigma.square().tolist())] for name, sigma in sigmas.items()}
    whole = sum(sums[-1] for sums in kept.values())

    def choice(name: str, ranks: Mapping[str, int]) -> Choice:
        lost = sum(sums[-1] - sums[min(ranks.get(one, 0), len(sums) - 1)] for one, sums in kept.items())
        numbers = sum(sum(modules[one].shape) * rank for one, rank in ranks.items())
        return Choice(name, {one: ranks.get(one, 0) for one in modules}, numbers, (max(lost, 0.0) / whole) ** 0.5)

    return choice


def _uniform(
    advised: Choice, bounds: Mapping[str, tuple[int, int]], tally: Callable[[str, Mapping[str, int]], Choice]
) -> Choice:
    best = tally("uniform", dict.fromkeys(bounds, 1))
    for rank in range(2, max(most for _, most in bounds.values()) + 1):
        larger = tally("uniform", {name: min(rank, most) for name, (_, most) in bounds.items()})
        if larger.parameters > advised.parameters:
            break
        best = larger
    return best


def _shuffled(
    ranks: Mapping[str, int],
    modules: Mapping[str, LoraModule],
    tally: Callable[[str, Mapping[str, int]], Choice],
    seed: int,
) -> list[float]:
    """Errors of the ranks on other modules of the same shape and rank, which cost the same."""
    generator = random.Random(seed)  # noqa: S311  # a baseline, no secret
    kinds = {name: (modules[name].shape, modules[name].rank) for name in ranks}
    trained = {name: rank for name, rank in ranks.items() if rank}
    return [tally("shuffled", shuffled(trained, kinds, generator)).error for _ in range(_DRAWS)]


def _by_type(modules: Mapping[str, LoraModule], ranks: Mapping[str, int]) -> dict[str, tuple[int, float, float]]:
    types: dict[str, list[str]] = {}
    for name in ranks:
        types.setdefault(module_type(name), []).append(name)
    return {
        kind: (
            len(names),
            statistics.fmean(modules[name].rank for name in names),
            statistics.fmean(ranks[name] for name in names),
        )
        for kind, names in sorted(types.items())
    }


def _configurations(
    modules: Mapping[str, LoraModule], ranks: Mapping[str, int], scales: Mapping[str, float], family: Family | None
) -> tuple[dict[str, dict[str, Any]], str]:
    """Part -> the entries of PEFT's configuration for it, or why there are none."""
    counted = [name for name in modules if _is_number(name)]
    if counted:
        return {}, f"the file counts its modules and does not name them ({some(counted)}): no pattern fits one"
    flat = [name for name, module in modules.items() if not module.dots_known]
    if flat:
        return {}, (
            f"{len(flat)} modules were read with flattened names ({some(flat)}), and nothing says where their dots "
            "are. Write the file anew by `convert --to peft --names-from FILE`, and ask of that"
        )
    # Cut to their new ranks they are what a PEFT folder would say of them.
    cut = {
        name: replace(
            modules[name], down=modules[name].down[:rank], up=modules[name].up[:, :rank], scale=scales[name], alpha=None
        )
        for name, rank in ranks.items()
    }
    spelled = as_diffusers(cut, family).modules
    sort = sort_of_denoiser(modules)
    called = {
        name: joined(sort, split_part(name)[1]) if sort and identity(name).part == "denoiser" else name
        for name in spelled
    }
    try:
        named = with_names_of(written_layout("peft"), _HERE, spelled, called).names
    except LorabenchError as error:  # two modules are one place in the model
        return {}, str(error).removesuffix(".")
    parts: dict[str, dict[str, LoraModule]] = {}
    for name, module in spelled.items():
        word, rest = split_part(named[name])
        parts.setdefault(word or "model", {}).update(dict.fromkeys(_spellings(word, rest), module))
    whole = {part: configuration(_HERE, Adapter(_HERE, (), own), own) for part, own in parts.items()}
    return {part: {entry: config[entry] for entry in _OF_PEFT} for part, config in whole.items()}, ""


def _is_number(name: str) -> bool:
    """Whether it is a place in a list, which is all that cloneofsimo's (`unet.0`) and SAM's files (`w_000`) say."""
    word, rest = split_part(name)
    return bool(word and rest.isdecimal()) or _OF_SAM.fullmatch(name) is not None


def _spellings(word: str, name: str) -> Iterator[str]:
    """A module's name in its part's model; of a CLIP text encoder also the one that other versions have it by.

    transformers took CLIP's level `text_model` away in version 5.
    """
    yield name
    if "text_encoder" in word or name.startswith(_TEXT_LEVEL):
        plain = name.removeprefix(_TEXT_LEVEL)
        yield plain
        yield split_part(clip_name(f"{word}.{plain}"))[1] if word else f"{_TEXT_LEVEL}{plain}"


def _scale(modules: Mapping[str, LoraModule], base: Weights, transposed: bool) -> ScaleAdvice:
    rows = against_base(module_metrics(modules), modules, base, transposed)
    ratios = [row.effective_lr_scale for row in rows if row.effective_lr_scale is not None]
    if not ratios:
        raise LorabenchError(f"{base.where}: every weight of the adapter's modules is zero. Give the trained base.")
    median, limits = statistics.median(ratios), read_thresholds()
    small, large = limits["scale_too_small"], limits["scale_too_large"]
    low, high = max(small.limits.values()), min(large.limits.values())
    target = high * large.clear if median > high else low / small.clear if median < low else median
    before = Counter(abs(module.scale) for module in modules.values()).most_common(1)[0][0]
    factor = target / median
    sources = {name: rules()[name].source for name in ("scale_too_small", "scale_too_large")}
    return ScaleAdvice(median, len(ratios), low, high, factor, before, before * factor, sources)
