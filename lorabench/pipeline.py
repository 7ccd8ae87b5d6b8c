"""One run from configuration to result."""

import contextlib
import dataclasses
import errno
import functools
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger
from torch import Tensor

from lorabench.ablation import Ablation, Findings, Study
from lorabench.ablation.compare import CompareFinding
from lorabench.classifiers import ClassifierFactory, probe
from lorabench.classifiers.choosing import configurations
from lorabench.configs import (
    check_values,
    check_whole,
    chosen_and_resolved,
    classifier_name,
    configuration_key,
    deviations,
    make,
    make_representation,
    representation_config,
)
from lorabench.engines import Engine, resolve_device
from lorabench.errors import LorabenchError, explain_disk_errors
from lorabench.evaluation import Clock, Evaluator
from lorabench.evaluation.chance import chance, constant_scores
from lorabench.evaluation.latent import latent_summary
from lorabench.findings import RankedFinding
from lorabench.jobs import RESULTS, status_of
from lorabench.machine import keep_to_allotted_cpus
from lorabench.progress import bar
from lorabench.published import published_results
from lorabench.report import table_text, write_figures
from lorabench.representations.fitted import save_fitted
from lorabench.representations.learned import Learned
from lorabench.representations.load_from import Loaded
from lorabench.results import Numbers, Result, environment
from lorabench.storage import replace_file
from lorabench.text import to_json
from lorabench.tracking import ROOM, Opened, Tracker, logging_to
from lorabench.zoo import Zoo
from lorabench.zoo.splits import Split, split_zoo
from lorabench.zoo.targets import Target, find_target

__all__ = ["evaluators_of", "own_classifiers", "run"]

_LOG = logging.getLogger(__name__)


def run(
    cfg: DictConfig, folder: Path, names: dict[str, str | None], check: Callable[[], None] = lambda: None
) -> Result:
    """Read the zoo, compute the features, train the members, and write everything into `folder`.

    Args:
        cfg: the configuration, `conf/config.yaml` and what was chosen.
        folder: the run's folder: results.json, results.txt, status.json and pictures.
        names: what was chosen of every config group.
        check: what the caller has to refuse; `status.json` says so too.

    Raises:
        LorabenchError: something in the configuration or the data cannot be used.
    """
    keep_to_allotted_cpus()
    with status_of(folder) as note:
        check_whole(cfg)
        check()
        check_values(cfg, names)
        cfg.cache_dir = str(_writable(Path(cfg.cache_dir).expanduser().resolve()))
        chosen, config = chosen_and_resolved(cfg, names)
        key = configuration_key(config)
        note.running(configuration=key)
        logger: Logger = make(cfg.logger, _partial_=True)(_opened(folder, names, chosen, key, cfg.rerun))
        track = Tracker(logger, chosen)
        with logging_to(logger, config, folder):
            result = _evaluate(cfg, config, str(names["classifier"]), chosen, track, folder)
            note.running(device=result.environment["device"], fingerprint=result.dataset["fingerprint"])
            with explain_disk_errors(folder, ROOM):
                _write(result, folder)
                track.ended(result, folder)
        return result


def _opened(folder: Path, names: Mapping[str, str | None], chosen: Collection[str], key: str, rerun: bool) -> Opened:
    """What the logger is told of this run."""
    representations = "+".join(chosen)
    tags = tuple(str(names[group]) for group in ("dataset", "ablation", "classifier"))
    return Opened(folder, f"{names['dataset']}-{representations}", representations, tags, key, rerun)


def _writable(cache_dir: Path) -> Path:
    with explain_disk_errors(cache_dir, "Set cache_dir=DIR (or LORABENCH_CACHE) to a folder that may be written to."):
        with contextlib.suppress(FileNotFoundError):  # /proc and its like
            cache_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(cache_dir, os.W_OK):
            raise PermissionError(errno.EACCES, "permission denied", str(cache_dir))
    return cache_dir


