"""Wide autoencoders, and stacks as a GPU takes them: where tensors lie, what waits, what memory they take."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorabench.machine import one_thread_an_operation
from lorabench.representations.autoencoder import AutoEncoder
from lorabench.representations.contrastive import Contrastive, ContrastiveModule
from lorabench.representations.denoising import DenoisingModule
from lorabench.representations.fitting import Schooling, fit_together
from lorabench.representations.training_memory import member_bytes
from lorabench.representations.vae import VAE, VAEModule
from lorabench.training import Adam
from tests.bench.hub_zoo import hub_zoo
from tests.synthetic_zoo import make_zoo

PAIRS = [{"down": 0, "up": 8, "rank": 2, "d_in": 4, "d_out": 6}]
KINDS: dict[str, tuple[type[AutoEncoder], dict[str, Any]]] = {
    "vae": (VAEModule, {}),
    "denoising": (DenoisingModule, {}),
    "contrastive": (ContrastiveModule, {}),
    "gauges": (ContrastiveModule, {"pairs": PAIRS}),
}
D, N = 20, 65
SCHOOLING = Schooling(batch_size=19, epochs=6, patience=2, val_share=0.1)  # of 58 rows, 4 steps an epoch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with one_thread_an_operation():
        yield


def modules(kind: str, count: int, width: int = D, **options: object) -> list[AutoEncoder]:
    make, arguments = KINDS[kind]
    given = {"latent_dim": 3, "hidden": [16, 12], **arguments, **options}
    return [make(in_features=width, seed=5 + seed, **given) for seed in range(count)]


class Elsewhere(TorchDispatchMode):
    """Takes torch's meta device for a GPU: counts what crosses to it and back, and what mixes both.

    What comes back is zeros: on meta there are no numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.crossed: Counter[str] = Counter()
        self.mixed: list[str] = []
        self.steps = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        # A number that lies on the CPU goes to a GPU's kernel as an argument.
        places = {tensor.device.type for tensor in tensors if tensor.dim() or tensor.device.type == "meta"}
        if func is torch.ops.aten._to_copy.default and isinstance(args[0], torch.Tensor):
            source, target = args[0].device.type, torch.device(kwargs.get("device") or args[0].device).type
            self.crossed[f"{source} to {target}"] += source != target
            if (source, target) == ("meta", "cpu"):
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        elif func is torch.ops.aten._local_scalar_dense.default and places == {"meta"}:
            self.crossed["meta to a number"] += 1
            return 0.0
        elif len(places) > 1:
            self.mixed.append(str(func))
        if func is torch.ops.aten._fused_adam_.default:
            self.steps += 1
            assert all(tensor.device.type == "meta" for tensor in tensors)
            assert all(tensor.is_contiguous() for tensor in tensors)
            return None
        return func(*args, **kwargs)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_lies_on_its_device_and_waits_for_it_twice_an_epoch(kind: str, count: int) -> None:
    units = [module.to("meta") for module in modules(kind, count)]
    inputs = torch.empty(count, N, D, device="meta")
    with Elsewhere() as seen:
        courses = fit_together(units, inputs, SCHOOLING)
    epochs = len(courses[0].history)
    assert epochs == 3, "the losses are zeros: the first epoch is best"
    assert seen.mixed == []
    assert seen.steps == 4 * epochs
    # Back: the losses of training and of validation. There: two kinds of rows at first, then orders and who improved.
    assert seen.crossed.pop("meta to cpu") == 2 * epochs
    assert seen.crossed.pop("cpu to meta") == 2 + 2 * epochs
    assert +seen.crossed == Counter()


def test_a_tensor_on_the_wrong_device_would_be_seen() -> None:
    there, here = torch.empty(3, device="meta"), torch.zeros(3)
    with Elsewhere() as seen:
        assert there.sum().item() == 0.0
        there.cpu()
        with pytest.raises(RuntimeError, match="device"):
            _ = there + here
    assert seen.mixed == ["aten.add.Tensor"]
    assert seen.crossed == {"meta to a number": 1, "meta to cpu": 1}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", ["vae", "denoising", "contrastive"])
@pytest.mark.parametrize(("width", "rows", "hidden"), [(1280, 300, [128, 64]), (160, 900, [512, 256])])
def test_the_estimate_of_memory_is_what_torch_allocates(
    kind: str, count: int, width: int, rows: int, hidden: list[int]
) -> None:
    """To 10 % in a stack; a unit by itself moves its own weights, so it takes a tensor of them less."""
    options = {"hidden": hidden, "latent_dim": 16}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        units = modules(kind, count, width, **options)
        inputs = torch.randn(count, rows, width)
        fit_together(units, inputs, Schooling(64, 2, 5, 0.1))
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    truth = np.cumsum(changes).max() / count
    estimate = member_bytes(modules(kind, 1, width, **options)[0], rows, 64, 0.1)
    assert estimate == pytest.approx(truth, rel=0.1 if count > 1 else 0.3)
    assert estimate > 0.9 * truth


