"""The file of finished members: whole lines only, whatever ends a run, and no number from another question."""

import errno
import functools
import json
import math
import os
import subprocess
import sys
import threading
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.classifiers.linear import Linear
from lorabench.engines import Stacked
from lorabench.evaluation import Arm, Probe
from lorabench.evaluation.journal import Journal
from lorabench.evaluation.members import Record
from lorabench.representations.delta_spectral import DeltaSpectral
from lorabench.representations.pca import PCA
from lorabench.representations.stats import Stats
from lorabench.zoo.splits import split_zoo
from tests.conftest import ROOT
from tests.small_study import SHARES, SMALL, evaluator_of
from tests.synthetic_zoo import planted_zoo

RECORDS = {f"{i:040x}": {"measured": {"epochs": i, "metrics": {"auroc": i / 7}}, "val": "x" * i} for i in range(6)}
QUICK = functools.partial(SMALL, max_epochs=2)


def written(path, records):
    journal = Journal(path)
    for key, record in records.items():
        journal.add(key, record)
    return journal


def read(path, keys=RECORDS):
    journal = Journal(path)
    return {key: record for key in keys if (record := journal.get(key)) is not None}


@pytest.fixture(scope="module")
def zoo():
    return planted_zoo({0: [0.0, 0.5, 1.0]}, 60, modules=2)


