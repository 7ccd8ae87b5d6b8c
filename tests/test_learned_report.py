"""Tables and pictures of learned representations, made of synthetic findings: what they show, and how readably."""

import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from lorabench.adapters.places import place
from lorabench.pictures import SERIES
from lorabench.report import table_text, write_figures
from lorabench.report.figures import drawings
from lorabench.report.latent_figures import latent_figure
from lorabench.report.learned_figures import fitting_figure, reconstruction_figure
from lorabench.results import read_result
from tests.ablation_findings import CLASSES, an_ablation, zoo_layers
from tests.test_ablation_figures import drawn, faults
from tests.test_results import a_result

MORE = {
    "vae": {"kl": [0.5, 2.0, 0.0], "active_dims": 2},
    "contrastive": {"alignment": 0.25, "uniformity": -3.0},
    "denoising": {"denoising_error": 0.7},
}
GREY_OF_OTHERS = (0.78, 0.78, 0.78)


def learning(units, n=60, classes=3, kind="vae", level=0.5, seed=0):
    """What `latent_summary` says of one representation, made up."""
    rng = np.random.default_rng(seed)
    found = {}
    for i, unit in enumerate(units):
        epochs = int(rng.integers(4, 13))
        curve = (40 * (level + 1 / np.arange(1, epochs + 1)) + 0.1 * rng.random(epochs)).tolist()
        found[unit] = {
            "epochs": epochs, "best_epoch": int(np.argmin(curve)), "learning_curve": curve,
            "reconstruction_error": level + 0.2 * math.sin(i) + 0.01 * rng.random(), "constant_features": 0,
            **MORE[kind],
        }  # fmt: skip
    names = ["all units", *([list(units)[-1]] if len(units) > 1 else [])]
    maps = [
        {
            "unit": unit, "x": rng.normal(0, 3, n).tolist(), "y": rng.normal(0, 2, n).tolist(),
            "variance": [0.314 / (i + 1), 0.159 / (i + 1)],
        }
        for i, unit in enumerate(names)
    ]  # fmt: skip
    return {"units": found, "maps": maps, "classes": rng.integers(0, classes, n).tolist()}


def with_learned(learned, kind="glyphs-32", classes=CLASSES):
    return replace(an_ablation("layers", kind, classes=classes), learned=learned)


def modules(kind):
    return list(dict.fromkeys(place(layer).module for layer in zoo_layers(kind)))


def three(kind, n=200):
    layers = zoo_layers(kind)
    return {
        name: learning(layers, n, 10, name, level, seed)
        for seed, (name, level) in enumerate({"vae": 0.5, "denoising": 0.45, "contrastive": 0.9}.items())
    }


def points(axes):
    """Points of the panel's scatters by colour, sorted."""
    found = {}
    for part in axes.collections:
        key = tuple(part.get_facecolor()[0][:3].round(2))
        found.setdefault(key, []).extend(map(tuple, np.asarray(part.get_offsets())))
    return {key: sorted(value) for key, value in found.items() if value}


def rgb(colour):
    return tuple(np.round(to_rgb(colour), 2))


def test_every_learned_representation_has_its_pictures(tmp_path):
    names = ("vae-[512, 256]-/some/run", "vae-[512, 256]-_some_run", "$" + "v" * 300 + "$")
    layers = zoo_layers("glyphs-12")
    result = replace(a_result(("a/b",)), learned={name: learning(layers) for name in names})
    written = write_figures(result, tmp_path)
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()} == {
        "accuracy.png", "learning_curves.png", "confusion_a_b.png",
        "latent_vae-[512, 256]-_some_run.png", "latent_vae-[512, 256]-_some_run-2.png", f"latent_${'v' * 92}.png",
        "reconstruction.png", "fitting.png",
    }  # fmt: skip
    for path in written:
        pixels = imread(path)
        assert min(pixels.shape[:2]) > 200
        assert pixels[..., :3].std() > 0.01, f"{path.name} is blank"


def test_nothing_learned_is_no_picture_and_no_table():
    result = a_result()
    assert not {"reconstruction", "fitting"} & set(drawings(result))
    assert "learned" not in table_text(result)


