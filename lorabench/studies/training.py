"""One LoRA training of a text classifier, looked at while it goes on."""

import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from lorabench.adapters.places import module_type, place
from lorabench.errors import LorabenchError
from lorabench.health.advisor import advise
from lorabench.health.allotment import Allotment, allot_ranks
from lorabench.health.live import LiveModule, live_modules, read_all
from lorabench.health.metrics import LoRAAdapterMetrics, module_metrics
from lorabench.lowrank import largest_singular_value
from lorabench.studies.models import Base, TextClassifier, round_to_nf4
from lorabench.studies.tasks import Task, make_task

__all__ = ["Outcome", "Setting", "gradient_of", "train"]

_ENERGY = 0.01
_LENGTH = 24
_GRADIENT_BATCHES = 4


@dataclass(frozen=True)
class Setting:
    """What one training depends on.

    Attributes:
        source, classes, first: of the task (`make_task`).
        train, test: its texts.
        rank, alpha: of the LoRA.
        learning_rate: of AdamW, constant.
        steps, batch: of the training.
        targets: "all", "attention" or "feed-forward": the modules that are adapted.
        pattern: module -> rank, where it is not `rank`.
        nf4: whether the base is rounded to 4 bits first.
        seed: of texts, factors, head and order.
        every: steps between looks.
    """

    source: str = "docstrings"
    classes: int = 4
    first: int = 0
    train: int = 256
    test: int = 200
    rank: int = 16
    alpha: int = 16
    learning_rate: float = 1e-3
    steps: int = 100
    batch: int = 16
    targets: str = "all"
    pattern: tuple[tuple[str, int], ...] = ()
    nf4: bool = False
    seed: int = 0
    every: int = 20

    def __post_init__(self) -> None:
        """Refuse what no training can have.

        Raises:
            LorabenchError: a number is below 1, or the learning rate is not above 0.
        """
        for name in ("classes", "train", "test", "rank", "alpha", "steps", "batch", "every"):
            if getattr(self, name) < 1:
                raise LorabenchError(f"{name}={getattr(self, name)}: a whole number from 1 on is needed.")
        if not self.learning_rate > 0:
            raise LorabenchError(f"learning_rate={self.learning_rate}: a number above 0 is needed.")


