"""`lorabench export` and `lorabench predict`: from a run to answers."""

import csv
import functools
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file

from lorabench import pipeline
from lorabench.adapters import LoraModule, ResizeRule, load, resize
from lorabench.adapters import save as save_adapter
from lorabench.conf_dir import conf_dir
from lorabench.errors import LorabenchError
from lorabench.export.__main__ import main as export_main
from lorabench.export.making import make_model, modules_of
from lorabench.predict.__main__ import main as predict_main
from lorabench.predict.answers import ask
from lorabench.predict.folder import read_model, write_model
from lorabench.predict.model import joined_features
from lorabench.predict.reading import as_zoo, fitted_to
from lorabench.representations.delta_pca import DeltaPCA
from lorabench.representations.delta_spectral import DeltaSpectral
from lorabench.representations.stats import Stats
from lorabench.zoo import Zoo
from lorabench.zoo.export import export as export_zoo
from tests.leafy_zoo import leafy_zoo, model_of, scaled, split_of
from tests.processes import lorabench
from tests.synthetic_zoo import regauged

pytestmark = pytest.mark.filterwarnings("ignore:.*(does not have many workers|LeafSpec).*")

MADE = 120
"""Adapters that the model sees; what comes behind them in the zoo is new to it."""


@functools.cache
def the_zoo() -> Zoo:
    return leafy_zoo(110)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of ΔW's components in `model`, and its zoo's last adapters as files in `new`."""
    folder = tmp_path_factory.mktemp("predict")
    zoo = the_zoo()
    model = model_of(zoo.rows(np.arange(MADE)), DeltaPCA(components=16, scope="all"), folder / "cache", epochs=40)
    write_model(model, folder / "model")
    export_zoo(zoo.rows(np.arange(MADE, 220)), folder / "new", "peft")
    return folder


def written(folder: Path, zoo: Zoo, layout: str = "peft") -> list[Path]:
    """A zoo's adapters as files, in its order."""
    export_zoo(zoo, folder, layout)
    with (folder / "labels.csv").open() as file:
        return [folder / row["file"] for row in csv.DictReader(file)]


def told(answered):
    """What must be the same of two copies of an adapter."""
    return [(one.verdict, set(one.categories)) for one in answered]


def test_features_of_a_file_are_those_of_the_zoo(tmp_path):
    zoo = leafy_zoo(6)
    for layout in ("peft", "kohya", "diffusers"):
        files = written(tmp_path / layout, zoo, layout)
        again = as_zoo(modules_of(zoo), [fitted_to(modules_of(zoo), file) for file in files])
        for representation in (Stats(), DeltaSpectral()):
            torch.testing.assert_close(joined_features(representation, again), joined_features(representation, zoo))


