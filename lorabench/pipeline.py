"""One run from configuration to result."""

import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from jaxtyping import Float32, Int64
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger
from torch import Tensor

from lorabench.classifiers import ClassifierFactory, Fitted, confusion, scores
from lorabench.data import FeatureData
from lorabench.engines import Engine, resolve_device
from lorabench.errors import LorabenchError
from lorabench.progress import bar
from lorabench.report import table_text, write_figures
from lorabench.representations import Representation
from lorabench.representations.cache import cached_features
from lorabench.results import Result, Run, Summary, environment, summarise
from lorabench.tracking import log_summary, logging_to
from lorabench.zoo import Zoo
from lorabench.zoo.splits import Split, split_zoo

__all__ = ["run"]

_LOG = logging.getLogger(__name__)


@dataclass
class _Clock:
    """Wall seconds of every phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


@dataclass(frozen=True)
class _Task:
    """What every representation of a run shares."""

    zoo: Zoo
    split: Split
    classes: tuple[str, ...]
    labels: Int64[Tensor, " n"]
    factory: ClassifierFactory
    classifier: str
    engine: Engine
    device: torch.device
    seeds: tuple[int, ...]
    cache_dir: Path
    ablation: str
    batch_size: int
    clock: _Clock
    logger: Logger


def run(cfg: DictConfig, folder: Path, names: dict[str, str]) -> Result:
    """Read the zoo, compute the features, train the members, and write everything into `folder`.

    Args:
        cfg: the configuration, `conf/config.yaml` and what was chosen.
        folder: the run's folder: results.json, results.txt, status.json and pictures.
        names: what was chosen of every config group.

    Raises:
        LorabenchError: something in the configuration or the data cannot be used.
    """
    with _status(folder):
        _check(cfg)
        cfg.cache_dir = str(Path(cfg.cache_dir).expanduser().resolve())
        config = _resolved(cfg)
        logger: Logger = _make(cfg.logger, folder=str(folder), name=f"{names['dataset']}-{names['representation']}")
        with logging_to(logger, config):
            result = _evaluate(cfg, config, names, logger)
            log_summary(logger, _flat_summary(result))
            _write(result, folder)
        return result


def _make(config: DictConfig, **arguments: Any) -> Any:
    """`hydra.utils.instantiate`, but a `LorabenchError` of the target comes out as itself."""
    try:
        return instantiate(config, _convert_="all", **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, LorabenchError):
            raise error.__cause__ from None
        raise


def _check(cfg: DictConfig) -> None:
    """Refuse top-level values that no later stage would name well."""
    if cfg.target not in ("category", "leaf"):
        raise LorabenchError(f"target={cfg.target}: allowed are category and leaf")
    if not isinstance(cfg.num_runs, int) or cfg.num_runs < 1:
        raise LorabenchError(f"num_runs={cfg.num_runs}: a whole number from 1 is needed")
    if not isinstance(cfg.seed, int) or cfg.seed < 0:
        raise LorabenchError(f"seed={cfg.seed}: a whole number from 0 is needed")


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise LorabenchError(f"{missing[0]} has no value: give {missing[0]}=...")
    resolved: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return resolved


@contextmanager
def _status(folder: Path) -> Iterator[None]:
    """Keep status.json up to date: in a sweep, Hydra itself shows the first failure only."""

    def write(**fields: Any) -> None:
        (folder / "status.json").write_text(json.dumps(fields) + "\n")

    write(status="running", pid=os.getpid())
    try:
        yield
    except BaseException as error:
        write(status="failed", error=f"{type(error).__name__}: {error}")
        raise
    write(status="completed")


def _evaluate(cfg: DictConfig, config: dict[str, Any], names: dict[str, str], logger: Logger) -> Result:
    clock = _Clock()
    factory: ClassifierFactory = _make(cfg.classifier)
    probe = factory(in_features=1, n_classes=2, seed=0)  # a wrong argument is told before anything is computed
    engine: Engine = _make(cfg.trainer)
    device = resolve_device(engine.device)
    with clock.phase("zoo"):
        whole: Zoo = _make(cfg.dataset)
        ablation = _make(cfg.ablation)
        zoo = ablation.apply(whole)
        split = split_zoo(zoo.labels, target=cfg.target, seed=cfg.seed, **cfg.split)
    classes, labels = _classes(zoo, split, cfg.target)
    task = _Task(
        zoo=zoo,
        split=split,
        classes=classes,
        labels=torch.from_numpy(labels),
        factory=factory,
        classifier=names["classifier"],
        engine=engine,
        device=device,
        seeds=tuple(range(cfg.seed, cfg.seed + cfg.num_runs)),
        cache_dir=Path(cfg.cache_dir),
        ablation=ablation.name,
        batch_size=probe.batch_size,
        clock=clock,
        logger=logger,
    )
    runs, summary = _all_representations(cfg, names, task)
    train_labels = labels[split.train]
    chance = float(np.mean(labels[split.test] == np.bincount(train_labels).argmax()))
    return Result(
        dataset=_describe(whole, config["dataset"]),
        split={
            "train": len(split.train),
            "val": len(split.val),
            "test": len(split.test),
            "by_source": whole.labels.split is not None,
        },
        target=cfg.target,
        classes=list(classes),
        chance=chance,
        config=config,
        runs=runs,
        summary=summary,
        seconds=clock.seconds,
        environment={**environment(), "device": str(task.device)},
    )


def _classes(zoo: Zoo, split: Split, target: str) -> tuple[tuple[str, ...], Int64[np.ndarray, " n"]]:
    """Names of the classes that the split knows, and the code of every adapter; -1 outside the split."""
    codes = zoo.labels.category if target == "category" else zoo.labels.leaf
    names = zoo.labels.category_names if target == "category" else zoo.labels.leaf_names
    rows = np.concatenate([split.train, split.val, split.test])
    known, inverse = np.unique(codes[rows], return_inverse=True)
    labels = np.full(len(zoo), -1, np.int64)
    labels[rows] = inverse
    return tuple(names[code] for code in known), labels


def _all_representations(cfg: DictConfig, names: dict[str, str], task: _Task) -> tuple[list[Run], list[Summary]]:
    chosen = _representations(cfg, names["representation"])
    runs: list[Run] = []
    summary: list[Summary] = []
    for name, config in chosen.items():
        try:
            found, row = _one_representation(name, _make(config), task)
        except LorabenchError as error:
            if len(chosen) == 1:
                raise
            _LOG.warning("%s failed: %s", name, error)
            found = [Run(name, task.ablation, seed, error=str(error)) for seed in task.seeds[:1]]
            row = summarise(found, task.classifier, 0, 0, None)
        runs += found
        summary.append(row)
    return runs, summary


def _representations(cfg: DictConfig, single: str) -> dict[str, DictConfig]:
    """The representation configs of a run by name, composed from their own yaml files."""
    if cfg.representations is None:
        return {single: cfg.representation}
    if not cfg.representations:
        raise LorabenchError("representations=[]: name at least one, or leave it null and choose representation=NAME")
    found: dict[str, DictConfig] = {}
    entries: Any = OmegaConf.to_container(cfg.representations)
    for entry in entries:
        named = {entry: {}} if isinstance(entry, str) else entry
        if not isinstance(named, dict) or not all(isinstance(options, dict) for options in named.values()):
            raise LorabenchError(f"representations: {entry!r} came; a name, or {{name: {{option: value}}}}, is needed")
        for name, options in named.items():
            config = compose("config", overrides=[f"representation={name}"]).representation
            config.merge_with(options)
            found[",".join([str(name), *(f"{key}={value}" for key, value in options.items())])] = config
    return found


def _one_representation(name: str, representation: Representation, task: _Task) -> tuple[list[Run], Summary]:
    units = representation.units(task.zoo)
    _check_memory(name, representation, task)
    with task.clock.phase(f"features/{name}"), bar(f"Features {name}", len(units)) as shown:
        features = cached_features(
            representation, task.zoo, task.split.train, task.cache_dir, task.device, lambda _: shown.advance()
        )
        width = sum(values.shape[1] for values in features.values())
        data = _data(features, task)
    with task.clock.phase(f"training/{name}"), bar(f"Train {name}", len(task.seeds)) as shown:

        def on_epoch(epoch: int, finished: int) -> None:
            shown.advance(finished, note=f"epoch {epoch + 1}")

        fitted = task.engine.fit(task.factory, data, task.seeds, on_epoch)
    _log_curves(name, fitted, task.logger)
    runs = [_run(name, member, data, task) for member in fitted]
    return runs, summarise(runs, task.classifier, len(units), width, representation.gauge_invariant)


def _log_curves(name: str, fitted: Sequence[Fitted], logger: Logger) -> None:
    """Every epoch's mean over the members that were at work in it."""
    for epoch in range(max(len(member.history) for member in fitted)):
        rows = [member.history[epoch] for member in fitted if epoch < len(member.history)]
        logger.log_metrics({f"{name}/{key}": float(np.mean([row[key] for row in rows])) for key in rows[0]}, step=epoch)


