"""The monitor beside real trainings: it changes none, looks when it should, and says what is so."""

import json
import logging
import os
import subprocess
import sys

import peft
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset

from lorabench.errors import LorabenchError
from lorabench.health import FineTuneMonitor, Monitor, live_modules, read_thresholds
from lorabench.health.summaries import NAMES
from tests.conftest import ROOT

QUIET = "ignore:.*(does not have many workers|LeafSpec|GPU available but not used|number of training batches).*"
pytestmark = pytest.mark.filterwarnings(QUIET)
VOCABULARY, LENGTH = 50, 12


class Block(nn.Module):
    """Attention and a feed-forward part, each behind a norm."""

    def __init__(self, width=32, heads=4):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm_1(x)).chunk(3, -1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm_2(x))))


class Small(nn.Module):
    """A language model of two blocks, with dropout, which would tell of a disturbed generator."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, 32), nn.Linear(32, VOCABULARY)
        self.blocks, self.dropout = nn.Sequential(Block(), Block()), nn.Dropout(0.1)

    def forward(self, tokens):
        hidden = self.head(self.blocks(self.dropout(self.embedding(tokens))))
        return nn.functional.cross_entropy(hidden[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def adapted(*adapters, seed=0, **options):
    torch.manual_seed(seed)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["qkv", "out", "up", "down"], **options}
    model = peft.get_peft_model(Small(), peft.LoraConfig(**options), *adapters[:1] or ("default",))
    for name in adapters[1:]:
        model.add_adapter(name, peft.LoraConfig(**options))
    return model


def batch(number):
    return torch.randint(0, VOCABULARY, (4, LENGTH), generator=torch.Generator().manual_seed(number))


def train(model, steps, monitor=None, accumulate=1, autocast=False, lr=1e-2):
    """The losses; stops where the monitor says so."""
    torch.manual_seed(1)
    optimiser = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr)
    losses = []
    for step in range(steps):
        for part in range(accumulate):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = model(batch(accumulate * step + part))
            (loss / accumulate).backward()
            losses.append(loss.item())
        optimiser.step()
        stop = monitor is not None and monitor.step(model)
        optimiser.zero_grad()
        if stop:
            break
    return losses


@pytest.mark.parametrize("autocast", [False, True])
def test_losses_are_the_same_to_the_bit_with_and_without_the_monitor(autocast, tmp_path):
    alone = train(adapted(), 12, autocast=autocast)
    model, monitor = adapted(), Monitor(every=2, out=tmp_path, base=True)
    assert train(model, 12, monitor, autocast=autocast) == alone
    assert [one.step for one in monitor.snapshots] == [2, 4, 6, 8, 10, 12]
    assert len(set(alone)) == 12


def test_inside_autocast_the_numbers_are_those_of_float64(tmp_path):
    model = adapted()
    train(model, 3)
    plain, inside = Monitor(every=1), Monitor(every=1)
    plain.step(model)
    with torch.autocast("cpu", torch.bfloat16):
        inside.step(model)
    assert inside.snapshots[0].rows == plain.snapshots[0].rows


def test_a_look_is_what_the_metrics_of_the_factors_are():
    from lorabench.health import module_metrics

    model, monitor = adapted(), Monitor(every=3)
    train(model, 3, monitor)
    expected = module_metrics({name: one.read() for name, one in live_modules(model).items()})
    assert list(monitor.snapshots[0].rows.values()) == expected
    assert len(expected) == 8
    assert sorted(monitor.snapshots[0].gradient_ranks) == sorted(row.module for row in expected)


class Counted(TorchDispatchMode):
    """Counts what torch is asked to do."""

    operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations += 1
        return function(*args, **(kwargs or {}))


def test_on_the_steps_between_nothing_is_done(monkeypatch):
    model, monitor = adapted(), Monitor(every=4)
    walks = []
    walk = type(model).named_modules
    monkeypatch.setattr(
        type(model), "named_modules", lambda self, *given, **named: walks.append(1) or walk(self, *given, **named)
    )
    for step in range(1, 9):
        walks.clear()
        with Counted() as counted:
            monitor.step(model)
        assert (counted.operations > 0) is (step % 4 == 0)
        assert bool(walks) is (step % 4 == 0)


def test_modules_are_looked_for_once_until_they_change(monkeypatch):
    model, monitor, found = adapted(), Monitor(every=1), []
    find = live_modules
    monkeypatch.setattr("lorabench.health.watched.live_modules", lambda *given: found.append(1) or find(*given))
    monitor.step(model)
    monitor.step(model)
    assert len(found) == 1
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["qkv"]))
    monitor.step(model)
    monitor.step(model)
    assert len(found) == 2
    model.set_adapter("second")
    monitor.step(model)
    assert len(found) == 3
    assert {name.rpartition(" ")[2] for name in monitor.snapshots[-1].rows} == {"(second)"}
    model.delete_adapter("default")
    monitor.step(model)
    assert len(found) == 4
    assert [row.nominal_rank for row in monitor.snapshots[-1].rows.values()] == [2, 2]


def test_adalora_is_followed_while_its_ranks_are_pruned():
    torch.manual_seed(0)
    config = peft.AdaLoraConfig(
        init_r=6, target_r=2, tinit=1, tfinal=2, deltaT=1, total_step=8, target_modules=["qkv", "down"]
    )
    model = peft.get_peft_model(Small(), config)
    monitor = Monitor(every=1)
    optimiser = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], 1e-2)
    for step in range(1, 8):
        model(batch(step)).backward()
        optimiser.step()
        model.base_model.update_and_allocate(step)
        monitor.step(model)
        optimiser.zero_grad()
    last = monitor.snapshots[-1].rows
    alive = sum(row.nominal_rank - len(row.dead_dimensions) for row in last.values())
    assert alive == 2 * len(last)
    assert len(monitor.snapshots[-1].gradient_ranks) == len(last)


def test_two_adapters_the_one_that_trains_is_watched_or_the_one_that_is_named():
    model = adapted("one", "two")
    model.set_adapter("two")
    watching, named = Monitor(every=1), Monitor(every=1, adapter="one")
    train(model, 2, watching)
    named.step(model)
    assert all(name.endswith("(two)") for name in watching.snapshots[0].rows)
    assert all(row.untrained for row in named.snapshots[0].rows.values())
    assert not any(row.untrained for row in watching.snapshots[-1].rows.values())


def test_an_adapter_that_is_not_there_is_told_once(caplog):
    monitor = Monitor(every=1, adapter="three")
    train(adapted(), 3, monitor)
    assert [record.message for record in caplog.records] == [
        "adapter 'three': the model has default. Name one of these."
    ]


def test_merged_and_unmerged(caplog):
    model, monitor = adapted(), Monitor(every=1, base=True)
    train(model, 2, monitor)
    before = monitor.snapshots[-1].rows
    model.merge_adapter()
    monitor.step(model)
    (told,) = [record.message for record in caplog.records]
    assert "merged into the base's weights" in told
    model.unmerge_adapter()
    monitor.step(model)
    monitor.step(model)
    assert len(caplog.records) == 1 + sum("never_moves" in record.message for record in caplog.records)
    for name, row in monitor.snapshots[-1].rows.items():
        assert row.dominance == before[name].dominance > 0


def test_dominance_is_held_against_the_models_own_weights_measured_once(monkeypatch):
    from lorabench.health import base

    measured = []
    sigma = base.largest_singular_value
    monkeypatch.setattr(base, "largest_singular_value", lambda weight: measured.append(1) or sigma(weight))
    model, monitor = adapted(), Monitor(every=1, base=True)
    train(model, 3, monitor)
    assert len(measured) == 8
    row = monitor.snapshots[-1].rows["blocks.0.qkv"]
    layer = model.base_model.model.blocks[0].qkv
    sigmas = [
        torch.linalg.svdvals(part)[0].item() for part in (layer.get_delta_weight("default"), layer.base_layer.weight)
    ]
    assert row.dominance == pytest.approx(sigmas[0] / sigmas[1], rel=1e-4)


def test_a_model_without_lora_is_told_once_and_trains_on(caplog):
    torch.manual_seed(0)
    losses = train(Small(), 4, Monitor(every=1))
    assert len(losses) == 4
    (record,) = caplog.records
    assert "no LoRA module" in record.message
    assert record.levelno == logging.WARNING


def test_frozen_lora_is_told_once_and_looked_at(caplog):
    model = adapted()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    monitor = Monitor(every=1)
    for _ in range(3):
        monitor.step(model)
    assert [record.message[:20] for record in caplog.records] == ["no factor of its 8 L"]
    assert len(monitor.snapshots) == 3
    assert monitor.snapshots[0].gradient_ranks == {}


def test_a_fault_inside_is_logged_once_and_training_goes_on(caplog):
    def broken(values, step):
        raise RuntimeError("the logger is gone")

    alone = train(adapted(), 5)
    assert train(adapted(), 5, Monitor(every=1, log=broken)) == alone
    assert [record.message for record in caplog.records] == ["RuntimeError in the monitor: the logger is gone"]


def test_a_fault_inside_stops_where_alerts_shall_stop(caplog):
    def broken(values, step):
        raise RuntimeError("the logger is gone")

    assert len(train(adapted(), 5, Monitor(every=2, log=broken, on_alert="stop"))) == 2
    assert "asked to stop" in caplog.text


def test_a_logger_that_fails_each_time_otherwise_is_told_once_and_the_file_is_whole(tmp_path, caplog):
    def broken(_values, step):
        raise ConnectionError(f"attempt {step} failed")

    train(adapted(), 4, Monitor(every=1, log=broken, out=tmp_path))
    (record,) = caplog.records
    assert "attempt 1 failed" in record.message
    assert [json.loads(row)["step"] for row in (tmp_path / "health.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def test_the_looks_of_another_version_are_left_out_and_the_training_goes_on(caplog):
    monitor = Monitor(every=1)
    train(adapted(), 2, monitor)
    state = monitor.state_dict()
    later = json.loads(json.dumps(state))
    for snapshot in later["watch"]["snapshots"]:
        snapshot["fields"].append("of_a_later_version")
        for row in snapshot["rows"]:
            row.append(1.0)
    known = Monitor(every=1)
    known.load_state_dict(later)
    assert known.snapshots == monitor.snapshots
    assert not caplog.records
    for damaged in ({}, {**state, "watch": None}, {**state, "watch": {**state["watch"], "snapshots": [{"step": 1}]}}):
        caplog.clear()
        other = Monitor(every=1, on_alert="stop")
        other.load_state_dict(damaged)
        (record,) = caplog.records
        assert "the monitor begins anew" in record.message
        assert len(train(adapted(), 2, other)) == 2
        assert [one.step for one in other.snapshots] == [1, 2]


def test_a_monitor_may_watch_one_training_after_another():
    monitor = Monitor(every=2, on_alert="stop")
    for step in range(1, 5):
        monitor.step(adapted(), step)
    broken = adapted()
    poisoned(broken)
    assert monitor.step(broken, 6)
    assert not monitor.step(adapted(seed=1), 2), "another training, which is well"
    assert [one.step for one in monitor.snapshots] == [2]


def test_a_disk_that_takes_nothing_is_no_end_of_a_training(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert len(train(adapted(), 3, Monitor(every=1, out=tmp_path / "file" / "below"))) == 3
    assert len(caplog.records) == 1
    assert "cannot write" in caplog.text


def poisoned(model):
    with torch.no_grad():
        model.base_model.model.blocks[1].up.lora_A["default"].weight[0, 0] = float("nan")


def test_nan_in_a_factor_raises_its_alert_once_while_it_stays(caplog):
    model, logged = adapted(), []
    monitor = Monitor(every=1, log=lambda values, _step: logged.append(values))
    train(model, 2, monitor)
    assert not caplog.records
    poisoned(model)
    for _ in range(3):
        assert not monitor.step(model), "on_alert is log"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "not_finite" in record.message
    assert "blocks.1.up holds NaN" in record.message
    assert [values["health/not_finite"] for values in logged] == [0, 0, 1, 1, 1]
    assert [values["health/alerts/error"] for values in logged] == [0, 0, 1, 1, 1]


def test_on_alert_stop_stops_at_an_error_and_not_at_a_warning(caplog):
    thresholds = read_thresholds()
    thresholds["ill_conditioned"] = type(thresholds["ill_conditioned"])({"warning": 1.01})
    model = adapted()
    monitor = Monitor(every=1, on_alert="stop", rules=["ill_conditioned", "not_finite"], thresholds=thresholds)
    assert len(train(model, 3, monitor)) == 3
    assert "ill_conditioned" in caplog.text
    poisoned(model)
    assert len(train(model, 3, monitor)) == 1
    assert monitor.should_stop


def test_gradient_accumulation_counts_steps_of_the_optimiser():
    monitor = Monitor(every=2)
    assert len(train(adapted(), 4, monitor, accumulate=3)) == 12
    assert [one.step for one in monitor.snapshots] == [2, 4]


def test_a_step_of_ones_own_may_leap_over_the_multiples():
    model, monitor = adapted(), Monitor(every=5)
    for step in (2, 4, 6, 8, 10, 12):
        monitor.step(model, step)
    assert [one.step for one in monitor.snapshots] == [6, 10]


def test_names_that_are_logged_are_those_of_the_table(tmp_path):
    logged = {}
    monitor = Monitor(every=1, out=tmp_path, base=True, log=lambda values, step: logged.update({step: values}))
    train(adapted(), 4, monitor)
    monitor.finish()
    assert set(logged[4]) == set(NAMES)
    assert all(type(value) is float for value in logged[4].values())
    rows = [json.loads(line) for line in (tmp_path / "health.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[3]["health/rank_utilization/min"] == min(
        module["rank_utilization"] for module in rows[3]["modules"].values()
    )
    assert (tmp_path / "health.png").read_bytes()[:4] == b"\x89PNG"


def test_a_long_training_keeps_the_last_looks_and_fewer_of_the_older():
    model, monitor = adapted(target_modules=["up"]), Monitor(every=1)
    for _ in range(150):
        monitor.step(model)
    steps = [one.step for one in monitor.snapshots]
    assert len(steps) <= 128
    assert steps[-60:] == list(range(91, 151))
    assert steps[0] == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"every": 0}, "every=0"),
        ({"every": True}, "every=True"),
        ({"on_alert": "raise"}, "on_alert='raise'"),
        ({"rules": ["nonsense"]}, "nonsense"),
        ({"out": __file__}, "a folder is needed"),
    ],
)
def test_wrong_arguments_are_refused_in_one_message(wrong, said):
    with pytest.raises(LorabenchError, match=said):
        Monitor(**wrong)


def test_a_resumed_training_goes_on_with_its_alerts_and_its_file(tmp_path, caplog):
    model, first = adapted(), Monitor(every=1, out=tmp_path)
    train(model, 3, first)
    poisoned(model)
    first.step(model)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    first.step(model)  # behind the checkpoint: lost with the training
    caplog.clear()
    second = Monitor(every=1, out=tmp_path)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [one.step for one in second.snapshots] == [1, 2, 3, 4]
    assert second.snapshots == first.snapshots[:4]
    second.step(model)
    assert not caplog.records, "the alert was raised before"
    rows = [json.loads(line) for line in (tmp_path / "health.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    third = Monitor(every=1, out=tmp_path)
    third.step(model)
    rows = [json.loads(line) for line in (tmp_path / "health.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1], "another training"
    assert len(caplog.records) == 1


class Tokens(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, number):
        return batch(number)[0]


class Lit(pl.LightningModule):
    def __init__(self, poison_at=None):
        super().__init__()
        self.model, self.losses, self.poison_at = adapted(), [], poison_at

    def training_step(self, tokens):
        if self.poison_at is not None and self.global_step >= self.poison_at:
            poisoned(self.model)
        loss = self.model(tokens)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW([one for one in self.parameters() if one.requires_grad], 1e-2)


def fit(folder, callbacks=(), resume=None, poison_at=None, **options):
    pl.seed_everything(0, verbose=False)
    module = Lit(poison_at)
    trainer = pl.Trainer(
        callbacks=list(callbacks), logger=CSVLogger(str(folder), name="", version=""), accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        **{"max_epochs": 2, "devices": 1, **options},
    )  # fmt: skip
    trainer.fit(module, DataLoader(Tokens(), batch_size=2), ckpt_path=resume)
    return module, trainer


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_trains_as_without_it(tmp_path, precision):
    alone, _ = fit(tmp_path / "alone", precision=precision, enable_checkpointing=False)
    monitor = FineTuneMonitor(every=3, out=tmp_path / "health")
    watched, trainer = fit(tmp_path / "with", [monitor], precision=precision, enable_checkpointing=False)
    assert watched.losses == alone.losses
    assert [one.step for one in monitor.monitor.snapshots] == list(range(3, 25, 3))
    assert next(iter(monitor.monitor.snapshots[0].rows)) == "model.blocks.0.qkv"
    assert len(monitor.monitor.snapshots[0].gradient_ranks) == 8
    trainer.loggers[0].save()
    metrics = (tmp_path / "with" / "metrics.csv").read_text()
    assert "health/rank_utilization/median" in metrics
    assert (tmp_path / "health" / "health.png").exists()


def test_lightning_accumulates_and_looks_at_steps_not_batches(tmp_path):
    monitor = FineTuneMonitor(every=2)
    module, _ = fit(tmp_path, [monitor], accumulate_grad_batches=3, enable_checkpointing=False)
    assert len(module.losses) == 24
    assert [one.step for one in monitor.monitor.snapshots] == [2, 4, 6, 8]


def test_lightning_stops_at_an_error(tmp_path):
    _, trainer = fit(
        tmp_path / "one", [FineTuneMonitor(every=1, on_alert="stop")], poison_at=5, enable_checkpointing=False
    )
    assert trainer.global_step == 6
    logged, _ = fit(tmp_path / "two", [FineTuneMonitor(every=1)], poison_at=5, enable_checkpointing=False)
    assert len(logged.losses) == 24


def test_lightning_watches_a_second_training_by_itself(tmp_path):
    monitor = FineTuneMonitor(every=2, on_alert="stop")
    _, first = fit(tmp_path / "one", [monitor], poison_at=4, enable_checkpointing=False)
    assert first.global_step < 12
    _, second = fit(tmp_path / "two", [monitor], max_epochs=1, enable_checkpointing=False)
    assert second.global_step == 12
    assert [one.step for one in monitor.monitor.snapshots] == [2, 4, 6, 8, 10, 12]


def test_lightning_resumes_where_the_checkpoint_was(tmp_path):
    first = FineTuneMonitor(every=5, out=tmp_path / "health")
    _, trainer = fit(tmp_path / "one", [first], max_epochs=1, enable_checkpointing=False)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second = FineTuneMonitor(every=5, out=tmp_path / "health")
    fit(tmp_path / "two", [second], resume=tmp_path / "last.ckpt", enable_checkpointing=False)
    assert [one.step for one in second.monitor.snapshots] == [5, 10, 15, 20]
    rows = [json.loads(line) for line in (tmp_path / "health" / "health.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 15, 20]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers' own
def test_transformers_trainer(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    def run(folder, *callbacks, poison_at=None):
        torch.manual_seed(0)
        base = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                bos_token_id=1,
                eos_token_id=2,
                max_position_embeddings=LENGTH,
            )
        )
        model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
        if poison_at is not None:
            parameter = model.base_model.model.model.layers[0].mlp.down_proj.lora_A["default"].weight
            parameter.register_hook(poison_after(poison_at))
        arguments = TrainingArguments(
            str(folder), max_steps=9, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-2,
            logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, seed=0, max_grad_norm=0,
        )  # fmt: skip
        rows = [{"input_ids": batch(number)[0], "labels": batch(number)[0]} for number in range(40)]
        trainer = Trainer(model, arguments, train_dataset=rows, callbacks=list(callbacks))
        trainer.train()
        return trainer

    from lorabench.health import HuggingFaceMonitor

    logged = []
    monitor = HuggingFaceMonitor(every=3, out=tmp_path / "health", log=lambda _values, step: logged.append(step))
    alone, watched = run(tmp_path / "one"), run(tmp_path / "two", monitor)
    losses = [[row["loss"] for row in one.state.log_history if "loss" in row] for one in (alone, watched)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 9
    assert [one.step for one in monitor.monitor.snapshots] == logged == [3, 6, 9]
    assert len(monitor.monitor.snapshots[0].gradient_ranks) == 4
    history = [row["step"] for row in watched.state.log_history if "health/sigma_max/max" in row]
    assert history == [3, 6, 9]
    assert (tmp_path / "health" / "health.png").exists()
    stopping = HuggingFaceMonitor(every=2, on_alert="stop")
    assert run(tmp_path / "three", stopping, poison_at=5).state.global_step == 4
    assert run(tmp_path / "four", HuggingFaceMonitor(every=2), poison_at=5).state.global_step == 9


def poison_after(batches):
    seen = []

    def hook(gradient):
        seen.append(1)
        return gradient * float("nan") if len(seen) > batches else gradient

    return hook


DDP = """
import json, os, sys
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.nn.parallel import DistributedDataParallel
from lorabench.health import Monitor
from tests.test_monitor import adapted, poisoned, train

