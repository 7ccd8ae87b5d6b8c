"""Configurations: composed, held to the types of their yaml, and made into objects."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

from hydra import compose
from hydra.errors import InstantiationException, MissingConfigException, OverrideParseException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lorabench.conf_dir import conf_dir
from lorabench.errors import LorabenchError
from lorabench.representations import Representation
from lorabench.representations.learned import Learned
from lorabench.representations.load_from import Loaded

__all__ = [
    "baseline_alone", "check_values", "deviations", "make", "make_representation", "representation_config",
    "representation_configs",
]  # fmt: skip

_NULLABLE = ("dataset", "logger")  # null means something there: no such column, your own account
_OF_ITS_OWN = ("representations", "ablation.baseline")  # names, or mappings with options: `representation_config`
_WHERE_NOT_NULL: dict[str, type] = {
    "ablation.against": list,
    "ablation.threshold": float,
    "output_dir": str,
    "split.min_per_class": int,
    "trainer.memory_gb": float,
}
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
}


def make(config: DictConfig, **arguments: Any) -> Any:
    """`hydra.utils.instantiate`, but a `LorabenchError` of the target comes out as itself."""
    try:
        return instantiate(config, _convert_="all", **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, LorabenchError):
            raise error.__cause__ from None
        raise


def make_representation(config: DictConfig) -> Representation:
    """A representation; where `load_from` names a run, by that run's autoencoders."""
    options: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    load_from = options.pop("load_from", None)
    found: Representation = make(OmegaConf.create(options))
    return found if load_from is None else Loaded(cast("Learned", found), str(load_from))


def check_values(cfg: DictConfig, choices: Mapping[str, str | None]) -> None:
    """Hold every value to the type that its yaml gives it.

    Args:
        cfg: the configuration to check.
        choices: what was chosen of every config group.

    Raises:
        LorabenchError: a value of another type, or null where the yaml has a value.
    """
    groups = [f"{group}={choice}" for group, choice in choices.items() if choice and "/" not in group and group in cfg]
    _compare(compose("config", overrides=groups), cfg, "")
    if cfg.target not in ("category", "leaf"):
        raise LorabenchError(f"target={cfg.target}: allowed are category and leaf")
    for name in ("num_runs", "splits", "folds", "top_k"):
        if cfg[name] < 1:
            raise LorabenchError(f"{name}={cfg[name]}: a whole number from 1 is needed")
    if cfg.num_runs % cfg.splits:
        raise LorabenchError(
            f"num_runs={cfg.num_runs}: members are shared out evenly over splits={cfg.splits}; take "
            f"num_runs={cfg.splits * -(-cfg.num_runs // cfg.splits)}, or splits=1"
        )
    if cfg.published_keys and choices.get("ablation") not in ("compare", "top_k"):
        raise LorabenchError(
            "published_keys=true writes results with and without the best layers: give ablation=compare or top_k"
        )
    if not 0 <= cfg.seed < 2**32:
        raise LorabenchError(f"seed={cfg.seed}: a whole number from 0 to 4294967295 is needed")


def _compare(known: DictConfig, given: DictConfig, prefix: str) -> None:
    for (path, default), (_, value) in _pairs(known, given, prefix):
        wanted = _WHERE_NOT_NULL.get(path) if default is None else type(default)
        if path in _OF_ITS_OWN or wanted is None or (value is None and (default is None or path.startswith(_NULLABLE))):
            continue
        came = type(value)
        if came is wanted or (wanted is float and came is int):
            same = {type(entry) for entry in default} if isinstance(default, list) else set()
            if len(same) == 1 and not {type(entry) for entry in value} <= same:
                raise LorabenchError(f"{path}={value}: every entry must be {_KINDS[same.pop()]}, as in {default}")
            continue
        example = "" if default is None else f", such as {default}"
        raise LorabenchError(f"{path}={value}: {_KINDS.get(wanted, wanted.__name__)} is needed{example}")


