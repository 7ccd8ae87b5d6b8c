"""Ranks before a training: the model is left as it was, the numbers are those of dense algebra and of the formula."""

import copy
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lorabench.adapters.writing.configuration import pattern_key
from lorabench.errors import LorabenchError
from lorabench.health.allotment import allot_ranks
from tests.test_advisor import given_by_peft


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q = nn.Linear(12, 10)
        self.k = nn.Linear(12, 10)
        self.mlp = nn.Sequential(nn.Linear(10, 40), nn.Dropout(0.5), nn.Linear(40, 3))
        self.norm = nn.LayerNorm(10)

    def forward(self, x):
        return self.mlp(self.norm(self.q(x) * torch.sigmoid(0.1 * self.k(x))))


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def batches(count=4):
    torch.manual_seed(1)
    return [(torch.randn(8, 12), torch.randint(3, (8,))) for _ in range(count)]


def gradients(model, several):
    """By hand, in eval mode."""
    model = copy.deepcopy(model).eval()
    for batch in several:
        loss(model, batch).backward()
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {name: (module.weight.detach().numpy(), module.weight.grad.numpy()) for name, module in linear.items()}


def within_the_budget(wanted, importance, shapes, rank):
    """One rank after the other: off the least important until it fits, on the most important until nothing does."""
    least = {name: min(math.ceil(rank / 2), *shape) for name, shape in shapes.items()}
    most = {name: min(4 * rank, *shape) for name, shape in shapes.items()}
    ranks = {name: min(max(wanted[name], least[name]), most[name]) for name in shapes}
    budget = sum(rank * sum(shape) for shape in shapes.values())
    spent = sum(ranks[name] * sum(shapes[name]) for name in shapes)
    order = sorted(shapes, key=importance.get)
    while spent > budget:
        name = next(name for name in order if ranks[name] > least[name])
        ranks[name], spent = ranks[name] - 1, spent - sum(shapes[name])
    while True:
        fits = [one for one in order if ranks[one] < most[one] and spent + sum(shapes[one]) <= budget]
        if not fits:
            return ranks
        ranks[fits[-1]], spent = ranks[fits[-1]] + 1, spent + sum(shapes[fits[-1]])


def linear_layers(sizes, strengths, seed):
    """A model of layers side by side, the strength of each in its loss, and batches."""
    torch.manual_seed(seed)
    model = nn.ModuleList([nn.Linear(*size) for size in sizes])

    def total(layers, batch):
        outputs = [layer(batch[:, : layer.in_features]) for layer in layers]
        return sum(strength * output.square().mean() for strength, output in zip(strengths, outputs, strict=True))

    return model, total, list(torch.randn(3, 4, max(width for width, _ in sizes)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 70), st.integers(1, 70), st.floats(-6, 6).map(lambda power: 10.0**power)),
        min_size=1, max_size=8,
    ),
    st.integers(1, 20), st.integers(0, 100),
)  # fmt: skip
def test_no_budget_is_passed_and_no_further_rank_fits(layers, rank, seed):
    model, total, several = linear_layers([one[:2] for one in layers], [one[2] for one in layers], seed)
    found = allot_ranks(model, total, several, rank)
    assert found.parameters == sum(row.rank * sum(row.shape) for row in found.modules) <= found.uniform_parameters
    for row in found.modules:
        most = min(4 * rank, *row.shape)
        assert min(math.ceil(rank / 2), *row.shape) <= row.rank <= most
        assert row.rank == most or found.parameters + sum(row.shape) > found.uniform_parameters


@pytest.mark.parametrize("rank", [1, 16])
def test_one_large_important_module_does_not_pass_the_budget(rank):
    sizes = [(512, 512)] * 7 + [(16, 16)] * 6
    model, total, several = linear_layers(sizes, [25.0] + [1.0] * 6 + [1e-6] * 6, 0)
    found = allot_ranks(model, total, several, rank)
    assert found.parameters == found.uniform_parameters == rank * 1024 * 7 + rank * 32 * 6


def test_the_patterns_are_those_of_one_module_each_in_peft():
    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj_out = nn.Linear(12, 12)
            self.blocks = nn.ModuleList([nn.ModuleDict({"proj_out": nn.Linear(12, 12)}) for _ in range(12)])

        def forward(self, x):
            return self.proj_out(x) + sum((0.1 * i + 0.01) * one["proj_out"](x) for i, one in enumerate(self.blocks))

    torch.manual_seed(0)
    found = allot_ranks(Blocks(), lambda model, x: model(x).square().mean(), list(torch.randn(3, 4, 12)), 4)
    shapes = {row.module: row.shape for row in found.modules}
    got = given_by_peft({"r": found.rank, "rank_pattern": found.rank_pattern}, shapes)
    assert {name: rank for name, (rank, _) in got.items()} == {row.module: row.rank for row in found.modules}
    assert len({row.rank for row in found.modules}) > 2


