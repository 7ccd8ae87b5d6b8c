"""What learned representations keep: in the cache, in a run's folder, and for adapters never seen."""

import functools
import json
import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorabench.errors import LorabenchError
from lorabench.evaluation import Arm
from lorabench.machine import one_thread_an_operation
from lorabench.representations import learned
from lorabench.representations.contrastive import Contrastive
from lorabench.representations.denoising import Denoising
from lorabench.representations.fitted import FittedUnit, read_index, save_fitted
from lorabench.representations.learned import Learned
from lorabench.representations.load_from import Loaded
from lorabench.representations.vae import VAE
from lorabench.zoo import Zoo
from tests.cached import cached_features
from tests.small_study import evaluator_of
from tests.synthetic_zoo import SHAPES, make_zoo

CPU = torch.device("cpu")
TRAIN = np.arange(24)
KINDS: tuple[type[Learned], ...] = (VAE, Denoising, Contrastive)
quick = functools.partial(dict, epochs=2, hidden=[16, 8], batch_size=16)


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


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many units every call of `fit_together` gets."""
    calls: list[int] = []
    genuine = learned.fit_together

    def counted(modules: Any, *given: Any) -> Any:
        calls.append(len(modules))
        return genuine(modules, *given)

    monkeypatch.setattr(learned, "fit_together", counted)
    return calls


def run(representation: Learned, zoo: Zoo, folder: Path, **given: Any) -> dict[str, torch.Tensor]:
    return cached_features(representation, zoo, TRAIN, folder, CPU, **given)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for unit, features in expected.items():
        torch.testing.assert_close(found[unit], features, rtol=0, atol=0)


# In the cache


@pytest.mark.parametrize("scope", ["layer", "module", "all"])
def test_cached_features_are_fresh_ones_and_what_is_restored_encodes_the_same(
    kind: type[Learned], scope: str, zoo: Zoo, tmp_path: Path, trained: list[int]
) -> None:
    first, again = (kind(scope=scope, **quick()) for _ in range(2))
    ready: list[str] = []
    before = run(first, zoo, tmp_path, on_unit=ready.append)
    assert sorted(ready) == sorted(before)
    assert sum(trained) == len(before)
    assert len(files(tmp_path)) == 2 * len(before)
    direct = kind(scope=scope, **quick()).fit(zoo.rows(TRAIN), CPU)
    assert_same(direct.transform(zoo, CPU), before)
    trained.clear()
    ready.clear()
    assert_same(run(again, zoo, tmp_path, on_unit=ready.append), before)
    assert ready == list(before)
    assert trained == []
    strangers = make_zoo(9, seed=7)
    for unit in before:
        expected = direct.features(strangers, unit, CPU)
        for one in (first, again):  # both have put their modules away and read them again
            assert torch.equal(one.features(strangers, unit, CPU), expected)
        assert again.fitted_[unit].notes == direct.fitted_[unit].notes
        assert again.fitted_[unit].arguments == direct.fitted_[unit].arguments


def test_an_interrupted_run_trains_only_what_is_left(zoo: Zoo, tmp_path: Path, trained: list[int]) -> None:
    ready: list[str] = []

    def interrupt(unit: str) -> None:
        ready.append(unit)
        if len(ready) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(VAE(**quick()), zoo, tmp_path, on_unit=interrupt)
    kept = len(files(tmp_path)) // 2
    assert kept == 2
    trained.clear()
    found = run(VAE(**quick()), zoo, tmp_path)
    assert trained == [1] * (len(zoo.layers) - 2)
    assert_same(found, VAE(**quick()).fit(zoo.rows(TRAIN), CPU).transform(zoo, CPU))


def test_an_interruption_ends_what_trains_in_the_background_at_once(zoo: Zoo, tmp_path: Path) -> None:
    """Even while somebody holds the error: units that would train for hours stop within an epoch."""
    torch.set_num_threads(2)
    before, slow = threading.active_count(), list(zoo.layers)[1]

    class Uneven(VAE):
        def _train(self, zoo: Zoo, units: Any, *given: Any) -> Any:
            self_ = self if units[0] != slow else VAE(epochs=10**9, patience=10**9, hidden=[8])
            return VAE._train(self_, zoo, units, *given)

    def interrupt(unit: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as held:
        run(Uneven(**quick()), zoo, tmp_path, on_unit=interrupt)
    assert threading.active_count() == before
    assert torch.get_num_threads() == 2
    assert held.value is not None
    assert all(not path.name.startswith(".") for path in files(tmp_path))


def test_layers_that_go_leave_the_others_trained(zoo: Zoo, tmp_path: Path, trained: list[int]) -> None:
    before = run(VAE(**quick()), zoo, tmp_path)
    trained.clear()
    fewer = zoo.without([zoo.modules[1].down])
    after = run(VAE(**quick()), fewer, tmp_path)
    assert trained == []
    assert_same(after, {unit: before[unit] for unit in after})
    run(VAE(scope="all", **quick()), fewer, tmp_path)
    run(VAE(scope="all", **quick()), zoo, tmp_path)
    assert trained == [1, 1]


DAMAGE = {
    "gone": lambda _: None,
    "empty": lambda _: b"",
    "cut": lambda data: data[:-4],
    "cut in its header": lambda data: data[:50],
    "longer": lambda data: data + b"\0\0\0\0",
    "a header of lies": lambda data: (2**60).to_bytes(8, "little") + data[8:],
    "no header": lambda _: b"\x02\0\0\0\0\0\0\0[]",
    "other notes": lambda data: data.replace(b"best_epoch", b"best_epocH", 1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_autoencoder_is_trained_again(
    damage: str, zoo: Zoo, tmp_path: Path, trained: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    before = run(VAE(**quick()), zoo, tmp_path)
    path = next(path for path in files(tmp_path) if path.name.endswith(".fitted.safetensors"))
    whole = path.read_bytes()
    damaged = DAMAGE[damage](whole)
    path.unlink()
    if damaged is not None:
        path.write_bytes(damaged)
    trained.clear()
    with caplog.at_level(logging.INFO):
        again = VAE(**quick())
        assert_same(run(again, zoo, tmp_path), before)
    assert trained == [1]
    assert f"{path} holds no autoencoder that can be read" in caplog.text
    assert path.read_bytes() == whole
    strangers = make_zoo(5, seed=7)
    assert again.transform(strangers, CPU).keys() == before.keys()


def test_a_flipped_bit_among_the_weights_is_never_used(zoo: Zoo, tmp_path: Path) -> None:
    """In the cache it is trained again; where a run is to take it over, it is refused."""
    fitted = VAE(**quick())
    run(fitted, zoo, tmp_path)
    unit = next(iter(zoo.layers))
    path = fitted.fitted_[unit].path
    assert path is not None
    data = bytearray(path.read_bytes())
    data[-100] ^= 4
    path.write_bytes(bytes(data))
    message = rf"{path} holds no autoencoder that can be read: .*Delete it and run again"
    with pytest.raises(LorabenchError, match=message):
        VAE(**quick()).restore(unit, path)
    with pytest.raises(LorabenchError, match=message):
        save_fitted(fitted.fitted_, fitted.config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert [p for p in tmp_path.iterdir() if p.name != "features"] == []
    again = VAE(**quick())
    before = fitted.transform(zoo.without([unit]), CPU)
    found = run(again, zoo, tmp_path)
    assert_same({name: found[name] for name in before}, before)
    assert again.features(zoo, unit, CPU).isfinite().all(), "trained again"


def test_a_disk_that_takes_no_more_leaves_all_in_memory(zoo: Zoo, tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "file").touch()
    representation = VAE(**quick())
    found = run(representation, zoo, tmp_path / "file")
    assert "stay in memory" in caplog.text
    assert_same(representation.transform(zoo, CPU), found)
    save_fitted(representation.fitted_, representation.config(), tmp_path / "run")
    assert_same(Loaded(VAE(), str(tmp_path / "run")).fit(zoo, CPU).transform(zoo, CPU), found)


# In a run's folder


@pytest.fixture(params=["layer", "module", "all"])
def saved(request: pytest.FixtureRequest, kind: type[Learned], zoo: Zoo, tmp_path: Path) -> tuple[Learned, Path]:
    """A fitted representation, and the folder of the run that keeps it."""
    representation = kind(scope=request.param, **quick())
    run(representation, zoo, tmp_path / "cache")
    save_fitted(representation.fitted_, representation.config(), tmp_path / "run" / "fitted" / "it")
    return representation, tmp_path / "run"


def test_load_from_gives_the_same_features_on_adapters_never_seen(
    saved: tuple[Learned, Path], trained: list[int], tmp_path: Path
) -> None:
    """Another zoo of the same layers; the run's settings hold, whatever the arguments say."""
    fitted, folder = saved
    strangers = make_zoo(11, seed=8, fingerprint="strangers")
    expected = fitted.transform(strangers, CPU)
    for place in (folder, folder / "fitted" / "it"):
        loaded = Loaded(type(fitted)(scope=fitted.scope), str(place))
        assert_same(loaded.fit(strangers.rows(np.arange(3)), CPU).transform(strangers, CPU), expected)
        for _ in range(2):
            cached = cached_features(loaded, strangers, np.arange(3), tmp_path / "other", CPU)
            assert_same(cached, expected)
        assert {unit: loaded.feature_names(strangers, unit) for unit in expected} == {
            unit: fitted.feature_names(strangers, unit) for unit in expected
        }
    assert trained == []


