"""A training by transformers' Trainer that is resumed from a checkpoint tells what one without a stop does."""

import json
from dataclasses import asdict

import peft
import pytest
import torch

from lorabench.health import HuggingFaceMonitor, read_thresholds
from lorabench.health.rules.base import Thresholds

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of transformers' own
N = 8
THRESHOLDS = read_thresholds() | {
    "collapsed_early": Thresholds({"warning": 0.9999}, clear=0.5, window=100),
    "saturated": Thresholds({"note": 0.9}, clear=0.5, window=6),
    "dominating": Thresholds({"warning": 1e-9}),
}


def train(folder, monitor, steps, resume=None, **options):
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        bos_token_id=1, eos_token_id=2, max_position_embeddings=12,
    )  # fmt: skip
    model = peft.get_peft_model(LlamaForCausalLM(config), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=2, learning_rate=1e-2, lr_scheduler_type="constant",
        save_steps=N, logging_steps=100, report_to=[], use_cpu=True, disable_tqdm=True, seed=0, **options,
    )  # fmt: skip
    tokens = torch.randint(0, 50, (40, 12), generator=torch.Generator().manual_seed(1))
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[monitor])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def lines(folder):
    """What is written of every look, but for the seconds that it took."""
    rows = [json.loads(line) for line in (folder / "health.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "health/seconds"} for row in rows]


def monitor(folder, **options):
    return HuggingFaceMonitor(every=1, out=folder / "health", thresholds=THRESHOLDS, base=True, **options)


def test_a_training_that_is_resumed_tells_what_one_in_one_go_does(tmp_path):
    whole, first, second = (monitor(tmp_path / name) for name in ("whole", "parts", "parts"))
    train(tmp_path / "whole", whole, 2 * N)
    train(tmp_path / "parts", first, N)
    trainer = train(tmp_path / "parts", second, 2 * N, str(tmp_path / "parts" / f"checkpoint-{N}"))
    assert [one.step for one in whole.monitor.snapshots] == list(range(1, 2 * N + 1))
    assert [asdict(one) for one in second.monitor.snapshots] == [asdict(one) for one in whole.monitor.snapshots]
    assert second.monitor.dynamics == whole.monitor.dynamics
    assert lines(tmp_path / "parts" / "health") == lines(tmp_path / "whole" / "health")
    spoken = {alert["rule"] for row in lines(tmp_path / "whole" / "health") for alert in row["new"]}
    assert {"saturated", "dominating"} <= spoken, "else nothing is compared"
    history = [row["step"] for row in trainer.state.log_history if "health/alerts" in row]
    assert history == list(range(1, 2 * N + 1))


def test_going_back_in_one_process_forgets_what_came_behind_the_checkpoint(tmp_path):
    watching = monitor(tmp_path)
    train(tmp_path, watching, 2 * N)
    train(tmp_path, watching, N + 3, str(tmp_path / f"checkpoint-{N}"))
    assert [one.step for one in watching.monitor.snapshots] == list(range(1, N + 4))


def test_a_checkpoint_of_a_training_without_a_monitor_starts_one(tmp_path):
    from transformers import TrainerCallback

    train(tmp_path, TrainerCallback(), N)
    late = monitor(tmp_path)
    train(tmp_path, late, N + 3, str(tmp_path / f"checkpoint-{N}"))
    assert [one.step for one in late.monitor.snapshots] == [N + 1, N + 2, N + 3]


def test_what_transformers_makes_anew_goes_on_too_and_says_what_it_lacks(tmp_path, caplog):
    train(tmp_path, monitor(tmp_path), N)
    trainer = train(
        tmp_path, monitor(tmp_path), 2 * N, str(tmp_path / f"checkpoint-{N}"),
        restore_callback_states_from_checkpoint=True,
    )  # fmt: skip
    (remade,) = [one for one in trainer.callback_handler.callbacks if isinstance(one, HuggingFaceMonitor)]
    assert [one.step for one in remade.monitor.snapshots] == list(range(1, 2 * N + 1))
    assert [row["step"] for row in lines(tmp_path / "health")] == list(range(1, 2 * N + 1))
    (said,) = [record.message for record in caplog.records if "made the monitor anew" in record.message]
    assert "without its thresholds." in said
