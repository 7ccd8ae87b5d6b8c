"""How much of a spread is another zoo's, another fit's, another split's and another member's."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from lorabench.report.__main__ import main
from lorabench.report.comparison import cells_together
from lorabench.report.seeds import seed_sheet, spreads
from tests.made_results import a_result

SPLITS, MEMBERS = 5, 4


def drawn(rng, zoos=1, fits=1, splits=SPLITS, members=MEMBERS, std=(0.0, 0.0, 0.0, 0.0)):
    """Runs of one split each: 0.5 and a part of the zoo, of the fit on a split, of the split and of the member."""
    of_zoo, of_fit, of_split, of_member = std
    found = []
    for zoo in range(zoos):
        base = 0.5 + of_zoo * rng.standard_normal()
        parts = base + of_split * rng.standard_normal(splits)
        for fit in range(fits):
            for split, part in enumerate(parts + of_fit * rng.standard_normal(splits)):
                values = (part + of_member * rng.standard_normal(members)).tolist()
                found.append(run(values, split, {"seed": zoo, "per_category": 9}, {"seed": fit, "beta": 1}))
    return found


def run(values, split, zoo, options, **more):
    config = {"seed": 100 * split, "dataset": zoo, "representations": {"vae": options}}
    return replace(a_result({"vae": values}, seed=100 * split, **more), config=config)


def written(folder, runs):
    for number, one in enumerate(runs):
        one.write(folder / str(number) / "results.json")
    return [str(folder / str(number)) for number in range(len(runs))]


def test_every_part_comes_back_on_average():
    truth = (0.08, 0.06, 0.05, 0.03)
    rng = np.random.default_rng(0)
    found = [spreads(cells_together(drawn(rng, 4, 3, std=truth)))[0] for _ in range(40)]
    for part, std in zip(("zoo", "fit", "split", "member"), truth, strict=True):
        assert math.sqrt(np.mean([getattr(one, part) for one in found])) == pytest.approx(std, rel=0.2), part
    assert (found[0].zoos, found[0].fits) == (4, 3)


def test_the_parts_of_two_fits_by_hand():
    one, two = [[0.5, 0.7], [0.6, 0.6]], [[0.9, 0.7], [0.7, 0.5]]
    runs = [
        run(values, split, {}, {"seed": fit})
        for fit, rows in enumerate((one, two))
        for split, values in enumerate(rows)
    ]
    (found,) = spreads(cells_together(runs))
    member = np.mean([np.var(row, ddof=1) for row in (*one, *two)])
    between = np.mean([np.var([np.mean(a), np.mean(b)], ddof=1) for a, b in zip(one, two, strict=True)])
    assert found.member == pytest.approx(member)
    assert found.fit == pytest.approx(between - member / 2)
    assert (found.zoos, found.fits) == (1, 2)
    assert math.isnan(found.zoo)


@pytest.mark.parametrize(("zoos", "fits"), [(2, 1), (1, 2)])
def test_what_is_within_leaves_nothing_for_what_is_around_it(zoos, fits):
    (found,) = spreads(cells_together(drawn(np.random.default_rng(1), zoos, fits, std=(0, 0, 0, 0))))
    assert (found.split, found.member) == pytest.approx((0, 0), abs=1e-12)
    expected = [0.0 if several > 1 else math.nan for several in (zoos, fits)]
    assert [found.zoo, found.fit] == pytest.approx(expected, nan_ok=True)


def test_one_member_a_split_is_not_told_from_its_fit_and_split():
    (found,) = spreads(cells_together(drawn(np.random.default_rng(2), 3, 3, members=1, std=(0.1, 0.1, 0, 0.01))))
    assert all(math.isnan(part) for part in (found.fit, found.split, found.member))
    assert found.zoo > 0


def test_a_zoo_of_one_split_is_not_told_from_it():
    (found,) = spreads(cells_together(drawn(np.random.default_rng(2), 3, 1, splits=1, std=(0.0, 0, 0.1, 0.01))))
    assert math.isnan(found.zoo)
    assert math.isnan(found.split)


def test_what_is_not_there_is_found_on_average_where_members_leave_much():
    rng = np.random.default_rng(8)
    found = [spreads(cells_together(drawn(rng, 4, 3, splits=3, members=2, std=(0, 0, 0, 0.1))))[0] for _ in range(25)]
    for part in ("zoo", "fit", "split"):
        assert math.sqrt(np.mean([getattr(one, part) for one in found])) < 0.03, part


def test_a_split_that_two_of_three_fits_have_tells_of_them():
    pairs = {0: (0, 1), 1: (1, 2), 2: (0, 2)}
    runs = [
        run([0.5 + 0.1 * fit, 0.6 + 0.1 * fit], split, {}, {"seed": fit}) for fit, own in pairs.items() for split in own
    ]  # fmt: skip
    (found,) = spreads(cells_together(runs))
    gaps = [2 - 0, 1 - 0, 2 - 1]
    assert found.fit == pytest.approx(np.mean([(0.1 * gap) ** 2 / 2 for gap in gaps]) - 0.005 / 2)


def test_zoos_of_one_seed_and_other_content_are_two_in_any_order():
    runs = drawn(np.random.default_rng(9), 2, 1, splits=2)
    other = [replace(one, dataset={"name": "glyphs", "fingerprint": "other"}) for one in runs[:2]]
    one, two = (spreads(cells_together(given)) for given in (runs + other, other + runs))
    assert [found.zoos for found in (*one, *two)] == [3, 3]
    assert one[0].zoo == pytest.approx(two[0].zoo)


def test_rows_are_named_by_what_sets_them_apart():
    runs = [
        run([0.5, 0.6], 0, {"seed": zoo}, {"seed": 0, "beta": beta}) for beta in (1, 4) for zoo in (0, 1)
    ]  # fmt: skip
    assert [found.label for found in spreads(cells_together(runs))] == ["vae beta=1", "vae beta=4"]


def test_fits_of_other_splits_tell_nothing_of_a_fit():
    (found,) = spreads(cells_together([run([0.5, 0.6], fit, {}, {"seed": fit}) for fit in (0, 1)]))
    assert math.isnan(found.fit)


def test_other_options_are_no_seeds():
    rng = np.random.default_rng(3)
    assert spreads(cells_together(drawn(rng))) == []
    others = [run([0.5, 0.6], 0, {"seed": 0, "per_category": n}, {"seed": 0, "beta": n}) for n in (1, 2)]
    assert spreads(cells_together(others)) == []
    failed = [run([], 0, {"seed": n}, {}, failed=("x",)) for n in (1, 2)]
    assert spreads(cells_together(failed)) == []


def test_a_report_has_the_table_on_the_page_in_the_text_and_as_data(tmp_path, capsys):
    runs = written(tmp_path, drawn(np.random.default_rng(4), 2, 2, splits=2, std=(0.1, 0.02, 0.02, 0.01)))
    assert main([*runs, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "Spread of test accuracy by what is drawn anew" in said
    (row,) = json.loads((tmp_path / "out" / "summary.json").read_text())["spread"]
    assert (row["zoos"], row["fits"], row["representation"]) == (2, 2, "vae")
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'href="#spread"' in page
    assert f"{100 * row['zoo_std']:.1f}" in page


def test_a_report_of_one_zoo_and_fit_has_no_such_table(tmp_path, capsys):
    main([*written(tmp_path, drawn(np.random.default_rng(5), splits=2)), "--out", str(tmp_path / "out")])
    assert "drawn anew" not in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["spread"] == []
    assert 'id="spread"' not in (tmp_path / "out" / "report.html").read_text()


def test_the_sheet_says_what_there_is_one_of():
    (found,) = spreads(cells_together(drawn(np.random.default_rng(6), 2, 1)))
    row = dict(zip(seed_sheet([found]).columns, seed_sheet([found]).rows[0], strict=True))
    assert (row["zoos"], row["fits"], row["fit"], row["layers"]) == ("2", "1", "–", "all")
