"""Alerts: what the rules say of the modules of an adapter, gathered rule by rule, without flapping."""

import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from lorabench.adapters.reading.opening import explain_reading
from lorabench.errors import LorabenchError
from lorabench.health.metrics import LoRAAdapterMetrics
from lorabench.health.rules import rules
from lorabench.health.rules.base import Look, Rule, Thresholds
from lorabench.health.trajectory import Snapshot, packed, unpacked
from lorabench.text import counted

__all__ = ["SEVERITIES", "Alert", "Watch", "read_thresholds"]

SEVERITIES = ("note", "warning", "error")
"""From the least to the gravest."""
_DEFAULTS = Path(__file__).with_name("thresholds.yaml")
_ENDLESS = 1e300
_FIELDS = {
    "limits": (dict,),
    "clear": (int, float),
    "asked": (bool,),
    "after": (int,),
    "window": (int,),
    "most": (str, type(None)),
}


@dataclass(frozen=True)
class Alert:
    """What one rule says.

    Attributes:
        rule: its name.
        severity: "note", "warning" or "error".
        modules: of which it speaks, the worst first.
        judged: how many modules it could judge.
        value: of the worst.
        limit: the one that was passed.
        message: what is so, with the worst module's numbers.
        action: what to do.
        source: where the limit comes from.
        step: of the training; None of a file that stands alone.
        new: whether the look before had not raised it, or less gravely.
        unit: what `step` counts (see `lorabench.health.trajectory.Snapshot`).
    """

    rule: str
    severity: str
    modules: tuple[str, ...]
    judged: int
    value: float
    limit: float
    message: str
    action: str
    source: str
    step: int | None = None
    new: bool = True
    unit: str = "step"


