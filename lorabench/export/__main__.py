"""`lorabench export RUN NAME DIR`: a run's model as a folder that `lorabench predict` asks."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from lorabench.commands.frame import Outcome, run_single
from lorabench.commands.options import path_name

__all__ = ["EXAMPLE", "add_arguments", "main", "run"]

EXAMPLE = "lorabench export outputs/2026-11-30/10-30-00-000000 delta_pca model"
_DESCRIPTION = (
    "A finished run made into a model: its representation and its members, trained again by its own settings, "
    "calibrated, and written as arrays and JSON with a card. `lorabench predict` asks it."
)


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `export`."""
    parser.add_argument("run", metavar="RUN", type=path_name, help="folder of a run that is done")
    parser.add_argument("name", metavar="NAME", help="one of its representations, as its table calls it")
    parser.add_argument("folder", metavar="DIR", type=path_name, help="a new or empty folder")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that lies there")


def run(args: Namespace) -> Outcome:
    """Make the model, and write it."""
    from lorabench.predict.folder import check_place, write_model

    check_place(args.folder, args.overwrite)
    from lorabench.export.making import make_model

    model = make_model(args.run, args.name)
    write_model(model, args.folder, args.overwrite)
    known = model.trained_on
    data = {"folder": args.folder, "classes": model.classes, "temperature": model.temperature, **known}
    low, high = known["interval"]
    return Outcome(
        data,
        f"{args.folder}: {args.name} of {known['dataset']}, {len(model.classes)} classes, test accuracy "
        f"{100 * known['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}], calibrated on {known['groups']} groups "
        "of adapters that trained nothing",
    )


def main(argv: Sequence[str] | None = None, name: str = "python -m lorabench.export") -> int:
    """Run it; see `lorabench.commands.frame` for what it prints and returns."""
    return run_single(name, _DESCRIPTION, sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
