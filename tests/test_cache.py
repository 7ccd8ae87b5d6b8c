"""The feature cache: what it keeps, what it throws away, and what no failing disk may take from it."""

import logging
import os
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors import safe_open

from lorabench.errors import LorabenchError
from lorabench.representations import cache
from lorabench.representations.base import Representation, Unit
from lorabench.representations.delta_pca import DeltaPCA
from lorabench.representations.flat import Flat
from lorabench.representations.pca import PCA
from lorabench.zoo import Zoo
from tests.cached import cached_features
from tests.synthetic_zoo import make_zoo, with_layers

CPU = torch.device("cpu")
TRAIN = np.arange(0, 24, 2)
CALLS: Counter[str] = Counter()


@dataclass
class Counted(Representation):
    """Mean and largest entry of a layer; counts what is asked of it."""

    factor: float = 1.0

    @property
    def unit(self) -> Unit:
        return "layer"

    @property
    def gauge_invariant(self) -> bool:
        return False

    def feature_names(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        del zoo, unit
        return ("mean", "max")

    def features(self, zoo: Zoo, unit: str, device: torch.device) -> torch.Tensor:
        del device
        CALLS[unit] += 1
        values = torch.from_numpy(zoo.read(unit)).flatten(1) * self.factor
        return torch.stack([values.mean(1), values.amax(1)], 1)


@dataclass
class Learner(Counted):
    """The same, less the training mean."""

    learns: ClassVar[bool] = True

    def fit(self, zoo: Zoo, device: torch.device) -> "Learner":
        del device
        CALLS["fit"] += 1
        self.rows_ = len(zoo)
        self.means_ = {layer: float(zoo.read(layer).mean()) for layer in zoo.layers}
        return self

    def features(self, zoo: Zoo, unit: str, device: torch.device) -> torch.Tensor:
        return super().features(zoo, unit, device) - self.means_[unit]


@dataclass
class Broken(Counted):
    """Infinite for two adapters."""

    def features(self, zoo: Zoo, unit: str, device: torch.device) -> torch.Tensor:
        found = super().features(zoo, unit, device)
        found[[3, 5], 1] = torch.inf
        return found


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


def run(representation: Representation, zoo: Zoo, folder: Path, train: np.ndarray = TRAIN, **kw: Any) -> dict:
    return cached_features(representation, zoo, train, folder, CPU, **kw)


def entries(folder: Path) -> list[Path]:
    return sorted((folder / "features").iterdir())


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for unit in expected:
        torch.testing.assert_close(found[unit], expected[unit], rtol=0, atol=0)


@pytest.mark.parametrize("representation", [Counted(), Learner(), PCA(3), PCA(3, "all"), DeltaPCA(3), Flat()])
def test_first_run_second_run_and_the_direct_way_agree(representation: Representation, tmp_path: Path) -> None:
    zoo, ready = make_zoo(), []
    first = run(representation, zoo, tmp_path, on_unit=ready.append)
    assert ready == list(first) == list(representation.units(zoo))
    expected = representation.fit(zoo.rows(TRAIN), CPU).transform(zoo, CPU)
    CALLS.clear()
    assert_equal(first, expected)
    assert_equal(run(representation, zoo, tmp_path), expected)
    assert not CALLS
    for features in first.values():
        assert features.dtype == torch.float32


def test_one_file_a_unit_with_key_and_checksum(tmp_path: Path) -> None:
    zoo = make_zoo()
    run(Counted(), zoo, tmp_path)
    assert len(entries(tmp_path)) == len(zoo.layers)
    for path in entries(tmp_path):
        with safe_open(path, "pt") as file:
            assert set(file.metadata()) == {"key", "checksum"}
            assert zoo.fingerprint in file.metadata()["key"]


def test_flat_is_not_kept(tmp_path: Path) -> None:
    run(Flat(), make_zoo(), tmp_path)
    assert not (tmp_path / "features").exists()


def test_fit_sees_the_training_rows_and_only_what_is_missing(tmp_path: Path) -> None:
    zoo, learner = make_zoo(), Learner()
    before = run(learner, zoo, tmp_path)
    assert learner.rows_ == len(TRAIN)
    assert CALLS["fit"] == 1
    entries(tmp_path)[2].unlink()
    again = Learner()
    assert_equal(run(again, zoo, tmp_path), before)
    assert len(again.means_) == 1
    assert CALLS["fit"] == 2


def test_ablated_layers_leave_the_others_cached(tmp_path: Path) -> None:
    zoo = make_zoo()
    for representation in (Counted(), Learner(), PCA(2), DeltaPCA(2)):
        before = run(representation, zoo, tmp_path)
        fewer = zoo.without([zoo.modules[1].down])
        count = len(entries(tmp_path))
        CALLS.clear()
        after = run(replace(representation), fewer, tmp_path)  # type: ignore[type-var]
        assert_equal(after, {unit: before[unit] for unit in after})
        assert 0 < len(after) < len(before)
        assert len(entries(tmp_path)) == count
        assert not CALLS


def test_all_layers_together_are_keyed_by_the_layers_there_are(tmp_path: Path) -> None:
    zoo = make_zoo()
    fewer = zoo.without([zoo.modules[1].down])
    for representation in (PCA(2, "all"), DeltaPCA(2, "all")):
        whole, part = run(representation, zoo, tmp_path), run(representation, fewer, tmp_path)
        assert not torch.equal(whole["all"], part["all"])
        assert_equal(part, representation.fit(fewer.rows(TRAIN), CPU).transform(fewer, CPU))
    assert len(entries(tmp_path)) == 4


def test_each_part_of_the_key_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = make_zoo()
    units = len(zoo.layers)
    run(Learner(), zoo, tmp_path)
    changed: list[tuple[Representation, Zoo, np.ndarray]] = [
        (Learner(2.0), zoo, TRAIN),
        (Counted(), zoo, TRAIN),
        (Learner(), replace(zoo, fingerprint="0" * 32), TRAIN),
        (Learner(), zoo.rows(np.arange(23)), TRAIN),
        (Learner(), zoo, TRAIN[1:]),
    ]
    for number, (representation, other, train) in enumerate(changed):
        CALLS.clear()
        found = run(representation, other, tmp_path, train)
        assert sum(CALLS[layer] for layer in zoo.layers) == units, number
        assert_equal(found, representation.fit(other.rows(train), CPU).transform(other, CPU))
    CALLS.clear()
    run(Counted(), zoo, tmp_path, TRAIN[1:])
    assert not CALLS, "what does not learn does not depend on the training rows"
    monkeypatch.setattr(cache, "_code_version", lambda: "another")
    run(Counted(), zoo, tmp_path)
    assert sum(CALLS.values()) == units


def test_code_version_is_that_of_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path(cache.__file__).parent
    shutil.copytree(here, tmp_path / "representations", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(here.parent / "training", tmp_path / "training", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(here.parent / "lowrank.py", tmp_path)
    original = cache._code_version.__wrapped__()
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "representations" / "cache.py"))
    assert cache._code_version.__wrapped__() == original
    for name in ("representations/flat.py", "training/adam.py", "lowrank.py"):
        with (tmp_path / name).open("a") as file:
            file.write("\n")
        changed = cache._code_version.__wrapped__()
        assert changed != original
        original = changed


def test_every_flipped_byte_is_caught(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    zoo = make_zoo(4).only([make_zoo().modules[0].down])
    expected = run(Counted(), zoo, tmp_path, np.arange(3))
    (path,) = entries(tmp_path)
    whole = path.read_bytes()
    rebuilt = 0
    with caplog.at_level(logging.INFO):
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << (position % 8)
            path.write_bytes(bytes(damaged))
            CALLS.clear()
            assert_equal(run(Counted(), zoo, tmp_path, np.arange(3)), expected)
            rebuilt += bool(CALLS)
            CALLS.clear()
            run(Counted(), zoo, tmp_path, np.arange(3))
            assert not CALLS, "what was rebuilt is kept"
    # A flipped bit of the padding between header and payload changes nothing that is read.
    assert rebuilt >= len(whole) - 8
    assert len(caplog.records) == rebuilt
    assert {record.levelno for record in caplog.records} == {logging.INFO}
    assert "computed again" in caplog.text


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1])
def test_a_truncated_entry_is_rebuilt(length: int, tmp_path: Path) -> None:
    zoo = make_zoo()
    expected = run(Counted(), zoo, tmp_path)
    for path in entries(tmp_path):
        path.write_bytes(path.read_bytes()[:length])
    CALLS.clear()
    assert_equal(run(Counted(), zoo, tmp_path), expected)
    assert sum(CALLS.values()) == len(zoo.layers)


