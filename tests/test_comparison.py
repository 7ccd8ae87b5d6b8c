"""Many runs side by side: what is put together, what is said to be better, and what is not done."""

import csv
import json
import math
import os
import shlex
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lorabench.jobs import Job, queue, read_status, status_of, write_jobs
from lorabench.report.__main__ import main
from lorabench.report.folders import entries
from lorabench.report.standings import compare
from lorabench.results import NUMBER_METRICS, Numbers
from tests.made_results import TEST, TRAIN, a_result, a_sweep, several


@pytest.mark.parametrize("splits", [2, 3, 6])
def test_means_intervals_and_ps_are_those_of_the_formulas(splits):
    """Nadeau & Bengio's t, and Holm's step-down, by hand."""
    rng = np.random.default_rng(splits)
    names = ["a", "b", "c", "d"]
    results = several(rng, names, splits, gap=0.05)
    found = compare(results)
    values = {
        name: np.array(
            [
                [run.metrics["test_accuracy"] for run in one.runs]
                for one in results
                if one.runs[0].representation == name
            ]
        )
        for name in names
    }
    best = max(names, key=lambda name: values[name].mean())
    ps = {}
    for row in found:
        name = row.cell.representation
        assert row.cell.mean == pytest.approx(values[name].mean())
        assert row.cell.std == pytest.approx(values[name].std(ddof=1))
        assert (row.cell.splits, len(row.cell.accuracy)) == (splits, 2 * splits)
        means = values[name].mean(1)
        reach = stats.t.ppf(0.975, splits - 1) * math.sqrt((1 / splits + TEST / TRAIN) * means.var(ddof=1))
        assert row.cell.interval() == pytest.approx((means.mean() - reach, means.mean() + reach))
        assert row.best == (name == best)
        if name != best:
            gaps = (values[name] - values[best]).mean(1)
            t = gaps.mean() / math.sqrt((1 / splits + TEST / TRAIN) * gaps.var(ddof=1))
            ps[name] = 2 * stats.t.sf(abs(t), splits - 1)
            assert row.difference.p == pytest.approx(ps[name])
            assert row.p == pytest.approx(ps[name], nan_ok=True) or (splits < 3 and math.isnan(row.p))
    ordered = sorted(ps, key=ps.get)
    expected, running = {}, 0.0
    for i, name in enumerate(ordered):
        running = max(running, min(1.0, (len(ordered) - i) * ps[name]))
        expected[name] = running
    for row in found:
        name = row.cell.representation
        if splits < 3:
            assert not row.alone
            assert math.isnan(row.holm)
        elif name == best:
            assert row.alone == all(value < 0.05 for value in expected.values())
        else:
            assert row.holm == pytest.approx(expected[name])


def test_one_split_shows_nothing_to_be_better():
    found = compare([a_result({"a": [0.9, 0.9], "b": [0.1, 0.1]})])
    assert [row.best for row in found] == [True, False]
    assert not any(row.alone for row in found)
    assert all(math.isnan(row.holm) for row in found)


def test_rows_without_the_best_layers_stand_by_their_number_and_controls_stand_nowhere():
    found = compare([a_result({"a": [0.8, 0.7]}, top_k=3), a_result({"a": [0.8, 0.7]}, top_k=0)])
    assert {row.cell.top_k: pytest.approx(row.cell.mean) for row in found} == {0: 0.75, 3: 0.65}


def test_zoos_are_never_mixed_and_one_member_counts_once():
    same = a_result({"a": [0.8, 0.7]})
    found = compare([same, same, a_result({"a": [0.2, 0.1]}, dataset="other")])
    assert [(row.cell.dataset, len(row.cell.accuracy)) for row in found] == [("glyphs", 2), ("other", 2)]


