"""Configurations: composed, held to the types of their yaml, and made into objects."""

import functools
import json
import pydoc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException, MissingConfigException, OverrideParseException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lorabench.classifiers.factors import FactorClassifier
from lorabench.conf_dir import conf_dir
from lorabench.errors import LorabenchError
from lorabench.evaluation.journal import digest, source_code
from lorabench.options import AtLeast, AtMost, check_arguments
from lorabench.representations import Representation
from lorabench.representations.factors import Factors
from lorabench.representations.learned import Learned
from lorabench.representations.load_from import Loaded
from lorabench.storage import files_hash
from lorabench.text import to_json
from lorabench.zoo.splits import split_zoo

__all__ = [
    "baseline_alone", "check_values", "check_whole", "chosen_and_resolved", "classifier_name", "configuration_key",
    "deviations", "make", "make_representation", "representation_config",
]  # fmt: skip

_MISSING = "???"
_NO_NUMBERS = {"cache_dir", "logger", "output_dir", "resume", "dry_run", "rerun"}  # where and how it is kept


@dataclass(frozen=True)
class _Root:
    """What stands at the root of the configuration."""

    seed: Annotated[int, AtLeast(0), AtMost(2**32 - 1)]
    num_runs: Annotated[int, AtLeast(1)]
    splits: Annotated[int, AtLeast(1)]
    folds: Annotated[int, AtLeast(1)]
    top_k: Annotated[int, AtLeast(0)]
    target: str
    resume: bool
    rerun: bool
    dry_run: bool
    published_keys: bool
    cache_dir: str
    output_dir: str | None


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
    options.pop("classifier", None)  # a method's own, which `make` makes
    found: Representation = make(OmegaConf.create(options))
    return found if load_from is None else Loaded(cast("Learned", found), str(load_from))


def check_whole(cfg: DictConfig) -> None:
    """Refuse a configuration that something was taken out of, by ~logger or the like.

    Raises:
        LorabenchError: something was.
    """
    known = [str(name) for name in OmegaConf.load(conf_dir() / "config.yaml") if name not in ("defaults", "hydra")]
    groups = ("dataset", "representation", "classifier", "ablation", "trainer", "logger")
    lacking = [name for name in known if name not in cfg] + [name for name in groups if not cfg.get(name)]
    if lacking:
        raise LorabenchError(f"{lacking[0]} is missing, and no run goes without it: leave ~{lacking[0]} out")


def check_values(cfg: DictConfig, choices: Mapping[str, str | None]) -> None:
    """Hold every value to the annotation of what takes it.

    Args:
        cfg: the configuration to check.
        choices: what was chosen of every config group.

    Raises:
        LorabenchError: a value that is not allowed.
    """
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    check_arguments(_Root, values, "")
    check_arguments(split_zoo, values["split"], "split.")
    if cfg.top_k == 0 and choices.get("ablation") not in ("none", "compare", "top_k"):
        raise LorabenchError(f"top_k=0: a whole number from 1 is needed with ablation={choices.get('ablation')}")
    for group, given in values.items():
        if isinstance(given, dict) and "_target_" in given:
            _check_target(given, f"{group}.")
    if cfg.num_runs % cfg.splits:
        raise LorabenchError(
            f"num_runs={cfg.num_runs}: members are shared out evenly over splits={cfg.splits}; take "
            f"num_runs={cfg.splits * -(-cfg.num_runs // cfg.splits)}, or splits=1"
        )
    if cfg.published_keys and (choices.get("ablation") not in ("compare", "top_k") or cfg.top_k == 0):
        raise LorabenchError(
            "published_keys=true writes results with and without the best layers: give ablation=compare or top_k, and "
            "top_k from 1"
        )


def _check_target(given: dict[str, Any], prefix: str) -> None:
    known = {name: value for name, value in given.items() if value != _MISSING}
    check_arguments(_target(given["_target_"], prefix), known, prefix)
    for name, value in given.items():
        for key, part in value.items() if isinstance(value, dict) else ():
            if isinstance(part, dict) and "_target_" in part:
                _check_target(part, f"{prefix}{name}.{key}.")


def _target(path: Any, prefix: str) -> Any:
    """What a `_target_` names; Hydra's own message of a name that is none is a traceback."""
    found, why = None, ""
    try:
        found = pydoc.locate(str(path))
    except pydoc.ErrorDuringImport as error:
        why = f" ({error.value})"
    if found is None:
        raise LorabenchError(
            f"{prefix}_target_={path}: nothing of this name can be imported{why}; give the whole path of a class or "
            "function, such as lorabench.classifiers.mlp.MLP"
        )
    return found