def test_an_entry_of_other_data_under_this_name_is_rebuilt(tmp_path: Path) -> None:
    zoo = make_zoo()
    expected = run(Counted(), zoo, tmp_path)
    paths = entries(tmp_path)
    first, second = (path.read_bytes() for path in paths[:2])
    paths[0].write_bytes(second)
    paths[1].write_bytes(first)
    CALLS.clear()
    assert_equal(run(Counted(), zoo, tmp_path), expected)
    assert sum(CALLS.values()) == 2
    assert_equal(run(Counted(), zoo, tmp_path), expected)
    assert sum(CALLS.values()) == 2


def test_a_full_disk_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")

    open_file = os.open

    def full(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if not flags & os.O_EXCL:
            return open_file(path, flags, mode)
        Path(path).touch()
        return open_file("/dev/full", os.O_WRONLY)

    zoo = make_zoo()
    expected = Counted().transform(zoo, CPU)
    monkeypatch.setattr("lorabench.storage.os.open", full)
    assert_equal(run(Counted(), zoo, tmp_path), expected)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "No space left" in caplog.text
    assert entries(tmp_path) == []


def test_a_place_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    zoo = make_zoo()
    assert_equal(run(Counted(), zoo, tmp_path / "file"), Counted().transform(zoo, CPU))
    assert "stay in memory" in caplog.text


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(Counted(), make_zoo(), tmp_path)
    assert entries(tmp_path) == []


def test_features_that_are_not_finite_name_representation_unit_and_adapters(tmp_path: Path) -> None:
    zoo = make_zoo()
    first = next(iter(zoo.layers))
    with pytest.raises(LorabenchError, match=rf"Broken: .*{first}.*adapter3, adapter5\. Remove"):
        run(Broken(), zoo, tmp_path)
    assert not (tmp_path / "features").exists()


def test_weights_that_are_not_finite_are_the_zoos_error(tmp_path: Path) -> None:
    zoo = make_zoo()
    name = zoo.modules[0].down
    values = zoo.read(name).copy()
    values[4, 0, 0] = np.nan
    for representation in (PCA(2), DeltaPCA(2), Flat()):
        with pytest.raises(LorabenchError, match=r"NaN or infinite weights .*adapter4"):
            run(representation, with_layers(zoo, {name: values}), tmp_path)
