"""The published data sets by their configurations, on miniatures: what is read, and one run of every protocol."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lorabench.conf_dir import conf_dir
from lorabench.errors import LorabenchError
from lorabench.zoo import Zoo, hub_files, hub_source
from lorabench.zoo.targets import find_target
from tests.processes import lorabench
from tests.published_sets import (
    SIZES,
    attention_names,
    flat_table,
    write_lora_wise,
    write_model_j,
    write_padbench,
    write_w2t,
)

pytestmark = pytest.mark.usefixtures("no_datasets_bars")
SMILING = "dataset.labels_in_table.labels.category=Smiling"


def zoo_of(tmp_path: Path, *words: str) -> Zoo:
    """What a configuration reads."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", [*words, f"cache_dir={tmp_path / 'cache'}"])
    return instantiate(config.dataset, _convert_="all")


def results_of(folder: Path, *words: str) -> Any:
    """`results.json` of a run in a process of its own."""
    lorabench(*words, f"output_dir={folder / 'out'}", f"cache_dir={folder / 'cache'}", cwd=folder)
    return json.loads(next((folder / "out").rglob("results.json")).read_text())


@pytest.mark.parametrize(("name", "modules"), [("sd_200", 128), ("sd_1k", 2)])
def test_model_j_has_its_own_split_and_leaves_out_the_classes_that_are_held_out(
    tmp_path: Path, name: str, modules: int
) -> None:
    names = attention_names()[:modules]
    root = write_model_j(tmp_path / "set", names, of_each=1)
    zoo = zoo_of(tmp_path, f"dataset={name}", f"dataset.path={root}")
    assert zoo.name == name.replace("sd", "SD")
    assert zoo.labels.category_names == ("n02110000", "n02110001", "n02110002")
    assert zoo.labels.split is not None
    assert np.bincount(zoo.labels.split).tolist() == [3, 3, 3]
    assert [module.name for module in zoo.modules] == names  # so that 46 is the published layer 46


def test_lora_wise_reads_flat_layers_and_predicts_the_number_of_images(tmp_path: Path) -> None:
    table = flat_table()
    root = write_lora_wise(tmp_path / "low_8", table)
    zoo = zoo_of(tmp_path, "dataset=lora_wise", f"dataset.path={root}", "dataset.subset=low_2", "dataset.rank=2")
    down = f"{attention_names()[0]}.lora.down.weight"
    up = down.replace("down.weight", "up.weight")
    assert zoo.read(down).shape == (36, 2, 5)
    assert zoo.read(up).shape == (36, 6, 2)
    rows = np.array(table.column(up).to_pylist(), np.float32)
    np.testing.assert_array_equal(zoo.read(up), rows.reshape(36, 6, 2))
    assert (zoo.rank == 2).all()
    target = find_target(zoo.labels, "images")
    assert target.names == tuple(map(str, SIZES))
    assert zoo.labels.group is not None
    assert len(np.unique(zoo.labels.group)) == 6


def test_lora_wise_asks_the_hub_for_one_subset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*words: str) -> datasets.DatasetDict:
        asked.append(words)
        return datasets.DatasetDict({"train": datasets.Dataset(flat_table())})

    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub_source.datasets, "load_dataset", load_dataset)
    zoo = zoo_of(tmp_path, "dataset=lora_wise", "dataset.subset=low_2")
    assert asked == [("MoSalama98/LoRA-WiSE", "low_2")]
    assert zoo.name == "LoRA-WiSE_low_2"
    assert (zoo.rank == 2).all()


def test_the_rank_of_lora_wise_is_that_of_the_subset(tmp_path: Path) -> None:
    root = write_lora_wise(tmp_path / "low_2")
    for words, why in {
        ("dataset.subset=low_8", "dataset.rank=2"): "dataset.rank=2: dataset.subset=low_8 has the rank 8. Set",
        ("dataset.subset=medium_32_2", "dataset.rank=2"): "dataset.subset=medium_32_2 has the rank 32",
        ("dataset.subset=low_2",): "dataset.rank=null, dataset.subset=low_2: a copy",
        ("dataset.subset=all",): "dataset.rank=null, dataset.subset=all: a copy",
        ("dataset.rank_in_subset=low",): "dataset.rank_in_subset=low: no regular expression with a group",
        ("dataset.rank_in_subset='(('",): "dataset.rank_in_subset=((: no regular expression",
    }.items():
        with pytest.raises(Exception, match=re.escape(why)):
            zoo_of(tmp_path, "dataset=lora_wise", f"dataset.path={root}", *words)
    with pytest.raises(Exception, match=r"finds no rank in the subset's name"):
        zoo_of(tmp_path, "dataset=lora_wise", "dataset.subset=all")


