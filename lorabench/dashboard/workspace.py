"""The workspace: sections of panels over the names that every run logs (docs/tracking.md)."""

import importlib
import json
from types import ModuleType
from typing import Any

from lorabench.errors import LorabenchError

__all__ = ["definition_of", "names_in", "workspace_for"]

_MOST = 1000  # runs, bars or lines in a panel; the package's own default is 10, which hides runs without a word
_EPOCH = "trainer/global_step"
_MEAN = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}


def workspace_for(entity: str, project: str) -> Any:
    """A `wandb_workspaces.workspaces.Workspace` that is not saved yet.

    Its runs are grouped by representation and by `top_k`: a panel shows the mean of a group and how far it spreads.

    Args:
        entity: an account or a team.
        project: of it.

    Raises:
        LorabenchError: the extra `dashboard` is not installed.
    """
    spaces, expressions = _package("workspaces"), _package("expr")
    panels = _package("reports.v2")
    sections = {
        "Representations and top-k": _representations(panels),
        "Layer importance": _layers(panels),
        "Cost against accuracy": _costs(panels),
        "Learning curves": _curves(panels),
        "Members, confusion and failures": _members(panels),
    }
    columns = ["run:displayName", "run:state", "run:group", "config:top_k", "config:seed"]
    columns += [f"summary:{name}" for name in ("test_accuracy", "without_top/test_accuracy", "drop", "failed_members")]
    return spaces.Workspace(
        entity=entity,
        project=project,
        name="lorabench: representations",
        sections=[spaces.Section(name=name, panels=shown, is_open=True) for name, shown in sections.items()],
        settings=spaces.WorkspaceSettings(x_axis=_EPOCH, max_runs=_MOST),
        runset_settings=spaces.RunsetSettings(
            groupby=[expressions.Metric("JobType"), expressions.Config("top_k")], pinned_columns=columns
        ),
    )


def definition_of(workspace: Any) -> dict[str, Any]:
    """What is sent to W&B when a workspace is saved, as JSON has it; no network is needed."""
    view = workspace._to_model()  # noqa: SLF001 (there is no public way to it but saving)
    found: dict[str, Any] = json.loads(view.model_dump_json(by_alias=True, exclude_none=True))
    return found


def names_in(definition: dict[str, Any]) -> set[str]:
    """The names of logged numbers, pictures and tables that the panels of a definition show."""
    sections = definition["spec"]["section"]["panelBankConfig"]["sections"]
    found: set[str] = set()
    for panel in (panel for section in sections for panel in section["panels"]):
        shown = panel["config"]
        axes = [shown.get(axis, "") for axis in ("xAxis", "yAxis", "zAxis")]
        found |= {*shown.get("metrics", []), *shown.get("mediaKeys", []), *axes, *_tables_in(shown)}
    return {name.removeprefix("summary:") for name in found if name and not name.startswith("config:")}


def _tables_in(node: Any) -> set[str]:
    """Keys of the tables that a custom chart or a table panel asks for."""
    if isinstance(node, list):
        return {name for one in node for name in _tables_in(one)}
    if not isinstance(node, dict):
        return set()
    if node.get("name") == "tableKey":
        return {node["value"]}
    key = node.get("inputs", {}).get("key", {}) if node.get("name") == "pick" else {}
    here = {key["val"]} if key.get("nodeType") == "const" and key.get("val") != "summary" else set()
    return here | {name for one in node.values() for name in _tables_in(one)}


def _representations(panels: ModuleType) -> list[Any]:
    left = "without_top/test_accuracy"
    return [
        _bars(panels, "Test accuracy without the best top_k layers, by representation and top_k", left),
        _bars(panels, "Test accuracy of all layers, by representation", "test_accuracy", panels.Metric("JobType")),
        _bars(panels, "Test accuracy without the best top_k layers, by top_k", left, panels.Config("top_k")),
        panels.ScatterPlot(title="Without the best top_k layers", x=panels.Config("top_k"), y=left),
        _bars(panels, "What the best top_k layers are worth", "drop"),
        _bars(panels, "Macro F1 of all layers", "test_macro_f1", panels.Metric("JobType")),
    ]


def _layers(panels: ModuleType) -> list[Any]:
    return [
        panels.MediaBrowser(title="Layers, best first", media_keys=["pictures/layer_importance"], num_columns=2),
        _chart(panels, "layer_importance", "wandb/bar/v0", {"label": "layer", "value": "accuracy"}),
        panels.WeavePanelSummaryTable(table_name="layer_importance"),
        _bars(panels, "How far seeds or splits agree on the order (Kendall's tau)", "ranking_stability"),
    ]


def _costs(panels: ModuleType) -> list[Any]:
    costs = {"seconds": "Seconds", "peak_memory_mb": "Peak memory, MB", "features": "Length of the features"}
    return [
        panels.ScatterPlot(title=f"{title} and test accuracy", x=name, y="test_accuracy", log_x=True)
        for name, title in costs.items()
    ]


def _curves(panels: ModuleType) -> list[Any]:
    titles = {
        "val_loss": "Validation loss",
        "train_loss": "Training loss",
        "val_accuracy": "Validation accuracy",
        "learning_rate": "Learning rate",
    }
    return [
        panels.LinePlot(
            title=f"{title}: mean, lowest and highest member",
            x=_EPOCH,
            y=[f"curves/{name}{end}" for end in ("", "_low", "_high")],
            title_x="epoch",
            max_runs_to_show=_MOST,
        )
        for name, title in titles.items()
    ]


def _members(panels: ModuleType) -> list[Any]:
    pairs = {name: name for name in ("Actual", "Predicted", "nPredictions")}
    return [
        _chart(panels, "confusion_matrix_table", "wandb/confusion_matrix/v1", pairs),
        panels.WeavePanelSummaryTable(table_name="member_results"),
        _bars(panels, "Members that ended well", "members"),
        _bars(panels, "Members that failed", "failed_members"),
    ]


def _bars(panels: ModuleType, title: str, metric: str, by: Any = None) -> Any:
    most = {"max_runs_to_show": _MOST, "max_bars_to_show": _MOST}
    return panels.BarPlot(title=title, metrics=[metric], groupby=by, **_MEAN, **most)


def _chart(panels: ModuleType, table: str, name: str, fields: dict[str, str]) -> Any:
    query = {"summaryTable": {"tableKey": table}}
    return panels.CustomChart(query=query, chart_name=name, chart_fields=fields, chart_strings={"title": table})


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"wandb_workspaces.{name}")
    except ModuleNotFoundError as error:
        raise LorabenchError(
            "lorabench dashboard needs the package wandb-workspaces, which is not installed: pip install "
            "'lorabench[dashboard]'"
        ) from error