def _evaluate(
    cfg: DictConfig,
    config: dict[str, Any],
    classifier: str,
    chosen: dict[str, DictConfig],
    track: Tracker,
    folder: Path,
) -> Result:
    machine = environment()
    phase: Ablation = _phase(cfg)
    evaluators, target = evaluators_of(cfg)
    evaluators[0].on_curves = track.curves  # of one split: the others' steps would be the same
    evaluator, others = evaluators[0], evaluators[1:]
    learned: dict[str, Any] = {}
    evaluator.on_fitted = functools.partial(_keep_fitted, evaluator, track, folder, learned)
    makers = {name: functools.partial(make_representation, one) for name, one in chosen.items()}
    baseline, methods = next(iter(makers.items())), own_classifiers(chosen)
    if "baseline" in cfg.ablation:
        name, one = representation_config(cfg.ablation.baseline, "ablation.baseline", cfg.classifier.tries)
        baseline = name, functools.partial(make_representation, one)
        methods |= own_classifiers({name: one})
    findings = phase.run(Study(evaluator, classifier, target.names, makers, baseline, others, cfg.folds, methods))
    _LOG.info("members: %d trained, %d kept from before", evaluator.trained, evaluator.taken)
    if not any(row.test_accuracy.n for row in findings.summary):
        errors = "; ".join(f"{row.representation}: {row.failed[0]}" for row in findings.summary)
        raise LorabenchError(f"nothing could be evaluated. {errors}")
    labels, zoo = evaluator.labels, evaluator.zoo
    splits = [one.split for one in evaluators]
    by_source = zoo.labels.split is not None
    sizes = {part: len(rows) for part, rows in vars(splits[0]).items()}
    return Result(
        dataset=_describe(zoo, config["dataset"]),
        split={
            **sizes,
            "by_source": by_source,
            "splits": len(splits),
            "untested": [target.names[code] for code in _untested(labels, splits)],
        },
        target=cfg.target,
        classes=list(target.names),
        chance=float(np.mean([chance(labels, split) for split in splits])),
        config=config,
        runs=findings.runs,
        summary=findings.summary,
        seconds=evaluator.clock.seconds,
        environment={**machine, "device": str(evaluator.device), "streamed": _streamed(evaluators)},
        ablation=findings.ablation,
        learned=learned,
        numbers=_numbers(target, splits),
        published=_published(cfg, findings, chosen, len(zoo.layers), by_source) if cfg.published_keys else {},
    )


def _phase(cfg: DictConfig) -> Ablation:
    """The phase. What is wrong with a zoo of its own is told by that zoo's options, and not by the run's."""
    try:
        found: Ablation = make(cfg.ablation)
    except LorabenchError as error:
        raise LorabenchError(str(error).replace("dataset.", "ablation.other.")) from error
    return found


def own_classifiers(chosen: Mapping[str, DictConfig]) -> dict[str, tuple[str, ClassifierFactory]]:
    """Name and factory of the classifiers that single representations bring."""
    own = {name: one.classifier for name, one in chosen.items() if "classifier" in one}
    return {name: (classifier_name(one), _factory(one)) for name, one in own.items()}


def _factory(config: DictConfig) -> ClassifierFactory:
    """What makes members; a wrong setting is told before anything is computed."""
    found: ClassifierFactory = make(config)
    configurations(probe(found))
    return found


def _published(
    cfg: DictConfig, findings: Findings, chosen: Mapping[str, DictConfig], layers: int, by_source: bool
) -> dict[str, Any]:
    """The published keys of a comparison with and without the best layers."""
    found = findings.ablation
    if not isinstance(found, CompareFinding):
        return {}
    top = [row.layer for row in found.ranking[: found.top_k]]
    others = deviations(cfg, chosen, experiment="published") + (["the data set's own split"] if by_source else [])
    return published_results(findings.runs, layers, len(found.removed), top, others)


def _streamed(evaluators: Sequence[Evaluator]) -> list[str]:
    """Representations whose features were read from a file, with any split."""
    return sorted({name for one in evaluators for name in one.streams})


def _untested(labels: Int64[np.ndarray, " n"], splits: Sequence[Split]) -> list[int]:
    """Codes of the classes of which no split tests an adapter."""
    tested = np.concatenate([labels[split.test] for split in splits])
    return [int(code) for code in np.setdiff1d(labels[labels >= 0], tested)]


