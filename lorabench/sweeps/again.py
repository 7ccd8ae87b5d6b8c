"""A run that is run again from the configuration that it has written: `--config-path RUN/.hydra --config-name config`.

What a run writes has no section of Hydra's: without it results would go elsewhere than `output_dir` says, the terminal
would show what belongs into the log, and Hydra's own sweeper would run a sweep. Nor does it say what was chosen of
every config group, which lies beside it.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lorabench.conf_dir import conf_dir
from lorabench.errors import LorabenchError

__all__ = ["quoted", "whole_words"]


def whole_words(words: Sequence[str]) -> list[str]:
    """A command line for Hydra; where its configuration is one that a run has written, with what that one lacks.

    Args:
        words: of the command line. A relative `--config-path` is taken from the folder that one is in, where it exists;
            Hydra takes it from the one that the program lies in.

    Raises:
        LorabenchError: what lies beside such a configuration cannot be used.
    """
    if not any(word.startswith(("--config-p", "-cp")) for word in words):
        return list(words)
    args = get_args_parser().parse_args(list(words))  # Hydra's own: what it would make of the words
    if not args.config_path or not Path(args.config_path).is_dir():
        return list(words)
    folder = Path(args.config_path).absolute()
    at = words.index(args.overrides[0]) if args.overrides else len(words)  # ours first: the command's have the last say
    return [*words[:at], *_lacking(folder, args.config_name or "config"), *words[at:], "--config-path", str(folder)]


def quoted(text: str) -> str:
    r"""A text in Hydra's syntax, which un-escapes a backslash before a quote and at the end, and no other.

    >>> print(quoted("it's"), quoted("a\\b"), quoted("end\\"))
    'it\'s' 'a\b' 'end\\'
    """
    return QuotedString(text, Quote.single).with_quotes()


def _lacking(folder: Path, name: str) -> list[str]:
    """Overrides for what a configuration in a folder lacks; none where it is not one that a run has written."""
    try:
        found = yaml.safe_load((folder / f"{name.removesuffix('.yaml')}.yaml").read_text())
    except (OSError, ValueError, yaml.YAMLError):  # Hydra says so
        return []
    if not isinstance(found, dict) or {"hydra", "defaults"} & set(found):
        return []
    chosen = ",".join(f"{group}:{_value(value)}" for group, value in _choices(folder / "hydra.yaml").items())
    ours = OmegaConf.to_container(OmegaConf.load(conf_dir() / "config.yaml").hydra)
    return [f"+hydra.runtime.choices={{{chosen}}}", *(f"++{key}={_value(one)}" for key, one in _leaves(ours, "hydra"))]


def _choices(path: Path) -> dict[str, Any]:
    """What a run has chosen of every group but Hydra's.

    Raises:
        LorabenchError: its file does not say so.
    """
    try:
        found = dict(OmegaConf.load(path).hydra.runtime.choices)
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError, OmegaConfBaseException):
        found = {}
    if not isinstance(found.get("representation"), str):
        raise LorabenchError(
            f"{path} is missing or damaged, and what a run has written is run again by both of its files: this one "
            "says what the run chose of every group"
        )
    return {str(group): choice for group, choice in found.items() if not str(group).startswith("hydra/")}


def _leaves(config: Any, key: str) -> Iterator[tuple[str, Any]]:
    for name, value in config.items() if isinstance(config, Mapping) else ():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{key}.{name}")
        elif (key, name) != ("hydra.help", "header"):  # of many lines
            yield f"{key}.{name}", value


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    return "null" if value is None else quoted(value) if isinstance(value, str) else str(value)
