"""The hub's data sets: what is read is what the rows hold; nothing is copied; each fault is one message."""

from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import yaml

from lorabench.errors import LorabenchError
from lorabench.zoo import Zoo, hub
from lorabench.zoo.hub_source import Part
from tests.hub_schema import (
    COLUMNS,
    hub_table,
    layers_of,
    list_column,
    load,
    open_table,
    put,
    rows_of,
    small_modules,
    stable_diffusion_modules,
    write_hub,
)

pytestmark = pytest.mark.usefixtures("no_datasets_bars")
CONF = Path(__file__).parents[1] / "conf" / "dataset"
Q, V = list(small_modules())
DOWN, UP = f"{Q}.lora.down.weight", f"{Q}.lora.up.weight"


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def assert_same(zoo: Zoo, table: pa.Table) -> None:
    assert len(zoo) == len(table)
    assert list(zoo.layers) == layers_of(table)
    for layer in zoo.layers:
        assert np.array_equal(zoo.read(layer), rows_of(table, layer))


def read_cold(path: Path) -> Zoo:
    return load(path, path.parent / "unused")


def test_the_schema_is_the_hubs():
    modules = stable_diffusion_modules()
    assert len(modules) == 64
    assert sum(d_in + d_out for d_in, d_out in modules.values()) == 99_648


@pytest.mark.parametrize("rank", [1, 3])
def test_layers_are_what_the_rows_hold(tmp_path, rank):
    path = write_hub(tmp_path / "set", 11, small_modules(), batch=4, rank=rank)
    table = datasets.load_from_disk(str(path)).data.table
    zoo = read_cold(path)
    assert_same(zoo, table)
    assert [module.name for module in zoo.modules] == [Q, V]
    assert zoo.modules[0].down == DOWN
    assert zoo.modules[0].up == UP
    assert (zoo.rank == rank).all()
    assert (zoo.scale == 1).all()
    assert not (tmp_path / "unused").exists()


def test_no_weight_is_copied(tmp_path):
    path = write_hub(tmp_path / "set", 9, small_modules(), batch=9)
    zoo = read_cold(path)
    values = zoo.read(DOWN, 2, 5)
    assert values.base is not None
    assert not values.flags.writeable
    before = pa.total_allocated_bytes()
    assert sum(zoo.read(layer).nbytes for layer in zoo.layers) == 9 * 4 * sum(
        sum(shape) for shape in small_modules().values()
    )
    assert pa.total_allocated_bytes() == before