def test_results_json_is_enough(tmp_path):
    result = with_learned({"vae": learning(zoo_layers("glyphs-32"))})
    result.learned["vae"]["units"][zoo_layers("glyphs-32")[0]]["reconstruction_error"] = math.nan
    result.write(tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    assert json.loads(text)["learned"]["vae"]["classes"] == result.learned["vae"]["classes"]
    again = read_result(tmp_path / "results.json")
    assert table_text(again) == table_text(result)
    shown = [sum(np.isfinite(line.get_ydata()).sum() for axes in reconstruction_figure(one).axes for line in axes.lines)
             for one in (result, again)]  # fmt: skip
    assert shown[0] == shown[1]


@pytest.mark.parametrize("n", [200, 990])
def test_the_latent_picture_shows_every_adapter_in_its_class_s_colour(n):
    layers = zoo_layers("sd-128")
    result = with_learned({"vae": learning(layers, n, 10)}, "sd-128")
    found = result.learned["vae"]
    figure = latent_figure(result, "vae")
    assert faults(figure) == []
    assert len(figure.axes) == 2
    for axes, one in zip(figure.axes, found["maps"], strict=True):
        wanted = {
            rgb(SERIES[code][0]): sorted(
                (x, y) for x, y, of in zip(one["x"], one["y"], found["classes"], strict=True) if of == code
            )
            for code in range(10)
        }
        assert points(axes) == wanted
        means = {line.get_color(): (line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines}
        for colour, _ in SERIES:
            assert means[colour] == pytest.approx(np.mean(wanted[rgb(colour)], axis=0))
    texts = [text for text, _ in drawn(figure)]
    assert {*CLASSES, "first principal component, 31.4 % of the variance", "second, 15.9 %"} <= {*texts}
    assert "all 128 units together" in texts
    adapters = {200: "200 of 990 adapters", 990: "990 adapters"}[n]
    assert any(f"\n{adapters} of all splits; neither" in text for text in texts)
    error = found["units"][layers[-1]]["reconstruction_error"]
    assert any(f"best reconstructed of 128 units, relative error {error:.2f}" in text for text in texts)


def test_ten_classes_differ_in_colour_and_in_marker():
    assert len({colour for colour, _ in SERIES}) == len({marker for _, marker in SERIES}) == 10


def test_of_many_classes_the_nine_most_frequent_have_colours():
    names = [f"n{i:08d}, {'a long name of a class ' * 3}{i}" for i in range(45)]
    result = with_learned({"vae": learning(zoo_layers("glyphs-12"), 300, 45)}, "glyphs-12", names)
    found = result.learned["vae"]
    found["classes"] = [int(45 * (i / 300) ** 3) for i in range(300)]
    counts = np.bincount(found["classes"], minlength=45)
    frequent = np.sort(np.argsort(-counts, kind="stable")[:9])
    figure = latent_figure(result, "vae")
    assert faults(figure) == []
    shown = points(figure.axes[0])
    sizes = {rgb(colour): counts[code] for (colour, _), code in zip(SERIES, frequent, strict=False)}
    sizes[GREY_OF_OTHERS] = 300 - counts[frequent].sum()
    assert {key: len(value) for key, value in shown.items()} == sizes
    texts = [text for text, _ in drawn(figure)]
    assert "36 other classes" in texts
    assert {text[:9] for text in texts if text.startswith("n0")} == {names[code][:9] for code in frequent}


def test_one_unit_is_one_map():
    for unit, title in (("all", "all layers as one unit"), ("lin0.lora.down.weight", "lin0 ·down")):
        result = with_learned({"vae": learning([unit])}, classes=["a", "b", "c"])
        figure = latent_figure(result, "vae")
        assert faults(figure) == []
        assert len(figure.axes) == 1
        error = result.learned["vae"]["units"][unit]["reconstruction_error"]
        assert figure.axes[0].get_title() == f"{title}\nrelative error {error:.2f}"


def test_one_latent_dimension_and_few_adapters_are_shown():
    found = learning(zoo_layers("glyphs-12"), 3)
    for one in found["maps"]:
        one |= {"y": [0.0] * 3, "variance": [1.0]}
    found["classes"] = [2, 2, 0]
    result = with_learned({"vae": found}, classes=["a", "b", "c"])
    figure = latent_figure(result, "vae")
    assert faults(figure) == []
    assert sum(map(len, points(figure.axes[0]).values())) == 3
    assert figure.axes[0].get_ylabel() == "second, – %"


def series(figure):
    """Label -> sorted values, of the lines that have one."""
    found = {}
    for axes in figure.axes:
        for line in axes.lines:
            if not line.get_label().startswith("_"):
                found.setdefault(line.get_label(), []).extend(line.get_ydata())
    return {label: sorted(map(float, values)) for label, values in found.items()}


@pytest.mark.parametrize("kind", ["glyphs-32", "sd-128", "llm-448", "flux", "counted", "toy"])
def test_reconstruction_shows_every_error_once(kind):
    result = with_learned(three(kind), kind)
    figure = reconstruction_figure(result)
    assert faults(figure) == []
    shown = series(figure)
    assert {*shown.pop("1: no better than the training mean")} == {1.0}
    wanted = {
        f"{name}, {factor}": sorted(
            known["reconstruction_error"] for unit, known in found["units"].items() if place(unit).factor == factor
        )
        for name, found in result.learned.items()
        for factor in ("down", "up")
    }
    assert shown == wanted
    low, high = figure.axes[0].get_ylim()
    assert low == 0
    assert high > max(1, *(value for values in wanted.values() for value in values))


def test_an_error_stands_at_its_block():
    result = with_learned({"vae": learning(zoo_layers("glyphs-32"))}, "glyphs-32")
    figure = reconstruction_figure(result)
    errors = {round(known["reconstruction_error"], 12): unit for unit, known in result.learned["vae"]["units"].items()}
    seen = []
    for axes in figure.axes:
        for line in axes.lines:
            for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
                if line.get_label().startswith("vae"):
                    spot = place(errors[round(y, 12)])
                    seen.append(spot)
                    assert spot.block == f"transformer_blocks.{round(x)}"
                    assert axes.get_title() == f"{spot.attention} · {spot.projection}"
    assert len(seen) == 32


def test_modules_and_all_layers_stand_beside_layers():
    learned = {
        "vae-scope-module": learning(modules("sd-128")),
        "contrastive": learning(zoo_layers("sd-128"), kind="contrastive", level=2.5),
        "denoising-scope-all": learning(["all"], kind="denoising", level=0.8),
    }
    result = with_learned(learned, "sd-128")
    figure = reconstruction_figure(result)
    assert faults(figure) == []
    shown = series(figure)
    assert {label: len(values) for label, values in shown.items()} == {
        "vae-scope-module, modules": 64, "contrastive, down": 64, "contrastive, up": 64,
        "denoising-scope-all, all layers as one unit": 8, "1: no better than the training mean": 8,
    }  # fmt: skip
    whole = learned["denoising-scope-all"]["units"]["all"]["reconstruction_error"]
    assert {*shown["denoising-scope-all, all layers as one unit"]} == {whole}


def test_only_all_layers_are_points_the_best_on_top():
    long = "contrastive-load_from-/home/somebody/outputs/2026-01-01/12-00-00-scope-all"
    learned = {
        "vae-scope-all": learning(["all"], level=0.3),
        long: learning(["all"], level=0.7),
        "denoising-scope-all": learning(["all"], level=0.5),
    }
    learned["vae-scope-all"]["units"]["all"]["reconstruction_error"] = None
    figure = reconstruction_figure(with_learned(learned))
    assert faults(figure) == []
    names = [label.get_text().replace("\n", "").replace(" ", "") for label in figure.axes[0].get_yticklabels()]
    assert names == ["vae-scope-all", long, "denoising-scope-all"]
    shown = figure.axes[0].lines[0].get_xdata()
    assert list(shown[1:]) == [learned[name]["units"]["all"]["reconstruction_error"] for name in names[1:]]


def test_twelve_representations_fit_the_pictures():
    layers = modules("sd-128")
    learned = {f"vae-beta-{i}-hidden-[512, 256]": learning(layers, level=0.1 * i + 0.2, seed=i) for i in range(12)}
    result = with_learned(learned, "sd-128")
    figure = reconstruction_figure(result)
    assert faults(figure) == []
    assert faults(fitting_figure(result)) == []
    styles = {
        line.get_label(): (line.get_color(), line.get_marker())
        for line in figure.axes[0].lines
        if line.get_label().startswith("vae")
    }
    assert len(styles) == len({*styles.values()}) == 12


def test_fitting_shows_the_median_and_the_range_of_the_losses():
    result = with_learned(three("glyphs-12"), "glyphs-12")
    figure = fitting_figure(result)
    assert faults(figure) == []
    for axes, (name, found) in zip(figure.axes, result.learned.items(), strict=True):
        assert axes.get_title() == name
        units = list(found["units"].values())
        longest = max(known["epochs"] for known in units)
        columns = []
        for epoch in range(longest):
            column = []
            for known in units:
                curve = known["learning_curve"]
                loss = curve[epoch] if epoch < len(curve) else curve[known["best_epoch"]]
                column.append(loss / curve[0])
            columns.append(column)
        middle, best = (line.get_ydata() for line in axes.lines)
        assert list(middle) == pytest.approx([statistics.median(column) for column in columns])
        assert list(best) == pytest.approx([min(k["learning_curve"]) / k["learning_curve"][0] for k in units])
        assert list(axes.lines[1].get_xdata()) == [known["best_epoch"] + 1 for known in units]
        edges = axes.collections[0].get_paths()[0].vertices[:, 1]
        assert edges.min() == pytest.approx(min(map(min, columns)))
        assert edges.max() == pytest.approx(max(map(max, columns)))


def test_one_epoch_is_a_point():
    found = learning(["all"])
    found["units"]["all"] |= {"epochs": 1, "best_epoch": 0, "learning_curve": [0.0]}
    figure = fitting_figure(with_learned({"vae": found}))
    assert faults(figure) == []
    assert list(figure.axes[0].lines[0].get_ydata()) == [0.0]


def row_of(text, name):
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [name])


def test_the_table_holds_medians_and_the_worst():
    result = with_learned(three("glyphs-12"), "glyphs-12")
    text = table_text(result).split("How well the learned representations")[1]
    rows = {name: row_of(text, name) for name in result.learned}
    for name, found in result.learned.items():
        units = list(found["units"].values())
        errors = [known["reconstruction_error"] for known in units]
        best = statistics.median(known["best_epoch"] + 1 for known in units)
        epochs = statistics.median(known["epochs"] for known in units)
        assert rows[name][1:6] == [
            "12", f"{epochs:.0f}", f"{best:.0f}", f"{statistics.median(errors):.2f}", f"{max(errors):.2f}"
        ]  # fmt: skip
    assert rows["vae"][6:] == ["–", "2/3", "2.50", "–", "–"]
    assert rows["denoising"][6:] == ["0.70", "–", "–", "–", "–"]
    assert rows["contrastive"][6:] == ["–", "–", "–", "0.25", "-3.00"]


def test_the_table_says_what_should_be_known():
    layers = zoo_layers("glyphs-12")
    found = learning(layers)
    for i, known in enumerate(found["units"].values()):
        known |= {"reconstruction_error": 0.5, "best_epoch": known["epochs"] - 1 - (i > 6), "constant_features": i % 2}
    found["units"][layers[3]]["reconstruction_error"] = 1.25
    text = " ".join(table_text(with_learned({"vae": found}, "glyphs-12")).split())
    worst = f"{place(layers[3]).module} ·up worst"
    assert f"vae: 1 of 12 units are reconstructed no better than by the mean: {worst}" in text
    assert "vae: 7 of 12 units were best in their last epoch: more epochs may help" in text
    assert "vae: 6 of 12 units have features that are the same for all adapters" in text
    for known in found["units"].values():
        known |= {"reconstruction_error": 0.5, "best_epoch": known["epochs"] - 2, "constant_features": 0}
    assert "vae:" not in table_text(with_learned({"vae": found}, "glyphs-12"))
    assert "alignment" not in table_text(with_learned({"vae": found}, "glyphs-12"))
