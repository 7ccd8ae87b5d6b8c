"""Classifiers that read factors: ΔW alone decides what they say, and each is what its formula says."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from lorabench.classifiers import Member, Problem, as_it_is, build, class_of, probe
from lorabench.classifiers.factors import FactorClassifier, Factors, joined, split
from lorabench.classifiers.gl_net import GLNet, gated
from lorabench.classifiers.mlp import MLP
from lorabench.classifiers.nearest import Nearest, cosines
from lorabench.classifiers.vote import Vote, spectra_of
from lorabench.conf_dir import conf_dir
from lorabench.configs import make
from lorabench.engines import Stacked
from lorabench.errors import LorabenchError
from lorabench.representations.factors import canonical
from lorabench.zoo import ModuleShape

SHAPES = (ModuleShape(3, 6, 5), ModuleShape(3, 4, 7), ModuleShape(3, 6, 5))
ROWS, CLASSES = 30, 3
TRAIN, VAL = torch.arange(18), torch.arange(18, 24)


def of_yaml(stem):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return make(compose(f"classifier/{stem}").classifier)


STEMS = sorted(path.stem for path in (conf_dir() / "classifier").glob("*.yaml"))
YAML = {stem: factory for stem in STEMS if issubclass(class_of(factory := of_yaml(stem)), FactorClassifier)}
KINDS = YAML | {
    "gl_net of two layers": functools.partial(GLNet, layers=2, width=8),
    "gl_net of means": functools.partial(GLNet, reads_of="mean", layers=2, width=8),
    "vote of invariant spectra": functools.partial(Vote, spectra="invariant", votes="soft"),
    "nearest five": functools.partial(Nearest, k=5, weights="cosine"),
}
"""Every one on disk, and some with other settings."""


def modules_of(shapes=SHAPES, rows=ROWS, seed=0, strength=1.0):
    """Factors of adapters, float64; those of one class share a part of ΔW."""
    rng = np.random.default_rng(seed)
    classes = np.arange(rows) % CLASSES
    found = []
    for shape in shapes:
        down = rng.normal(size=(CLASSES, shape.rank, shape.d_in))[classes] * strength
        up = rng.normal(size=(CLASSES, shape.d_out, shape.rank))[classes] * strength
        down, up = down + rng.normal(size=down.shape), up + rng.normal(size=up.shape)
        found.append(Factors(torch.from_numpy(down), torch.from_numpy(up)))
    return found


def regauged(modules, seed=1):
    """(up·G, G⁻¹·down), G = an orthogonal matrix times a scale from 1/3 to 3 a column: condition below 10."""
    rng = np.random.default_rng(seed)
    found = []
    for down, up in modules:
        n, rank, _ = down.shape
        gauge = np.linalg.qr(rng.normal(size=(n, rank, rank)))[0] * rng.uniform(1 / 3, 3, size=(n, 1, rank))
        gauge = torch.from_numpy(gauge)
        found.append(Factors(torch.linalg.solve(gauge, down), up @ gauge))
    return found


def padded(modules, more=2):
    return [Factors(F.pad(down, (0, 0, 0, more)), F.pad(up, (0, more))) for down, up in modules]


def as_read(kind, modules):
    """What a classifier of this kind has before it: the factors, or their canonical form."""
    reads = class_of(KINDS[kind]).reads
    if reads.get("form", "raw") == "canonical":
        modules = [Factors(*canonical(down, up, reads.get("sign", "largest"))) for down, up in modules]
    return joined(modules)


def problem_of(x, shapes=SHAPES):
    labels = torch.arange(len(x)) % CLASSES
    return Problem(x, labels[None], TRAIN, VAL, CLASSES, shapes=(tuple(shapes),))


def network_of(kind, x, shapes=SHAPES):
    """A network as it is before it is trained; one that learns at once has learned."""
    problem = problem_of(x, shapes)
    network = build(KINDS[kind], problem, Member(0)).network
    if hasattr(network, "learn"):
        network.learn(x[TRAIN], problem.labels[0, TRAIN])
    return network.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_keeps_its_word_on_the_gauge(kind):
    modules = modules_of()
    network = network_of(kind, as_read(kind, modules))
    ours, theirs = network(as_read(kind, modules)), network(as_read(kind, regauged(modules)))
    assert ours.shape == (ROWS, CLASSES)
    kept = bool(torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6))
    assert kept == probe(KINDS[kind]).gauge_invariant


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_rank_changes_nothing(kind):
    modules = modules_of()
    x, longer = as_read(kind, modules), as_read(kind, padded(modules))
    shapes = [shape._replace(rank=shape.rank + 2) for shape in SHAPES]
    network, other = network_of(kind, x), network_of(kind, longer, shapes)
    if any(True for _ in network.parameters()):
        other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other(longer), network(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_scale_may_be_in_either_factor(kind):
    if not probe(KINDS[kind]).gauge_invariant:
        pytest.skip("it sees each factor")
    modules = modules_of()
    scale = torch.linspace(0.5, 2, ROWS, dtype=torch.float64)[:, None, None]
    in_up = as_read(kind, [Factors(down, up * scale) for down, up in modules])
    in_down = as_read(kind, [Factors(down * scale, up) for down, up in modules])
    network = network_of(kind, as_read(kind, modules))
    torch.testing.assert_close(network(in_up), network(in_down), rtol=1e-6, atol=1e-6)
    if "nearest" not in kind and kind != "mvprobe":  # a cosine has no scale, nor has a standardised response
        assert not torch.allclose(network(in_up), network(as_read(kind, modules)))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind):
    network = network_of(kind, as_read(kind, modules_of())).train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # from anywhere but a start where some factor is zero
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    x = as_read(kind, modules_of())
    if not any(True for _ in network.parameters()):
        assert not network(x).requires_grad
        return
    F.cross_entropy(network(x), torch.arange(ROWS) % CLASSES).backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


@pytest.mark.parametrize("kind", KINDS)
def test_degenerate_adapters_have_finite_logits(kind):
    modules = modules_of()
    for down, up in modules:
        up[0], down[1], up[2], down[2] = 0, 0, 1, 1
        up[3] *= 1e-9
    for one in (modules, modules_of([ModuleShape(1, 4, 5)])):
        shapes = SHAPES if one is modules else [ModuleShape(1, 4, 5)]
        x = as_read(kind, one)
        assert torch.isfinite(network_of(kind, x, shapes)(x)).all()


def test_an_mlp_of_raw_factors_sees_the_gauge():
    modules = modules_of()
    x, other = joined(modules), joined(regauged(modules))
    network = build(functools.partial(MLP, hidden=[16], dropout=0.0), problem_of(x), Member(0)).network.eval()
    assert not torch.allclose(network(x), network(other), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("reads_of", ["product", "mean"])
def test_gl_net_is_its_formula(layers, reads_of):
    """One adapter and module at a time, with G = U Vᵀ formed for the gate."""
    kind = functools.partial(GLNet, layers=layers, width=4, head=5, reads_of=reads_of)
    x = joined(modules_of())
    network = build(kind, problem_of(x), Member(0)).network.eval()
    entries = []
    for row in x:
        found = {}
        for places, group in zip(([0, 2], [1]), network.groups, strict=True):
            for inside, place in enumerate(places):
                down, up = split(row, SHAPES)[place]
                left, right = up, down.T
                for number, layer in enumerate(group.layers):
                    if number:
                        g = left @ right.T
                        left, right = left * (g.sum(1) > 0)[:, None], right * (g.sum(0) > 0)[:, None]
                    left, right = layer.left[inside] @ left, layer.right[inside] @ right
                product = left @ right.T
                found[place] = product.mean()[None] if reads_of == "mean" else product.flatten()
        entries.append(torch.cat([found[place] for place in (0, 2, 1)]))
    first, norm, _, last = network.head
    hidden = torch.stack(entries) @ first.weight.T + first.bias
    hidden = (hidden - hidden.mean(1, keepdim=True)) / (hidden.var(1, correction=0, keepdim=True) + norm.eps).sqrt()
    expected = (hidden * norm.weight + norm.bias).clamp_min(0) @ last.weight.T + last.bias
    torch.testing.assert_close(network(x), expected, rtol=1e-9, atol=1e-9)


def test_no_gradient_goes_through_the_gate():
    down, up = modules_of([ModuleShape(2, 4, 4)], rows=1)[0]
    left, right = up[0].requires_grad_(), down[0].mT.clone().requires_grad_()
    ours = torch.autograd.grad(sum(side.square().sum() for side in gated(left, right)), (left, right))
    g = (left @ right.T).detach()
    kept = (g.sum(1) > 0)[:, None], (g.sum(0) > 0)[:, None]
    assert 0 < int(torch.cat(kept).sum()) < 8, "some rows stay, some go"
    for gradient, side, stays in zip(ours, (left, right), kept, strict=True):
        torch.testing.assert_close(gradient, 2 * side.detach() * stays)


def test_gl_net_drops_whole_rows_and_evaluates_by_their_share():
    kind = functools.partial(GLNet, width=6, dropout=0.4)
    x = joined(modules_of())
    network = build(kind, problem_of(x), Member(0)).network
    layer = network.groups[0].layers[0]
    rows = torch.ones(4, 2, 6, 3, dtype=torch.float64)
    for one, key in ((layer.drop_left, 5), (layer.drop_right, 6)):
        one.key.fill_(key)
    dropped = layer.train()._dropped(layer.drop_left, rows)
    assert set(dropped.unique().tolist()) == {0.0, 1.0}
    assert (dropped == dropped[..., :1]).all(), "a row goes whole"
    torch.testing.assert_close(layer.eval()._dropped(layer.drop_left, rows), 0.6 * rows)


def test_the_order_of_modules_is_of_no_account_to_gl_net_with_its_weights_and_to_nearest():
    order = [2, 0, 1]
    modules = modules_of()
    x, turned = joined(modules), joined([modules[place] for place in order])
    shapes = [SHAPES[place] for place in order]
    for kind in ("nearest", "vote of invariant spectra"):
        torch.testing.assert_close(network_of(kind, turned, shapes)(turned), network_of(kind, x)(x))
    network, other = network_of("gl_net", x), network_of("gl_net", turned, shapes)
    state = network.state_dict()
    for name, value in state.items():
        if name.startswith("groups.0"):
            state[name] = value.flip(0)  # the two of one shape have changed places
    weight = state["head.0.weight"].unflatten(1, (3, -1))
    state["head.0.weight"] = weight[:, [1, 0, 2]].flatten(1)
    other.load_state_dict(state)
    torch.testing.assert_close(other(turned), network(x))


def deltas(modules):
    """Dense ΔW of all modules in one vector, by numpy."""
    return np.concatenate([(up.numpy() @ down.numpy()).reshape(len(up), -1) for down, up in modules], 1)


def test_cosines_are_those_of_dense_matrices():
    modules = modules_of()
    modules[0].up[4], modules[1].up[4], modules[2].up[4] = 0, 0, 0
    dense = deltas(modules)
    lengths = np.linalg.norm(dense, axis=1)
    expected = (dense @ dense.T) / np.where(lengths > 0, lengths, 1) / np.where(lengths > 0, lengths, 1)[:, None]
    found = cosines(joined(modules), joined(modules), SHAPES)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("k", "weights"), [(1, "equal"), (5, "equal"), (5, "cosine"), (99, "equal")])
def test_nearest_is_scikit_learns_on_dense_matrices(k, weights):
    modules = modules_of(strength=0.7)
    x, dense = joined(modules), deltas(modules)
    factory = functools.partial(Nearest, k=k, weights=weights)
    (fitted,) = Stacked("cpu").fit(factory, problem_of(x), [Member(0)], as_it_is)
    near = (lambda d: np.maximum(1 - d, 0) + 1e-6) if weights == "cosine" else "uniform"
    model = KNeighborsClassifier(min(k, len(TRAIN)), metric="cosine", weights=near)
    model.fit(dense[TRAIN], (np.arange(ROWS) % CLASSES)[TRAIN])
    np.testing.assert_allclose(fitted.logits.exp().numpy(), np.maximum(model.predict_proba(dense), 1e-6), atol=1e-9)


@pytest.mark.parametrize("spectra", ["published", "invariant"])
def test_the_hard_vote_is_counted_by_hand(spectra):
    modules = modules_of(strength=0.5)
    modules[0].up[3] *= 9
    x = joined(modules)
    (fitted,) = Stacked("cpu").fit(functools.partial(Vote, spectra=spectra), problem_of(x), [Member(0)], as_it_is)
    own = [[up @ down] if spectra == "invariant" else [down, up, up @ down] for down, up in modules]
    dense = [np.linalg.svd(one.numpy(), compute_uv=False)[:, :3] for part in own for one in part]
    np.testing.assert_allclose(spectra_of(x, SHAPES, spectra == "published"), np.stack(dense, 1), atol=1e-8)
    for row in range(ROWS):
        votes = []
        for sigma in dense:  # scaling all by two numbers changes no neighbour
            nearest = int(np.linalg.norm(sigma[TRAIN] - sigma[row], axis=1).argmin())
            votes.append(nearest % CLASSES)
        best = max(map(votes.count, votes))
        first = next(one for one in votes if votes.count(one) == best)
        assert int(fitted.logits[row].argmax()) == first


def test_the_soft_vote_shares_out_by_distance():
    modules = modules_of(strength=0.5)
    x = joined(modules)
    (fitted,) = Stacked("cpu").fit(functools.partial(Vote, votes="soft", k=2), problem_of(x), [Member(0)], as_it_is)
    sigma = spectra_of(x, SHAPES, published=True).numpy()
    sigma = sigma / sigma[TRAIN].max()
    labels = np.arange(ROWS)[TRAIN] % CLASSES
    for row in range(ROWS):
        shares = np.zeros(CLASSES)
        for one in range(sigma.shape[1]):
            distances = np.linalg.norm(sigma[TRAIN, one] - sigma[row, one], axis=1)
            mean = np.array([np.sort(distances[labels == c])[:2].mean() for c in range(CLASSES)])
            shares += 1 / (mean + 1e-4) / (1 / (mean + 1e-4)).sum() / sigma.shape[1]
        np.testing.assert_allclose(fitted.logits[row].exp().numpy(), shares, rtol=1e-5)


@pytest.mark.parametrize("kind", [Nearest, Vote])
def test_what_is_kept_says_the_same_again_and_members_that_read_the_same_are_the_same(kind):
    x = joined(modules_of())
    problem = problem_of(x)
    members = [Member(0), Member(5)]
    one, other = Stacked("cpu").fit(kind, problem, members, as_it_is)
    assert torch.equal(one.logits, other.logits)
    assert [one.member, other.member] == members
    again = build(kind, problem, Member(0)).network
    again.load_state_dict(one.state)
    torch.testing.assert_close(again(x), one.logits)
    unseen = replace(problem, train=TRAIN[problem.labels[0, TRAIN] != 2])
    (fitted,) = Stacked("cpu").fit(kind, unseen, members[:1], as_it_is)
    assert set(fitted.logits.argmax(1).tolist()) <= {0, 1}


def test_the_grid_keeps_the_best_on_validation_and_says_which():
    problem = problem_of(joined(modules_of(strength=0.7)))
    grid = functools.partial(Nearest, k=18, grid={"k": [1, 3]}, tries=3)
    (found,) = Stacked("cpu").fit(grid, problem, [Member(0)], as_it_is)
    alone = [Stacked("cpu").fit(functools.partial(Nearest, k=k), problem, [Member(0)], as_it_is)[0] for k in (18, 1, 3)]
    judged = [one.history[0]["val_accuracy"] for one in alone]
    best = int(np.argmax(judged))
    assert max(judged) > judged[0], "all neighbours are no neighbours"
    assert found.settings == [{}, {"k": 1}, {"k": 3}][best]
    assert torch.equal(found.logits, alone[best].logits)


def test_a_classifier_of_factors_refuses_other_features():
    problem = replace(problem_of(joined(modules_of())), shapes=())
    with pytest.raises(LorabenchError, match=r"GLNet reads the factors of modules.*take representation=factors"):
        build(GLNet, problem, Member(0))
