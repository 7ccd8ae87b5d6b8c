"""Every phase of conf/ablation as a run: files, findings, pictures; and what a user may get wrong."""

import functools
import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from lorabench.ablation import Ablation
from lorabench.conf_dir import conf_dir
from lorabench.configs import make
from lorabench.errors import LorabenchError
from lorabench.jobs import read_status
from lorabench.report import phases as report_phases
from lorabench.report.figures import drawings
from lorabench.results import read_result
from tests.ablation_findings import as_json
from tests.conftest import TINY_ZOO
from tests.small_study import run
from tests.tiny_bert import write_tiny_bert

pytestmark = [pytest.mark.slow]

PHASES = sorted(path.stem for path in (conf_dir() / "ablation").glob("*.yaml"))
SMALL = [*TINY_ZOO, "num_runs=2", "top_k=2", "classifier.hidden=[8]", "classifier.max_epochs=2"]
LAYERS = 32  # of the embedded zoo
OF_ITS_OWN = {
    "compare": ["representations=[stats,delta_pca]", "ablation.random_draws=3"],  # eleven and twenty by default
    "top_k": ["representation=stats", "ablation.random_draws=3"],
    "attention": ["representations=[{w2t: {max_epochs: 2}}]", "ablation.baseline=stats"],  # looks at modules of W2T
    "dynamics": ["representation=stats", "dataset.keep_steps=[3]"],
    "retrieval": [
        "representation=stats", "dataset@ablation.other=glyphs_independent",
        *(one.replace("dataset.", "ablation.other.") for one in TINY_ZOO),
    ],
}  # fmt: skip
PICTURES = {
    "clusters": {"clusters"}, "compare": {"with_without"}, "concepts": {"concepts"}, "grouping": {"groups"},
    "attribution": {"attribution"}, "attention": {"attention"}, "progressive": {"degradation"},
    "redundancy": {"redundancy"},
    "top_k": {"with_without"}, "gauge": {"gauge"}, "shift": {"shift"}, "learning_curve": {"learning_curve"},
    "dynamics": {"dynamics"}, "retrieval": {"retrieval"}, "zero_shot": {"zero_shot"},
}  # fmt: skip


def settings(name):
    """What the yaml of a phase says."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", [f"ablation={name}"]).ablation


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Runs a phase once; what it found and its folder."""

    @functools.cache
    def phase(name):
        folder = tmp_path_factory.mktemp(name)
        words = OF_ITS_OWN.get(name, ["representation=stats"])
        if name == "zero_shot":  # MiniLM is an extra
            words = [*words, f"ablation.model={write_tiny_bert(tmp_path_factory.mktemp('bert'))}"]
        return run(folder, *SMALL, f"ablation={name}", *words), folder

    return phase


def test_the_phases_that_were_asked_for_are_there():
    assert set(PHASES) >= {
        "none", "layers", "top_k", "compare", "progressive", "grouping", "clusters", "concepts", "attribution",
        "redundancy", "gauge", "shift", "learning_curve",
    }  # fmt: skip


def test_every_phase_has_a_report_and_every_report_a_phase():
    phases = {settings(name)["_target_"].split(".")[-2] for name in PHASES}
    reports = {path.stem for path in Path(report_phases.__file__).parent.glob("*.py")} - {"__init__"}
    assert reports == phases