def deviations(cfg: DictConfig, chosen: Mapping[str, DictConfig], experiment: str) -> list[str]:
    """In what a configuration is not the protocol of an experiment: splits, classifier, ranking, representations.

    Args:
        cfg: the configuration.
        chosen: its representations by what they are called, which need not be as in the experiment.
        experiment: the experiment's name.
    """
    wanted = _own(f"experiment={experiment}")
    paths = ["seed", "splits", "ablation.baseline", "ablation.rank_on"]
    paths += [f"{group}.{key}" for group in ("split", "classifier") for key in {**wanted[group], **cfg[group]}]
    found = []
    for path in paths:
        ours, theirs = (OmegaConf.select(config, path) for config in (cfg, wanted))
        if ours != theirs:
            found.append(f"{path}={ours}")
    known = [_plain(one) for one in representation_configs(wanted, "").values()]
    return found + [f"representation {name}" for name, one in chosen.items() if _plain(one) not in known]


def _own(*overrides: str) -> DictConfig:
    """A configuration of lorabench's, also in a run that was started from another one, which knows no groups."""
    around = GlobalHydra.instance()
    held = around.hydra
    around.clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return compose("config", overrides=list(overrides))
    finally:
        GlobalHydra.instance().hydra = held


def _plain(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=True)


def classifier_name(config: Mapping[str, Any]) -> str:
    """What tables call a classifier: the file of its class, and of its yaml.

    >>> classifier_name({"_target_": "lorabench.classifiers.mlp.MLP"})
    'mlp'
    """
    return str(config["_target_"]).split(".")[-2]


def baseline_alone(cfg: DictConfig) -> bool:
    """Whether the phase looks at no other representation than the one that ranks; its class says so."""
    return bool(getattr(_target(cfg.ablation["_target_"], "ablation."), "BASELINE_ALONE", False))


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
    return dict(representation_config(entry, "representations", cfg.classifier.tries) for entry in entries)


def representation_config(entry: Any, key: str, tries: int = 1) -> tuple[str, DictConfig]:
    """Label and configuration of one representation, a name or {name: {option: value}}, from its own yaml.

    The name of a classifier that reads factors stands for `factors`, in the form that it reads, with that `classifier`.

    Args:
        entry: what the configuration says.
        key: where it says so, for messages.
        tries: of such a classifier, where it does not say itself.

    Raises:
        LorabenchError: it says something else, or something that the representation does not have.
    """
    said = OmegaConf.to_container(entry) if OmegaConf.is_config(entry) else entry
    named = {said: {}} if isinstance(said, str) else said
    if not isinstance(named, dict) or len(named) != 1 or not all(isinstance(value, dict) for value in named.values()):
        raise LorabenchError(f"{key}: {said!r} came; a name, or {{name: {{option: value}}}}, is needed")
    name, options = next(iter(named.items()))
    label = "-".join([str(name), *_words(options)])
    return label, _with(str(name), options, key, tries)


def _words(options: Mapping[str, Any]) -> Iterator[str]:
    for option, value in options.items():
        yield str(option)
        if isinstance(value, Mapping):
            yield from _words(value)
        else:
            yield str(value)


def _with(name: str, options: dict[str, Any], key: str, tries: int) -> DictConfig:
    try:
        known = _of_group("representation", name)
    except MissingConfigException as error:
        method = _method(name, options, key, tries)
        if method is not None:
            return method
        folder = conf_dir() / "representation"
        there = ", ".join([*sorted(path.stem for path in folder.glob("*.yaml")), *_factor_classifiers()])
        raise LorabenchError(f"{key}: there is no representation {name}; there are {there}") from error
    return _changed(known, options, key, name)


def _of_group(group: str, name: str) -> DictConfig:
    try:
        found: DictConfig = compose(overrides=[f"+{group}={name}"])[group]
    except OverrideParseException as error:
        raise MissingConfigException(str(error)) from error
    return found


def _changed(known: DictConfig, options: dict[str, Any], key: str, name: str) -> DictConfig:
    """A configuration with other values of its options, each held to its type."""
    config = known.copy()
    try:
        config.merge_with(options)
    except OmegaConfBaseException as error:
        allowed = ", ".join(str(key) for key in known if not str(key).startswith("_"))
        wrong = ", ".join(key for key in options if key not in known) or str(options)
        raise LorabenchError(f"{key}: {name} has no option {wrong}; it has {allowed}") from error
    _check_target(OmegaConf.to_container(config, resolve=True), f"representation {name}: ")  # type: ignore[arg-type]
    return config


def _factor_classifiers() -> list[str]:
    stems = sorted(path.stem for path in (conf_dir() / "classifier").glob("*.yaml"))
    return [stem for stem in stems if _reads(_of_group("classifier", stem)) is not None]


