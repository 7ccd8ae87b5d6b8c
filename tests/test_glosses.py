"""The gloss zoo on a tiny BERT and a made WordNet: no package, no network."""

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

from lorabench.conf_dir import conf_dir
from lorabench.errors import LorabenchError
from lorabench.evaluation.soundness import measure
from lorabench.storage import file_sha256
from lorabench.zoo import Zoo, glosses, minilm, wordnet
from lorabench.zoo.commands.common import load_zoo
from lorabench.zoo.export import export
from lorabench.zoo.gloss_model import Loras, TextBase, Training, load_text_base, matching_loss, pooled, train_loras
from lorabench.zoo.gloss_texts import Glosses, read_glosses
from tests.adapter_folders import load_folder
from tests.made_wordnet import made_wordnet
from tests.tiny_bert import write_tiny_bert

CONF = conf_dir() / "dataset"
RECIPE: dict[str, Any] = {
    "init": "shared", "rank": 3, "layers": 1, "per_category": 6, "negatives": 12, "steps": 25, "learning_rate": 1e-2,
    "temperature": 0.1, "longest": 48, "together": 16, "seed": 0, "training_seed": None,
}  # fmt: skip
TRAINING = Training(rank=3, shared_down=True, layers=2, steps=4, learning_rate=1e-2, temperature=0.1, seed=0)
TEXTS = ["a small letter", "return", "the capital of the small, small letter (of 12)"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("sources")
    (place / "bert").mkdir()
    return {"model": str(write_tiny_bert(place / "bert")), "wordnet": str(made_wordnet(place / "wordnet"))}


@pytest.fixture(scope="module")
def base(sources) -> TextBase:
    return load_text_base(Path(sources["model"]), 48)


@pytest.fixture(scope="module")
def texts(sources) -> Glosses:
    return read_glosses(Path(sources["wordnet"]))


@pytest.fixture(scope="module")
def make(sources, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    def made(cache_dir: Path = cache, **own: Any) -> Zoo:
        return glosses.load(**{"name": "g", "ceiling": "embedding", **sources, **RECIPE, **own}, cache_dir=cache_dir)

    return made


@pytest.fixture(scope="module")
def zoo(make) -> Zoo:
    return make()


def their_embeddings(place: str, base: TextBase, texts: list[str], weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """By transformers, in float64, one text at a time, with some weights replaced."""
    from transformers import BertModel

    model = BertModel.from_pretrained(place, dtype=torch.float64).eval()
    model.load_state_dict({name: tensor.double() for name, tensor in weights.items()}, strict=False)
    found = []
    for text in texts:
        ids, _ = base.tokens([text])
        with torch.no_grad():
            found.append(F.normalize(model(input_ids=ids).last_hidden_state.mean(1), dim=1))
    return torch.cat(found)


def test_embeddings_are_those_of_transformers(base, sources):
    theirs = their_embeddings(sources["model"], base, TEXTS, {})
    torch.testing.assert_close(base.embed(TEXTS).double(), theirs, atol=1e-5, rtol=0)
    assert base.tokens(["a " * 100])[0].shape == (1, 48)


def test_an_adapted_model_is_the_one_with_dense_weights(base, sources):
    generator = torch.Generator().manual_seed(0)
    loras = Loras(*(torch.randn(shape, generator=generator) for shape in ((3, 2, 2, 4, 16), (3, 2, 2, 16, 4))))
    ids, mask = base.tokens(TEXTS * 3)
    found = pooled(base.upper(base.lower(ids, mask, 0), mask, loras), mask).view(3, 3, 16)
    for adapter in range(3):
        merged = {}
        for number, module in enumerate(base.modules(2)):
            layer, part = divmod(number, 2)
            delta = loras.up[adapter, layer, part] @ loras.down[adapter, layer, part]
            merged[f"{module}.weight"] = base.weights[f"{module}.weight"] + delta
        theirs = their_embeddings(sources["model"], base, TEXTS, merged)
        torch.testing.assert_close(found[adapter].double(), theirs, atol=1e-4, rtol=0)


def test_the_loss_is_a_cross_entropy():
    rng = np.random.default_rng(0)
    texts, targets, pools = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 2, 5), (3, 2, 5), (2, 4, 5)))
    wanted = np.zeros(3)
    for a in range(3):
        for v in range(2):
            scores = np.concatenate([[texts[a, v] @ targets[a, v]], pools[v] @ texts[a, v]]).astype(np.float64) / 0.5
            wanted[a] += (np.log(np.exp(scores).sum()) - scores[0]) / 2
    found = matching_loss(*map(torch.from_numpy, (texts, targets, pools)), 0.5)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_adapters_that_train_together_are_those_that_train_alone(base, texts, shared):
    chosen = texts.sample(1, 0)[:2]
    pools = torch.stack([base.embed(TEXTS), base.embed(TEXTS[::-1])])
    training = replace(TRAINING, shared_down=shared)
    together = train_loras(base, chosen, pools, training, print)
    for place, gloss in enumerate(chosen):
        alone = train_loras(base, [gloss], pools, training, print)
        torch.testing.assert_close(alone.down[0], together.down[place], atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(alone.up[0], together.up[place], atol=2e-4, rtol=1e-3)
    start = train_loras(base, chosen, pools, replace(training, learning_rate=1e-12), print).down
    assert torch.equal(start[0], start[1]) is shared
    assert start.abs().max() <= 16**-0.5


def test_a_zoo_has_the_names_shapes_and_labels_it_promises(zoo, base):
    assert len(zoo) == 60
    modules = ("encoder.layer.1.attention.self.query", "encoder.layer.1.attention.self.value")
    assert tuple(module.name for module in zoo.modules) == base.modules(1) == modules
    assert {zoo.layers[m.down].shape for m in zoo.modules} == {(60, 3, 16)}
    assert {zoo.layers[m.up].shape for m in zoo.modules} == {(60, 16, 3)}
    assert (np.bincount(zoo.labels.category) == 6).all()
    assert len(set(zoo.labels.leaf.tolist())) == 60
    assert zoo.labels.adapters[-1].startswith("weapon/jjj")
    assert any(name.startswith("musical_instrument/") for name in zoo.labels.adapters)
    pair = [row for row, name in enumerate(zoo.labels.adapters) if "crane" in name or "stork" in name]
    assert len(np.unique(zoo.labels.group)) == 60 - len(pair) + min(len(pair), 1)
    assert all(np.ptp(column) == 0 for column in zoo.recipe().values()), "one recipe for all"
    assert zoo.labels.recipe["samples"][0] == 50
    norms = [np.linalg.norm(zoo.read(m.up) @ zoo.read(m.down), axis=(1, 2)) for m in zoo.modules]
    assert np.min(norms) > 0


def test_an_adapter_lowers_the_loss_of_its_own_leaf_more_than_another_does(zoo, base, texts):
    chosen = texts.sample(6, 0)
    pool = texts.negatives(12, 0)
    pools = torch.stack([base.embed([one.lemma for one in pool]), base.embed([one.gloss for one in pool])])
    ids, mask = base.tokens([text for gloss in chosen for text in (gloss.gloss, gloss.lemma)])
    targets = base.embed([text for gloss in chosen for text in (gloss.lemma, gloss.gloss)]).view(60, 2, -1)
    states = base.lower(ids, mask, 1)
    factors = [torch.from_numpy(np.stack([zoo.read(n) for n in names], 1))[:, None] for names in zip(
        *((m.down, m.up) for m in zoo.modules), strict=True)]  # fmt: skip

    def loss(rows: np.ndarray) -> np.ndarray:
        loras = Loras(*(factor[rows] for factor in factors))
        return matching_loss(pooled(base.upper(states, mask, loras), mask).view(60, 2, -1), targets, pools, 0.1).numpy()

    own = loss(np.arange(60))
    others = np.stack([loss(np.roll(np.arange(60), shift)) for shift in (1, 2, 7, 30)])
    before = matching_loss(pooled(base.lower(ids, mask, 2), mask).view(60, 2, -1), targets, pools, 0.1).numpy()
    assert (own < before).all()
    assert (own < others.mean(0)).all()
    assert (own < others).mean() > 0.95


def test_the_ceiling_is_the_bases_embedding_or_the_words(zoo, make, base, texts):
    wanted = base.embed([f"{gloss.lemma}: {gloss.gloss}" for gloss in texts.sample(6, 0)])
    np.testing.assert_allclose(zoo.ceiling.read(0, 60)[:, 0], wanted.numpy(), atol=1e-5)
    words = make(ceiling="words")
    assert words.ceiling.shape[:2] == (60, 1)
    assert set(np.unique(words.ceiling.read(0, 60))) == {0.0, 1.0}
    assert words.fingerprint != zoo.fingerprint
    for layer in zoo.layers:
        np.testing.assert_array_equal(words.read(layer), zoo.read(layer))


def test_the_texts_of_its_leaves_are_lemma_and_gloss(zoo, make, texts):
    of_leaf = zoo.texts()
    assert set(of_leaf) == set(zoo.labels.leaf_names)
    assert of_leaf == {gloss.name: f"{gloss.lemma}: {gloss.gloss}" for gloss in texts.sample(6, 0)}
    assert make(ceiling="words").texts() == of_leaf
    assert zoo.rows(np.arange(3)).only(list(zoo.layers)).texts() == of_leaf


def test_its_files_are_peft_adapters_that_a_folder_reads_back(zoo, tmp_path):
    export(zoo, tmp_path / "files", "peft", False)
    back = load_folder(tmp_path / "files", tmp_path)
    assert back.labels.category_names == zoo.labels.category_names
    for layer in zoo.layers:
        np.testing.assert_array_equal(back.read(layer), zoo.read(layer))


def test_the_check_calls_texts_texts(zoo):
    found = measure(zoo, splits=1)
    assert [reading.features for reading in found.readings] == ["texts", "delta_pca", "flat", "lengths", "recipe"]
    assert found.complexity is None, "a text has no grey values"
    assert found.readings[-1].best <= found.at_chance


def test_a_zoo_is_the_same_again_by_any_number_of_threads_and_is_kept(zoo, make, tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with torch.inference_mode():
            assert make(tmp_path).fingerprint == zoo.fingerprint
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert sorted(path.suffix for path in (tmp_path / "zoos").iterdir()) == ["", ".lock"]
    monkeypatch.setattr(glosses, "load_text_base", None)
    monkeypatch.setattr(glosses, "read_glosses", None)
    assert make(tmp_path).fingerprint == zoo.fingerprint


def test_a_kept_zoo_needs_neither_minilm_nor_wordnet(zoo, make, sources, tmp_path, monkeypatch):
    """What they hold is known beforehand."""
    for module, key in ((minilm, "model"), (wordnet, "wordnet")):
        own = {name: file_sha256(Path(sources[key]) / name) for name in module.SHA256}
        monkeypatch.setattr(module, "SHA256", own)
    made = make(tmp_path)
    monkeypatch.setattr(wordnet, "DEBIAN", tmp_path / "none")
    assert make(tmp_path, model="minilm", wordnet=None).fingerprint == made.fingerprint


def test_every_argument_makes_another_zoo(make, zoo):
    others = {"init": "independent", "rank": 2, "layers": 2, "per_category": 5, "negatives": 6, "steps": 3, "seed": 1}
    others["training_seed"] = 1
    others |= {"learning_rate": 2e-2, "temperature": 0.2, "longest": 8}
    found = {key: make(**{"steps": 2, "per_category": 2, key: value}).fingerprint for key, value in others.items()}
    assert len({zoo.fingerprint, *found.values()}) == len(others) + 1
    few = make(together=7)
    for layer in zoo.layers:
        np.testing.assert_allclose(few.read(layer), zoo.read(layer), atol=2e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"init": "foo"}, r"dataset\.init=foo: allowed are shared and independent"),
        ({"ceiling": "sky"}, r"dataset\.ceiling=sky: allowed are embedding and words"),
        ({"rank": 17}, r"dataset\.rank=17: the base's modules are 16 × 16"),
        ({"layers": 3}, r"dataset\.layers=3: the base has 2"),
        ({"layers": 0}, r"dataset\.layers=0: a whole number from 1"),
        ({"temperature": 0.0}, r"dataset\.temperature=0\.0: a number above 0"),
        ({"longest": 2}, r"dataset\.longest=2: a whole number from 3"),
        ({"name": "../zoo"}, r"name=../zoo: letters, digits"),
        ({"model": "/nowhere"}, r"dataset\.model=/nowhere: it has no config\.json\. Give a folder with config\.json, "),
        ({"wordnet": "/nowhere"}, r"dataset\.wordnet=/nowhere: it has no data\.noun"),
    ],
)
def test_bad_arguments_are_named(make, tmp_path, wrong, message):
    with pytest.raises(LorabenchError, match=message):
        make(tmp_path, **wrong)
    assert not list(tmp_path.glob("zoos/*g-*/*"))