@pytest.mark.parametrize("name", PHASES)
def test_a_phase_writes_what_it_found(name, done):
    result, folder = done(name)
    assert as_json(result.ablation)["name"] == name
    stored = read_result(folder / "results.json")
    assert stored.summary == result.summary
    assert stored.config == result.config
    assert read_status(folder).status == "done"
    text = (folder / "results.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert type(stored.ablation) is type(result.ablation)
    assert as_json(stored.ablation) == as_json(result.ablation) == json.loads(text)["ablation"]
    table = (folder / "results.txt").read_text()
    assert all(row.representation in table for row in result.summary)
    none = [row for row in result.summary if row.ablation == "none"]
    assert [row.representation for row in none] == list(result.config["representations"])
    assert all(row.test_accuracy.n == 2 and not row.failed for row in result.summary if "random" not in row.ablation)


@pytest.mark.parametrize("name", PHASES)
def test_a_phase_with_a_ranking_writes_it_best_first(name, done):
    result, folder = done(name)
    ranking = as_json(result.ablation).get("ranking")
    assert (ranking is not None) == ("baseline" in settings(name)), "who names what ranks has a ranking"
    if ranking is None:
        assert not (folder / "layers.json").exists()
        assert not (folder / "top_layers.json").exists()
        return
    layers = json.loads((folder / "layers.json").read_text())
    top = json.loads((folder / "top_layers.json").read_text())
    assert [row["layer"] for row in layers] == [row["layer"] for row in ranking]
    assert [row["rank"] for row in layers] == list(range(1, LAYERS + 1))
    accuracies = [row["accuracy"] for row in layers]
    assert accuracies == sorted(accuracies, reverse=True)
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in layers)
    assert top == layers[:2]
    assert {(row["baseline"], row["rank_on"]) for row in layers} == {("stats", "val")}
    assert all(len(row["per_seed"]) == 2 for row in layers)
    assert as_json(result.ablation)["stability"]["seeds"] == 2


@pytest.mark.parametrize("name", PHASES)
def test_the_pictures_of_a_phase_are_there(name, done):
    result, folder = done(name)
    pictures = {path.stem for path in folder.glob("*.png")}
    expected = {"accuracy", "learning_curves"} | {f"confusion_{one}" for one in result.config["representations"]}
    expected |= PICTURES.get(name, set())
    if "ranking" in as_json(result.ablation):
        expected |= {"layer_importance", "importance_by_place"}
    assert pictures == expected == set(drawings(result))
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))


@pytest.mark.parametrize("name", PHASES)
def test_every_phase_keeps_the_contract(name):
    phase = make(settings(name))
    assert isinstance(phase, Ablation)
    assert phase.name == name


def test_a_comparison_has_a_row_for_every_representation_and_arm(done):
    result, _ = done("compare")
    arms = ["none", "top-2", "random-2", "worst-2", "permuted"]
    assert [(row.representation, row.ablation) for row in result.summary] == [
        (name, arm) for name in ("stats", "delta_pca") for arm in arms
    ]
    assert [row.test_accuracy.n for row in result.summary] == [2] * 10, "seeds: draws are averaged"
    pairs = [("top-2", "none"), ("random-2", "none"), ("worst-2", "none"), ("top-2", "random-2")]
    assert [
        (row["representation"], row["ablation"], row["against"]) for row in as_json(result.ablation)["differences"]
    ] == [(name, *pair) for name in ("stats", "delta_pca") for pair in pairs]
    (none, top) = (row for row in result.summary[:2])
    assert (none.features, top.features) == (7 * LAYERS, 7 * (LAYERS - 2))
    assert len(result.runs) == 2 * 2 * 7


def test_top_k_of_one_representation_is_the_comparison_of_it(done):
    compared, alone = done("compare")[0], done("top_k")[0]
    assert as_json(alone.ablation)["removed"] == as_json(compared.ablation)["removed"]
    assert alone.summary == compared.summary[:5]
    ours, theirs = (as_json(one.ablation)["differences"][:4] for one in (alone, compared))
    assert [{**row, "holm": None} for row in ours] == [{**row, "holm": None} for row in theirs]
    assert all(few["holm"] <= many["holm"] for few, many in zip(ours, theirs, strict=True)), "more are corrected for"


def test_the_published_protocol_is_marked(tmp_path):
    result = run(tmp_path / "run", *SMALL, "ablation=top_k", "representation=stats", "ablation.rank_on=test")
    ranking = as_json(result.ablation)["ranking"]
    assert [row["accuracy"] for row in ranking] == [row["test_accuracy"] for row in ranking]
    assert as_json(result.ablation)["rank_on"] == "test"
    assert {row["rank_on"] for row in json.loads((tmp_path / "run" / "layers.json").read_text())} == {"test"}
    assert "TEST" in (tmp_path / "run" / "results.txt").read_text()


