"""The health of an adapter while it trains: a look every few steps, without changing the training."""

import functools
import logging
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorabench.errors import LorabenchError, explain_writing
from lorabench.health.alerts import Alert, Watch
from lorabench.health.rules.base import Thresholds
from lorabench.health.summaries import line, spread, summary
from lorabench.health.trajectory import LoRADynamicsMetrics, Snapshot, dynamics
from lorabench.health.watched import Watched
from lorabench.storage import append_line, write_chunks
from lorabench.text import to_json

__all__ = ["Log", "Monitor"]

Log = Callable[[dict[str, float], int], object]
"""Takes numbers by their names, and the step."""

_LOGGER = logging.getLogger("lorabench.health")
_LEVELS = {"note": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_KEPT = 128  # looks, with all numbers of every module


class Monitor:
    """Looks at the LoRA modules of a model every few steps of its optimiser.

    On the steps between it does nothing at all: no tensor is read and no device waited for. What goes wrong in a look
    is told once through `logging` and the training goes on, but for `on_alert="stop"`. One monitor may watch several
    trainings one after another: `start` forgets the one before, and so does a step that is less than the last.

    Call `step` behind the optimiser's step, and before gradients are set to zero if their rank is wanted. In a training
    by several processes (`torch.distributed`) all call it, with whole copies of the factors as DDP has them; the first
    process alone looks, and with `on_alert="stop"` all agree on every look whether to stop.

    Args:
        every: steps from one look to the next.
        adapter: PEFT's name of one; None: all that train.
        thresholds: of `lorabench.health.read_thresholds`; None: the project's own.
        rules: names of the rules that are asked; None: those that are asked without.
        on_alert: "log"; or "stop": `should_stop` is set by an alert of severity "error", and by a look that fails.
        out: a folder for `health.jsonl`, a line a look, and for `health.png`; what an earlier training left in them
            is replaced, and a resumed one goes on behind its step.
        log: is given the numbers of every look by the names of `lorabench.health.summaries.NAMES`.
        base: whether to hold ΔW against the model's own weights, whose σ₁ are computed once, at the first look.

    Raises:
        LorabenchError: an argument is none of these.
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
        _check(every, on_alert, out)
        self.every, self.on_alert = every, on_alert
        self._out = None if out is None else Path(out)
        self._log = log
        self._watch_anew = functools.partial(Watch, thresholds, rules, _KEPT)
        self._watched_anew = functools.partial(Watched, adapter, base, functools.partial(self._tell, logging.WARNING))
        self.start()

    def start(self) -> None:
        """Begin with another training: nothing of the one before counts any more."""
        self.should_stop = False
        self._watch, self._watched = self._watch_anew(), self._watched_anew()
        self._step = 0
        self._told: set[str] = set()
        self._trajectory: list[list[float]] = []
        self._writes = False

    @property
    def snapshots(self) -> list[Snapshot]:
        """The looks so far; of a long training every second of the older ones is let go, again and again."""
        return list(self._watch.snapshots)

    @property
    def dynamics(self) -> list[LoRADynamicsMetrics]:
        """Trends of every module over the looks so far."""
        return dynamics(self._watch.snapshots) if self._watch.snapshots else []

    def step(self, model: nn.Module, step: int | None = None) -> bool:
        """To be called behind every step of the optimiser.

        Args:
            model: that trains.
            step: the optimiser's steps so far, this one included; None: the calls are counted.

        Returns:
            Whether the training is to stop.
        """
        if step is not None and step < self._step:
            self.start()
        before = self._step
        self._step = before + 1 if step is None else step
        # Not `% every`: with several optimisers Lightning's count may leap over it.
        if self._step // self.every <= (before or self._step - 1) // self.every:
            return self.should_stop
        if _rank() == 0:
            self._guarded(functools.partial(self._look, model))
        if self.on_alert == "stop":
            self.should_stop = _anywhere(self.should_stop, model)
        return self.should_stop

    def finish(self) -> None:
        """Draw the trajectory into `health.png`; without a folder there is nothing to do."""
        if self._out is not None and len(self._trajectory) > 1 and _rank() == 0:
            self._guarded(self._draw)

    def state_dict(self) -> dict[str, Any]:
        """What a training that is resumed needs, in plain types: the step, the alerts that are on, the looks."""
        return {
            "step": self._step,
            "watch": self._watch.state_dict(),
            "trajectory": [list(row) for row in self._trajectory],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; from something else it begins anew, and says so."""
        self.resume(lambda: state)

    def resume(self, read: Callable[[], Mapping[str, Any]]) -> None:
        """The same of a state that has to be read first, which may fail too."""

        def load() -> None:
            state = read()
            watch = self._watch_anew()
            watch.load_state_dict(state["watch"])
            trajectory = [list(row) for row in state["trajectory"]]
            self._step, self._watch, self._trajectory = int(state["step"]), watch, trajectory

        def anew(message: str, kind: str) -> None:
            self._tell(
                logging.WARNING,
                f"{message}. The looks before this checkpoint cannot be read; they may be another version's: the "
                "monitor begins anew.",
                kind,
            )

        self._guarded(load, anew)

    def _guarded(self, work: Callable[[], object], fault: Callable[[str, str], None] | None = None) -> None:
        """Do something; where it fails, have `fault` told how, and of what kind that is."""
        fault = fault or self._fault
        try:
            work()
        except LorabenchError as error:
            fault(str(error), str(error))
        except Exception as error:  # whatever it is, it is no reason to end somebody's training
            _LOGGER.debug("where the monitor failed", exc_info=True)
            last = traceback.extract_tb(error.__traceback__)[-1]
            fault(f"{type(error).__name__} in the monitor: {error}", f"{type(error)} {last.filename} {last.lineno}")

    def _fault(self, message: str, kind: str) -> None:
        if self.on_alert == "stop":
            self.should_stop = True
            message = f"{message} Nothing watches this training any more, so it is asked to stop (on_alert='stop')."
        self._tell(logging.ERROR if self.on_alert == "stop" else logging.WARNING, message, kind)

    def _tell(self, level: int, message: str, kind: str | None = None) -> None:
        """Each message once; of one kind the first, as their numbers may differ."""
        if (kind or message) not in self._told:
            self._told.add(kind or message)
            _LOGGER.log(level, "%s", message)

    def _look(self, model: nn.Module) -> None:
        start = time.perf_counter()
        snapshot = self._watched.look(model, self._step)
        alerts = self._watch.look(snapshot)
        rows = list(snapshot.rows.values())
        self._trajectory.append([self._step, *spread(rows, "rank_utilization"), *spread(rows, "sigma_max")])
        for alert in alerts:
            if alert.new:
                self._raise(alert)
        values = summary(snapshot, alerts, time.perf_counter() - start)
        if self._out is not None:
            text = to_json(line(snapshot, alerts, values))
            self._guarded(functools.partial(self._write, self._out / "health.jsonl", text))
        if self._log is not None:
            self._guarded(functools.partial(self._log, values, self._step))

    def _raise(self, alert: Alert) -> None:
        _LOGGER.log(
            _LEVELS[alert.severity], "step %s: %s (%s): %s. %s",
            alert.step, alert.rule, alert.severity, alert.message, alert.action,
        )  # fmt: skip
        if self.on_alert == "stop" and alert.severity == "error":
            self.should_stop = True

    def _write(self, path: Path, text: str) -> None:
        with explain_writing(path, "Free some space, or choose another folder."):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._writes:
                _cut(path, self._step if len(self._watch.snapshots) > 1 or self._step > self.every else 0)
                self._writes = True
            append_line(path, text)

    def _draw(self) -> None:
        from lorabench.health.figures import draw_steps  # matplotlib, where a picture is asked for
        from lorabench.pictures import house_style, save_picture

        steps = [int(row[0]) for row in self._trajectory]
        with house_style():
            figure = draw_steps(steps, [row[1:4] for row in self._trajectory], [row[4:] for row in self._trajectory])
        if self._out is not None:
            save_picture(figure, self._out / "health.png")


def _check(every: int, on_alert: str, out: Path | str | None) -> None:
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise LorabenchError(f"every={every!r}: a whole number of steps is needed, 1 or more.")
    if on_alert not in ("log", "stop"):
        raise LorabenchError(f"on_alert={on_alert!r}: 'log' or 'stop' is allowed.")
    if out is not None and Path(out).is_file():
        raise LorabenchError(
            f"out={str(out)!r}: a folder is needed, which may not be there yet, and a file lies there."
        )


def _cut(path: Path, step: int) -> None:
    """Leave the lines before a step, which a resumed training has behind it."""
    if not path.exists():
        return
    kept = [one for one in path.read_text(encoding="utf-8").splitlines() if _step_of(one) < step]
    write_chunks(path, ["".join(f"{one}\n" for one in kept).encode()])


def _step_of(text: str) -> float:
    number = text.removeprefix('{"step": ').partition(",")[0]
    return float(number) if number.isdecimal() else float("inf")


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def _anywhere(stop: bool, model: nn.Module) -> bool:
    """Whether any process says so; all of them have to ask."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return stop
    flag = torch.tensor([float(stop)], device=next(model.parameters()).device)
    distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag.item())
