"""`compare` held against dense matrices, numpy and scipy."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.linalg import block_diag, subspace_angles

from lorabench.adapters import Adapter, LoraModule, load, save
from lorabench.adapters.__main__ import main
from lorabench.adapters.comparing.whole import Comparison, ModuleComparison, compare
from lorabench.adapters.reading.folders import adapter_files
from lorabench.errors import LorabenchError
from tests.adapter_folders import make_modules
from tests.real_adapters import published, real


def adapter(modules: Mapping[str, LoraModule], name: str = "a") -> Adapter:
    return Adapter(Path(f"{name}.safetensors"), ("diffusers",), modules)


def factors(seed: int, rank: int, d_out: int, d_in: int, scale: float = 1.0) -> LoraModule:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, d_in, generator=generator)
    return LoraModule(down, torch.randn(d_out, rank, generator=generator), scale)


def dense(module: LoraModule) -> np.ndarray:
    return float(module.scale) * module.up.double().numpy() @ module.down.double().numpy()


def one(a: LoraModule, b: LoraModule) -> ModuleComparison:
    return compare(adapter({"m": a}), adapter({"m": b}, "b")).modules[0]


def regauged(module: LoraModule, seed: int) -> LoraModule:
    gauge = np.random.default_rng(seed).normal(size=(module.rank, module.rank)) + 3 * np.eye(module.rank)
    up = torch.from_numpy(module.scale * module.up.double().numpy() @ gauge)
    down = torch.from_numpy(np.linalg.solve(gauge, module.down.double().numpy()))
    return replace(module, down=down.float(), up=up.float(), scale=1.0)


# thin_svd is right to 1e-9 where rows are nearly dependent, so are the numbers here.
sizes = st.integers(1, 12)
ranks = st.integers(1, 8)
scales = st.sampled_from([1.0, -1.0, 0.25, 3.0, -1e-6, 1e6])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), ranks, ranks, sizes, sizes, scales, scales)
def test_module_numbers_are_those_of_dense_matrices(
    seed: int, rank_a: int, rank_b: int, d_out: int, d_in: int, scale_a: float, scale_b: float
) -> None:
    a, b = factors(seed, rank_a, d_out, d_in, scale_a), factors(seed + 1, rank_b, d_out, d_in, scale_b)
    found, x, y = one(a, b), dense(a), dense(b)
    norm_a, norm_b = np.linalg.norm(x), np.linalg.norm(y)
    assert found.norms == pytest.approx((norm_a, norm_b), rel=1e-8)
    assert found.cosine == pytest.approx(np.vdot(x, y) / norm_a / norm_b, abs=1e-8)
    assert found.norm_ratio == pytest.approx(norm_b / norm_a, rel=1e-8)
    assert found.difference == pytest.approx(np.linalg.norm(x - y) / norm_a, rel=1e-8)
    assert found.distance == pytest.approx(np.linalg.norm(x - y) / max(norm_a, norm_b), rel=1e-8)
    assert found.ranks == (rank_a, rank_b)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4), st.integers(8, 20), st.integers(8, 20))
def test_principal_angles_are_those_of_scipy(seed: int, rank_a: int, rank_b: int, d_out: int, d_in: int) -> None:
    a, b = factors(seed, rank_a, d_out, d_in), factors(seed + 1, rank_b, d_out, d_in)
    found = one(a, b)
    assert found.numerical_ranks == (rank_a, rank_b)
    assert found.left is not None
    assert found.right is not None
    for side, width, x, y in (
        (found.left, d_out, a.up.double().numpy(), b.up.double().numpy()),
        (found.right, d_in, a.down.double().numpy().T, b.down.double().numpy().T),
    ):
        cosines = np.sort(np.cos(subspace_angles(x, y)))[::-1]
        assert np.allclose(side.cosines, cosines, atol=1e-9)
        assert side.shared == pytest.approx(np.mean(cosines**2), abs=1e-9)
        assert side.by_chance == max(rank_a, rank_b) / width


def test_by_chance_is_the_mean_over_random_subspaces() -> None:
    found = [one(factors(seed, 3, 12, 20), factors(seed + 1000, 5, 12, 20)) for seed in range(300)]
    for side, expected in (("left", 5 / 12), ("right", 5 / 20)):
        shared = [getattr(pair, side).shared for pair in found]
        assert np.mean(shared) == pytest.approx(expected, abs=4 * np.std(shared) / np.sqrt(len(shared)))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), ranks, st.integers(8, 40), st.integers(8, 40), st.sampled_from([1.0, 0.5, -2.0]))
def test_another_gauge_is_the_same_and_the_negative_is_opposite(
    seed: int, rank: int, d_out: int, d_in: int, scale: float
) -> None:
    module = factors(seed, rank, d_out, d_in, scale)
    same = one(module, regauged(module, seed))
    condition = np.linalg.cond(np.random.default_rng(seed).normal(size=(rank, rank)) + 3 * np.eye(rank))
    assert same.cosine == pytest.approx(1.0, abs=1e-6)
    assert same.difference is not None
    assert same.difference < 2e-7 * max(condition, 1)
    assert same.left is not None
    assert same.left.shared == pytest.approx(1.0, abs=1e-6)
    opposite = one(module, replace(regauged(module, seed), scale=-1.0))
    assert opposite.cosine == pytest.approx(-1.0, abs=1e-6)
    assert opposite.difference == pytest.approx(2.0, abs=max(1e-5, 2e-7 * condition))
    assert opposite.distance == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize("share", [0.0, 1e-12, 1e-9, 1e-6])
def test_small_differences_do_not_drown_in_rounding(share: float) -> None:
    # ‖a‖² + ‖b‖² − 2⟨a, b⟩ could not see anything below 1e-8.
    module = factors(3, 4, 30, 20)
    found = one(module, replace(module, scale=1.0 + share))
    assert found.difference == pytest.approx(share, rel=1e-3, abs=5e-15)


@pytest.mark.parametrize(("zero", "said"), [((0,), "a"), ((1,), "b"), ((0, 1), "both")])
def test_an_untrained_module_has_no_ratios(zero: tuple[int, ...], said: str) -> None:
    pair = [factors(0, 2, 6, 5), factors(1, 3, 6, 5)]
    for side in zero:
        pair[side] = replace(pair[side], up=torch.zeros_like(pair[side].up))
    found = one(*pair)
    assert found.untrained == said
    assert (found.cosine, found.norm_ratio, found.difference, found.left, found.right) == (None,) * 5
    assert found.distance == pytest.approx(0.0 if said == "both" else 1.0)
    whole = compare(adapter({"m": pair[0]}), adapter({"m": pair[1]}))
    assert (whole.cosine, whole.cosine_shared, whole.norm_ratio, whole.difference) == (None,) * 4


def test_a_zero_scale_and_zero_rows_are_no_rank() -> None:
    module = factors(0, 3, 9, 8)
    padded = replace(
        module,
        down=torch.cat([module.down, torch.zeros(2, 8)]),
        up=torch.cat([module.up, torch.ones(9, 2)], dim=1),
    )
    found = one(module, padded)
    assert found.ranks == (3, 5)
    assert found.numerical_ranks == (3, 3)
    assert found.difference == pytest.approx(0.0, abs=1e-9)
    assert one(module, replace(module, scale=0.0)).untrained == "b"


def test_a_truncated_module_lies_within_the_other() -> None:
    module = factors(0, 4, 20, 15)
    left, sigma, right = np.linalg.svd(dense(module), full_matrices=False)
    part = LoraModule(
        torch.from_numpy(right[:2]).float(), torch.from_numpy(left[:, :2] * sigma[:2]).float().contiguous()
    )
    found = one(module, part)
    assert found.numerical_ranks == (4, 2)
    assert found.left is not None
    assert found.left.shared == pytest.approx(1.0, abs=1e-8)
    assert found.left.by_chance == 4 / 20
    assert found.difference == pytest.approx(np.sqrt(np.sum(sigma[2:4] ** 2) / np.sum(sigma**2)), rel=1e-5)
    expected = np.sqrt(np.sum(sigma[:2] ** 2) / np.sum(sigma**2))
    assert (found.norm_ratio, found.cosine) == pytest.approx((expected, expected), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_leaves_subspaces_to_compare(dtype: torch.dtype) -> None:
    # σ > σ₁ · max(d) · eps would leave none: 1300 · eps is above 1.
    a = factors(0, 4, 1300, 10)
    a = replace(a, down=a.down.to(dtype).float(), up=a.up.to(dtype).float(), dtype=dtype)
    assert one(a, a).numerical_ranks == (4, 4)


def test_the_whole_adapter_is_all_modules_side_by_side() -> None:
    a = {"x": factors(0, 2, 6, 5), "y": factors(1, 3, 4, 7, -0.5), "only": factors(2, 1, 3, 3)}
    b = {"x": factors(3, 4, 6, 5, 2.0), "y": factors(4, 3, 4, 7), "other": factors(5, 2, 5, 5)}
    a["moved"], b["moved"] = factors(6, 2, 6, 4), factors(7, 2, 4, 6)
    found = compare(adapter(a), adapter(b))
    absent = {name: np.zeros(dense(module).shape) for name, module in (a | b).items()}
    whole_a = block_diag(*(dense(a[name]) if name in a else absent[name] for name in ("x", "y", "only", "other")))
    whole_b = block_diag(*(dense(b[name]) if name in b else absent[name] for name in ("x", "y", "only", "other")))
    whole_a = block_diag(whole_a, dense(a["moved"]), np.zeros((4, 6)))
    whole_b = block_diag(whole_b, np.zeros((6, 4)), dense(b["moved"]))
    norm_a, norm_b = np.linalg.norm(whole_a), np.linalg.norm(whole_b)
    assert found.norms == pytest.approx((norm_a, norm_b))
    assert found.cosine == pytest.approx(np.vdot(whole_a, whole_b) / norm_a / norm_b)
    assert found.norm_ratio == pytest.approx(norm_b / norm_a)
    assert found.difference == pytest.approx(np.linalg.norm(whole_a - whole_b) / norm_a)
    shared_a, shared_b = (block_diag(dense(side["x"]), dense(side["y"])) for side in (a, b))
    cosine = np.vdot(shared_a, shared_b) / np.linalg.norm(shared_a) / np.linalg.norm(shared_b)
    assert found.cosine_shared == pytest.approx(cosine)
    assert (found.only_a, found.only_b, found.compared) == (("only",), ("other",), 2)
    assert found.shapes_differ == {"moved": ((6, 4), (4, 6))}


def test_kernels_and_embeddings_are_other_spaces_but_a_1x1_kernel_is_none() -> None:
    plain = factors(0, 2, 6, 9)
    for other in (replace(plain, kernel=(3, 3)), replace(plain, embedding=True)):
        found = compare(adapter({"m": plain}), adapter({"m": other}))
        assert (found.compared, dict(found.shapes_differ)) == (0, {"m": ((6, 9), (6, 9))})
        assert found.cosine == 0.0
        assert found.cosine_shared is None
    assert one(plain, replace(plain, kernel=(1, 1))).difference == pytest.approx(0.0, abs=1e-9)


def test_the_most_different_come_first_and_top_cuts() -> None:
    a = {f"m{i}": factors(i, 2, 8, 8) for i in range(6)}
    b = {name: replace(module, scale=1.0 - 0.1 * i) for i, (name, module) in enumerate(a.items())}
    found = compare(adapter(a), adapter(b))
    assert [module.module for module in found.modules] == ["m5", "m4", "m3", "m2", "m1", "m0"]
    cut = compare(adapter(a), adapter(b), top=2)
    assert (cut.modules, cut.compared, cut.cosine) == (found.modules[:2], 6, found.cosine)
    with pytest.raises(LorabenchError, match="top=0: a number of modules from 1"):
        compare(adapter(a), adapter(b), top=0)


def prefixed(modules: Mapping[str, LoraModule], prefix: str) -> dict[str, LoraModule]:
    return {prefix + name: module for name, module in modules.items()}


def test_names_match_without_a_prefix_where_none_match_as_they_are() -> None:
    unet = {name: factors(i, 2, 8, 6) for i, name in enumerate(("mid.to_q", "mid.to_k"))}
    text = {"text_encoder.h.0.q_proj": factors(9, 2, 5, 5)}
    for flipped in (False, True):
        pair = (adapter(prefixed(unet, "unet.") | text), adapter(unet))
        found = compare(*(reversed(pair) if flipped else pair))
        assert found.compared == 2
        assert found.prefixes == (("", "unet.") if flipped else ("unet.", ""))
        assert found.cosine_shared == pytest.approx(1.0)
        assert (found.only_b if flipped else found.only_a) == tuple(text)
        assert {one.module for one in found.modules} == set(unet if flipped else prefixed(unet, "unet."))


def test_shapes_decide_between_two_prefixes_and_a_tie_is_refused() -> None:
    text = {f"layers.{i}.q_proj": factors(i, 2, 8, 8) for i in range(3)}
    wide = {name: factors(5, 2, 16, 16) for name in text}
    both = prefixed(text, "text_encoder.") | prefixed(wide, "text_encoder_2.")
    assert compare(adapter(both), adapter(wide)).prefixes == ("text_encoder_2.", "")
    twice = prefixed(text, "text_encoder.") | prefixed(text, "text_encoder_2.")
    with pytest.raises(LorabenchError, match=r"'text_encoder\.' and 'text_encoder_2\.'"):
        compare(adapter(twice), adapter(text))


def test_names_that_have_nothing_in_common_are_shown() -> None:
    a, b = adapter({"unet.a.to_q": factors(0, 2, 4, 4)}), adapter({"w_0": factors(0, 2, 4, 4)}, "b")
    with pytest.raises(LorabenchError, match=r"a\.safetensors and b\.safetensors.*unet\.a\.to_q .1 modules.* w_0 "):
        compare(a, b)


def written(path: Path, seed: int, layout: str = "diffusers", scale: float = 1.0) -> Path:
    return save(path, make_modules(seed, scale=scale), layout)


def test_the_command_compares_layouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = written(tmp_path / "a.safetensors", 0), written(tmp_path / "b", 0, "peft")
    assert main(["compare", str(a), str(b)]) == 0
    text = capsys.readouterr().out
    assert "cosine 1.0000" in text
    assert ": the same ΔW\n" in text
    assert "unet.mid_block.attn1.to_out.0" in text
    assert main(["compare", str(a), str(written(tmp_path / "c.safetensors", 1, "kohya")), "--top", "1"]) == 0
    text = capsys.readouterr().out
    assert "not the same" in text
    assert "1 of 3 modules, the most different first; --top 3 shows all" in text


def test_the_command_says_what_it_compares_and_an_adapter_equals_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = str(written(tmp_path / "a.safetensors", 0))
    assert main(["compare", a, a, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["difference"] == 0.0
    for wrong, said in (([a], "1 path came, but two"), ([a] * 3, "3 paths came"), ([a, a, "--top", "x"], "not 'x'")):
        with pytest.raises(SystemExit) as left:
            main(["compare", *wrong])
        assert left.value.code == 2
        assert said in " ".join(capsys.readouterr().err.split())


def test_the_command_as_json_is_the_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [written(tmp_path / f"{seed}.safetensors", seed) for seed in (0, 1)]
    assert main(["compare", *map(str, paths), "--top", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    found: Comparison = compare(*map(load, paths))
    assert said["cosine"] == found.cosine
    assert [one["module"] for one in said["modules"]] == [one.module for one in found.modules]
    assert said["modules"][0]["left"]["cosines"] == list(found.modules[0].left.cosines if found.modules[0].left else ())
    assert len(said["fingerprints"]) == 2
    assert said["difference_by_content"] == pytest.approx(found.difference, rel=0.6)


def test_the_command_says_that_only_names_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    modules = make_modules(0)
    a = save(tmp_path / "a.safetensors", modules, "diffusers")
    b = save(tmp_path / "b.safetensors", {f"w_{i}": one for i, one in enumerate(modules.values())}, "diffusers")
    assert main(["compare", str(a), str(b)]) == 1
    assert "By content alone, whatever the names, they are the same" in capsys.readouterr().err


def test_usage_and_input_errors_have_their_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = str(written(tmp_path / "a.safetensors", 0))
    for wrong in ([a], [a, a, a], [a, a, "--top", "0"], [a, "--duplicates", "--tolerance", "2"]):
        with pytest.raises(SystemExit) as left:
            main(["compare", *wrong])
        assert left.value.code == 2
    assert main(["compare", a, str(tmp_path / "no")]) == 1
    assert main(["compare", str(tmp_path / "no"), "--duplicates"]) == 1
    (tmp_path / "empty").mkdir()
    assert main(["compare", str(tmp_path / "empty"), "--duplicates"]) == 1
    assert "no adapter below" in capsys.readouterr().err


def folder_of_duplicates(root: Path) -> Path:
    written(root / "a.safetensors", 0)
    written(root / "deep" / "b", 0, "peft")
    written(root / "deep" / "c.safetensors", 0, "kohya")
    written(root / "d.safetensors", 1)
    (root / "broken.safetensors").write_bytes(b"version https://git-lfs")
    save(root / "zero.safetensors", make_modules(0, scale=0.0), "kohya")
    (root / "deep" / "b" / "optimizer.pt").write_bytes(b"state")
    return root


def test_the_command_finds_duplicates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder_of_duplicates(tmp_path / "zoo")
    assert main(["compare", str(root), "--duplicates", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    expected = [str(root / "a.safetensors"), str(root / "deep" / "b"), str(root / "deep" / "c.safetensors")]
    assert [[one["path"] for one in group] for group in said["groups"]] == [expected]
    assert said["untrained"] == [str(root / "zero.safetensors")]
    assert [one["path"] for one in said["unreadable"]] == [str(root / "broken.safetensors")]
    assert "git-LFS" in said["unreadable"][0]["reason"]
    assert said["beside_an_adapter"] == [str(root / "deep" / "b" / "optimizer.pt")]
    assert main(["compare", str(root), "--duplicates"]) == 0
    text = capsys.readouterr().out
    assert "5 adapters read, 1 groups of duplicates with 2 copies, 1 not readable" in text
    assert "git-LFS pointer" in text
    assert "optimizer.pt" in text


def test_each_file_and_each_peft_folder_is_one_adapter(tmp_path: Path) -> None:
    root = folder_of_duplicates(tmp_path)
    numbered = root / "mlx"
    numbered.mkdir()
    (numbered / "adapter_config.json").write_text("{}")
    for name in ("0000100_adapters.safetensors", "0000200_adapters.safetensors", "notes.txt"):
        (numbered / name).touch()
    below = adapter_files(root)
    assert [str(adapter.path.relative_to(root)) for adapter in below.adapters] == [
        "a.safetensors", "broken.safetensors", "d.safetensors", "deep/b", "deep/c.safetensors",
        "mlx/0000100_adapters.safetensors", "mlx/0000200_adapters.safetensors", "zero.safetensors",
    ]  # fmt: skip
    assert below.state == [root / "deep" / "b" / "optimizer.pt"]


def test_a_real_process_needs_no_torch_for_help(tmp_path: Path) -> None:
    code = "import sys; from lorabench.adapters.commands import compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    a, b = written(tmp_path / "a.safetensors", 0), written(tmp_path / "b.safetensors", 0, "kohya", scale=2.0)
    done = subprocess.run(
        [sys.executable, "-m", "lorabench.adapters", "compare", str(a), str(b)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "‖b‖/‖a‖ 2.0000" in done.stdout


@pytest.mark.parametrize(("folder", "names"), [
    ("peft", ("opt", "opt_rslora")),
    *published(("parikshit-06__domain-skeleton-gpt2/adapters", ("legal", "medical"))),
])  # fmt: skip
def test_real_adapters_are_compared_as_dense_matrices(folder: str, names: tuple[str, str]) -> None:
    a, b = (load(real(f"{folder}/{name}")) for name in names)
    found = compare(a, b)
    assert found.compared == len(a.modules) == len(b.modules)
    x, y = (np.concatenate([dense(one.modules[name]).ravel() for name in a.modules]) for one in (a, b))
    assert found.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-8)
    assert found.difference == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(x), rel=1e-8)


@pytest.mark.parametrize(("name", "modules", "most"), [
    ("diffusers_old", 32, 0.2), *published(("catundchat__stable-diffusion-v1.5-lora", 128, 0.01)),
])  # fmt: skip
def test_the_two_files_of_one_repository_are_two_adapters(name: str, modules: int, most: float, tmp_path: Path) -> None:
    folder = shutil.copytree(real(name), tmp_path / name)
    raw = load_file(folder / "pytorch_lora_weights.safetensors")
    if name == "diffusers_old":  # whose two files are one adapter
        torch.save({key: torch.randn_like(raw[key]) for key in raw}, folder / "pytorch_lora_weights.bin")
    pickled = torch.load(folder / "pytorch_lora_weights.bin", map_location="cpu", weights_only=True)
    assert raw.keys() == pickled.keys()
    assert all(float((raw[key] - pickled[key]).abs().max()) > 1e-3 for key in raw)
    found = compare(load(folder / "pytorch_lora_weights.bin"), load(folder / "pytorch_lora_weights.safetensors"))
    assert found.compared == modules
    assert found.cosine == pytest.approx(0.0, abs=most)
