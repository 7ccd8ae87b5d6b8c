"""LoRA modules of models in memory beside what PEFT itself says their update is, and beside the modules' outputs."""

import warnings
from types import SimpleNamespace

import peft
import pytest
import torch
from torch import nn

from lorabench.errors import LorabenchError
from lorabench.health import LoRAAnalyzer, live_modules, module_metrics
from lorabench.health.live import adapters_of, read_all
from lorabench.lowrank import effective_rank


class Experts(nn.Module):
    """One parameter for all experts, [experts, d_out, d_in], or [experts, d_in, d_out] where it is transposed."""

    def __init__(self, transposed=False, d_out=6, d_in=10):
        super().__init__()
        self.is_transposed = transposed
        sides = (d_in, d_out) if transposed else (d_out, d_in)
        self.gate_up_proj = nn.Parameter(torch.randn(3, *sides))
        self.down_proj = nn.Parameter(torch.randn(3, *sides[::-1]))

    def forward(self, x):
        up, down = self.gate_up_proj, self.down_proj
        if not self.is_transposed:
            up, down = up.mT, down.mT
        return (x @ up @ down).sum(0)


class Conv1D(nn.Module):
    """GPT-2's: its weight is [d_in, d_out]."""


def randomised(model):
    """Factors that are not zero, as after some training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def with_peft(model, *adapters, **options):
    config = peft.LoraConfig(r=4, lora_alpha=6, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own, of convolutions with groups and of GPT-2's layers
        model = peft.get_peft_model(model, config, *adapters[:1] or ("default",))
        for name in adapters[1:]:
            model.add_adapter(name, config)
    return randomised(model)


def net(**layers):
    return nn.ModuleDict(layers)


def conv1d():
    from transformers.pytorch_utils import Conv1D

    return Conv1D(8, 6)  # d_out, d_in


LAYERS = {
    "linear": (lambda: nn.Linear(6, 8), {}),
    "rslora": (lambda: nn.Linear(6, 8), {"use_rslora": True}),
    "half": (lambda: nn.Linear(6, 8).bfloat16(), {}),
    "conv": (lambda: nn.Conv2d(3, 8, 3), {}),
    "conv 1x1": (lambda: nn.Conv2d(6, 8, 1), {}),
    "conv of one dimension": (lambda: nn.Conv1d(6, 8, 3), {}),
    "embedding": (lambda: nn.Embedding(20, 8), {}),
    "square embedding": (lambda: nn.Embedding(8, 8), {}),
    "gpt2": (conv1d, {"fan_in_fan_out": True}),
    "attention": (lambda: nn.MultiheadAttention(8, 2), {}),
    "dora": (lambda: nn.Linear(6, 8), {"use_dora": True}),
}


def dense(module, delta, tolerance=1e-5):
    """ΔW of ours beside PEFT's: the matrix itself, σ₁ and ‖ΔW‖ by the SVD of the dense one."""
    delta = delta.detach().float()
    delta = delta.flatten(1) if delta.ndim > 1 else delta
    if tuple(delta.shape) != module.shape or module.embedding:
        delta = delta.mT
    torch.testing.assert_close(module.delta(), delta, rtol=tolerance, atol=tolerance * float(delta.abs().max()))
    (found,) = module_metrics({"m": module})
    sigma = torch.linalg.svdvals(delta.double())
    assert found.sigma_max == pytest.approx(float(sigma[0]), rel=max(tolerance, 1e-5))
    assert found.frobenius == pytest.approx(float(sigma.norm()), rel=max(tolerance, 1e-5))


@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer_of_pefts_is_read_as_peft_has_it(kind):
    make, options = LAYERS[kind]
    model = with_peft(net(layer=make()), target_modules=["layer"], **options)
    found = live_modules(model)
    assert next(iter(found)) == "layer"
    for one in found.values():
        dense(one.read(), one.owner.get_delta_weight("default"), 0.01 if kind == "half" else 1e-5)
        assert one.read().kind == ("dora" if kind == "dora" else "lora")
        assert one.trains
        assert {id(part) for part in one.parameters()} <= {id(part) for part in model.parameters()}


