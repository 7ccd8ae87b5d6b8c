"""Every merge method on disk keeps what all methods promise; and the truncated SVD of those on ΔW is the best."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from lorabench.adapters.merging import methods as package
from lorabench.adapters.merging.methods import methods
from lorabench.adapters.merging.methods.dare_ties import target as dare_ties
from lorabench.adapters.merging.methods.ties import target as ties
from lorabench.adapters.merging.recipe import METHODS, Recipe
from lorabench.adapters.merging.truncating import best_pair
from lorabench.adapters.merging.whole import merge
from lorabench.errors import LorabenchError
from tests.adapter_makers import dense, make_adapter

FILES = sorted(file.stem for file in Path(str(package.__file__)).parent.glob("*.py") if file.stem != "__init__")


def test_the_methods_are_the_files_on_disk() -> None:
    assert sorted(METHODS) == FILES
    assert METHODS[0] == Recipe().method
    code = "import sys; from lorabench.adapters.merging.recipe import METHODS; print('torch' in sys.modules, *METHODS)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", *METHODS]


@pytest.mark.parametrize("name", FILES)
def test_a_method_keeps_what_all_methods_promise(name: str) -> None:
    method = methods()[name]
    assert method.help
    assert set(method.options) <= {field.name for field in fields(Recipe)}
    a, b = make_adapter(1, 3, scale=0.5), make_adapter(2, 3, scale=-2.0)
    recipe = Recipe(name, density=1.0, normalize=False)
    alone, report = merge([a], [1], recipe)
    for module, merged in alone.modules.items():  # one adapter with weight 1 is itself
        assert torch.allclose(dense(merged), dense(a.modules[module]), rtol=1e-4, atol=1e-5)
        assert (merged.scale, merged.alpha) == (1.0, merged.rank)
    assert report.measured < 3e-6
    both, report = merge([a, b], [0.7, 0.3], Recipe(name))
    assert both.modules.keys() == a.modules.keys()
    assert set(report.options) == {"normalize", "missing", *method.options}
    for row in report.modules:  # what the report says is what was written
        exact = 0.7 * dense(a.modules[row.module]) + 0.3 * dense(b.modules[row.module])
        apart = float((dense(both.modules[row.module]) - exact).norm())
        assert row.from_sum * row.norm == pytest.approx(apart, rel=1e-5, abs=1e-5)
    if method.fixed_rank:
        with pytest.raises(LorabenchError, match="Use --method svd, or give no rank"):
            Recipe(name, rank=2)
    else:
        cut, _ = merge([a, b], [0.7, 0.3], Recipe(name, rank=2))
        assert {merged.rank for merged in cut.modules.values()} == {2}


@pytest.mark.parametrize("name", FILES)
def test_the_result_does_not_depend_on_how_many_lanes_there_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = [make_adapter(seed, 3) for seed in (1, 2)]
    before = torch.get_num_threads()
    results = []
    try:
        for threads, memory in ((1, 2**31), (3, 2**31), (3, 1)):  # the last one recomputes what memory cannot keep
            torch.set_num_threads(threads)
            monkeypatch.setattr("lorabench.adapters.merging.modules._MEMORY", memory)
            results.append(merge(adapters, [0.7, 0.3], Recipe(name)))
    finally:
        torch.set_num_threads(before)
    first, report = results[0]
    for other, its_report in results[1:]:
        assert its_report.modules == report.modules
        for module, merged in first.modules.items():
            assert torch.equal(merged.down, other.modules[module].down)
            assert torch.equal(merged.up, other.modules[module].up)


@pytest.mark.parametrize("shape", [(210, 210), (230, 400), (400, 230)])
@pytest.mark.parametrize("rank", [4, 12])
@pytest.mark.parametrize("kind", ["ties", "dare", "noise", "flat", "steep", "low rank", "tiny", "twins"])
def test_the_pair_of_a_large_matrix_is_as_near_as_numpys(shape: tuple[int, int], rank: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(rank)
    a, b = (
        torch.randn(shape[0], 6, generator=generator) @ torch.randn(6, shape[1], generator=generator) for _ in range(2)
    )
    noise = torch.randn(shape, generator=generator)
    left, _, right = torch.linalg.svd(noise, full_matrices=False)
    count = min(shape)
    spectra = {
        "flat": torch.ones(count),
        "steep": 10.0 ** -torch.arange(count).div(2.0),  # beyond what float32 tells from zero
        "twins": (torch.arange(count) // 40).add(1.0).reciprocal(),  # many equal values across the cut
    }
    matrix = {
        "ties": lambda: ties([a, b], [0.7, 0.3], 0.5),
        "dare": lambda: dare_ties([a, b], [0.7, 0.3], 0.5, [1, 2]),
        "noise": lambda: noise,
        "low rank": lambda: a,
        "tiny": lambda: ties([a, b], [0.7, 0.3], 0.5) * 1e-25,
    }.get(kind, lambda: (left * spectra[kind]) @ right)()
    down, up, predicted = best_pair(matrix, rank)
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    size, best = float(np.linalg.norm(values)), float(np.linalg.norm(values[rank:]))
    apart = float((matrix.double() - up @ down).norm())
    assert apart == pytest.approx(best, rel=2e-7, abs=2e-7 * size)
    assert apart <= best * (1 + 1e-7) + 1e-7 * size
    assert predicted == pytest.approx(apart, rel=2e-7, abs=2e-7 * size)
    assert torch.equal(down, best_pair(matrix, rank)[0])
