"""`--multirun` as a user meets it: jobs that are done are not run again, and nothing is lost to a kill."""

import csv
import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from lorabench.conf_dir import conf_dir
from lorabench.errors import LorabenchError
from lorabench.jobs import Job, read_jobs, read_status, sweep_of, write_jobs
from lorabench.report.folders import entries
from lorabench.sweeps.composition import Compositions
from lorabench.sweeps.plan import combinations
from tests.conftest import TINY_ZOO, untimed
from tests.hub_schema import small_modules, write_hub
from tests.processes import Started, lorabench

AXES = ["representation=stats,norms", "top_k=0,2", "seed=0,1"]
SMALL = ["--multirun", "experiment=sweep", *TINY_ZOO, "classifier.hidden=[8]", "classifier.max_epochs=3"]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open() as file:
        return list(csv.DictReader(file))


def statuses(folder: Path) -> list[tuple[str, str, str]]:
    jobs = json.loads((folder / "summary.json").read_text())["jobs"]
    return [(job["folder"], job["name"], job["status"]) for job in jobs]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of eight jobs."""
    folder = tmp_path_factory.mktemp("sweep")
    done = lorabench(*SMALL, *AXES, f"output_dir={folder}", cwd=folder)
    lines = done.stdout.splitlines()
    assert [line.split("]")[0] for line in lines[:8]] == [f"[{i}/8" for i in range(1, 9)]
    assert all(": done after " in line for line in lines[:8])
    assert lines[-1] == f"Written to {folder}"
    assert done.stdout.count("glyphs, category, small_mlp") == 1, "a job has printed its own table"
    return folder


@pytest.mark.slow
def test_every_combination_is_a_job_and_a_cell_is_over_all_splits(swept):
    found = statuses(swept)
    assert [folder for folder, *_ in found] == [str(i) for i in range(8)]
    assert found[3] == ("3", "representation=stats top_k=2 seed=1", "done")
    rows = {(row["representation"], row["top_k"]): row for row in table(swept)}
    assert list(rows) == [("stats", "0"), ("stats", "2"), ("norms", "0"), ("norms", "2")]
    for (name, k), row in rows.items():
        assert (row["splits"], row["n"]) == ("2", "4")
        runs = [
            run["metrics"]["test_accuracy"]
            for folder, title, _ in found
            if f"representation={name} " in title and f"top_k={k} " in title
            for run in json.loads((swept / folder / "results.json").read_text())["runs"]
            if run["ablation"] == ("none" if k == "0" else "top-2")
        ]
        assert float(row["test_accuracy"]) == pytest.approx(sum(runs) / 4)


@pytest.mark.slow
def test_all_layers_are_the_same_in_jobs_that_take_layers_away(swept):
    """What top_k=0 evaluates is what every other job compares with."""
    of_zero, of_two = (json.loads((swept / folder / "results.json").read_text())["runs"] for folder in ("0", "2"))
    assert of_zero == [run for run in of_two if run["ablation"] == "none"]


@pytest.mark.slow
def test_a_finished_sweep_computes_nothing_again_and_a_shorter_one_counts_no_other_job(swept, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in swept.glob("*/results.json")}
    whole = table(swept)
    done = lorabench(*SMALL, "representation=norms", "seed=1,0", "top_k=0", f"output_dir={swept}", cwd=tmp_path)
    assert done.stdout.count("done before") == 2
    assert statuses(swept) == [("5", "seed=1", "done"), ("4", "seed=0", "done")]
    assert [row["representation"] for row in table(swept)] == ["norms"]
    assert {path: path.stat().st_mtime_ns for path in swept.glob("*/results.json")} == before
    more = ["representation=norms,flat", "seed=0,1", "top_k=0", f"output_dir={swept}"]
    planned = lorabench(*SMALL, *more, "dry_run=true", cwd=tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in planned] == ["done", "done", "to", "to", "4"]
    assert "4 jobs, 2 to run, in about" in planned[-1]
    lorabench(*SMALL, *AXES, f"output_dir={swept}", cwd=tmp_path)
    assert table(swept) == whole
    assert {path: path.stat().st_mtime_ns for path in swept.glob("*/results.json")} == before
    lorabench(*SMALL, *AXES, "rerun=true", f"output_dir={swept}", cwd=tmp_path)
    assert table(swept) == whole
    assert all(path.stat().st_mtime_ns > before[path] for path in before)


@pytest.mark.slow
def test_failures_are_rows_come_first_and_end_in_1(tmp_path):
    done = lorabench(*SMALL, "representation=norms", "seed=0,-1", "top_k=0", "output_dir=out", cwd=tmp_path, code=1)
    said = done.stdout
    assert said.index("1 job of 2 not done") < said.index("glyphs, category")
    assert "seed=-1: a whole number from 0" in said
    assert [status for *_, status in statuses(tmp_path / "out")] == ["done", "failed"]
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.slow
def test_what_fails_before_a_run_says_why(tmp_path):
    """Both a representation and a list of them: each job refuses."""
    words = ["representation=norms", "representations=[stats],[norms]", "seed=0", "top_k=0", "output_dir=out"]
    done = lorabench(*SMALL, *words, cwd=tmp_path, code=1)
    assert done.stdout.count("a list of representations were chosen") >= 2
    assert "queued" not in done.stdout


@pytest.mark.slow
def test_an_interrupted_rerun_counts_nothing_of_before_and_a_damaged_result_is_made_again(tmp_path):
    words = [*SMALL, "representation=norms", "seed=0,1,2", "top_k=0", "output_dir=out"]
    lorabench(*words, cwd=tmp_path)
    whole = (tmp_path / "out" / "summary.csv").read_bytes()
    running = Started(*words, "rerun=true", cwd=tmp_path)
    until = time.monotonic() + 120
    while (tmp_path / "out" / "2" / "results.json").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode != 0
    assert "Traceback" not in said
    assert entries([tmp_path / "out"])[2].status.status == "queued"
    lorabench(*words, cwd=tmp_path)
    assert (tmp_path / "out" / "summary.csv").read_bytes() == whole
    (tmp_path / "out" / "1" / "results.json").write_text("{")
    done = lorabench(*words, cwd=tmp_path)
    assert done.stdout.count("done before") == 2
    assert (tmp_path / "out" / "summary.csv").read_bytes() == whole
    killed_as_it_was_made = tmp_path / "out" / "1"
    shutil.rmtree(killed_as_it_was_made)
    killed_as_it_was_made.mkdir()
    lorabench(*words, cwd=tmp_path)
    assert [folder for folder, *_ in statuses(tmp_path / "out")] == ["0", "1", "2"]
    assert (tmp_path / "out" / "summary.csv").read_bytes() == whole


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["output_dir=x,y"], "output_dir is one for all jobs of a sweep"),
        (["rerun=true,false"], "rerun is one for all jobs"),
        (["representation=glob(zz*)"], "representation"),
        (["seed=interval(0,1)"], "seed: an interval has no end of values"),
        (["representaton=stats,norms"], "representaton"),
        ([r"output_dir='\${seed}'"], "output_dir=${seed}: Hydra takes ${...} for another option"),
    ],
)
def test_axes_that_are_none_end_in_one_message(words, said, tmp_path):
    done = lorabench("--multirun", *TINY_ZOO, "output_dir=out", *words, cwd=tmp_path, code=1)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out/*/results.json"))


def test_two_sweeps_do_not_share_a_folder_and_dry_run_is_for_sweeps(tmp_path):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".sweep.lock"):
        done = lorabench(*SMALL, "seed=0", "output_dir=out", cwd=tmp_path, code=1)
    assert "another sweep is at work in out" in done.stderr
    assert "give --multirun too" in lorabench("dry_run=true", *TINY_ZOO, cwd=tmp_path, code=1).stderr


@pytest.mark.slow
def test_twenty_kills_leave_the_table_of_an_undisturbed_sweep(swept, tmp_path):
    """SIGKILL at random moments, with a cache of its own, then the same command to its end."""
    lorabench(*SMALL, *AXES, f"output_dir={swept}", cwd=tmp_path)  # whatever other tests have asked of it
    chance = random.Random(0)  # noqa: S311
    out, cache = tmp_path / "out", tmp_path / "cache"
    words = [*SMALL, *AXES, f"output_dir={out}", f"cache_dir={cache}"]
    for _ in range(20):
        running = Started(*words, cwd=tmp_path)
        time.sleep(chance.uniform(0.5, 5))
        running.send_signal(signal.SIGKILL)
        running.wait()
    lorabench(*words, cwd=tmp_path)
    assert (out / "summary.csv").read_bytes() == (swept / "summary.csv").read_bytes()
    assert [status for *_, status in statuses(out)] == ["done"] * 8
    for folder, *_ in statuses(out):
        ours, theirs = (json.loads((one / folder / "results.json").read_text()) for one in (out, swept))
        assert untimed(ours["runs"]) == untimed(theirs["runs"])
        assert ours["ablation"] == theirs["ablation"]


@pytest.mark.slow
def test_results_stay_where_the_zoo_of_a_job_that_is_done_cannot_be_read(tmp_path):
    zoo = write_hub(tmp_path / "zoo", 60, small_modules(3))
    small = [
        "--multirun",
        "dataset=1k",
        f"dataset.path={zoo}",
        "classifier.max_epochs=3",
        "num_runs=2",
        "output_dir=out",
    ]
    words = [*small, "representation=norms", "seed=0,1"]
    lorabench(*words, cwd=tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*/*.json")}
    zoo.rename(tmp_path / "away")
    for more in ([], ["rerun=true"], ["seed=0,1,2"]):
        done = lorabench(*words, *more, cwd=tmp_path, code=1)
        assert done.stderr.startswith("lorabench: seed=0 is done here, and whether its zoo is still the same cannot be")
        assert "nothing was queued" in done.stderr
        assert {path: path.read_bytes() for path in (tmp_path / "out").glob("*/*.json")} == before
    done = lorabench(*small, "representation=norms", "seed=2", cwd=tmp_path, code=1)  # never done: a row
    assert [status for *_, status in statuses(tmp_path / "out")] == ["failed"]
    (tmp_path / "away").rename(zoo)
    assert lorabench(*words, cwd=tmp_path).stdout.count("done before") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "name"),
    [
        (r"'mid\dle, [a] {b} (c)'", r"mid\dle, [a] {b} (c)"),
        (r"'end\\'", "end\\"),
        (r"""'say \"hi" a=b: c'""", r"""say \"hi" a=b: c"""),
        (r'''"it's\' so\\"''', r"it's\' so" + "\\"),
    ],
)
def test_jobs_write_into_the_sweeps_folder_whatever_it_is_called(given, name, tmp_path):
    lorabench(*SMALL, "representation=norms", "seed=0", "top_k=0", f"output_dir={given}", cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert statuses(tmp_path / name) == [("0", "the only job", "done")]


def test_a_sweep_json_of_wrong_types_is_told_and_the_same_command_mends_it(tmp_path):
    good: dict[str, Any] = {"folder": "0", "name": "seed=0", "overrides": ["seed=0"], "configuration": "key"}
    for name, value in (
        ("folder", 3),
        ("name", None),
        ("overrides", "seed=0"),
        ("overrides", [3]),
        ("configuration", {}),
    ):
        (tmp_path / "sweep.json").write_text(json.dumps({"id": 3, "jobs": [good | {name: value}]}))
        with pytest.raises(LorabenchError, match=rf"sweep\.json cannot be read \({name}="):
            read_jobs(tmp_path)
        assert sweep_of(tmp_path / "0") is None
    write_jobs(tmp_path, [Job(**good)])
    assert read_jobs(tmp_path) == [Job(**good)]
    assert str(sweep_of(tmp_path / "0")).startswith(tmp_path.name)


def test_a_job_that_is_refused_keeps_its_folder(tmp_path):
    words = [*SMALL, "representation=norms", "top_k=0", "classifier.dropout=3,4", "output_dir=out"]
    for axes in ("seed=0", "seed=0", "seed=0,1", "seed=1"):
        lorabench(*words, axes, cwd=tmp_path, code=1)
        found = [folder for folder, *_ in statuses(tmp_path / "out")]
        assert len(set(found)) == len(found)
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["0", "1", "2", "3"]
    assert read_status(tmp_path / "out" / "0").status == "failed"


@pytest.mark.parametrize(
    "words",
    [
        ["representation=stats,norms", "seed=0,1", "representation.on=delta", "classifier.hidden=[8],[9,9]"],
        ["ablation=shift", "dataset@ablation.other=glyphs,glosses", "seed=0,1"],
        ["representation=norms", "++classifier.more=1,2", "classifier.hidden=[8],[9]", "seed=0,1"],
        [
            "classifier=mlp,linear",
            "split={train: 0.5, val: 0.2, test: 0.3},{train: 0.6}",
            "representations=[stats],[vae]",
        ],
    ],
)
def test_what_jobs_share_changes_no_configuration(words: list[str]) -> None:
    """Each is what Hydra composes of its overrides."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        whole = loader.load_configuration("config", [], RunMode.MULTIRUN)
        compositions = Compositions(whole, loader)
        jobs = combinations(words, loader)
        for overrides in jobs.values():
            found, choices = compositions.of(overrides)
            wanted = loader.load_sweep_config(whole, overrides)
            assert choices == dict(wanted.hydra.runtime.choices)
            with open_dict(wanted):
                del wanted["hydra"]
            assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(wanted)
            assert OmegaConf.is_struct(found)
