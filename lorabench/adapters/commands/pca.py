"""`pca`: principal components of every layer's weights, or of several adapters."""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabench.commands.frame import Outcome
from lorabench.commands.options import path_name, positive_int
from lorabench.errors import LorabenchError
from lorabench.storage import refuse_overwriting
from lorabench.text import plain, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lorabench.adapters.adapter import Adapter
    from lorabench.adapters.principal_components import AdaptersPCA, LayerPCA, LayerVariances

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = 'lorabench-adapter pca adapter.safetensors --layers "*attn2.to_k" --figure variance.png'

_COLUMNS = ("components", "for 90 %", "PC1 %", "total variance")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument(
        "paths", nargs="+", type=path_name, metavar="FILE",
        help="one adapter: its layers, samples are a factor's rows; several: each module's ΔW between them",
    )  # fmt: skip
    parser.add_argument("--layers", metavar="GLOB", help='names of layers or modules, as "*attn2*"; default: all')
    parser.add_argument("--components", type=positive_int, metavar="N", help="keep so many at most; default: all")
    parser.add_argument("--no-standardise", action="store_true", help="centre the features alone (one adapter)")
    parser.add_argument("-o", "--output", type=path_name, metavar="JSON", help="write all, components and samples too")
    parser.add_argument(
        "--figure", type=path_name, metavar="PATH", help=".png or .svg: variances; of one layer its components too"
    )
    parser.add_argument("--full", action="store_true", help="with --json: components and transformed samples too")
    parser.add_argument("--force", action="store_true", help="replace what lies at --output and --figure")
    parser.set_defaults(wrong_usage=parser.error)


def run(args: argparse.Namespace) -> Outcome:
    """Analyse one adapter by layers, or several by modules."""
    if len(args.paths) > 1 and args.components is not None:
        args.wrong_usage("--components is for one file; between files all components are kept")
    if len(args.paths) > 1 and args.no_standardise:
        args.wrong_usage("--no-standardise is for one file; between files ΔW is never standardised")
    if args.full and not args.json:
        args.wrong_usage("--full is for --json; -o always writes components and samples")
    for option, path, endings in (("--output", args.output, (".json",)), ("--figure", args.figure, (".png", ".svg"))):
        if path is not None:
            if path.suffix.lower() not in endings:
                raise LorabenchError(f"{option} {path}: give a path that ends in {' or '.join(endings)}.")
            refuse_overwriting(path, args.force, option, folder=False)
    from lorabench.adapters.reading.files import load

    adapters = [load(path) for path in args.paths]
    return _layers(args, adapters[0]) if len(adapters) == 1 else _across(args, adapters)


def _layers(args: argparse.Namespace, adapter: "Adapter") -> Outcome:
    from lorabench.adapters.principal_components import each_layer

    head = {"file": adapter.path, "standardised": not args.no_standardise, "not_analysed": _unsupported(adapter)}
    layers = each_layer(adapter, n_components=args.components, standardise=not args.no_standardise, layers=args.layers)
    # Components and samples of all layers together are as large as the file: they pass by, one layer at a time.
    light: dict[str, LayerVariances] = {}
    whole: dict[str, Any] = {}
    last: list[LayerPCA] = []

    def entries() -> Iterator[tuple[str, dict[str, Any]]]:
        for analysis in layers:
            light[analysis.layer] = analysis.variances()
            last[:] = [analysis]
            data = _layer_data(analysis) | (_samples(analysis) if args.full or args.output else {})
            if args.json:
                whole[analysis.layer] = data if args.full else _layer_data(analysis)
            yield analysis.layer, data

    written = _write(args.output, head, "layers", entries())
    if args.figure is not None:
        written.append(_draw(args.figure, args.force, lambda: _layers_figure(light, last[0], adapter)))
    rows = [(name, f"{analysis.samples}×{analysis.features}", *_cells(analysis)) for name, analysis in light.items()]
    columns = ("samples×features", *_COLUMNS)
    lines = [table(("layer", *columns), rows, numbers=columns), *_reasons(light), *_kinds(adapter)]
    lines += [f"not analysed, {kind}: {len(keys)} tensors" for kind, keys in adapter.unsupported.items()]
    return Outcome({**head, "layers": whole, "written": written}, _text(lines, written))