def _pairs(known: Any, given: Any, prefix: str) -> Iterator[tuple[tuple[str, Any], tuple[str, Any]]]:
    """Leaves that both have; what refers elsewhere in the given one is checked there."""
    for key in known:
        path = f"{prefix}{key}"
        if key not in given or OmegaConf.is_missing(known, key) or OmegaConf.is_missing(given, key):
            continue
        if OmegaConf.is_interpolation(given, key):
            continue
        value: Any = OmegaConf.to_container(given, resolve=False)[key]  # type: ignore[index]
        default: Any = known[key]
        default = OmegaConf.to_container(default) if OmegaConf.is_config(default) else default
        if isinstance(default, dict) and isinstance(value, dict):
            yield from _pairs(known[key], given[key], f"{path}.")
        else:
            yield (path, default), (path, value)


def deviations(cfg: DictConfig, chosen: Mapping[str, DictConfig], experiment: str) -> list[str]:
    """In what a configuration is not the protocol of an experiment: splits, classifier, ranking, representations.

    Args:
        cfg: the configuration.
        chosen: its representations by what they are called, which need not be as in the experiment.
        experiment: the experiment's name.
    """
    wanted = compose("config", overrides=[f"experiment={experiment}"])
    paths = ["seed", "splits", "ablation.baseline", "ablation.rank_on"]
    paths += [f"{group}.{key}" for group in ("split", "classifier") for key in {**wanted[group], **cfg[group]}]
    found = []
    for path in paths:
        ours, theirs = (OmegaConf.select(config, path) for config in (cfg, wanted))
        if ours != theirs:
            found.append(f"{path}={ours}")
    known = [_plain(one) for one in representation_configs(wanted, "").values()]
    return found + [f"representation {name}" for name, one in chosen.items() if _plain(one) not in known]


def _plain(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=True)


def baseline_alone(cfg: DictConfig) -> bool:
    """Whether the phase looks at no other representation than the one that ranks; its class says so."""
    return bool(getattr(get_class(cfg.ablation["_target_"]), "BASELINE_ALONE", False))


def representation_configs(cfg: DictConfig, single: str) -> dict[str, DictConfig]:
    """The configurations of a run's representations by name, each composed from its own yaml.

    Raises:
        LorabenchError: `representations` is no list of names and {name: {option: value}}.
    """
    if cfg.representations is None:
        return {single: cfg.representation}
    entries: Any = OmegaConf.to_container(cfg.representations) if OmegaConf.is_list(cfg.representations) else None
    if not entries:
        raise LorabenchError(
            f"representations={cfg.representations}: name at least one in a list, such as [stats,flat], or leave it "
            "null and choose representation=NAME"
        )
    return dict(representation_config(entry, "representations") for entry in entries)


def representation_config(entry: Any, key: str) -> tuple[str, DictConfig]:
    """Label and configuration of one representation, a name or {name: {option: value}}, from its own yaml.

    Args:
        entry: what the configuration says.
        key: where it says so, for messages.

    Raises:
        LorabenchError: it says something else, or something that the representation does not have.
    """
    said = OmegaConf.to_container(entry) if OmegaConf.is_config(entry) else entry
    named = {said: {}} if isinstance(said, str) else said
    if not isinstance(named, dict) or len(named) != 1 or not all(isinstance(value, dict) for value in named.values()):
        raise LorabenchError(f"{key}: {said!r} came; a name, or {{name: {{option: value}}}}, is needed")
    name, options = next(iter(named.items()))
    label = "-".join([str(name), *_words(options)])
    return label, _with(str(name), options, key)


def _words(options: Mapping[str, Any]) -> Iterator[str]:
    for option, value in options.items():
        yield str(option)
        if isinstance(value, Mapping):
            yield from _words(value)
        else:
            yield str(value)


def _with(name: str, options: dict[str, Any], key: str) -> DictConfig:
    try:
        known: DictConfig = compose("config", overrides=[f"representation={name}"]).representation
    except (MissingConfigException, OverrideParseException) as error:
        there = ", ".join(sorted(path.stem for path in (conf_dir() / "representation").glob("*.yaml")))
        raise LorabenchError(f"{key}: there is no representation {name}; there are {there}") from error
    config: DictConfig = known.copy()
    try:
        config.merge_with(options)
    except OmegaConfBaseException as error:
        allowed = ", ".join(str(key) for key in known if not str(key).startswith("_"))
        wrong = ", ".join(key for key in options if key not in known) or str(options)
        raise LorabenchError(f"{key}: {name} has no option {wrong}; it has {allowed}") from error
    _compare(known, config, f"representation {name}: ")
    return config
