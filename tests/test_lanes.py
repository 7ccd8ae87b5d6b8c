"""Lanes: the steps of a member as one call without Python, and what lanes share."""

import functools
import sys
import threading
import time

import numpy as np
import pytest
import torch

from lorabench.classifiers import Member, Problem, as_it_is, fit_members, solo
from lorabench.classifiers.linear import Linear
from lorabench.classifiers.mlp import MLP
from lorabench.classifiers.steps import plain_steps, take_steps
from lorabench.training import without_python
from lorabench.training.adam import move, plain_move

no_torchscript = pytest.mark.skipif(sys.version_info >= (3, 14), reason="torch supports TorchScript up to Python 3.13")


def problem(n, f, dtype, classes=4):
    """Two sets of labels, and three of columns: all, neighbours, and every other."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(np.stack([np.arange(n) % classes, rng.permutation(n) % classes]))
    x = torch.from_numpy(rng.normal(size=(n, f))).to(dtype)
    x[torch.arange(n), labels[0]] += 1
    rows = torch.from_numpy(rng.permutation(n))
    sets = (slice(None), slice(0, f // 2), torch.arange(0, f, 2))
    return Problem(x, labels, rows[: n * 7 // 10], rows[n * 7 // 10 :], classes, sets)


@pytest.fixture
def torch_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def layers(sizes, generator, dtype=torch.float32):
    """Weights, biases and both moments."""
    pairs = list(zip(sizes[1:], sizes[:-1], strict=True))
    weights = [torch.randn(m, k, generator=generator, dtype=dtype) / k**0.5 for m, k in pairs]
    biases = [torch.randn(m, generator=generator, dtype=dtype) / 10 for m, _ in pairs]
    zeros = [[[torch.zeros_like(w), torch.zeros_like(b)] for w, b in zip(weights, biases, strict=True)] for _ in "ms"]
    return weights, biases, *zeros


@no_torchscript
def test_steps_gowithout_python():
    """An operation that TorchScript does not know would make lanes slow, and nothing else would tell."""
    assert take_steps is not plain_steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "factory",
    [
        functools.partial(MLP, hidden=[512, 512], dropout=0.3, max_epochs=4),
        functools.partial(MLP, hidden=[24, 16, 8], dropout=0.0, max_epochs=40, learning_rate=2e-2, patience=6,
                          plateau_patience=1),
        functools.partial(MLP, hidden=[64], dropout=0.5, max_epochs=6, batch_size=1000),
        functools.partial(Linear, max_epochs=6, batch_size=1),
    ],
    ids=["wide", "no dropout", "one batch", "linear"],
)  # fmt: skip
def test_members_are_the_same_to_the_bit_with_python_and_without(factory, dtype, monkeypatch, torch_threads):
    """With columns that are neighbours or not, other labels, and a last batch that is short."""
    data = problem(297, 14, dtype)
    members = [Member(0), Member(1, 1), Member(2, 2, 1), Member(3, 0, 1), Member(0, 2)]
    torch_threads(2)
    without = fit_members(factory, data, members, as_it_is)
    monkeypatch.setattr(solo, "take_steps", plain_steps)
    torch_threads(1)
    plain = fit_members(factory, data, members, as_it_is)
    for ours, theirs in zip(without, plain, strict=True):
        assert (ours.member, ours.best_epoch, ours.history) == (theirs.member, theirs.best_epoch, theirs.history)
        assert torch.equal(ours.logits, theirs.logits)
        assert ours.state.keys() == theirs.state.keys()
        assert all(torch.equal(value, theirs.state[name]) for name, value in ours.state.items())


@pytest.mark.parametrize("steps", [take_steps, plain_steps], ids=["without python", "plain"])
def test_steps_are_those_of_autograd_and_torchs_adam(steps):
    """Three steps, the last of them short, one layer without a mask."""
    generator = torch.Generator().manual_seed(1)
    weights, biases, means, squares = layers([5, 9, 7, 3], generator, torch.float64)
    x = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (20,), generator=generator)
    mask = (torch.rand(3, 8, 9, generator=generator) < 0.7).double() / 0.7
    leaves = [p.clone().requires_grad_() for pair in zip(weights, biases, strict=True) for p in pair]
    adam = torch.optim.Adam(leaves, lr=1e-2)
    expected = []
    for step, rows in enumerate(torch.arange(20).split(8)):
        hidden = (x[rows] @ leaves[0].T + leaves[1]).relu() * mask[step, : len(rows)]
        hidden = (hidden @ leaves[2].T + leaves[3]).relu()
        expected.append(hidden @ leaves[4].T + leaves[5])
        adam.zero_grad()
        torch.nn.functional.cross_entropy(expected[-1], y[rows]).backward()
        adam.step()
    found = steps(
        x, torch.nn.functional.one_hot(y, 3).double(), [mask, None, None], weights, biases, means, squares,
        1e-2, torch.arange(1, 4, dtype=torch.float32), 8,
    )  # fmt: skip
    torch.testing.assert_close(found, torch.cat(expected).detach(), rtol=1e-10, atol=1e-10)
    for i in range(3):
        torch.testing.assert_close(weights[i], leaves[2 * i].detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(biases[i], leaves[2 * i + 1].detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=no_torchscript)], ids=["plain", "without python"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adam_is_torchs_with_the_fused_kernel_and_without(dtype, compiled):
    """What stands in where torch lacks its private kernel."""
    generator = torch.Generator().manual_seed(3)
    start = [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((4, 3), (5,))]
    steep = [[torch.randn(p.shape, generator=generator, dtype=dtype) for p in start] for _ in range(7)]
    leaves = [p.clone().requires_grad_() for p in start]
    adam = torch.optim.Adam(leaves, lr=3e-2)
    for grads in steep:
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.grad = grad.clone()
        adam.step()
    for how in (move, plain_move):
        step = without_python(how) if compiled else how
        assert (step is not how) == compiled
        ours = [p.clone() for p in start]
        means, squares = ([torch.zeros_like(p) for p in start] for _ in "ms")
        for number, grads in enumerate(steep, start=1):
            step(ours, grads, means, squares, 3e-2, torch.tensor(float(number)))
        close = {"rtol": 1e-12, "atol": 1e-12} if dtype is torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
        for one, leaf in zip(ours, leaves, strict=True):
            torch.testing.assert_close(one, leaf.detach(), **close)


@no_torchscript
def test_a_lane_does_its_steps_while_another_thread_keeps_python_to_itself():
    """The thread that waits never lets go of Python, yet sees the last step's bias, known from the same steps."""
    steps, size = 60, 32

    def inputs():
        generator = torch.Generator().manual_seed(2)
        network = layers([32, 64, 3], generator)
        x = torch.randn(steps * size, 32, generator=generator)
        target = torch.nn.functional.one_hot(torch.arange(steps * size) % 3, 3).float()
        return x, target, [None, None], *network, 1e-3, torch.arange(1.0, steps + 1), size

    known = inputs()
    plain_steps(*known)
    last = float(known[4][1][0])
    ours = inputs()
    seen = ours[4][1].numpy()
    assert float(seen[0]) != last
    before, begun = sys.getswitchinterval(), threading.Event()

    def lane():
        begun.set()
        take_steps(*ours)

    thread = threading.Thread(target=lane)
    sys.setswitchinterval(3600)
    try:
        thread.start()
        begun.wait()
        until = time.monotonic() + 20
        while seen.item(0) != last and time.monotonic() < until:
            pass
        done = seen.item(0) == last
    finally:
        sys.setswitchinterval(before)
        thread.join()
    assert done, "the steps waited for Python"


def test_every_epoch_and_every_finished_member_is_told(torch_threads):
    """From two lanes; members stop in different epochs."""
    torch_threads(2)
    told = []
    factory = functools.partial(MLP, hidden=[16], dropout=0.0, max_epochs=30, patience=2, learning_rate=3e-2)
    members = [Member(seed) for seed in range(6)]
    data = problem(80, 8, torch.float32)
    found = fit_members(factory, data, members, as_it_is, lambda epoch, finished: told.append((epoch, finished)))
    epochs = [len(fitted.history) for fitted in found]
    assert len(set(epochs)) > 1
    assert len(told) == sum(epochs)
    assert sorted(epoch + 1 for epoch, finished in told if finished) == sorted(epochs)
    assert sum(finished for _, finished in told) == len(members)


def test_where_torchscript_is_not_to_be_had_the_function_runs_as_it_is(monkeypatch):
    def refused(x):
        yield x

    assert without_python(refused) is refused
    monkeypatch.delattr(torch.jit, "script")
    assert without_python(plain_steps) is plain_steps
