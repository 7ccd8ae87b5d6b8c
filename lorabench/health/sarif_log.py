"""Audits as SARIF 2.1.0 (OASIS 2020), which code hosts show beside the files."""

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lorabench.health.auditing import Audit
from lorabench.health.rules import rules

__all__ = ["sarif"]

_UNREADABLE = "unreadable"


def sarif(audits: Sequence[Audit]) -> dict[str, Any]:
    """The log of one run: every rule, and a result for every alert and every file that could not be read."""
    described = [
        {
            "id": name,
            "shortDescription": {"text": (rule.__class__.__doc__ or name).strip().split("\n")[0]},
            "help": {"text": f"{rule.action} Threshold: {rule.source}."},
        }
        for name, rule in rules().items()
    ]
    described.append({"id": _UNREADABLE, "shortDescription": {"text": "The file cannot be read as an adapter."}})
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "lorabench", "version": version("lorabench"), "rules": described}},
                "results": [result for one in audits for result in _results(one)],
            }
        ],
    }


def _results(one: Audit) -> list[dict[str, Any]]:
    file = one.files[-1]
    if one.unreadable is not None:
        return [_result(_UNREADABLE, "error", one.unreadable, file, ())]
    results = [_result(_UNREADABLE, "error", reason, path, ()) for path, reason in one.skipped.items()]
    for alert in one.alerts:
        severity = "note" if alert.rule in one.ceased else alert.severity
        results.append(_result(alert.rule, severity, f"{alert.message}. {alert.action}", file, alert.modules))
    return results


def _result(rule: str, severity: str, text: str, file: Path, modules: Sequence[str]) -> dict[str, Any]:
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": quote(os.fsencode(file.as_posix()))}}}
    if modules:
        location["logicalLocations"] = [{"fullyQualifiedName": name, "kind": "module"} for name in modules]
    return {"ruleId": rule, "level": severity, "message": {"text": text}, "locations": [location]}
