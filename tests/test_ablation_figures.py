"""The pictures of ablations, made of synthetic findings: what they show, and that it can be read."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from lorabench.report import table_text, write_figures
from lorabench.report.figures import drawings
from lorabench.report.labels import layer_labels
from lorabench.results import Run, read_result, summarise
from tests.ablation_findings import PHASES, PICTURES, REPRESENTATIONS, an_ablation, as_json, with_changes, zoo_layers


def drawn(figure):
    """The figure's visible texts with their boxes in pixels, after a drawing."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            margin = 1e-6 * (high - low)
            for tick in axis.get_major_ticks() + axis.get_minor_ticks():
                if not low - margin <= tick.get_loc() <= high + margin:
                    hidden |= {tick.label1, tick.label2}
            if not axes.axison:
                hidden |= set(axis.findobj(Text))
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text() and text not in hidden]
    assert texts
    return [(text.get_text(), text.get_window_extent()) for text in dict.fromkeys(texts)]


def faults(figure):
    """Texts that leave the figure, and pairs that overlap by more than a pixel."""
    boxes = drawn(figure)
    width, height = figure.canvas.get_width_height()
    left = [
        name for name, box in boxes
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]  # fmt: skip
    overlapping = [
        (one, two)
        for (one, a), (two, b) in itertools.combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]
    return left + overlapping


def test_the_check_itself_sees_overlaps_and_cuts():
    figure = Figure(figsize=(2, 2))
    figure.text(0.5, 0.5, "one")
    figure.text(0.52, 0.5, "two")
    figure.text(0.95, 0.1, "too far right")
    assert faults(figure) == ["too far right", ("one", "two")]


@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_has_exactly_its_pictures_and_its_table(phase, tmp_path):
    result = an_ablation(phase, "glyphs-12")
    seen = []
    written = write_figures(result, tmp_path, lambda: seen.append(1))
    whole = {"accuracy", "learning_curves", "confusion_stats"}
    ranked = set() if phase == "grouping" else {"layer_importance", "importance_by_place"}
    assert {path.stem for path in written} == whole | ranked | PICTURES[phase]
    assert len(seen) == len(written) == len(list(tmp_path.iterdir()))
    for path in written:
        pixels = imread(path)
        assert min(pixels.shape[:2]) > 200
        assert pixels[..., :3].std() > 0.01, f"{path.name} is blank"


@pytest.mark.parametrize(
    ("phase", "kind"),
    [
        *itertools.product(PHASES, ["glyphs-12", "glyphs-32", "sd-128"]),
        ("layers", "llm-448"), ("layers", "flux"), ("layers", "counted"), ("layers", "toy"),
        ("clusters", "flux"), ("clusters", "toy"), ("concepts", "toy"),
    ],
)  # fmt: skip
def test_no_text_overlaps_or_leaves_the_picture(phase, kind):
    result = an_ablation(phase, kind, rank_on="test", by="block")
    pictures = drawings(result)
    for name in PICTURES[phase] or {"layer_importance", "importance_by_place"}:
        assert faults(pictures[name]()) == [], name


def test_sixteen_representations_fit_the_picture():
    result = an_ablation("compare", "sd-128", representations=REPRESENTATIONS, failed="pca")
    figure = drawings(result)["with_without"]()
    assert faults(figure) == []
    names = {name for name, _ in drawn(figure)}
    assert names >= {*REPRESENTATIONS} - {"pca"} | {"pca (failed)", "without top 5", "5 random out", "chance"}


def test_every_layer_is_named_in_the_pictures_with_a_line_a_layer():
    layers = zoo_layers("sd-128")
    labels = layer_labels(layers)
    assert len(set(labels)) == 128
    for phase in ("clusters", "concepts"):
        figure = drawings(an_ablation(phase, "sd-128"))[phase]()
        names = [name for name, _ in drawn(figure)]
        assert {*labels} <= {*names}
        smallest = min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text() in labels)
        assert smallest >= 6


def test_layer_labels_are_different_whatever_the_network():
    for kind in ("glyphs-32", "llm-448", "flux", "counted", "toy"):
        labels = layer_labels(zoo_layers(kind))
        assert len(set(labels)) == len(labels)
        assert all(labels)
    # Two transformer blocks of one attention have numbers; what would still be the same has its whole name.
    stem = "unet.down_blocks.1.attentions.0.transformer_blocks"
    assert layer_labels([f"{stem}.{i}.attn1.to_q" for i in range(2)]) == ["down 1.0#0 attn1 q", "down 1.0#1 attn1 q"]
    assert layer_labels(["a.layers.0.b.self_attn.q", "a.layers.0.c.self_attn.q", "lin"]) == [
        "a.layers.0.b.self_attn.q", "a.layers.0.c.self_attn.q", "lin",
    ]  # fmt: skip


def test_the_dendrogram_is_scipys():
    result = an_ablation("clusters", "glyphs-32")
    found = as_json(result.ablation)["clusters"]
    from scipy.cluster.hierarchy import dendrogram

    expected = dendrogram(np.array(found["linkage"]), no_plot=True)
    assert expected["leaves"] == found["order"]
    tree = drawings(result)["clusters"]().axes[0]
    lines = [line for line in tree.get_lines() if len(line.get_xdata()) == 4]
    shown = sorted(tuple(np.round([*line.get_xdata(), *line.get_ydata()], 6)) for line in lines)
    # scipy's leaves stand at 5, 15, 25, ...
    wanted = sorted(
        tuple(np.round([*d, *((np.array(i) - 5) / 10)], 6))
        for d, i in zip(expected["dcoord"], expected["icoord"], strict=True)
    )
    assert shown == wanted


