"""`python -m lorabench`: Hydra's entry."""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig

from lorabench.conf_dir import conf_dir
from lorabench.errors import LorabenchError


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
        sys.exit("lorabench: interrupted. Zoos and features that were finished are kept; the same command goes on.")
    print_table(result)
    print(f"Written to {folder}")  # noqa: T201
    return max(row.val_accuracy.mean for row in result.summary if row.val_accuracy.n)


if __name__ == "__main__":
    main()
