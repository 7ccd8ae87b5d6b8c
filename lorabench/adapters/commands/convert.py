"""`convert`: one layout into another, with the measured change of ΔW."""

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Mapping

from lorabench.adapters.commands.common import add_output, dotted_names
from lorabench.adapters.layouts import written_layout, written_layouts
from lorabench.adapters.names.identity import PARTS, component
from lorabench.commands.frame import Outcome
from lorabench.commands.options import path_name
from lorabench.storage import refuse_overwriting
from lorabench.text import table

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "lorabench-adapter convert style.safetensors --to peft --component unet -o style_unet"


def add_arguments(parser: ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("adapter", type=path_name, metavar="IN", help="an adapter file or folder")
    add_output(parser, "what is written: a .safetensors, .bin or .pt file, for peft a folder", layout=False)
    parser.add_argument(
        "--to",
        dest="layout",
        required=True,
        choices=list(written_layouts()),
        help="; ".join(f"{name}: {layout.title}" for name, layout in written_layouts().items()),
    )
    parser.add_argument(
        "--component",
        choices=PARTS,
        help="part of a pipeline: added to names that have none; to peft: only this part, without its prefix",
    )
    parser.add_argument("--drop-dora", action="store_true", help="leave DoRA's magnitudes out")
    parser.add_argument("--drop-unsupported", action="store_true", help="leave out what is no low-rank pair")
    parser.add_argument(
        "--drop-fan-in-fan-out",
        action="store_true",
        help="lose the word that ΔW is added transposed (GPT-2's Conv1D); only the peft layout can say it",
    )


def run(args: Namespace) -> Outcome:
    """Convert, write, read it back and say by how much ΔW changed."""
    import torch

    from lorabench.adapters.comparing.deviation import deviations
    from lorabench.adapters.reading.files import load
    from lorabench.adapters.writing.converting import convert
    from lorabench.adapters.writing.saving import save

    refuse_overwriting(args.out, args.force, folder=written_layout(args.layout).folder)
    adapter = load(args.adapter)
    conversion = convert(
        adapter,
        args.layout,
        component=args.component,
        drop_dora=args.drop_dora,
        drop_unsupported=args.drop_unsupported,
        drop_fan_in_fan_out=args.drop_fan_in_fan_out,
        names=dotted_names(args),
    )
    path = save(
        args.out,
        conversion.adapter,
        args.layout,
        dtype=getattr(torch, args.dtype) if args.dtype else "stored",
        metadata={"lorabench_converted_from": "+".join(adapter.schemes)},
    )
    written = load(path).modules
    errors = {name: one.error for name, one in deviations(conversion.before, written).items()}
    worst = max(errors, key=errors.__getitem__)
    dtypes = sorted({str(module.dtype).removeprefix("torch.") for module in written.values()})
    data = {
        "input": str(adapter.path),
        "path": str(path),
        "from": list(adapter.schemes),
        "to": args.layout,
        "dtype": dtypes,
        "modules": len(written),
        "relative_error": errors,
        "worst": {"module": worst, "relative_error": errors[worst]},
        "notes": list(conversion.notes),
        "dropped": {kind: list(keys) for kind, keys in conversion.dropped.items()},
    }
    head = f"{path}: {args.layout} layout, {', '.join(dtypes)}, {len(written)} modules"
    return Outcome(
        data, "\n".join([head, "", *_errors(errors, worst), *(f"note: {note}" for note in conversion.notes)])
    )


def _errors(errors: Mapping[str, float], worst: str) -> list[str]:
    """The worst by part, and of all."""
    parts = Counter(component(name) for name in errors)
    rows = [(part, count, max(errors[n] for n in errors if component(n) == part)) for part, count in parts.items()]
    return [
        table(
            ("component", "modules", "worst relative error of ΔW"),
            [(part, count, f"{error:.2g}") for part, count, error in rows],
            numbers=("modules", "worst relative error of ΔW"),
        ),
        f"\nworst: {worst} ({errors[worst]:.2g}, measured on the file that was written)",
    ]