def test_labels_are_those_of_the_columns(tmp_path):
    zoo = read_cold(write_hub(tmp_path / "set", 12, small_modules(), categories=3, per_leaf=2))
    labels = zoo.labels
    assert labels.category_names == ("category 0", "category 1", "category 2")
    assert labels.category.tolist() == [0, 0, 1, 1, 2, 2] * 2
    assert labels.leaf_names[0] == "n00000000"
    assert labels.leaf.tolist() == [i // 2 for i in range(12)]
    assert labels.group is not None
    assert labels.group.tolist() == labels.leaf.tolist()
    assert labels.split is None
    assert labels.adapters[3] == f"lora_000003 (row 3 of {tmp_path / 'set'})"


def test_leaves_that_do_not_repeat_bind_nothing(cache):
    assert open_table(hub_table(6), cache).labels.group is None


def test_names_come_from_where_they_are(cache):
    table = hub_table(6)
    assert open_table(table.drop_columns(["category_name"]), cache).labels.category_names == ("0", "1", "2")
    same = put(table, "category_name", ["everything"] * 6)
    assert open_table(same, cache).labels.category_names == ("0", "1", "2")
    features = datasets.Features.from_arrow_schema(table.drop_columns(["category_name"]).schema)
    features["category_label"] = datasets.ClassLabel(names=["cat", "dog", "fox"])
    dataset = datasets.Dataset(table.drop_columns(["category_name"])).cast(features)
    assert hub.from_parts("toy", [Part(dataset)], COLUMNS, cache, "x").labels.category_names == ("cat", "dog", "fox")
    text = put(table, "category_label", ["b", "a", "b", "a", "c", "c"]).drop_columns(["category_name"])
    assert open_table(text, cache).labels.category_names == ("a", "b", "c")


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
@pytest.mark.parametrize("number", [pa.float16(), pa.float32(), pa.float64()])
def test_every_list_and_float_is_read(cache, kind, number):
    table = hub_table(7, rank=2)
    for layer in layers_of(table):
        array = table.column(layer).combine_chunks().cast(pa.list_(pa.list_(number))).cast(kind(kind(number)))
        table = put(table, layer, array)
    zoo = open_table(table, cache)
    assert_same(zoo, table)
    assert cache.exists() == (number != pa.float32())


def test_fixed_size_lists_and_array2d_are_read(cache):
    table = hub_table(5, rank=2)
    fixed = table
    for layer in layers_of(table):
        rows, cols = rows_of(table, layer).shape[1:]
        fixed = put(
            fixed, layer, table.column(layer).combine_chunks().cast(pa.list_(pa.list_(pa.float32(), cols), rows))
        )
    assert_same(open_table(fixed, cache), table)
    assert_same(open_table(fixed.slice(1, 3), cache), table.slice(1, 3))
    features = datasets.Features.from_arrow_schema(table.schema)
    for layer in layers_of(table):
        features[layer] = datasets.Array2D(rows_of(table, layer).shape[1:], "float32")
    dataset = datasets.Dataset.from_dict(table.to_pydict(), features=features)
    assert_same(hub.from_parts("toy", [Part(dataset)], COLUMNS, cache, "x"), table)
    assert not cache.exists()


def test_slices_and_picked_rows_are_respected(cache, tmp_path):
    dataset = datasets.load_from_disk(str(write_hub(tmp_path / "set", 20, small_modules(), batch=6, rank=2)))
    table = dataset.data.table
    part = Part(dataset.select(range(4, 17)))
    assert_same(hub.from_parts("toy", [part], COLUMNS, cache, "x"), table.slice(4, 13))
    assert not cache.exists()
    for picked in ([3, 19, 0, 7], [7, 0, 19, 3]):
        zoo = hub.from_parts("toy", [Part(dataset.select(picked))], COLUMNS, cache, "x")
        assert_same(zoo, table.take(picked))
        assert zoo.labels.adapters[0].startswith(f"lora_{picked[0]:06d}")


def test_shards_and_splits_follow_one_another(cache, tmp_path):
    dataset = datasets.load_from_disk(str(write_hub(tmp_path / "set", 20, small_modules(), batch=6)))
    dataset.save_to_disk(tmp_path / "shards", num_shards=3)
    assert_same(load(tmp_path / "shards", cache), dataset.data.table)
    parts = {"train": range(10), "validation": range(10, 13), "test": range(13, 20)}
    split = datasets.DatasetDict({name: dataset.select(rows) for name, rows in parts.items()})
    split.save_to_disk(tmp_path / "dict")
    zoo = load(tmp_path / "dict", cache)
    assert_same(zoo, dataset.data.table)
    assert zoo.labels.split is not None
    assert zoo.labels.split.tolist() == [0] * 10 + [1] * 3 + [2] * 7
    datasets.DatasetDict({"train": dataset}).save_to_disk(tmp_path / "one")
    assert load(tmp_path / "one", cache).labels.split is None
    datasets.DatasetDict({"train": dataset, "extra": dataset}).save_to_disk(tmp_path / "odd")
    with pytest.raises(LorabenchError, match="split 'extra' is not known"):
        load(tmp_path / "odd", cache)


def test_parquet_is_converted_once_and_anew_when_it_changes(cache, tmp_path):
    table, folder = hub_table(12, rank=2), tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    for number in range(2):
        datasets.Dataset(table.slice(6 * number, 6)).to_parquet(folder / "data" / f"{number}.parquet")
    zoo = load(folder, cache)
    assert_same(zoo, table)
    assert zoo.labels.split is None
    files = {file: file.stat().st_mtime_ns for file in cache.rglob("*.arrow")}
    assert files
    assert load(folder, cache).fingerprint == zoo.fingerprint
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*.arrow")} == files
    other = hub_table(12, rank=2, seed=1)
    datasets.Dataset(other.slice(0, 6)).to_parquet(folder / "data" / "0.parquet")
    changed = load(folder, cache)
    assert changed.fingerprint != zoo.fingerprint
    assert np.array_equal(changed.read(DOWN, 0, 6), rows_of(other, DOWN)[:6])
    assert_same(load(folder / "data" / "1.parquet", cache), table.slice(6, 6))


def test_parquet_files_named_by_split(cache, tmp_path):
    table = hub_table(12)
    names = ["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"]
    for number, name in enumerate(names):
        datasets.Dataset(table.slice(4 * number, 4)).to_parquet(tmp_path / "set" / f"{name}.parquet")
    zoo = load(tmp_path / "set", cache)
    assert zoo.labels.split is not None
    assert zoo.labels.split.tolist() == [0] * 8 + [2] * 4
    datasets.Dataset(table).to_parquet(tmp_path / "set" / "more.parquet")
    with pytest.raises(LorabenchError, match=r"more\.parquet names no split"):
        load(tmp_path / "set", cache)


def mixed_ranks(n: int = 8) -> tuple[pa.Table, list[int]]:
    """Adapters of ranks 1, 2, 3, 1, ...: every layer as lists of lists."""
    ranks = [i % 3 + 1 for i in range(n)]
    table, rng = hub_table(n), np.random.default_rng(0)
    for module, (d_in, d_out) in small_modules().items():
        down = [rng.standard_normal((r, d_in)).astype(np.float32).tolist() for r in ranks]
        up = [rng.standard_normal((d_out, r)).astype(np.float32).tolist() for r in ranks]
        table = put(table, f"{module}.lora.down.weight", pa.array(down, pa.list_(pa.list_(pa.float32()))))
        table = put(table, f"{module}.lora.up.weight", pa.array(up, pa.list_(pa.list_(pa.float32()))))
    return table, ranks


def test_different_ranks_are_padded_and_kept(cache, monkeypatch):
    table, ranks = mixed_ranks()
    monkeypatch.setattr(hub, "_CHUNK_BYTES", 4000)
    zoo = open_table(table, cache)
    assert zoo.rank.tolist() == [[r, r] for r in ranks]
    assert zoo.layers[DOWN].shape == (8, 3, 8)
    assert zoo.layers[UP].shape == (8, 12, 3)
    deltas = zoo.read(UP) @ zoo.read(DOWN)
    for row, rank in enumerate(ranks):
        down, up = (np.array(table.column(name)[row].as_py(), np.float32) for name in (DOWN, UP))
        assert np.array_equal(zoo.read(DOWN)[row, :rank], down)
        assert np.array_equal(zoo.read(UP)[row, :, :rank], up)
        assert not zoo.read(DOWN)[row, rank:].any()
        assert not zoo.read(UP)[row, :, rank:].any()
        assert np.allclose(deltas[row], up @ down, atol=1e-6)
    stores = list((cache / "zoos").iterdir())
    assert len(stores) == 1
    written = (stores[0] / "zoo.json").stat().st_mtime_ns
    again = open_table(table, cache)
    assert (stores[0] / "zoo.json").stat().st_mtime_ns == written
    assert again.fingerprint == zoo.fingerprint
    assert np.array_equal(again.rank, zoo.rank)


def test_a_damaged_conversion_is_made_again(cache):
    table, _ = mixed_ranks()
    expected = open_table(table, cache).read(DOWN).copy()
    file = next((cache / "zoos").iterdir()) / "0000.f32"
    with file.open("r+b") as stream:
        stream.truncate(9)
    assert np.array_equal(open_table(table, cache).read(DOWN), expected)


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("unet.mid.to_q.lora.down.weight.80", "unet.mid.to_q.lora.up.weight.80"),
        ("unet.mid.to_q.lora.down.weight.80", "unet.mid.to_q.lora.up.weight.81"),
        ("base_model.model.mid.to_q.lora_A.weight", "base_model.model.mid.to_q.lora_B.weight"),
        (
            "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
            "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight",
        ),
        ("unet.mid.processor.to_q_lora.down.weight", "unet.mid.processor.to_q_lora.up.weight"),
    ],
)
def test_layers_of_every_scheme_pair_up(cache, down, up):
    table = hub_table(4, small_modules(1), rank=2).rename_columns({DOWN: down, UP: up})
    zoo = open_table(table, cache)
    assert list(zoo.layers) == [down, up]
    assert [(module.down, module.up) for module in zoo.modules] == [(down, up)]


