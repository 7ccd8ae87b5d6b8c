"""Every command of the README runs, and what it promises is so."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

import lorabench.representations
from lorabench.adapters import LoraModule
from lorabench.adapters import save as save_adapter
from tests.conftest import ROOT, TINY_ZOO
from tests.processes import Started
from tests.synthetic_zoo import make_zoo
from tests.web_process import Server

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True) for kind, text in BLOCKS if kind == "sh" for line in text.splitlines() if line
]
QUICK = ["num_runs=1", "splits=1", "classifier.max_epochs=2"]


def test_the_first_screen_has_the_two_commands_the_table_and_the_picture():
    first = "\n".join(README.splitlines()[:45])
    assert "make run" in first
    assert "make test" in first
    assert "![" in first
    named = OmegaConf.load(ROOT / "conf" / "experiment" / "quick.yaml").representations
    rows = [line.split()[0] for line in first.splitlines() if re.match(r"^ \w+ +\d+ ", line)]
    assert rows == list(named)


def test_links_and_pictures_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


@pytest.mark.slow
def test_every_command_runs(tmp_path):
    """In order, in one folder, on a small zoo; `make test` is what runs this and is tried dry."""
    makes = [words for words in COMMANDS if words[0] == "make"]
    pythons = [words for words in COMMANDS if words[0] == "python"]
    assert len(makes) + len(pythons) == len(COMMANDS)
    assert ["make", "run"] in makes
    for words in makes:
        _run(_small_make(words), ROOT, tmp_path)
    _own_files(tmp_path)
    for words in pythons:
        if words[1:4] == ["-m", "lorabench", "web"]:
            Server(tmp_path / "web", *words[4:], cwd=tmp_path).end()
            continue
        assert words[1:3] == ["-m", "lorabench"]
        running = Started(*_small_python(words[3:]), cwd=tmp_path)
        # A gate says 1 where it stops something, and what a model of two epochs says is not looked at here.
        assert running.wait(300) in ((0, 1) if "--fail-on" in words else (0,)), (words, running.said())
    assert len(list(tmp_path.glob("multirun/*/*/*/results.json"))) == 4
    assert (tmp_path / "adapters" / "labels.csv").exists()


def _own_files(folder):
    """The adapters that the reader is said to hold."""
    for number, name in enumerate(("style", "person")):
        generator = torch.Generator().manual_seed(number)
        modules = {
            f"unet.mid_block.attentions.0.transformer_blocks.0.attn{i}.to_{projection}": LoraModule(
                torch.randn(4, 32, generator=generator), torch.randn(32, 4, generator=generator), 0.5
            )
            for i in (1, 2)
            for projection in "qkv"
        }
        save_adapter(folder / f"{name}.safetensors", modules, "kohya")


def _small_make(words):
    if words[1] == "run":
        arguments = [*TINY_ZOO, *QUICK, "hydra.run.dir=${oc.env:README_RUN}"]
        # An environment that is in use is not installed again.
        return ["make", "run", "--old-file=.venv/.installed", f"BIN={Path(sys.executable).parent}",
                "ARGS=" + " ".join(shlex.quote(word.replace("$", "$$")) for word in arguments)]  # fmt: skip
    return [words[0], "--dry-run", *words[1:]]


def _small_python(words):
    if words[0] in ("adapters", "export", "predict"):
        return words
    if "export" in words:
        return [*words, *TINY_ZOO]
    if "--help" in words:
        return words
    glyphs = not any(word in ("dataset=folder", "dataset=1k") for word in words)
    return [*words, *(TINY_ZOO if glyphs else []), *QUICK]


def _run(words, cwd, scratch):
    done = subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "README_RUN": str(scratch / "make_run")},
    )  # fmt: skip
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"


def test_the_example_representation_is_whole(tmp_path, monkeypatch):
    code = next(text for kind, text in BLOCKS if kind == "python")
    config = next(text for kind, text in BLOCKS if kind == "yaml")
    (tmp_path / "maximum.py").write_text(code)
    monkeypatch.setattr(lorabench.representations, "__path__", [*lorabench.representations.__path__, str(tmp_path)])
    importlib.import_module("lorabench.representations.maximum")
    representation = instantiate(OmegaConf.create(config))
    zoo = make_zoo()
    features = representation.transform(zoo, torch.device("cpu"))
    assert set(features) == set(zoo.layers)
    for layer, found in features.items():
        expected = torch.from_numpy(abs(zoo.read(layer)).max((1, 2)))
        torch.testing.assert_close(found[:, 0], expected)