def test_a_run_says_what_it_keeps(saved: tuple[Learned, Path], zoo: Zoo) -> None:
    fitted, folder = saved
    index = read_index(folder / "fitted" / "it")
    assert index["config"] == json.loads(json.dumps(fitted.config()))
    assert index["units"].keys() == set(fitted.units(zoo))
    for unit, known in index["units"].items():
        assert known["layers"] == list(fitted.layers_of(zoo, unit))
        assert known["diagnostics"] == fitted.fitted_[unit].notes["diagnostics"]
        assert (folder / "fitted" / "it" / known["file"]).is_file()


def test_saving_anew_over_the_files_that_are_in_use_keeps_them(zoo: Zoo, tmp_path: Path) -> None:
    """A run that loads from its own folder; before, what was linked was taken away first."""
    first = VAE(**quick()).fit(zoo.rows(TRAIN), CPU)
    save_fitted(first.fitted_, first.config(), tmp_path / "fitted" / "vae")
    again = Loaded(VAE(), str(tmp_path)).fit(zoo, CPU)
    save_fitted(again.fitted_, again.config(), tmp_path / "fitted" / "vae")
    third = Loaded(VAE(), str(tmp_path)).fit(zoo, CPU)
    assert_same(third.transform(zoo, CPU), first.transform(zoo, CPU))
    assert [path.name for path in (tmp_path / "fitted").iterdir()] == ["vae"]


