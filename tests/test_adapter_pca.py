"""Principal components of layers and between adapters, against numpy, scikit-learn and dense ΔW."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from lorabench.adapters.__main__ import main
from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.merging.aligning import file_labels
from lorabench.adapters.principal_components import each_layer, pca, pca_across
from lorabench.adapters.writing.saving import save
from lorabench.errors import LorabenchError
from tests.real_adapters import published, real

Q, K = "unet.mid_block.attn1.to_q", "unet.mid_block.attn1.to_k"


def module(
    seed: int = 0, rank: int = 4, shape: tuple[int, int] = (12, 9), scale: float = 1.0, offset: float = 0.3
) -> LoraModule:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, shape[1], generator=generator) + offset
    up = torch.randn(shape[0], rank, generator=generator) * torch.linspace(1, 3, rank) - offset
    return LoraModule(down, up, scale)


def adapter(modules: Mapping[str, LoraModule], name: str = "a.safetensors") -> Adapter:
    return Adapter(Path(name), ("diffusers",), dict(modules))


def by_hand(values: np.ndarray, standardise: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centred (and scaled) samples, eigenvalues and eigenvectors of their covariance, descending."""
    centred = values - values.mean(axis=0)
    if standardise:
        spread = values.std(axis=0)
        centred = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-12)
    variances, vectors = np.linalg.eigh(np.cov(centred, rowvar=False).reshape(values.shape[1], -1))
    return centred, variances[::-1], vectors[:, ::-1]


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("part", ["down", "up"])
def test_a_layers_components_are_eigenvectors_of_its_covariance(part: str, standardise: bool) -> None:
    one = module()
    found = pca(adapter({Q: one}), standardise=standardise)[f"{Q}.lora.{part}.weight"]
    values = getattr(one, part).double().numpy()
    centred, variances, vectors = by_hand(values, standardise)
    k = min(values.shape[0] - 1, values.shape[1])
    assert (found.n_components, found.samples, found.features) == (k, *values.shape)
    assert found.total_variance == pytest.approx(variances.sum())
    np.testing.assert_allclose(found.explained_variance_ratio, variances[:k] / variances.sum(), atol=1e-12)
    np.testing.assert_allclose(found.cumulative[-1], 1.0)
    np.testing.assert_allclose(found.singular_values, np.sqrt(variances[:k] * (len(values) - 1)), rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(found.components.T * vectors[:, :k], axis=0)), 1.0, rtol=1e-9)
    np.testing.assert_allclose(found.transformed, centred @ found.components.T, atol=1e-12)


def test_constant_columns_stay_zero_and_are_counted() -> None:
    one = module()
    up = one.up.clone()
    up[:, 1] = 0.1  # not representable: its mean in float64 may differ from it by rounding
    found = pca(adapter({Q: LoraModule(one.down, up)}))[f"{Q}.lora.up.weight"]
    assert found.constant == 1
    assert np.all(np.abs(found.components[:3, 1]) < 1e-12)
    assert found.total_variance == pytest.approx(3 * 12 / 11)
    kept = pca(adapter({Q: LoraModule(one.down[[0, 2, 3]], up[:, [0, 2, 3]])}))[f"{Q}.lora.up.weight"]
    np.testing.assert_allclose(found.explained_variance_ratio[:3], kept.explained_variance_ratio, atol=1e-12)


def test_what_has_no_components_says_why_and_the_rest_is_analysed() -> None:
    one = module()
    modules = {
        "rank_1.to_q": module(rank=1),
        "untrained.to_q": LoraModule(one.down, torch.zeros_like(one.up)),
        "constant.to_q": LoraModule(torch.full_like(one.down, 0.7), one.up),
        Q: one,
    }
    found = pca(adapter(modules))
    reasons = {name: layer.reason for name, layer in found.items() if layer.reason}
    assert reasons == {
        "rank_1.to_q.lora.down.weight": "one sample alone (rank 1): nothing varies",
        "untrained.to_q.lora.up.weight": "untrained: every weight is 0",
        "constant.to_q.lora.down.weight": "constant: all 4 samples are equal",
    }
    for name in reasons:
        assert (found[name].n_components, found[name].total_variance, found[name].enough()) == (0, None, None)
    assert found["rank_1.to_q.lora.up.weight"].explained_variance_ratio.tolist() == pytest.approx([1.0])
    assert len(found) == 8