def test_a_model_that_was_written_says_the_same_bit_for_bit(place, tmp_path):
    model = read_model(place / "model")
    write_model(model, tmp_path / "again")
    again = read_model(tmp_path / "again")
    zoo = the_zoo().rows(np.arange(MADE, 160))
    assert torch.equal(model.logits(model.inputs(zoo)), again.logits(again.inputs(zoo)))
    for name in ("config.json", "model.safetensors"):
        assert (place / "model" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_most_of_their_kind_are_told_and_rightly(place):
    zoo = the_zoo().rows(np.arange(MADE, 220))
    said = ask(read_model(place / "model"), written_once(place, "new"), 0.1)
    right = [zoo.labels.category_names[code] for code in zoo.labels.category]
    told_right = [name in one.categories for one, name in zip(said, right, strict=True) if one.verdict != "unknown"]
    assert len(told_right) >= 85
    assert np.mean(told_right) > 0.8
    assert all(0 < one.likeness <= 1 for one in said)
    assert all(one.ranked[0][1] >= one.ranked[1][1] >= one.ranked[2][1] for one in said)


def written_once(place: Path, name: str) -> list[Path]:
    with (place / name / "labels.csv").open() as file:
        return [place / name / row["file"] for row in csv.DictReader(file)]


def test_another_zoo_and_random_adapters_are_strangers(place, tmp_path):
    model = read_model(place / "model")
    other = leafy_zoo(50, base=7)  # the same names and shapes, another base model
    rng = np.random.default_rng(0)
    random = {name: rng.normal(size=(100, *stack.shape[1:])).astype(np.float32) for name, stack in other.layers.items()}
    noise = replace(other, layers={name: replace(other.layers[name], pieces=(v,)) for name, v in random.items()})
    for name, zoo in (("other", other), ("noise", noise), ("loud", scaled(the_zoo().rows(np.arange(100)), 30.0))):
        said = ask(model, written(tmp_path / name, zoo))
        unknown = [one for one in said if one.verdict == "unknown"]
        assert len(unknown) >= 95, name
        assert all(one.why and not one.categories for one in unknown)
    assert "‖ΔW‖" in unknown[0].why or "features" in unknown[0].why


def test_copies_get_the_same_answer(place, tmp_path):
    model = read_model(place / "model")
    zoo = the_zoo().rows(np.arange(MADE, 160))
    first = ask(model, written(tmp_path / "peft", zoo))
    for name, copy, layout in (("gauge", regauged(zoo), "peft"), ("kohya", zoo, "kohya"), ("flat", zoo, "diffusers")):
        again = ask(model, written(tmp_path / name, copy, layout))
        assert told(again) == told(first), name
        for one, other in zip(first, again, strict=True):
            np.testing.assert_allclose([p for _, p in one.ranked], [p for _, p in other.ranked], atol=1e-4)


def test_most_copies_at_95_percent_of_the_energy_get_the_same_answer(place, tmp_path):
    model = read_model(place / "model")
    files = written_once(place, "new")[:40]
    small = [tmp_path / f"{number}.safetensors" for number in range(len(files))]
    for file, target in zip(files, small, strict=True):
        save_adapter(target, resize(load(file), ResizeRule(energy=0.95))[0], "kohya")
    same = [a == b for a, b in zip(told(ask(model, files)), told(ask(model, small)), strict=True)]
    assert np.mean(same) >= 0.9


def test_a_copy_of_a_higher_rank_gets_the_same_answer(place, tmp_path):
    model, file = read_model(place / "model"), written_once(place, "new")[0]
    modules = load(file).modules
    wide = {
        name: LoraModule(
            torch.cat([m.down, torch.zeros(3, m.down.shape[1])]), torch.cat([m.up, torch.zeros(m.up.shape[0], 3)], 1)
        )
        for name, m in modules.items()
    }
    save_adapter(tmp_path / "wide", wide, "peft")
    first, again = ask(model, [file, tmp_path / "wide"])
    assert told([first]) == told([again])
    assert first.notes == ()
    assert again.notes == ("rank 5 is above all seen: read at the largest seen, which keeps 100.0% of ‖ΔW‖²",)


def changed(place: Path, target: Path, change) -> Path:
    """A new adapter with other modules."""
    modules = dict(load(written_once(place, "new")[0]).modules)
    save_adapter(target, change(modules), "peft")
    return target


def random_module(rank: int, d_in: int = 10, d_out: int = 10) -> LoraModule:
    generator = torch.Generator().manual_seed(rank)
    return LoraModule(torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator))


