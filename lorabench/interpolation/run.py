"""What a finished run says of its VAE, and its zoo found again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hydra.errors import HydraException
from jaxtyping import Int64
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lorabench.conf_dir import conf_dir
from lorabench.configs import make
from lorabench.errors import LorabenchError
from lorabench.jobs import RESULTS
from lorabench.representations.fitted import read_index
from lorabench.representations.vae import VAE
from lorabench.zoo import Zoo
from lorabench.zoo.splits import split_zoo

__all__ = ["FittedRun", "find_zoo", "parts_of", "read_run"]


@dataclass(frozen=True)
class FittedRun:
    """What a run's folder says of its zoo and of one VAE.

    Attributes:
        folder: the run's folder.
        dataset: the data set's resolved configuration.
        fingerprint: of the zoo that the run saw.
        split: arguments of `split_zoo`.
        fitted: the folder of the VAE's files.
        index: what `read_index` says of it.
    """

    folder: Path
    dataset: dict[str, Any]
    fingerprint: str
    split: dict[str, Any]
    fitted: Path
    index: dict[str, Any] = field(repr=False)


def read_run(run: Path, representation: str | None = None) -> FittedRun:
    """What is needed of a run.

    Args:
        run: its folder, with results.json and fitted/NAME.
        representation: NAME, where the run has several VAEs.

    Raises:
        LorabenchError: there is no results.json, no VAE, or several of them.
    """
    path = run / RESULTS
    try:
        said = json.loads(path.read_text())
        config = said["config"]
        split = {"target": config["target"], "seed": config["seed"], **config["split"]}
        dataset, fingerprint = dict(config["dataset"]), str(said["dataset"]["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LorabenchError(
            f"{path} is missing, or none that a run wrote; name the folder of a finished run, such as outputs/DATE/TIME"
        ) from error
    found = {index.parent.name: index.parent for index in sorted((run / "fitted").glob("[!.]*/config.json"))}
    own = f"{VAE.__module__}.{VAE.__qualname__}"
    fitted = {name: folder for name, folder in found.items() if read_index(folder)["config"]["class"] == own}
    if not fitted:
        others = f" (it has {', '.join(found)}, which is none)" if found else ""
        raise LorabenchError(
            f"{run} has no fitted VAE{others}; run python -m lorabench representation=vae, and name its folder"
        )
    name = next(iter(fitted)) if representation is None and len(fitted) == 1 else representation
    if name not in fitted:
        came = "several VAEs" if name is None else f"no VAE {name!r}"
        raise LorabenchError(f"{run} has {came}; give --representation NAME, one of {', '.join(fitted)}")
    if read_index(fitted[name])["config"]["on"] != "factors":
        raise LorabenchError(
            f"{fitted[name]} reads sketches of ΔW (representation.on=delta), which cannot be decoded into factors; "
            "take a run with representation.on=factors"
        )
    return FittedRun(run, dataset, fingerprint, split, fitted[name], read_index(fitted[name]))


def find_zoo(run: FittedRun, moved: Mapping[str, str]) -> Zoo:
    """The run's zoo, from its configuration.

    Args:
        run: what `read_run` gave.
        moved: options of the data set that are no longer as the run says, such as path or cache_dir.

    Raises:
        LorabenchError: the data set cannot be read, or is not what the run saw.
    """
    target = run.dataset.get("_target_")
    # A results.json may come from anyone, and what `_target_` names is called.
    if target not in _sources():
        raise LorabenchError(
            f"{run.folder / 'results.json'} has a data set of {target}, and this installation knows "
            f"{', '.join(sorted(_sources()))}; take a run of one of these"
        )
    for option in moved:
        if option not in run.dataset:
            has = ", ".join(name for name in run.dataset if not name.startswith("_"))
            raise LorabenchError(
                f"--{option.replace('_', '-')}: the data set of {run.folder} has no {option}, only {has}"
            )
    try:
        zoo: Zoo = make(OmegaConf.create({**run.dataset, **moved}), _recursive_=False)
    except (LorabenchError, HydraException, OmegaConfBaseException) as error:
        said = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
        raise LorabenchError(
            f"the data set of {run.folder} cannot be read again: {' '.join(str(said).split())} If it has moved, add "
            "--path or --cache-dir"
        ) from error
    if zoo.fingerprint != run.fingerprint:
        raise LorabenchError(
            f"the data set {zoo.name} is not what {run.folder} saw (fingerprint {zoo.fingerprint[:12]}, then "
            f"{run.fingerprint[:12]}): adapters or labels have changed. Bring it back as it was, or run again"
        )
    return zoo


def _sources() -> set[str]:
    """What the yaml files of data sets name."""
    configs = [OmegaConf.load(file) for file in (conf_dir() / "dataset").glob("*.yaml")]
    return {str(one["_target_"]) for one in configs if isinstance(one, DictConfig) and "_target_" in one}


def parts_of(run: FittedRun, zoo: Zoo, rows: Int64[np.ndarray, " n"]) -> list[str | None]:
    """The part of the run's split that each row is in, "none" outside it; None where another run trained the VAE."""
    if "fitted" in run.index["config"]:
        return [None] * len(rows)
    parts = vars(split_zoo(zoo.labels, **run.split))
    return [next((name for name, part in parts.items() if row in part), "none") for row in rows]