@pytest.mark.parametrize("kind", sorted(set(LAYERS) - {"half", "dora", "attention"}))  # PEFT warns of a second there
def test_the_base_is_what_it_was_before_the_merge(kind):
    make, options = LAYERS[kind]
    model = with_peft(net(layer=make()), "one", "two", target_modules=["layer"], **options)
    found = live_modules(model)
    before = {name: one.base().clone() for name, one in found.items()}  # PEFT merges in place
    layer = model.base_model.model.layer.base_layer
    weight = getattr(layer, "weight", getattr(layer, "in_proj_weight", None)).detach()
    flat = weight.flatten(1)
    as_ours = flat.mT if kind in ("embedding", "square embedding", "gpt2") else flat
    torch.testing.assert_close(before["layer (one)"], as_ours)
    assert not any(one.merged for one in found.values())
    model.merge_adapter(["one", "two"])
    assert all(one.merged for one in found.values())
    assert not torch.allclose(layer_weight(layer), weight_of(before["layer (one)"], layer), atol=1e-3)
    for name, one in found.items():
        torch.testing.assert_close(one.base(), before[name], rtol=1e-4, atol=1e-4)
    read = {name: one.read() for name, one in found.items()}
    model.unmerge_adapter()
    assert not any(one.merged for one in found.values())
    for name, one in found.items():
        torch.testing.assert_close(one.read().delta(), read[name].delta())


def layer_weight(layer):
    return getattr(layer, "weight", getattr(layer, "in_proj_weight", None)).detach().flatten(1)


def weight_of(base, layer):
    return base if base.shape == layer_weight(layer).shape else base.mT


def test_a_merged_dora_has_no_base_that_could_be_told():
    model = with_peft(net(layer=nn.Linear(6, 8)), target_modules=["layer"], use_dora=True)
    (one,) = live_modules(model).values()
    assert one.base() is not None
    model.merge_adapter()
    assert one.base() is None


def test_a_convolution_with_groups_is_read_as_it_computes():
    torch.manual_seed(0)
    model = with_peft(net(layer=nn.Conv2d(8, 12, 1, groups=2, bias=False)), target_modules=["layer"])
    (one,) = live_modules(model).values()
    pictures = torch.eye(8)[:, :, None, None]
    layer = model.base_model.model.layer
    whole, base = (layer(pictures)[:, :, 0, 0].T, layer.base_layer(pictures)[:, :, 0, 0].T)
    torch.testing.assert_close(one.read().delta(), (whole - base).detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.base(), base.detach())


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 8), lambda: nn.Conv2d(3, 8, 3)])
def test_adalora_is_read_as_peft_has_it(make):
    config = peft.AdaLoraConfig(init_r=4, target_r=2, lora_alpha=6, total_step=10, target_modules=["layer"])
    model = randomised(peft.get_peft_model(net(layer=make()), config))
    (one,) = live_modules(model).values()
    assert one.read().kind == "adalora"
    dense(one.read(), one.owner.get_delta_weight("default"))
    held = {id(part) for part in one.parameters()}
    assert held == {id(part) for name, part in model.named_parameters() if "lora_" in name}
    assert one.trains
    with torch.no_grad():
        one.owner.lora_E["default"][1:3] = 0  # pruned
    dense(one.read(), one.owner.get_delta_weight("default"))
    (found,) = module_metrics({"layer": one.read()})
    assert found.numerical_rank == 2
    assert found.dead_dimensions == (1, 2)
    assert found.stuck_dimensions == ()
    alerts = LoRAAnalyzer(model).analyze(rules=["ill_conditioned", "stuck_dimensions"]).alerts
    assert alerts == []


def test_adalora_that_was_resized_keeps_its_first_scale():
    config = peft.AdaLoraConfig(init_r=4, target_r=2, lora_alpha=6, total_step=10, target_modules=["layer", "other"])
    model = randomised(peft.get_peft_model(net(layer=nn.Linear(6, 8), other=nn.Linear(8, 6)), config))
    pattern = {
        "layer.lora_E": [True, False, True, False],
        "other.lora_E": [False] * 4,
    }
    model.base_model.resize_modules_by_rank_pattern(pattern, "default")
    found = live_modules(model)
    assert list(found) == ["layer"], "of rank 0 nothing is left to read"
    assert found["layer"].read().rank == 2
    dense(found["layer"].read(), found["layer"].owner.get_delta_weight("default"))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("d_in", [10, 6])
