"""What pictures of adapters are made of: places of modules from their names, and numbers against dense ΔW."""

import numpy as np
import pytest
import torch

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.drawing.component_figures import cumulative_table
from lorabench.adapters.drawing.figures import compare, histogram
from lorabench.adapters.drawing.figures.blocks import block_strength
from lorabench.adapters.drawing.figures.histogram import SAMPLES, Distributions, sampled_delta
from lorabench.adapters.drawing.figures.weights import PAGE, block_rms, chosen_modules, strongest_of_bins, weight_map
from lorabench.adapters.drawing.panels import families
from lorabench.adapters.drawing.subject import Subject
from lorabench.adapters.places import block_labels, by_depth, kinds_in_order, place
from lorabench.adapters.principal_components import pca
from lorabench.errors import LorabenchError
from lorabench.pictures import drawable, shortened
from tests.drawn_adapters import adapter, large, module, sdxl_names


@pytest.mark.parametrize(
    ("name", "part", "block", "kind"),
    [
        ("transformer.h.3.attn.c_attn", "model", "h.3", "attn.c_attn"),
        ("model.layers.12.mlp.experts.7.w1", "model", "layers.12", "mlp.experts.7.w1"),
        ("unet.down_blocks.0.resnets.1.conv1", "unet", "down_blocks.0.resnets.1", "conv1"),
        ("stages.2.blocks.4.mlp.fc1", "model", "stages.2.blocks.4", "mlp.fc1"),
        ("encoder.block.3.layer.1.DenseReluDense.wi_0", "model", "encoder.block.3", "DenseReluDense.wi_0"),
        ("roberta.encoder.layer.0.attention.self.query", "model", "roberta.encoder.layer.0", "attention.self.query"),
        ("unet.time_embedding.linear_1", "unet", "", "time_embedding.linear_1"),
        ("w_013", "model", "w_013", "013"),
    ],
)
def test_a_modules_place(name: str, part: str, block: str, kind: str) -> None:
    found = place(name)
    assert (found.part, found.block, found.kind) == (part, block, kind)


def test_modules_come_in_the_networks_order() -> None:
    names = [
        "transformer.norm_out.linear",
        "transformer.single_transformer_blocks.0.attn.to_q",
        "transformer.transformer_blocks.0.attn.to_q",
        "transformer.transformer_blocks.1.attn.to_q",
        "transformer.x_embedder",
    ]
    assert by_depth(names) == tuple(names[i] for i in (4, 2, 3, 1, 0))
    assert by_depth(["b", "a"]) == by_depth(["a", "b"])
    assert kinds_in_order(["attn2.to_q", "attn1.to_out", "attn1.to_q", "ff.net.2", "attn1.to_k"]) == (
        "attn1.to_q", "attn1.to_k", "attn1.to_out", "attn2.to_q", "ff.net.2",
    )  # fmt: skip
    assert kinds_in_order(["+10", "+9"]) == ("+9", "+10")


def test_short_labels_stay_different() -> None:
    blocks = list(dict.fromkeys(place(name).block for name in sdxl_names() if name.startswith("unet")))
    labels, counted = block_labels(blocks)
    assert len(set(labels)) == len(blocks)
    assert counted == ""
    assert "down 2.1" in labels
    assert block_labels(["model.layers.0", "model.layers.11"]) == (["0", "11"], "layers")
    assert block_labels(["stages.0.blocks.3", "stages.1.blocks.0"]) == (["0.3", "1.0"], "stages · blocks")


def test_families_are_as_many_as_colours() -> None:
    names = sdxl_names()
    found = families(names, 10)
    assert list(found) == [
        "attn1",
        "attn2",
        "self_attn",
        "add_embedding",
        "conv_in",
        "conv_out",
        "ff",
        "time_embedding",
    ]
    assert sorted(i for members in found.values() for i in members) == list(range(264))
    few = families(names, 4)
    assert list(few) == ["attn1", "attn2", "ff", "other"]
    assert sorted(i for members in few.values() for i in members) == list(range(264))
    assert families(["unet.0", "unet.1"], 9) == {"module": (0, 1)}


def test_names_are_shortened_in_the_middle_and_written_in_letters_that_the_font_has() -> None:
    assert [len(shortened("x" * 40, most)) for most in (7, 20, 39, 40)] == [7, 20, 39, 40]
    assert drawable("ΔW ‖·‖ σ₁ … √Σ × 猫") == "ΔW ‖·‖ σ₁ … √Σ × ?"


