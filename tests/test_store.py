"""The store: rows in any order, no reading before it is asked for, and nothing half-written taken for whole."""

import contextlib
import errno
import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.errors import LorabenchError
from lorabench.zoo import Labels, Module, Stack, StoreWriter, Zoo, open_store

RNG = np.random.default_rng(0)
SHAPES = {"m.lora.down.weight": (2, 5), "m.lora.up.weight": (3, 2), "lone.lora.up.weight": (4, 2)}


def make_labels(n: int, **knobs) -> Labels:
    return Labels.of([f"a{i}" for i in range(n)], [f"c{i % 2}" for i in range(n)], [f"l{i}" for i in range(n)], **knobs)


def write_store(path: Path, n: int = 6, batches: int = 2, **knobs) -> dict[str, np.ndarray]:
    values = {name: RNG.standard_normal((n, *shape)).astype(np.float32) for name, shape in SHAPES.items()}
    with StoreWriter(path, SHAPES) as writer:
        for rows in np.array_split(np.arange(n), batches):
            writer.append({name: array[rows] for name, array in values.items()})
        writer.finish(
            "toy",
            [Module("m", "m.lora.down.weight", "m.lora.up.weight")],
            np.arange(n)[:, None] % 2 + 1,
            np.linspace(0.5, 2, n, dtype=np.float32)[:, None],
            make_labels(n, **knobs),
        )
    return values


def open_whole(path: Path) -> Zoo:
    zoo = open_store(path)
    assert zoo is not None
    return zoo


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    picks=st.lists(st.lists(st.integers(0, 100), max_size=12), max_size=2),
    span=st.tuples(st.integers(0, 20), st.integers(0, 20)),
)
def test_a_stack_reads_what_the_whole_array_holds(sizes, picks, span):
    pieces = tuple(RNG.standard_normal((size, 2, 3)).astype(np.float32) for size in sizes)
    whole, stack = np.concatenate(pieces), Stack(pieces)
    for pick in picks:
        index = np.array([i % len(whole) for i in pick] if len(whole) else [], np.int64)
        whole, stack = whole[index], stack.rows(index)
    assert stack.shape == whole.shape
    assert len(stack) == len(whole)
    assert np.array_equal(stack.read(*span), whole[slice(*span)])


def test_reading_within_a_piece_copies_nothing():
    piece = np.zeros((4, 2, 3), np.float32)
    assert np.shares_memory(Stack((piece, piece.copy())).read(1, 3), piece)


def test_what_was_written_is_read(tmp_path):
    values = write_store(tmp_path / "zoo", group=["g"] * 6, split=np.array([0, 0, 0, 0, 1, 2]))
    zoo = open_whole(tmp_path / "zoo")
    assert list(zoo.layers) == list(SHAPES)
    for name, array in values.items():
        assert np.array_equal(zoo.read(name), array)
        assert np.array_equal(zoo.read(name, 2, 4), array[2:4])
        assert isinstance(zoo.layers[name].pieces[0], np.memmap)
    assert zoo.modules == (Module("m", "m.lora.down.weight", "m.lora.up.weight"),)
    assert np.array_equal(zoo.rank[:, 0], np.arange(6) % 2 + 1)
    assert np.allclose(zoo.scale[:, 0], np.linspace(0.5, 2, 6))
    assert zoo.labels.adapters == tuple(f"a{i}" for i in range(6))
    assert zoo.labels.category.tolist() == [0, 1] * 3
    assert zoo.labels.category_names == ("c0", "c1")
    assert zoo.labels.group is not None
    assert zoo.labels.split is not None
    assert zoo.labels.split.tolist() == [0, 0, 0, 0, 1, 2]
    assert np.array_equal(zoo.layer_rank("m.lora.up.weight"), zoo.rank[:, 0])
    assert zoo.layer_rank("lone.lora.up.weight").tolist() == [2] * 6


def test_the_fingerprint_tells_zoos_and_their_rows_apart(tmp_path):
    write_store(tmp_path / "a")
    write_store(tmp_path / "b")
    a, b = open_whole(tmp_path / "a"), open_whole(tmp_path / "b")
    first, second = a.rows(np.array([0, 1])), a.rows(np.array([1, 0]))
    assert len({a.fingerprint, b.fingerprint, first.fingerprint, second.fingerprint}) == 4
    assert open_whole(tmp_path / "a").fingerprint == a.fingerprint


