"""The comparison matrix of docs/representations.md is the code's."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from lorabench.configs import make_representation
from lorabench.results import SCHEMA
from tests.conftest import ROOT
from tests.synthetic_zoo import make_zoo

STEMS = sorted(path.stem for path in (ROOT / "conf" / "representation").glob("*.yaml"))
TEXT = (ROOT / "docs" / "representations.md").read_text()
ROWS = {
    cells[0].strip("` "): cells
    for line in TEXT.splitlines()
    if (cells := [cell.strip() for cell in line.strip("|").split("|")]) and re.match(r"^`\w+`$", cells[0])
}


def test_every_representation_has_a_row():
    assert sorted(ROWS) == STEMS


@pytest.mark.parametrize("stem", STEMS)
def test_unit_dimension_and_gauge_are_the_codes(stem):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        representation = make_representation(compose("config", [f"representation={stem}"]).representation)
    zoo = make_zoo()
    _, unit, dimension, time, gauge, *_ = ROWS[stem]
    assert float(time) >= 0, "a measured time"
    assert unit == representation.unit
    names = [len(representation.feature_names(zoo, name)) for name in representation.units(zoo)]
    share = re.fullmatch(r"d / (\d+), (\d+) to (\d+)", dimension)
    if share:
        part, least, most = map(int, share.groups())
        inputs = [stack.shape[1] * stack.shape[2] for stack in zoo.layers.values()]
        assert names == [max(least, min(most, d // part)) for d in inputs]
        assert [representation.default_latent(d) for d in (1, 10**4)] == [least, most]
    elif dimension == "rows × cols":
        assert names == [stack.shape[1] * stack.shape[2] for stack in zoo.layers.values()]
    elif dimension == "r × (d_in + d_out)":
        pairs = [[zoo.layers[layer].shape[1:] for layer in (module.down, module.up)] for module in zoo.modules]
        assert names == [down[0] * down[1] + up[0] * up[1] for down, up in pairs]
    else:
        assert set(names) == {int(dimension)}
    assert (gauge == "yes") is representation.gauge_invariant


def test_the_schema_of_results_is_the_codes():
    named = re.search(r"\(schema (\d+), `lorabench/results.py`\)", (ROOT / "docs" / "protocol.md").read_text())
    assert int(named[1]) == SCHEMA


def test_files_that_are_named_are_there():
    """Those in backticks, but the example's and what stands for any name."""
    pages = [ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")]
    named = {name for page in pages for name in re.findall(r"`((?:lorabench|tests|conf)/[\w/.]+)`", page.read_text())}
    assert len(named) > 5
    missing = {name for name in named if not (ROOT / name).exists() and "NAME" not in name}
    assert {Path(name).stem for name in missing} == {"maximum"}