def _reads(classifier: Mapping[str, Any]) -> dict[str, Any] | None:
    """The form of factors that a classifier reads; None of one that reads features."""
    found = _target(classifier["_target_"], "classifier.")
    return found.reads if isinstance(found, type) and issubclass(found, FactorClassifier) else None


def _method(name: str, options: dict[str, Any], key: str, tries: int) -> DictConfig | None:
    """`factors` with a classifier of that name, which has its options; None where no such classifier reads factors."""
    try:
        classifier = _of_group("classifier", name)
    except MissingConfigException:
        return None
    reads = _reads(classifier)
    if reads is None:
        return None
    factors = _of_group("representation", "factors")
    of_factors = {option: options[option] for option in options if option in factors and option not in classifier}
    own = {"tries": tries} | {option: value for option, value in options.items() if option not in of_factors}
    found = _changed(factors, {**of_factors, **reads}, key, name)
    with open_dict(found):
        found.classifier = _changed(classifier, own, key, name)
    return found


def _check_reading(cfg: DictConfig, chosen: Mapping[str, DictConfig]) -> None:
    """Refuse a run's classifier that reads factors beside features, or factors in another form than its own."""
    reads = _reads(cfg.classifier)
    for name, config in chosen.items() if reads is not None else ():
        classifier = classifier_name(cfg.classifier)
        if "classifier" in config:
            continue
        if _target(config["_target_"], "representation.") is not Factors:
            raise LorabenchError(
                f"classifier={classifier} reads the factors of modules, and representation={name} makes other numbers: "
                f"give representation=factors, or name both as methods: representations=[{name},{classifier}]"
            )
        wrong = [f"{option}={value}" for option, value in (reads or {}).items() if config[option] != value]
        if wrong:
            raise LorabenchError(f"classifier={classifier} reads factors with representation.{wrong[0]}: give that")


def chosen_and_resolved(
    cfg: DictConfig, names: Mapping[str, str | None]
) -> tuple[dict[str, DictConfig], dict[str, Any]]:
    """The representations that are evaluated, and the whole configuration with these and no other.

    Args:
        cfg: the configuration.
        names: what was chosen of every config group.

    Raises:
        LorabenchError: nothing can be made of it.
    """
    chosen = representation_configs(cfg, str(names["representation"]))
    if baseline_alone(cfg):
        chosen = dict([representation_config(cfg.ablation.baseline, "ablation.baseline", cfg.classifier.tries)])
    _check_reading(cfg, chosen)
    return chosen, _resolved(cfg, chosen)


def configuration_key(config: Mapping[str, Any]) -> str:
    """A key for all of a configuration that changes numbers, and for the code that computes them."""
    parts = {name: value for name, value in config.items() if name not in _NO_NUMBERS}
    parts["dataset"], parts["ablation"] = (_wherever_kept(config[group]) for group in ("dataset", "ablation"))
    return digest(config=json.loads(to_json(parts)), code=_code())


def _wherever_kept(config: Mapping[str, Any]) -> dict[str, Any]:
    """A data set's configuration, or one that holds another's, without the folder of its cache."""
    kept = {name: value for name, value in config.items() if name != "cache_dir"}
    return {name: _wherever_kept(value) if isinstance(value, Mapping) else value for name, value in kept.items()}


@functools.cache
def _code() -> str:
    """Hash of the sources of members (`source_code`) and of what is made of them."""
    package = Path(__file__).parent
    files = [path for room in ("ablation", "zoo") for path in (package / room).glob("*.py")]
    files += [package / "adapters" / "places.py"]  # what layers are grouped by
    files += [package / f"{name}.py" for name in ("findings", "pipeline", "results")]
    return f"{source_code()} {files_hash(*sorted(files))}"


def _resolved(cfg: DictConfig, chosen: dict[str, DictConfig]) -> dict[str, Any]:
    """The whole configuration, with the representations that are evaluated and no other."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise LorabenchError(f"{missing[0]} has no value: give {missing[0]}=...")
    resolved: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    del resolved["representation"]
    resolved["representations"] = {name: _as_used(config) for name, config in chosen.items()}
    return resolved


def _as_used(config: DictConfig) -> dict[str, Any]:
    """A representation's options; those of the training where its autoencoders are another run's.

    Raises:
        LorabenchError: nothing can be made with them, which is told before the data set is read.
    """
    found: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    representation = make_representation(config)
    representation.check()
    if isinstance(representation, Learned | Loaded):
        used = representation.config()
        found |= {name: used[name] for name in found if name in used}
    return found