def test_fewer_components_are_the_first_of_all() -> None:
    whole, few = (pca(adapter({Q: module()}), n_components=k)[f"{Q}.lora.up.weight"] for k in (None, 2))
    assert few.n_components == 2
    np.testing.assert_allclose(few.explained_variance_ratio, whole.explained_variance_ratio[:2], atol=1e-12)
    np.testing.assert_allclose(few.transformed, whole.transformed[:, :2], atol=1e-9)
    assert few.total_variance == pytest.approx(whole.total_variance)
    assert whole.enough(0.9) == int(np.searchsorted(whole.cumulative, 0.9)) + 1
    assert few.enough(1.0) is None
    assert pca(adapter({Q: module()}), n_components=99)[f"{Q}.lora.up.weight"].n_components == 4


def test_layers_are_chosen_by_a_pattern_for_layers_or_modules() -> None:
    both = adapter({Q: module(0), K: module(1)})
    assert list(pca(both, layers="*to_k*")) == [f"{K}.lora.down.weight", f"{K}.lora.up.weight"]
    assert list(pca(both, layers="*.up.weight")) == [f"{Q}.lora.up.weight", f"{K}.lora.up.weight"]
    assert len(pca(both, layers=Q)) == 2
    with pytest.raises(LorabenchError, match=r"no module or layer fits 'to_v'.*\*to_q\*"):
        pca(both, layers="to_v")
    with pytest.raises(LorabenchError, match="n_components=0"):
        list(each_layer(both, n_components=0))


def code_of(arguments: list[str]) -> int:
    """The exit code, also where argparse leaves."""
    try:
        return main(arguments)
    except SystemExit as end:
        return int(str(end.code))


def dense(adapters: Sequence[Adapter], name: str) -> np.ndarray:
    return np.stack([one.modules[name].delta().double().numpy().ravel() for one in adapters])


def several() -> list[Adapter]:
    return [
        adapter({Q: module(seed, rank, scale=scale)}, f"{seed}.safetensors")
        for seed, rank, scale in ((0, 2, 1.0), (1, 4, -0.5), (2, 12, 2.0), (3, 1, 0.7), (4, 3, 0.0))
    ]


def test_between_adapters_components_are_those_of_the_dense_deltas() -> None:
    adapters = several()
    found = pca_across(adapters)[Q]
    rows = dense(adapters, Q)
    wanted = PCA().fit(rows)
    assert found.adapters == ("0", "1", "2", "3", "4")
    assert found.n_components == 4
    np.testing.assert_allclose(found.explained_variance_ratio, wanted.explained_variance_ratio_[:4], rtol=1e-6)
    np.testing.assert_allclose(found.singular_values, wanted.singular_values_[:4], rtol=1e-6)
    assert found.total_variance == pytest.approx(rows.var(axis=0, ddof=1).sum(), rel=1e-6)
    scores = wanted.transform(rows)[:, :4]
    signs = np.sign(np.sum(found.scores * scores, axis=0))
    np.testing.assert_allclose(found.scores * signs, scores, atol=1e-5 * np.abs(scores).max())


