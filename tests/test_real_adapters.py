"""What PEFT and diffusers write here and now is read as they mean it."""

import pytest
import torch

from lorabench.adapters import compare, load
from tests.make_adapters import made_deltas
from tests.real_adapters import MADE, MADE_BY_PEFT, made, made_adapters


def test_every_file_that_was_made_has_a_name() -> None:
    files = {path for path in made_adapters().rglob("*") if path.suffix in (".safetensors", ".bin", ".pt")}
    named = {made(name) for name in MADE}
    assert all(path in named or path.parent in named for path in files)
    assert all(path.exists() for path in named)


@pytest.mark.parametrize("name", [name for name, form in MADE_BY_PEFT.items() if form != "peft-ia3"])
def test_delta_is_pefts_own(name: str) -> None:
    adapter = load(made(f"peft/{name}"))
    wanted = made_deltas(name)
    assert len(adapter.modules) == len(wanted) > 1
    for module, lora in adapter.modules.items():
        delta = lora.scale * lora.up.double() @ lora.down.double()
        torch.testing.assert_close(delta, wanted[module], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["diffusers_old/pytorch_lora_weights.bin", "kohya/style.safetensors"])
def test_one_adapter_under_other_names(name: str) -> None:
    assert compare(load(made("diffusers")), load(made(name))).cosine == pytest.approx(1)
