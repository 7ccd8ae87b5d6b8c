"""The configurations of a sweep's jobs, each as Hydra composes it; what jobs have in common is composed once."""

import copy
from collections.abc import Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

__all__ = ["Compositions"]

Composed = tuple[DictConfig, dict[str, str | None]]


class Compositions:
    """What the jobs of one sweep are started with.

    Hydra reads and merges every yaml anew for each job, which takes a tenth of a second. Jobs that choose the same of
    every group differ in plain values (`seed=1`) alone: those are put into a copy of one composition, as Hydra puts
    them into its own. Whatever is not surely such a value is left to Hydra.

    Args:
        config: the sweep's, with what Hydra adds.
        loader: Hydra's.
    """

    def __init__(self, config: DictConfig, loader: ConfigLoader) -> None:
        self._config, self._loader = config, loader
        self._groups = set(config.hydra.runtime.choices)
        self._parsed: dict[str, Override] = {}
        self._shared: dict[tuple[str, ...], Composed] = {}

    def of(self, overrides: Sequence[str]) -> Composed:
        """The configuration of a job, without Hydra's part, and what it has chosen of every group."""
        words, values = self._parted(overrides)
        if words not in self._shared:
            self._shared[words] = self._by_hydra(words)
        shared, choices = self._shared[words]
        cfg = copy.deepcopy(shared)
        try:
            for name, value in values:
                if OmegaConf.is_dict(OmegaConf.select(cfg, name)) and not isinstance(value, dict):
                    return self._by_hydra(overrides)  # a group that was not known to be one
                OmegaConf.update(cfg, name, value, merge=True)
        except OmegaConfBaseException:
            return self._by_hydra(overrides)  # which says what is wrong
        return cfg, dict(choices)

    def _by_hydra(self, overrides: Sequence[str]) -> Composed:
        cfg = self._loader.load_sweep_config(self._config, list(overrides))
        choices = dict(cfg.hydra.runtime.choices)
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg, choices

    def _parted(self, overrides: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[str, Any]]]:
        """What Hydra is to compose, and the values that are put in behind it, in their order."""
        words, values = list[str](), list[tuple[str, Any]]()
        for word in overrides:
            if word not in self._parsed:
                self._parsed[word] = OverridesParser.create().parse_override(word)
            one = self._parsed[word]
            if one.is_hydra_override() or (one.type is OverrideType.CHANGE and one.get_key_element() in self._groups):
                words.append(word)
            elif one.type is OverrideType.CHANGE and one.package is None and "/" not in one.key_or_group:
                values.append((one.key_or_group, one.value()))
            else:  # something comes in or goes: the order of all counts
                return tuple(overrides), []
        return tuple(words), values