def test_runs_of_other_options_are_other_rows_and_of_another_zoo_or_split_another_table(capsys, tmp_path):
    """Nothing that differs in what it was computed with is put together, or compared across splits."""
    found = [
        a_result({"a": [0.8, 0.7]}, classifier={"learning_rate": 0.1}),
        a_result({"a": [0.6, 0.5]}, classifier={"learning_rate": 0.001}),
        a_result({"a": [0.4, 0.3]}, classifier={"learning_rate": 0.1}, split={"test": 0.3}),
        a_result({"a": [0.2, 0.1]}, classifier={"learning_rate": 0.1}, representations={"a": {"on": "delta"}}),
    ]
    rows = compare(found)
    assert [row.label for row in rows] == [
        "a classifier.learning_rate=0.1",
        "a classifier.learning_rate=0.001",
        "a",
        "a classifier.learning_rate=0.1 on=delta",
    ]
    assert [round(row.cell.mean, 2) for row in rows] == [0.75, 0.55, 0.35, 0.15]
    assert [row.best for row in rows] == [True, False, True, False]
    for number, one in enumerate(found):
        (tmp_path / str(number)).mkdir()
        one.write(tmp_path / str(number) / "results.json")
    assert main([*(str(tmp_path / str(number)) for number in range(4)), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "a classifier.learning_rate=0.001" in said
    assert "glyphs, category, mlp, split.test=0.3" in said


def test_differences_that_are_the_same_on_all_splits_show_nothing():
    """Accuracies are counts of few adapters: equal ones are no small error."""
    results = [a_result({"a": [0.8 - 0.1 * seed], "b": [0.75 - 0.1 * seed]}, seed=seed) for seed in range(4)]
    rows = compare(results)
    assert [row.best for row in rows] == [True, False]
    assert not any(row.alone for row in rows)
    assert math.isnan(rows[1].p)
    (row,) = compare([a_result({"a": [0.5]}, seed=seed) for seed in range(3)])
    assert all(map(math.isnan, row.cell.interval()))


def test_a_job_whose_folder_has_anothers_results_is_not_done(tmp_path):
    jobs = [Job("0", "seed=0", ["seed=0"], "new")]
    write_jobs(tmp_path, jobs)
    queue(tmp_path, Job("0", "seed=5", ["seed=5"], "old"))
    with status_of(tmp_path / "0"):
        a_result({"a": [0.8, 0.7]}, seed=5).write(tmp_path / "0" / "results.json")
    (found,) = entries([tmp_path])
    assert (found.status.status, found.result) == ("queued", None)
    queue(tmp_path, jobs[0])
    assert not (tmp_path / "0" / "results.json").exists()
    (found,) = entries([tmp_path])
    assert (found.status.status, found.status.configuration) == ("queued", "new")


def test_a_member_that_failed_is_counted_and_is_in_no_mean():
    (row,) = compare([a_result({"a": [0.8, 0.6]}, failed=["seed 99: nan"])])
    assert (row.cell.mean, row.cell.failed) == (pytest.approx(0.7), {(0, 99): "seed 99: nan"})
    (row,) = compare([a_result({"a": []}, failed=["seed 99: nan"])])
    assert math.isnan(row.cell.mean)
    assert not row.best


@pytest.mark.parametrize("order", [1, -1])
def test_a_member_that_ended_well_in_one_run_has_not_failed(order):
    well = a_result({"a": [0.8, 0.6]})
    runs = [replace(run, error="no memory", metrics={}) if run.seed == 0 else run for run in well.runs]
    (row,) = compare([well, replace(well, runs=runs)][::order])
    assert (row.cell.mean, len(row.cell.accuracy), row.cell.failed) == (pytest.approx(0.7), 2, {})


@pytest.mark.parametrize("order", [1, -1])
def test_chance_is_a_mean_over_splits(order):
    runs = [replace(a_result({"a": [0.8]}, seed=seed), chance=chance) for seed, chance in ((0, 0.1), (1, 0.3))]
    (row,) = compare(runs[::order])
    assert row.cell.chance == pytest.approx(0.2)


def test_seconds_are_those_of_the_training_and_not_of_the_cache():
    """A run that takes its members from the cache has been quick itself."""
    made = a_result({"a": [0.8, 0.7]}, seed=3)
    taken = replace(made, seconds={"features/a": 0.01, "training/a": 0.01})
    assert [row.cell.seconds for results in ([made], [taken], [made, taken]) for row in compare(results)] == [5.0] * 3
    unknown = replace(made, runs=[replace(run, seconds=0.0) for run in made.runs])
    assert math.isnan(compare([unknown])[0].cell.seconds)


def test_what_was_fitted_elsewhere_is_a_row_of_its_own():
    found = [
        a_result({"vae": [level, level]}, representations={"vae": {"load_from": folder}})
        for level, folder in ((0.8, "runs/one"), (0.4, "runs/two"))
    ]
    assert {row.label: row.cell.mean for row in compare(found)} == {
        "vae load_from=runs/one": pytest.approx(0.8),
        "vae load_from=runs/two": pytest.approx(0.4),
    }


@pytest.mark.parametrize("order", [1, -1])
def test_rankings_by_another_number_of_members_are_not_mixed(order):
    """All layers are the same whoever ranks; without the best, the layers that are gone are others."""
    found = [
        a_result(
            {"a": [0.8] * members}, top_k=3, fall=fall, num_runs=members, ablation={"baseline": {"b": {"on": "x"}}}
        )
        for members, fall in ((2, 0.1), (6, 0.4))
    ]
    rows = compare(found[::order])
    assert {(row.label, row.cell.top_k): round(row.cell.mean, 2) for row in rows} == {
        ("a", 0): 0.8,
        ("a num_runs=2", 3): 0.7,
        ("a num_runs=6", 3): 0.4,
    }
    (whole,) = {row.cell.row for row in rows if not row.cell.top_k}
    assert {row.cell.whole for row in rows} == {whole}


def test_a_run_that_is_named_in_several_ways_is_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sweep = a_sweep(tmp_path / "sweep").relative_to(tmp_path)
    (tmp_path / "link").symlink_to(sweep)
    found = entries([sweep, sweep.resolve(), sweep / "0", tmp_path / "link"])
    assert [run.name for run in found] == [f"seed={number}" for number in range(5)]
    main(["sweep", str(sweep.resolve())])
    assert "Written to sweep/report.html" in capsys.readouterr().out


def of_hydra(folder, main, config_name="config", output_dir=None):
    """A run's folder, as Hydra leaves it."""
    sources = [("hydra", "pkg", "hydra.conf"), ("main", "file", main), ("lorabench", "file", "/checkout/conf")]
    kept = {
        "overrides.yaml": ["seed=3", "output_dir=old"],
        "config.yaml": {"output_dir": output_dir},
        "hydra.yaml": {
            "hydra": {
                "job": {"config_name": config_name},
                "runtime": {
                    "cwd": "/elsewhere",
                    "config_sources": [
                        {"provider": provider, "schema": schema, "path": path} for provider, schema, path in sources
                    ],
                },
            }
        },
    }
    (folder / ".hydra").mkdir(parents=True)
    for name, content in kept.items():
        (folder / ".hydra" / name).write_text(json.dumps(content))
    a_result({"a": [0.8]}).write(folder / "results.json")
    return folder


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"main": "/checkout/conf"}, []),
        ({"main": "/checkout/conf", "output_dir": "old"}, []),
        ({"main": "/checkout/conf", "config_name": "mine"}, ["--config-name", "mine"]),
        ({"main": "/a run/.hydra"}, ["--config-path", "/a run/.hydra", "--config-name", "config"]),
        ({"main": "run/.hydra"}, ["--config-path", "/elsewhere/run/.hydra", "--config-name", "config"]),
        (
            {"main": "/run/.hydra", "output_dir": "old"},
            ["--config-path", "/run/.hydra", "--config-name", "config", "output_dir=null"],
        ),
    ],
)
def test_the_command_names_the_configuration_that_a_run_came_of(options, words, tmp_path):
    (found,) = entries([of_hydra(tmp_path / "run", **options)])
    assert shlex.split(found.command) == ["python", "-m", "lorabench", *words, "seed=3"]