@pytest.fixture
def no_store(monkeypatch):
    """The disk takes no line of a journal; the numbers of what was tried."""
    tried, opened = [], os.open

    def refuse(path, *arguments, **more):
        if str(path).endswith(".jsonl"):
            tried.append(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return opened(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refuse)
    return tried


def test_what_is_added_is_read_again(tmp_path):
    path = tmp_path / "members" / "a.jsonl"
    journal = written(path, RECORDS)
    assert read(path) == RECORDS == {key: journal.get(key) for key in RECORDS}
    assert Journal(path).get("another") is None
    assert len(path.read_text().splitlines()) == 6
    journal.add("0" * 40, {"newer": 1})
    assert read(path)["0" * 40] == {"newer": 1}


def test_no_file_is_no_record_and_none_keeps_nothing(tmp_path):
    assert read(tmp_path / "nowhere" / "a.jsonl") == {}
    assert written(None, RECORDS).get(next(iter(RECORDS))) == RECORDS[next(iter(RECORDS))]
    assert list(tmp_path.iterdir()) == []


def test_a_record_of_a_member_comes_back_as_it_was():
    measured = {"epochs": 2, "metrics": {"a": 0.1 + 0.2, "b": math.nan}, "history": [{"val_loss": math.inf}]}
    record = Record(measured, np.array([0, 2, -1]), np.array([], np.int64), {"unit": 1 / 3})
    back = Record.unpacked(json.loads(json.dumps(record.packed())))
    assert back.val.tolist() == [0, 2, -1]
    assert back.test.shape == (0,)
    assert back.val.dtype == back.test.dtype == np.int64
    assert (back.probed, back.measured["history"]) == (record.probed, measured["history"])
    assert back.measured["metrics"]["a"] == 0.1 + 0.2
    assert math.isnan(back.measured["metrics"]["b"])


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_a_kill_at_any_byte_costs_the_line_that_it_cut_and_no_later_one(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cut") / "a.jsonl"
    written(path, RECORDS)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    lines, keys = whole.split(b"\n"), list(RECORDS)
    ends = np.cumsum([len(line) + 1 for line in lines[:-1]]) - 1  # a line without its end is whole
    left = dict(list(RECORDS.items())[: int((ends <= cut).sum())])
    assert read(path) == left
    later = Journal(path)
    for key in keys[::-1]:
        later.add(key, RECORDS[key])
    assert read(path) == RECORDS


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_a_damaged_byte_costs_its_line_alone(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "a.jsonl"
    written(path, RECORDS)
    whole = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[at]))
    path.write_bytes(bytes(whole))
    hit = path.read_bytes()[:at].count(b"\n")  # a lost line end damages the next line too
    found = read(path)
    assert all(found[key] == RECORDS[key] for key in found)
    assert set(RECORDS) - set(found) <= set(list(RECORDS)[hit : hit + 2])


def test_two_writers_append_to_one_file(tmp_path):
    path = tmp_path / "a.jsonl"
    first, second = Journal(path), Journal(path)
    for number, (key, record) in enumerate(RECORDS.items()):
        (first, second)[number % 2].add(key, record)
    assert read(path) == RECORDS
    assert first.get(list(RECORDS)[1]) is None


def test_threads_and_processes_append_whole_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    script = (
        "import runpy, sys\nfrom pathlib import Path\n"  # without torch, which the package imports
        "journal = runpy.run_path('lorabench/evaluation/journal.py')['Journal'](Path(sys.argv[1]))\n"
        "for i in range(150):\n    journal.add(f'{sys.argv[2]}{i}', {'text': 'y' * 3000, 'number': i})\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, str(path), name], cwd=ROOT) for name in "ab"]
    journal = Journal(path)

    def add(name):
        for i in range(150):
            journal.add(f"{name}{i}", {"text": "z" * 3000, "number": i})

    threads = [threading.Thread(target=add, args=(name,)) for name in "cd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(120) for process in processes] == [0, 0]
    found = read(path, [f"{name}{i}" for name in "abcd" for i in range(150)])
    assert len(found) == 600
    assert all(found[f"{name}{i}"]["number"] == i for name in "abcd" for i in range(150))


def test_a_full_disk_is_one_warning_and_the_records_stay_in_memory(tmp_path, no_store, caplog):
    journal = written(tmp_path / "a.jsonl", RECORDS)
    assert {key: journal.get(key) for key in RECORDS} == RECORDS
    assert len(no_store) == 1
    (warning,) = caplog.records
    assert "finished members are not kept in" in warning.getMessage()
    assert "No space left on device" in warning.getMessage()
    assert "cache_dir=DIR" in warning.getMessage()
    assert not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize("kind", ["a file in place of the folder", "a folder in place of the file"])
def test_a_place_that_cannot_be_read_is_a_warning(kind, tmp_path, caplog):
    path = tmp_path / "members" / "a.jsonl"
    if kind.startswith("a file"):
        path.parent.write_text("in the way")
    else:
        path.mkdir(parents=True)
    journal = written(path, RECORDS)
    assert {key: journal.get(key) for key in RECORDS} == RECORDS
    (warning,) = caplog.records
    assert "finished members are not kept in" in warning.getMessage()


def same(first, second):
    return all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
        for name in (f.name for f in fields(first))
        for a, b in [(getattr(first, name), getattr(second, name))]
    )


def arms_of(zoo):
    layers = tuple(zoo.layers)
    return [Arm("none", layers), Arm("permuted", layers, permuted=True), Arm("last", layers[3:])]


def test_the_second_time_nothing_is_trained_and_all_is_the_same(zoo, tmp_path, caplog):
    probe = Probe("thirds", lambda _fitted, _problem, widths: dict.fromkeys(widths, 1 / 3))
    first = evaluator_of(zoo, tmp_path, factory=QUICK)
    found = first.evaluate("stats", Stats(), arms_of(zoo), probe)
    assert (first.trained, first.taken) == (6, 0)
    (path,) = (tmp_path / "members").glob("*.jsonl")
    before = path.read_bytes()
    assert len(before.splitlines()) == 6
    second = evaluator_of(zoo, tmp_path, factory=QUICK)
    again = second.evaluate("stats", Stats(), arms_of(zoo), probe)
    assert (second.trained, second.taken) == (0, 6)
    assert all(same(a, b) for a, b in zip(found, again, strict=True))
    assert path.read_bytes() == before
    assert caplog.records == []


def test_a_failed_member_is_not_trained_again_and_fails_again(zoo, tmp_path):
    factory = functools.partial(QUICK, learning_rate=1e37, max_epochs=3)
    found = [evaluator_of(zoo, tmp_path, factory=factory).evaluate("stats", Stats(), arms_of(zoo)) for _ in range(2)]
    for first, second in zip(*found, strict=True):
        assert [run.error for run in first.runs] == [run.error for run in second.runs]
        assert all(run.error for run in second.runs)
        assert np.array_equal(first.test, second.test)


def test_equal_members_are_trained_once(zoo, tmp_path):
    """A module goes with either of its layers; and a phase asks for what an earlier phase of the run has trained."""
    evaluator = evaluator_of(zoo, tmp_path, factory=QUICK, resume=False)
    layers = evaluator.everything
    without = [Arm(layer, tuple(name for name in layers if name != layer)) for layer in layers]
    found = evaluator.evaluate("delta", DeltaSpectral(), without)
    assert (evaluator.trained, evaluator.taken) == (4, 4)
    for down, up in (found[:2], found[2:]):
        assert np.array_equal(down.test, up.test)
        assert [run.ablation for run in (*down.runs, *up.runs)] == [*[down.arm.name] * 2, *[up.arm.name] * 2]
    evaluator.evaluate("again", DeltaSpectral(), without[1:2])
    assert (evaluator.trained, evaluator.taken) == (4, 6)


def moved(split):
    """The last training row decides when to stop: the same rows one after another, cut elsewhere."""
    return replace(split, train=split.train[:-1], val=np.concatenate([split.train[-1:], split.val]))


CHANGED = {
    "zoo": lambda e: replace(e, zoo=replace(e.zoo, fingerprint="another")),
    "rows": lambda e: replace(e, split=replace(e.split, test=e.split.test[1:])),
    "boundary of the rows": lambda e: replace(e, split=moved(e.split)),
    "labels": lambda e: replace(e, labels=np.roll(e.labels, 1)),
    "classifier's option": lambda e: replace(e, factory=functools.partial(QUICK, dropout=0.1)),
    "classifier's epochs": lambda e: replace(e, factory=functools.partial(QUICK, max_epochs=3)),
    "classifier": lambda e: replace(e, factory=functools.partial(Linear, max_epochs=2)),
    "engine": lambda e: replace(e, engine=type("Another", (Stacked,), {})("cpu")),
}
SHAPED = {
    "representation": lambda e: e.evaluate("a", Stats(), arms_of(e.zoo)),
    "representation's option": lambda e: e.evaluate("a", PCA(components=2), arms_of(e.zoo)),
    "permutation": lambda e: e.evaluate("a", PCA(components=3), [Arm("none", e.everything[1:], permuted=True)]),
    "layers": lambda e: e.evaluate("a", PCA(components=3), [Arm("none", e.everything[:2])]),
    "probe": lambda e: e.evaluate("a", PCA(components=3), arms_of(e.zoo), Probe("p", lambda _f, _p, _w: {})),
}


@pytest.fixture(scope="module")
def trained(zoo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    evaluator = evaluator_of(zoo, folder, factory=QUICK)
    evaluator.evaluate("a", PCA(components=3), arms_of(zoo))
    assert (evaluator.trained, evaluator.taken) == (6, 0)
    return folder


@pytest.mark.parametrize("what", CHANGED)
def test_a_member_of_another_setting_is_not_taken(what, zoo, trained):
    evaluator = CHANGED[what](evaluator_of(zoo, trained, factory=QUICK))
    evaluator.evaluate("a", PCA(components=3), arms_of(zoo)[:1])
    assert (evaluator.trained, evaluator.taken) == (2, 0)


@pytest.mark.parametrize("what", SHAPED)
def test_a_member_that_reads_or_learns_another_thing_is_not_taken(what, zoo, trained):
    evaluator = evaluator_of(zoo, trained, factory=QUICK)
    SHAPED[what](evaluator)
    assert evaluator.trained > 0
    assert evaluator.taken == 0


def test_a_member_of_another_code_is_not_taken(zoo, trained, monkeypatch):
    monkeypatch.setattr("lorabench.evaluation.evaluator.source_code", lambda: "rewritten")
    evaluator = evaluator_of(zoo, trained, factory=QUICK)
    evaluator.evaluate("a", PCA(components=3), arms_of(zoo))
    assert (evaluator.trained, evaluator.taken) == (6, 0)


def test_names_memory_and_company_are_no_part_of_a_member(zoo, trained):
    evaluator = evaluator_of(zoo, trained, engine=Stacked("cpu", memory_gb=1), factory=QUICK)
    arms = [replace(arm, name=f"another {arm.name}") for arm in arms_of(zoo)[::-1]]
    found = evaluator.evaluate("b", PCA(components=3), [*arms, Arm("more", evaluator.everything[1:])])
    assert (evaluator.trained, evaluator.taken) == (2, 6)
    assert {(run.representation, run.ablation) for run in found[0].runs} == {("b", "another last")}


def test_further_seeds_are_trained_beside_the_kept_ones(zoo, trained):
    evaluator = replace(evaluator_of(zoo, trained, factory=QUICK), seeds=(1, 2))
    evaluator.evaluate("a", PCA(components=3), arms_of(zoo)[2:])
    assert (evaluator.trained, evaluator.taken) == (1, 1)


def test_resume_false_neither_reads_nor_writes(zoo, tmp_path):
    found = evaluator_of(zoo, tmp_path, factory=QUICK).evaluate("stats", Stats(), arms_of(zoo))
    (path,) = (tmp_path / "members").glob("*.jsonl")
    before = path.read_bytes()
    evaluator = evaluator_of(zoo, tmp_path, factory=QUICK, resume=False)
    again = evaluator.evaluate("stats", Stats(), arms_of(zoo))
    assert (evaluator.trained, evaluator.taken) == (6, 0)
    assert path.read_bytes() == before
    assert all(same(a, b) for a, b in zip(found, again, strict=True))
    untouched = tmp_path / "untouched"
    evaluator_of(zoo, untouched, factory=QUICK, resume=False).evaluate("stats", Stats(), arms_of(zoo))
    assert not (untouched / "members").exists()


def test_a_full_disk_costs_no_result(zoo, tmp_path, no_store, caplog):
    expected = evaluator_of(zoo, tmp_path / "a", factory=QUICK, resume=False).evaluate("s", Stats(), arms_of(zoo))
    evaluator = evaluator_of(zoo, tmp_path / "b", factory=QUICK)
    found = [evaluator.evaluate("s", Stats(), arms_of(zoo)) for _ in range(2)]
    assert all(same(a, b) for again in found for a, b in zip(expected, again, strict=True))
    assert (evaluator.trained, evaluator.taken) == (6, 6)
    assert len(no_store) == len(caplog.records) == 1


def test_the_split_of_another_seed_is_another_file(zoo, tmp_path):
    for seed in (0, 1):
        evaluator = evaluator_of(zoo, tmp_path, factory=QUICK, split=split_zoo(zoo.labels, **SHARES, seed=seed))
        evaluator.evaluate("stats", Stats(), arms_of(zoo)[2:])
        assert (evaluator.trained, evaluator.taken) == (2, 0)
    assert len(list((tmp_path / "members").glob("*.jsonl"))) == 2