def test_the_rows_of_the_heat_map_are_in_the_trees_order():
    result = an_ablation("clusters", "glyphs-12")
    found = as_json(result.ablation)["clusters"]
    heat = drawings(result)["clusters"]().axes[2]
    image = np.asarray(heat.get_images()[0].get_array())
    assert np.allclose(image, np.array(found["distance"])[found["order"]][:, found["order"]])
    labels = layer_labels(found["layers"])
    assert [text.get_text() for text in heat.get_yticklabels()] == [labels[leaf] for leaf in found["order"]]


def test_layer_importance_shows_every_accuracy_and_interval():
    result = an_ablation("layers", "sd-128")
    figure = drawings(result)["layer_importance"]()
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in panels] == ["attn1 · q", "attn1 · v", "attn2 · q", "attn2 · v"]
    shown = np.concatenate([c.lines[0].get_ydata() for axes in panels for c in axes.containers])
    rows = as_json(result.ablation)["ranking"]
    assert np.allclose(np.sort(shown), np.sort([100 * row["accuracy"] for row in rows]))
    segments = [s[:, 1] for axes in panels for c in axes.containers for s in c.lines[2][0].get_segments()]
    ends = [(100 * row["low"], 100 * row["high"]) for row in rows]
    assert np.allclose(sorted(map(tuple, segments)), sorted(ends))
    rings = [line for axes in panels for line in axes.get_lines() if line.get_label() == "best 5"]
    marked = np.concatenate([line.get_ydata() for line in rings])
    assert np.allclose(np.sort(marked), np.sort([100 * row["accuracy"] for row in rows[:5]]))


def test_a_missing_interval_is_no_bar():
    figure = drawings(an_ablation("layers", "glyphs-12", unknown=True))["layer_importance"]()
    containers = [c for axes in figure.axes for c in axes.containers]
    lengths = [np.ptp(s[:, 1]) for c in containers for s in c.lines[2][0].get_segments()]
    assert lengths == [0] * 12


def test_pictures_of_the_classifiers_are_of_all_layers_alone():
    result = an_ablation("compare", "glyphs-12", representations=("stats", "flat"))
    axes = drawings(result)["accuracy"]().axes[0]
    shown = [x for c in axes.containers for x in c.lines[0].get_xdata()]
    wanted = [100 * row.test_accuracy.mean for row in result.summary if row.ablation == "none"]
    assert sorted(shown) == pytest.approx(sorted(wanted))
    image = drawings(result)["confusion_flat"]().axes[0].get_images()[0].get_array()
    counts = np.sum([r.confusion for r in result.runs if (r.representation, r.ablation) == ("flat", "none")], axis=0)
    assert np.allclose(image, 100 * counts / counts.sum(1, keepdims=True))


def test_results_json_is_enough_for_the_pictures(tmp_path):
    result = an_ablation("redundancy", "glyphs-12")
    result.write(tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text())["ablation"]["name"] == "redundancy"
    for name, folder in (("one", result), ("two", read_result(tmp_path / "results.json"))):
        (tmp_path / name).mkdir()
        write_figures(folder, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert np.array_equal(imread(path), imread(tmp_path / "two" / path.name)), path.name


@pytest.mark.parametrize("phase", ["layers", "compare", "progressive", "grouping", "attribution", "redundancy"])
def test_a_ranking_on_the_test_split_is_said(phase):
    honest, published = (an_ablation(phase, "glyphs-12", rank_on=split) for split in ("val", "test"))
    for name in PICTURES[phase] or {"layer_importance", "importance_by_place"}:
        texts = [[text for text, _ in drawn(drawings(result)[name]())] for result in (honest, published)]
        assert not any("TEST split" in text for text in texts[0])
        assert any("ranked on the TEST split" in text for text in texts[1]), name


def test_one_failed_arm_is_no_point():
    result = an_ablation("compare", "glyphs-12", representations=("stats", "flat"))
    broken = summarise([Run("flat", "worst-5", 0, error="out of memory")], "mlp", 0, 0, True)
    result = replace(result, summary=[
        broken if (row.representation, row.ablation) == ("flat", "worst-5") else row for row in result.summary
    ])  # fmt: skip
    figure = drawings(result)["with_without"]()
    assert faults(figure) == []
    assert sorted(len(c.lines[0].get_xdata()) for c in figure.axes[0].containers) == [1, 2, 2, 2, 2]


def test_modules_are_a_series_of_their_own():
    result = an_ablation("compare", "glyphs-12")
    found = as_json(result.ablation)
    modules = [row["layer"].removesuffix(".lora.up.weight") for row in found["ranking"] if ".up." in row["layer"]]
    found["ranking"] = [{**row, "layer": name} for name, row in zip(modules, found["ranking"], strict=False)]
    figure = drawings(with_changes(result, ranking=found["ranking"]))["layer_importance"]()
    assert faults(figure) == []
    assert {name for name, _ in drawn(figure)} >= {"module", "taken away (best 5)"}
    rings = [line for axes in figure.axes for line in axes.get_lines() if "taken away" in str(line.get_label())]
    assert sum(len(line.get_xdata()) for line in rings) == 5


def test_a_layer_without_an_accuracy_alone_is_no_point():
    result = an_ablation("attribution", "glyphs-12")
    found = as_json(result.ablation)["attribution"]
    found["rows"][0]["accuracy"] = None
    result = with_changes(result, attribution=found)
    axes = drawings(result)["attribution"]().axes[0]
    shown = np.concatenate([c.lines[0].get_ydata() for c in axes.containers])
    assert np.isnan(shown).sum() == 1
    assert "–" in table_text(result)