def work(rank, folder, poison):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{poison}", rank=rank, world_size=2)
    model, logged = DistributedDataParallel(adapted()), []
    monitor = Monitor(
        every=2, on_alert="stop" if poison else "log", out=f"{folder}/{poison}-{rank}",
        log=lambda values, step: logged.append(step),
    )
    losses = train(model, 2, monitor)
    if poison and rank == 0:
        poisoned(model.module)  # what one process alone sees ends the training of both
    losses += train(model, 4, monitor)
    monitor.finish()
    with open(f"{folder}/{poison}-{rank}.json", "w") as file:
        json.dump({"losses": len(losses), "logged": logged, "looks": [one.step for one in monitor.snapshots]}, file)
    dist.barrier()
    os._exit(0)  # gloo's own end waits for ever now and then, where the other process has gone

if __name__ == "__main__":
    multiprocessing.spawn(work, (sys.argv[1], bool(int(sys.argv[2]))), nprocs=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("poison", [False, True])
def test_of_two_processes_the_first_alone_looks_and_both_stop(tmp_path, poison):
    (tmp_path / "work.py").write_text(DDP)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "work.py"), str(tmp_path), str(int(poison))],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (json.loads((tmp_path / f"{poison}-{rank}.json").read_text()) for rank in range(2))
    steps = [2, 4] if poison else [2, 4, 6]
    assert first == {"losses": steps[-1], "logged": steps, "looks": steps}
    assert second == {"losses": steps[-1], "logged": [], "looks": []}
    assert (tmp_path / f"{poison}-0" / "health.jsonl").exists()
    assert not (tmp_path / f"{poison}-1").exists()


@pytest.mark.slow
def test_lightning_with_two_processes_writes_once(tmp_path):
    text = (
        "import sys\n"
        "from tests.test_monitor import fit\n"
        "from lorabench.health import FineTuneMonitor\n"
        "if __name__ == '__main__':\n"
        "    monitor = FineTuneMonitor(every=2, out=sys.argv[1] + '/health')\n"
        "    fit(sys.argv[1] + '/logs', [monitor], devices=2, strategy='ddp_spawn', enable_checkpointing=False)\n"
    )
    (tmp_path / "work.py").write_text(text)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "work.py"), str(tmp_path)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "health" / "health.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