def factors(one: LoraModule) -> tuple[np.ndarray, np.ndarray, float]:
    return one.down.double().numpy(), one.up.double().numpy(), float(one.scale)


def distributions(given: Adapter) -> Distributions:
    return histogram.measure(Subject(given))[0]


def dense(one: LoraModule) -> np.ndarray:
    return one.scale * (one.up.double().numpy() @ one.down.double().numpy())


def test_spectra_are_those_of_dense_matrices() -> None:
    given = adapter({"a.q": module(rank=3), "b.q": module(1, rank=5, scale=-2.0), "c.q": module(trained=False)})
    found = Subject(given).spectra
    assert found.untrained.tolist() == [False, False, True]
    assert found.rank.tolist() == [3, 5, 4]
    for row, name in enumerate(("a.q", "b.q")):
        one = given.modules[name]
        sigma = np.linalg.svd(dense(one))[1][: one.rank]
        np.testing.assert_allclose(found.sigma[row, : one.rank], sigma, rtol=1e-7)
        assert np.isnan(found.sigma[row, one.rank :]).all()
        np.testing.assert_allclose(found.relative[row, : one.rank], sigma / sigma[0], rtol=1e-7)
        energy = np.cumsum(sigma**2) / np.sum(sigma**2)
        np.testing.assert_allclose(found.energy[row, : one.rank], energy, rtol=1e-7)
        p = sigma / sigma.sum()
        assert found.effective_rank[row] == pytest.approx(np.exp(-np.sum(p * np.log(p))))
        assert found.stable_rank[row] == pytest.approx(np.sum(sigma**2) / sigma[0] ** 2)
        assert found.energy_rank[row] == int(np.searchsorted(energy, 0.9)) + 1
    assert np.isnan(found.energy[2]).all()
    assert np.isnan(found.relative[2]).all()
    assert np.isnan(found.effective_rank[2])


@pytest.mark.parametrize("shape", [(24, 18), (100, 60), (5, 3)])
def test_block_rms_is_that_of_the_dense_matrix(shape: tuple[int, int]) -> None:
    one = module(rank=7, shape=shape, scale=-1.5)
    found = block_rms(*factors(one), 8)
    blocks = [np.array_split(rows, min(8, shape[1]), axis=1) for rows in np.array_split(dense(one), min(8, shape[0]))]
    wanted = np.array([[np.sqrt(np.mean(block**2)) for block in line] for line in blocks])
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_a_bin_shows_its_largest_weight_with_its_sign() -> None:
    matrix = np.array([[1.0, -3.0, 2.0, 0.5, 0.0], [0.0, 0.0, -1.0, 4.0, -5.0]])
    assert strongest_of_bins(matrix, 2).tolist() == [[-3.0, 0.5], [-1.0, -5.0]]
    np.testing.assert_array_equal(strongest_of_bins(matrix, 9), matrix)


def test_a_weight_map_of_a_narrow_module_is_its_weights() -> None:
    one = module()
    found = weight_map(Subject(adapter({"a.q": one})), "a.q")
    np.testing.assert_array_equal(found.down, one.down.double().numpy())
    np.testing.assert_array_equal(found.up, one.up.double().numpy().T)
    np.testing.assert_allclose(found.delta, np.abs(dense(one)), rtol=1e-9, atol=1e-12)


def test_the_strongest_modules_are_chosen_or_those_of_a_pattern() -> None:
    given = large()
    norm = {name: np.linalg.norm(dense(one)) for name, one in given.modules.items()}
    assert set(chosen_modules(Subject(given))) == set(sorted(norm, key=lambda name: -norm[name])[:PAGE])
    keys = chosen_modules(Subject(given, "*attn2.to_k"))
    assert len(keys) == 24
    assert all(name.endswith("attn2.to_k") for name in keys)
    with pytest.raises(LorabenchError, match=r"no module fits --modules 'to_k'.*stars"):
        chosen_modules(Subject(given, "to_k"))


def test_sampled_entries_are_entries_of_the_delta() -> None:
    one = module(scale=0.5)
    found = sampled_delta(*factors(one), 500, np.random.default_rng(3))
    generator = np.random.default_rng(3)
    rows, columns = (generator.integers(size, size=500) for size in one.shape)
    np.testing.assert_allclose(found, dense(one)[rows, columns], atol=1e-12)