def test_rows_keep_weights_labels_ranks_and_scales_together(tmp_path):
    values = write_store(tmp_path / "zoo")
    index = np.array([5, 0, 3])
    zoo = open_whole(tmp_path / "zoo").rows(index)
    assert len(zoo) == 3
    assert zoo.labels.adapters == ("a5", "a0", "a3")
    assert zoo.rank[:, 0].tolist() == [2, 1, 2]
    for name, array in values.items():
        assert np.array_equal(zoo.read(name), array[index])


def test_only_and_without_take_a_module_with_its_layer(tmp_path):
    write_store(tmp_path / "zoo")
    zoo = open_whole(tmp_path / "zoo")
    kept = zoo.only(["m.lora.up.weight", "m.lora.down.weight"])
    assert list(kept.layers) == ["m.lora.down.weight", "m.lora.up.weight"]
    assert kept.modules == zoo.modules
    cut = zoo.without(["m.lora.down.weight"])
    assert list(cut.layers) == ["m.lora.up.weight", "lone.lora.up.weight"]
    assert cut.modules == ()
    assert cut.rank.shape == cut.scale.shape == (6, 0)
    for call in (zoo.only, zoo.without):
        with pytest.raises(LorabenchError, match=r"no layer 'x'"):
            call(["x"])


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(tmp_path, poison):
    values = write_store(tmp_path / "zoo")
    array = values["m.lora.up.weight"]
    array[4, 1, 1] = poison
    zoo = Zoo(**{**vars(open_whole(tmp_path / "zoo")), "layers": {"m.lora.up.weight": Stack((array,))}})
    with pytest.raises(LorabenchError, match=r"toy: NaN or infinite weights in layer m.lora.up.weight of a4\."):
        zoo.read("m.lora.up.weight")
    with pytest.raises(LorabenchError, match=r"of a4\."):
        zoo.rows(np.array([1, 4])).read("m.lora.up.weight")
    assert np.isfinite(zoo.read("m.lora.up.weight", 0, 4)).all()


def test_infinities_that_cancel_and_sums_that_overflow_are_told_apart(tmp_path):
    values = write_store(tmp_path / "zoo")
    array = np.full_like(values["m.lora.up.weight"], np.finfo(np.float32).max)
    zoo = Zoo(**{**vars(open_whole(tmp_path / "zoo")), "layers": {"m.lora.up.weight": Stack((array,))}})
    assert np.array_equal(zoo.read("m.lora.up.weight"), array)
    array[1, 0, 0], array[2, 0, 0] = np.inf, -np.inf
    with pytest.raises(LorabenchError, match=r"of a1, a2\."):
        zoo.read("m.lora.up.weight")


def write_half(path: Path, values: dict[str, np.ndarray]) -> None:
    with contextlib.suppress(KeyboardInterrupt), StoreWriter(path, SHAPES) as writer:
        writer.append(values)
        raise KeyboardInterrupt


def test_an_error_while_writing_leaves_nothing(tmp_path):
    write_half(tmp_path / "zoo", {name: np.zeros((3, *shape), np.float32) for name, shape in SHAPES.items()})
    assert list(tmp_path.iterdir()) == []
    assert open_store(tmp_path / "zoo") is None


def test_a_killed_writer_leaves_no_zoo(tmp_path):
    code = """
        import sys, time, pathlib, numpy as np
        from lorabench.zoo import StoreWriter
        with StoreWriter(pathlib.Path(sys.argv[1]), {"x": (1, 1)}) as writer:
            writer.append({"x": np.zeros((3, 1, 1), np.float32)})
            print("ready", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "zoo")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    assert open_store(tmp_path / "zoo") is None
    write_store(tmp_path / "zoo")
    assert len(open_whole(tmp_path / "zoo")) == 6


def test_an_unfinished_rebuild_leaves_the_old_zoo(tmp_path):
    values = write_store(tmp_path / "zoo")
    write_half(tmp_path / "zoo", {name: 0 * array for name, array in values.items()})
    assert np.array_equal(open_whole(tmp_path / "zoo").read("m.lora.up.weight"), values["m.lora.up.weight"])


def test_a_rebuild_replaces_the_old_zoo(tmp_path):
    write_store(tmp_path / "zoo")
    values = write_store(tmp_path / "zoo", n=4)
    assert np.array_equal(open_whole(tmp_path / "zoo").read("m.lora.up.weight"), values["m.lora.up.weight"])


def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path):
    """RLIMIT_FSIZE refuses to grow a file as a full disk does, with another number; here that is renamed."""
    code = """
        import errno, pathlib, resource, signal, sys, numpy as np
        from lorabench.errors import LorabenchError
        from lorabench.zoo import StoreWriter
        errno.ENOSPC = errno.EFBIG
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
        try:
            with StoreWriter(pathlib.Path(sys.argv[1]), {"x": (64, 64)}) as writer:
                for _ in range(100):
                    writer.append({"x": np.zeros((1, 64, 64), np.float32)})
        except LorabenchError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "zoo")]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"cannot write {tmp_path / 'zoo'}: the disk is full" in found.stdout
    assert "cache_dir" in found.stdout
    assert list(tmp_path.iterdir()) == []
    assert errno.ENOSPC != errno.EFBIG


