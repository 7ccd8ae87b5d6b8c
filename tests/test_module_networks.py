"""W2T, ProbeX and MVProbe: what they compute, what they must not see, and that they learn."""

import functools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lorabench.classifiers import Member, Problem, as_it_is, fit_members
from lorabench.classifiers.attention import TransformerLayer, masked_softmax
from lorabench.classifiers.factors import Factors, alike, joined, split
from lorabench.classifiers.modulewise import in_order, side_by_side
from lorabench.classifiers.mvprobe import MVProbe, standardised_response
from lorabench.classifiers.probex import ProbeX
from lorabench.classifiers.w2t import W2T, SignFlips, triplets
from lorabench.errors import LorabenchError
from lorabench.lowrank import thin_svd
from lorabench.training import draw_keys, set_keys
from lorabench.zoo import ModuleShape

SHAPES = (ModuleShape(2, 5, 6), ModuleShape(3, 4, 7), ModuleShape(2, 5, 6))
CLASSES = 3
PROBES = {"probes": 4, "features": 3, "encoding": 5}
TOKENS = {"width": 8, "heads": 2, "head": 6, "dropout": 0.0, "sign_flips": 0.0}
NETWORKS = {
    "probex": functools.partial(ProbeX, **PROBES),
    "mvprobe": functools.partial(MVProbe, **PROBES),
    "w2t": functools.partial(W2T, **TOKENS),
}


def width(shapes):
    return sum(shape.size for shape in shapes)


def model_of(kind, shapes=SHAPES, seed=0, **settings):
    """A member in float64, whose parameters have all left their starts: nothing is hidden behind a zero."""
    model = NETWORKS[kind](shapes=shapes, in_features=width(shapes), n_classes=CLASSES, seed=seed, **settings).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model.eval()


def raw(shapes=SHAPES, n=4, seed=1):
    rng = np.random.default_rng(seed)
    return [
        Factors(torch.from_numpy(rng.normal(size=(n, r, d_in))), torch.from_numpy(rng.normal(size=(n, d_out, r))))
        for r, d_in, d_out in shapes
    ]


def canonical(factors):
    """ΔW = U diag(σ) Vᵀ as down = Vᵀ, up = U·diag(σ), of the same rank; u's largest entry is positive."""
    found = []
    for down, up in factors:
        left, sigma, right = thin_svd(down, up)
        largest = left.gather(-2, left.abs().argmax(-2, keepdim=True))
        turned = Factors(right * largest.sign().mT, left * largest.sign() * sigma.unsqueeze(-2))
        found += padded([turned], down.shape[-2] - sigma.shape[-1])
    return found


def read_by(kind, factors):
    return joined(canonical(factors) if kind == "w2t" else factors)


def gauged(factors, seed=2):
    """(up·G, G⁻¹·down) for a random G of condition below 100, one for every adapter and module."""
    rng = np.random.default_rng(seed)
    found = []
    for down, up in factors:
        n, r, _ = down.shape
        turns = [torch.from_numpy(np.linalg.qr(rng.normal(size=(n, r, r)))[0]) for _ in range(2)]
        gauge = turns[0] @ torch.diag_embed(torch.from_numpy(rng.uniform(0.1, 5.0, size=(n, r)))) @ turns[1]
        assert torch.linalg.cond(gauge).max() < 100
        found.append(Factors(torch.linalg.solve(gauge, down), up @ gauge))
    return found


def padded(factors, more=2):
    return [Factors(F.pad(down, (0, 0, 0, more)), F.pad(up, (0, more))) for down, up in factors]


def wider(shapes, more=2):
    return tuple(ModuleShape(r + more, d_in, d_out) for r, d_in, d_out in shapes)


# What must change nothing.