def test_distributions_weigh_modules_by_size_and_see_all_of_small_ones() -> None:
    given = adapter(
        {"a.q": module(shape=(300, 200), rank=6), "b.q": module(1, scale=3.0), "c.q": module(trained=False)}
    )
    found = distributions(given)
    down, up, delta = found.matrices
    assert found.modules == ("a.q", "b.q", "c.q")
    everything = torch.cat([one.down.flatten() for one in given.modules.values()]).double().numpy()
    assert down.std == pytest.approx(np.sqrt(np.mean(everything**2)))
    counts, _ = np.histogram(everything, down.edges)
    np.testing.assert_allclose(down.density, counts / len(everything) / np.diff(down.edges), atol=1e-12)
    values = np.concatenate([dense(one).ravel() for one in given.modules.values()])
    assert delta.std == pytest.approx(np.sqrt(np.mean(values**2)), rel=0.05)
    for one in (down, up, delta):
        assert 0.998 <= np.sum(one.density * np.diff(one.edges)) <= 1 + 1e-9
        assert np.all(one.by_module.sum(axis=0) <= 1 + 1e-9)
    assert delta.empty.tolist() == up.empty.tolist() == [False, False, True]
    assert up.zeros[2] == 1.0
    assert delta.by_module[:, 2].sum() == 0
    assert np.all(delta.by_module[:, :2].sum(axis=0) > 0.9)
    again = distributions(given).matrices[2]
    np.testing.assert_array_equal(again.density, delta.density)


def test_a_large_factor_is_sampled() -> None:
    one = module(rank=8, shape=(SAMPLES, 4))
    _, up, _ = distributions(adapter({"a.q": one})).matrices
    assert up.std == pytest.approx(one.up.double().square().mean().sqrt().item(), rel=0.05)


def test_block_strength_is_the_dense_norm_at_its_place() -> None:
    given = large()
    tables = block_strength(Subject(given))
    assert [table.part for table in tables] == ["text_encoder_2", "unet"]
    seen = 0
    for name, one in given.modules.items():
        where = place(name)
        table = next(table for table in tables if table.part == where.part)
        found = table.norm[table.rows.index((where.block, where.inner)), table.kinds.index(where.kind)]
        assert found == pytest.approx(np.linalg.norm(dense(one)), rel=1e-6)
        seen += 1
    assert sum(int(np.isfinite(table.norm).sum()) for table in tables) == seen == 264
    assert sum(int(table.untrained.sum()) for table in tables) == sum(
        not one.up.any() for one in given.modules.values()
    )
    np.testing.assert_allclose(tables[0].total, np.sqrt((tables[0].norm ** 2).sum(axis=1)))


def test_similarity_is_that_of_dense_matrices() -> None:
    first = adapter({"a.q": module(0), "b.q": module(1), "z.q": module(2), "only": module(3), "s.q": module(4)})
    second = adapter(
        {
            "a.q": module(0, scale=-2.0),
            "b.q": module(9, rank=7),
            "z.q": module(trained=False),
            "s.q": module(shape=(3, 3)),
        }
    )
    (found,) = compare.measure(Subject(first), Subject(second))
    assert found.modules == ("a.q", "b.q", "z.q")
    assert (found.alone, found.other_shape) == ((("only",), ()), ("s.q",))
    assert found.cosine[0] == pytest.approx(-1.0)
    assert found.ratio[0] == pytest.approx(2.0)
    a, b = (dense(one.modules["b.q"]) for one in (first, second))
    assert found.cosine[1] == pytest.approx(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-9)
    assert found.ratio[1] == pytest.approx(np.linalg.norm(b) / np.linalg.norm(a))
    assert np.isnan([found.cosine[2], found.ratio[2]]).all()
    assert found.norm[:, 2].tolist() == pytest.approx([np.linalg.norm(dense(module(2))), 0.0])
    with pytest.raises(LorabenchError, match="no module of one name and shape in common"):
        compare.measure(Subject(first), Subject(adapter({"s.q": module(shape=(3, 3))})))


def test_cumulative_table_has_a_column_a_module() -> None:
    given = adapter({"a.q": module(), "b.q": module(rank=1), "c.q": module(trained=False)})
    found = pca(given)
    down, up = (cumulative_table(found, list(given.modules), part) for part in (0, 1))
    np.testing.assert_array_equal(down[:, 0], found["a.q.lora.down.weight"].cumulative)
    assert np.isnan(down[:, 1]).all()
    assert up[0, 1] == pytest.approx(1.0)
    assert np.isnan(up[:, 2]).all()
    assert len(cumulative_table(found, list(given.modules), 1, most=2)) == 2