@settings(max_examples=25, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 7), min_size=2, max_size=5),
    scale=st.sampled_from([-2.0, 0.0, 1.0, 1e-3]),
    seed=st.integers(0, 99),
)
def test_distances_between_scores_are_distances_between_deltas(ranks: list[int], scale: float, seed: int) -> None:
    adapters = [
        adapter({Q: module(seed + i, rank, (6, 5), scale if i == 0 else 1.0)}, f"{i}.safetensors")
        for i, rank in enumerate(ranks)
    ]
    found = pca_across(adapters)[Q]
    rows = dense(adapters, Q)
    wanted = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
    np.testing.assert_allclose(
        np.linalg.norm(found.scores[:, None] - found.scores[None], axis=-1), wanted, atol=2e-6 * wanted.max()
    )
    assert found.cumulative[-1] == pytest.approx(1.0)
    assert found.n_components <= len(ranks) - 1
    np.testing.assert_allclose(found.scores.sum(axis=0), 0.0, atol=1e-6 * wanted.max())


def test_modules_that_cannot_be_compared_say_why() -> None:
    one, zero = module(), LoraModule(torch.ones(2, 9), torch.zeros(12, 2))
    order = [2, 0, 3, 1]  # the same ΔW in another gauge
    same = LoraModule(one.down[order] * 2, one.up[:, order] / 2)
    first = adapter({Q: one, K: module(1), "zero": zero, "same": one, "alone": one}, "x/a.safetensors")
    second = adapter({Q: module(2), K: module(1, shape=(12, 8)), "zero": zero, "same": same}, "y/b.safetensors")
    found = pca_across([first, second])
    assert {name: one.reason for name, one in found.items()} == {
        Q: "",
        K: "shapes differ: a 12×9, b 12×8",
        "zero": "untrained in every file: ΔW is 0",
        "same": "ΔW is the same in every file",
        "alone": "not in b",
    }
    assert found["alone"].scores.shape == (2, 0)
    with pytest.raises(LorabenchError, match="1 adapter given"):
        pca_across([first])
    assert list(pca_across([first, second], modules="*to_?")) == [Q, K]


def test_an_untrained_adapter_among_others_is_a_point_at_zero() -> None:
    trained, zero = module(), LoraModule(torch.ones(2, 9), torch.zeros(12, 2))
    found = pca_across([adapter({Q: trained}, "a.bin"), adapter({Q: zero}, "b.bin")])[Q]
    norm = trained.delta().norm().item()
    assert found.scores[:, 0] == pytest.approx(found.scores[0, 0] * np.array([1, -1]))
    assert abs(found.scores[0, 0]) == pytest.approx(norm / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["a/w.bin", "b/v.bin"], ("w", "v")),
        (["a/w.bin", "b/w.bin"], ("a/w", "b/w")),
        (["a/w.bin", "a/w.safetensors"], ("w.bin", "w.safetensors")),
        (["w.bin", "w.bin"], ("w (1)", "w (2)")),
    ],
)
def test_files_are_told_apart_by_the_shortest_names(paths: list[str], labels: tuple[str, ...]) -> None:
    assert file_labels([Path(path) for path in paths]) == labels


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., list[str]]:
    def write(count: int) -> list[str]:
        return [
            str(save(tmp_path / f"{i}.safetensors", {Q: module(i), K: module(i + 9, 1)}, "diffusers"))
            for i in range(count)
        ]

    return write


