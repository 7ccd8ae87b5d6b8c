"""A hub data set that cannot be read, or reached, ends in one message that names it and what to do."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest

from lorabench.errors import LorabenchError
from lorabench.zoo import hub, hub_source
from tests.hub_schema import (
    hub_table,
    layers_of,
    list_column,
    load,
    open_table,
    put,
    rows_of,
    small_modules,
    write_hub,
)

pytestmark = pytest.mark.usefixtures("no_datasets_bars")
Q = next(iter(small_modules()))
DOWN, UP = f"{Q}.lora.down.weight", f"{Q}.lora.up.weight"


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def ragged(table: pa.Table) -> pa.Table:
    lists = table.column(UP).to_pylist()
    lists[3][2] = [1.0, 2.0]
    return put(table, UP, pa.array(lists, pa.list_(pa.list_(pa.float32()))))


def missing(table: pa.Table, layer: str = DOWN) -> pa.Table:
    lists = table.column(layer).to_pylist()
    lists[2] = lists[5] = None
    return put(table, layer, pa.array(lists, pa.list_(pa.list_(pa.float32()))))


def nulls_inside(table: pa.Table, value) -> pa.Table:
    lists = table.column(DOWN).to_pylist()
    lists[2] = value
    return put(table, DOWN, pa.array(lists, pa.list_(pa.list_(pa.float32()))))


def other_width(table: pa.Table) -> pa.Table:
    lists = table.column(DOWN).to_pylist()
    lists[4] = [[0.0] * 5]
    return put(table, DOWN, pa.array(lists, pa.list_(pa.list_(pa.float32()))))


def other_rank(table: pa.Table) -> pa.Table:
    lists = table.column(DOWN).to_pylist()
    lists[4] = lists[4] * 2
    return put(table, DOWN, pa.array(lists, pa.list_(pa.list_(pa.float32()))))


def without_layers(table: pa.Table) -> pa.Table:
    return table.drop_columns(layers_of(table))


FAULTS = [
    (ragged, [UP, "unequal length in row 3", "Remove this row"]),
    (missing, [DOWN, "missing in 2 adapters", "row 2", "remove these rows, or this column"]),
    (lambda t: nulls_inside(t, [None]), [DOWN, "null rows"]),
    (lambda t: nulls_inside(t, [[None] * 8]), [DOWN, "8 null weights"]),
    (lambda t: nulls_inside(t, []), [DOWN, "empty in row 2"]),
    (lambda t: nulls_inside(t, [[]]), [DOWN, "empty in row 2"]),
    (other_width, [DOWN, "[1, 8] in row 0", "[1, 5] in row 4", "one base model"]),
    (other_rank, [Q, "row 4", "[2, 8]", "[12, 1]", "ranks differ"]),
    (without_layers, ["no column is a layer", "category_label"]),
    (lambda t: t.slice(0, 0), ["no rows"]),
    (lambda t: put(t, DOWN, pa.array([[1.0]] * 6)), [DOWN, "no matrices"]),
    (lambda t: put(t, DOWN, pa.array(["x"] * 6)), [DOWN, "no matrices"]),
    (lambda t: put(t, DOWN, pa.array([[[1]]] * 6)), [DOWN, "int64", "float32"]),
    (lambda t: put(t, "m.hada_w1_a", pa.array([[[1.0]]] * 6)), ["'m.hada_w1_a' (loha)", "cannot be analysed"]),
    (lambda t: t.append_column(f"base_model.model.{DOWN}", t.column(DOWN)), ["the same layer", DOWN]),
    (lambda t: t.drop_columns(["category_label"]), ["dataset.category=category_label", "is no column", "folder, rank"]),
    (lambda t: put(t, "category_label", [0, 1, None, 0, 1, 2]), ["1 missing labels", "row 2"]),
    (lambda t: put(t, "category_label", [0.5] * 6), ["dataset.category=category_label", "double"]),
    (lambda t: put(t, "category_label", [[1]] * 6), ["dataset.category=category_label", "list"]),
    (lambda t: t.drop_columns(["leaf_id"]), ["dataset.leaf=leaf_id", "dataset.leaf=null"]),
]


@pytest.mark.parametrize(("fault", "words"), FAULTS, ids=range(len(FAULTS)))
def test_each_fault_is_one_message(cache, fault, words):
    with pytest.raises(LorabenchError) as error:
        open_table(fault(hub_table(6)), cache)
    for word in ["toy.arrow", *words]:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_the_message_of_a_wrong_label_column_lists_no_layer(cache, tmp_path):
    path = write_hub(tmp_path / "set", 6, small_modules())
    with pytest.raises(LorabenchError) as error:
        load(path, cache, category="wrong")
    assert "dataset.category=wrong is no column" in str(error.value)
    assert "category_label, category_name, leaf_id" in str(error.value)
    assert "lora.down" not in str(error.value)
    with pytest.raises(LorabenchError, match=r"lora\.down\.weight holds list"):
        load(path, cache, category=DOWN)


def test_columns_may_be_renamed_or_absent(cache, tmp_path):
    path = write_hub(tmp_path / "set", 6, small_modules())
    zoo = load(path, cache, category="num_images", leaf=None, group="category_label", adapter=None)
    assert zoo.labels.category_names == ("10",)
    assert zoo.labels.adapters[1] == f"row 1 of {path}"
    assert len(zoo.labels.leaf_names) == 6
    assert zoo.labels.group is not None
    assert zoo.labels.group.tolist() == [0, 1, 2] * 2


def test_not_finite_weights_name_the_row(cache):
    table = hub_table(6)
    values = rows_of(table, UP)
    values[4, 3, 0] = np.nan
    zoo = open_table(put(table, UP, list_column(values)), cache)
    with pytest.raises(
        LorabenchError, match=r"NaN or infinite weights in layer .* lora_000004 \(row 4 of toy\.arrow\)"
    ):
        zoo.read(UP)


@pytest.mark.parametrize("size", [0, 1000, 10_000])
def test_truncated_arrow_files_are_named(cache, tmp_path, size):
    path = write_hub(tmp_path / "set", 40, small_modules())
    with (path / "data-00000-of-00001.arrow").open("r+b") as file:
        file.truncate(size)
    with pytest.raises(LorabenchError, match=f"{re.escape(str(path))} is damaged .* again"):
        load(path, cache)


def test_what_is_no_data_set_is_named(cache, tmp_path):
    with pytest.raises(LorabenchError, match=r"dataset\.path=.*absent does not exist"):
        load(tmp_path / "absent", cache)
    (tmp_path / "file.txt").write_text("")
    for path in (tmp_path, tmp_path / "file.txt"):
        with pytest.raises(LorabenchError, match=r"is no data set: .* dataset=folder"):
            load(path, cache)
    path = write_hub(tmp_path / "set", 6, small_modules())
    (path / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(LorabenchError, match="data-00000-of-00001"):
        load(path, cache)
    (path / "state.json").write_text("{")
    with pytest.raises(LorabenchError, match="is damaged"):
        load(path, cache)
    with pytest.raises(LorabenchError, match=r"both null; .*dataset\.path=DIR"):
        hub.load("toy", None, cache)


def test_broken_parquet_files_are_named(cache, tmp_path):
    file = tmp_path / "set" / "a.parquet"
    datasets.Dataset(hub_table(6)).to_parquet(file)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(LorabenchError, match=r"a\.parquet is no whole parquet file"):
        load(file.parent, cache)
    file.write_bytes(b"")
    with pytest.raises(LorabenchError, match=r"a\.parquet is no whole parquet file \(0 bytes\)"):
        load(file.parent, cache)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    with pytest.raises(LorabenchError, match="git lfs pull"):
        load(file.parent, cache)
    file.write_bytes(content[:2000] + b"\xff" * (len(content) - 2004) + b"PAR1")
    with pytest.raises(LorabenchError, match=re.escape(str(file.parent))):
        load(file.parent, cache)


def test_a_disk_that_fills_up_is_one_message(cache, tmp_path):
    """RLIMIT_FSIZE refuses to grow a file as a full disk does, with another number; here that is renamed."""
    code = """
        import errno, resource, signal, sys
        from lorabench.errors import LorabenchError
        from lorabench.zoo import hub
        errno.ENOSPC = errno.EFBIG
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, 2**14))
        try:
            hub.load("toy", None, sys.argv[2], path=sys.argv[1])
        except LorabenchError as error:
            print(error)
    """
    path = tmp_path / "set.parquet"
    datasets.Dataset(hub_table(200)).to_parquet(path)
    command = [sys.executable, "-c", textwrap.dedent(code), str(path), str(cache)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"cannot write {cache}: the disk is full" in found.stdout
    assert "cache_dir" in found.stdout
    assert len(load(path, cache)) == 200


def test_parquet_files_of_different_columns_are_refused(cache, tmp_path):
    datasets.Dataset(hub_table(6)).to_parquet(tmp_path / "set" / "a.parquet")
    other = tmp_path / "set" / "b.parquet"
    datasets.Dataset(hub_table(6).drop_columns([UP])).to_parquet(other)
    with pytest.raises(LorabenchError, match=f"{re.escape(UP)}' is missing in 6 adapters, the first in row 6"):
        load(tmp_path / "set", cache)
    datasets.Dataset(put(hub_table(6), UP, ["x"] * 6)).to_parquet(other)
    with pytest.raises(LorabenchError, match="do not form one data set"):
        load(tmp_path / "set", cache)


def test_without_a_network_the_message_names_the_ways_on(cache, monkeypatch, tmp_path):
    """A port where nobody listens stands for a hub out of reach; the answer must come at once."""
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    with pytest.raises(LorabenchError) as error:
        hub.load("1k", "jacekduszenko/lora-ws-1k", cache)
    for word in ("jacekduszenko/lora-ws-1k", "no network", "dataset.path=DIR", "dataset=glyphs"):
        assert word in str(error.value)
    assert not datasets.config.HF_HUB_OFFLINE


def test_offline_mode_says_the_same(cache, tmp_path):
    code = (
        "import sys\nfrom lorabench.errors import LorabenchError\nfrom lorabench.zoo import hub\n"
        "try:\n    hub.load('1k', 'jacekduszenko/lora-ws-1k', sys.argv[1])\n"
        "except LorabenchError as error:\n    print(error)\n"
    )
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    found = subprocess.run(
        [sys.executable, "-c", code, str(cache)], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    assert "dataset.path=DIR" in found.stdout
    assert "dataset=glyphs" in found.stdout


def test_the_copy_that_datasets_keeps_serves_without_a_network(cache, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    seen = []

    def load_dataset(repository):
        seen.append(datasets.config.HF_HUB_OFFLINE)
        return datasets.DatasetDict({"train": datasets.Dataset(hub_table(6))})

    monkeypatch.setattr(hub_source.datasets, "load_dataset", load_dataset)
    assert len(hub.load("1k", "jacekduszenko/lora-ws-1k", cache)) == 6
    assert seen == [True]
