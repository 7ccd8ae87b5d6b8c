"""Steps that run without Python are the steps of autograd."""

import sys

import pytest
import torch

from lorabench.representations import fitting
from lorabench.representations.autoencoder import AutoEncoder
from lorabench.representations.contrastive import ContrastiveModule
from lorabench.representations.denoising import DenoisingModule
from lorabench.representations.fitting import Schooling, fit_together
from lorabench.representations.vae import VAEModule
from lorabench.training import scripted, set_keys, traced_step

PAIR = [{"down": 0, "up": 96, "rank": 3, "d_in": 32, "d_out": 16}]
KINDS = [(VAEModule, {}), (DenoisingModule, {}), (ContrastiveModule, {}), (ContrastiveModule, {"pairs": PAIR})]


def a_module(kind: type[AutoEncoder], options: dict[str, object], seed: int = 3) -> AutoEncoder:
    return kind(in_features=144, latent_dim=12, seed=seed, **options)


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What TorchScript took: a silent return to Python would cost the time that it is there to save."""
    taken: list[object] = []
    script = torch.jit.script

    def counted(function: object) -> object:
        found = script(function)
        taken.append(found)
        return found

    monkeypatch.setattr(torch.jit, "script", counted)
    return taken


@pytest.mark.parametrize(
    ("kind", "options", "dtype"), [(*one, torch.float64) for one in KINDS] + [(VAEModule, {}, torch.float32)]
)
def test_losses_gradients_and_buffers_are_those_of_autograd(kind, options, dtype, scripts):
    made = fitting._Losses(a_module(kind, options)).to(dtype).train()
    x = torch.randn(64, 144, dtype=dtype, generator=torch.Generator().manual_seed(0))
    step = traced_step(made, x)
    assert len(scripts) == 1
    other = fitting._Losses(a_module(kind, options, seed=4)).to(dtype).train()  # one of the same architecture
    params = [p.detach().clone() for p in other.parameters()]
    for number in range(3):
        set_keys(other, 4, number)
        batch = torch.randn(64, 144, dtype=dtype, generator=torch.Generator().manual_seed(number))
        buffers = [b.clone() for b in other.buffers()]
        losses, grads = step(params, buffers, batch)
        truth = other(batch)
        steep = torch.autograd.grad(truth["loss"], list(other.parameters()))
        close = {"rtol": 1e-11, "atol": 1e-11} if dtype is torch.float64 else {"rtol": 1e-2, "atol": 2e-2}
        assert list(losses) == list(truth)
        for name, loss in losses.items():
            torch.testing.assert_close(loss, truth[name].detach(), **close)
        for one, two in zip(grads, steep, strict=True):
            torch.testing.assert_close(one, two, **close)
        for one, two in zip(buffers, other.buffers(), strict=True):
            torch.testing.assert_close(one, two, **close)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_training_is_the_same_with_and_without_python(kind, options, monkeypatch):
    x = torch.randn(1, 150, 144, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = []
    for pays in (1, 10**12):
        monkeypatch.setattr(fitting, "_PAYS", pays)
        module = a_module(kind, options).double()
        (course,) = fit_together([module], x, Schooling(32, 6, 10, 0.1))
        found.append((module, course))
    (first, ours), (second, theirs) = found
    assert ours.best_epoch == theirs.best_epoch
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, second.state_dict()[name], rtol=1e-8, atol=1e-9)
    for one, two in zip(ours.history, theirs.history, strict=True):
        assert one == pytest.approx(two, rel=1e-8)


def test_without_torchscript_the_step_runs_in_python(monkeypatch, scripts):
    monkeypatch.delattr(torch.jit, "optimized_execution")
    made = fitting._Losses(a_module(DenoisingModule, {})).train()
    x = torch.randn(8, 144)
    step = traced_step(made, x)
    assert not scripts
    params, buffers = [p.detach() for p in made.parameters()], [b.clone() for b in made.buffers()]
    losses, _ = step(params, buffers, x)
    torch.testing.assert_close(losses["loss"], made(x)["loss"].detach(), rtol=2e-4, atol=2e-4)


def test_gradients_of_large_products_come_in_their_own_order_of_memory():
    if scripted.ONEDNN is None or sys.byteorder != "little":
        pytest.skip("this torch has no oneDNN")
    made = fitting._Losses(a_module(VAEModule, {})).train()
    step = traced_step(made, torch.randn(64, 144))
    params, buffers = [p.detach() for p in made.parameters()], [b.clone() for b in made.buffers()]
    _, grads = step(params, buffers, torch.randn(64, 144))
    large = [grad for grad in grads if grad.dim() == 2 and grad.numel() * 64 >= 2**18]
    assert len(large) >= 4
    assert all(grad.is_contiguous() for grad in large)