def test_a_save_that_fails_leaves_what_was_there(zoo: Zoo, tmp_path: Path, monkeypatch: Any) -> None:
    first = VAE(**quick()).fit(zoo.rows(TRAIN), CPU)
    folder = tmp_path / "fitted" / "vae"
    save_fitted(first.fitted_, first.config(), folder)
    before = {path: path.read_bytes() for path in files(tmp_path)}
    genuine = FittedUnit.to_bytes

    def fail(self: FittedUnit) -> bytes:
        if self.layers[0] == list(zoo.layers)[3]:
            raise OSError(28, "No space left on device")
        return genuine(self)

    monkeypatch.setattr(FittedUnit, "to_bytes", fail)
    with pytest.raises(OSError, match="No space"):
        save_fitted(first.fitted_, first.config(), folder)
    assert {path: path.read_bytes() for path in files(tmp_path)} == before


def test_a_setting_that_load_from_would_leave_without_effect_is_refused(
    kind: type[Learned], zoo: Zoo, tmp_path: Path
) -> None:
    fitted = kind(**quick()).fit(zoo.rows(TRAIN), CPU)
    save_fitted(fitted.fitted_, fitted.config(), tmp_path / "fitted" / "it")
    for options, message in (
        (
            {"on": "delta"},
            r"representation\.on=delta: .*load_from=.* were trained with on=factors and are taken as they",
        ),
        ({"hidden": [64]}, r"representation\.hidden=\[64\]: .* with hidden=\[16, 8\]"),
        ({"epochs": 7}, r"representation\.epochs=7: .* with epochs=2"),
    ):
        with pytest.raises(LorabenchError, match=message):
            Loaded(kind(**options), str(tmp_path)).fit(zoo, CPU)
    # What the training had may be said again, and memory is no setting of it.
    again = Loaded(kind(hidden=[16, 8], epochs=2, memory_gb=1.0), str(tmp_path)).fit(zoo, CPU)
    assert again.config() == {**fitted.config(), "fitted": again.config()["fitted"]}
    assert_same(again.transform(zoo, CPU), fitted.transform(zoo, CPU))


