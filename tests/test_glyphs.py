import inspect
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lorabench.errors import LorabenchError
from lorabench.evaluation.soundness import measure
from lorabench.zoo import Zoo, glyph_model, glyphs
from lorabench.zoo.glyph_model import MODULES, train_loras
from lorabench.zoo.glyph_pictures import CATEGORIES, SIDE, draw_glyphs

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf" / "dataset"
SMALL: dict[str, Any] = {
    "name": "small-glyphs",
    "categories": "blocks",
    "init": "shared",
    "rank": 4,
    "per_category": 8,
    "styles": 4,
    "pretrain_steps": 40,
    "pretrain_batch": 32,
    "steps": 10,
    "learning_rate": 1e-2,
    "batch_size": 4,
    "together": 64,
    "seed": 0,
}
TINY = {**SMALL, "per_category": 2, "pretrain_steps": 3, "steps": 2}


@pytest.fixture(scope="module")
def drawn():
    return draw_glyphs("blocks", 4, 0)


@pytest.fixture(scope="module", autouse=True)
def _draw_once(drawn):
    """Drawing takes a second, and every build would do it again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "draw_glyphs", lambda *how: drawn if how == ("blocks", 4, 0) else draw_glyphs(*how))
        yield


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return glyphs.load(**SMALL, cache_dir=tmp_path_factory.mktemp("cache"))


def dense(zoo: Zoo) -> np.ndarray:
    """ΔW of every module, formed and flattened, [N, 16 · 32 · 32]."""
    return np.concatenate(
        [(zoo.read(m.up).astype(np.float64) @ zoo.read(m.down)).reshape(len(zoo), -1) for m in zoo.modules], 1
    )


# --- zoo ------------------------------------------------------------------------------------------------------------


def test_a_zoo_has_the_names_shapes_and_labels_it_promises(zoo):
    assert len(zoo) == 80
    assert list(zoo.layers)[:2] == [f"unet.transformer_blocks.0.attn1.to_q.lora.{d}.weight" for d in ("down", "up")]
    assert list(zoo.layers) == [layer for module in zoo.modules for layer in (module.down, module.up)]
    assert tuple(module.name for module in zoo.modules) == MODULES
    assert MODULES[-1] == "unet.transformer_blocks.3.attn1.to_out.0"
    assert {zoo.layers[m.down].shape for m in zoo.modules} == {(80, 4, 32)}
    assert {zoo.layers[m.up].shape for m in zoo.modules} == {(80, 32, 4)}
    assert (zoo.rank == 4).all()
    assert (zoo.scale == 1).all()
    assert zoo.labels.category_names == tuple(sorted(set(CATEGORIES["blocks"].values())))
    assert (np.bincount(zoo.labels.category) == 8).all()
    assert len(set(zoo.labels.leaf.tolist())) == 80, "a leaf has one adapter, so that it cannot cross a split"
    assert zoo.labels.adapters[0].startswith("braille/U+")
    assert any(name.startswith("canadian_aboriginal/U+") for name in zoo.labels.adapters)
    assert np.abs(dense(zoo)).max(1).min() > 0


def test_the_recipe_of_every_adapter_is_the_same(zoo):
    labels = zoo.labels
    assert {name: set(column.tolist()) for name, column in labels.recipe.items()} == {
        "pictures": {4.0}, "steps": {10.0}, "samples": {40.0}, "learning_rate": {0.01}, "shared_start": {1.0}
    }  # fmt: skip
    recipe = zoo.recipe()
    of_modules = {f"{what} of {m.name}" for m in zoo.modules for what in ("rank", "scale", "presence")}
    assert set(recipe) == {*labels.recipe, *of_modules}
    assert all(len(column) == len(zoo) and np.ptp(column) == 0 for column in recipe.values())
    few = zoo.rows(np.array([3, 1]))
    assert {name: len(column) for name, column in few.recipe().items()} == dict.fromkeys(recipe, 2)


def test_the_recipe_tells_nothing_of_the_category(zoo):
    found = measure(zoo, splits=1)
    (recipe,) = (reading for reading in found.readings if reading.features == "recipe")
    assert recipe.best <= found.at_chance, found


def test_the_ceiling_is_the_mean_of_what_each_adapter_was_trained_on(zoo, drawn):
    assert zoo.ceiling.shape == (80, SIDE, SIDE)
    wanted = drawn.pictures[list(drawn.sample(8, 0))]
    assert wanted.shape[1] == 4
    np.testing.assert_allclose(zoo.ceiling.read(0, 80), wanted.mean(1), atol=1e-6)
    np.testing.assert_array_equal(zoo.rows(np.array([7, 2])).ceiling.read(0, 2), zoo.ceiling.read(0, 80)[[7, 2]])


def test_another_process_makes_the_same_zoo_and_ceiling(tmp_path):
    first = glyphs.load(**TINY, cache_dir=tmp_path / "here")
    program = "import json, sys; from lorabench.zoo import glyphs; glyphs.load(**json.loads(sys.argv[1]))"
    arguments = json.dumps({**TINY, "cache_dir": str(tmp_path / "there")})
    subprocess.run([sys.executable, "-c", program, arguments], cwd=ROOT, check=True)
    again = glyphs.load(**TINY, cache_dir=tmp_path / "there")
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.ceiling.read(0, 20), first.ceiling.read(0, 20))


def test_a_zoo_of_the_first_format_is_made_again(tmp_path):
    first = glyphs.load(**TINY, cache_dir=tmp_path)
    (folder,) = (tmp_path / "zoos").glob("small-glyphs-*")
    meta = json.loads((folder / "zoo.json").read_text())
    (folder / "zoo.json").write_text(json.dumps({**meta, "format": 1, "fingerprint": "old"}))
    assert glyphs.load(**TINY, cache_dir=tmp_path).fingerprint == first.fingerprint


def test_a_zoo_is_deterministic_and_cached(zoo, tmp_path, monkeypatch):
    again = glyphs.load(**SMALL, cache_dir=str(tmp_path))
    assert again.fingerprint == zoo.fingerprint
    monkeypatch.setattr(glyphs, "draw_glyphs", None)
    assert glyphs.load(**SMALL, cache_dir=tmp_path).fingerprint == zoo.fingerprint


@pytest.mark.slow
def test_every_argument_makes_another_zoo(tmp_path):
    first = glyphs.load(**TINY, cache_dir=tmp_path)
    others = {"init": "independent", "rank": 3, "steps": 3, "learning_rate": 2e-2, "batch_size": 3, "seed": 1}
    others |= {"per_category": 1, "pretrain_steps": 2, "pretrain_batch": 8, "styles": 3, "categories": "scripts"}
    others |= {"training_seed": 1, "base_seed": 1}
    found = {key: glyphs.load(**{**TINY, key: value}, cache_dir=tmp_path) for key, value in others.items()}
    assert len({first.fingerprint, *(zoo.fingerprint for zoo in found.values())}) == len(others) + 1
    assert found["rank"].layers[first.modules[0].up].shape == (20, 32, 3)
    assert len(found["per_category"]) == 10


@pytest.mark.parametrize("init", ["shared", "independent"])
def test_another_training_seed_draws_the_adapters_anew_and_no_base_leaf_or_picture(init, tmp_path, monkeypatch):
    options = {**TINY, "init": init}
    first = glyphs.load(**options, cache_dir=tmp_path)
    monkeypatch.setattr(glyph_model, "pretrain", None)
    again = glyphs.load(**options, training_seed=1, cache_dir=tmp_path)
    assert again.labels.adapters == first.labels.adapters
    np.testing.assert_array_equal(again.ceiling.read(0, 20), first.ceiling.read(0, 20))
    for module in first.modules:
        ours, theirs = (zoo.read(module.down).reshape(20, -1) for zoo in (first, again))
        alike = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
        assert np.abs(alike).max() < 0.6, module.name  # of one start 0.9 or more


def test_another_base_seed_pretrains_another_base_and_draws_nothing_else_anew(tmp_path, monkeypatch):
    first = glyphs.load(**TINY, cache_dir=tmp_path)
    other = glyphs.load(**TINY, base_seed=1, cache_dir=tmp_path)
    assert len(list((tmp_path / "zoos").glob("glyph-base-*.safetensors"))) == 2
    assert other.labels.adapters == first.labels.adapters
    np.testing.assert_array_equal(other.ceiling.read(0, 20), first.ceiling.read(0, 20))
    for module in first.modules:
        ours, theirs = (zoo.read(module.up).reshape(20, -1) for zoo in (first, other))
        alike = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
        assert np.abs(alike).max() < 0.6, module.name  # what is learned of another base is another update
    monkeypatch.setattr(glyph_model, "pretrain", None)
    same = glyphs.load(**TINY, base_seed=TINY["seed"], cache_dir=tmp_path)
    for layer in first.layers:
        np.testing.assert_array_equal(same.read(layer), first.read(layer))


def test_both_inits_share_one_base(tmp_path, monkeypatch):
    glyphs.load(**TINY, cache_dir=tmp_path)
    monkeypatch.setattr(glyph_model, "pretrain", None)
    assert len(glyphs.load(**{**TINY, "name": "other", "init": "independent"}, cache_dir=tmp_path)) == 20


def test_how_many_train_together_changes_rounding_alone(zoo, tmp_path):
    few = glyphs.load(**{**SMALL, "together": 27}, cache_dir=tmp_path)
    for layer in zoo.layers:
        np.testing.assert_allclose(few.read(layer), zoo.read(layer), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty", "gone"])
def test_a_damaged_base_is_made_again(tmp_path, damage):
    first = glyphs.load(**TINY, cache_dir=tmp_path)
    (base,) = (tmp_path / "zoos").glob("glyph-base-*.safetensors")
    whole = base.read_bytes()
    if damage == "gone":
        base.unlink()
    else:
        other = bytes([whole[-1] ^ 1])
        base.write_bytes({"truncated": whole[:-100], "changed": whole[:-1] + other, "empty": b""}[damage])
    again = glyphs.load(**{**TINY, "together": 20}, cache_dir=tmp_path)
    assert base.read_bytes() == whole
    for layer in first.layers:
        np.testing.assert_array_equal(first.read(layer), again.read(layer))


def test_a_damaged_zoo_is_made_again(tmp_path):
    first = glyphs.load(**TINY, cache_dir=tmp_path)
    (folder,) = (tmp_path / "zoos").glob("small-glyphs-*")
    layer = folder / "0003.f32"
    layer.write_bytes(layer.read_bytes()[:-4])
    assert glyphs.load(**TINY, cache_dir=tmp_path).fingerprint == first.fingerprint
    assert layer.stat().st_size == 20 * 32 * 4 * 4


def test_nothing_is_left_beside_a_zoo(tmp_path):
    glyphs.load(**TINY, cache_dir=tmp_path)
    assert sorted(p.name.split("-")[0] + p.suffix for p in (tmp_path / "zoos").iterdir()) == [
        "glyph.lock",
        "glyph.safetensors",
        "small",
    ]


_STOPS_HALF_WAY = """
import json, sys, time
from lorabench.zoo import glyphs

