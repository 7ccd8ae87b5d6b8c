from collections import Counter
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.ft2font import FT2Font
from scipy.ndimage import label
from torch.nn import functional as F

from lorabench.errors import LorabenchError
from lorabench.zoo.glyph_model import Leaf, Loras, Training, flow_loss, patches, pretrain, train_loras, velocity
from lorabench.zoo.glyph_pictures import CATEGORIES, SIDE, draw_glyphs


def quiet(step: float) -> None:
    """For those who watch no bar."""


@pytest.fixture(scope="module")
def drawn():
    return draw_glyphs("scripts", 4, 0)


@pytest.fixture(scope="module", autouse=True)
def _alone():
    """Threads that wait for each other on a busy machine make these small products a hundred times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pretrained(drawn):
    return pretrain(patches(drawn.pictures.reshape(-1, SIDE, SIDE)), 400, 64, 0, quiet)


# --- pictures -------------------------------------------------------------------------------------------------------


def test_the_leaves_are_what_four_fonts_cover(drawn):
    cover = Counter()
    for font in Path(mpl.get_data_path(), "fonts", "ttf").glob("DejaVu*.ttf"):
        cover.update(FT2Font(str(font)).get_charmap().keys())
    counts = Counter(drawn.categories)
    assert list(counts) == list(CATEGORIES["scripts"].values())
    assert all(cover[point] >= 4 for point in drawn.code_points)
    boxes = [p for p, category in zip(drawn.code_points, drawn.categories, strict=True) if category == "Box drawing"]
    assert boxes == [point for point in range(0x2500, 0x2580) if cover[point] >= 4]
    braille = [p for p, category in zip(drawn.code_points, drawn.categories, strict=True) if category == "Braille"]
    assert braille == list(range(0x2801, 0x2900)), "U+2800 is an empty picture"
    assert len(set(drawn.code_points)) == len(drawn) == 3215
    assert {"A": "Latin", "Ω": "Greek", "Ж": "Cyrillic", "ჟ": "Georgian", "ᐃ": "Canadian Aboriginal"}.items() <= {
        chr(p): category for p, category in zip(drawn.code_points, drawn.categories, strict=True)
    }.items()


def test_pictures_are_greyscale_between_paper_and_ink(drawn):
    assert drawn.pictures.dtype == np.float32
    assert drawn.pictures.min() == -1
    assert 0.99 < drawn.pictures.max() <= 1
    assert (drawn.pictures.max((2, 3)) > -1).all()


@pytest.mark.slow
@pytest.mark.parametrize("categories", CATEGORIES)
def test_every_leaf_has_equally_many_pictures(categories):
    for styles in (2, 4):
        found = draw_glyphs(categories, styles, 0)
        assert found.pictures.shape == (len(found), styles, SIDE, SIDE)
        assert set(found.categories) == set(CATEGORIES[categories].values())


@pytest.mark.slow
def test_the_choice_of_fonts_is_seeded_and_each_leafs_own(drawn):
    assert np.array_equal(drawn.pictures, draw_glyphs("scripts", 4, 0).pictures)
    other = draw_glyphs("scripts", 4, 1)
    assert other.code_points == drawn.code_points
    changed = np.any(other.pictures != drawn.pictures, axis=(1, 2, 3))
    letters = np.array([category in ("Latin", "Greek") for category in drawn.categories])
    assert changed[letters].mean() > 0.9, "twelve fonts draw them"
    assert not changed[np.array(drawn.categories) == "Box drawing"].any(), "twelve fonts draw them alike"
    both = {p: i for i, p in enumerate(drawn.code_points)}
    blocks = draw_glyphs("blocks", 4, 0)
    shared = [(both[p], i) for i, p in enumerate(blocks.code_points) if p in both]
    assert len(shared) > 500
    ours, theirs = (list(side) for side in zip(*shared, strict=True))
    assert np.array_equal(drawn.pictures[ours], blocks.pictures[theirs])


def test_blocks_are_the_ten_of_the_default():
    found = draw_glyphs("blocks", 4, 0)
    counts = Counter(found.categories)
    assert counts["Tai Xuan Jing"] == min(counts.values()) == 87
    assert counts["Arrows"] == 112 + 128
    assert counts["Hebrew"] == 99, "with its presentation forms"
    assert found.categories[found.code_points.index(0x0628)] == "Arabic"


def test_braille_pictures_have_a_dot_for_every_bit(drawn):
    for leaf, point in enumerate(drawn.code_points):
        if 0x2800 < point < 0x2900:
            for picture in drawn.pictures[leaf]:
                assert label(picture > 0.2)[1] == (point - 0x2800).bit_count(), hex(point)


def test_no_picture_is_the_replacement_box(drawn):
    boxes = []
    for font in Path(mpl.get_data_path(), "fonts", "ttf").glob("DejaVu*.ttf"):
        face = FT2Font(str(font))
        boxes.append(face.get_charmap())
        assert 0x10FFFF not in boxes[-1]
        assert all(index != 0 for index in boxes[-1].values())


def test_sampling_is_seeded_and_capped(drawn):
    chosen = drawn.sample(100, 0)
    counts = Counter(drawn.categories[i] for i in chosen)
    whole = Counter(drawn.categories)
    assert counts == {category: min(100, n) for category, n in whole.items()}
    assert len(set(chosen)) == len(chosen) == 990
    assert chosen == drawn.sample(100, 0) != drawn.sample(100, 1)
    assert set(drawn.sample(10, 0)) <= set(drawn.sample(20, 0))


def test_too_many_styles_name_the_empty_category():
    with pytest.raises(LorabenchError, match=r"styles=13: no glyph of .*Braille.* is drawn in that many of the 14"):
        draw_glyphs("scripts", 13, 0)


def test_missing_fonts_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(mpl, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(LorabenchError, match=r"no DejaVu\*.ttf in .*Reinstall matplotlib"):
        draw_glyphs("blocks", 4, 0)


# --- model ----------------------------------------------------------------------------------------------------------


def test_patches_put_together_again_are_the_picture(drawn):
    pictures = drawn.pictures[:7, 0]
    cut = patches(pictures).numpy()
    rows = [np.concatenate([cut[:, 6 * y + x].reshape(-1, 4, 4) for x in range(6)], 2) for y in range(6)]
    np.testing.assert_array_equal(np.concatenate(rows, 1), pictures)


def reference(base: dict[str, torch.Tensor], noisy: torch.Tensor, time_: float, loras: Loras, a: int) -> torch.Tensor:
    """One picture through one adapter in float64, module by module."""
    base = {key: value.double() for key, value in base.items()}
    angles = time_ * 64 ** (torch.arange(16, dtype=torch.float64) / 15)
    inner = base["time_in"] @ torch.cat([angles.sin(), angles.cos()]) + base["time_in_bias"]
    hidden = noisy.double() @ base["patch_in"].T + base["position"] + base["time_out"] @ (inner * inner.sigmoid())
    for i in range(4):
        q, k, v, o = (
            base["attention"][i, j] + loras.up[i, a, j].double() @ loras.down[i, a, j].double() for j in range(4)
        )
        normed = (hidden - hidden.mean(1, True)) / (hidden.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        query, key, value = (normed @ w.T for w in (q, k, v))
        hidden = hidden + F.scaled_dot_product_attention(query, key, value) @ o.T
        normed = (hidden - hidden.mean(1, True)) / (hidden.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        inner = normed @ base["mlp_in"][i].T + base["mlp_in_bias"][i]
        hidden = hidden + F.gelu(inner) @ base["mlp_out"][i].T + base["mlp_out_bias"][i]
    normed = (hidden - hidden.mean(1, True)) / (hidden.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    return normed @ base["patch_out"].T + base["patch_out_bias"]


@pytest.mark.parametrize("rank", [1, 4])
def test_many_adapters_at_once_are_each_a_lora_of_the_base(pretrained, rank):
    torch.manual_seed(0)
    loras = Loras(torch.randn(4, 3, 4, rank, 32) / 5, torch.randn(4, 3, 4, 32, rank) / 5)
    noisy, times = torch.randn(3, 2, 36, 16), torch.rand(3, 2)
    found = velocity(pretrained[0], noisy, times, loras)
    for a in range(3):
        for b in range(2):
            wanted = reference(pretrained[0], noisy[a, b], times[a, b].item(), loras, a)
            torch.testing.assert_close(found[a, b].double(), wanted, rtol=1e-4, atol=1e-4)
    nothing = Loras(loras.down, torch.zeros_like(loras.up))
    plain = velocity(pretrained[0], noisy, times)
    torch.testing.assert_close(velocity(pretrained[0], noisy, times, nothing), plain, rtol=1e-5, atol=1e-5)
    assert (found - plain).abs().max() > 0.01


def test_flow_loss_is_the_mean_square_error_of_the_velocity(pretrained):
    torch.manual_seed(1)
    x, noise, times = torch.randn(2, 3, 36, 16), torch.randn(2, 3, 36, 16), torch.rand(2, 3)
    path = (1 - times[..., None, None]) * x + times[..., None, None] * noise
    error = velocity(pretrained[0], path, times).numpy() - (noise - x).numpy()
    np.testing.assert_allclose(flow_loss(pretrained[0], x, noise, times), (error**2).mean((1, 2, 3)), rtol=1e-5)


def test_pretraining_lowers_the_loss(pretrained):
    losses = pretrained[1]
    assert len(losses) == 400
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:5])
    assert all(not tensor.requires_grad for tensor in pretrained[0].values())


def leaves_of(drawn, count: int) -> list[Leaf]:
    return [Leaf(f"U+{drawn.code_points[i]:04X}", patches(drawn.pictures[i])) for i in drawn.sample(1, 0)[:count]]


@pytest.mark.parametrize("shared", [True, False])
def test_an_adapter_does_not_depend_on_its_neighbours(pretrained, drawn, shared):
    training = Training(rank=4, shared_down=shared, steps=25, learning_rate=1e-2, batch_size=4, seed=3)
    leaves = leaves_of(drawn, 5)
    together = train_loras(pretrained[0], leaves, training, quiet).layers()
    alone = train_loras(pretrained[0], leaves[3:4], training, quiet).layers()
    backwards = train_loras(pretrained[0], leaves[::-1], training, quiet).layers()
    for layer in together:
        np.testing.assert_allclose(together[layer][3], alone[layer][0], rtol=1e-3, atol=2e-4)
        np.testing.assert_allclose(together[layer], backwards[layer][::-1], rtol=1e-3, atol=2e-4)
        assert np.abs(together[layer][3] - together[layer][2]).max() > 0.02


def test_adapters_draw_their_own_leaf_better_than_the_base_and_than_each_other(pretrained, drawn):
    leaves = leaves_of(drawn, 10)
    training = Training(rank=4, shared_down=True, steps=60, learning_rate=1e-2, batch_size=8, seed=0)
    loras = train_loras(pretrained[0], leaves, training, quiet)
    torch.manual_seed(2)
    noise, times = torch.randn(1, 64, 36, 16).expand(10, -1, -1, -1), torch.rand(1, 64).expand(10, -1)
    own = torch.stack([leaf.pictures[torch.arange(64) % len(leaf.pictures)] for leaf in leaves])
    adapted, base = flow_loss(pretrained[0], own, noise, times, loras), flow_loss(pretrained[0], own, noise, times)
    swapped = flow_loss(pretrained[0], own, noise, times, Loras(loras.down.roll(1, 1), loras.up.roll(1, 1)))
    assert (adapted < base).all()
    assert adapted.mean() < 0.95 * base.mean()
    assert (adapted < swapped).all()


def test_the_first_step_leaves_down_where_it_started(pretrained, drawn):
    for shared in (True, False):
        training = Training(rank=2, shared_down=shared, steps=1, learning_rate=1e-2, batch_size=2, seed=0)
        found = train_loras(pretrained[0], leaves_of(drawn, 3), training, quiet)
        assert torch.equal(found.down[:, 0], found.down[:, 1]) is shared
        assert 0.16 < found.down.abs().max() <= 32**-0.5
        assert 0 < found.up.abs().max() <= 1.001e-2, "a step of Adam from zero"