def test_ranks_importance_and_spectra_are_the_formulas():
    model, several, rank = Net(), batches(), 4
    found = allot_ranks(model, loss, several, rank)
    dense = gradients(model, several)
    assert [row.module for row in found.modules] == list(dense)
    importance = {name: np.abs(w * g).mean() for name, (w, g) in dense.items()}
    size = {name: math.sqrt(sum(w.shape)) for name, (w, _) in dense.items()}
    budget = rank * sum(size.values())
    wanted = {name: round(budget * importance[name] / sum(importance.values()) / size[name]) for name in dense}
    ranks = within_the_budget(wanted, importance, {name: w.shape for name, (w, _) in dense.items()}, rank)
    whole = kept = uniform = 0.0
    for row in found.modules:
        _, gradient = dense[row.module]
        sigma = np.linalg.svd(gradient.astype(float), compute_uv=False)
        assert row.importance == pytest.approx(importance[row.module], rel=1e-5)
        share = sigma[sigma > 0] / sigma.sum()
        assert row.effective_rank == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-4)
        assert row.rank == ranks[row.module]
        assert found.rank_pattern.get(pattern_key(row.module), rank) == row.rank
        whole += (sigma**2).sum()
        kept += (sigma[: row.rank] ** 2).sum()
        uniform += (sigma[:rank] ** 2).sum()
    assert found.captured == pytest.approx(kept / whole, rel=1e-5)
    assert found.captured_uniform == pytest.approx(uniform / whole, rel=1e-5)
    assert found.parameters == sum(row.rank * sum(row.shape) for row in found.modules)
    assert found.uniform_parameters == sum(rank * sum(row.shape) for row in found.modules)
    halves = [gradients(model, several[start::2]) for start in (0, 1)]
    of = [[np.abs(w * g).mean() for w, g in half.values()] for half in halves]
    assert found.agreement == pytest.approx(scipy.stats.spearmanr(*of).statistic)
    # Only q and k have one shape, and their ranks may change places: the mean lies between the two orders.
    ranks = {row.module: row.rank for row in found.modules}
    energies = {name: np.linalg.svd(g.astype(float), compute_uv=False) ** 2 for name, (_, g) in dense.items()}
    changed = {**ranks, "q": ranks["k"], "k": ranks["q"]}
    orders = [sum(energies[name][:rank].sum() for name, rank in one.items()) / whole for one in (ranks, changed)]
    assert min(orders) < found.captured_shuffled < max(orders)


def test_the_model_is_left_as_it_was():
    model = Net().train()
    model.mlp[0].eval()
    model.q.weight.requires_grad_(False)
    model.k.bias.grad = torch.ones(10)
    before, several = copy.deepcopy(model.state_dict()), batches()
    random = torch.get_rng_state()
    allot_ranks(model, loss, several, 2, targets=["q", "mlp.0"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert (model.training, model.mlp[0].training, model.mlp[1].training) == (True, False, True)
    assert not model.q.weight.requires_grad
    assert model.k.weight.requires_grad
    assert model.q.weight.grad is None
    assert torch.equal(model.k.bias.grad, torch.ones(10))


def test_it_is_left_as_it_was_after_an_error_too():
    model = Net().train()

    def breaks(_model, _batch):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        allot_ranks(model, breaks, batches())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_targets_are_ends_of_names_and_one_batch_has_no_agreement():
    found = allot_ranks(Net(), loss, batches(1), 4, targets=["q", "k"])
    assert [row.module for row in found.modules] == ["q", "k"]
    assert found.agreement is None
    q, k = found.modules
    assert q.importance > k.importance
    assert q.rank > k.rank


def test_a_large_gradient_is_sketched():
    model = nn.Sequential(nn.Linear(2100, 2060, bias=False))
    torch.manual_seed(0)
    batch = [(torch.randn(20, 2100), torch.randn(20, 2060))]
    found = allot_ranks(model, lambda net, both: (net(both[0]) - both[1]).square().sum(), batch, 8)
    (row,) = found.modules
    assert row.effective_rank is None
    residual = (model(batch[0][0]) - batch[0][1]).detach()
    sigma = np.linalg.svd((2 * residual.T @ batch[0][0]).double().numpy(), compute_uv=False)[:20]
    assert found.captured == pytest.approx((sigma[: row.rank] ** 2).sum() / (sigma**2).sum(), rel=1e-4)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"rank": 0}, "rank=0: a whole number"),
        ({"targets": ["nothing"]}, "nothing"),
        ({"batches": []}, "no batch came"),
        ({"loss": lambda model, batch: model.q(batch[0]).sum()}, "gradient is missing"),
        ({"loss": lambda model, batch: 0.0 * loss(model, batch)}, "every gradient is zero"),
        ({"loss": lambda model, batch: math.inf * loss(model, batch)}, "not finite"),
    ],
)
def test_what_cannot_be_is_told(said, words):
    arguments = {"loss": loss, "batches": batches(), **said}
    with pytest.raises(LorabenchError, match=words):
        allot_ranks(Net(), **arguments)
