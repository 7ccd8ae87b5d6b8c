"""Adapter files between two adapters, in the latent space of a run's VAE, against the same computed by numpy."""

import errno
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from lorabench.adapters import load as load_adapter
from lorabench.adapters.__main__ import main
from lorabench.errors import LorabenchError
from lorabench.interpolation import interpolate, line_between
from lorabench.representations.denoising import Denoising
from lorabench.representations.fitted import save_fitted
from lorabench.representations.load_from import Loaded
from lorabench.representations.vae import VAE
from lorabench.zoo import export, folder
from lorabench.zoo.splits import split_zoo
from tests.fitted_runs import SHARES, Study, fitted_on, make_study, result_of
from tests.processes import lorabench
from tests.small_study import run as whole_run
from tests.synthetic_zoo import deltas, make_zoo, with_layers

SCOPES = ("layer", "module", "all")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("study"), SCOPES)


def _linear(x: np.ndarray, state: dict[str, np.ndarray], key: str) -> np.ndarray:
    return x @ state[f"{key}.weight"].T.astype(np.float64) + state.get(f"{key}.bias", 0.0)


def _encode(x: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    """μ, with batch norm's running statistics."""
    for block in ("encoder.0", "encoder.1"):
        x = _linear(x, state, f"{block}.0")
        mean, variance = (state[f"{block}.1.running_{name}"].astype(np.float64) for name in ("mean", "var"))
        x = (x - mean) / np.sqrt(variance + 1e-5) * state[f"{block}.1.weight"] + state[f"{block}.1.bias"]
        x = np.maximum(x, 0)
    return _linear(x, state, "encoder.2")[:, :3]


def _decode(z: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    for key in ("decoder.0.0", "decoder.1.0"):
        z = np.maximum(_linear(z, state, key), 0)
    return _linear(z, state, "decoder.2")


def _by_hand(study: Study, scope: str, rows: tuple[int, int], t: float) -> tuple[dict[str, np.ndarray], float]:
    """The layers at t, uncut, by numpy in float64 from the run's files; and Σ(x - x̂)²/Σx² of A's decoded μ."""
    folder_ = study.runs[scope] / "fitted" / "vae"
    index = json.loads((folder_ / "config.json").read_text())
    layers, above, below = {}, 0.0, 0.0
    for unit in index["units"].values():
        state = load_file(folder_ / unit["file"])
        stacks = [study.zoo.read(layer)[list(rows)].astype(np.float64) for layer in unit["layers"]]
        x = (np.concatenate([one.reshape(2, -1) for one in stacks], 1) - state["mean"]) / state["scale"]
        mu = _encode(x, state)
        standardised = _decode((1 - t) * mu[:1] + t * mu[1:], state)
        above, below = above + ((x[:1] - _decode(mu[:1], state)) ** 2).sum(), below + (x[:1] ** 2).sum()
        decoded = (standardised * state["scale"] + state["mean"])[0]
        for layer, stack in zip(unit["layers"], stacks, strict=True):
            size = stack[0].size
            layers[layer], decoded = decoded[:size].reshape(stack[0].shape), decoded[size:]
    return layers, above / below


def _files(out: Path) -> list[Path]:
    return sorted((out / "interpolation").iterdir())


def _hidden(place: Path) -> list[Path]:
    return list(place.glob(".*"))


@pytest.mark.parametrize("scope", SCOPES)
def test_files_are_the_decoded_points_of_the_line(study: Study, scope: str, tmp_path: Path) -> None:
    rows = (0, 1)
    assert study.zoo.rank[list(rows)].tolist() == [[1] * 3, [2] * 3]
    interpolate(study.runs[scope], *(study.names[row] for row in rows), tmp_path / "out", 3, "kohya")
    assert len(_files(tmp_path / "out")) == 3
    for path, t in zip(_files(tmp_path / "out"), (0, 0.5, 1), strict=True):
        layers, _ = _by_hand(study, scope, rows, t)
        found = load_adapter(path)
        assert list(found.modules) == [module.name for module in study.zoo.modules]
        for column, module in enumerate(study.zoo.modules):
            written = found.modules[module.name]
            # The larger of both ranks; what is decoded beyond it stays out.
            assert written.rank == 2
            np.testing.assert_allclose(written.down.numpy(), layers[module.down][:2], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(written.up.numpy(), layers[module.up][:, :2], rtol=1e-4, atol=1e-5)
            a, b = (float(study.zoo.scale[row, column]) for row in rows)
            if t in (0, 1):
                assert np.float32(written.scale) == np.float32(b if t else a)
            assert written.scale == pytest.approx((1 - t) * a + t * b, rel=1e-6)


@pytest.mark.parametrize("layout", ["diffusers", "peft", "kohya"])
def test_files_come_back_as_a_zoo_with_the_same_updates(study: Study, layout: str, tmp_path: Path) -> None:
    line = interpolate(study.runs["layer"], study.names[2], study.names[4], tmp_path / "out", 4, layout)
    back = folder.load(tmp_path / "out", "between", tmp_path / "cache")
    assert list(back.layers) == list(study.zoo.layers)
    assert back.labels.leaf_names == ("t=0", "t=0.3333", "t=0.6667", "t=1")
    assert back.labels.category_names == ("interpolation",)
    np.testing.assert_array_equal(back.rank, np.full((4, 3), 3))
    for module in back.modules:
        np.testing.assert_allclose(deltas(back, module.name), deltas(line.zoo, module.name), rtol=1e-5, atol=1e-6)
    if layout == "kohya":
        np.testing.assert_array_equal(back.scale, line.zoo.scale)


@pytest.mark.parametrize("scope", SCOPES)
def test_what_is_measured_is_that_of_dense_updates(study: Study, scope: str, tmp_path: Path) -> None:
    rows = (3, 1)
    a, b = (study.names[row] for row in rows)
    line = interpolate(study.runs[scope], a, b, tmp_path / "out", 3, "kohya")
    own = [np.concatenate([deltas(study.zoo, m.name)[row].ravel() for m in study.zoo.modules]) for row in rows]
    norms = [np.linalg.norm(one) for one in own]
    for path, step, t in zip(_files(tmp_path / "out"), line.steps, (0, 0.5, 1), strict=True):
        modules = load_adapter(path).modules.values()
        dense = np.concatenate([(m.scale * m.up.double() @ m.down.double()).numpy().ravel() for m in modules])
        size = np.linalg.norm(dense)
        assert step.t == t
        assert step.cosine == pytest.approx([dense @ o / size / n for o, n in zip(own, norms, strict=True)], rel=1e-5)
        assert step.norm == pytest.approx([size / n for n in norms], rel=1e-5)
        if t in (0, 1):
            assert line.ends[int(t)].update_error == pytest.approx(
                np.linalg.norm(dense - own[int(t)]) / norms[int(t)], rel=1e-5
            )
        layers, lost = _by_hand(study, scope, rows, t)
        beyond = [
            float(s) * layers[m.up][:, 2:] @ layers[m.down][2:]
            for m, s in zip(study.zoo.modules, line.zoo.scale[int(2 * t)], strict=True)
        ]
        assert step.cut == pytest.approx(
            np.linalg.norm(np.concatenate([one.ravel() for one in beyond])) / size, rel=1e-3
        )
        assert step.cut > 0
        assert line.ends[0].weights_error == pytest.approx(lost, rel=1e-4)
    assert line.cosine == pytest.approx(own[0] @ own[1] / norms[0] / norms[1], rel=1e-6)
    assert line.norm == pytest.approx(norms[1] / norms[0], rel=1e-6)
    parts = vars(split_zoo(study.zoo.labels, **SHARES))
    for end, row, name in zip(line.ends, rows, (a, b), strict=True):
        assert end.name == name
        assert row in parts[end.part]


@pytest.mark.parametrize("layout", ["diffusers", "peft"])
def test_every_file_says_what_it_is_and_what_it_is_not(study: Study, layout: str, tmp_path: Path) -> None:
    line = interpolate(study.runs["layer"], study.names[0], study.names[1], tmp_path / "out", 2, layout)
    index = json.loads((study.runs["layer"] / "fitted" / "vae" / "config.json").read_text())
    errors = [unit["diagnostics"]["reconstruction_error"] for unit in index["units"].values()]
    assert f"loses {np.median(errors):.0%} (the median of 6; {min(errors):.0%} to {max(errors):.0%})" in line.note
    for path, step in zip(_files(tmp_path / "out"), line.steps, strict=True):
        metadata = load_adapter(path).metadata
        assert metadata["lorabench_note"] == line.note
        for said in ("straight line", "layer after layer by itself", "Not a trained adapter", "no promise", "gauges"):
            assert said in line.note
        known = json.loads(metadata["lorabench_interpolation"])
        assert (known["t"], known["cosine"], known["norm"]) == (step.t, list(step.cosine), list(step.norm))
        assert [end["name"] for end in known["between"]] == list(study.names[:2])
        assert known["between"][0]["update_error"] == line.ends[0].update_error
        assert known["fingerprint"] == study.zoo.fingerprint
        assert str(study.place) not in str(metadata)


def test_notes_name_what_the_autoencoder_saw(study: Study, tmp_path: Path) -> None:
    notes = [interpolate(study.runs[scope], *study.names[:2], tmp_path / scope, 2).note for scope in SCOPES]
    assert [said in note for said, note in zip(("layer after", "module after", "all layers"), notes, strict=True)] == [
        True
    ] * 3
    assert "median" not in notes[2]


@settings(deadline=None, max_examples=15)
@given(
    rows=st.lists(st.integers(0, 23), min_size=2, max_size=2), steps=st.integers(2, 6), scope=st.sampled_from(SCOPES)
)
def test_the_way_back_is_the_way_there_reversed(study: Study, rows: list[int], steps: int, scope: str) -> None:
    pair = study.zoo.rows(np.array(rows))
    vae = Loaded(VAE(scope=scope), str(study.runs[scope]))
    vae.fit(pair, CPU)
    there, back = line_between(vae, pair, steps), line_between(vae, pair.rows(np.array([1, 0])), steps)
    for layer in pair.layers:
        np.testing.assert_allclose(there.zoo.read(layer), back.zoo.read(layer)[::-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(there.zoo.scale, back.zoo.scale[::-1], rtol=1e-6)
    for one, other in zip(there.steps, back.steps[::-1], strict=True):
        assert one.cosine == pytest.approx(other.cosine[::-1], rel=1e-4, abs=1e-5)
    assert there.cosine == pytest.approx(back.cosine, rel=1e-9)


def test_an_adapter_without_an_update_has_no_ratios(study: Study) -> None:
    module = study.zoo.modules[0]
    untrained = {m.up: np.array(study.zoo.read(m.up)) for m in study.zoo.modules}
    for values in untrained.values():
        values[1] = 0
    pair = with_layers(study.zoo, untrained).rows(np.array([0, 1]))
    vae = Loaded(VAE(), str(study.runs["layer"]))
    vae.fit(pair, CPU)
    line = line_between(vae, pair, 3)
    assert not pair.read(module.up)[1].any()
    for step in line.steps:
        assert math.isnan(step.cosine[1])
        assert math.isnan(step.norm[1])
        assert math.isfinite(step.cosine[0])
    assert math.isnan(line.ends[1].update_error)
    assert math.isnan(line.cosine)
    assert line.norm == 0


def test_an_adapter_of_a_perfect_decoder_is_itself(study: Study) -> None:
    """A decoder that names one adapter by its bias: its reconstruction has no error, cosine 1 and norm 1."""
    pair = study.zoo.rows(np.array([2, 2]))
    vae = fitted_on(study.zoo, "all")
    module: Any = vae.fitted_["all"].on(vae.kind(), CPU)
    raw = torch.cat([torch.from_numpy(np.array(pair.read(layer))).flatten(1) for layer in pair.layers], 1)
    with torch.no_grad():
        module.decoder[-1].weight.zero_()
        module.decoder[-1].bias.copy_(module.standardised(raw)[0])
    line = line_between(vae, pair, 2)
    for i in (0, 1):
        assert line.steps[i].cosine == pytest.approx((1, 1), abs=1e-6)
        assert line.steps[i].norm == pytest.approx((1, 1), abs=1e-5)
        assert line.ends[i].update_error == pytest.approx(0, abs=1e-5)
        assert line.ends[i].weights_error == pytest.approx(0, abs=1e-9)
        assert line.steps[i].cut == 0


def _command(*arguments: object) -> int:
    return main(["interpolate", *map(str, arguments)])


def _copied(study: Study, place: Path, scope: str = "layer") -> Path:
    """A run like the study's, to be spoiled."""
    vae = Loaded(VAE(scope=scope), str(study.runs[scope]))
    vae.fit(study.zoo, CPU)
    save_fitted(vae.fitted_, vae.config(), place / "run" / "fitted" / "vae")
    result_of(study.zoo, study.place).write(place / "run" / "results.json")
    return place / "run"


def _refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a mistake."""
    try:
        code = _command(*arguments)
    except SystemExit as ended:
        code = int(str(ended.code))
    said = capsys.readouterr().err
    assert code in (1, 2), said
    assert said.count("\n") == 1
    return said


def test_a_table_is_shown_and_an_empty_folder_is_taken(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    assert _command(study.runs["layer"], *study.names[:2], "--out", out) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[2:7]] == ["0.000", "0.250", "0.500", "0.750", "1.000"]
    assert len(_files(out)) == 5
    assert any(line.startswith(f"A is {study.names[0]}") and "split" in line for line in said)
    assert said[-1] == f"Written to {out}"
    assert not _hidden(out.parent)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "A", "B", "--out", "OUT", "--steps", "1"], "--steps 1: at least 2"),
        (["RUN", "A", "A", "--out", "OUT"], "is named twice"),
        (["RUN", "A", "c0/000000-leaf", "--out", "OUT"], "did you mean c0/000000-leaf0.safetensors"),
        (["RUN", "A", "@", "--out", "OUT"], "has no adapter '@'; names look like c0/000000"),
        (["RUN", "A", "B", "--out", "FULL"], "is not empty. Name a new or empty folder"),
        (["RUN", "A", "B", "--out", "FULL/thesis.tex"], "is a file"),
        (["RUN", "A", "B", "--out", "FULL/thesis.tex/below"], "a part of this path is a file"),
        (["FULL", "A", "B", "--out", "OUT"], "results.json is missing, or none that a run wrote"),
        (
            ["RUN", "A", "B", "--out", "OUT", "--representation", "x"],
            "no VAE 'x'; give --representation NAME, one of vae",
        ),
        (["RUN", "A", "B", "--out", "OUT", "--path", "FULL"], "cannot be read again: "),
        (["RUN", "A", "B", "--out", "OUT", "--format", "onnx"], "onnx"),
        (["RUN", "A", "B"], "--out"),
    ],
)
def test_mistakes_end_in_one_line(
    study: Study, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("x")
    meant = {"RUN": study.runs["layer"], "A": study.names[0], "B": study.names[1], "OUT": tmp_path / "out"}
    filled = [str(meant.get(text, text)).replace("FULL", str(full)) for text in arguments]
    assert message in _refused(capsys, *filled)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert [path.name for path in full.iterdir()] == ["thesis.tex"]


def test_a_run_without_a_vae_or_with_several_is_refused(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    result_of(study.zoo, study.place).write(run / "results.json")
    rest = (*study.names[:2], "--out", tmp_path / "out")
    assert "has no fitted VAE; run python -m lorabench representation=vae" in _refused(capsys, run, *rest)
    other = Denoising(epochs=1, hidden=[8], latent_dim=2, batch_size=4)
    small = study.zoo.only(list(study.zoo.layers)[:1])
    other.fit(small, CPU)
    save_fitted(other.fitted_, other.config(), run / "fitted" / "denoising")
    assert "has no fitted VAE (it has denoising, which is none)" in _refused(capsys, run, *rest)
    for scope in ("layer", "all"):
        vae = Loaded(VAE(scope=scope), str(study.runs[scope]))
        vae.fit(study.zoo, CPU)
        save_fitted(vae.fitted_, vae.config(), run / "fitted" / f"vae-{scope}")
    assert "several VAEs; give --representation NAME, one of vae-all, vae-layer" in _refused(capsys, run, *rest)
    assert not (tmp_path / "out").exists()
    assert _command(run, *rest, "--representation", "vae-all") == 0
    # Fitted by another run, whose split is not known here.
    assert "split" not in capsys.readouterr().out


def test_a_vae_of_some_layers_is_refused(study: Study, tmp_path: Path) -> None:
    run = _copied(study, tmp_path)
    path = run / "fitted" / "vae" / "config.json"
    index = json.loads(path.read_text())
    gone = list(index["units"])[2]
    del index["units"][gone]
    path.write_text(json.dumps(index))
    with pytest.raises(LorabenchError, match=f"knows 5 of the 6 layers of mine, and .* {gone} is missing"):
        interpolate(run, *study.names[:2], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_zoo_than_the_run_saw_is_refused(study: Study, tmp_path: Path) -> None:
    run = _copied(study, tmp_path)
    export.export(make_zoo(seed=1), tmp_path / "changed", "kohya")
    with pytest.raises(LorabenchError, match=r"the data set mine is not what .* saw \(fingerprint .* have changed"):
        interpolate(run, *study.names[:2], tmp_path / "out", moved={"path": str(tmp_path / "changed")})
    export.export(make_zoo(), tmp_path / "same", "kohya")
    interpolate(run, *study.names[:2], tmp_path / "out", moved={"path": str(tmp_path / "same")})
    with pytest.raises(LorabenchError, match=r"--color: the data set of .* has no color, only name, path"):
        interpolate(run, *study.names[:2], tmp_path / "other", moved={"color": "red"})


def test_a_results_file_cannot_have_anything_called(study: Study, tmp_path: Path) -> None:
    run = _copied(study, tmp_path)
    result = result_of(study.zoo, study.place)
    evil = {"_target_": "os.mkdir", "path": str(tmp_path / "pwned")}
    replace(result, config={**result.config, "dataset": evil}).write(run / "results.json")
    with pytest.raises(
        LorabenchError, match=r"has a data set of os\.mkdir, and this installation knows lorabench\.zoo"
    ):
        interpolate(run, *study.names[:2], tmp_path / "out")
    nested = {**result.config["dataset"], "name": evil}
    replace(result, config={**result.config, "dataset": nested}).write(run / "results.json")
    with pytest.raises(LorabenchError, match="the data set"):
        interpolate(run, *study.names[:2], tmp_path / "out")
    assert not (tmp_path / "pwned").exists()


def test_names_that_do_not_tell_adapters_apart_are_refused(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = replace(study.zoo.labels, adapters=("twin", "twin", *study.names[2:]))
    monkeypatch.setattr("lorabench.interpolation.writing.find_zoo", lambda *_: replace(study.zoo, labels=labels))
    with pytest.raises(LorabenchError, match="has 2 adapters of the name 'twin'"):
        interpolate(study.runs["layer"], "twin", study.names[2], study.place / "never")


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_nothing_half_written_is_left(
    study: Study,
    fault: BaseException,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real, calls = export.save_adapter, []

    def full(*arguments: Any) -> Path:
        calls.append(arguments)
        if len(calls) == 3:
            assert _hidden(tmp_path)
            raise fault
        return real(*arguments)

    monkeypatch.setattr(export, "save_adapter", full)
    code = _command(study.runs["layer"], *study.names[:2], "--out", tmp_path / "out")
    said = capsys.readouterr().err
    assert (code, said.count("\n")) == (130 if isinstance(fault, KeyboardInterrupt) else 1, 1)
    assert ("interrupted; nothing was written" if code == 130 else "the disk is full") in said
    assert len(calls) == 3
    assert not list(tmp_path.iterdir())


def test_a_folder_that_fills_meanwhile_is_left_as_it_is(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = export.save_adapter

    def meanwhile(*arguments: Any) -> Path:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "thesis.tex").write_text("x")
        return real(*arguments)

    monkeypatch.setattr(export, "save_adapter", meanwhile)
    with pytest.raises(LorabenchError, match="somebody wrote into it meanwhile"):
        interpolate(study.runs["layer"], *study.names[:2], tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.tex"]


@pytest.mark.slow
def test_the_command_as_a_user_calls_it(study: Study, tmp_path: Path) -> None:
    run, (a, b) = study.runs["module"], study.names[:2]
    words = ["adapters", "interpolate", str(run), a]
    done = lorabench(*words, b, "--steps", "2", "--out", "out", cwd=tmp_path)
    assert done.stderr == ""
    assert len(_files(tmp_path / "out")) == 2
    again = lorabench(*words, b, "--steps", "2", "--out", "out", cwd=tmp_path, code=1)
    assert again.stderr == "lorabench adapters interpolate: --out out: is not empty. Name a new or empty folder\n"
    lost = lorabench(*words, b[:-14], "--out", "new", cwd=tmp_path, code=1)
    assert f"did you mean {b}" in lost.stderr
    assert lost.stderr.count("\n") == 1
    assert "Traceback" not in lost.stderr


def test_help_says_what_the_files_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["interpolate", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for words in ("not A and B", "trained adapters; nothing promises", "by itself", "reconstruction_error", "gauges"):
        assert words in said


def test_a_run_of_the_pipeline_can_be_interpolated_in(study: Study, tmp_path: Path) -> None:
    whole_run(
        tmp_path / "run", "dataset=folder", f"dataset.path={study.place / 'adapters'}", f"cache_dir={tmp_path}",
        "representation=vae", "representation.epochs=2", "representation.hidden=[8,4]", "representation.batch_size=4",
        "num_runs=1", "classifier.max_epochs=1", "split.train=0.5", "split.val=0.25", "split.test=0.25",
    )  # fmt: skip
    line = interpolate(tmp_path / "run", *study.names[:2], tmp_path / "out", 2)
    assert len(_files(tmp_path / "out")) == 2
    parts = vars(split_zoo(study.zoo.labels, **SHARES))
    assert all(row in parts[str(end.part)] for row, end in enumerate(line.ends))
