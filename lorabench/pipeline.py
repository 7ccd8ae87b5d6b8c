"""One run from configuration to result."""

import contextlib
import errno
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger
from torch import Tensor

from lorabench.classifiers import ClassifierFactory, Fitted, confusion, scores
from lorabench.configs import check_values, make, representation_configs
from lorabench.data import FeatureData
from lorabench.engines import Engine, resolve_device
from lorabench.errors import LorabenchError, explain_disk_errors
from lorabench.progress import bar
from lorabench.report import table_text, write_figures
from lorabench.representations import Representation
from lorabench.representations.cache import cached_features
from lorabench.results import METRICS, Result, Run, Summary, environment, summarise
from lorabench.tracking import ROOM, log_summary, logging_to
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
            _LOG.info("%s: %.2f s", name, self.seconds[name])


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
        check_values(cfg, names)
        cfg.cache_dir = str(_writable(Path(cfg.cache_dir).expanduser().resolve()))
        chosen = representation_configs(cfg, names["representation"])
        config = _resolved(cfg, chosen)
        logger: Logger = make(cfg.logger, folder=str(folder), name=f"{names['dataset']}-{'+'.join(chosen)}")
        with logging_to(logger, config, folder):
            result = _evaluate(cfg, config, names["classifier"], chosen, logger)
            log_summary(logger, _flat_summary(result))
            with explain_disk_errors(folder, ROOM):
                _write(result, folder)
        if not any(row.test_accuracy.n for row in result.summary):
            errors = "; ".join(f"{row.representation}: {row.failed[0]}" for row in result.summary)
            raise LorabenchError(f"nothing could be evaluated. {errors}")
        return result


def _writable(cache_dir: Path) -> Path:
    with explain_disk_errors(cache_dir, "Set cache_dir=DIR (or LORABENCH_CACHE) to a folder that may be written to."):
        with contextlib.suppress(FileNotFoundError):  # /proc and its like
            cache_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(cache_dir, os.W_OK):
            raise PermissionError(errno.EACCES, "permission denied", str(cache_dir))
    return cache_dir


def _resolved(cfg: DictConfig, chosen: dict[str, DictConfig]) -> dict[str, Any]:
    """The whole configuration, with the representations that are evaluated and no other."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise LorabenchError(f"{missing[0]} has no value: give {missing[0]}=...")
    resolved: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    del resolved["representation"]
    resolved["representations"] = {
        name: OmegaConf.to_container(config, resolve=True) for name, config in chosen.items()
    }
    return resolved


@contextmanager
def _status(folder: Path) -> Iterator[None]:
    """Keep status.json up to date: in a sweep, Hydra itself shows the first failure only."""

    def write(**fields: Any) -> None:
        (folder / "status.json").write_text(json.dumps(fields) + "\n")

    write(status="running", pid=os.getpid())
    try:
        yield
    finally:
        error = sys.exception()
        if error is None:
            write(status="completed")
        elif isinstance(error, KeyboardInterrupt):
            write(status="interrupted")
        else:
            write(status="failed", error=f"{type(error).__name__}: {error}")


def _evaluate(
    cfg: DictConfig, config: dict[str, Any], classifier: str, chosen: dict[str, DictConfig], logger: Logger
) -> Result:
    clock, machine = _Clock(), environment()
    factory: ClassifierFactory = make(cfg.classifier)
    probe = factory(in_features=1, n_classes=2, seed=0)  # a wrong argument is told before anything is computed
    engine: Engine = make(cfg.trainer)
    device = resolve_device(engine.device)
    with clock.phase("zoo"):
        whole: Zoo = make(cfg.dataset)
        ablation = make(cfg.ablation)
        zoo = ablation.apply(whole)
        split = split_zoo(zoo.labels, target=cfg.target, seed=cfg.seed, **cfg.split)
    classes, labels = _classes(zoo, split, cfg.target)
    task = _Task(
        zoo=zoo,
        split=split,
        classes=classes,
        labels=torch.from_numpy(labels),
        factory=factory,
        classifier=classifier,
        engine=engine,
        device=device,
        seeds=tuple(range(cfg.seed, cfg.seed + cfg.num_runs)),
        cache_dir=Path(cfg.cache_dir),
        ablation=ablation.name,
        batch_size=probe.batch_size,
        clock=clock,
        logger=logger,
    )
    runs, summary = _all_representations(chosen, task)
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
        environment={**machine, "device": str(task.device)},
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


def _all_representations(chosen: dict[str, DictConfig], task: _Task) -> tuple[list[Run], list[Summary]]:
    runs: list[Run] = []
    summary: list[Summary] = []
    for name, config in chosen.items():
        try:
            found, row = _one_representation(name, make(config), task)
        except (LorabenchError, MemoryError, torch.OutOfMemoryError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            if len(chosen) == 1:
                raise
            _LOG.warning("%s failed: %s", name, error)
            found = [Run(name, task.ablation, seed, error=f"{error}") for seed in task.seeds[:1]]
            row = summarise(found, task.classifier, 0, 0, None)
        runs += found
        summary.append(row)
    return runs, summary


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
    available = _free_memory(task.device)
    if available is not None and needed > available:
        raise LorabenchError(
            f"representation={name} makes {floats} numbers of each of {len(task.zoo)} adapters, about "
            f"{needed / 1e9:.1f} GB with the copies that training needs; {available / 1e9:.1f} GB of memory are free. "
            "Take a smaller data set or a shorter representation (spectral, delta_pca)."
        )


def _free_memory(device: torch.device) -> int | None:
    """Bytes that may still be taken where the features go; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


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
    return {
        f"{row.representation}/{metric}_{key}": value
        for row in result.summary
        for metric in METRICS
        for key, value in vars(getattr(row, metric)).items()
        if key != "n"
        if not math.isnan(value)
    }


def _write(result: Result, folder: Path) -> None:
    """The numbers first: no trouble with a picture may cost them."""
    result.write(folder / "results.json")
    (folder / "results.txt").write_text(table_text(result))
    started = time.perf_counter()
    with bar("Pictures") as shown:
        write_figures(result, folder, shown.advance)
    result.seconds["pictures"] = time.perf_counter() - started
    result.write(folder / "results.json")
