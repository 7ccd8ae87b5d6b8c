"""The tables of ablations, made of synthetic findings."""

import io
import itertools
import re
from dataclasses import replace

import pytest
from rich.console import Console

from lorabench.report import print_table, table_text, write_figures
from lorabench.report.figures import drawings
from lorabench.results import Run, read_result, summarise
from tests.ablation_findings import CLASSES, PHASES, REPRESENTATIONS, an_ablation, as_json, with_changes


def line_of(text, start):
    """The row of a table whose first cell is `start`."""
    return next(line for line in text.splitlines() if line.split()[:1] == [start])


def row_of(result, name, arm):
    return next(row for row in result.summary if (row.representation, row.ablation) == (name, arm))


def said(metric):
    return f"{100 * metric.mean:.1f} ±{100 * metric.std:4.1f}"


def on_terminal(result, columns):
    text = io.StringIO()
    print_table(result, Console(file=text, width=columns, force_terminal=True, no_color=True))
    return re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue())


@pytest.mark.parametrize("phase", PHASES)
def test_what_was_read_from_json_is_shown_alike(phase, tmp_path):
    result = an_ablation(phase, "glyphs-12", unknown=True, seeds=1)
    result.write(tmp_path / "results.json")
    again = read_result(tmp_path / "results.json")
    assert table_text(again) == table_text(result)
    assert set(drawings(again)) == set(drawings(result))
    for text in (table_text(result), on_terminal(result, 80)):
        assert "…" not in text
        assert ("cannot be" in text) == (phase != "grouping")
        assert "nan" not in text.lower()


@pytest.mark.parametrize("phase", ["layers", "compare", "progressive", "attribution", "redundancy"])
def test_a_ranking_on_the_test_split_is_said(phase):
    honest, published = (an_ablation(phase, "glyphs-12", rank_on=split) for split in ("val", "test"))
    assert "TEST" not in table_text(honest)
    for text in (table_text(published), on_terminal(published, 80), on_terminal(published, 120)):
        assert "ranked on the TEST split" in " ".join(text.split())
        assert "RANKED ON THE TEST SPLIT (the published protocol)" in " ".join(text.split())
    assert "ranked on validation accuracy" in table_text(honest)


def test_the_ranking_table_holds_the_best_twenty_whole():
    result = an_ablation("layers", "sd-128")
    text, rows = table_text(result), as_json(result.ablation)["ranking"]
    for row in rows[:20]:
        cells = line_of(text, str(row["rank"]))
        assert f" {row['layer']} " in cells
        ends = f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        assert f" {100 * row['accuracy']:.1f} {ends}  " in cells
        assert f" {100 * row['test_accuracy']:.1f} " in cells
        assert cells.endswith(f"{row['rank']}–{row['tied_to']}" if row["tied_to"] > row["rank"] else " –")
    assert not any(row["layer"] in text for row in rows[20:])
    assert "the first 20 of 128, all are in layers.json" in text
    assert "Kendall's τ between 3 seeds 0.61 (lowest 0.52)" in text
    assert "chance 10.0" in text
    # Folded, but whole: the module and the factor of every layer.
    narrow = "".join(on_terminal(result, 80).split("\n"))
    for row in rows[:20]:
        module, _, factor = row["layer"].removesuffix(".weight").rpartition(".lora.")
        stem, _, tail = module.partition("transformer_blocks")
        assert stem in narrow
        assert f"transformer_blocks{tail} {factor}" in narrow


def test_one_seed_has_no_stability_and_no_interval():
    text = table_text(an_ablation("layers", "glyphs-12", seeds=1, unknown=True))
    assert "no pair of seeds to compare: nothing is known of the ranking's stability" in text
    assert "[" not in line_of(text, "1")
    assert "nan" not in text.lower()


