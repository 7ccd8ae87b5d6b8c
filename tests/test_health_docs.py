"""What docs/health.md gives to type and to paste runs, and its table of rules is the code's."""

import re
import shlex
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lorabench.adapters.__main__ import main
from lorabench.health.alerts import read_thresholds
from lorabench.health.rules import rules
from tests.conftest import ROOT
from tests.test_audit import write

TEXT = (ROOT / "docs" / "health.md").read_text()
FILES, BEFORE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A style, its base, two checkpoints of a training, and a folder of adapters."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "style.safetensors", rank=8)
    for number, name in enumerate("ab", 1):
        write(tmp_path / f"{name}.safetensors", size=number / 10)
    write(tmp_path / "adapters" / "one.safetensors", seed=1)
    write(tmp_path / "adapters" / "two.safetensors", seed=2)
    save_file(
        {f"unet.mid_block.{i}.to_q.weight": torch.randn(24, 16) * 3 for i in range(4)}, tmp_path / "base.safetensors"
    )
    return tmp_path


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_runs(line, place, capsys):
    words = shlex.split(line, comments=True)
    assert words[:2] == ["lorabench", "adapters"]
    assert main([*words[2:]]) == 0, capsys.readouterr()
    assert capsys.readouterr().out.strip()


def test_the_functions_run(place, capsys):
    exec(compile(FILES, "docs/health.md", "exec"), {})  # noqa: S102  # the page's own
    assert "max_dominance" in capsys.readouterr().out


def test_ranks_before_a_training_run(capsys):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.v_proj = nn.Linear(8, 20), nn.Linear(20, 4)

        def forward(self, inputs, labels):
            return SimpleNamespace(loss=nn.functional.cross_entropy(self.v_proj(self.q_proj(inputs)), labels))

    batches = [{"inputs": torch.randn(6, 8), "labels": torch.randint(4, (6,))} for _ in range(3)]
    exec(compile(BEFORE, "docs/health.md", "exec"), {"model": Model(), "batches": batches})  # noqa: S102
    assert "{" in capsys.readouterr().out


def test_the_table_of_rules_is_the_codes():
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| .+ \| (note|warning|error) \|$", TEXT, re.MULTILINE)
    said = {name: severity for names, severity in rows for name in re.findall(r"`(\w+)`", names)}
    assert said.keys() == rules().keys()
    for name, severity in said.items():
        assert severity in read_thresholds()[name].limits