@pytest.mark.parametrize("kind", NETWORKS)
def test_another_gauge_of_the_same_update_changes_nothing(kind):
    model, factors = model_of(kind), raw()
    said = model(read_by(kind, factors))
    assert said.std() > 1e-3
    torch.testing.assert_close(model(read_by(kind, gauged(factors))), said, rtol=1e-6, atol=1e-6)


def test_w2t_on_raw_factors_does_change():
    """The negative control: it is the canonical form that makes it blind to the gauge."""
    model, factors = model_of("w2t"), raw()
    assert (model(joined(gauged(factors))) - model(joined(factors))).abs().max() > 1e-2


@pytest.mark.parametrize("kind", NETWORKS)
def test_zero_columns_and_rows_change_nothing(kind):
    model, factors = model_of(kind), raw()
    roomy = model_of(kind, wider(SHAPES))
    roomy.load_state_dict(model.state_dict())
    said = model(read_by(kind, factors))
    torch.testing.assert_close(roomy(read_by(kind, padded(factors))), said, rtol=1e-9, atol=1e-9)
    exact = padded(canonical(factors) if kind == "w2t" else factors)
    torch.testing.assert_close(roomy(joined(exact)), said, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_scale_says_the_same_in_either_factor(kind):
    model, factors = model_of(kind), raw()
    said = model(read_by(kind, [Factors(down, 3.0 * up) for down, up in factors]))
    other = model(read_by(kind, [Factors(3.0 * down, up) for down, up in factors]))
    torch.testing.assert_close(other, said, rtol=1e-9, atol=1e-9)
    moved = (said - model(read_by(kind, factors))).abs().max()
    assert moved < 1e-6 if kind == "mvprobe" else moved > 1e-3, "MVProbe standardises the size away"


@pytest.mark.parametrize("kind", NETWORKS)
def test_modules_in_another_order_change_nothing_with_their_weights(kind):
    """The first and the last are alike and are exchanged, weights and all."""
    model, factors = model_of(kind), raw()
    other = model_of(kind)
    order = [2, 1, 0]
    state = model.state_dict()
    for name, value in state.items():
        if name == "network.embedding":
            state[name] = value[order]
        elif name.startswith(("network.parts.0.", "network.project.0.")):
            state[name] = value.flip(0)
    other.load_state_dict(state)
    said = other(read_by(kind, [factors[number] for number in order]))
    torch.testing.assert_close(said, model(read_by(kind, factors)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", NETWORKS)
def test_degenerate_updates_have_finite_logits_and_gradients(kind):
    """Zero everywhere, a zero module, rank 1 and repeated rows."""
    shapes = (ModuleShape(1, 5, 6), ModuleShape(3, 4, 7))
    factors = raw(shapes, n=3)
    factors[0].up[0], factors[0].down[1], factors[1].up[0] = 0, 0, 0
    factors[1].down[2] = factors[1].down[2, :1]
    model = model_of(kind, shapes)
    x = read_by(kind, factors).requires_grad_()
    logits = model(x)
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("kind", NETWORKS)
def test_gradients_reach_every_parameter(kind):
    model = model_of(kind)
    F.cross_entropy(model(read_by(kind, raw(n=8))), torch.arange(8) % CLASSES).backward()
    still = [name for name, parameter in model.named_parameters() if not (parameter.grad.abs() > 0).any()]
    assert still == []


@pytest.mark.parametrize("kind", ["probex", "mvprobe", "w2t"])
def test_nan_in_one_adapter_stays_there(kind):
    model, factors = model_of(kind), canonical(raw())
    x = joined(factors)
    said = model(x)
    broken = torch.cat([x[:1] * float("nan"), x[1:]])
    assert torch.isnan(model(broken)[0]).all()
    torch.testing.assert_close(model(broken)[1:], said[1:])


# What they compute: the same again, densely and in loops.


@pytest.mark.parametrize("module", [None, 1])
def test_probex_is_what_its_paper_says_of_dense_updates(module):
    model, factors = model_of("probex", module=module), raw()
    expected = []
    for i in range(4):
        votes = []
        for number, part, place in places(model, module):
            x = factors[number].up[i] @ factors[number].down[i]
            response = x @ part.probes[place]
            features = [torch.relu(part.read.weight[place].T @ response[:, k]) for k in range(PROBES["probes"])]
            votes.append(encoded(part, place, torch.cat(features)))
        expected.append(torch.stack(votes).log_softmax(-1).mean(0))
    torch.testing.assert_close(model(joined(factors)), torch.stack(expected))


def places(model, module):
    """Number, network and place within it of every module that is read."""
    numbers = range(len(SHAPES)) if module is None else [module]
    groups = alike([SHAPES[number] for number in numbers])
    for part, group in zip(model.network.parts, groups, strict=True):
        for place, among in enumerate(group[1]):
            yield numbers[among], part, place


def encoded(part, place, features):
    encoding = features @ part.encode.weight[place] + part.encode.bias[place, 0]
    return encoding @ part.head.weight[place] + part.head.bias[place, 0]


def test_mvprobe_is_what_its_paper_says_of_dense_updates():
    model, factors = model_of("mvprobe"), raw()
    expected = []
    for i in range(4):
        votes = []
        for number, part, place in places(model, None):
            x = factors[number].up[i] @ factors[number].down[i]
            probes = [probe[place] for probe in part.probes]
            sides = (x @ probes[0], x @ (x.T @ probes[1]), x.T @ probes[2], x.T @ (x @ probes[3]))
            branches = []
            for side, read in zip(sides, part.read, strict=True):
                one = (side - side.mean()) / (side.std(correction=0) + 1e-8)
                branches += [torch.relu(read.weight[place].T @ one[:, k]) for k in range(PROBES["probes"])]
            votes.append(encoded(part, place, torch.cat(branches)))
        expected.append(torch.stack(votes).log_softmax(-1).mean(0))
    torch.testing.assert_close(model(joined(factors)), torch.stack(expected))


def norm(x, layer, place=None):
    weight, bias = (layer.weight, layer.bias) if place is None else (layer.weight[place, 0], layer.bias[place, 0])
    return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * weight + bias


def encoder_layer(layer):
    """Torch's own layer with the same weights."""
    size = layer.merge.in_features
    found = nn.TransformerEncoderLayer(size, layer.heads, 4 * size, 0.0, "gelu", batch_first=True, norm_first=True)
    names = {"self_attn.in_proj_": layer.read, "self_attn.out_proj.": layer.merge, "linear1.": layer.ff_in,
             "linear2.": layer.ff_out, "norm1.": layer.norm_attention, "norm2.": layer.norm_ff}  # fmt: skip
    found.load_state_dict(
        {f"{to}{kind}": getattr(one, kind) for to, one in names.items() for kind in ("weight", "bias")}
    )
    return found.double().eval()


def w2t_again(net, factors, i):
    """Logits and attention over modules of adapter i: a loop over modules and ranks, from a dense SVD."""
    tokens = [None] * len(SHAPES)
    for project, group in zip(net.project, alike(SHAPES), strict=True):
        for place, number in enumerate(group[1]):
            rank = SHAPES[number].rank
            left, sigma, right = torch.linalg.svd(factors[number].up[i] @ factors[number].down[i])
            z = torch.log1p(sigma[:rank])
            standard = (z - z.mean()) / (z.var(correction=0) + 1e-5).sqrt()
            ranks = []
            for k in range(rank):
                u, v = left[:, k], right[k]
                turn = torch.sign(u[u.abs().argmax()])
                a = norm(turn * u @ project.left.weight[place] + project.left.bias[place, 0], project.left_norm, place)
                b = norm(
                    turn * v @ project.right.weight[place] + project.right.bias[place, 0], project.right_norm, place
                )
                x = torch.cat([a.relu(), b.relu()]) @ project.both.weight[place] + project.both.bias[place, 0]
                scale, shift = net.film.leave(F.gelu(net.film.enter(standard[k : k + 1]))).chunk(2)
                x = x * (1 + net.film.epsilon * torch.tanh(scale)) + net.film.epsilon * shift
                ranks.append(F.gelu(norm(x, net.film.norm)))
            x = encoder_layer(net.over_ranks)(torch.stack(ranks)[None])[0]
            pooled = []
            for query in net.pool.queries:
                weights = torch.softmax(x @ query / math.sqrt(len(query)) + 0.5 * z, 0)
                pooled.append(sum(weight * one for weight, one in zip(weights, x, strict=True)))
            one = F.gelu(norm(net.pool.merge(torch.cat(pooled)), net.pool.norm))
            tokens[number] = norm(one + net.embedding[number], net.norm)
    x = torch.stack(tokens)[None]
    for layer in net.over_modules:
        x = encoder_layer(layer)(x)
    looks = torch.softmax(x[0] @ net.query / math.sqrt(x.shape[-1]), 0)
    return net.classes(norm(net.hidden(looks @ x[0]), net.hidden_norm).relu()), looks


@torch.no_grad()
def test_w2t_is_what_its_paper_says_of_dense_updates():
    model, factors = model_of("w2t"), raw()
    expected = [w2t_again(model.network, factors, i) for i in range(4)]
    x = joined(canonical(factors))
    torch.testing.assert_close(model(x), torch.stack([logits for logits, _ in expected]))
    torch.testing.assert_close(model.attention(x), torch.stack([looks for _, looks in expected]))
    torch.testing.assert_close(model.attention(x).sum(1), torch.ones(4, dtype=torch.float64))


def test_a_rank_that_does_not_stand_is_not_looked_at():
    layer = TransformerLayer(8, 2, 0.0).double()
    x = torch.randn(3, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stands = torch.tensor([True, True, False, True]).expand(3, 4)
    expected = encoder_layer(layer)(x, src_key_padding_mask=~stands)
    torch.testing.assert_close(layer(x, stands)[:, [0, 1, 3]], expected[:, [0, 1, 3]])
    assert masked_softmax(x, torch.zeros(3, 4, 8, dtype=torch.bool)).abs().max() == 0


def test_triplets_give_the_update_back():
    factors = raw(n=5)[1]
    found = triplets(canonical([factors])[0])
    again = torch.einsum("nrd,nr,nre->nde", found.u, found.sigma, found.v)
    torch.testing.assert_close(again, factors.up @ factors.down)
    torch.testing.assert_close(found.u.norm(dim=-1), torch.ones(5, 3, dtype=torch.float64))


def test_modules_come_back_in_the_zoos_order():
    factors = split(joined(raw()), SHAPES)
    groups = alike(SHAPES)
    sums = [side_by_side(factors, places).up.sum((-2, -1)) for _, places in groups]
    torch.testing.assert_close(in_order(sums, groups), torch.stack([one.up.sum((-2, -1)) for one in factors], 1))


# Equal singular values: where the canonical form is not unique.


def test_a_tie_of_singular_values_moves_w2t_and_not_the_probes():
    """ΔW stays the same to rounding while two singular vectors of one σ turn into one another by 45 degrees."""
    shape = (ModuleShape(2, 5, 6),)
    rng = np.random.default_rng(3)
    u, v = (torch.from_numpy(np.linalg.qr(rng.normal(size=(d, 2)))[0])[None] for d in (6, 5))
    turn = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64) / math.sqrt(2)
    one, other = joined([Factors(v.mT, u)]), joined([Factors((v @ turn).mT, u @ turn)])
    for kind in NETWORKS:
        model = model_of(kind, shape)
        moved = (model(one).softmax(-1) - model(other).softmax(-1)).abs().max()
        assert moved > 1e-2 if kind == "w2t" else moved < 1e-12, kind


# Training.


def test_sign_flips_are_the_members_own_and_meet_their_probability():
    flips = SignFlips(0.5).train()
    x = torch.zeros(4000, 6)
    drawn = []
    for step in (0, 0, 1):
        set_keys(flips, 3, step)
        drawn.append(flips(x))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert set(drawn[0].unique().tolist()) == {-1.0, 1.0}
    # Half of the samples are let be, and so is one of 2⁶ of the others.
    assert float((drawn[0] > 0).all(1).float().mean()) == pytest.approx(0.5 + 0.5 / 64, abs=0.03)
    assert float((drawn[0] < 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert torch.equal(flips.eval()(x), torch.ones_like(x))
    assert len({int(key) for key in draw_keys(torch.tensor([3]), [0], range(2)).flatten()}) == 2


@functools.cache
def planted():
    """Sixty adapters a class: noise and, in the second module, a class's own rank 1, each in a gauge of its own."""
    rng = np.random.default_rng(0)
    labels = torch.arange(60 * CLASSES) % CLASSES
    factors = [Factors(0.4 * down, 0.4 * up) for down, up in raw(n=len(labels), seed=5)]
    for side in (factors[1].down.mT, factors[1].up):
        side[..., 0] = torch.from_numpy(rng.normal(size=(CLASSES, side.shape[1])))[labels]
    rows = torch.from_numpy(rng.permutation(len(labels)))
    return gauged(factors, seed=7), labels, (rows[:100], rows[100:130], rows[130:])


@pytest.mark.parametrize("kind", ["probex", "mvprobe", "w2t"])
def test_a_planted_update_is_learned_in_any_gauge_and_a_stack_is_its_members(kind):
    factors, labels, (train, val, test) = planted()
    problem = Problem(read_by(kind, factors), labels[None], train, val, CLASSES, shapes=(SHAPES,))
    more = {"dropout": 0.1, "sign_flips": 0.2, "max_epochs": 16} if kind == "w2t" else {"max_epochs": 6}
    factory = functools.partial(NETWORKS[kind], learning_rate=1e-2, batch_size=25, **more)
    members = [Member(0), Member(1)]
    together = fit_members(factory, problem, members, as_it_is)
    (alone,) = fit_members(functools.partial(factory, max_epochs=2), problem, members[1:], as_it_is)
    for ours, theirs in zip(together[1].history, alone.history, strict=False):
        assert ours == pytest.approx(theirs, rel=1e-9)
    for fitted in together:
        said = fitted.logits.argmax(-1)[test]
        assert float((said == labels[test]).float().mean()) > 0.6, "chance is 1/3"


# Mistakes.


def test_a_module_that_is_not_there_is_one_message():
    assert model_of("probex", SHAPES[:1], module=3).network.numbers == (0,), "a single one is read whatever its number"
    with pytest.raises(
        LorabenchError, match=r"^classifier\.module=3: there are 3 modules, from 0 to 2; null reads all"
    ):
        model_of("probex", module=3)
    with pytest.raises(LorabenchError, match=r"^classifier\.module=-1: a whole number from 0 is needed, or null$"):
        model_of("probex", module=-1)


def test_heads_that_do_not_divide_the_width_are_one_message():
    with pytest.raises(LorabenchError, match=r"^classifier\.heads=3: .*classifier\.width=8 cannot be divided by it"):
        model_of("w2t", heads=3)


def test_responses_are_standardised_as_published_and_that_of_no_update_stays_zero():
    response = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e-3
    response[1] = 0
    response.requires_grad_()
    found = standardised_response(response)
    flat = response.detach().flatten(1)
    expected = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, correction=0, keepdim=True) + 1e-8)
    torch.testing.assert_close(found.detach().flatten(1), expected, rtol=1e-4, atol=1e-9)
    assert not found[1].any()
    (slope,) = torch.autograd.grad(found.square().sum(), response)
    assert slope.isfinite().all()