def test_experts_of_one_parameter_are_read_one_by_one(transposed, d_in):
    torch.manual_seed(0)
    made = Experts(transposed, 6, d_in)
    weights = {"gate_up_proj": made.gate_up_proj.detach().clone(), "down_proj": made.down_proj.detach().clone()}
    model = with_peft(net(experts=made), target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    found = live_modules(model)
    assert sorted(found) == [f"experts.{name}.{i}" for name in ("down_proj", "gate_up_proj") for i in range(3)]
    for name, one in found.items():
        _, parameter, number = name.split(".")
        delta = one.owner.get_delta_weight("default")[int(number)]
        weight = weights[parameter][int(number)]
        delta, weight = (delta.mT, weight.mT) if transposed else (delta, weight)
        dense(one.read(), delta)
        torch.testing.assert_close(one.base(), weight)
    model.merge_adapter()
    assert not torch.allclose(made.gate_up_proj, weights["gate_up_proj"], atol=1e-2)
    for name, one in found.items():
        _, parameter, number = name.split(".")
        weight = weights[parameter][int(number)]
        torch.testing.assert_close(one.base(), weight.mT if transposed else weight, rtol=1e-4, atol=1e-4)


def test_a_parameter_of_two_dimensions_is_one_module():
    model = with_peft(net(layer=nn.Linear(6, 8)), target_parameters=["layer.weight"])
    (one,) = live_modules(model).values()
    assert one.name == "layer"
    dense(one.read(), one.owner.get_delta_weight("default"))
    torch.testing.assert_close(one.base(), one.owner.get_base_layer().weight.detach())


def test_two_adapters_are_told_apart():
    model = with_peft(net(layer=nn.Linear(6, 8)), "first", "second", target_modules=["layer"])
    found = live_modules(model)
    assert list(found) == ["layer (first)", "layer (second)"]
    for name in ("first", "second"):
        dense(found[f"layer ({name})"].read(), model.base_model.model.layer.get_delta_weight(name))
    model.set_adapter("second")
    assert [one.trains for one in found.values()] == [False, True]
    model.delete_adapter("first")
    with pytest.raises(LorabenchError, match="first is gone"):
        read_all(found)
    assert list(live_modules(model)) == ["layer"]


class Plain(nn.Linear):
    """loralib's layer, by what it holds."""

    def __init__(self, d_in, d_out, rank, alpha):
        super().__init__(d_in, d_out)
        self.lora_A = nn.Parameter(torch.randn(rank, d_in))
        self.lora_B = nn.Parameter(torch.randn(d_out, rank))
        self.lora_alpha, self.scaling, self.merged = alpha, alpha / rank, False

    def merge(self):
        with torch.no_grad():
            self.weight += self.scaling * self.lora_B @ self.lora_A
        self.merged = True


def test_loralibs_layer_merged_or_not():
    torch.manual_seed(0)
    layer = Plain(6, 8, 4, 6)
    weight = layer.weight.detach().clone()
    (one,) = live_modules(net(layer=layer)).values()
    dense(one.read(), layer.scaling * layer.lora_B @ layer.lora_A)
    torch.testing.assert_close(one.base(), weight)
    layer.merge()
    assert one.merged
    torch.testing.assert_close(one.base(), weight, rtol=1e-4, atol=1e-5)


def test_loralibs_merged_projection_has_a_block_for_every_part():
    torch.manual_seed(0)
    layer = nn.Linear(6, 9)
    layer.enable_lora = [True, False, True]
    layer.lora_A, layer.lora_B = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 2))
    layer.scaling = 0.5
    (one,) = live_modules(net(layer=layer)).values()
    delta = torch.zeros(9, 6)
    delta[:3] = 0.5 * layer.lora_B[:3] @ layer.lora_A[:2]  # loralib: a convolution of two groups, zeros between
    delta[6:] = 0.5 * layer.lora_B[3:] @ layer.lora_A[2:]
    dense(one.read(), delta)
    torch.testing.assert_close(one.base(), layer.weight.detach())


