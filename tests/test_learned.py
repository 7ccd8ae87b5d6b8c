"""Learned representations as a user meets them: what they see, keep, take back, warn of and refuse."""

import functools
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorabench.errors import LorabenchError
from lorabench.machine import one_thread_an_operation
from lorabench.representations import learned
from lorabench.representations.contrastive import Contrastive
from lorabench.representations.denoising import Denoising
from lorabench.representations.fitted import save_fitted
from lorabench.representations.learned import Learned
from lorabench.representations.load_from import Loaded
from lorabench.representations.vae import VAE
from lorabench.zoo import Labels, Zoo
from tests.cached import cached_features
from tests.synthetic_zoo import make_zoo, planted_zoo, with_layers

CPU = torch.device("cpu")
TRAIN = np.arange(24)
KINDS: tuple[type[Learned], ...] = (VAE, Denoising, Contrastive)
quick = functools.partial(dict, epochs=3, hidden=[16, 8], batch_size=16)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with one_thread_an_operation():
        yield


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return make_zoo(30)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> type[Learned]:
    found = request.param
    assert issubclass(found, Learned)
    return found


def trained_units(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many units every call of `fit_together` from now on gets."""
    calls: list[int] = []
    genuine = learned.fit_together

    def counted(modules: Any, *given: Any) -> Any:
        calls.append(len(modules))
        return genuine(modules, *given)

    monkeypatch.setattr(learned, "fit_together", counted)
    return calls


def changed(zoo: Zoo, rows: np.ndarray, to: float) -> Zoo:
    """The zoo with other weights in some rows, and another fingerprint."""
    values = {name: stack.read(0, len(zoo)).copy() for name, stack in zoo.layers.items()}
    for layer in values.values():
        layer[rows] = to * layer[rows][::-1] + 1
    return with_layers(zoo, values, fingerprint="another")


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for unit, features in expected.items():
        torch.testing.assert_close(found[unit], features, rtol=0, atol=0)


# What they learn from


def test_only_training_rows_are_learned_from_and_no_labels(kind: type[Learned], zoo: Zoo, tmp_path: Path) -> None:
    """To the bit: other test rows, other labels, another name of every adapter."""
    labels = Labels.of([f"x{i}" for i in range(30)], [f"c{i % 7}" for i in range(30)], [f"l{i % 5}" for i in range(30)])
    other = replace(changed(zoo, np.arange(24, 30), 5), labels=labels)
    first, second = kind(**quick()), kind(**quick())
    before = cached_features(first, zoo, TRAIN, tmp_path / "a", CPU)
    after = cached_features(second, other, TRAIN, tmp_path / "b", CPU)
    for unit in before:
        assert torch.equal(before[unit][TRAIN], after[unit][TRAIN])
        assert not torch.allclose(before[unit][24:], after[unit][24:])
        assert first.fitted_[unit].notes == second.fitted_[unit].notes
    third = kind(**quick())
    cached_features(third, changed(zoo, np.arange(3), 5), TRAIN, tmp_path / "c", CPU)
    assert all(third.fitted_[unit].notes != first.fitted_[unit].notes for unit in before)


def test_other_training_rows_are_another_entry_of_the_cache(zoo: Zoo, tmp_path: Path) -> None:
    one = cached_features(VAE(**quick()), zoo, TRAIN, tmp_path, CPU)
    two = cached_features(VAE(**quick()), zoo, TRAIN[1:], tmp_path, CPU)
    assert all(not torch.equal(one[unit], two[unit]) for unit in one)
    assert_same(cached_features(VAE(**quick()), zoo, TRAIN, tmp_path, CPU), one)


def test_the_spread_of_a_vaes_posterior_is_a_feature_too(zoo: Zoo, tmp_path: Path) -> None:
    """The autoencoder is the same; its run gives the same features to another."""
    narrow, wide = VAE(**quick()), VAE(posterior="mean_and_spread", **quick())
    means, both = (cached_features(one, zoo, TRAIN, tmp_path, CPU) for one in (narrow, wide))
    for unit, values in means.items():
        latent = values.shape[1]
        torch.testing.assert_close(both[unit][:, :latent], values, rtol=0, atol=0)
        assert both[unit].shape == (30, 2 * latent)
        assert both[unit][:, latent:].std(0).min() > 0
        assert wide.feature_names(zoo, unit)[latent:] == tuple(f"log_var{i + 1}" for i in range(latent))
    save_fitted(wide.fitted_, wide.config(), tmp_path / "run")
    taken = Loaded(VAE(), str(tmp_path / "run")).fit(zoo, CPU)
    assert_same(taken.transform(zoo, CPU), both)
    assert all(len(taken.feature_names(zoo, unit)) == both[unit].shape[1] for unit in both)
    with pytest.raises(LorabenchError, match=r"representation\.posterior=spread: allowed are mean and mean_and_spread"):
        VAE(posterior="spread").check()


@pytest.mark.parametrize("scope", ["layer", "module", "all"])
def test_units_and_lengths_follow_the_scope(kind: type[Learned], scope: str, zoo: Zoo) -> None:
    representation = kind(scope=scope, **quick()).fit(zoo.rows(TRAIN), CPU)
    assert (
        representation.units(zoo)
        == {
            "layer": tuple(zoo.layers),
            "module": tuple(module.name for module in zoo.modules),
            "all": ("all",),
        }[scope]
    )
    share, most = (5, 128) if kind is Contrastive else (10, 64)
    for unit, features in representation.transform(zoo, CPU).items():
        inputs = sum(zoo.read(layer)[0].size for layer in representation.layers_of(zoo, unit))
        assert features.shape == (30, max(2, min(most, inputs // share)))
        assert representation.feature_names(zoo, unit) == tuple(f"z{i + 1}" for i in range(features.shape[1]))
    assert len(kind(latent_dim=5, **quick()).feature_names(zoo, next(iter(zoo.layers)))) == 5


def test_signal_that_was_planted_is_in_the_features(kind: type[Learned]) -> None:
    """A layer whose classes lie apart: the nearest class mean is right far above chance, and in noise it is not."""
    zoo, train = planted_zoo({1: [-1.5, 0.0, 1.5]}, count=300, modules=1), np.arange(200)
    # Gauges are symmetries of the weights, and a mean is no invariant of theirs.
    options = {"views": "noise"} if kind is Contrastive else {}
    representation = kind(epochs=30, hidden=[64, 32], **options).fit(zoo.rows(train), CPU)
    right = []
    for features in representation.transform(zoo, CPU).values():
        codes = torch.from_numpy(zoo.labels.category)
        means = torch.stack([features[:200][codes[:200] == c].mean(0) for c in range(3)])
        right.append(float((torch.cdist(features[200:], means).argmin(1) == codes[200:]).float().mean()))
    assert right[0] < 0.55
    assert right[1] > 0.9


# Stacks, as on a GPU


def test_chunks_are_of_one_shape_and_as_many_as_memory_holds(kind: type[Learned]) -> None:
    """`meta` stands for any device that is no CPU."""
    zoo, device = make_zoo(12, shapes=((6, 5), (6, 5), (4, 7), (6, 5))), torch.device("meta")
    representation = kind(memory_gb=1, **quick())
    units = representation.units(zoo)
    found = representation._chunks(zoo, units, device)
    assert sorted(unit for chunk in found for unit in chunk) == sorted(units)
    shapes = [{zoo.layers[unit].shape[1:] for unit in chunk} for chunk in found]
    assert all(len(one) == 1 for one in shapes)
    assert sorted(len(chunk) for chunk in found) == [1, 1, 3, 3]
    tight = kind(memory_gb=1e-9, **quick())
    assert [len(chunk) for chunk in tight._chunks(zoo, units, device)] == [1] * 8
    one = learned.member_bytes(representation.new_module(zoo, units[0]), 12, 16)
    pair = kind(memory_gb=2.5 * one / 1e9, **quick())
    assert max(len(chunk) for chunk in pair._chunks(zoo, units, device)) == 2
    assert representation._chunks(zoo, units, CPU) == [[unit] for unit in units]


def test_what_a_stack_learns_of_a_unit_is_what_it_learns_alone(kind: type[Learned], monkeypatch: Any) -> None:
    """Features to 1e-3, and the same diagnostics to 1e-2, in float32."""
    zoo = make_zoo(30, shapes=((6, 5), (6, 5), (6, 5)))
    alone = kind(**quick()).fit(zoo, CPU)
    calls = trained_units(monkeypatch)
    chunks = kind(memory_gb=1)._chunks(zoo, tuple(zoo.layers), torch.device("meta"))
    monkeypatch.setattr(kind, "_chunks", lambda *_: chunks)
    together = kind(**quick()).fit(zoo, CPU)
    assert calls == [3, 3]
    for unit, features in alone.transform(zoo, CPU).items():
        torch.testing.assert_close(together.features(zoo, unit, CPU), features, rtol=1e-3, atol=1e-3)
        ours, theirs = (one.fitted_[unit].notes["diagnostics"] for one in (together, alone))
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-2, abs=1e-4), name


# What they warn of


def test_a_collapsed_posterior_names_unit_and_option_once(caplog: Any, tmp_path: Path) -> None:
    """Also when it comes from the cache."""
    zoo = planted_zoo({}, count=200, modules=1)
    layer = zoo.modules[0].down
    options = {"beta": 10.0, "epochs": 40, "hidden": [16, 8], "learning_rate": 1e-2}
    for _ in range(2):
        caplog.clear()
        representation = VAE(**options)
        for _ in range(2):
            cached_features(representation, zoo.only([layer]), np.arange(180), tmp_path, CPU)
        said = [record.getMessage() for record in caplog.records if "collapsed" in record.getMessage()]
        assert len(said) == 1
        assert f"vae, unit {layer}: the posterior has collapsed" in said[0]
        assert "Train with a lower representation.beta than 10.0" in said[0]
    assert max(representation.fitted_[layer].notes["diagnostics"]["kl"]) < 0.01


def test_constant_features_name_unit_and_option(caplog: Any, zoo: Zoo, monkeypatch: Any) -> None:
    """Where two latent dimensions have no weights."""
    genuine = learned.fit_together

    def deaf(modules: Any, *given: Any) -> Any:
        courses = genuine(modules, *given)
        with torch.no_grad():
            modules[0].encoder[-1].weight[:2] = 0
        return courses

    monkeypatch.setattr(learned, "fit_together", deaf)
    layer = next(iter(zoo.layers))
    Denoising(latent_dim=5, **quick()).fit(zoo.only([layer]), CPU)
    assert f"denoising, unit {layer}: 2 of 5 features are the same for all adapters" in caplog.text
    assert "train with a lower representation.latent_dim, or for more than 3 epochs" in caplog.text


def test_a_healthy_fit_says_nothing(kind: type[Learned], caplog: Any, zoo: Zoo) -> None:
    with caplog.at_level(logging.INFO):
        kind(**quick()).fit(zoo, CPU)
    assert [record for record in caplog.records if record.name.startswith("lorabench")] == []


# What they refuse


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "block"}, r"representation\.scope=block: allowed are layer, module and all"),
        ({"on": "weights"}, r"representation\.on=weights: allowed are factors and delta"),
        ({"epochs": 0}, r"representation\.epochs=0: a whole number from 1"),
        ({"epochs": 2.5}, r"representation\.epochs=2\.5: a whole number from 1"),
        ({"patience": 0}, r"representation\.patience=0: a whole number from 1"),
        ({"batch_size": 1}, r"representation\.batch_size=1: a whole number from 2"),
        ({"latent_dim": 0}, r"representation\.latent_dim=0: a whole number from 1"),
        ({"learning_rate": 0}, r"representation\.learning_rate=0: a number above 0"),
        ({"val_share": 1.0}, r"representation\.val_share=1\.0: a number between 0 and 1"),
        ({"epochs": None}, r"representation\.epochs=None: a whole number from 1"),
        ({"epochs": True}, r"representation\.epochs=True: a whole number from 1"),
        ({"seed": 1.5}, r"representation\.seed=1\.5: a whole number is needed"),
        ({"learning_rate": "fast"}, r"representation\.learning_rate=fast: a number above 0"),
        ({"memory_gb": float("nan")}, r"representation\.memory_gb=nan: a number above 0"),
        ({"hidden": []}, r"representation\.hidden=\[\]: a list of whole numbers from 1"),
        ({"hidden": [8, 0]}, r"representation\.hidden=\[8, 0\]: a list of whole numbers from 1"),
        ({"hidden": ["a"]}, r"representation\.hidden=\['a'\]: a list of whole numbers from 1"),
        ({"hidden": 512}, r"representation\.hidden=512: a list of whole numbers from 1"),
        ({"learning_rate": 1e30}, (r"unit unet\.\S+: the validation loss became (nan|inf) in epoch \d.*a lower "
                                  r"representation\.learning_rate than 1e\+30 may help")),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_are_refused_and_nothing_is_kept(
    options: dict[str, Any], message: str, zoo: Zoo, kind: type[Learned], tmp_path: Path
) -> None:
    representation = kind(**quick())
    for name, value in options.items():
        setattr(representation, name, value)  # the constructor's types are checked while tests run alone
    with pytest.raises(LorabenchError, match=message):
        cached_features(representation, zoo, TRAIN, tmp_path, CPU)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_weights_that_teach_nothing_are_refused(kind: type[Learned], zoo: Zoo, tmp_path: Path) -> None:
    first = zoo.modules[0].down
    small = make_zoo(30, shapes=((3, 5),), ranks=(1,))
    constant = with_layers(zoo, {first: np.repeat(zoo.read(first)[:1], 30, axis=0)})
    cases = (
        (small, f"unit {small.modules[0].up} of synthetic has 3 weights, and an autoencoder needs at least 4"),
        (constant, f"unit {first} of synthetic is the same in all 24 training adapters; there is nothing to learn"),
        (zoo.rows(np.arange(3)), "needs at least 4 training adapters, two of them to stop by, and synthetic has 3"),
    )
    for number, (given, message) in enumerate(cases):
        train = TRAIN[: len(given)]
        with pytest.raises(LorabenchError, match=message):
            cached_features(kind(**quick()), given, train, tmp_path / str(number), CPU)
    names = [path.name for path in (tmp_path / "1").rglob("*") if path.is_file()]
    assert all(name.endswith(".safetensors") and not name.startswith(".") for name in names)
    with pytest.raises(LorabenchError, match=r"has 5, of which val_share=0\.8 sets 4 aside"):
        kind(**quick(), val_share=0.8).fit(zoo.rows(np.arange(5)), CPU)
    kind(**quick()).fit(zoo.rows(np.arange(4)), CPU)  # the fewest
    kind(**quick(), scope="all").fit(small, CPU)


def test_features_of_what_was_not_fitted_are_refused(kind: type[Learned], zoo: Zoo) -> None:
    unit = next(iter(zoo.layers))
    with pytest.raises(LorabenchError, match="was not fitted on unit"):
        kind(**quick()).features(zoo, unit, CPU)
    fitted = kind(**quick(), scope="all").fit(zoo, CPU)
    with pytest.raises(
        LorabenchError, match=r"fitted on 6 layers, and synthetic has 5 layers in this unit; they .* none here"
    ):
        fitted.features(zoo.without([unit]), "all", CPU)
    other = make_zoo(6, shapes=((6, 5), (4, 7), (6, 9)))
    with pytest.raises(LorabenchError, match=r"they differ first in \S*2\.attn1\S*: \(3, 6\) there, \(3, 9\) here"):
        fitted.features(other, "all", CPU)
    turned = replace(zoo, layers=dict(reversed(zoo.layers.items())))
    with pytest.raises(LorabenchError, match="they come in another order"):
        fitted.features(turned, "all", CPU)
