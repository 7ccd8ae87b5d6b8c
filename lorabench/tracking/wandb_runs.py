"""One W&B run a job: how it is opened, resumed under its id, and finished."""

import json
import logging
import os
import secrets
import shutil
from pathlib import Path
from typing import Annotated, Any

import wandb
from pytorch_lightning.loggers import WandbLogger

from lorabench.errors import LorabenchError
from lorabench.jobs import sweep_of
from lorabench.options import OneOf, check_arguments
from lorabench.storage import replace_file
from lorabench.text import to_json
from lorabench.tracking.opening import Opened
from lorabench.tracking.server import address, has_key, is_reachable

__all__ = ["SENT_LATER", "close_wandb", "wandb_logger"]

_LOG = logging.getLogger(__name__)
_LONGEST = 64  # letters of a tag or a job type
_PATIENCE = 600.0  # seconds for what is not sent when a run ends; W&B's own default is to wait for ever
_HEADER = 7  # bytes that every run file begins with
_NOTE = "wandb_run.json"
SENT_LATER = "`wandb sync` with the run's wandb folder sends all later"


def wandb_logger(
    run: Opened,
    project: str,
    entity: str | None = None,
    group: str | None = None,
    mode: Annotated[str, OneOf(["auto", "online", "offline"])] = "auto",
) -> WandbLogger:
    """One W&B run a job; offline where there is no key, no network, or W&B refuses, unless told otherwise.

    Its id stands in `wandb_run.json`, and stays that of a run in the same folder that has not ended well, as long as
    the configuration and the code are the same and `rerun=true` is not asked for.

    Args:
        run: what it is opened for.
        project: W&B's; made where there is none.
        entity: an account or a team; None: the key's own.
        group: of runs that belong together; None: the id of the sweep that the run is a job of, if there is one.
        mode: online, offline, or whichever can be had.

    Raises:
        LorabenchError: mode is none of these, online was asked for without a key, or W&B refuses.
    """
    check_arguments(wandb_logger, {"mode": mode}, "logger.")
    if mode == "online" and not has_key():
        raise LorabenchError(
            "logger.mode=online needs a key: set WANDB_API_KEY or run `wandb login`, or take mode=auto"
        )
    options: dict[str, Any] = {"project": project, "entity": entity, "group": group or sweep_of(run.folder)}
    if mode == "online":
        return WandbLogger(experiment=_opened(run, "online", options))
    if mode == "auto" and os.environ.get("WANDB_MODE", "online") == "online" and has_key() and is_reachable():
        try:
            return WandbLogger(experiment=_opened(run, "online", options))
        except LorabenchError as error:
            _LOG.warning("%s", error)
    _LOG.warning("W&B is offline; `wandb sync %s/wandb/offline-run-*` uploads this run later", run.folder)
    return WandbLogger(experiment=_opened(run, "offline", options))


def _opened(run: Opened, mode: str, options: dict[str, Any]) -> wandb.Run:
    """A W&B run.

    Raises:
        LorabenchError: W&B refuses.
    """
    settings: dict[str, Any] = {"silent": True, "console": "off", "finish_timeout_raises": True}
    if "WANDB_FINISH_TIMEOUT" not in os.environ:
        settings["finish_timeout"] = _PATIENCE
    before = _places(run.folder)
    try:
        # Lightning's own call of `init` passes a setting that wandb warns about.
        opened = wandb.init(
            name=run.name,
            dir=run.folder,
            id=_run_id(run),
            resume="allow",
            job_type=run.job_type[:_LONGEST] or None,
            tags=[tag[:_LONGEST] for tag in run.tags if tag],
            mode=mode,  # type: ignore[arg-type]
            settings=wandb.Settings(**settings),
            reinit="finish_previous",
            **options,
        )
    except wandb.Error as error:
        wandb.teardown()  # else the id stays in use, and this process cannot go on offline under it
        for place in _places(run.folder) - before:  # of a run that has not begun
            shutil.rmtree(place, ignore_errors=True)
        said = ", ".join(f"logger.{name}={value}" for name, value in options.items() if value is not None)
        raise LorabenchError(
            f"{said}: W&B at {address()} refuses: {str(error).rstrip('. ')}. Check that the project and the "
            "entity are spelled as there and that the key (WANDB_API_KEY or `wandb login`) may write to them, or take "
            "logger.mode=offline"
        ) from error
    opened.define_metric("trainer/global_step", hidden=True)
    opened.define_metric("*", step_metric="trainer/global_step")  # as Lightning does: the epoch
    return opened


def close_wandb(folder: Path, failed: bool) -> None:
    """Finish the W&B run of a folder's run; what cannot be sent costs a warning."""
    try:
        wandb.finish(exit_code=int(failed))
    except (wandb.Error, TimeoutError) as error:
        _LOG.warning("W&B has not got all of the run in %s (%s). %s", folder, error, SENT_LATER)
    if not failed:
        note = _note(folder)
        if note:
            replace_file(folder / _NOTE, f"{to_json({**note, 'ended': True})}\n")


def _run_id(run: Opened) -> str:
    """That of the run that goes on in this folder, or a new one, which is written there."""
    known = _note(run.folder)
    goes_on = known.get("configuration") == run.key and not known.get("ended") and not run.fresh
    if goes_on and isinstance(known.get("id"), str):
        _drop_empty(run.folder, known["id"])
        return str(known["id"])
    new = secrets.token_hex(6)
    replace_file(run.folder / _NOTE, f"{to_json({'id': new, 'configuration': run.key, 'ended': False})}\n")
    return new


def _places(folder: Path) -> set[Path]:
    """The folders of the W&B runs of a run; several of one id where it went on."""
    return set((folder / "wandb").glob("*run-*-*"))


def _drop_empty(folder: Path, run_id: str) -> None:
    """Remove what a killed run has left without a record: `wandb sync` would refuse all for the sake of such a file."""
    for place in (folder / "wandb").glob(f"offline-run-*-{run_id}"):
        file = place / f"run-{run_id}.wandb"
        if not file.exists() or file.stat().st_size <= _HEADER:
            shutil.rmtree(place, ignore_errors=True)


def _note(folder: Path) -> dict[str, Any]:
    try:
        data = json.loads((folder / _NOTE).read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
