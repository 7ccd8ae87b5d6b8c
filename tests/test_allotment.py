"""Ranks before a training: the model is left as it was, the numbers are those of dense algebra and of the formula."""

import copy
import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from lorabench.errors import LorabenchError
from lorabench.health.allotment import allot_ranks


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


def test_ranks_importance_and_spectra_are_the_formulas():
    model, several, rank = Net(), batches(), 4
    found = allot_ranks(model, loss, several, rank)
    dense = gradients(model, several)
    assert [row.module for row in found.modules] == list(dense)
    importance = {name: np.abs(w * g).mean() for name, (w, g) in dense.items()}
    size = {name: math.sqrt(sum(w.shape)) for name, (w, _) in dense.items()}
    budget = rank * sum(size.values())
    whole = kept = uniform = 0.0
    for row in found.modules:
        _, gradient = dense[row.module]
        sigma = np.linalg.svd(gradient.astype(float), compute_uv=False)
        assert row.importance == pytest.approx(importance[row.module], rel=1e-5)
        share = sigma[sigma > 0] / sigma.sum()
        assert row.effective_rank == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-4)
        wanted = round(budget * importance[row.module] / sum(importance.values()) / size[row.module])
        assert row.rank == min(max(wanted, rank // 2), 4 * rank, *row.shape)
        assert found.rank_pattern.get(row.module, rank) == row.rank
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
