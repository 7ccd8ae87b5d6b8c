"""Hydra's application: runs of the pipeline, their sweeps, and what Hydra itself answers."""

import functools
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lorabench.conf_dir import conf_dir
from lorabench.errors import LorabenchError
from lorabench.jobs import output_folder
from lorabench.sweeps.devices import take_device

__all__ = ["main"]


def _run_folder(output_dir: Any, within: str, otherwise: str) -> str:
    """Where Hydra makes the run's folder; what cannot be used is told later, where a message can be given."""
    try:
        if not output_dir or not isinstance(output_dir, str) or "${" in output_dir:
            return otherwise
        folder = Path(output_dir) / within
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return otherwise
    return str(folder)


OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)


def _check(cfg: DictConfig, overrides: list[str], ablation: str) -> None:
    """What Hydra has let pass."""
    output_folder(cfg.output_dir)
    if cfg.dry_run:
        raise LorabenchError("dry_run=true lists the jobs of a sweep: give --multirun too")
    single = [word for word in overrides if word.startswith("representation=")]
    if single and single[0].startswith("representation=["):
        raise LorabenchError(f"{single[0]}: one name is needed; for several, give representations=[...]")
    if single:
        from lorabench.configs import baseline_alone

        if baseline_alone(cfg):
            raise LorabenchError(
                f"{single[0]}: ablation={ablation} looks at the representation that ranks: "
                f"give ablation.baseline={single[0].partition('=')[2]}"
            )
    if single and cfg.representations is not None:
        raise LorabenchError(
            f"{single[0]} and a list of representations were chosen; some ablations and experiments bring a list: "
            f"give representations=[{single[0].partition('=')[2]}] in its place"
        )


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def main(cfg: DictConfig) -> float:
    """Run one job; its value, for sweeps, is the best validation accuracy with all layers."""
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    try:
        if settings.mode is RunMode.MULTIRUN and OmegaConf.select(cfg, "trainer.device") != "cpu":
            take_device(settings.job.num)
        # `--help`, `--cfg` and shell completion answer without torch.
        from lorabench.pipeline import run
        from lorabench.report import print_table

        choices = dict(settings.runtime.choices)
        check = functools.partial(_check, cfg, list(settings.overrides.task), str(choices.get("ablation")))
        result = run(cfg, folder, choices, check)
    except LorabenchError as error:
        raise CompactHydraException(f"lorabench: {error}") from None
    except KeyboardInterrupt:
        sys.exit(
            "lorabench: interrupted. What is finished (zoo, features, members) is kept: give the same command again."
        )
    if settings.mode is not RunMode.MULTIRUN:  # a sweep has a line for each job, and one table
        print_table(result)
        print(f"Written to {folder}")  # noqa: T201
    return max((row.val_accuracy.mean for row in result.summary if row.ablation == "none"), default=float("nan"))