class Watch:
    """The rules over a series of looks at one adapter, or over one look at a file.

    A rule that has spoken of a module goes on until the value has gone back by the threshold's `clear`.

    Args:
        thresholds: rule -> its limits; of a rule that is not there, and None: those of thresholds.yaml.
        names: rules that are asked, whether they are on or not; None: those that are asked without.
        most: looks that are kept; of more, every second of the older half is let go. None: all.

    Attributes:
        standing: rules that have spoken, and have not since judged a module without speaking of any.

    Raises:
        LorabenchError: there is no rule of such a name.
    """

    def __init__(
        self,
        thresholds: Mapping[str, Thresholds] | None = None,
        names: Collection[str] | None = None,
        most: int | None = None,
    ) -> None:
        self.thresholds = {**read_thresholds(), **(thresholds or {})}
        unknown = sorted({*(names or ()), *self.thresholds} - rules().keys())
        if unknown:
            raise LorabenchError(f"rule {', '.join(unknown)}: there is none. Rules are {', '.join(rules())}.")
        self.names = [
            name for name in rules() if (self.thresholds[name].asked if names is None else name in set(names))
        ]
        self.standing: set[str] = set()
        self._most = most
        self._snapshots: list[Snapshot] = []
        self._past: dict[str, list[tuple[int, LoRAAdapterMetrics]]] = {}
        self._raised: dict[tuple[str, str], str] = {}
        self._before: dict[str, str] = {}

    @property
    def snapshots(self) -> Sequence[Snapshot]:
        """The looks so far that are kept."""
        return self._snapshots

    def state_dict(self) -> dict[str, Any]:
        """What was raised, and the looks that are kept, in plain types; a training goes on from it."""
        return {
            "raised": [[rule, module, severity] for (rule, module), severity in self._raised.items()],
            "before": dict(self._before),
            "snapshots": [packed(snapshot) for snapshot in self._snapshots],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: it gave something else.
        """
        snapshots = [unpacked(one) for one in state["snapshots"]]
        self._raised = {(rule, module): severity for rule, module, severity in state["raised"]}
        self._before = dict(state["before"])
        self._snapshots, self._past = [], {}
        for one in snapshots:
            self._keep(one)

    def look(self, snapshot: Snapshot, last: bool = False) -> list[Alert]:
        """What there is to say now, the gravest first; what was said before is not `new`.

        Args:
            snapshot: later than those before.
            last: whether none comes after it: then no rule waits for a later step.
        """
        step = snapshot.step
        looks = {name: Look(row, step, self._past.get(name, ()), snapshot.unit) for name, row in snapshot.rows.items()}
        last = last or snapshot.unit != "step"
        alerts = [alert for name in self.names if (alert := self._ask(name, looks, step, last)) is not None]
        self._keep(snapshot)
        self._before = {alert.rule: alert.severity for alert in alerts}
        return sorted(alerts, key=lambda alert: -SEVERITIES.index(alert.severity))

    def _keep(self, snapshot: Snapshot) -> None:
        self._snapshots.append(snapshot)
        kept = [snapshot]
        if self._most is not None and len(self._snapshots) > self._most:
            half = self._most // 2
            kept = self._snapshots = [*self._snapshots[:half:2], *self._snapshots[half:]]
            self._past = {}
        for one in kept:
            for name, row in one.rows.items():
                self._past.setdefault(name, []).append((one.step or 0, row))

    def _ask(self, name: str, looks: Mapping[str, Look], step: int | None, last: bool) -> Alert | None:
        rule, thresholds = rules()[name], self.thresholds[name]
        if step is not None and step < thresholds.after and not last:
            return None
        values = {module: rule.measure(look, thresholds) for module, look in looks.items()}
        judged = {module: value for module, value in values.items() if value is not None}
        raised = {
            module: severity for module, value in judged.items() if (severity := self._severity(name, module, value))
        }
        for module in looks:
            self._raised.pop((name, module), None)
        self._raised |= {(name, module): severity for module, severity in raised.items()}
        if not raised:
            self.standing -= {name} if judged else set()
            return None
        self.standing.add(name)
        severity = max(raised.values(), key=SEVERITIES.index)
        limit = float(thresholds.limits[severity])
        if thresholds.most and len(raised) > len(judged) / 2:
            severity = max(severity, thresholds.most, key=SEVERITIES.index)
        ordered = sorted(raised, key=lambda module: judged[module], reverse=rule.above)
        message = rule.words(looks[ordered[0]], judged[ordered[0]])
        if len(judged) > 1:
            message = f"{len(ordered)} of {counted(len(judged), 'module')}: {message}"
        worse = SEVERITIES.index(severity) > SEVERITIES.index(self._before[name]) if name in self._before else True
        return Alert(
            name, severity, tuple(ordered), len(judged), judged[ordered[0]], limit, message, rule.action, rule.source,
            step, worse, next(iter(looks.values())).unit,
        )  # fmt: skip

    def _severity(self, name: str, module: str, value: float) -> str | None:
        """The gravest limit that is passed, or that was and is not cleared."""
        rule, thresholds = rules()[name], self.thresholds[name]
        was = self._raised.get((name, module))
        passed = [
            severity
            for severity, limit in thresholds.limits.items()
            if _passes(rule, value, limit, thresholds.clear if was and _as_grave(was, severity) else 1.0)
        ]
        return max(passed, key=SEVERITIES.index, default=None)


def _as_grave(was: str, severity: str) -> bool:
    return SEVERITIES.index(was) >= SEVERITIES.index(severity)


def _passes(rule: Rule, value: float, limit: float | int, clear: float | int) -> bool:
    return value > limit * clear if rule.above else value < limit / clear


def read_thresholds(path: Path | None = None) -> dict[str, Thresholds]:
    """The thresholds of all rules, with what a file of one's own says in place of it.

    Args:
        path: a yaml file of the form of `lorabench/health/thresholds.yaml`, of any part of it; None: none.

    Raises:
        LorabenchError: it cannot be read, or says something else.
    """
    thresholds = dict(_defaults())
    if path is None:
        return thresholds
    for name, entry in _parsed(path).items():
        if name not in thresholds:
            raise LorabenchError(f"{path}: {name} is no rule. Rules are {', '.join(thresholds)}.")
        thresholds[name] = _updated(path, name, thresholds[name], entry)
    return thresholds


@lru_cache
def _defaults() -> Mapping[str, Thresholds]:
    return {name: _updated(_DEFAULTS, name, Thresholds({}), entry) for name, entry in _parsed(_DEFAULTS).items()}


def _parsed(path: Path) -> dict[Any, Any]:
    with explain_reading(path):
        text = path.read_bytes()
    try:
        found = yaml.safe_load(text)
    # What is tagged or written as a date, a number or a truth and is none raises what Python's own types raise.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise LorabenchError(f"{path}: no yaml ({' '.join(str(error).split())[:160]}). Repair it.") from error
    if not isinstance(found, dict):
        raise LorabenchError(
            f"{path}: rules with their limits are expected, as `dominating: {{limits: {{error: 0.4}}}}`."
        )
    return found


def _updated(path: Path, name: str, thresholds: Thresholds, entry: object) -> Thresholds:
    if not isinstance(entry, dict) or not entry.keys() <= _FIELDS.keys():
        raise LorabenchError(f"{path}: {name} takes {', '.join(_FIELDS)}, and {reprlib.repr(entry)} came.")
    for key, value in entry.items():
        right = isinstance(value, _FIELDS[key]) and (key == "asked" or not isinstance(value, bool))
        if not right or (key in ("after", "window") and value < 0):
            raise LorabenchError(
                f"{path}: {name}.{key} is {reprlib.repr(value)}; see lorabench/health/thresholds.yaml for its form."
            )
    limits, most = entry.get("limits", thresholds.limits), entry.get("most")
    right = set(limits) <= set(SEVERITIES) and all(map(_is_limit, limits.values()))
    if not right or not limits or (most is not None and most not in SEVERITIES):
        raise LorabenchError(
            f"{path}: {name}: limits and most are by severity ({', '.join(SEVERITIES)}), and limits finite "
            f"numbers from 0 on; {reprlib.repr(entry)} came."
        )
    if not 0 < entry.get("clear", 1.0) <= 1:
        raise LorabenchError(f"{path}: {name}.clear is {entry['clear']!r}; a number above 0, at most 1, is allowed.")
    return replace(thresholds, **{**entry, "limits": {severity: float(limit) for severity, limit in limits.items()}})


def _is_limit(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _ENDLESS  # not of NaN
