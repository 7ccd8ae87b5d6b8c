"""Figures of the panels, as options of ECharts; the numbers come from the toolkit."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorabench.adapters.resizing.preview import Foreseen

__all__ = ["bars", "error_curve", "heat_map", "lines", "scatter"]

_MIB, _LONGEST = 2**20, 34
_BLUE, _ORANGE = "#3b5bdb", "#e8590c"
_GREY = "#868e96"  # to be read on white and on black
_LINES = {
    "axisLabel": {"color": _GREY}, "nameTextStyle": {"color": _GREY},
    "splitLine": {"lineStyle": {"color": _GREY, "opacity": 0.3}},
}  # fmt: skip
_TEXT = {"textStyle": {"color": _GREY}}


def error_curve(curve: "Sequence[Foreseen]", chosen: "Foreseen") -> dict[str, Any]:
    """Error against the size of the weights: uniform ranks as a line, each written at its place, and what is chosen."""
    line = [[one.weight_bytes / _MIB, 100 * one.error] for one in curve]
    points = [
        {
            "value": pair,
            "name": f"rank {rank}",
            "symbol": "circle",
            "symbolSize": 5,
            "label": {"show": True, "formatter": str(rank), "position": "top", "color": _GREY, "fontSize": 10},
        }
        for rank, pair in enumerate(line, 1)
    ]
    point = [[chosen.weight_bytes / _MIB, 100 * chosen.error]]
    return {
        **_base("error (%) by rank and size (MiB)"),
        "tooltip": {"trigger": "item"},
        "legend": {"bottom": 0, **_TEXT},
        "xAxis": {"type": "value", "name": "MiB", "nameLocation": "middle", "nameGap": 24, **_LINES},
        "yAxis": {"type": "value", **_LINES},
        "series": [
            {
                "name": "one rank for all",
                "type": "line",
                "data": points,
                "itemStyle": {"color": _BLUE},
                "labelLayout": {"hideOverlap": True},
            },
            {"name": "chosen", "type": "scatter", "symbolSize": 16, "data": point, "itemStyle": {"color": _ORANGE}},
        ],
    }


def bars(title: str, values: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """Names with a number each, the first on top."""
    return {
        **_base(title),
        "tooltip": {"trigger": "item"},
        "grid": {"containLabel": True, "left": 8, "right": 24, "top": 36, "bottom": 8},
        "xAxis": {"type": "value", **_LINES},
        "yAxis": {
            "type": "category",
            "inverse": True,
            "data": [_ends(name) for name, _ in values],
            "axisLabel": {"color": _GREY, "fontSize": 10},
        },
        "series": [{"type": "bar", "data": [round(value, 6) for _, value in values], "itemStyle": {"color": _BLUE}}],
    }


def lines(
    title: str, series: Mapping[str, Sequence[float | None]], places: Sequence[object] | None = None
) -> dict[str, Any]:
    """Numbers by their place, which is counted from 1 unless it has names."""
    longest = max((len(values) for values in series.values()), default=0)
    return {
        **_base(title),
        "tooltip": {"trigger": "axis"},
        "legend": {"bottom": 0, **_TEXT},
        "grid": {"containLabel": True, "left": 8, "right": 16, "top": 36, "bottom": 32},
        "xAxis": {"type": "category", "data": list(places or range(1, 1 + longest)), "axisLabel": {"color": _GREY}},
        "yAxis": {"type": "value", "scale": True, **_LINES},
        "series": [{"name": name, "type": "line", "data": list(values)} for name, values in series.items()],
    }


def scatter(title: str, points: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Named points."""
    data = [
        {
            "name": name,
            "value": list(place),
            "label": {"show": len(points) <= 30, "formatter": "{b}", "position": "top"},
        }
        for name, place in points.items()
    ]
    axis = {"type": "value", "scale": True, **_LINES}
    return {
        **_base(title),
        "tooltip": {"trigger": "item", "formatter": "{b}: {c}"},
        "grid": {"containLabel": True, "left": 24, "right": 24, "top": 56, "bottom": 32},
        "xAxis": {**axis, "name": "component 1", "nameLocation": "middle", "nameGap": 24},
        "yAxis": {**axis, "name": "component 2", "nameLocation": "middle", "nameGap": 36},
        "series": [{"type": "scatter", "symbolSize": 12, "data": data, "itemStyle": {"color": _BLUE}}],
    }


def heat_map(title: str, rows: Sequence[str], values: Sequence[Sequence[float]], low: float = 0.0) -> dict[str, Any]:
    """A number for each row and place."""
    cells = [[x, y, value] for y, row in enumerate(values) for x, value in enumerate(row)]
    high = max((value for _, _, value in cells), default=1.0)
    width = max(map(len, values), default=0)
    return {
        **_base(title),
        "tooltip": {"position": "top"},
        "grid": {"containLabel": True, "left": 8, "right": 16, "top": 36, "bottom": 64},
        "xAxis": {"type": "category", "data": list(range(1, width + 1)), "axisLabel": {"color": _GREY}},
        "yAxis": {
            "type": "category",
            "inverse": True,
            "data": [_ends(row) for row in rows],
            "axisLabel": {"color": _GREY, "fontSize": 10},
        },
        "visualMap": {
            "min": low, "max": high, "calculable": True, "precision": 3,
            "orient": "horizontal", "left": "center", "bottom": 0,
            "textStyle": {"color": _GREY}, "inRange": {"color": ["#f8f9fa", _BLUE] if low == 0 else
                [_ORANGE, "#f8f9fa", _BLUE]},
        },
        "series": [{"type": "heatmap", "data": cells}],
    }  # fmt: skip


def _ends(name: str) -> str:
    """Both ends of a name, by which modules differ."""
    name = name.removesuffix(".weight").replace(".lora.", " ")
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2]}…{name[1 - _LONGEST // 2 :]}"


def _base(title: str) -> dict[str, Any]:
    return {
        "animation": False,
        "backgroundColor": "transparent",
        "title": {"text": title, "textStyle": {"fontSize": 13, "color": _GREY}},
        "grid": {"containLabel": True, "left": 8, "right": 24, "top": 48, "bottom": 40},
        "aria": {"enabled": True},
    }
