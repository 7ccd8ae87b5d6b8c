"""A fine-tuning with and without the monitor: python -m tests.bench.bench_monitor."""

import statistics
import time
from collections.abc import Callable

import peft
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from lorabench.health import Monitor
from tests.bench.machine import describe

EVERY, STEPS, GOAL = 10, 10, 1.0
BATCH, LENGTH, VOCABULARY, RANK = 8, 128, 8192, 16


def model(layers: int = 6, width: int = 512) -> peft.PeftModel:
    """BERT of 23 million weights, with LoRA on all linear layers of its blocks."""
    torch.manual_seed(0)
    base = BertForMaskedLM(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=8,
            intermediate_size=4 * width,
            max_position_embeddings=LENGTH,
        )
    )
    targets = ["query", "key", "value", "dense"]
    return peft.get_peft_model(base, peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets))


def training(adapted: peft.PeftModel) -> Callable[[int, Monitor | None], tuple[float, float]]:
    """A function that trains for one step, and gives the seconds of the step and of the monitor in it."""
    optimiser = torch.optim.AdamW([one for one in adapted.parameters() if one.requires_grad], 1e-4)

    def step(number: int, monitor: Monitor | None) -> tuple[float, float]:
        tokens = _tokens(number)
        start = time.perf_counter()
        adapted(input_ids=tokens, labels=tokens).loss.backward()
        optimiser.step()
        before = time.perf_counter()
        if monitor is not None:
            monitor.step(adapted)
        after = time.perf_counter()
        optimiser.zero_grad()
        return time.perf_counter() - start, after - before

    return step


def _tokens(number: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(number))


def main(rounds: int = 3, layers: int = 6, width: int = 512) -> None:
    """Print the median seconds of a step, of a look, and what the looks add to the training in percent."""
    print(describe())
    adapted = model(layers, width)
    step, monitor = training(adapted), Monitor(every=EVERY)
    step(0, Monitor(every=1))  # warm up
    times: dict[str, list[float]] = {"without": [], "with": []}
    looks: list[float] = []
    number = 0
    for _ in range(rounds):
        for name, given in (("without", None), ("with", monitor)):
            for _ in range(STEPS):
                number += 1
                seconds, look = step(number, given)
                times[name].append(seconds)
                looks += [look] if given is not None else []
    total = sum(one.numel() for one in adapted.parameters())
    watched = len(monitor.snapshots[-1].rows)
    every_step = statistics.median(times["without"])
    look = statistics.median(sorted(looks)[-rounds:])  # those of every tenth step
    print(f"{total / 1e6:.1f} million weights, {watched} LoRA modules of rank {RANK}, {BATCH} x {LENGTH} tokens")
    print(f"  a step without the monitor, median s      {every_step:9.4f}")
    print(f"  a step with it, every={EVERY}, median s       {statistics.median(times['with']):9.4f}")
    print(f"  a look, median ms                         {1e3 * look:9.1f}")
    print(f"  a step between two looks, median us       {1e6 * statistics.median(looks):9.1f}")
    print(f"  looks / all time of steps, percent        {100 * sum(looks) / (sum(times['with']) - sum(looks)):9.2f}  "
          f"(goal: under {GOAL:g})")  # fmt: skip
    print(f"  means with / without, percent             {100 * _excess(times):9.2f}  (the noise of this machine)")


def _excess(times: dict[str, list[float]]) -> float:
    return statistics.fmean(times["with"]) / statistics.fmean(times["without"]) - 1


if __name__ == "__main__":
    main()