def test_the_comparison_is_one_row_a_representation():
    result = an_ablation("compare", "sd-128", representations=REPRESENTATIONS, failed="pca")
    text = table_text(result)
    table = text[text.index("with and without layers") :]
    for name in REPRESENTATIONS:
        cells = line_of(table, name)
        if name == "pca":
            assert cells.split()[1:] == ["–", "failed", "failed", "–", "–", "failed", "failed", "failed"]
            continue
        wanted = [said(row_of(result, name, arm).test_accuracy) for arm in ("none", "top-5")]
        wanted += ["-8.0 [-12.0, -4.0]", "0.021"]
        wanted += [said(row_of(result, name, arm).test_accuracy) for arm in ("random-5", "worst-5", "permuted")]
        places = [cells.index(cell) for cell in ("3584", *wanted)]
        assert places == sorted(places)
    rows = [line for line in table.splitlines() if line.split()[:1] and line.split()[0] in REPRESENTATIONS]
    assert max(map(len, rows)) <= 120
    caption = " ".join(table.split())
    assert "5 of 128 layers taken away · random: mean of 3 sets · chance 10.0" in caption
    assert "a bootstrap over 3 seeds and 198 test adapters" in caption
    assert "693 train / 99 val / 198 test" in caption
    assert "the best are missed more than 5 random out (interval under 0) by: stats (-7.0 [-11.0, -3.0])" in caption
    assert "norms (-7.0" not in caption
    assert caption.count("pca failed: the weights are not finite") == 1


def test_one_failed_arm_is_said_with_its_reason():
    result = an_ablation("compare", "glyphs-12", representations=("stats", "flat"))
    broken = summarise([Run("flat", "worst-5", 0, error="out of memory")], "mlp", 0, 0, True)
    result = replace(result, summary=[
        broken if (row.representation, row.ablation) == ("flat", "worst-5") else row for row in result.summary
    ])  # fmt: skip
    text = table_text(result)
    assert "flat failed: out of memory (5 worst out)" in text
    assert line_of(text[text.index("with and without") :], "flat").count("failed") == 1


@pytest.mark.parametrize("controls", [(), ("random",), ("permuted",), ("worst", "permuted")])
def test_the_columns_follow_the_arms_that_are_there(controls):
    text = table_text(an_ablation("top_k", "glyphs-12", controls=controls))
    table = text[text.index("with and without") :]
    for control, header in (("random", "random out"), ("worst", "worst out"), ("permuted", "permuted")):
        assert (header in table) == (control in controls)
    said = " ".join(table.split())
    assert ("mean of 3 sets" in said) == ("missed more than 5 random out" in said) == ("random" in controls)


@pytest.mark.parametrize("columns", [60, 80, 100, 120])
def test_a_terminal_is_spared_the_columns_that_matter_least(columns):
    result = an_ablation("compare", "sd-128", representations=REPRESENTATIONS)
    text = on_terminal(result, columns)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= columns
    cells = line_of(text[text.index("with and without") :], "stats")
    assert said(row_of(result, "stats", "none").test_accuracy) in cells
    assert said(row_of(result, "stats", "top-5").test_accuracy) in cells
    assert ("3584" in cells) == (columns >= 120)
    assert (said(row_of(result, "stats", "random-5").test_accuracy) in cells) == (columns >= 80)


def test_off_a_terminal_nothing_is_spared():
    result = an_ablation("compare", "sd-128", representations=REPRESENTATIONS)
    text = io.StringIO()
    print_table(result, Console(file=text, width=40))
    assert [line.rstrip() for line in text.getvalue().splitlines()] == table_text(result).splitlines()


def test_the_curves_table_is_short_and_has_both_ends():
    result = an_ablation("progressive", "sd-128")
    curve = as_json(result.ablation)["curve"]
    text = table_text(result)
    lines = text[text.index("without the k best") :].splitlines()[2:]
    rows = {int(line.split()[0]): line for line in itertools.takewhile(str.strip, lines)}
    assert 12 <= len(rows) <= 24
    assert {0, 128} <= set(rows)
    for row in curve["random"]:
        assert f"{100 * row['accuracy']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" in rows[row["layers"]]
    for row in curve["remove"] + curve["keep"]:
        if row["layers"] in rows:
            assert f"{100 * row['accuracy']:.1f} ± 2.0" in rows[row["layers"]]
            assert row["unit"] is None or row["unit"] in rows[row["layers"]]
    short = table_text(an_ablation("progressive", "glyphs-12"))
    assert all(line_of(short[short.index("without the k best") :], str(k)) for k in range(13))