def test_a_baseline_of_modules_with_options_ranks_modules(tmp_path):
    words = ["ablation=layers", "representation=stats", "ablation.baseline={spectral: {on: delta}}"]
    result = run(tmp_path / "run", *SMALL, *words)
    assert as_json(result.ablation)["baseline"] == "spectral-on-delta"
    assert len(as_json(result.ablation)["ranking"]) == LAYERS // 2
    assert len(as_json(result.ablation)["top_layers"]) == 2, "modules"


def test_one_run_is_enough(tmp_path):
    result = run(tmp_path / "run", *SMALL, "ablation=compare", "representations=[stats]", "num_runs=1")
    assert as_json(result.ablation)["stability"] == {"kendall_tau": None, "lowest": None, "seeds": 1, "of": "seeds"}
    assert as_json(read_result(tmp_path / "run" / "results.json").ablation)["ranking"][0]["std"] is None


def test_a_representation_of_which_nothing_is_left_has_its_row(tmp_path):
    """All layers but one go: no module is whole."""
    words = ["ablation=compare", "representations=[stats,delta_spectral]", f"top_k={LAYERS - 1}"]
    result = run(tmp_path / "run", *SMALL, *words, "ablation.random_draws=1")
    rows = {(row.representation, row.ablation): row for row in result.summary}
    gone = rows["delta_spectral", f"top-{LAYERS - 1}"]
    assert gone.failed == [
        f"DeltaSpectral needs a module, and {result.dataset['name']} has none left: 1 layers in 0 modules"
    ]
    assert gone.test_accuracy.n == 0
    assert rows["stats", f"top-{LAYERS - 1}"].test_accuracy.n == 2
    assert {row["representation"] for row in as_json(result.ablation)["differences"]} == {"stats"}
    read_result(tmp_path / "run" / "results.json")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ablation=top_k", "representation=stats", "top_k=32"], r"^top_k=32: the zoo has 32 units of stats; 1 to 31"),
        (["ablation=compare", "top_k=1000"], "^top_k=1000: the zoo has 32 units of stats; 1 to 31 can be taken away$"),
        (["ablation=layers", "top_k=0"], "^top_k=0: a whole number from 1"),
        (["ablation=layers", "ablation.top_k=0"], "top_k=0"),
        (["ablation=layers", "ablation.rank_on=train"], r"^ablation\.rank_on=train: allowed are val and test$"),
        (["ablation=compare", "ablation.rank_on=train"], r"^ablation\.rank_on=train: allowed are val and test$"),
        (["ablation=grouping", "ablation.rank_on=train"], r"^ablation\.rank_on=train: allowed are val and test$"),
        (["ablation=layers", "ablation.baseline={pca: {scope: all}}"], r"^ablation\.baseline=pca-scope-all describes"),
        (["ablation=layers", "ablation.baseline={pca: {skope: all}}"], r"^ablation\.baseline: pca has no option skope"),
        (["ablation=layers", "ablation.baseline=[stats]"], r"^ablation\.baseline: .* came; a name"),
        (["ablation=layers", "ablation.baseline=null"], r"^ablation\.baseline: None came; a name"),
        (["ablation=progressive", "representations=[stats,norms]"], "^ablation=progressive looks at one.*stats, norms"),
        (["ablation=grouping", "representations=[stats,norms]"], "^ablation=grouping looks at one representation"),
        (["ablation=redundancy", "representations=[stats,norms]"], "^ablation=redundancy looks at one representation"),
        (["ablation=attribution", "representations=[stats,norms]"], "^ablation=attribution looks at one"),
        (["ablation=grouping", "ablation.by=colour"], r"^ablation\.by=colour: allowed are block, attention, "),
        (["ablation=progressive", "ablation.points=1"], r"^ablation\.points=1: a whole number from 2 is needed$"),
        (["ablation=progressive", "ablation.random_points=-1"], r"^ablation\.random_points=-1: a whole number from 0"),
        (["ablation=progressive", "ablation.random_draws=-1"], r"^ablation\.random_draws=-1: a whole number from 0"),
        (["ablation=top_k", "ablation.random_draws=-1"], r"^ablation\.random_draws=-1: a whole number from 0"),
        (
            ["ablation=compare", "ablation.random_draws=x"],
            r"^ablation\.random_draws=x: a whole number from 0 is needed",
        ),
        (["ablation=compare", "ablation.worst=1"], r"^ablation\.worst=1: true or false is needed"),
        (["ablation=clusters", "ablation.threshold=2"], r"^ablation\.threshold=2: a number from 0 to 1 is needed"),
        (["ablation=clusters", "ablation.threshold=x"], r"^ablation\.threshold=x: a number from 0 to 1 is needed"),
        (
            ["ablation=layers", "ablation.baseline=nope"],
            r"^ablation\.baseline: there is no representation nope; there are",
        ),
        (["representations=[nope]"], "^representations: there is no representation nope; there are .*, stats"),
        (["trainer.memory_gb=0"], r"^trainer\.memory_gb=0: a number above 0 is needed, or null$"),
        (["trainer.memory_gb=x"], r"^trainer\.memory_gb=x: a number above 0 is needed"),
        (["ablation=clusters", "num_runs=1"], "^ablation.threshold=null cuts the tree"),
        (["ablation=gauge", "ablation.condition=[0.5]"], r"^ablation\.condition=\[0\.5\]: a list of numbers from 1 is"),
        (["ablation=gauge", "ablation.draws=0"], r"^ablation\.draws=0: a whole number from 1 is needed$"),
        (["ablation=shift", "ablation.storage=[float8]"], r"^ablation\.storage=.*allowed are float16, bfloat16"),
        (["ablation=shift", "ablation.noise=[-1]"], r"^ablation\.noise=\[-1\]: a list of numbers above 0 is needed$"),
        (["ablation=shift", "+ablation.other=glyphs"], r"^ablation\.other=glyphs: a zoo is needed, chosen by dataset@"),
        (["ablation=shift", "ablation.hold_out={}"], r"^ablation\.hold_out={}: a recipe and its value are needed"),
        (["ablation=shift", "ablation.hold_out={steps: 10}"], "no recipe of this name that varies; there are: none$"),
        (["ablation=learning_curve", "ablation.sizes=[9]"], r"^ablation\.sizes=\[9\]: 9 training adapters cannot"),
        (["ablation=learning_curve", "ablation.against=[nope]"], r"^ablation\.against=nope is none of the repr"),
        (["ablation=retrieval"], "^ablation=retrieval looks for adapters of one leaf, and no leaf of glyphs has two"),
        (["ablation=retrieval", "+ablation.other=x"], r"^ablation\.other=x: a zoo is needed, chosen by dataset@"),
        (["ablation=retrieval", "ablation.against=[nope]"], r"^ablation\.against=nope is none of the representations"),
        (["ablation=zero_shot", "ablation.pairs=0"], r"^ablation\.pairs=0: a whole number from 1 is needed"),
        (["ablation=zero_shot", "ablation.model=/nowhere"], r"^/nowhere: no BERT .*, or ablation\.model=minilm\.$"),
        (["ablation=attribution", "ablation.steps=0"], r"^ablation\.steps=0: a whole number from 1 is needed$"),
        (["ablation=attribution", "ablation.steps=1.5"], r"^ablation\.steps=1\.5: a whole number from 1 is needed"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_a_users_mistake_is_one_message_before_anything_is_trained(words, said, tmp_path, monkeypatch):
    def train(*_arguments, **_more):
        raise AssertionError("a member was trained")

    monkeypatch.setattr("lorabench.evaluation.evaluator.train", train)
    # The eleven representations of a comparison take their time to compose.
    few = [] if any("representation" in word for word in words) else ["representations=[stats]"]
    with pytest.raises(LorabenchError, match=said) as found:
        run(tmp_path / "run", *SMALL, *few, *words)
    assert "\n" not in str(found.value)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "failed"