def test_neighbours_in_a_stack_have_one_learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[float]] = []
    known = Adam.set_rates
    monkeypatch.setattr(Adam, "set_rates", lambda self, rates: (seen.append(rates.tolist()), known(self, rates))[1])
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, N, D, generator=generator)
    units = modules("vae", 6, learning_rate=2e-2, plateau_patience=1)
    fit_together(units, inputs, Schooling(19, 40, 15, 0.1))
    assert any(len(set(rates)) > 1 for rates in seen), "units should have rates of their own for this test to bite"
    assert all(rates == sorted(rates, reverse=True) for rates in seen)


def test_units_that_change_places_keep_what_is_theirs() -> None:
    """Rates fall and units stop at different times, in float64 to 1e-8: each is what it is by itself."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(5, N, D, generator=generator, dtype=torch.float64)
    inputs[:3] += 3 * torch.randn(3, 1, N, generator=generator, dtype=torch.float64).mT  # some are easier
    given = {"learning_rate": 2e-2, "plateau_patience": 1}
    together, alone = ([module.double() for module in modules("denoising", 5, **given)] for _ in range(2))
    schooling = Schooling(19, 30, 4, 0.1)
    courses = fit_together(together, inputs, schooling)
    assert len({len(course.history) for course in courses}) > 2
    for module, one, rows, course in zip(together, alone, inputs, courses, strict=True):
        expected = fit_together([one], rows[None], schooling)[0]
        assert (course.best_epoch, len(course.history)) == (expected.best_epoch, len(expected.history))
        for name, value in one.state_dict().items():
            torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-8, atol=1e-8, msg=name)


def test_a_layer_of_5120_inputs_is_learned() -> None:
    zoo = make_zoo(60, [(1280, 1280)], [4])
    representation = VAE(epochs=3)
    representation.fit(zoo, torch.device("cpu"))
    for layer, found in representation.transform(zoo, torch.device("cpu")).items():
        assert zoo.layers[layer].shape[1] * zoo.layers[layer].shape[2] == 5120
        assert found.shape == (60, 64)
        assert found.isfinite().all()
        history = representation.fitted_[layer].notes["history"]
        assert history[-1]["train_loss"] < history[0]["train_loss"]


@pytest.mark.parametrize("kind", [VAE, Contrastive])
def test_all_layers_of_the_hubs_shapes_behind_one_another_are_one_unit(kind: type[VAE | Contrastive]) -> None:
    """A quarter of SD 1.5's layers; contrastive views take every module to another gauge."""
    zoo = hub_zoo(40, 32)
    width = sum(stack.shape[1] * stack.shape[2] for stack in zoo.layers.values())
    assert width > 20_000
    representation = kind(scope="all", epochs=2, hidden=[64, 32])
    representation.fit(zoo, torch.device("cpu"))
    found = representation.transform(zoo, torch.device("cpu"))
    assert set(found) == {"all"}
    assert found["all"].shape == (40, kind.default_latent(width))
    assert found["all"].isfinite().all()
    assert representation.fitted_["all"].arguments["in_features"] == width


@pytest.mark.slow
def test_all_99648_weights_of_the_hubs_schema_are_one_unit() -> None:
    zoo = hub_zoo(60, 128)
    representation = VAE(scope="all", epochs=2)
    representation.fit(zoo, torch.device("cpu"))
    module = representation.fitted_["all"].module
    assert module is not None
    assert module.in_features == 99_648
    assert representation.transform(zoo, torch.device("cpu"))["all"].shape == (60, 64)


def test_units_are_cut_into_stacks_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU: units of one width, as many as fit."""
    zoo = hub_zoo(60, 128)
    width = {layer: stack.shape[1] * stack.shape[2] for layer, stack in zoo.layers.items()}
    one = {
        width[layer]: member_bytes(VAE().new_module(zoo, layer), 60, 64)
        for layer in {wide: layer for layer, wide in width.items()}.values()
    }
    budget = 3.5 * one[1280]
    chunks = VAE(memory_gb=budget / 1e9)._chunks(zoo, list(zoo.layers), torch.device("cuda"))
    assert sorted(unit for chunk in chunks for unit in chunk) == sorted(zoo.layers)
    for chunk in chunks:
        (wide,) = {width[unit] for unit in chunk}
        assert len(chunk) <= int(budget / one[wide])
    assert max(len(chunk) for chunk in chunks if width[chunk[0]] == 1280) == 3
    monkeypatch.setattr("lorabench.representations.learned.free_memory", lambda _: int(1e12))
    assert len(VAE()._chunks(zoo, list(zoo.layers), torch.device("cuda"))) <= 7