@pytest.mark.parametrize("subset", ["low_9", None])
@pytest.mark.parametrize("online", [True, False])
def test_an_unknown_subset_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subset: str | None, online: bool
) -> None:
    for name in ("low_8", "low_32"):  # as the hub's card has it, in a folder that `datasets` reads alike
        write_lora_wise(tmp_path / "set" / name)
    card = "configs:\n" + "".join(f"- config_name: {name}\n  data_files: {name}/*\n" for name in ("low_8", "low_32"))
    (tmp_path / "set" / "README.md").write_text(f"---\n{card}---\n")
    monkeypatch.setattr(hub_source, "why_no_hub", lambda _: None if online else "no network: refused")
    with pytest.raises(LorabenchError) as raised:
        hub_source.from_hub(str(tmp_path / "set"), subset)
    said = "null" if subset is None else subset
    assert f"dataset.subset={said}: {tmp_path / 'set'} has low_8, low_32" in str(raised.value)
    assert ("no network" in str(raised.value)) is not online


def test_padbench_reads_labels_in_the_names_of_folders(tmp_path: Path) -> None:
    root = write_padbench(tmp_path / "set", of_each=3)
    for path in (root, root / "roberta_base_imdb_insertsent_rank16_qv"):
        zoo = zoo_of(tmp_path, "dataset=padbench", f"dataset.path={path}")
        assert zoo.labels.category.tolist() == [0, 0, 0, 1, 1, 1]
        assert zoo.labels.category_names == ("0", "1")
        assert len(zoo.modules) == 4


@pytest.mark.parametrize(("name", "key"), [("w2t_celeba", "celeb_folder"), ("w2t_cub", "image_id")])
def test_w2t_takes_an_attribute_of_the_table_and_the_recipe_of_the_runs_name(
    tmp_path: Path, name: str, key: str
) -> None:
    root = write_w2t(tmp_path / "runs", key, count=6)
    (root / "model_4005_1_2_1_2_5").rename(root / "model_4005_1_2_1_2_3")
    zoo = zoo_of(tmp_path, f"dataset={name}", f"dataset.path={root}", SMILING)
    runs = [adapter.split("/")[0].split("_") for adapter in zoo.labels.adapters]
    subjects = [int(run[-1]) for run in runs]
    assert [zoo.labels.category_names[code] for code in zoo.labels.category] == [str(one % 2) for one in subjects]
    assert sorted(zoo.labels.recipe) == ["accumulation", "prompt", "rate", "steps"]
    assert zoo.labels.recipe["rate"].tolist() == [int(run[2]) for run in runs]
    assert zoo.labels.group is not None
    assert len(np.unique(zoo.labels.group)) == 5  # the label is a function of the subject, of whom one has two runs


@pytest.mark.parametrize(("name", "kind"), [("sd_1k", "model"), ("padbench", "dataset")])
def test_a_repository_of_files_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(repository: str, **words: Any) -> str:
        asked.update(words, repository=repository)
        root = tmp_path / "fetched"
        if name == "sd_1k":
            write_model_j(root, attention_names()[:2])
            (root / "train" / "model_idx_0000").rename(root / "train_more")  # as an earlier run fetched it
        else:
            write_padbench(root)
            write_padbench(root, "t5", of_each=1)
        return str(root)

    monkeypatch.setattr(hub_files, "why_no_hub", lambda _: None)
    monkeypatch.setattr(hub_files, "snapshot_download", snapshot_download)
    zoo = zoo_of(tmp_path, f"dataset={name}")
    assert asked["repo_type"] == kind
    assert not asked["local_files_only"]
    if name == "sd_1k":
        assert len(zoo) == 26
        assert not any("train_more" in adapter for adapter in zoo.labels.adapters)
        assert asked["repository"] == "ProbeX/Model-J__SD_1k"
        assert asked["allow_patterns"][0] == "train/*/pytorch_lora_weights.safetensors"
    else:
        assert len(zoo) == 24
        assert zoo.name == "PADBench_roberta_base_imdb_insertsent_rank16_qv"
        assert not any("t5" in adapter for adapter in zoo.labels.adapters)
        assert asked["repository"] == "Vincent-HKUSTGZ/PADBench"
        assert asked["allow_patterns"] == ["roberta_base_imdb_insertsent_rank16_qv/*adapter_*"]


