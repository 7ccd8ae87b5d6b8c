"""Labels in paths, headers and tables: what each fault is called, and what is left alone."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorabench.errors import LorabenchError
from lorabench.zoo import Zoo
from lorabench.zoo.folder import load
from tests.published_sets import attention_names, write_model_j, write_padbench, write_w2t

IN_PATH = "^(?P<split>train|val|test)/"
IN_HEADER = {"category": "imagenet_class_id"}
RUN = r"model_\d+_(?P<rate>\d+)_\d+_\d+_\d+_(?P<subject>\d+)/unet/"
IN_TABLE = {
    "file": "celeba_labels.csv", "key": "celeb_folder", "matches": "celeb_{subject}", "labels": {"category": "Smiling"}
}  # fmt: skip


@pytest.fixture
def model_j(tmp_path: Path) -> Path:
    return write_model_j(tmp_path / "set", attention_names()[:1], classes=2, of_each=1)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return write_w2t(tmp_path / "runs", count=4)


def read(root: Path, **words: Any) -> Zoo:
    return load(root, "mine", root.parent / "cache", **words)


def refused(words: str, root: Path, **arguments: Any) -> None:
    with pytest.raises(LorabenchError, match=re.escape(words)):
        read(root, **arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"labels_in_path": "^(train"}, "dataset.labels_in_path=^(train: no regular expression (missing )"),
        ({"labels_in_path": IN_PATH}, "none of them says the category"),
        ({"labels_in_path": "(?P<category>train)", "labels_in_header": IN_HEADER}, "'category' is in two of them"),
        (
            {"labels_in_path": "^nowhere/(?P<category>.)"},
            "matches dataset.labels_in_path=^nowhere/(?P<category>.); the first of 7 adapters is test/model_idx_0004",
        ),
        ({"labels_in_path": "^train/|(?P<category>val)"}, "matches it without its group 'category'"),
        ({"labels_in_path": "(?P<category>q?)"}, "matches it without its group 'category'"),
        (
            {"labels_in_path": "^(?:train|val|(?P<group>test))", "labels_in_header": IN_HEADER},
            "matches it without its group 'group', which others have",
        ),
        (
            {"labels_in_path": "^(?P<split>val_holdout)/", "labels_in_header": IN_HEADER},
            "by dataset.labels_in_path its split is 'val_holdout'",
        ),
        (
            {"labels_in_header": IN_HEADER | {"split": "imagenet_class_id"}},
            "by dataset.labels_in_header its split is",
        ),
        ({"labels_in_path": 3}, "dataset.labels_in_path=3: no text"),
        ({"labels_in_header": ["category"]}, "dataset.labels_in_header=['category']: no keys by labels"),
        ({"labels_in_header": {"category": 3}}, "dataset.labels_in_header={'category': 3}: no keys by labels"),
        ({"labels_in_table": ["file"]}, "dataset.labels_in_table: has ['file']; needed are file, key, matches"),
        (
            {"labels_in_path": IN_PATH, "labels_in_header": {"category": "class"}},
            "its header has no 'class', which dataset.labels_in_header.category names; it has",
        ),
    ],
)
def test_faults_of_paths_and_headers(model_j: Path, arguments: dict[str, Any], words: str) -> None:
    refused(words, model_j, **arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"file": "none.csv"}, "none.csv: no such file"),
        ({"key": "identity"}, "celeba_labels.csv: has no column 'identity'"),
        (
            {"labels": {"category": "Bald"}},
            "no column 'Bald', which dataset.labels_in_table names; it has celeb_folder,",
        ),
        ({"matches": "celeb"}, "dataset.labels_in_table.matches=celeb: it names no group"),
        ({"matches": "celeb_{person}"}, "'person' is no group of dataset.labels_in_path, which has rate, subject"),
        (
            {"matches": "{subject}"},
            "no row whose celeb_folder is '0', which adapter model_4000_0_0_1_2_0/unet needs",
        ),
        ({"matches": "{subject}}"}, "matches={subject}}: its braces hold no name of a group"),
        ({"matches": "{}"}, "matches={}: its braces hold no name of a group"),
        ({"matches": 3}, "dataset.labels_in_table.matches=3: no text"),
        ({"file": None}, "dataset.labels_in_table.file=None: no text"),
        ({"labels": None}, "dataset.labels_in_table.labels=None: no columns by labels"),
        ({"labels": ["category"]}, "dataset.labels_in_table.labels=['category']: no columns by labels"),
        ({"also": 1}, "dataset.labels_in_table: has file, key, matches, labels, also; needed are file, key, matches"),
    ],
)
def test_faults_of_tables(runs: Path, change: dict[str, Any], words: str) -> None:
    refused(words, runs, labels_in_path=RUN, labels_in_table=IN_TABLE | change)


def test_a_group_that_the_table_is_looked_up_by_has_to_match(runs: Path) -> None:
    path = r"model_\d+_(?P<rate>\d+)_\d+_\d+_\d+_(?:0|(?P<subject>\d+))/unet/"
    refused("matches it without its group 'subject', which", runs, labels_in_path=path, labels_in_table=IN_TABLE)


def test_spaces_around_a_cell_say_nothing(runs: Path) -> None:
    table = runs / "celeba_labels.csv"
    table.write_text(table.read_text().replace("celeb_2,20,0,0", " celeb_2 ,20,0, 0"))
    assert read(runs, labels_in_path=RUN, labels_in_table=IN_TABLE).labels.category.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda text: text + "celeb_3,1,0,0\n", "line 6: celeb_folder 'celeb_3' is there twice"),
        (
            lambda text: text.replace("celeb_2,20,0,0", "celeb_2,20,0,"),
            "'Smiling' in the row 'celeb_2' is empty",
        ),
    ],
)
def test_faults_of_cells(runs: Path, write: Callable[[str], str], words: str) -> None:
    table = runs / "celeba_labels.csv"
    table.write_text(write(table.read_text()))
    refused(words, runs, labels_in_path=RUN, labels_in_table=IN_TABLE)


def test_the_table_may_lie_anywhere_and_a_changed_cell_is_another_zoo(runs: Path, tmp_path: Path) -> None:
    table = (runs / "celeba_labels.csv").rename(tmp_path / "elsewhere.csv")
    words: dict[str, Any] = {"labels_in_path": RUN, "labels_in_table": IN_TABLE | {"file": str(table)}}
    before = read(runs, **words)
    assert before.labels.category.tolist() == [0, 1, 0, 1]
    assert list(before.labels.recipe) == ["rate"]
    table.write_text(table.read_text().replace("celeb_0,20,0,0", "celeb_0,20,0,1"))
    assert read(runs, **words).labels.category.tolist() == [1, 1, 0, 1]


def test_empty_folders_and_two_ways_at_once(model_j: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    places: dict[str, Any] = {"labels_in_path": IN_PATH, "labels_in_header": IN_HEADER}
    refused("it holds no adapters", tmp_path / "empty", **places)
    refused("nowhere: no such folder", tmp_path / "nowhere", **places)
    (model_j / "labels.csv").write_text("file,category\n")
    refused("labels.csv: says the labels, and so do dataset.labels_in_path", model_j, **places)
    with pytest.raises(LorabenchError, match=r"dataset\.path and dataset\.repository are both null"):
        load(None, "mine", tmp_path / "cache")


def test_snapshots_of_one_adapter_are_one_group(tmp_path: Path) -> None:
    root = write_padbench(tmp_path / "set", "t5", of_each=1)
    best = next(root.rglob("best_model"))
    (best.parent / "checkpoint-5").mkdir()
    for file in best.iterdir():
        (best.parent / "checkpoint-5" / file.name).write_bytes(file.read_bytes())
    labels = read(root, labels_in_path=r"(?P<group>[^/]+_label(?P<category>[01])_\d+)/").labels
    assert labels.group is not None
    assert sorted(labels.group.tolist()) in ([0, 0, 1], [0, 1, 1])