@dataclass(frozen=True)
class Outcome:
    """What came of one training.

    Attributes:
        accuracy: on the test texts.
        loss: mean of the last tenth of the steps.
        seconds: of the training, looks left out.
        parameters: numbers in all factors.
        gradient_variance: of the norm of the factors' gradient over the second half of the steps, by its squared mean.
        looks: step -> medians over modules (effective_rank, rank_utilization, stable_rank, kappa_A, kappa_B) and the
            largest dominance over the base.
        ranks: module type -> median effective rank at the end.
        advised: mean, median and largest rank that keeps 99 % of the energy, by one threshold over all modules.
        diverged: whether the loss or a factor left the finite numbers.
    """

    accuracy: float
    loss: float
    seconds: float
    parameters: int
    gradient_variance: float | None
    looks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    ranks: Mapping[str, float] = field(default_factory=dict)
    advised: Mapping[str, float] = field(default_factory=dict)
    diverged: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def train(base: Base, setting: Setting) -> Outcome:
    """Train one LoRA and its head, and test it.

    Args:
        base: which model.
        setting: everything else; the same one gives the same numbers on the same machine.
    """
    task, (ids, mask), labels = _data(base, setting)
    model, modules = _model(base, setting, len(task.classes))
    weights = _base_sigma(modules)
    factors = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    optimiser = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=setting.learning_rate)
    order = torch.Generator().manual_seed(setting.seed)
    losses: list[float] = []
    norms: list[float] = []
    looks: dict[str, dict[str, float]] = {}
    rows: Sequence[LoRAAdapterMetrics] = []
    seconds = 0.0
    model.train()
    for step in range(1, setting.steps + 1):
        started = time.perf_counter()
        rows_of = torch.randint(task.train, (setting.batch,), generator=order)
        loss = nn.functional.cross_entropy(model(ids[rows_of], mask[rows_of]), labels[rows_of])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())
        seconds += time.perf_counter() - started
        if step > setting.steps // 2:
            norms.append(float(torch.stack([one.grad.norm() for one in factors if one.grad is not None]).norm()))
        if step % setting.every == 0 or step in (1, setting.steps):
            rows = module_metrics(read_all(modules))
            looks[str(step)] = _medians(rows, weights)
        if not torch.isfinite(loss):
            break
    finite = all(row.finite for row in rows) and losses[-1] == losses[-1]
    tail = losses[-max(1, len(losses) // 10) :]
    mean = statistics.fmean(norms) if norms else 0.0
    return Outcome(
        accuracy=_accuracy(model, ids[task.train :], mask[task.train :], labels[task.train :]) if finite else 0.0,
        loss=statistics.fmean(tail),
        seconds=seconds,
        parameters=sum(one.numel() for one in factors),
        gradient_variance=statistics.pvariance(norms) / mean**2 if len(norms) > 1 and mean > 0 else None,
        looks=looks,
        ranks=_by_type(rows),
        advised=_advised(modules) if finite else {},
        diverged=not finite,
    )


def gradient_of(base: Base, setting: Setting, rank: int) -> Allotment:
    """What the gradient of the base's weights says before the training that a setting describes.

    Args:
        base: which model.
        setting: of the training; its head is drawn as it will be, and trains no step.
        rank: of the uniform adapter whose budget is allotted.
    """
    task, (ids, mask), labels = _data(base, setting)
    torch.manual_seed(setting.seed)
    body = base.fresh()
    model = TextClassifier(body, _width(body), len(task.classes))
    order = torch.Generator().manual_seed(setting.seed)
    batches = [torch.randint(task.train, (4 * setting.batch,), generator=order) for _ in range(_GRADIENT_BATCHES)]

    def loss(network: nn.Module, rows: Int64[Tensor, " n"]) -> Tensor:
        return nn.functional.cross_entropy(network(ids[rows], mask[rows]), labels[rows])

    return allot_ranks(model, loss, batches, rank, targets=_targets(model, setting.targets), seed=setting.seed)


def _data(
    base: Base, setting: Setting
) -> tuple[Task, tuple[Int64[Tensor, "n t"], Int64[Tensor, "n t"]], Int64[Tensor, " n"]]:
    task = make_task(setting.source, setting.classes, setting.train, setting.test, setting.first, setting.seed)
    return task, base.encode(list(task.texts), _LENGTH), torch.tensor(task.labels)


def _targets(model: nn.Module, kind: str) -> list[str]:
    """The names of the linear modules in the model's blocks, of one kind or all."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and place(name).block]
    return [name for name in linear if kind in ("all", _type_of(name))]


def _type_of(name: str) -> str:
    """BERT has no word for its feed-forward part: it is what is not attention."""
    return "attention" if module_type(name) == "attention" else "feed-forward"


def _width(body: nn.Module) -> int:
    config: Any = body.config
    return int(config.hidden_size)


def _model(base: Base, setting: Setting, classes: int) -> tuple[TextClassifier, Mapping[str, LiveModule]]:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(setting.seed)
    body = base.fresh()
    if setting.nf4:
        for module in body.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = round_to_nf4(module.weight.data)
    pattern = dict(setting.pattern)
    config = LoraConfig(
        r=setting.rank,
        lora_alpha=setting.alpha,
        target_modules=_targets(body, setting.targets),
        rank_pattern=pattern,
        alpha_pattern={name: setting.alpha / setting.rank * rank for name, rank in pattern.items()},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT, about what it does not know of a model
        wrapped: Any = get_peft_model(body, config)
    return TextClassifier(wrapped, _width(body), classes), live_modules(wrapped)


def _base_sigma(modules: Mapping[str, LiveModule]) -> dict[str, float]:
    """σ_max(W) of every module, once: W does not move."""
    found = {}
    for name, module in modules.items():
        weight = module.base()
        if weight is not None:
            found[name] = largest_singular_value(weight, tolerance=1e-4)
    return found


def _medians(rows: Sequence[LoRAAdapterMetrics], base: Mapping[str, float]) -> dict[str, float]:
    names = {
        "effective_rank": "effective_rank_BA",
        "rank_utilization": "rank_utilization",
        "stable_rank": "stable_rank",
        "kappa_A": "kappa_A",
        "kappa_B": "kappa_B",
    }
    medians = {}
    for name, attribute in names.items():
        known = [value for row in rows if (value := getattr(row, attribute)) is not None]
        if known:
            medians[name] = statistics.median(known)
    ratios = [row.sigma_max / base[row.module] for row in rows if row.sigma_max is not None and base.get(row.module)]
    return {**medians, **({"dominance": max(ratios)} if ratios else {})}


def _by_type(rows: Sequence[LoRAAdapterMetrics]) -> dict[str, float]:
    types: dict[str, list[float]] = {}
    for row in rows:
        if row.effective_rank_BA is not None:
            types.setdefault(_type_of(row.module), []).append(row.effective_rank_BA)
    return {kind: statistics.median(values) for kind, values in types.items()}


def _advised(modules: Mapping[str, LiveModule]) -> dict[str, float]:
    ranks = list(advise(read_all(modules), _ENERGY).advised.ranks.values())
    return {
        "mean": statistics.fmean(ranks), "median": float(statistics.median(ranks)), "largest": float(max(ranks)),
    }  # fmt: skip


@torch.no_grad()
def _accuracy(
    model: nn.Module, ids: Int64[Tensor, "n t"], mask: Int64[Tensor, "n t"], labels: Int64[Tensor, " n"]
) -> float:
    model.eval()
    right = 0
    for start in range(0, len(ids), 64):
        part = slice(start, start + 64)
        right += int((model(ids[part], mask[part]).argmax(1) == labels[part]).sum())
    model.train()
    return right / len(ids)