@pytest.mark.parametrize("labelled", [False, True])
def test_files_of_an_earlier_fetch_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labelled: bool
) -> None:
    root = write_padbench(tmp_path / "fetched", "a", of_each=1)
    write_padbench(root, "b", of_each=1)
    if labelled:
        files = sorted(file.relative_to(root).as_posix() for file in root.rglob("adapter_model.safetensors"))
        (root / "labels.csv").write_text("\n".join(["file,category", *(f"{file},x" for file in files)]))
    monkeypatch.setattr(hub_files, "why_no_hub", lambda _: None)
    monkeypatch.setattr(hub_files, "snapshot_download", lambda *_, **__: str(root))
    words = ["dataset=folder", "dataset.path=null", "dataset.repository=a/b"]
    zoo = zoo_of(tmp_path, *words, "dataset.repository_files=[labels.csv,b/*]")
    assert len(zoo) == 2
    assert all(adapter.startswith("b/") for adapter in zoo.labels.adapters)
    with pytest.raises(Exception, match=r"dataset\.subset=c: a/b has no such folder"):
        zoo_of(tmp_path, *words, "dataset.subset=c")


@pytest.mark.parametrize("patterns", ["*.safetensors", [], [""], [3], 3])
def test_patterns_of_another_kind_are_refused(patterns: Any) -> None:
    with pytest.raises(LorabenchError, match=r"dataset\.repository_files=.*: a list of patterns or null is needed"):
        hub_files.fetch_files("a/b", "model", patterns)


def test_without_a_hub_the_message_says_how_to_give_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_files, "why_no_hub", lambda _: "no network: refused")
    monkeypatch.setattr(hub_files.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(Exception, match=r"ProbeX/Model-J__SD_200 .*no network: refused.*dataset\.path=DIR"):
        zoo_of(tmp_path, "dataset=sd_200")
    with pytest.raises(LorabenchError, match=r"cannot fetch no such name from the hub .* Check dataset\.repository"):
        hub_files.fetch_files("no such name", "model", None)


def test_a_run_of_probex(tmp_path: Path) -> None:
    root = write_model_j(tmp_path / "set", attention_names()[:47], of_each=1)
    small = ["classifier.probes=4", "classifier.features=4", "classifier.encoding=8", "classifier.max_epochs=40"]
    result = results_of(tmp_path, "experiment=model_j", f"dataset.path={root}", *small)
    assert {part: result["split"][part] for part in ("train", "val", "test")} == {"train": 3, "val": 3, "test": 3}
    assert result["split"]["by_source"]
    assert [run["error"] for run in result["runs"]] == [None]
    assert result["summary"][0]["classifier"] == "probex"


def test_a_run_of_dsire(tmp_path: Path) -> None:
    root = write_lora_wise(tmp_path / "low_8", flat_table(subjects=12))
    result = results_of(
        tmp_path, "experiment=lora_wise", f"dataset.path={root}", "dataset.subset=low_2", "dataset.rank=2"
    )
    assert result["target"] == "images"
    assert [run["error"] for run in result["runs"]] == [None] * 10
    assert result["summary"][0]["test_mae"]["mean"] < 0.75  # the median of 1 to 6 is 1.5 off


def test_a_run_of_w2t(tmp_path: Path) -> None:
    root = write_w2t(tmp_path / "runs")
    small = ["classifier.width=8", "classifier.head=8", "classifier.max_epochs=30", "classifier.batch_size=8"]
    result = results_of(tmp_path, "experiment=w2t", f"dataset.path={root}", SMILING, *small)
    assert result["split"]["train"] == 24
    assert [run["error"] for run in result["runs"]] == [None]
    assert result["classes"] == ["0", "1"]


def test_a_run_on_padbench(tmp_path: Path) -> None:
    root = write_padbench(tmp_path / "set")
    small = [
        "representations=[norms,{probex:{probes:4,features:4,encoding:8,max_epochs:20}}]",
        "splits=1",
        "num_runs=1",
    ]
    result = results_of(tmp_path, "experiment=padbench", f"dataset.path={root}", *small)
    assert result["classes"] == ["0", "1"]
    assert [run["error"] for run in result["runs"]] == [None, None]