@pytest.mark.parametrize(
    "content", ["[", "[]", "{}", '{"hydra": 3}', '{"hydra": {"runtime": {"config_sources": [1]}}}']
)
def test_what_hydra_kept_may_be_damaged(content, tmp_path):
    folder = of_hydra(tmp_path / "run", "/checkout/conf")
    for name in ("hydra.yaml", "config.yaml"):
        (folder / ".hydra" / name).write_text(content)
    (found,) = entries([folder])
    assert found.command == "python -m lorabench seed=3"


def test_jobs_are_what_the_disk_says(tmp_path):
    found = entries([a_sweep(tmp_path / "sweep")])
    assert [run.status.status for run in found] == ["done", "failed", "killed", "queued", "failed"]
    assert found[1].status.error == "last line"
    assert "results.json cannot be used" in found[4].status.error
    assert "run it again" in found[4].status.error
    assert found[0].status.device == "cpu"
    assert found[0].status.seconds >= 0
    assert found[0].status.peak_memory_mb > 10
    assert [run.result is not None for run in found] == [True, False, False, False, False]


def test_a_run_at_work_is_running_and_an_interrupted_one_says_so(tmp_path):
    seen = []

    def interrupted():
        with status_of(tmp_path):
            seen.append(read_status(tmp_path))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(status.status, status.pid) for status in seen] == [("running", os.getpid())]
    assert read_status(tmp_path).status == "interrupted"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"status": 3}',
        "null",
        '{"status": "done", "configuration": [1]}',
        '{"status": "running", "pid": 1e99}',
        '{"status": "running", "pid": 99999999999}',
        '{"status": "done", "seconds": "x"}',
    ],
)
def test_a_status_that_is_none_is_queued(text, tmp_path):
    (tmp_path / "status.json").write_text(text)
    assert read_status(tmp_path).status == "queued"


