"""Folders of models that cannot be used, or were made to do harm."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from lorabench.errors import LorabenchError
from lorabench.predict.folder import checksum, read_model, write_model
from lorabench.representations.norms import Norms
from tests.leafy_zoo import leafy_zoo, model_of


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in `model`."""
    folder = tmp_path_factory.mktemp("predict_folder")
    write_model(model_of(leafy_zoo(30), Norms(), folder / "cache", epochs=3), folder / "model")
    return folder


def broken(place: Path, target: Path, **changes) -> Path:
    """A copy of the model with other words in its config.json."""
    shutil.copytree(place / "model", target)
    return rewritten(target, (target / "model.safetensors").read_bytes(), **changes)


def rewritten(folder: Path, data: bytes, **changes) -> Path:
    """With other arrays and words, and the checksum of these."""
    said = json.loads((folder / "config.json").read_text()) | changes
    del said["blake2b"]
    (folder / "model.safetensors").write_bytes(data)
    (folder / "config.json").write_text(json.dumps({**said, "blake2b": checksum(said, data)}))
    return folder


def test_a_model_that_cannot_be_used_is_refused_in_one_line(place, tmp_path):
    with pytest.raises(LorabenchError, match=r"no model, it has no config\.json"):
        read_model(tmp_path)
    with pytest.raises(LorabenchError, match="schema 9, this version of lorabench reads 3"):
        read_model(broken(place, tmp_path / "schema", schema=9))
    with pytest.raises(LorabenchError, match=r"config.json is damaged .* Export it again"):
        read_model(broken(place, tmp_path / "types", classes=7))
    cut = broken(place, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-4])
    with pytest.raises(LorabenchError, match=r"damaged .*its checksum is another"):
        read_model(cut)
    turned = broken(place, tmp_path / "turned")
    said = json.loads((turned / "config.json").read_text())
    (turned / "config.json").write_text(json.dumps({**said, "classes": said["classes"][::-1]}))
    with pytest.raises(LorabenchError, match=r"damaged .*its checksum is another"):
        read_model(turned)


def said_of(place: Path, part: str):
    """A part of the model's config.json."""
    return json.loads((place / "model" / "config.json").read_text())[part]


LIES = {
    "another classifier": (
        lambda _: {"classifier": {"class": "lorabench.classifiers.newer.Newer", "arguments": [{}]}},
        "was made by another version of lorabench: this one has no lorabench.classifiers.newer.Newer",
    ),
    "another representation": (
        lambda _: {"representation": {"class": "lorabench.representations.norms.Newer"}},
        "was made by another version of lorabench: this one has no lorabench.representations.norms.Newer",
    ),
    "autoencoders of a run": (
        lambda _: {"representation": {"class": "lorabench.representations.load_from.Loaded", "load_from": "/"}},
        "Loaded is no Representation",
    ),
    "a class too many": (
        lambda place: {"classes": [*said_of(place, "classes"), "dog"]},
        "its members tell 3 classes apart, and it names 4",
    ),
    "no modules": (lambda _: {"modules": []}, "its modules are none, or not all different"),
    "a module twice": (lambda place: {"modules": said_of(place, "modules")[:1] * 2}, "or not all different"),
    "a module too few": (lambda place: {"modules": said_of(place, "modules")[:2]}, "is damaged or not of"),
    "a wide module": (
        lambda place: {"modules": [{**one, "d_in": 10**9} for one in said_of(place, "modules")]},
        "is said to be 10 x 1000000000, and its arrays are of 10 x 10",
    ),
    "a high rank": (
        lambda place: {"modules": [{**one, "rank": 10**9} for one in said_of(place, "modules")]},
        "is said to have rank 1000000000",
    ),
    "a large network": (
        lambda _: {
            "classifier": {
                "class": "lorabench.classifiers.linear.Linear",
                "arguments": [{"in_features": 10**9, "n_classes": 10**6}],
            }
        },
        "size mismatch",
    ),
    "no temperature": (lambda _: {"temperature": 0.0}, "its temperature is 0"),
    "a temperature that is hardly one": (lambda _: {"temperature": 1e-320}, "and 0.02 to 50 are found"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_folder_that_lies_is_refused_before_memory_is_taken(place, tmp_path, case):
    lies, why = LIES[case]
    with pytest.raises(LorabenchError) as refused:
        read_model(broken(place, tmp_path / "one", **lies(place)))
    assert why in str(refused.value)


OR_TYPES = ""  # the tests check the shapes of arguments, so their refusal comes first
MODULE = "unet.mid_block.attentions.0.to_q"
FALSE_ARRAYS = {
    "weights of other scores": (
        lambda a: {"conformal/weights": torch.cat([a["conformal/weights"], torch.ones(2).double()])},
        OR_TYPES,
    ),
    "weights above all shares": (
        lambda a: {"novelty/weights": a["novelty/weights"] + 1},
        "their weights are no shares",
    ),
    "scores that fall": (lambda a: {"novelty/scores": a["novelty/scores"].flip(0)}, "its scores do not rise"),
    "scores that are none": (lambda a: {"conformal/scores": a["conformal/scores"] * torch.nan}, "scores do not rise"),
    "one usual trait": (lambda a: {"novelty/usual": a["novelty/usual"][:, :1].clone()}, OR_TYPES),
    "no traits of a module": (lambda a: {"novelty/absent": a["novelty/absent"] * torch.nan}, "numbers are needed"),
    "levels of three distances": (lambda a: {"novelty/level": a["novelty/level"][:, :3].clone()}, OR_TYPES),
    "no directions": (
        lambda _: {f"novelty/span/{MODULE}/read": torch.zeros(10, 0).double()},
        "the directions of unet.mid_block.attentions.0.to_q are not 1 to 16",
    ),
    "weights that are none": (
        lambda a: {name: values * torch.nan for name, values in a.items() if name.startswith("members/0/")},
        "a number in it is none",
    ),
}


@pytest.mark.parametrize("case", FALSE_ARRAYS)
def test_arrays_that_export_would_not_write_are_refused(place, tmp_path, case):
    change, why = FALSE_ARRAYS[case]
    folder = broken(place, tmp_path / "one")
    arrays = load_file(folder / "model.safetensors")
    rewritten(folder, save({**arrays, **change(arrays)}))
    with pytest.raises(LorabenchError, match=r"is damaged or not of config\.json") as refused:
        read_model(folder)
    assert why in str(refused.value)


def test_a_config_that_is_nested_too_deeply_is_refused_in_one_line(place, tmp_path):
    folder = broken(place, tmp_path / "one")
    (folder / "config.json").write_text("[" * 200_000)
    with pytest.raises(LorabenchError, match="nested too deeply"):
        read_model(folder)


@pytest.mark.parametrize("path", ["os.system", "lorabench.storage.Path", "lorabench.representations.base.np"])
def test_a_folder_of_a_stranger_makes_no_other_class(place, tmp_path, path):
    said = {"class": path}
    with pytest.raises(LorabenchError, match=r"is damaged or not of config\.json"):
        read_model(broken(place, tmp_path / "one", representation=said))