def _data(features: dict[str, Float32[Tensor, "n _f"]], task: _Task) -> FeatureData:
    train, val, test = (torch.from_numpy(rows) for rows in (task.split.train, task.split.val, task.split.test))
    return FeatureData(features, task.labels, train, val, test, len(task.classes), task.device, task.batch_size)


def _check_memory(name: str, representation: Representation, task: _Task) -> None:
    """Refuse features that would not fit, before the kernel's out-of-memory killer does."""
    floats = sum(len(representation.feature_names(task.zoo, unit)) for unit in representation.units(task.zoo))
    needed = 3 * 4 * floats * len(task.zoo)  # the features, their standardised copy, and one unit in float64
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > available:
        raise LorabenchError(
            f"representation={name} makes {floats} numbers of each of {len(task.zoo)} adapters, about "
            f"{needed / 1e9:.1f} GB with the copies that training needs; {available / 1e9:.1f} GB of memory are free. "
            "Take a smaller data set or a shorter representation (spectral, delta_pca)."
        )


def _run(name: str, member: Fitted, data: FeatureData, task: _Task) -> Run:
    base = Run(name, task.ablation, member.member.seed, member.best_epoch, len(member.history), history=member.history)
    if member.error is not None:
        return Run(**{**vars(base), "error": member.error})
    labels, classes = data.labels.cpu(), data.n_classes
    metrics: dict[str, float] = {}
    for part, rows in (("train", data.train.cpu()), ("val", data.val.cpu()), ("test", data.test.cpu())):
        found = scores(member.logits[rows], labels[rows], classes)
        wanted = found if part == "test" else {"accuracy": found["accuracy"]}
        metrics |= {f"{part}_{key}": float(value) for key, value in wanted.items()}
    test = data.test.cpu()
    table = confusion(member.logits[test], labels[test], classes).tolist()
    return Run(**{**vars(base), "metrics": metrics, "confusion": table})


def _describe(zoo: Zoo, config: dict[str, Any]) -> dict[str, Any]:
    counts = np.bincount(zoo.labels.category, minlength=len(zoo.labels.category_names))
    return {
        "name": zoo.name,
        "config": config,
        "fingerprint": zoo.fingerprint,
        "adapters": len(zoo),
        "layers": len(zoo.layers),
        "modules": len(zoo.modules),
        "ranks": sorted({int(rank) for rank in np.unique(zoo.rank)}),
        "categories": dict(zip(zoo.labels.category_names, counts.tolist(), strict=True)),
    }


def _flat_summary(result: Result) -> dict[str, float]:
    metrics: Sequence[str] = ("train_accuracy", "val_accuracy", "test_accuracy", "test_macro_f1", "test_auroc")
    return {
        f"{row.representation}/{metric}_{key}": value
        for row in result.summary
        for metric in metrics
        for key, value in vars(getattr(row, metric)).items()
        if value == value  # NaN is no number to a logger
    }


def _write(result: Result, folder: Path) -> None:
    (folder / "results.txt").write_text(table_text(result))
    write_figures(result, folder)
    result.write(folder / "results.json")
