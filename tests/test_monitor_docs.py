"""What docs/monitor.md gives to paste runs, and its table is the code's."""

import re

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from lorabench.health.summaries import NAMES
from tests.conftest import ROOT
from tests.test_monitor import QUIET, Lit, Tokens, adapted, batch

TEXT = (ROOT / "docs" / "monitor.md").read_text()
OWN, LIGHTNING, TRANSFORMERS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_table_is_the_codes():
    rows = dict(re.findall(r"^\| `(health/[\w/]+)` \| (.+) \|$", TEXT, re.MULTILINE))
    assert rows == NAMES


def ran(code, folder, monkeypatch, **given):
    monkeypatch.chdir(folder)
    exec(compile(code, "docs/monitor.md", "exec"), given)  # noqa: S102  # the page's own
    looks = (folder / "health" / "health.jsonl").read_text().splitlines()
    assert len(looks) == 2
    assert (folder / "health" / "health.png").exists()


def test_the_loop(tmp_path, monkeypatch):
    model = adapted()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], 1e-2)
    ran(OWN, tmp_path, monkeypatch, model=model, optimizer=optimizer, batches=map(batch, range(20)))


@pytest.mark.filterwarnings(QUIET)
@pytest.mark.filterwarnings("ignore")  # of Lightning's default logger and checkpoints
def test_the_callback_of_lightning(tmp_path, monkeypatch):
    pl.seed_everything(0, verbose=False)
    ran(LIGHTNING, tmp_path, monkeypatch, module=Lit(), loader=DataLoader(Tokens(), batch_size=1))


@pytest.mark.filterwarnings("ignore")  # of transformers' own
def test_the_callback_of_transformers(tmp_path, monkeypatch):
    from transformers import Trainer, TrainingArguments

    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = adapted()

        def forward(self, tokens):
            return {"loss": self.inner(tokens)}

    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=20, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True
    )
    rows = [{"tokens": batch(number)[0]} for number in range(8)]
    ran(TRANSFORMERS, tmp_path, monkeypatch, Trainer=Trainer, model=Small(), arguments=arguments, rows=rows)