def test_the_other_findings_have_their_numbers():
    result = an_ablation("grouping", "glyphs-32", by="projection")
    for row in as_json(result.ablation)["groups"]["rows"]:
        cells = line_of(table_text(result), row["group"])
        assert f"{100 * row['alone']['mean']:.1f} ± 2.0 [" in cells
        assert ("–" in cells) == (row["without"] is None)
    result = an_ablation("redundancy", "glyphs-32")
    for row in sorted(as_json(result.ablation)["redundancy"]["rows"], key=lambda row: -row["drop"])[:20]:
        ends = f"[{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
        assert f"{100 * row['drop']:+.1f} {ends}  0.200" in line_of(table_text(result), row["layer"])
    result = an_ablation("attribution", "glyphs-32")
    best = max(as_json(result.ablation)["attribution"]["rows"], key=lambda row: row["share"])
    assert f"{100 * best['share']:.1f} ± 0.2" in line_of(table_text(result), best["layer"])
    assert "Kendall's τ with the accuracy alone 0.31" in table_text(result)
    result = an_ablation("concepts", "glyphs-32")
    for name, found in as_json(result.ablation)["concepts"]["best"].items():
        assert line_of(table_text(result), name).split() == [name, f"{100 * found['recall']:.1f}", found["layer"]]
    assert line_of(table_text(result), CLASSES[-1]).split()[1:] == ["–", "–"]
    assert "0.21 between halves of two classes, 0.43 between those of one" in " ".join(table_text(result).split())
    result = an_ablation("clusters", "glyphs-32")
    text = table_text(result)
    shown = text[text.index("answer alike") :]
    assert all(shown.count(layer) == 1 for layer in as_json(result.ablation)["clusters"]["layers"])
    ids = as_json(result.ablation)["clusters"]["cluster"]
    for cluster in set(ids):
        assert line_of(shown, str(cluster)).split()[1] == str(ids.count(cluster))


def test_dollar_signs_and_brackets_are_themselves(tmp_path):
    classes = ["$_$", "[bold]red[/bold]", ":smile:", *CLASSES[3:]]
    result = an_ablation("concepts", "glyphs-12", classes=classes)
    assert len(write_figures(result, tmp_path)) == 6
    text = table_text(result)
    assert all(name in text for name in classes)


def test_groups_are_said_to_be_ranked_on_the_test_split():
    for split, said_so in (("val", False), ("test", True)):
        text = table_text(an_ablation("grouping", "glyphs-12", rank_on=split))
        assert ("ranked on the TEST split" in text) == ("RANKED ON THE TEST SPLIT" in text) == said_so


def test_seeds_left_out_of_the_ranking_are_said():
    result = an_ablation("layers", "glyphs-12")
    result = with_changes(result, dropped_seeds=["seed 2: [out] of memory"])
    assert "left out: seed 2: [out] of memory" in table_text(result)


def test_modules_can_be_ranked_and_taken_away():
    result = an_ablation("compare", "glyphs-12")
    found = as_json(result.ablation)
    modules = [row["layer"].removesuffix(".lora.up.weight") for row in found["ranking"] if ".up." in row["layer"]]
    found["ranking"] = [{**row, "layer": name} for name, row in zip(modules, found["ranking"], strict=False)]
    found["arms"][1]["removed"] = [f"{name}.lora.{side}.weight" for name in modules[:5] for side in ("down", "up")]
    text = table_text(with_changes(result, ranking=found["ranking"], arms=found["arms"]))
    assert f"  {modules[0]} " in line_of(text, "1")
    assert "10 of 12 layers taken away" in " ".join(text.split())
    assert "top 5" in text
    assert "top 10" not in text
