"""Pictures of adapters: nothing overlaps, no panel is empty, and the files are whole."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import BboxBase
from PIL import Image

from lorabench.adapters.__main__ import main
from lorabench.adapters.adapter import Adapter
from lorabench.adapters.drawing.component_figures import across_figure, layer_figure, layers_figure
from lorabench.adapters.drawing.figures import ranks, weights
from lorabench.adapters.drawing.figures.blocks import block_strength
from lorabench.adapters.drawing.kinds import KINDS, FigureKind, kind_module
from lorabench.adapters.drawing.plotting import plot
from lorabench.adapters.drawing.rendering import Picture, Processes
from lorabench.adapters.drawing.subject import Subject
from lorabench.adapters.principal_components import pca, pca_across
from lorabench.adapters.reading.files import load
from lorabench.adapters.writing.saving import save
from lorabench.errors import LorabenchError
from lorabench.pictures import house_style
from tests.drawn_adapters import CASES, adapter, large, module, small
from tests.real_adapters import published, real

ALONE = [kind for kind in KINDS if kind_module(kind).ADAPTERS == 1]


def figures(given: Adapter) -> Iterator[tuple[str, Figure]]:
    other = adapter(given.modules, "b.safetensors")
    for kind in KINDS:
        drawn = kind_module(kind)
        pages = drawn.measure(*[Subject(one) for one in (given, other)][: drawn.ADAPTERS])
        yield from ((f"{kind} {number}", drawn.draw(page)) for number, page in enumerate(pages))
    layers = pca(given)
    yield "layers", layers_figure(layers, "all", "layers")
    yield "layer", layer_figure(next(iter(layers.values())))
    other = {name: replace(one, down=one.down.flip(0)) for name, one in given.modules.items()}
    yield "across", across_figure(pca_across([given, adapter(other, "b.safetensors")]))


def clashes(figure: Figure) -> list[str]:
    """Texts of a picture that overlap, or that leave it."""
    figure.canvas.draw()
    texts = [figure._suptitle, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        texts += [*_labels(axes.xaxis), *_labels(axes.yaxis), axes.xaxis.label, axes.yaxis.label]
        texts += [axes._left_title, *axes.texts, *(axes.get_legend().get_texts() if axes.get_legend() else [])]
    shown = [text for text in texts if text.get_visible() and text.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent().padded(-0.5)) for text in shown]
    found = [f"{a} | {b}" for i, (a, one) in enumerate(boxes) for b, other in boxes[:i] if one.overlaps(other)]
    return found + [f"outside: {name}" for name, box in boxes if not _within(box, figure.bbox)]


def _labels(axis: Axis) -> list[Text]:
    """Labels of the ticks that are drawn: locators name some beyond the ends too."""
    low, high = sorted(axis.get_view_interval())
    room = 1e-9 * (high - low)
    drawn = [tick for tick in axis.get_major_ticks() if low - room <= tick.get_loc() <= high + room]
    return [label for tick in drawn for label in (tick.label1, tick.label2)]


def _within(box: BboxBase, whole: BboxBase) -> bool:
    return bool(box.x0 >= whole.x0 and box.x1 <= whole.x1 and box.y0 >= whole.y0 and box.y1 <= whole.y1)


_SLOW = ("one", "untrained")


@pytest.mark.parametrize("case", [pytest.param(n, marks=pytest.mark.slow) if n in _SLOW else n for n in CASES])
def test_no_text_overlaps_or_leaves_the_picture(case: str) -> None:
    with house_style():
        for name, figure in figures(CASES[case]()):
            assert clashes(figure) == [], name
            sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text().strip()]
            assert min(sizes) >= 7, name
            # No panel stays empty: data, or words that say why there are none.
            for axes in figure.axes:
                assert axes.has_data() or axes.texts or axes.collections or axes.patches, name


def test_the_overlap_test_finds_overlaps() -> None:
    with house_style():
        figure = ranks.draw(ranks.measure(Subject(small()))[0])
        figure.axes[3].set_xticks([0, 0.01], ["first name", "second name"])
        assert "second name | first name" in clashes(figure)


def test_depth_ticks_keep_their_distance_and_name_the_parts() -> None:
    with house_style():
        figure = ranks.draw(ranks.measure(Subject(large()))[0])
        figure.canvas.draw()
        heat = next(axes for axes in figure.axes if axes.get_title(loc="left").startswith("σ/σ₁"))
        ticks = heat.get_xticks()
        assert len(ticks) >= 20
        assert min(b - a for a, b in pairwise(ticks)) >= 2
        words = " ".join(text.get_text() for text in heat.texts)
        assert re.search(r"text_encoder_2.*unet.*mid.*up", words)
        hatched = [patch for patch in heat.patches if patch.get_hatch()]
        assert len(hatched) == sum(not one.up.any() for one in large().modules.values())


@pytest.mark.parametrize("form", ["png", "svg"])
def test_all_kinds_are_written_whole(form: str, tmp_path: Path) -> None:
    found = plot(small(), "all", tmp_path / "new", form=form)
    assert [path.name for path in found] == [f"{kind}.{form}" for kind in ALONE]
    assert sorted((tmp_path / "new").iterdir()) == sorted(found), "a temporary file was left"
    for path in found:
        if form == "svg":
            assert ElementTree.fromstring(path.read_text()).tag.endswith("svg")  # noqa: S314
            assert "dc:date" not in path.read_text()
            continue
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 300
            assert len(picture.convert("L").getcolors(256) or range(256)) > 20, "an empty picture"


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_a_file_that_measures_without_matplotlib_and_draws_without_torch(kind: str) -> None:
    drawn = kind_module(kind)
    assert isinstance(drawn, FigureKind)
    assert drawn.ADAPTERS in (1, 2)
    module = f"lorabench.adapters.drawing.figures.{kind}"
    program = f"import sys, {module}; print('matplotlib' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_other_processes_draw_the_same_bytes(tmp_path: Path) -> None:
    here = plot(small(), "all", tmp_path / "here")
    with Processes(2) as renderer:
        there = plot(small(), "all", tmp_path / "there", renderer=renderer)
        (tmp_path / "file").write_text("")
        with pytest.raises(LorabenchError, match="a part of this path is a file"):
            plot(small(), "ranks", tmp_path / "file" / "x.png", renderer=renderer)
    assert [path.name for path in here] == [path.name for path in there]
    for one, two in zip(here, there, strict=True):
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("guarded", [False, True])
def test_drawing_leaves_the_processes_of_a_program_alone(guarded: bool, tmp_path: Path) -> None:
    """A script that draws is not run again, and Ctrl-C ends the processes that it begins itself."""
    from lorabench.adapters.writing.saving import save

    save(tmp_path / "a.safetensors", small(), "kohya")
    (tmp_path / "script.py").write_text(
        "import multiprocessing, signal, sys\n"
        "from lorabench.adapters.__main__ import main\n"
        f"if __name__ == '__main__' or not {guarded}:\n"
        "    print('run', file=sys.stderr)\n"
        "    main(['plot', 'a.safetensors', '--kind', 'all', '--out', 'pictures'])\n"
        f"if {guarded}:\n"
        "    context = multiprocessing.get_context('forkserver')\n"
        "    if __name__ == '__main__':\n"
        "        with context.Pool(1) as pool:\n"
        "            print(pool.apply(signal.pthread_sigmask, (signal.SIG_BLOCK, [])), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert len(list((tmp_path / "pictures").iterdir())) == len(ALONE), done.stderr
    assert done.stderr.split() == ["run", "set()"][: 1 + guarded]


def test_processes_that_end_too_soon_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # where they find nothing to import
    with (
        pytest.raises(LorabenchError, match="ended before its picture was done"),
        Processes(1) as renderer,
    ):
        renderer.render([Picture("ranks", None, tmp_path / "x.png")])


def test_a_process_that_draws_needs_no_torch(tmp_path: Path) -> None:
    sent = tmp_path / "sent"

    class Sender:
        def render(self, pictures: Iterable[Picture]) -> None:
            sent.write_bytes(pickle.dumps(list(pictures)))

    plot([small(), small()], "all", tmp_path / "pictures", renderer=Sender())
    code = (
        "import pickle, sys\n"
        "import lorabench.adapters.drawing.drawers\n"
        f"got = pickle.loads(open({str(sent)!r}, 'rb').read())\n"
        "print(len(got), 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(2 * len(ALONE) + 1), "False"], "importing torch takes longer than drawing"


def test_what_draws_imports_nothing_of_the_folder_that_it_is_in(tmp_path: Path) -> None:
    """A file beside downloaded adapters may be called like a library."""
    from lorabench.adapters.writing.saving import save

    save(tmp_path / "a.safetensors", small(), "kohya")
    for name in ("matplotlib", "lorabench", "PIL"):
        (tmp_path / f"{name}.py").write_text(f"open('imported-{name}', 'w')")
    program = Path(sys.executable).parent / "lorabench-adapter"
    words = [str(program), "plot", "a.safetensors", "--kind", "all", "--out", "pictures"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    assert list(tmp_path.glob("imported-*")) == []
    assert len(list((tmp_path / "pictures").iterdir())) == len(ALONE)


@pytest.mark.slow
def test_an_interruption_is_told_and_nothing_else(tmp_path: Path) -> None:
    """Ctrl-C reaches every process of a terminal, while they start too."""
    from lorabench.adapters.writing.saving import save

    save(tmp_path / "a.safetensors", small(), "kohya")
    words = ["plot", "a.safetensors", "--kind", "all", "--out", "pictures"]
    for after in (0.4, 0.8, 1.2):
        command = [sys.executable, "-m", "lorabench.adapters", *words]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
        time.sleep(after)
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=120)[1]
        if process.returncode == 130:
            assert said.count("\n") == 1
            assert "interrupted" in said
        else:  # before the program itself was there, or after it had ended
            assert "lorabench.adapters.drawing" not in said


@pytest.mark.parametrize("form", ["png", "svg"])
def test_the_same_adapter_gives_the_same_bytes(form: str, tmp_path: Path) -> None:
    one, two = (plot(small(), "blocks", tmp_path / f"{i}.{form}")[0].read_bytes() for i in (1, 2))
    assert one == two


def test_further_pages_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PAGE", 2)
    given = adapter({f"h.{i}.to_q": module(i) for i in range(3)})
    found = plot(given, "weights", tmp_path / "w.svg", modules="*")
    assert [path.name for path in found] == ["w.svg", "w-2.svg"]
    (tmp_path / "w.svg").unlink()
    with pytest.raises(LorabenchError, match=r"w-2\.svg exists already"):
        plot(given, "weights", tmp_path / "w.svg", modules="*")
    assert not (tmp_path / "w.svg").exists(), "written before the refusal"
    assert len(plot(given, "weights", tmp_path / "w.svg", modules="*", force=True)) == 2


@pytest.mark.slow
def test_two_adapters_are_drawn_into_folders_and_compared(tmp_path: Path) -> None:
    found = plot([small(), small(5)], "all", tmp_path / "both")
    assert [str(path.relative_to(tmp_path / "both")) for path in found] == [
        *(f"{letter}/{kind}.png" for letter in "AB" for kind in ALONE),
        "compare.png",
    ]


@pytest.mark.parametrize(
    ("count", "kind", "out", "options", "message"),
    [
        (1, "bars", "x.png", {}, "kind='bars': allowed are blocks, compare"),
        (2, "ranks", "x.png", {}, "ranks draws 1"),
        (1, "compare", "x.png", {}, "Give two files"),
        (1, "ranks", "x.jpg", {}, r"written as \.png or \.svg"),
        (1, "all", "x.png", {}, "need a folder"),
        (1, "all", "x", {"form": "pdf"}, "form='pdf'"),
    ],
)
def test_wrong_arguments_are_refused(
    count: int, kind: str, out: str, options: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(LorabenchError, match=message):
        plot([small()] * count, kind, tmp_path / out, **options)
    assert not list(tmp_path.iterdir())


def test_an_adapter_without_modules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LorabenchError, match="no module in it"):
        plot(adapter({}), "ranks", tmp_path / "x.png")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = str(save(tmp_path / "a.safetensors", small().modules, "diffusers"))
    out = tmp_path / "ranks.png"
    assert main(["plot", path, "--kind", "ranks", "-o", str(out), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["pictures"] == [str(out)]
    assert data["adapters"][0]["modules"] == 4
    assert main(["plot", path, "--kind", "ranks", "-o", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["plot", path, path, "--kind", "compare", "-o", str(tmp_path / "c.svg")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'c.svg'}\n"
    for wrong in (["--kind", "compare"], ["--kind", "ranks", "--modules", "*"], ["--kind", "pie"], []):
        with pytest.raises(SystemExit) as end:
            main(["plot", path, "-o", str(tmp_path / "w.png"), *wrong])
        assert end.value.code == 2


REAL = (
    "peft/opt",
    "peft/gpt2",
    "mlx/adapters.safetensors",
    "loralib/roberta_lora.bin",
    "kohya/style.safetensors",
    "cloneofsimo/style.safetensors",
    "peft/toy",
    *published(
        "johntnanney__gradience/examples/adapters/tiny_lora/adapter_model.safetensors",
        "catundchat__stable-diffusion-v1.5-lora/pytorch_lora_weights.safetensors",
        "cloneofsimo__lora/example_loras/lora_disney.safetensors",
        "huggingface__peft/tests/regression/lora_emb_conv1d/0.6.1/adapter_model.bin",
        "tommyroar__is-the-mountain-out/checkpoints/adapter_model.safetensors",
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_adapters_are_drawn_without_overlaps(name: str) -> None:
    given = load(real(name))
    assert sum(int(np.isfinite(table.norm).sum()) for table in block_strength(Subject(given))) == len(given.modules)
    with house_style():
        for kind, figure in figures(given):
            assert clashes(figure) == [], kind


def test_a_real_process_draws_an_svg(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", small().modules, "diffusers")
    arguments = ["plot", str(path), "--kind", "blocks", "-o", str(tmp_path / "new" / "b.svg")]
    command = [sys.executable, "-W", "error", "-m", "lorabench.adapters", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == f"wrote {tmp_path / 'new' / 'b.svg'}\n"
    assert done.stderr == ""