def test_the_report_names_what_is_not_done_first_and_ends_in_1(tmp_path, capsys):
    sweep = a_sweep(tmp_path / "sweep")
    assert main([str(sweep), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    assert said.index("4 jobs of 5 not done") < said.index("seed=1  ") < said.index("glyphs, category, mlp")
    assert "last line" in said
    with (tmp_path / "out" / "summary.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["representation"], row["top_k"], row["n"], row["holm"]) == ("a", "0", "2", "")
    assert float(row["test_accuracy"]) == pytest.approx(0.75)
    data = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [job["status"] for job in data["jobs"]] == ["done", "failed", "killed", "queued", "failed"]
    assert data["table"][0]["holm"] is None


def test_errors_of_a_number_stand_on_the_page_and_in_the_summary(tmp_path, capsys):
    for seed, errors, constant in ((0, (2.0, 0.5), 1.25), (10, (4.0, -0.25), 2.25)):
        made = a_result({"a": [0.8, 0.7]}, seed=seed)
        for run in made.runs:
            run.metrics.update(zip(NUMBER_METRICS, errors, strict=True))
        numbers = Numbers("log2 images", [0.0, 3.0], constant_mae=constant, constant_r2=-0.125)
        (tmp_path / str(seed)).mkdir()
        replace(made, numbers=numbers).write(tmp_path / str(seed) / "results.json")
    assert main([str(tmp_path / "0"), str(tmp_path / "10"), "--out", str(tmp_path)]) == 0
    with (tmp_path / "summary.csv").open() as file:
        (row,) = csv.DictReader(file)
    found = [float(row[name]) for name in ("mae", "mae_std", "r2", "r2_std")]
    assert found == pytest.approx([3.0, np.std([2, 2, 4, 4], ddof=1), 0.125, np.std([0.5, 0.5, -0.25, -0.25], ddof=1)])
    assert row["unit"] == "log2 images"
    for told in (capsys.readouterr().out, (tmp_path / "report.html").read_text()):
        assert "3.00 ± 1.15" in told
        assert "the best constant" in told
        assert "1.75" in told  # the mean over both splits


def test_a_run_by_itself_and_a_sweep_stand_in_one_table(tmp_path, capsys):
    for number, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        a_result({"a": [0.8, 0.7]}, seed=10 * number).write(tmp_path / name / "results.json")
    assert main([str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["table"][0]["splits"], data["table"][0]["n"]) == (2, 4)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nothing", None, "neither the folder of a run"),
        ("sweep.json", "{", "cannot be read"),
        ("sweep.json", '{"jobs": [{"folder": "0"}]}', "cannot be read"),
    ],
)
def test_folders_that_are_none_are_refused(name, content, said, tmp_path, capsys):
    if content is not None:
        (tmp_path / name).write_text(content)
    assert main([str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert said in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize("content", ["{", '{"schema": 1}', '{"schema": 5}', "[]"])
def test_damaged_or_older_results_are_a_failed_row(content, tmp_path, capsys):
    (tmp_path / "results.json").write_text(content)
    assert main([str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "1 job of 1 not done" in said.out
    assert "Traceback" not in said.err


def test_one_damaged_result_is_a_row_and_the_others_are_reported(tmp_path, capsys):
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        a_result({"a": [0.8, 0.7]}, seed=number).write(tmp_path / str(number) / "results.json")
    path = tmp_path / "1" / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "ablation": None}))
    assert main([str(tmp_path / "0"), str(tmp_path / "1"), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert "1 job of 2 not done" in said.out
    assert "there is no phase" in " ".join(said.out.split())
    assert "75.0" in said.out
    assert "Traceback" not in said.err
