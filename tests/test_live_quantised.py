"""Models whose base bitsandbytes has quantised (QLoRA): W is what the layer computes with, never what is packed."""

import peft
import pytest
import torch
from torch import nn

from lorabench.errors import LorabenchError
from lorabench.health import LoRAAnalyzer, Monitor, live_modules

KINDS = ("nf4", "fp4", "nf4 as bfloat16", "int8")


def linear(kind):
    bnb = pytest.importorskip("bitsandbytes")
    if kind == "int8":
        return bnb.nn.Linear8bitLt(64, 128, bias=False, has_fp16_weights=False)
    storage = torch.bfloat16 if kind.endswith("bfloat16") else torch.uint8  # what FSDP asks for
    return bnb.nn.Linear4bit(
        64, 128, bias=False, compute_dtype=torch.float32, quant_type=kind[:3], quant_storage=storage
    )


def adapted(kind, quantised=True):
    """A quantised layer beside a plain one, with an adapter that is not zero."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"packed": linear(kind), "plain": nn.Linear(64, 32)})
    if quantised:
        model = model.to("cpu")  # quantises
        assert model["packed"].weight.shape != (128, 64) or kind == "int8"
    setattr(model, "is_loaded_in_8bit" if kind == "int8" else "is_loaded_in_4bit", quantised)  # as transformers says it
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["packed", "plain"]))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def computed(model):
    """W as the layer's own kernel has it: what comes out of the identity."""
    layer = model.base_model.model["packed"]
    with torch.no_grad():
        return layer.get_base_layer()(torch.eye(64)).T.float()


def held_against(rows, model, tolerance=1e-5):
    """Rows beside dense algebra on what the layer computes with."""
    row, weight = rows["packed"], computed(model)
    delta = model.base_model.model["packed"].get_delta_weight("default").detach()
    assert row.base_sigma_max == pytest.approx(float(torch.linalg.svdvals(weight)[0]), rel=tolerance)
    assert row.base_frobenius == pytest.approx(float(torch.linalg.matrix_norm(weight)), rel=tolerance)
    ratio = torch.linalg.matrix_norm(delta, 2) / torch.linalg.matrix_norm(weight, 2)
    assert row.dominance == pytest.approx(float(ratio), rel=tolerance)
    assert rows["plain"].base_sigma_max is not None


@pytest.mark.parametrize("kind", KINDS)
def test_w_is_what_the_layer_computes_with(kind):
    model = adapted(kind)
    tolerance = 5e-3 if kind == "int8" else 1e-5  # the kernel of 8 bits rounds its input too
    layer = model.base_model.model["packed"].get_base_layer()
    before = layer.weight.data.clone()
    found = live_modules(model)["packed"].base()
    torch.testing.assert_close(found.float(), computed(model), rtol=tolerance, atol=tolerance)
    held_against({row.module: row for row in LoRAAnalyzer(model).analyze().rows}, model, tolerance)
    assert torch.equal(layer.weight.data.view(torch.uint8), before.view(torch.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_the_monitor_holds_the_update_against_it(kind, caplog):
    model, monitor = adapted(kind), Monitor(every=1, base=True)
    monitor.step(model)
    assert not [record for record in caplog.records if "nothing is held" in record.message]
    held_against(monitor.snapshots[0].rows, model, 5e-3 if kind == "int8" else 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_look_changes_nothing_of_what_the_model_computes(kind):
    model = adapted(kind).base_model.model["packed"]
    inputs = torch.randn(5, 64)
    first = model(inputs)
    (one,) = live_modules(model).values()
    one.base()
    assert torch.equal(model(inputs), first)
    model(inputs).sum().backward()
    assert one.gradient() is not None


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_what_is_not_yet_quantised_is_as_it_is(kind):
    model = adapted(kind, quantised=False)
    weight = model.base_model.model["packed"].get_base_layer().weight.data
    assert torch.equal(live_modules(model)["packed"].base(), weight)


@pytest.mark.filterwarnings("ignore:.*due to rounding errors")  # PEFT's own
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_what_a_merge_has_rounded_anew_has_no_base(kind):
    model = adapted(kind)
    model.merge_adapter()
    assert live_modules(model)["packed"].base() is None
    rows = {row.module: row for row in LoRAAnalyzer(model).analyze().rows}
    assert rows["packed"].base_sigma_max is rows["packed"].dominance is None
    assert rows["packed"].sigma_max is not None
    assert rows["plain"].base_sigma_max is not None


def test_what_is_repacked_for_a_cpu_is_refused_and_not_read_wrong(caplog):
    functional = pytest.importorskip("bitsandbytes.functional")
    model = adapted("nf4")
    layer = model.base_model.model["packed"].get_base_layer()
    expected = live_modules(model)["packed"].base().clone()
    # What a forward pass in eval mode does on a CPU with AVX512-BF16, which this one may not be.
    layer.weight.data, _ = functional._convert_weight_packed_for_cpu(layer.weight.data, layer.weight.quant_state)
    with pytest.raises(LorabenchError, match=r"packed: bitsandbytes has repacked .* model\.state_dict\(\)"):
        live_modules(model)["packed"].base()
    monitor = Monitor(every=1, base=True)
    monitor.step(model)
    assert "nothing is held against the base: packed: bitsandbytes has repacked" in caplog.text
    assert monitor.snapshots[0].rows["packed"].sigma_max is not None
    model.state_dict()
    torch.testing.assert_close(live_modules(model)["packed"].base(), expected, rtol=0.02, atol=1e-3)
