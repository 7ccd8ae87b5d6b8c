"""`python -m lorabench.studies study=NAME`: one study, by Hydra."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf

from lorabench.conf_dir import conf_dir
from lorabench.errors import LorabenchError

__all__ = ["main"]


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="studies")
def _study(cfg: DictConfig) -> None:
    from lorabench.configs import make
    from lorabench.studies.run import report_text, run_study

    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    options = OmegaConf.to_container(cfg.study, resolve=True)
    assert isinstance(options, dict), "a group of the configuration is a mapping"  # noqa: S101
    quick = options.pop("quick")
    cache = None if cfg.cache_dir is None else Path(str(cfg.cache_dir)).expanduser()
    try:
        study = make(OmegaConf.create({**options, **(quick if cfg.quick else {})}))
        report = run_study(study, str(settings.runtime.choices["study"]), str(cfg.model), folder, cache, print)
    except LorabenchError as error:
        raise CompactHydraException(f"lorabench.studies: {error}") from None
    except KeyboardInterrupt:
        sys.exit("lorabench.studies: interrupted. What has ended is kept: give the same command again.")
    print(f"\n{report_text(report)}\nWritten to {folder}")  # noqa: T201


def main(argv: Sequence[str] | None = None, name: str = "lorabench.studies") -> int:
    """Run studies with Hydra's words; without any it is wrong usage.

    Args:
        argv: the words; None: what the process was started with.
        name: how it is called.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        sys.stderr.write(f"usage: {name} ... (--help says more): study=NAME is needed\n")
        sys.exit(2)
    sys.argv = [name, *words]
    try:
        _study()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head`: nobody reads on, and nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