def evaluators_of(cfg: DictConfig) -> tuple[list[Evaluator], Target]:
    """What evaluates this configuration's zoo, one a split, and the classes.

    Split k is drawn by `seed + k`; member j of `num_runs` has the seed `seed + j` and, of m members a split, the split
    j // m.
    """
    clock = Clock()
    factory = _factory(cfg.classifier)
    engine: Engine = make(cfg.trainer)
    device = resolve_device(engine.device)
    with clock.phase("zoo"):
        zoo: Zoo = make(cfg.dataset)
        splits = [
            split_zoo(zoo.labels, target=cfg.target, seed=cfg.seed + number, **cfg.split)
            for number in range(cfg.splits)
        ]
    if any(np.array_equal(split.test, splits[0].test) for split in splits[1:]):
        raise LorabenchError(
            f"splits={cfg.splits}: {zoo.name} has a split of its own (or too few adapters for another), and its test "
            "adapters are always the same: give splits=1"
        )
    target = _classes(zoo, splits[0], cfg.target)
    each = cfg.num_runs // cfg.splits
    first = Evaluator(
        zoo=zoo,
        split=splits[0],
        labels=target.codes,
        n_classes=len(target.names),
        values=target.values,
        factory=factory,
        engine=engine,
        device=device,
        seeds=tuple(range(cfg.seed, cfg.seed + each)),
        cache_dir=Path(cfg.cache_dir),
        resume=cfg.resume,
        clock=clock,
    )
    others = [
        dataclasses.replace(first, split=split, seeds=tuple(seed + number * each for seed in first.seeds))
        for number, split in enumerate(splits[1:], start=1)
    ]
    return [first, *others], target


def _classes(zoo: Zoo, split: Split, name: str) -> Target:
    """The target with the classes that the split knows alone; the code of an adapter outside the split is -1."""
    target = find_target(zoo.labels, name)
    rows = np.concatenate([split.train, split.val, split.test])
    known, inverse = np.unique(target.codes[rows], return_inverse=True)
    labels = np.full(len(zoo), -1, np.int64)
    labels[rows] = inverse
    values = None if target.values is None else target.values[known]
    return dataclasses.replace(target, codes=labels, names=tuple(target.names[code] for code in known), values=values)


def _numbers(target: Target, splits: Sequence[Split]) -> Numbers | None:
    """What the classes of a number stand for, and what a constant reaches."""
    if target.values is None:
        return None
    scores = np.mean([constant_scores(target.values[target.codes], split) for split in splits], axis=0)
    return Numbers(target.unit, target.values.tolist(), *map(float, scores))


def _keep_fitted(
    evaluator: Evaluator,
    track: Tracker,
    run: Path,
    learned: dict[str, Any],
    name: str,
    representation: Learned | Loaded,
    features: Mapping[str, Tensor],
) -> None:
    """Write a learned representation's autoencoders into the run's folder, and log and keep how they went."""
    if name in learned:
        return
    fitted = {unit: representation.fitted_[unit] for unit in features}
    with explain_disk_errors(run / "fitted", ROOM):
        save_fitted(fitted, representation.config(), fitted_folder(run, name))
    learned[name] = latent_summary(representation, features, evaluator.labels)
    track.fitted(name, [one.notes["history"] for one in fitted.values()], learned[name]["units"])


def fitted_folder(run: Path, name: str) -> Path:
    """Where a run's folder has the autoencoders of a representation."""
    return run / "fitted" / name.replace("/", "_")


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


def _write(result: Result, folder: Path) -> None:
    """The numbers first: no trouble with a picture may cost them. What another phase has left here goes."""
    for old in (*folder.glob("*.png"), folder / "layers.json", folder / "top_layers.json"):
        old.unlink(missing_ok=True)
    for one in (folder / "fitted").glob("*"):
        if one not in {fitted_folder(folder, name) for name in result.learned}:
            shutil.rmtree(one)  # of an earlier run: its split was another
    result.write(folder / RESULTS)
    replace_file(folder / "results.txt", table_text(result))
    found = result.ablation
    if isinstance(found, RankedFinding):
        rows = [
            {**dataclasses.asdict(row), "baseline": found.baseline, "rank_on": found.rank_on} for row in found.ranking
        ]
        replace_file(folder / "layers.json", to_json(rows, 1))
        replace_file(folder / "top_layers.json", to_json(rows[: found.marked or result.config["top_k"]], 1))
    started = time.perf_counter()
    with bar("Pictures") as shown:
        write_figures(result, folder, shown.advance)
    result.seconds["pictures"] = time.perf_counter() - started
    result.write(folder / RESULTS)