def test_mlx_factors_are_turned(cache):
    table = hub_table(4, small_modules(1), rank=2)
    zoo = open_table(table, cache)
    names = {"down": "m.lora_a", "up": "m.lora_b"}
    turned = table.drop_columns([DOWN, UP])
    for side, layer in (("down", DOWN), ("up", UP)):
        turned = put(turned, names[side], list_column(np.ascontiguousarray(rows_of(table, layer).transpose(0, 2, 1))))
    mlx = open_table(turned, cache)
    assert np.array_equal(mlx.read("m.lora_a"), zoo.read(DOWN))
    assert np.array_equal(mlx.read("m.lora_b", 1, 3), zoo.read(UP, 1, 3))
    assert mlx.rank.tolist() == [[2]] * 4
    assert not cache.exists()


def test_convolutions_lose_their_kernel_axes(cache):
    rng, table = np.random.default_rng(0), hub_table(3, small_modules(1))
    down, up = rng.standard_normal((3, 2, 4, 3, 3)).astype("f4"), rng.standard_normal((3, 5, 2, 1, 1)).astype("f4")
    nested = pa.list_(pa.list_(pa.list_(pa.list_(pa.float32()))))
    table = put(put(table, DOWN, pa.array(down.tolist(), nested)), UP, pa.array(up.tolist(), nested))
    zoo = open_table(table, cache)
    assert np.array_equal(zoo.read(DOWN), down.reshape(3, 2, 36))
    assert np.array_equal(zoo.read(UP), up.reshape(3, 5, 2))
    assert zoo.rank.tolist() == [[2]] * 3


