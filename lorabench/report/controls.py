"""The controls and the ceiling of a comparison: their table, and their lines in its pictures."""

from matplotlib.axes import Axes

from lorabench.pictures import GREEN, GREY
from lorabench.report.numbers import difference, interval, method, p_value, percent, spread
from lorabench.report.sheet import Sheet
from lorabench.results import Result, claimed

__all__ = ["controls_sheet", "draw_controls"]


def controls_sheet(result: Result) -> Sheet:
    """Every control and the ceiling, and which representations are above the best control."""
    found = result.ablation["controls"]
    rows = []
    for row in found["rows"]:
        accuracy = row["accuracy"] or {}
        known = percent(accuracy["mean"]) + spread(accuracy["std"]) if accuracy else "failed"
        rows.append((row["name"], known + interval(accuracy), row["text"]))
    said = [
        f"{row['representation']} {'reads' if row['above'] else 'is not shown to read'} the {result.target} above the "
        f"best control ({row['best']}): {difference(row['difference'], claimed(row))}, p {p_value(row['holm'])} (Holm)"
        for row in found["above"]
    ]
    return Sheet(
        title="Controls and ceiling: the same classifier, members and splits",
        columns=("control", "test acc [95 %]", "it reads"),
        rows=rows,
        caption=[
            *said,
            *(f"differences in points, paired; interval and p are {method(row)}" for row in found["above"][:1]),
            *(f"{row['name']} failed: {row['error']}" for row in found["rows"] if row.get("error")),
        ],
        text=("control", "it reads"),
        spare=("it reads",),
    )


def draw_controls(axes: Axes, result: Result) -> None:
    """Upright lines at the best control and at the ceiling, where they are known."""
    rows = [row for row in (result.ablation.get("controls") or {}).get("rows", ()) if row["accuracy"]]
    controls = [row for row in rows if row["kind"] == "control"]
    if controls:
        best = max(controls, key=lambda row: float(row["accuracy"]["mean"]))
        axes.axvline(100 * best["accuracy"]["mean"], color=GREY, linestyle=":", label=f"best control: {best['name']}")
    for row in rows:
        if row["kind"] == "ceiling":
            axes.axvline(100 * row["accuracy"]["mean"], color=GREEN, linestyle="-.", label=f"ceiling: {row['text']}")
