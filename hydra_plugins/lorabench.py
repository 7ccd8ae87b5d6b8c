"""What Hydra knows of lorabench: it takes plugins from the package of this name alone, defined there."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from lorabench.conf_dir import conf_dir
from lorabench.sweeps import sweeper

__all__ = ["ProductSweeper", "SearchPath"]


class ProductSweeper(sweeper.ProductSweeper):
    """See `lorabench.sweeps.sweeper`."""


class SearchPath(SearchPathPlugin):
    """The groups are found too where the configuration comes from a run's `.hydra` (`--config-path`)."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append lorabench's own, behind what was chosen."""
        search_path.append("lorabench", f"file://{conf_dir()}")