def _across(args: argparse.Namespace, adapters: "Sequence[Adapter]") -> Outcome:
    from lorabench.adapters.principal_components import pca_across

    analyses = pca_across(adapters, modules=args.layers)
    entries = {name: _module_data(analysis) for name, analysis in analyses.items()}
    head = {
        "files": [adapter.path for adapter in adapters],
        "adapters": next(iter(analyses.values())).adapters,
        "not_analysed": [_unsupported(adapter) for adapter in adapters],
    }
    written = _write(args.output, head, "modules", entries.items())
    if args.figure is not None:
        from lorabench.adapters.drawing.component_figures import across_figure

        written.append(_draw(args.figure, args.force, lambda: across_figure(analyses)))
    rows = [(name, *_cells(analysis)) for name, analysis in analyses.items()]
    lines = [table(("module", *_COLUMNS), rows, numbers=_COLUMNS), *_reasons(analyses)]
    return Outcome({**head, "modules": entries, "written": written}, _text(lines, written))


def _layers_figure(light: "Mapping[str, LayerVariances]", last: "LayerPCA", adapter: "Adapter") -> "Figure":
    from lorabench.adapters.drawing.component_figures import layer_figure, layers_figure
    from lorabench.adapters.drawing.subject import Subject

    if len(light) == 1:
        return layer_figure(last)
    return layers_figure(light, Subject(adapter).title, f"principal components of {len(light)} layers")


def _draw(path: Path, force: bool, figure: "Callable[[], Figure]") -> Path:
    from lorabench.pictures import house_style, save_picture

    refuse_overwriting(path, force, "--figure", folder=False)  # analysing may have taken long
    with house_style():
        return save_picture(figure(), path)


def _write(path: Path | None, head: Mapping[str, Any], key: str, entries: Iterable[tuple[str, Any]]) -> list[Path]:
    """Go through the entries, and write them as they come where there is a path."""
    if path is None:
        for _ in entries:
            pass
        return []
    from lorabench.storage import write_chunks

    write_chunks(path, _chunks(head, key, entries))
    return [path]


def _chunks(head: Mapping[str, Any], key: str, entries: Iterable[tuple[str, Any]]) -> Iterator[bytes]:
    start = json.dumps(plain(dict(head)), indent=1).removesuffix("\n}")
    yield f"{start},\n {json.dumps(key)}: {{".encode()
    comma = ""
    for name, data in entries:
        yield f"{comma}\n  {json.dumps(name)}: {json.dumps(data, allow_nan=False)}".encode()
        comma = ","
    yield b"\n }\n}\n"


def _common_data(analysis: "LayerVariances | AdaptersPCA") -> dict[str, Any]:
    return {
        "n_components": analysis.n_components,
        "explained_variance_ratio": analysis.explained_variance_ratio.tolist(),
        "cumulative": analysis.cumulative.tolist(),
        "singular_values": analysis.singular_values.tolist(),
        "components_for_90_percent": analysis.enough(),
        "total_variance": analysis.total_variance,
        "reason": analysis.reason,
    }


def _layer_data(analysis: "LayerVariances") -> dict[str, Any]:
    shape = {"samples": analysis.samples, "features": analysis.features, "constant_features": analysis.constant}
    return shape | _common_data(analysis)


def _samples(analysis: "LayerPCA") -> dict[str, Any]:
    return {"components": analysis.components.tolist(), "transformed": analysis.transformed.tolist()}


def _module_data(analysis: "AdaptersPCA") -> dict[str, Any]:
    return _common_data(analysis) | {"scores": analysis.scores.tolist()}


def _cells(analysis: "LayerVariances | AdaptersPCA") -> tuple[str, ...]:
    if analysis.reason:
        return ("-",) * len(_COLUMNS)
    count, enough = analysis.n_components, analysis.enough()
    first = f"{100 * analysis.explained_variance_ratio[0]:.1f}"
    return str(count), str(enough or f"over {count}"), first, f"{analysis.total_variance:.4g}"


def _reasons(analyses: "Mapping[str, LayerVariances | AdaptersPCA]") -> list[str]:
    """The layers without numbers, a line for each reason."""
    names: dict[str, list[str]] = {}
    for name, analysis in analyses.items():
        if analysis.reason:
            names.setdefault(analysis.reason, []).append(name)
    return [
        f"no components, {reason}: {len(mine)} ({', '.join(mine[:3])}{', ...' if len(mine) > 3 else ''})"
        for reason, mine in names.items()
    ]


def _kinds(adapter: "Adapter") -> list[str]:
    """Factors that are not in the file as they are: their components depend on how they were made."""
    counts = Counter(module.kind for module in adapter.modules.values() if module.kind not in ("lora", "dora"))
    return [
        f"{count} modules are {kind}: their factors here are made from the file's, so that ΔW is right; the components "
        "are of these. Give several files to analyse ΔW."
        for kind, count in counts.items()
    ]


def _unsupported(adapter: "Adapter") -> dict[str, list[str]]:
    return {kind: list(keys) for kind, keys in adapter.unsupported.items()}


def _text(lines: Sequence[str], written: Sequence[Path]) -> str:
    return "\n".join([*lines, *(f"wrote {path}" for path in written)])
