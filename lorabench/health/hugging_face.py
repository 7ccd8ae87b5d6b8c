"""The monitor as a callback of transformers' Trainer."""

import base64
import json
import logging
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lorabench.errors import LorabenchError
from lorabench.health.monitor import Log, Monitor
from lorabench.health.rules.base import Thresholds

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise LorabenchError(
        "HuggingFaceMonitor needs transformers, which is not installed: pip install transformers, or call "
        "lorabench.health.Monitor in your own loop."
    ) from error

__all__ = ["HuggingFaceMonitor"]

_LOGGER = logging.getLogger("lorabench.health")
_LOOKS = "looks"  # beside what transformers reads of a callback's state


class HuggingFaceMonitor(TrainerCallback, ExportableState):
    """Looks at the LoRA modules every few steps of the optimiser, while the gradients of the step are at hand.

    Numbers go into the trainer's history (`trainer.state.log_history`, `trainer_state.json`); a callback cannot reach
    the services of `report_to`, so give `log` for those: `log=lambda values, step: wandb.log(values)`. Several
    callbacks of one class share a training badly, says transformers, so one monitor watches all adapters. A checkpoint
    holds what a resumed training needs (`trainer_state.json`), and the monitor that is given to it goes on from there.

    Args:
        every: optimiser steps from one look to the next.
        adapter: see `Monitor`, as are all that follow.
        thresholds: see `Monitor`.
        rules: see `Monitor`.
        on_alert: "stop" sets `control.should_training_stop`, on all processes at once.
        out: see `Monitor`.
        log: see `Monitor`.
        base: see `Monitor`.

    Attributes:
        monitor: that does the work.

    Raises:
        LorabenchError: an argument is none of these, or transformers is not installed.
    """

    def __init__(
        self,
        every: int = 10,
        adapter: str | None = None,
        thresholds: Mapping[str, Thresholds] | None = None,
        rules: Collection[str] | None = None,
        on_alert: str = "log",
        out: Path | str | None = None,
        log: Log | None = None,
        base: bool = False,
    ) -> None:
        self._given_log = log
        self._state: TrainerState | None = None
        self._arguments = {
            "every": every,
            "adapter": adapter,
            "rules": None if rules is None else list(rules),
            "on_alert": on_alert,
            "out": None if out is None else str(out),
            "base": base,
        }
        self._unsaved = [name for name, given in (("thresholds", thresholds), ("log", log)) if given is not None]
        self.monitor = Monitor(every, adapter, thresholds, rules, on_alert, out, self._log, base)

    def state(self) -> dict[str, Any]:
        """For the checkpoint, in types that JSON has."""
        looks = zlib.compress(json.dumps(self.monitor.state_dict()).encode())
        return {
            "args": self._arguments,
            "attributes": {},
            "unsaved": self._unsaved,
            _LOOKS: base64.b64encode(looks).decode(),
        }

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on from the checkpoint that a training is resumed from; one that begins has nothing before it."""
        del control, kwargs
        states: Any = state.stateful_callbacks
        # Of a training without a monitor; transformers does not save what it does not find.
        saved = states.setdefault(type(self).__name__, {})
        if not state.global_step:
            self.monitor.start()
        if not state.global_step or _LOOKS not in saved:
            return
        self.monitor.resume(lambda: json.loads(zlib.decompress(base64.b64decode(saved[_LOOKS]))))
        if args.restore_callback_states_from_checkpoint and saved.get("unsaved"):
            _LOGGER.warning(
                "restore_callback_states_from_checkpoint=True: transformers has made the monitor anew, without its %s. "
                "Leave it out: the monitor goes on from a checkpoint by itself.",
                " and ".join(saved["unsaved"]),
            )

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look behind the optimiser's step, before gradients are set to zero and the trainer counts the step."""
        del args, control
        self._state = state
        self.monitor.step(kwargs["model"], state.global_step + 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask the trainer to stop, if the look says so."""
        del args, state, kwargs
        if self.monitor.should_stop:
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the trajectory."""
        del args, state, control, kwargs
        self.monitor.finish()

    def _log(self, values: dict[str, float], step: int) -> None:
        if self._state is not None:
            self._state.log_history.append({**values, "epoch": self._state.epoch, "step": step})
        if self._given_log is not None:
            self._given_log(values, step)
