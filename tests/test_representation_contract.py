"""Every representation in conf/representation keeps the contract of `Representation`: a new yaml needs no new test."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lorabench.representations import Representation
from lorabench.zoo import Zoo
from tests.cached import cached_features
from tests.synthetic_zoo import make_zoo, regauged, with_layers

CPU = torch.device("cpu")
CONF = Path(__file__).parents[1] / "conf"
STEMS = sorted(path.stem for path in (CONF / "representation").glob("*.yaml"))
CHEAP = ("epochs=3", "hidden=[16,8]", "projection=[8,8]")
"""What is trained need not be good here."""
TRAIN, TEST = np.arange(16), np.arange(16, 24)


@functools.cache
def settings(choice: str) -> dict[str, Any]:
    """Arguments of one representation; `spectral:on=delta` is the yaml with one of them changed."""
    stem, *changes = choice.split(":")
    found = composed(stem, changes)
    if "epochs" not in found:
        return found
    return composed(stem, [*changes, *(change for change in CHEAP if change.partition("=")[0] in found)])


def composed(stem: str, changes: list[str]) -> dict[str, Any]:
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        config = compose(f"representation/{stem}", [f"representation.{change}" for change in changes])
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    # Hydra puts the file under its package; `# @package` and a defaults list may lift it out.
    found = dict(plain.get("representation", plain))
    found.pop("load_from", None)  # whose autoencoders, says the configuration; `make_representation` looks at it
    return found


def choices() -> list[str]:
    """Every yaml, and every yaml again with its other way of looking, if it has one."""
    found = list(STEMS)
    for stem in STEMS:
        knobs = settings(stem)
        if knobs.get("on") == "factors":
            found.append(f"{stem}:on=delta")
        if "scope" in knobs:
            found.append(f"{stem}:scope=all")
            module = f"{stem}:scope=module"
            if knobs["scope"] != "module" and build(module).unit == "module":
                found.append(module)
    return found


def build(choice: str) -> Representation:
    found = hydra.utils.instantiate(settings(choice), _convert_="all")
    assert isinstance(found, Representation)
    return found


@pytest.fixture(params=STEMS)
def stem(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=choices())
def choice(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@functools.cache
def the_zoo() -> Zoo:
    # Layers both under and over 50 numbers, 10 rows and 10 singular values.
    return make_zoo(24, shapes=((6, 5), (16, 12), (12, 12)), ranks=(1, 2, 4))


@pytest.fixture
def zoo() -> Zoo:
    return the_zoo()


@functools.cache
def fitted_on(choice: str) -> Representation:
    return build(choice).fit(the_zoo().rows(TRAIN), CPU)


@pytest.fixture
def fitted(choice: str) -> Representation:
    return fitted_on(choice)


def close(a: torch.Tensor, b: torch.Tensor, rtol: float = 1e-4) -> bool:
    """Equal to float32, each feature in its own size."""
    size = torch.maximum(a.abs(), b.abs()).amax(0)
    return bool(((a - b).abs() <= rtol * size + 1e-6).all())


def test_the_folder_is_found() -> None:
    assert {"flat", "pca", "delta_pca"} <= set(STEMS)


def test_yaml_and_module_share_a_stem(stem: str) -> None:
    target = str(settings(stem)["_target_"])
    module, _, name = target.rpartition(".")
    assert module == f"lorabench.representations.{stem}"
    assert type(build(stem)).__module__ == module
    assert type(build(stem)).__name__ == name


def test_the_head_of_the_yaml_is_its_command(stem: str) -> None:
    head = (CONF / "representation" / f"{stem}.yaml").read_text().splitlines()[0]
    assert head.startswith("# python -m lorabench")
    assert f"representation={stem}" in head


def test_the_constructor_stores_only(choice: str) -> None:
    found = build(choice)
    assert dataclasses.is_dataclass(found)
    fields = {field.name for field in dataclasses.fields(found)}
    assert set(vars(found)) == fields
    given = {key: value for key, value in settings(choice).items() if not key.startswith("_")}
    assert set(given) == fields, "the yaml says every knob"
    for name, value in given.items():
        if not (isinstance(value, (dict, list)) and "_target_" in str(value)):
            assert getattr(found, name) == value


def test_what_was_learned_comes_back_as_arrays(zoo: Zoo, choice: str, fitted: Representation) -> None:
    """What predicts another adapter knows no training adapter: options and arrays are enough."""
    arrays = fitted.arrays()
    again = build(choice)
    again.take_arrays(zoo.rows(np.arange(0)), arrays)
    new = zoo.rows(TEST)
    for unit, expected in fitted.transform(new, CPU).items():
        assert close(again.features(new, unit, CPU), expected), unit
    assert arrays.keys() == again.arrays().keys()
    assert bool(arrays) == fitted.learns


def test_config_is_plain_and_tells_arguments_apart(choice: str) -> None:
    found = build(choice).config()
    assert found == build(choice).config()
    assert found["class"].startswith("lorabench.representations.")


def test_features_are_finite_float32_of_the_said_length(fitted: Representation, zoo: Zoo) -> None:
    units = fitted.units(zoo)
    found = fitted.transform(zoo, CPU)
    assert tuple(found) == units
    for unit, features in found.items():
        names = fitted.feature_names(zoo, unit)
        assert features.shape == (len(zoo), len(names))
        assert len(set(names)) == len(names)
        assert features.dtype == torch.float32
        assert features.device == CPU
        assert torch.isfinite(features).all()
        assert features.std(0).max() > 0, "adapters that differ must not look alike"
        assert set(fitted.layers_of(zoo, unit)) <= set(zoo.layers)


def test_degenerate_adapters_have_finite_features(fitted: Representation, zoo: Zoo) -> None:
    blank = {name: stack.read(0, len(zoo)).copy() for name, stack in zoo.layers.items()}
    for module in zoo.modules:
        blank[module.up][0] = 0
        blank[module.down][1] = 0
        blank[module.up][2] = blank[module.down][2] = 0.25
        blank[module.up][3] *= 1e-12
        blank[module.down][4] *= 1e6
    for unit, features in fitted.transform(with_layers(zoo, blank), CPU).items():
        assert torch.isfinite(features).all(), (unit, torch.nonzero(~torch.isfinite(features)).tolist()[:5])


def test_the_same_again(choice: str, zoo: Zoo, fitted: Representation) -> None:
    again = build(choice).fit(zoo.rows(TRAIN), CPU)
    for unit, features in fitted.transform(zoo, CPU).items():
        assert torch.equal(features, again.features(zoo, unit, CPU))


def test_rows_do_not_see_each_other(fitted: Representation, zoo: Zoo) -> None:
    index = np.array([20, 3, 3, 17])
    for unit, features in fitted.transform(zoo, CPU).items():
        assert close(fitted.features(zoo.rows(index), unit, CPU), features[index], 1e-5)
        assert fitted.features(zoo.rows(index[:0]), unit, CPU).shape == (0, features.shape[1])


def test_units_do_not_see_other_layers(choice: str, fitted: Representation, zoo: Zoo) -> None:
    if fitted.unit == "all":
        pytest.skip("its unit is all layers")
    whole = fitted.transform(zoo, CPU)
    fewer = zoo.only([zoo.modules[1].down, zoo.modules[1].up])
    for unit, features in build(choice).fit(fewer.rows(TRAIN), CPU).transform(fewer, CPU).items():
        assert close(features, whole[unit], 1e-5)


def test_fit_sees_the_rows_it_is_given_alone(choice: str, zoo: Zoo, tmp_path: Path) -> None:
    changed = {name: stack.read(0, len(zoo)).copy() for name, stack in zoo.layers.items()}
    for values in changed.values():
        values[TEST] = 3 * values[TEST][::-1] + 1
    other = with_layers(zoo, changed, fingerprint="another")
    before = cached_features(build(choice), zoo, TRAIN, tmp_path, CPU)
    after = cached_features(build(choice), other, TRAIN, tmp_path, CPU)
    for unit, features in before.items():
        assert close(features[TRAIN], after[unit][TRAIN], 1e-5)
        assert not close(features[TEST], after[unit][TEST], 1e-3)


def test_it_keeps_its_word_on_the_gauge(fitted: Representation, zoo: Zoo) -> None:
    other = regauged(zoo)
    for unit, features in fitted.transform(zoo, CPU).items():
        assert close(features, fitted.features(other, unit, CPU), 1e-3) == fitted.gauge_invariant, unit


def test_a_word_on_the_gauge_holds_for_fitting_too(choice: str, fitted: Representation, zoo: Zoo) -> None:
    if not (fitted.learns and fitted.gauge_invariant):
        pytest.skip("it does not learn, or sees the gauge")
    other = regauged(zoo)
    learned = build(choice).fit(other.rows(TRAIN), CPU)
    for unit, features in fitted.transform(zoo, CPU).items():
        assert close(features, learned.features(other, unit, CPU), 1e-3)


def test_it_is_described(stem: str) -> None:
    found = type(build(stem))
    assert found.__doc__
    assert not found.__doc__.startswith(f"{found.__name__}("), "a dataclass without a docstring says its signature"