@pytest.mark.parametrize("alpha", [torch.tensor(6.0), 6, None])
def test_kohyas_module(alpha):
    torch.manual_seed(0)
    original = nn.Conv2d(3, 8, 3)
    layer = nn.Module()
    layer.lora_down, layer.lora_up = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 8, 1, bias=False)
    layer.org_module = original
    if alpha is not None:
        layer.alpha = alpha
    (one,) = live_modules(net(lora_unet_conv=layer)).values()
    scale = 1.0 if alpha is None else 6 / 4
    delta = scale * torch.einsum("or,rikl->oikl", layer.lora_up.weight[:, :, 0, 0], layer.lora_down.weight)
    dense(one.read(), delta)
    assert one.read().kernel == (3, 3)
    torch.testing.assert_close(one.base(), original.weight.detach().flatten(1))


def test_factors_that_do_not_fit_are_refused():
    layer = SimpleNamespace(down=torch.ones(4, 6), up=torch.ones(8, 3))
    module = nn.Linear(6, 8)
    module.lora_A, module.lora_B = nn.Parameter(layer.down), nn.Parameter(layer.up)
    (one,) = live_modules(net(layer=module)).values()
    with pytest.raises(LorabenchError, match=r"\[4, 6\] and \[8, 3\]"):
        one.read()


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "IA3"])
def test_what_is_no_lora_is_named(kind):
    options = {"target_modules": ["0"], **({"feedforward_modules": []} if kind == "IA3" else {})}
    model = peft.get_peft_model(nn.Sequential(nn.Linear(8, 8)), getattr(peft, f"{kind}Config")(**options))
    with pytest.raises(LorabenchError, match=rf"its adapter is no LoRA \({kind.lower()}\), and is not looked at"):
        live_modules(model)


def test_what_holds_no_pair_is_none():
    assert adapters_of(nn.Linear(2, 2)) == []
    with pytest.raises(LorabenchError, match="no LoRA module"):
        live_modules(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("kind", ["linear", "conv", "embedding", "adalora", "experts"])
def test_the_gradient_is_the_first_change_of_the_update(kind):
    """Beside the difference of two updates, before and after one small step down the gradient."""
    torch.manual_seed(0)
    if kind == "adalora":
        config = peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=["layer"])
        model = randomised(peft.get_peft_model(net(layer=nn.Linear(6, 8)), config))
    elif kind == "experts":
        model = with_peft(net(experts=Experts()), target_parameters=["experts.gate_up_proj"])
    else:
        model = with_peft(net(layer=LAYERS[kind][0]()), target_modules=["layer"])
    model = model.double()
    one = list(live_modules(model).values())[-1]
    assert one.gradient() is None
    generator = torch.Generator().manual_seed(1)
    step, before = 1e-4, one.read()
    for parameter in one.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    tangent = one.gradient()
    assert tangent.rank == 2 * before.rank
    unscaled = before.up.double() @ before.down.double()
    with torch.no_grad():
        for parameter in one.parameters():
            parameter += step * parameter.grad
    after = one.read()
    change = (after.up.double() @ after.down.double() - unscaled) / step
    torch.testing.assert_close(tangent.delta().double(), change, rtol=0.02, atol=0.05)
    sigma = torch.linalg.svdvals(tangent.delta().double())
    assert float(effective_rank(sigma)) > 1


def test_a_frozen_factor_takes_no_part_in_the_gradient():
    model = with_peft(net(layer=nn.Linear(6, 8)), target_modules=["layer"])
    (one,) = live_modules(model).values()
    down, up = one.parameters()
    up.grad = torch.randn(up.shape)
    torch.testing.assert_close(one.gradient().delta(), up.grad @ down.detach())


def test_a_model_without_any_base_weight_is_analysed_by_itself():
    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lora_down, self.lora_up = torch.nn.Linear(6, 2, bias=False), torch.nn.Linear(2, 5, bias=False)

    (row,) = LoRAAnalyzer(torch.nn.ModuleDict({"one": Pair()})).analyze().rows
    assert row.module == "one"
    assert (row.dominance, row.shape) == (None, (5, 6))
    assert row.sigma_max > 0