def test_an_autoencoder_of_all_layers_is_an_error_of_the_arms_that_lack_one(zoo: Zoo, tmp_path: Path) -> None:
    evaluator = evaluator_of(zoo, tmp_path)
    fitted = VAE(**quick(), scope="all").fit(zoo.rows(evaluator.split.train), CPU)
    save_fitted(fitted.fitted_, fitted.config(), tmp_path / "run" / "fitted" / "it")
    layers = tuple(zoo.layers)
    whole, less = evaluator.evaluate(
        "vae", Loaded(VAE(), str(tmp_path / "run")), [Arm("none", layers), Arm("one less", layers[1:])]
    )
    assert whole.error is None
    assert len(whole.runs) == len(evaluator.seeds)
    assert less.error is not None
    assert f"unit all: fitted on {len(layers)} layers, and synthetic has {len(layers) - 1} layers" in less.error


def test_load_from_of_what_does_not_fit_is_refused(kind: type[Learned], zoo: Zoo, tmp_path: Path) -> None:
    """Other layers, other shapes, no run, another class, two runs in one, damage; nothing is written."""
    fitted = kind(**quick()).fit(zoo.rows(TRAIN), CPU)
    place = tmp_path / "run" / "fitted" / "it"
    save_fitted(fitted.fitted_, fitted.config(), place)
    other = next(one for one in KINDS if one is not kind)
    (tmp_path / "none").mkdir()
    shutil.copytree(place, tmp_path / "two" / "fitted" / "a")
    shutil.copytree(place, tmp_path / "two" / "fitted" / "b")
    for name, file, data in (("no index", "config.json", b"{"), ("cut", "0000.safetensors", b"1234")):
        shutil.copytree(place, tmp_path / name / "fitted" / "it")
        (tmp_path / name / "fitted" / "it" / file).write_bytes(data)
    renamed, wider = make_zoo(6, shapes=(*SHAPES, (6, 5))), make_zoo(6, shapes=((6, 5), (4, 7), (6, 9)))
    cases: tuple[tuple[type[Learned], str, Zoo, str], ...] = (
        (kind, "run", renamed, rf"no autoencoder of unit {renamed.modules[3].down} there; there are unet\..* and 3"),
        (kind, "run", wider, r"differ first in \S+: \(3, 6\) there, \(3, 9\) here"),
        (kind, "absent", zoo, rf"the folder of one run with a fitted {kind.__name__} is needed.*no such folder"),
        (kind, "none", zoo, "found there: no fitted representation"),
        (other, "run", zoo, rf"a fitted {other.__name__} is needed.*found there: .*it \({kind.__name__}\)"),
        (other, "run/fitted/it", zoo, rf"a fitted {other.__name__} is needed"),
        (kind, "two", zoo, r"found there: .*fitted/a \(\w+\), .*fitted/b"),
        (kind, "no index", zoo, r"config\.json holds no autoencoder that can be read"),
        (kind, "cut", zoo, r"0000\.safetensors holds no autoencoder that can be read"),
    )  # fmt: skip
    for number, (which, folder, given, message) in enumerate(cases):
        with pytest.raises(LorabenchError, match=message):
            cached_features(
                Loaded(which(), str(tmp_path / folder)), given, np.arange(6), tmp_path / f"cache{number}", CPU
            )
        assert files(tmp_path / f"cache{number}") == []


def test_a_files_weights_are_held_against_its_checksum_when_loaded(zoo: Zoo, tmp_path: Path) -> None:
    fitted = VAE(**quick()).fit(zoo.rows(TRAIN), CPU)
    save_fitted(fitted.fitted_, fitted.config(), tmp_path / "fitted" / "vae")
    path = tmp_path / "fitted" / "vae" / "0002.safetensors"
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    units = list(zoo.layers)
    refused = 0
    for position in [*rng.integers(0, length, 40), *rng.integers(length, len(whole), 20)]:
        data = bytearray(whole)
        data[position] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(bytes(data))
        try:
            loaded = Loaded(VAE(), str(tmp_path)).fit(zoo.only(units[2:3]), CPU)
            found = loaded.features(zoo, units[2], CPU)
        except LorabenchError as error:
            refused += "0002.safetensors holds no autoencoder that can be read" in str(error)
        else:
            assert torch.equal(found, fitted.features(zoo, units[2], CPU))
    assert refused >= 58  # a bit of the padding behind the header changes nothing
