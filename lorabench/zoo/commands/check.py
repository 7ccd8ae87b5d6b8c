"""`check`: whether a zoo measures what it says."""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from lorabench.commands.frame import Outcome
from lorabench.commands.options import positive_int
from lorabench.evaluation.soundness import CLASSIFIERS, Soundness, measure
from lorabench.text import table
from lorabench.zoo.commands.common import load_zoo, settings

__all__ = ["EXAMPLE", "INTERRUPTED", "add_arguments", "run"]

EXAMPLE = "python -m lorabench.zoo check glyphs glyphs_independent"
INTERRUPTED = "zoos that were finished are kept: run the same command again"


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `check`."""
    parser.usage = "%(prog)s DATASET [DATASET ...] [--splits K] [--json] [dataset.KEY=VALUE ...]"
    parser.add_argument("words", metavar="DATASET", nargs="+", help="names of data sets' yamls, such as glyphs")
    parser.add_argument("--splits", metavar="K", type=positive_int, default=3, help="accuracies are means over so many")
    parser.set_defaults(more=[])


def run(args: Namespace) -> Outcome:
    """Read every zoo; not ok where one is not sound."""
    datasets = [word for word in args.words if "=" not in word]
    overrides = settings(args, [word for word in args.words if "=" in word])
    if not datasets:
        args.refuse("the following arguments are required: DATASET")
    found = [measure(load_zoo(dataset, overrides), args.splits) for dataset in datasets]
    data = {"zoos": [{**asdict(zoo), "sound": zoo.sound} for zoo in found]}
    return Outcome(data, "\n\n".join(map(_text, found)), all(zoo.sound for zoo in found))


def _text(zoo: Soundness) -> str:
    rows = [[reading.features, *(f"{reading.accuracy[by]:.1f}" for by in CLASSIFIERS)] for reading in zoo.readings]
    rows.append(["chance", *[f"{zoo.chance:.1f}"] * len(CLASSIFIERS)])
    head = (
        f"{zoo.dataset}: {zoo.adapters} adapters, {zoo.categories} categories; "
        f"test accuracy in %, mean of {zoo.splits} splits"
    )
    why = "; ".join([*zoo.faults, *zoo.unknown])
    verdict = "sound" if zoo.sound else f"{'not sound' if zoo.faults else 'cannot be judged'}: {why}"
    known = zoo.complexity
    complexity = (
        ""
        if known is None
        else (
            f"effective rank of ΔW {known.mean_rank:.2f} (mean over modules); with the pictures' entropy Spearman's ρ "
            f"{known.rho:+.2f} [{known.low:+.2f}, {known.high:+.2f}]"
        )
    )
    lines = [head, table(["features", *CLASSIFIERS], rows, CLASSIFIERS), complexity, verdict]
    return "\n".join(line for line in lines if line)
