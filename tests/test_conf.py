"""Every yaml on disk composes, says how it is used, and instantiates."""

import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, get_method
from omegaconf import OmegaConf

from lorabench.conf_dir import conf_dir

CONF = conf_dir()
FILES = sorted(path for path in CONF.rglob("*.yaml") if path.parent.name != "_parts")  # those are parts of others


def composed(overrides, root="config"):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(root, overrides)


def root_of(path: Path) -> str:
    """Which configuration a yaml belongs to: that of runs, or that of studies."""
    return "studies" if path.parent.name == "study" or path.name == "studies.yaml" else "config"


def choice(path: Path) -> list[str]:
    group = path.parent.relative_to(CONF).as_posix()
    return [] if group == "." else [f"{group}={path.stem}"]


def test_the_groups_of_the_house_are_there():
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    assert groups >= {"dataset", "representation", "classifier", "ablation", "trainer", "logger", "experiment"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(CONF).as_posix())
def test_yaml_composes(path):
    config = composed(choice(path), root_of(path))
    OmegaConf.to_container(config, resolve=True)
    assert OmegaConf.is_struct(config)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(CONF).as_posix())
def test_the_head_of_a_yaml_shows_a_command_that_composes(path):
    lines = path.read_text().splitlines()
    head = lines[1] if lines[0].startswith("# @package") else lines[0]
    program = "lorabench" if root_of(path) == "config" else "lorabench.studies"
    assert head.startswith(f"# python -m {program} "), head
    words = shlex.split(head.removeprefix(f"# python -m {program} ").removeprefix("--multirun "))
    composed(words, root_of(path))
    group = path.parent.relative_to(CONF).as_posix()
    if group != ".":
        assert f"{group}={path.stem}" in words


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(CONF).as_posix())
def test_every_target_exists(path):
    def targets(node):
        if isinstance(node, dict):
            if "_target_" in node:
                yield node["_target_"]
            for value in node.values():
                yield from targets(value)

    config = OmegaConf.to_container(composed(choice(path), root_of(path)), resolve=False)
    found = list(targets(config))
    assert found
    for target in found:
        name = target.rsplit(".", 1)[1]
        assert get_class(target) if name[0].isupper() else get_method(target)


def test_no_value_is_written_in_two_yaml_files_of_a_group():
    """Two options of a group that share three values or more should derive from one another."""
    for group in (path for path in CONF.iterdir() if path.is_dir()):
        seen: dict[tuple[str, str], list[str]] = {}
        for path in group.glob("*.yaml"):
            node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
            for key, value in node.items():
                if key not in ("defaults", "_target_", "on") and not isinstance(value, dict):
                    seen.setdefault((key, str(value)), []).append(path.stem)
        shared: dict[tuple[str, ...], int] = {}
        for files in seen.values():
            if len(files) > 1:
                shared[tuple(sorted(files))] = shared.get(tuple(sorted(files)), 0) + 1
        assert all(count < 3 for count in shared.values()), shared


def test_an_experiment_wins_over_the_values_of_the_root():
    assert composed(["experiment=table"]).representations is not None
    assert composed(["experiment=table", "num_runs=2"]).num_runs == 2
    assert composed([]).representations is None
    quick = composed(["experiment=quick"])
    assert (quick.ablation.name, quick.num_runs, list(quick.representations)) == (
        "compare",
        5,
        ["stats", "norms", "distribution"],
    )
    assert list(composed(["ablation=compare", "representations=[flat]"]).representations) == ["flat"]


def test_the_protocol_of_the_design():
    config = composed([])
    assert (config.split.train, config.split.val, config.split.test) == (0.7, 0.1, 0.2)
    assert config.num_runs == 10
    mlp = config.classifier
    assert list(mlp.hidden) == [512, 512, 512]
    assert (mlp.dropout, mlp.learning_rate, mlp.batch_size) == (0.3, 1e-3, 32)
    assert (mlp.max_epochs, mlp.patience, mlp.plateau_factor, mlp.plateau_patience) == (1000, 20, 0.5, 10)