def test_a_disk_that_fills_up_with_the_description_leaves_nothing(tmp_path, monkeypatch):
    def refuse(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(LorabenchError, match="the disk is full"):
        write_store(tmp_path / "zoo")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LorabenchError, match="file"):
        write_store(tmp_path / "file" / "zoo")


def damage_layer(path: Path) -> None:
    with (path / "0001.f32").open("r+b") as file:
        file.truncate(17)


def damage_description(path: Path) -> None:
    text = (path / "zoo.json").read_text()
    (path / "zoo.json").write_text(text[: len(text) // 2])


def age_description(path: Path) -> None:
    meta = json.loads((path / "zoo.json").read_text())
    (path / "zoo.json").write_text(json.dumps({**meta, "format": -1}))


@pytest.mark.parametrize(
    "damage",
    [
        damage_layer,
        damage_description,
        age_description,
        lambda path: (path / "0000.f32").unlink(),
        lambda path: (path / "zoo.json").unlink(),
        lambda path: (path / "zoo.json").write_bytes(b"\xff\xfe\x00"),
        lambda path: (path / "zoo.json").write_text("[]"),
    ],
)
def test_what_is_not_whole_is_no_zoo(tmp_path, damage):
    write_store(tmp_path / "zoo")
    damage(tmp_path / "zoo")
    assert open_store(tmp_path / "zoo") is None


def test_no_folder_is_no_zoo(tmp_path):
    assert open_store(tmp_path / "none") is None
    (tmp_path / "file").write_text("")
    assert open_store(tmp_path / "file") is None


def test_opening_reads_no_weights(tmp_path):
    """A sparse file of 50 GB opens at once: nothing of it is read."""
    shapes = {"m.lora.down.weight": (1, 2**17)}
    count = 10**5
    write_store(tmp_path / "zoo")
    meta = json.loads((tmp_path / "zoo" / "zoo.json").read_text())
    labels = {key: value for key, value in meta["labels"].items() if key.endswith("_names")}
    columns = {key: [0] * count for key in ("category", "leaf")} | {"group": None, "split": None, "recipe": {}}
    meta |= {
        "count": count,
        "layers": [[name, list(shape)] for name, shape in shapes.items()],
        "modules": [],
        "rank": [[]] * count,
        "scale": [[]] * count,
        "labels": {**labels, **columns, "adapters": [""] * count},
    }
    (tmp_path / "zoo" / "zoo.json").write_text(json.dumps(meta))
    with (tmp_path / "zoo" / "0000.f32").open("wb") as file:
        file.truncate(4 * 2**17 * count)
    start = time.monotonic()
    zoo = open_whole(tmp_path / "zoo")
    assert zoo.layers["m.lora.down.weight"].shape == (count, 1, 2**17)
    assert time.monotonic() - start < 10


def test_mismatched_shapes_and_counts_are_refused(tmp_path):
    with StoreWriter(tmp_path / "zoo", {"x": (1, 2)}) as writer:
        with pytest.raises(ValueError, match="the store has"):
            writer.append({"x": np.zeros((3, 2, 1), np.float32)})
        writer.append({"x": np.zeros((3, 1, 2), np.float32)})
        with pytest.raises(ValueError, match="3 adapters were appended, 2 are labelled"):
            writer.finish("toy", [], np.zeros((2, 0), np.int64), np.zeros((2, 0), np.float32), make_labels(2))


def test_labels_are_coded_in_the_order_of_their_names():
    labels = Labels.of(["x", "y", "z"], ["b", "a", "b"], ["q", "r", "s"], group=["2", "1", "2"])
    assert labels.category_names == ("a", "b")
    assert labels.category.tolist() == [1, 0, 1]
    assert labels.leaf_names == ("q", "r", "s")
    assert labels.group is not None
    assert labels.group.tolist() == [1, 0, 1]
    picked = labels.rows(np.array([2, 1]))
    assert picked.adapters == ("z", "y")
    assert picked.category.tolist() == [1, 0]
    assert picked.category_names == labels.category_names
