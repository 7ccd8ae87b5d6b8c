"""The comparison matrix of docs/representations.md is the code's."""

import re

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

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
        representation = instantiate(compose("config", [f"representation={stem}"]).representation, _convert_="all")
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
    else:
        assert set(names) == {int(dimension)}
    assert (gauge == "yes") is representation.gauge_invariant
