"""`lorabench`, `python -m lorabench`: a first word that names a program runs it; all else is Hydra's application."""

import importlib
import os
import sys
from collections.abc import Sequence

import lorabench

__all__ = ["PROGRAMS", "main"]

PROGRAMS = {
    "adapters": "one LoRA adapter file, any trainer's: look at it, resize, merge, compare, convert, interpolate, draw",
    "zoo": "a zoo of adapters: is it sound, and its adapters as files",
    "report": "runs and sweeps side by side: what failed, and which representation is shown to be better",
    "export": "a run made into a model: arrays, JSON and a card in a folder (docs/predict.md)",
    "predict": "what such a model says of adapter files: a category, or that it does not know",
    "web": "all of it in a browser: adapters, their health, the results of runs (docs/web.md)",
    "studies": "trainings that ask whether the advice on ranks holds (docs/studies.md); Hydra's words",
    "dashboard": "a Weights & Biases workspace over the runs of logger=wandb",
}
"""First words, each a package with a `__main__` whose `main(argv, name)` returns an exit code; what each is for."""


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run a program, or Hydra's application with the arguments of this process.

    Args:
        argv: what came; None: what the process was started with.

    Returns:
        The exit code; None where all went well.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in PROGRAMS:
        program = importlib.import_module(f"lorabench.{words[0]}.__main__")
        code: int = program.main(words[1:], name=f"lorabench {words[0]}")
        return code
    if words == ["--version"]:
        sys.stdout.write(f"lorabench {lorabench.__version__}\n")
        return None
    if words and words[0].isidentifier():  # no option of Hydra's: those have a - before or a = within
        sys.exit(
            f"lorabench: {words[0]} is no program, and no option NAME=VALUE; programs are {', '.join(PROGRAMS)} "
            "(--help says what each is for)"
        )
    if {"--help", "-h"} & set(words):
        width = max(map(len, PROGRAMS))
        lines = [f"  lorabench {word:{width}}  {what}" for word, what in PROGRAMS.items()]
        sys.stdout.write("\n".join(["programs (--help behind one says more):", *lines, "", ""]))
    from lorabench.application import main as run_application  # Hydra takes longer than most programs here
    from lorabench.errors import LorabenchError
    from lorabench.sweeps.again import whole_words
    from lorabench.sweeps.extras import missing_launcher

    missing = missing_launcher(words)
    if missing is not None:
        sys.exit(f"lorabench: {missing}")
    try:
        sys.argv[1:] = whole_words(words)  # where Hydra looks
    except LorabenchError as error:
        sys.exit(f"lorabench: {error}")
    try:
        run_application()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head`: nobody reads on, and nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return None


if __name__ == "__main__":
    sys.exit(main())
