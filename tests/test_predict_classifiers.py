"""Models whose members are of other classifiers, or of settings that were chosen for each."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lorabench.classifiers.gl_net import GLNet
from lorabench.classifiers.mlp import MLP
from lorabench.classifiers.nearest import Nearest
from lorabench.classifiers.tuned import Tuned
from lorabench.classifiers.vote import Vote
from lorabench.errors import LorabenchError
from lorabench.predict.answers import ask
from lorabench.predict.card import card
from lorabench.predict.folder import read_model, write_model
from lorabench.predict.model import Model
from lorabench.representations.factors import Factors
from lorabench.representations.norms import Norms
from lorabench.zoo.export import export as export_zoo
from tests.leafy_zoo import leafy_zoo, model_of

MADE = 60
"""Adapters that a model sees."""

FACTORIES = {
    "gl_net": functools.partial(GLNet, width=4, head=8, max_epochs=3),
    "mlp": functools.partial(MLP, hidden=[8], dropout=0.0, max_epochs=3),
    "nearest": functools.partial(Nearest, k=3),
    "vote": functools.partial(Vote, k=2, spectra="invariant"),
}


def kept(model: Model, folder: Path) -> Model:
    """The model as it comes back from its folder."""
    write_model(model, folder)
    return read_model(folder)


@pytest.mark.parametrize("name", FACTORIES)
def test_classifiers_that_read_factors_are_kept_and_asked(tmp_path, name):
    zoo = leafy_zoo(40)
    made = model_of(zoo.rows(np.arange(MADE)), Factors(), tmp_path / "cache", factory=FACTORIES[name], seeds=(0, 1))
    model, rest = kept(made, tmp_path / "model"), zoo.rows(np.arange(MADE, 80))
    assert model.scaling is None, "factors are read as they are, whatever reads them"
    torch.testing.assert_close(model.logits(model.inputs(rest)), made.logits(made.inputs(rest)), rtol=0, atol=0)
    export_zoo(rest, tmp_path / "new", "peft")
    said = ask(model, sorted((tmp_path / "new").glob("*/*/")), error=0.3)
    assert len(said) == 20
    assert {one.verdict for one in said} <= {"known", "several", "unknown"}


def test_members_have_the_settings_that_were_chosen_for_each(tmp_path):
    zoo = leafy_zoo(40)
    grid = {"learning_rate": [0.05], "hidden": [[4]]}
    factory = functools.partial(MLP, hidden=[8], dropout=0.0, learning_rate=1e-9, max_epochs=5, grid=grid, tries=2)
    made = model_of(zoo, Norms(), tmp_path / "cache", factory=factory, seeds=(0, 1, 2, 3))
    model = kept(made, tmp_path / "model")
    settings = [arguments["hidden"] for arguments in model.classifier["arguments"]]
    assert [4] in settings
    for hidden, network in zip(settings, model.networks, strict=True):
        assert next(network.parameters()).shape[0] == hidden[0]
    assert torch.equal(model.logits(model.inputs(zoo)), made.logits(made.inputs(zoo)))


def test_what_has_no_weights_is_refused_in_one_line(tmp_path):
    factory = functools.partial(Tuned, hidden=[4], dropout=0.0, learning_rate=1e-9, max_epochs=1)
    with pytest.raises(LorabenchError, match="classifier tuned cannot be exported: what it chose has no weights"):
        model_of(leafy_zoo(30), Norms(), tmp_path / "cache", factory=factory)


class Mine(Norms):
    """A representation of somebody's own."""


def test_classes_of_others_are_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(LorabenchError, match=r"Mine cannot be exported: a model is made of lorabench's own classes"):
        model_of(leafy_zoo(30), Mine(), tmp_path / "cache")


def test_the_accuracy_is_of_the_members_together_and_leaves_are_its_units(tmp_path):
    model = model_of(leafy_zoo(40, signal=0.1), Norms(), tmp_path / "cache", seeds=(0, 1))
    known = model.trained_on
    again = model_of(leafy_zoo(40, signal=0.1, each=4), Norms(), tmp_path / "other", seeds=(0, 1)).trained_on
    assert known["test"] == 32
    assert known["groups"] == again["groups"] == 16
    for told in (known, again):
        low, high = told["interval"]
        share, z = told["accuracy"], 1.959963984540054
        for end in (low, high):  # an end of Wilson's interval is where |p - share| is z standard errors of p
            assert abs(end - share) == pytest.approx(z * (end * (1 - end) / 16) ** 0.5)


@pytest.mark.parametrize(
    ("group", "promise"),
    [("leaf", "of leaves that trained nothing"), ("author", "of further adapters of the same leaves")],
)
def test_the_card_promises_for_new_leaves_where_the_test_ones_were_new(tmp_path, group, promise):
    """With an author each, and two adapters a leaf, nearly every leaf of a test adapter has trained."""
    zoo = leafy_zoo(40)
    if group == "author":
        zoo = replace(zoo, labels=replace(zoo.labels, group=np.arange(len(zoo))))
    assert promise in card(model_of(zoo, Norms(), tmp_path, epochs=2))
