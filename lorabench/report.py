"""What a person sees of a result: the table and the pictures."""

import functools
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lorabench.results import METRICS, Result, Run, Statistic, Summary

__all__ = ["print_table", "table_text", "write_figures"]

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#666666"  # Okabe & Ito 2008: told apart by colour-blind readers
_WIDTH = 104
_TITLES = {
    "train_accuracy": "train acc",
    "val_accuracy": "val acc",
    "test_accuracy": "test acc",
    "test_macro_f1": "macro-F1",
    "test_auroc": "AUROC",
}


def print_table(result: Result, console: Console | None = None) -> None:
    """The table on a terminal; a narrow one is spared the training accuracy, which results.txt has."""
    console = console or Console()
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(_table(result, METRICS if console.width >= _WIDTH else METRICS[1:]))


def table_text(result: Result) -> str:
    """The table as plain text, as wide as it needs."""
    text = io.StringIO()
    Console(file=text, width=_WIDTH, no_color=True).print(_table(result, METRICS))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _table(result: Result, metrics: Sequence[str]) -> Table:
    data, split = result.dataset, result.split
    used = split["train"] + split["val"] + split["test"]
    said = f"{used}" if used == data["adapters"] else f"{used} of {data['adapters']}"
    table = Table(
        title=f"What the weights of {data['name']} say about the {result.target}",
        caption=(
            f"{said} adapters, {data['layers']} layers, {len(result.classes)} classes · "
            f"{split['train']} train / {split['val']} val / {split['test']} test\n"
            f"mean ± std over seeds, in % · chance {100 * result.chance:.1f}"
        ),
        box=box.SIMPLE_HEAD,
        caption_justify="left",
        pad_edge=False,
    )
    ablated = any(row.ablation != "none" for row in result.summary)
    table.add_column("representation", no_wrap=True)
    if ablated:
        table.add_column("ablation", no_wrap=True)
    table.add_column("features", justify="right", no_wrap=True)
    for name in metrics:
        table.add_column(_TITLES[name], justify="right", no_wrap=True)
    for row in result.summary:
        first = [escape(row.representation), escape(row.ablation)] if ablated else [escape(row.representation)]
        table.add_row(*first, str(row.features or "–"), *_cells(row, metrics))
    failed = [escape(f"{row.representation} failed: {error}") for row in result.summary for error in row.failed]
    if failed:
        table.caption = "\n".join([str(table.caption), *failed])
    return table


def _cells(row: Summary, metrics: Sequence[str]) -> list[str]:
    cells = []
    for name in metrics:
        value: Statistic = getattr(row, name)
        spread = "" if math.isnan(value.std) else f" ±{100 * value.std:4.1f}"
        cells.append("failed" if value.n == 0 and row.failed else f"{100 * value.mean:.1f}{spread}")
    return cells


def write_figures(result: Result, folder: Path, on_figure: Callable[[], None] = lambda: None) -> list[Path]:
    """Write accuracy.png, learning_curves.png and a confusion_<representation>.png each; their paths."""
    rows = [row for row in result.summary if row.test_accuracy.n]
    runs = {
        row.representation: [r for r in result.runs if r.representation == row.representation and not r.error]
        for row in rows
    }
    drawings: dict[str, Callable[[], Figure]] = {}
    if rows:
        drawings["accuracy"] = lambda: _accuracy_figure(result, rows)
        drawings["learning_curves"] = lambda: _curves_figure(runs)
    for name, members in runs.items():
        drawings[f"confusion_{name}"] = functools.partial(_confusion_figure, name, members, result.classes)
    written = []
    for name, draw in drawings.items():
        written.append(_save(draw(), folder / f"{name}.png"))
        on_figure()
    return written


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a dollar sign in a category's name is a dollar sign
    figure.savefig(path, dpi=120)
    return path


def _accuracy_figure(result: Result, rows: Sequence[Summary]) -> Figure:
    """Test accuracy with its standard deviation over seeds, the best on top, and chance."""
    ordered = sorted(rows, key=lambda row: row.test_accuracy.mean)
    figure = Figure(figsize=(7, 1.5 + 0.32 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    means = [100 * row.test_accuracy.mean for row in ordered]
    spreads = [0.0 if math.isnan(row.test_accuracy.std) else 100 * row.test_accuracy.std for row in ordered]
    places = np.arange(len(ordered))
    for seen, colour, label in ((True, _BLUE, "sees ΔW alone (gauge-invariant)"), (False, _ORANGE, "sees the factors")):
        chosen = [i for i in places if bool(ordered[i].gauge_invariant) is seen]
        if chosen:
            axes.errorbar(
                [means[i] for i in chosen], chosen, xerr=[spreads[i] for i in chosen],
                fmt="o" if seen else "s", color=colour, capsize=3, label=label,
            )  # fmt: skip
    axes.axvline(100 * result.chance, color=_GREY, linestyle="--", label="chance")
    axes.set_yticks(places, [row.representation for row in ordered])
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.set_xlim(0, 100)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel(f"test accuracy, % (mean ± std over {max(row.test_accuracy.n for row in ordered)} seeds)")
    axes.set_title(f"{result.dataset['name']}: reading the {result.target} from the weights alone", fontsize=11)
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=3)
    return figure


def _curves_figure(runs: dict[str, list[Run]]) -> Figure:
    """Training and validation loss by epoch, a panel a representation, a thin line a seed."""
    columns = min(3, len(runs))
    lines = -(-len(runs) // columns)
    figure = Figure(figsize=(3.4 * columns + 0.6, 2.5 * lines + 0.5), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (name, members) in zip(panels, runs.items(), strict=False):
        _curves(axes, members)
        axes.set_title(name, fontsize=10)
    for axes in panels[len(runs) :]:
        axes.set_axis_off()
    panels[0].legend(fontsize=8, frameon=False)
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("cross-entropy", fontsize=10)
    return figure


def _curves(axes: Axes, members: Sequence[Run]) -> None:
    for number, run in enumerate(members):
        label = number == 0
        for key, colour, name in (("train_loss", _ORANGE, "train"), ("val_loss", _BLUE, "validation")):
            losses = [row[key] for row in run.history]
            axes.plot(losses, color=colour, lw=0.8, alpha=0.7, label=name if label else None)
        best = run.history[run.best_epoch]["val_loss"]
        axes.plot(run.best_epoch, best, "o", color=_BLUE, ms=3, label="best epoch" if label else None)
    top = max(run.history[0]["val_loss"] for run in members)
    axes.set_ylim(0, 1.5 * top)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8)


def _confusion_figure(name: str, members: Sequence[Run], classes: Sequence[str]) -> Figure:
    """Test predictions over all seeds: shares of every true class, in %; numbers up to 20 classes."""
    counts = np.sum([run.confusion for run in members], axis=0)
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = min(max(4.0, 0.5 * len(classes) + 2.2), 12.0)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    few = len(classes) <= 20
    if few:
        for true, predicted in np.ndindex(shares.shape):
            value = shares[true, predicted]
            if value >= 0.5:
                colour = "white" if value > 55 else "black"
                axes.text(predicted, true, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    step = 1 if len(classes) <= 40 else -(-len(classes) // 40)
    ticks = range(0, len(classes), step)
    axes.set_xticks(ticks, [classes[i] for i in ticks], rotation=90, fontsize=8)
    axes.set_yticks(ticks, [classes[i] for i in ticks], fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{name}: test predictions, % of the true class", fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.8)
    return figure