def test_a_model_that_is_no_bert_is_told(sources, tmp_path):
    for name in ("config.json", "vocab.txt"):
        (tmp_path / name).write_bytes((Path(sources["model"]) / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(LorabenchError, match=r"no BERT without a head in config\.json"):
        load_text_base(tmp_path, 32)


@pytest.mark.parametrize(
    ("file", "change", "why"),
    [
        ("config.json", {"hidden_act": "relu"}, "its hidden_act is relu, and gelu is what is computed here"),
        ("config.json", {"position_embedding_type": "relative_key"}, "its position_embedding_type is relative_key"),
        ("config.json", {"num_attention_heads": 3}, r"no BERT without a head in config\.json"),
        ("tokenizer_config.json", {"do_lower_case": False}, "its vocabulary tells upper from lower case"),
    ],
)
def test_a_bert_of_another_kind_is_told(sources, tmp_path, file, change, why):
    for path in Path(sources["model"]).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    said = json.loads((tmp_path / file).read_text()) if (tmp_path / file).exists() else {}
    (tmp_path / file).write_text(json.dumps({**said, **change}))
    with pytest.raises(LorabenchError, match=why):
        load_text_base(tmp_path, 32)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(LorabenchError, match=r"config\.json holds no object"):
        load_text_base(tmp_path, 32)


def test_minilm_that_is_missing_is_told(monkeypatch):
    monkeypatch.setattr(minilm.importlib.util, "find_spec", dict[str, Any]().get)
    with pytest.raises(LorabenchError, match=r"which is not installed: pip install 'lorabench\[text\]'"):
        minilm.minilm_folder()


def test_the_config_is_the_loaders_arguments():
    config = yaml.safe_load((CONF / "glosses.yaml").read_text())
    assert config.pop("_target_") == "lorabench.zoo.glosses.load"
    arguments = [name for name in inspect.signature(glosses.load).parameters if name != "recipe"]
    assert {*config} == {*arguments, *RECIPE}


@pytest.mark.slow
def test_the_real_zoo_can_be_made_where_its_sources_are(tmp_path):
    try:
        minilm.minilm_folder(), wordnet.debian_folder()
    except LorabenchError as missing:
        pytest.skip(str(missing))
    small = ["dataset.per_category=2", "dataset.steps=2", "dataset.negatives=16"]
    zoo = load_zoo("glosses", [*small, f"cache_dir={tmp_path}"])
    assert len(zoo) == 20
    assert {zoo.layers[module.down].shape for module in zoo.modules} == {(20, 4, 384)}
    assert zoo.ceiling.shape == (20, 1, 384)
    assert len(zoo.modules) == 4