def test_alpha_columns_scale(cache):
    table = put(hub_table(4, rank=2), f"{Q}.alpha", np.array([1.0, 2.0, 4.0, 8.0]))
    zoo = open_table(table, cache)
    assert zoo.scale[:, 0].tolist() == [0.5, 1, 2, 4]
    assert zoo.scale[:, 1].tolist() == [1] * 4
    listed = put(hub_table(4, rank=2), f"{V}.alpha", pa.array([[1.0], [2.0], [4.0], [8.0]]))
    assert open_table(listed, cache).scale[:, 1].tolist() == [0.5, 1, 2, 4]
    with pytest.raises(LorabenchError, match="needs one number an adapter"):
        open_table(put(table, f"{Q}.alpha", pa.array([1.0, None, 1.0, 1.0])), cache)


def test_per_category_draws_by_seed(tmp_path):
    path = write_hub(tmp_path / "set", 31, small_modules(), categories=3)
    drawn = [load(path, tmp_path / "c", per_category=4, seed=seed) for seed in (0, 0, 1)]
    assert [len(zoo) for zoo in drawn] == [12] * 3
    assert np.bincount(drawn[0].labels.category).tolist() == [4, 4, 4]
    assert drawn[0].labels.adapters == drawn[1].labels.adapters != drawn[2].labels.adapters
    assert drawn[0].fingerprint == drawn[1].fingerprint != drawn[2].fingerprint
    whole = read_cold(path)
    first = whole.labels.adapters.index(drawn[2].labels.adapters[5])
    assert np.array_equal(drawn[2].read(UP)[5], whole.read(UP)[first])
    assert len(load(path, tmp_path / "c", per_category=100)) == 31
    with pytest.raises(LorabenchError, match="per_category=0"):
        load(path, tmp_path / "c", per_category=0)


def test_the_fingerprint_follows_the_content(cache, tmp_path):
    zoo = read_cold(write_hub(tmp_path / "a", 40, small_modules()))
    again = read_cold(write_hub(tmp_path / "b", 40, small_modules()))
    assert zoo.fingerprint == again.fingerprint
    others = [
        read_cold(write_hub(tmp_path / "seed", 40, small_modules(), seed=1)),
        read_cold(write_hub(tmp_path / "rows", 39, small_modules())),
        read_cold(write_hub(tmp_path / "rank", 40, small_modules(), rank=2)),
        read_cold(write_hub(tmp_path / "labels", 40, small_modules(), categories=2)),
    ]
    table = hub_table(40)
    values = rows_of(table, UP)
    values[17] += 1
    tables = [table, put(table, UP, list_column(values)), put(table, f"{Q}.alpha", np.full(40, 2.0))]
    others += [open_table(changed, cache) for changed in tables]
    found = [zoo.fingerprint, *(other.fingerprint for other in others)]
    assert len(set(found)) == len(found)


def test_weights_replaced_under_an_old_fingerprint_are_noticed(tmp_path):
    path = write_hub(tmp_path / "set", 40, small_modules())
    before = read_cold(path).fingerprint
    other = write_hub(tmp_path / "other", 40, small_modules(), seed=1)
    (other / "data-00000-of-00001.arrow").rename(path / "data-00000-of-00001.arrow")
    assert read_cold(path).fingerprint != before


def composed(name: str) -> dict:
    """The values of one yaml and of those it derives from, as Hydra would merge them."""
    own = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    merged: dict = {}
    for base in own.pop("defaults", []):
        merged |= own if base == "_self_" else composed(str(base))
    return merged or own


@pytest.mark.parametrize("name", ["1k", "10k", "50k", "100k", "small"])
def test_the_yaml_of_every_hub_set_loads_a_folder(name, tmp_path):
    values = composed(name) | {"path": str(write_hub(tmp_path / "set", 60, small_modules(), categories=3))}
    assert values.pop("_target_") == "lorabench.zoo.hub.load"
    assert values["repository"] == f"jacekduszenko/{'weights-dataset-small' if name == 'small' else f'lora-ws-{name}'}"
    assert (CONF / f"{name}.yaml").read_text().startswith(f"# python -m lorabench dataset={name}\n")
    zoo = hub.load(**values | {"cache_dir": tmp_path / "cache"})
    assert zoo.name == name
    assert len(zoo) == 60
    assert len(zoo.layers) == 4