class Writer(glyphs.StoreWriter):
    def append(self, layers):
        super().append(layers)
        print("half way", flush=True)
        time.sleep(600)

glyphs.StoreWriter = Writer
glyphs.load(**json.loads(sys.argv[1]))
"""


def test_a_killed_build_is_never_taken_for_a_zoo(tmp_path):
    recipe = {**TINY, "together": 7}
    arguments = json.dumps({**recipe, "cache_dir": str(tmp_path / "killed")})
    command = [sys.executable, "-c", _STOPS_HALF_WAY, arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        said = child.stdout.readline() if child.stdout else ""
        child.kill()
    assert said == "half way\n"
    assert child.returncode == -signal.SIGKILL
    assert list((tmp_path / "killed").glob("zoos/.small-glyphs-*/0031.f32")), "it died while it wrote"
    assert not list((tmp_path / "killed").glob("zoos/small-glyphs-*"))
    whole = glyphs.load(**recipe, cache_dir=tmp_path / "fresh")
    assert glyphs.load(**recipe, cache_dir=tmp_path / "killed").fingerprint == whole.fingerprint


def test_the_number_of_threads_changes_nothing(zoo, tmp_path):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert glyphs.load(**SMALL, cache_dir=tmp_path).fingerprint == zoo.fingerprint
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(threads)


def test_an_error_stops_the_workers_and_leaves_nothing(tmp_path, monkeypatch):
    begun, stopped = Event(), []

    def refuse(self, layers):
        raise LorabenchError("the disk is full")

    def endless(base, leaves, training, advance):
        if leaves[0].name.startswith("braille"):
            begun.wait(60)
            return train_loras(base, leaves, training, advance)
        begun.set()
        try:
            for _ in range(6000):
                advance(0.0)
                time.sleep(0.01)
        except CancelledError:
            stopped.append(leaves[0].name)
            raise

    threads = torch.get_num_threads()
    with monkeypatch.context() as patch:
        patch.setattr(glyphs.StoreWriter, "append", refuse)
        patch.setattr(glyphs, "train_loras", endless)
        torch.set_num_threads(2)
        with pytest.raises(LorabenchError, match="the disk is full"):
            glyphs.load(**{**TINY, "together": 2}, cache_dir=tmp_path)
        torch.set_num_threads(threads)
    assert stopped, "what trains beside the failure has been told to stop"
    assert len(stopped) < 9, "what waits has not begun"
    assert not list(tmp_path.glob("zoos/*small-glyphs*"))
    assert len(glyphs.load(**TINY, cache_dir=tmp_path)) == 20


def test_the_callers_torch_is_left_alone(tmp_path):
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads()
    with torch.inference_mode():
        quiet = glyphs.load(**TINY, cache_dir=tmp_path / "inference")
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        assert glyphs.load(**TINY, cache_dir=tmp_path / "no_grad").fingerprint == quiet.fingerprint
        assert not torch.is_grad_enabled()
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert before[2] == torch.get_num_threads()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"init": "foo"}, r"init=foo: allowed are shared and independent"),
        ({"categories": "fonts"}, r"categories=fonts: allowed are blocks and scripts"),
        ({"rank": 0}, r"rank=0: a whole number from 1 to 32"),
        ({"rank": 33}, r"rank=33: a whole number from 1 to 32"),
        ({"per_category": 0}, r"per_category=0: a whole number from 1"),
        ({"styles": -1}, r"styles=-1: a whole number from 1"),
        ({"pretrain_steps": 0}, r"pretrain_steps=0"),
        ({"batch_size": True}, r"batch_size=True: a whole number"),
        ({"together": 0}, r"together=0"),
        ({"seed": -1}, r"seed=-1: a whole number from 0"),
        ({"learning_rate": 0.0}, r"learning_rate=0.0: a number above 0"),
        ({"learning_rate": float("nan")}, r"learning_rate=nan: a number above 0"),
        ({"name": "../zoo"}, r"name=../zoo: letters, digits"),
    ],
)
def test_bad_arguments_are_named(tmp_path, wrong, message):
    with pytest.raises(LorabenchError, match=message):
        glyphs.load(**{**TINY, **wrong}, cache_dir=tmp_path)
    assert not list(tmp_path.glob("zoos/*glyphs-*"))


def test_arguments_of_a_wrong_type_are_named(tmp_path):
    # In a process of its own: here the tests' type checker would speak first.
    wrong = {"rank": 2.0, "steps": "many", "together": None, "learning_rate": "fast", "init": 3, "name": 1.5}
    wrong["categories"] = ["blocks"]
    program = (
        "import json, sys; from lorabench.zoo import glyphs; from lorabench.errors import LorabenchError\n"
        "recipe, wrong = json.loads(sys.argv[1])\n"
        "for key, value in wrong.items():\n"
        "    try: glyphs.load(**{**recipe, key: value}); print('accepted', key)\n"
        "    except LorabenchError as error: print(error)\n"
    )
    arguments = json.dumps([{**TINY, "cache_dir": str(tmp_path)}, wrong])
    done = subprocess.run(
        [sys.executable, "-c", program, arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for (key, value), line in zip(wrong.items(), done.stdout.splitlines(), strict=True):
        assert line.startswith(f"dataset.{key}={value}"), line


def test_a_cache_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LorabenchError, match=r"cannot write .*a part of this path is a file.*cache_dir=DIR"):
        glyphs.load(**TINY, cache_dir=tmp_path / "file")


def test_the_configs_are_the_loaders_arguments():
    shared, independent = (
        yaml.safe_load((CONF / f"{name}.yaml").read_text()) for name in ("glyphs", "glyphs_independent")
    )
    assert shared.pop("_target_") == "lorabench.zoo.glyphs.load"
    assert list(shared) == list(inspect.signature(glyphs.load).parameters)
    assert independent == {"defaults": ["glyphs", "_self_"], "name": "glyphs_independent", "init": "independent"}
    scripts = yaml.safe_load((CONF / "glyphs_scripts.yaml").read_text())
    assert scripts["categories"] == "scripts"
    assert set(scripts) - {"defaults"} <= set(shared)


# --- is it a sound zoo? ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def full_zoos(tmp_path_factory) -> dict[str, Zoo]:
    cache = os.environ.get("LORABENCH_CACHE") or tmp_path_factory.mktemp("cache")
    config = yaml.safe_load((CONF / "glyphs.yaml").read_text())
    config = {key: value for key, value in config.items() if key not in ("_target_", "cache_dir", "name", "init")}
    names = {"shared": "glyphs", "independent": "glyphs_independent"}
    return {init: glyphs.load(name=name, init=init, **config, cache_dir=cache) for init, name in names.items()}


def probe(features: np.ndarray, zoo: Zoo, components: int | None = None) -> float:
    """Test accuracy of logistic regression on standardised features, learned from the training rows."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    category = zoo.labels.category
    rest, test = train_test_split(np.arange(len(zoo)), test_size=0.2, stratify=category, random_state=0)
    train, _ = train_test_split(rest, test_size=0.125, stratify=category[rest], random_state=0)
    leading = [PCA(components, svd_solver="randomized", random_state=0)] if components else []
    model = make_pipeline(*leading, StandardScaler(), LogisticRegression(max_iter=2000))
    return model.fit(features[train], category[train]).score(features[test], category[test])


@pytest.mark.slow
def test_the_full_zoo_is_sound(full_zoos):
    found = {}
    for init, zoo in full_zoos.items():
        assert len(zoo) == 870
        assert measure(zoo, splits=2).faults == ()
        flat = np.concatenate([zoo.read(layer).reshape(len(zoo), -1) for layer in zoo.layers], 1)
        found[init] = probe(flat, zoo), probe(dense(zoo), zoo, 64)
    assert found["shared"][0] >= 0.5, found
    assert found["independent"][0] <= 0.2, found
    assert found["shared"][1] >= 0.5, found
    assert found["independent"][1] >= 0.5, found