STRANGERS = {
    "none of its modules": (lambda _: {"text_model.q_proj": random_module(2)}, "it has none of the model's 3"),
    "another width": (lambda m: {**m, next(iter(m)): random_module(2, 12)}, "is 10 x 12 here and 10 x 10"),
    "most missing": (lambda m: dict(list(m.items())[:1]), "it lacks 2 of the model's 3"),
    "untrained": (
        lambda m: {name: LoraModule(one.down, torch.zeros_like(one.up)) for name, one in m.items()},
        "ΔW is zero in every module",
    ),
    "rank above all seen": (lambda m: {name: random_module(8) for name in m}, "its rank 8 is above all seen"),
    "too large": (
        lambda m: {name: replace(one, scale=1e15) for name, one in m.items()},
        "which no training leaves: alpha, or a factor, is damaged",
    ),
    "too small": (lambda m: {name: replace(one, scale=1e-15) for name, one in m.items()}, "which no training leaves"),
    "many more modules": (
        lambda m: {**m, **{f"unet.up_blocks.{i}.to_q": random_module(2) for i in range(4)}},
        "it changes 4 modules beside the model's",
    ),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_strangers_are_told_by_what_they_are(place, tmp_path, case):
    change, why = STRANGERS[case]
    (said,) = ask(read_model(place / "model"), [changed(place, tmp_path / "one", change)])
    assert said.verdict == "unknown"
    assert why in said.why
    assert not said.ranked


def test_a_missing_module_is_named_with_what_it_costs(place, tmp_path):
    path = changed(place, tmp_path / "one", lambda m: dict(list(m.items())[:2]))
    (said,) = ask(read_model(place / "model"), [path])
    assert len(said.notes) == 1
    assert "1 module of 3 missing and read as zero (unet.mid_block.attentions.2.to_q)" in said.notes[0]
    assert "promised for whole adapters" in said.notes[0]


def run(capsys, program, *words, code=0):
    """What a command said, as JSON."""
    assert program([*map(str, words), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_the_command_says_a_row_an_adapter_and_errors_are_rows(place, tmp_path, capsys):
    shutil.copytree(place / "new" / "ant", tmp_path / "ant")
    (tmp_path / "ant" / "broken.safetensors").write_bytes(b"{}")
    known = len(list((tmp_path / "ant").iterdir()))
    table = tmp_path / "answers.csv"
    words = (place / "model", tmp_path / "ant", tmp_path / "gone.safetensors", "--csv", table)
    data = run(capsys, predict_main, *words, code=1)
    assert len(data["adapters"]) == known + 1
    wrong = [row for row in data["adapters"] if row["answer"] == "error"]
    assert [Path(row["file"]).name for row in wrong] == ["broken.safetensors", "gone.safetensors"]
    assert "no such file" in wrong[1]["why"]
    assert data["failed"] == [row["file"] for row in wrong]
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [row["file"] for row in rows] == [row["file"] for row in data["adapters"]]
    assert predict_main([str(place / "model"), str(tmp_path / "ant"), "--csv", "-"]) == 1
    assert next(csv.reader(io.StringIO(capsys.readouterr().out)))[0] == "file"


def test_fail_on_is_a_gate(place, capsys):
    ants, bees = place / "new" / "ant", place / "new" / "bee"
    data = run(capsys, predict_main, place / "model", ants, "--fail-on", "ant", code=1)
    assert {"ant"} <= {name for row in data["adapters"] for name in row["categories"]}
    assert len(data["failed"]) >= len(data["adapters"]) / 2
    some = [row["file"] for row in data["adapters"] if row["categories"] == ["ant"]][:2]
    assert run(capsys, predict_main, place / "model", *some, "--fail-on", "bee")["failed"] == []
    assert predict_main([str(place / "model"), str(bees), "--fail-on", "dog"]) == 1
    assert "--fail-on dog: the model knows no such category. It knows ant, bee, cow." in capsys.readouterr().err


def test_answers_read_as_text(place, capsys, tmp_path):
    path = changed(place, tmp_path / "one", STRANGERS["untrained"][0])
    assert predict_main([str(place / "model"), str(path)]) == 0
    said = capsys.readouterr().out
    assert "I do not know" in said
    assert f"{path}: ΔW is zero in every module" in said
    assert "1 adapter: 0 of one category, 0 of one of several, 1 not known, 0 not readable" in said
    assert predict_main([str(place / "model"), str(path), "--fail-on-unknown"]) == 1


def test_what_a_file_is_called_inside_is_shown_and_not_obeyed(place, tmp_path, capsys):
    """A title that a terminal would take, in the name of a tensor."""
    factors = {"lora_A": torch.ones(2, 10), "lora_B": torch.ones(10, 2)}
    save_file(
        {f"base_model.model.to_q\x1b]0;pwn\x07.{part}.weight": values for part, values in factors.items()},
        tmp_path / "odd.safetensors",
    )
    assert predict_main([str(place / "model"), str(tmp_path / "odd.safetensors")]) in (0, 1)
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\x07" not in said
    assert "\\x1b]0;pwn" in said


def test_nothing_else_is_written_over(place, tmp_path):
    model = read_model(place / "model")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(LorabenchError, match=r"holds thesis.txt: only a folder with a model is replaced"):
        write_model(model, tmp_path / "mine", overwrite=True)
    write_model(model, tmp_path / "model")
    with pytest.raises(LorabenchError, match="add --overwrite"):
        write_model(model, tmp_path / "model")
    write_model(model, tmp_path / "model", overwrite=True)
    with pytest.raises(LorabenchError, match="is a file"):
        write_model(model, tmp_path / "mine" / "thesis.txt")
    others = tmp_path / "others"
    others.mkdir()
    for name, text in {"README.md": "mine", "config.json": '{"model_type": "bert"}', "model.safetensors": "w"}.items():
        (others / name).write_text(text)
        with pytest.raises(LorabenchError, match=r"others holds .*: only a folder with a model is replaced"):
            write_model(model, others, overwrite=True)
    assert (others / "README.md").read_text() == "mine"


def test_a_split_of_the_leafy_zoo_tears_no_leaf():
    zoo = the_zoo().rows(np.arange(MADE))
    parts = [set(zoo.labels.leaf[rows]) for rows in vars(split_of(zoo)).values()]
    assert sum(map(len, parts)) == len(set.union(*parts))


GL_NET = "gl_net-width-4-head-8-max_epochs-4"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run over a folder of adapters."""
    folder = tmp_path_factory.mktemp("finished")
    export_zoo(leafy_zoo(30), folder / "adapters", "kohya")
    words = [
        "dataset=folder", f"dataset.path={folder / 'adapters'}", "classifier=linear",
        "representations=[norms,pca,factors,nearest,{gl_net:{width:4,head:8,max_epochs:4}}]",
        "classifier.max_epochs=4", "num_runs=2", "trainer.device=cpu", f"cache_dir={folder / 'cache'}",
        "split.train=0.5", "split.val=0.1", "split.test=0.4",
    ]  # fmt: skip
    (folder / "run").mkdir()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", words)
        names = {"dataset": "folder", "representation": "spectral", "classifier": "linear", "ablation": "none"}
        pipeline.run(cfg, folder / "run", names)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [("norms", "Linear"), ("pca", "Linear"), ("factors", "Linear"), ("nearest", "Nearest"), (GL_NET, "GLNet")],
)
def test_a_run_becomes_a_model(finished, tmp_path, capsys, name, kind):
    data = run(capsys, export_main, finished / "run", name, tmp_path / "model")
    assert data["groups"] == 12
    assert data["classes"] == ["ant", "bee", "cow"]
    model = read_model(tmp_path / "model")
    assert model.seeds == (0, 1)
    assert model.classifier["class"].rpartition(".")[2] == kind
    assert (model.scaling is None) == (name not in ("norms", "pca"))
    result = json.loads((finished / "run" / "results.json").read_text())
    row = next(row for row in result["summary"] if row["representation"] == name)
    assert abs(data["accuracy"] - row["test_accuracy"]["mean"]) < 0.2, "of the members together, not in the mean"
    low, high = data["interval"]
    assert low < data["accuracy"] <= high
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"{100 * data['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]" in card
    assert run(capsys, predict_main, tmp_path / "model", finished / "adapters" / "ant")["adapters"]


@pytest.mark.slow
def test_a_relative_path_is_from_where_the_run_was_started(finished, tmp_path, monkeypatch):
    words = [
        "dataset=folder", "dataset.path=adapters", "representation=norms", "classifier=linear", "output_dir=relative",
        "classifier.max_epochs=1", "num_runs=1", f"cache_dir={tmp_path / 'cache'}",
    ]  # fmt: skip
    lorabench(*words, cwd=finished)
    monkeypatch.chdir(tmp_path)
    (found,) = (finished / "relative").glob("**/results.json")
    assert export_main([str(found.parent), "norms", "model"]) == 0
    assert read_model(tmp_path / "model").classes == ("ant", "bee", "cow")


@pytest.mark.slow
def test_a_run_that_cannot_be_exported_says_why(finished, tmp_path, capsys, monkeypatch):
    assert export_main([str(finished / "run"), "flat", str(tmp_path / "model")]) == 1
    assert "has no representation 'flat'. It has norms, pca, factors, nearest, " in capsys.readouterr().err
    assert export_main([str(tmp_path), "flat", str(tmp_path / "model")]) == 1
    assert "not the folder of a run that is done, it has no results.json; a command names it" in capsys.readouterr().err
    assert export_main([str(finished), "norms", str(tmp_path / "model")]) == 1
    assert f"it has no results.json; {finished / 'run'} is one" in capsys.readouterr().err
    other = tmp_path / "run"
    shutil.copytree(finished / "run", other)
    said = json.loads((other / "results.json").read_text())
    said["dataset"]["fingerprint"] = "0" * 32
    (other / "results.json").write_text(json.dumps(said))
    with pytest.raises(LorabenchError, match="the data set folder is another now"):
        make_model(other, "norms")
    assert not (tmp_path / "model").exists()
