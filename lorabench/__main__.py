"""`python -m lorabench`: Hydra's entry."""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf

from lorabench.conf_dir import conf_dir
from lorabench.errors import LorabenchError


def _run_folder(output_dir: str | None, dataset: str, otherwise: str) -> str:
    """Where a run goes: `output_dir`/ablation_DATASET if there is one."""
    return otherwise if output_dir is None else str(Path(output_dir) / f"ablation_{dataset}")


OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def main(cfg: DictConfig) -> float:
    """Run one job; its value, for sweeps, is the best validation accuracy."""
    settings = HydraConfig.get().runtime
    folder = Path(settings.output_dir)
    try:
        # `--help`, `--cfg` and shell completion answer without torch.
        from lorabench.pipeline import run
        from lorabench.report import print_table

        result = run(cfg, folder, dict(settings.choices))
    except LorabenchError as error:
        raise CompactHydraException(f"lorabench: {error}") from None
    except KeyboardInterrupt:
        sys.exit(
            "lorabench: interrupted. What is finished (zoo, features, members) is kept: give the same command again."
        )
    print_table(result)
    print(f"Written to {folder}")  # noqa: T201
    return max(row.val_accuracy.mean for row in result.summary if row.val_accuracy.n)


if __name__ == "__main__":
    main()
