"""Fingerprints and duplicates: what never changes them, what must, and what is measured about the rest."""

import itertools
import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.adapters import Adapter, LoraModule, load, save
from lorabench.adapters.commands import compare as command
from lorabench.adapters.comparing.fingerprints import TOLERANCE, Sketch, distance, find_duplicates, fingerprint, sketch
from lorabench.adapters.reading.folders import adapter_files
from lorabench.errors import LorabenchError
from tests.adapter_folders import make_modules
from tests.real_adapters import SHARED, published, real

Change = Callable[[LoraModule], LoraModule]


def adapter(modules: Mapping[str, LoraModule]) -> Adapter:
    return Adapter(Path("a.safetensors"), ("diffusers",), modules)


def drawn(seed: int, count: int = 3) -> Adapter:
    """Modules of one to three shapes, ranks 1 to 6, widths 1 to 40."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    shapes = rng.integers(1, 41, size=(3, 2))
    modules = {}
    for i in range(count):
        (d_out, d_in), rank = shapes[rng.integers(3)].tolist(), int(rng.integers(1, 7))
        down, up = torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator)
        modules[f"unet.block.{i}"] = LoraModule(down, up, float(rng.choice([1.0, 0.5, -0.25, 2.0])))
    return adapter(modules)


def changed(a: Adapter, change: Change) -> Adapter:
    return replace(a, modules={name: change(module) for name, module in a.modules.items()})


def regauge(seed: int, spread: float = 0.5) -> Change:
    rng = np.random.default_rng(seed)

    def change(module: LoraModule) -> LoraModule:
        r = module.rank
        left, right = (np.linalg.qr(rng.normal(size=(r, r)))[0] for _ in range(2))
        gauge = left @ np.diag(np.exp(rng.normal(size=r) * spread)) @ right
        up = module.scale * module.up.double().numpy() @ gauge
        down = np.linalg.solve(gauge, module.down.double().numpy())
        return replace(module, down=torch.from_numpy(down).float(), up=torch.from_numpy(up).float(), scale=1.0)

    return change


def cast(dtype: torch.dtype) -> Change:
    return lambda one: replace(one, down=one.down.to(dtype).float(), up=one.up.to(dtype).float())


def pad(module: LoraModule) -> LoraModule:
    down = torch.cat([module.down, torch.ones(2, module.shape[1])])
    return replace(module, down=down, up=torch.cat([module.up, torch.zeros(module.shape[0], 2)], dim=1))


def scale_into_up(module: LoraModule) -> LoraModule:
    return replace(module, up=module.scale * module.up, scale=1.0)


def renamed(a: Adapter, seed: int) -> Adapter:
    names = np.random.default_rng(seed).permutation(list(a.modules)).tolist()
    return replace(a, modules={f"other_{i}": a.modules[name] for i, name in enumerate(names)})


def with_zero_modules(a: Adapter) -> Adapter:
    zero = LoraModule(torch.ones(2, 17), torch.zeros(9, 2))
    return replace(a, modules={"zero": zero, **a.modules})


# Derandomised: an edge of the digits lies within float32's rounding of one adapter in about 100,000.
@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(0, 10**6))
def test_gauge_names_scale_and_padding_leave_the_fingerprint(seed: int) -> None:
    a = drawn(seed)
    first = sketch(a)
    for same in (
        changed(a, regauge(seed)), changed(a, pad), changed(a, scale_into_up), renamed(a, seed), with_zero_modules(a),
        renamed(with_zero_modules(changed(changed(a, regauge(seed)), pad)), seed),
    ):  # fmt: skip
        other = sketch(same)
        assert other.id == first.id
        assert distance(first, other) < 1e-5


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([torch.float16, torch.bfloat16]))
def test_a_cast_stays_within_the_tolerance(seed: int, dtype: torch.dtype) -> None:
    a = drawn(seed)
    for same in (changed(a, cast(dtype)), changed(renamed(changed(a, cast(dtype)), seed), regauge(seed))):
        assert distance(sketch(a), sketch(same)) < TOLERANCE


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6))
def test_other_adapters_stay_far_outside(seed: int) -> None:
    a, b = drawn(seed), adapter({name: randomised(one, seed + 1) for name, one in drawn(seed).modules.items()})
    merged = replace(a, modules={name: merge(one, b.modules[name]) for name, one in a.modules.items()})
    scaled = changed(a, lambda one: replace(one, scale=1.1 * one.scale))
    for other in (b, merged, scaled, changed(a, lambda one: replace(one, scale=-one.scale))):
        assert distance(sketch(a), sketch(other)) > 2 * TOLERANCE


def randomised(module: LoraModule, seed: int) -> LoraModule:
    generator = torch.Generator().manual_seed(seed + 7919 * module.shape[0] + module.rank)
    return replace(
        module,
        down=torch.randn(module.down.shape, generator=generator),
        up=torch.randn(module.up.shape, generator=generator),
    )


def merge(a: LoraModule, b: LoraModule) -> LoraModule:
    down, up = torch.cat([a.down, b.down]), torch.cat([a.scale * a.up, b.scale * b.up], dim=1)
    return replace(a, down=down, up=up, scale=0.5)


def test_the_fingerprint_is_the_same_on_every_machine_and_in_every_version() -> None:
    down, up = torch.arange(1.0, 41.0).reshape(2, 20).sin(), torch.arange(1.0, 25.0).reshape(12, 2).cos()
    modules = {"m": LoraModule(down, up, 0.5), "n": LoraModule(down[:, :5], up[:7], 2.0)}
    assert fingerprint(adapter(modules)) == "4e336032-81c-cee"


def test_the_digits_mean_shapes_norm_and_signs() -> None:
    a = drawn(5)
    shapes, norm, signs = fingerprint(a).split("-")
    opposite = fingerprint(changed(a, lambda one: replace(one, scale=-one.scale)))
    assert opposite == f"{shapes}-{norm}-{int(signs, 16) ^ 0xFFF:03x}"
    doubled = fingerprint(changed(a, lambda one: replace(one, scale=2 * one.scale)))
    assert doubled == f"{shapes}-{int(norm, 16) + 8:03x}-{signs}"
    assert fingerprint(replace(a, modules=dict(list(a.modules.items())[:2]))).split("-")[0] != shapes


def test_how_often_rounding_changes_the_digits() -> None:
    adapters = [drawn(seed) for seed in range(400)]
    first = [fingerprint(a) for a in adapters]

    def share(change: Change) -> float:
        return float(np.mean([fingerprint(changed(a, change)) != one for a, one in zip(adapters, first, strict=True)]))

    assert share(cast(torch.bfloat16)) < 0.03
    assert share(cast(torch.float16)) < 0.01
    assert share(regauge(0)) == 0
    # Twelve signs and the norm: other seeds of the same shapes hardly ever agree.
    assert share(lambda one: randomised(one, 1)) > 0.98


def test_the_distance_is_that_of_dense_matrices() -> None:
    a = drawn(1, count=40)
    for share in (1e-4, 1e-2, 0.3):
        b = changed(a, lambda one, share=share: replace(one, up=one.up + share * torch.randn_like(one.up)))
        true = math.sqrt(
            sum(float((a.modules[name].delta() - b.modules[name].delta()).norm() ** 2) for name in a.modules)
        )
        largest = max(math.sqrt(sum(float(one.delta().norm() ** 2) for one in x.modules.values())) for x in (a, b))
        assert distance(sketch(a), sketch(b)) == pytest.approx(true / largest, rel=0.25)


def test_narrow_modules_are_measured_exactly() -> None:
    a, b = (make_modules(seed, names=["m"])["m"] for seed in (0, 1))  # 5×6
    norms = [float(one.delta().double().norm()) for one in (a, b)]
    true = float((a.delta().double() - b.delta().double()).norm()) / max(norms)
    assert distance(sketch(adapter({"m": a})), sketch(adapter({"m": b}))) == pytest.approx(true, rel=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4))
def test_the_best_matching_is_the_best_of_all_and_coarse_vectors_are_nearer(seed: int, n: int, m: int) -> None:
    pair = [
        adapter(make_modules(seed + i, rank=3, names=[str(k) for k in range(count)], d_in=30))
        for i, count in enumerate((n, m))
    ]
    a, b = map(sketch, pair)
    count = max(n, m)
    x, y = (np.pad(one.modules[5, 30].astype(float), ((0, count - len(one.modules[5, 30])), (0, 0))) for one in (a, b))
    best = min(np.linalg.norm(x - y[list(order)]) for order in itertools.permutations(range(count)))
    assert distance(a, b) == pytest.approx(best / max(a.norm, b.norm), rel=1e-6)
    assert np.linalg.norm(a.coarse - b.coarse) <= best * (1 + 1e-6)


def test_nothing_of_it_needs_the_same_number_of_modules_or_the_same_shapes() -> None:
    a = adapter(
        {"x": LoraModule(torch.ones(1, 4), torch.ones(3, 1)), "y": LoraModule(torch.ones(1, 2), torch.ones(2, 1))}
    )
    b = adapter({"x": a.modules["x"]})
    assert distance(sketch(a), sketch(b)) == pytest.approx(math.sqrt(4 / 16))
    zero = changed(a, lambda one: replace(one, scale=0.0))
    assert distance(sketch(a), sketch(zero)) == pytest.approx(1.0)
    assert math.isnan(distance(sketch(zero), sketch(zero)))
    assert fingerprint(zero).endswith("-untrained")
    assert fingerprint(zero) != fingerprint(changed(b, lambda one: replace(one, scale=0.0)))


def test_weights_that_are_not_finite_are_refused() -> None:
    broken = adapter({"m": LoraModule(torch.full((1, 3), torch.inf), torch.ones(3, 1))})
    with pytest.raises(LorabenchError, match=r"a\.safetensors: ΔW is not finite"):
        fingerprint(broken)


def saved(root: Path, adapters: Mapping[str, Adapter]) -> list[Path]:
    return [save(root / f"{name}.safetensors", one, "diffusers") for name, one in adapters.items()]


def grouped(paths: list[Path], tolerance: float = TOLERANCE) -> list[list[str]]:
    found = find_duplicates(paths, tolerance=tolerance)
    assert not found.unreadable
    return [[one.path.stem for one in group.members] for group in found.groups]


@pytest.mark.slow
def test_duplicates_are_found_and_relatives_are_not(tmp_path: Path) -> None:
    # Many modules of one shape: a distance by sorted numbers would lose 3 % among neighbours.
    names = [f"unet.block.{i}.to_q" for i in range(200)]
    a = adapter(make_modules(0, rank=4, names=names, d_in=32))
    cut = changed(a, lambda one: replace(one, down=one.down[:3], up=one.up[:, :3].contiguous()))
    generator = torch.Generator().manual_seed(3)
    later = changed(a, lambda one: replace(one, up=one.up + 0.03 * torch.randn(one.up.shape, generator=generator)))
    half = changed(renamed(changed(a, regauge(1)), 1), cast(torch.bfloat16))
    adapters = {
        "a": a, "cut": cut, "later": later, "half": half, "later_half": changed(later, cast(torch.float16)),
        "other": adapter(make_modules(1, rank=4, names=names, d_in=32)), "double": changed(a, double),
    }  # fmt: skip
    paths = saved(tmp_path, adapters)
    assert grouped(paths) == [["a", "half"], ["later", "later_half"]]
    assert grouped(paths, tolerance=1e-5) == []
    assert grouped(paths, tolerance=0.1) == [["a", "half", "later", "later_half"]]
    members = find_duplicates(paths).groups[0].members
    assert members[0].difference == 0.0
    assert 0.001 < members[1].difference < 0.005


def double(module: LoraModule) -> LoraModule:
    return replace(module, scale=2 * module.scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_layout_and_type_is_one_adapter(tmp_path: Path, dtype: torch.dtype) -> None:
    modules = make_modules(4, rank=3, d_in=64, scale=0.5)
    paths = [save(tmp_path / "first.safetensors", modules, "diffusers")]
    paths += [
        save(tmp_path / name, modules, layout, dtype=dtype)
        for name, layout in (("b.safetensors", "diffusers"), ("c", "peft"), ("d.safetensors", "kohya"))
    ]
    (group,) = find_duplicates(paths).groups
    assert {one.path for one in group.members} == set(paths)


def test_a_badly_balanced_gauge_in_half_precision_is_still_found(tmp_path: Path) -> None:
    a = adapter(make_modules(0, rank=4, d_in=40))
    rounded = changed(changed(a, regauge(2, spread=1.6)), cast(torch.bfloat16))
    loose, far = sketch(rounded), distance(sketch(a), sketch(rounded))
    assert TOLERANCE < far < TOLERANCE * loose.looseness
    assert sketch(a).looseness == sketch(changed(a, regauge(2, spread=1.6))).looseness == 1.0
    assert grouped(saved(tmp_path, {"a": a, "b": rounded})) == [["a", "b"]]


def test_the_unreadable_and_the_untrained_are_listed(tmp_path: Path) -> None:
    (tmp_path / "empty.safetensors").touch()
    modules = make_modules(0)
    paths = [
        tmp_path / "missing", tmp_path / "empty.safetensors",
        save(tmp_path / "zero.safetensors", {name: replace(one, scale=0.0) for name, one in modules.items()}, "kohya"),
        save(tmp_path / "a.safetensors", modules, "kohya"),
    ]  # fmt: skip
    found = find_duplicates(paths)
    assert (found.read, found.groups, found.untrained) == (2, (), (paths[2],))
    assert list(found.unreadable) == paths[:2]
    assert "no such file" in found.unreadable[paths[0]]
    assert "is empty" in found.unreadable[paths[1]]
    assert find_duplicates([]).read == 0


@pytest.mark.parametrize("tolerance", [0.0, -1.0, 1.0, math.nan])
def test_a_tolerance_out_of_range_is_refused(tolerance: float) -> None:
    with pytest.raises(LorabenchError, match=r"tolerance=.*between 0 and 1"):
        find_duplicates([], tolerance=tolerance)


def test_the_command_has_the_same_tolerance() -> None:
    assert command._HALF_ROUNDING == TOLERANCE


def test_one_adapter_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = saved(tmp_path, {str(seed): drawn(seed) for seed in range(5)})
    alive: list[weakref.ref[Adapter]] = []

    def counted(path: Path) -> Adapter:
        assert not any(one() for one in alive)
        found = load(path)
        alive.append(weakref.ref(found))
        return found

    monkeypatch.setattr("lorabench.adapters.comparing.fingerprints.load", counted)
    find_duplicates(iter(paths))
    assert len(alive) == 5


def test_a_sketch_is_small() -> None:
    kept: Sketch = sketch(adapter(make_modules(0, rank=4, names=[str(i) for i in range(100)], d_in=500)))
    assert sum(one.nbytes for one in kept.modules.values()) == 100 * 5 * 8 * 4  # 5 of 5 rows, 8 of 500 columns


def test_the_only_duplicates_among_real_adapters(real_folder: Path) -> None:
    found = find_duplicates([adapter.path for adapter in adapter_files(real_folder).adapters])
    assert found.read > (30 if real_folder == SHARED else 15)
    if real_folder != SHARED:
        groups = [{one.path.relative_to(real_folder).parts[0] for one in group.members} for group in found.groups]
        assert groups == [{"cloneofsimo"}, {"diffusers", "diffusers_old", "kohya"}]
        return
    (group,) = found.groups
    assert [one.path.parent.name for one in group.members] == ["lora_mlp", "lora_mlp_modules_to_save"]
    raw = [torch.load(one.path / "adapter_model.bin", map_location="cpu", weights_only=True) for one in group.members]
    shared = raw[0].keys() & raw[1].keys()
    assert len(shared) == 2
    assert all(torch.equal(raw[0][key], raw[1][key]) for key in shared)
    assert group.members[1].left_out == ("bias", "full_weight")


@pytest.mark.parametrize(
    "path",
    [
        "peft/gpt2",
        "cloneofsimo/style.safetensors",
        "mlx/adapters.safetensors",
        "peft/toy",
        "peft/opt_lokr",
        *published(
            "parikshit-06__domain-skeleton-gpt2/adapters/legal",
            "cloneofsimo__lora/example_loras/lora_disney.safetensors",
            "wyek1n__MLX-CLI/adapters/0000200_adapters.safetensors",
            "huggingface__peft/tests/regression/lora_emb_conv1d/0.6.1",
            "KohakuBlueleaf__LyCORIS/result/smart_falcon_4_lokr.safetensors",
        ),
    ],
)
def test_real_adapters_stay_themselves(path: str) -> None:
    a = load(real(path))
    first = sketch(a)
    assert sketch(renamed(changed(changed(a, regauge(0)), pad), 1)).id == first.id
    for dtype, most in ((torch.float16, 0.001), (torch.bfloat16, 0.005)):
        assert distance(first, sketch(changed(renamed(a, 2), cast(dtype)))) < most