def test_the_command_prints_a_table_with_reasons(
    files: Callable[..., list[str]], capsys: pytest.CaptureFixture
) -> None:
    assert main(["pca", *files(1)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[-1] == "total variance"
    assert [line.split()[1] for line in lines[2:6]] == ["4×9", "12×4", "1×9", "12×1"]
    assert lines[6] == f"no components, one sample alone (rank 1): nothing varies: 1 ({K}.lora.down.weight)"


def test_json_leaves_components_out_unless_full(files: Callable[..., list[str]], capsys: pytest.CaptureFixture) -> None:
    paths = files(1)
    found = {}
    for full in ([], ["--full"]):
        assert main(["pca", *paths, "--json", "--components", "2", *full]) == 0
        found[len(full)] = json.loads(capsys.readouterr().out)["layers"]
    short, long = (found[i][f"{Q}.lora.up.weight"] for i in (0, 1))
    assert set(long) - set(short) == {"components", "transformed"}
    wanted = pca(adapter({Q: module()}), n_components=2)[f"{Q}.lora.up.weight"]
    np.testing.assert_allclose(long["components"], wanted.components, atol=1e-12)
    np.testing.assert_allclose(short["explained_variance_ratio"], wanted.explained_variance_ratio)
    assert short["components_for_90_percent"] == wanted.enough()
    assert found[0][f"{K}.lora.down.weight"]["total_variance"] is None


def test_output_and_figures_are_written_and_not_replaced(
    files: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    paths = files(2)
    out, figure = tmp_path / "all.json", tmp_path / "all.svg"
    assert main(["pca", paths[0], "-o", str(out), "--figure", str(figure)]) == 0
    written = json.loads(out.read_text())
    assert written["file"] == paths[0]
    assert np.shape(written["layers"][f"{Q}.lora.up.weight"]["transformed"]) == (12, 4)
    assert figure.read_text().startswith("<?xml")
    assert main(["pca", paths[0], "-o", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["pca", *paths, "-o", str(out), "--force", "--figure", str(tmp_path / "across.png")]) == 0
    between = json.loads(out.read_text())["modules"][Q]
    np.testing.assert_allclose(np.ravel(between["scores"])[0], -np.ravel(between["scores"])[1])
    assert (tmp_path / "across.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*")), "a temporary file was left"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--figure", "x.jpg"], 1, ".png or .svg"),
        (["-o", "x.txt"], 1, ".json"),
        (["--layers", "nothing"], 1, "no module or layer fits 'nothing'"),
        (["--components", "0"], 2, "a whole number from 1 is needed"),
        (["--components", "many"], 2, "many"),
    ],
)
def test_wrong_options(
    files: Callable[..., list[str]], options: list[str], code: int, message: str, capsys: pytest.CaptureFixture
) -> None:
    assert code_of(["pca", *files(1), *options]) == code
    assert message in capsys.readouterr().err


def test_adapters_without_a_common_module_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = (
        str(save(tmp_path / f"{name}.safetensors", modules, "diffusers"))
        for name, modules in (("a", {Q: module()}), ("b", {K: module()}), ("c", {Q: module(shape=(12, 8))}))
    )
    for paths, named in (((first, second), (Q, K)), ((first, third), (Q,)), ((first, first, second), (Q, K))):
        assert main(["pca", *paths]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert f"no module is in all {len(paths)} adapters in the same shape" in said.err
        assert all(name in said.err for name in named)


def test_the_option_that_names_what_exists_is_said(
    files: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.png").write_text("")
    (tmp_path / "x.json").write_text("")
    for option, path in (("--figure", "x.png"), ("--output", "x.json")):
        assert main(["pca", *files(1), option, str(tmp_path / path)]) == 1
        assert f"Give another {option}, or --force" in capsys.readouterr().err


def test_options_for_one_file_are_refused_with_several(files: Callable[..., list[str]]) -> None:
    assert code_of(["pca", *files(2), "--no-standardise"]) == 2


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("cloneofsimo/style.safetensors", 2),
        *published(("cloneofsimo__lora/example_loras/lora_disney.safetensors", 10)),
    ],
)
def test_a_real_adapter_through_a_real_process(name: str, modules: int) -> None:
    command = [sys.executable, "-m", "lorabench.adapters", "pca", str(real(name)), "--layers", "unet.1?.*", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    layers = json.loads(done.stdout)["layers"]
    assert len(layers) == 2 * modules
    assert {bool(one["reason"]) for name, one in layers.items() if ".down." in name} == {True}
    assert [one["explained_variance_ratio"] for name, one in layers.items() if ".up." in name] == [[1.0]] * modules
