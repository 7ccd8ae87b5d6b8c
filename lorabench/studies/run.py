"""A study from its settings to its report: every training once, kept as it ends, and gone on with after a kill."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lorabench.evaluation.journal import Journal, digest
from lorabench.pictures import house_style, save_picture
from lorabench.storage import files_hash, replace_file
from lorabench.studies.models import Base, load_base
from lorabench.studies.study import Report, Study
from lorabench.studies.training import Outcome, Setting, train
from lorabench.text import table, to_json

__all__ = ["run_study"]

_LOG = logging.getLogger("lorabench.studies")
_KEPT = "studies/outcomes.jsonl"


def run_study(
    study: Study, name: str, model: str, folder: Path, cache: Path | None, say: Callable[[str], None]
) -> Report:
    """Run what is not kept yet, and write results.json, results.txt and NAME.png into a folder.

    Args:
        study: which.
        name: of its files.
        model: of the base.
        folder: for what it writes.
        cache: where outcomes are kept by their settings, the model and the code; None keeps nothing.
        say: takes a line for every training.

    Raises:
        LorabenchError: the model or the texts are not there.
    """
    base = load_base(model)
    settings = list(dict.fromkeys(study.settings(base)))
    outcomes = _outcomes(settings, base, Journal(None if cache is None else cache / _KEPT), say)
    report = study.report(outcomes, base)
    _write(study, name, base, outcomes, report, folder)
    return report


def _outcomes(
    settings: list[Setting], base: Base, journal: Journal, say: Callable[[str], None]
) -> dict[Setting, Outcome]:
    here, package = Path(__file__).parent, Path(__file__).parents[1]
    own = [here / f"{name}.py" for name in ("models", "tasks", "training")]
    code = files_hash(*sorted([package / "lowrank.py", *own, *(package / "health").glob("*.py")]))
    found, started, done = {}, time.monotonic(), 0
    for place, setting in enumerate(settings, start=1):
        key = digest(setting=asdict(setting), model=base.name, code=code, torch=torch.__version__)
        record = journal.get(key)
        if record is None:
            outcome = train(base, setting)
            journal.add(key, outcome.as_dict())
            done += 1
            left = (time.monotonic() - started) / done * (len(settings) - place)
            say(f"[{place}/{len(settings)}] {_told(setting)}: accuracy {outcome.accuracy:.3f}, about {left:.0f} s left")
        else:
            outcome = Outcome(**record)
            say(f"[{place}/{len(settings)}] {_told(setting)}: accuracy {outcome.accuracy:.3f}, kept")
        found[setting] = outcome
    return found


def _told(setting: Setting) -> str:
    """What sets it apart from the usual."""
    usual = asdict(Setting())
    own = {key: value for key, value in asdict(setting).items() if value != usual[key] and key != "pattern"}
    words = " ".join(f"{key}={value}" for key, value in own.items() if key not in ("steps", "train", "test", "every"))
    return words + (" pattern" if setting.pattern else "")


def _write(
    study: Study, name: str, base: Base, outcomes: Mapping[Setting, Outcome], report: Report, folder: Path
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {
        "study": name,
        "options": asdict(study),
        "model": base.name,
        "versions": {package: version(package) for package in ("lorabench", "torch", "peft", "transformers")},
        "says": report.says,
        "numbers": report.numbers,
        "trainings": [{"setting": asdict(one), "outcome": outcome.as_dict()} for one, outcome in outcomes.items()],
    }
    replace_file(folder / "results.json", f"{to_json(data, indent=1)}\n")
    replace_file(folder / "results.txt", f"{report_text(report)}\n")
    with house_style():
        save_picture(study.figure(outcomes), folder / f"{name}.png")


def report_text(report: Report) -> str:
    """The table and what it says."""
    return "\n".join([table(report.columns, report.rows, numbers=report.columns[1:]), "", *report.says])
