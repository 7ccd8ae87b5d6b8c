"""Random numbers that follow from keys, and pieces of work side by side."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lorabench.machine import in_lanes
from lorabench.training import Adam, Keyed, SeededNoise, draw_keys, keep_mask, normal, picked, set_keys


def keys(count: int, step: int = 0) -> torch.Tensor:
    return draw_keys(torch.arange(count), [step], [0])[0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_numbers_are_normal_by_kolmogorov_and_smirnov(dtype: torch.dtype) -> None:
    drawn = normal(keys(8, 3), 256, 129, dtype)
    assert drawn.shape == (8, 256, 129)
    assert drawn.dtype == dtype
    for one in drawn:
        assert stats.kstest(one.flatten().double().numpy(), "norm").pvalue > 1e-3
    values = drawn.flatten().double().numpy()
    n = len(values)
    assert stats.kstest(values, "norm").pvalue > 1e-3
    # Moments within four standard errors.
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((values**power).mean() - moment) < 4 * np.sqrt(spread / n), power


def test_normal_numbers_of_both_halves_of_a_pair_and_of_neighbours_are_independent() -> None:
    """Box and Muller make entries i and i + n/2 of one radius and one angle."""
    one = normal(keys(1)[0], 512, 512, torch.float64).flatten()
    half = len(one) // 2
    limit = 4 / np.sqrt(half)
    for a, b in ((one[:half], one[half:]), (one[:-1], one[1:]), (one[:-512], one[512:])):
        for left, right in ((a, b), (a.square() - 1, b.square() - 1), (a.abs() - a.abs().mean(), b)):
            assert abs(float((left * right).mean() / (left.std() * right.std()))) < limit
    table = np.histogram2d(one[:half].numpy(), one[half:].numpy(), bins=stats.norm.ppf(np.linspace(0, 1, 9)[1:-1]))[0]
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_draws_of_different_keys_are_independent() -> None:
    """Seeds, steps and places of a draw: no two of 60 draws are alike."""
    found = torch.cat([draw_keys(torch.arange(5), [step, step + 1], range(3)).flatten() for step in (0, 2)])
    assert len(found.unique()) == 60
    drawn = normal(found, 64, 64, torch.float64).flatten(1)
    correlation = torch.corrcoef(drawn)[~torch.eye(60, dtype=torch.bool)]
    assert float(correlation.abs().max()) < 5 / 64
    mask = (keep_mask(found[0], 64, 64, 0.5, torch.float64) > 0).double().flatten()
    assert abs(float(torch.corrcoef(torch.stack([mask, drawn[0]]))[0, 1])) < 5 / 64, "same key, other draw"


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 2**32 - 1), st.integers(-1, 2**31 - 1))
def test_a_batch_of_keys_draws_what_each_draws_alone(batch: int, f: int, seed: int, step: int) -> None:
    """Odd and even counts; the whole range of seeds, and the step that validations share."""
    several = draw_keys(torch.tensor([seed, seed + 1, 3]), [step], [0])[0, 0]
    for draw in (normal, lambda *a: keep_mask(*a[:3], 0.25, a[3])):
        together = draw(several, batch, f, torch.float64)
        assert together.shape == (3, batch, f)
        for key, part in zip(several, together, strict=True):
            assert torch.equal(draw(key, batch, f, torch.float64), part)
    mapped = torch.func.vmap(lambda key: normal(key, batch, f, torch.float64), randomness="different")(several)
    assert torch.equal(mapped, normal(several, batch, f, torch.float64))


def test_float32_and_float64_say_the_same_to_rounding_and_none_is_beyond_the_bound() -> None:
    wide, narrow = (normal(keys(64, 9), 256, 128, dtype) for dtype in (torch.float64, torch.float32))
    assert torch.isfinite(narrow).all()
    assert torch.isfinite(wide).all()
    assert float(wide.abs().max()) < 6.8
    assert float(narrow.abs().max()) < 6.8
    # The smaller uniforms have fewer digits left in float32: the tails differ, one in ten thousand by more than 1e-3.
    assert float(((wide - narrow).abs() < 1e-3).double().mean()) > 0.9999


def test_the_smallest_and_the_largest_hash_give_finite_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the uniform number comes out as 0 or, in float32, as 1."""
    ends = torch.tensor([-(2**31), 2**31 - 1, -(2**31), 2**31 - 1], dtype=torch.int32)
    monkeypatch.setattr("lorabench.training.randomness._bits", lambda *_: ends)
    for dtype in (torch.float32, torch.float64):
        found = normal(keys(1)[0], 2, 2, dtype)
        assert torch.isfinite(found).all()
        assert 6.7 < float(found.abs().max()) < 6.8


def test_set_keys_gives_every_layer_of_a_network_a_key_of_its_own_and_noise_repeats_until_then() -> None:
    network = torch.nn.Sequential(SeededNoise(), torch.nn.Linear(2, 2), torch.nn.Sequential(SeededNoise(), Keyed()))
    x = torch.zeros(3, 5)
    set_keys(network, seed=7, step=4)
    found = [int(m.key) for m in network.modules() if isinstance(m, Keyed)]
    assert found == draw_keys(torch.tensor([7]), [4], range(3))[0, :, 0].tolist()
    assert len(set(found)) == 3
    first = network[0](x)
    assert torch.equal(first, network[0](x))
    assert torch.equal(first, network[0].eval()(x + 1)), "neither the input nor evaluation counts"
    set_keys(network, seed=7, step=5)
    assert not torch.equal(first, network[0](x))
    assert network.state_dict().keys() == {"1.weight", "1.bias"}, "keys are no part of what is saved"


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_lanes_run_side_by_side_one_thread_wide_and_give_results_as_they_finish(threads: None) -> None:
    both = threading.Barrier(2, timeout=10)
    released = threading.Event()

    def work(task: str, stopped: threading.Event) -> tuple[str, int]:
        assert not stopped.is_set()
        both.wait()  # neither gets through alone
        if task == "slow":
            assert released.wait(10)
        return task, torch.get_num_threads()

    found = in_lanes(["slow", "fast"], work, 2)
    assert next(found) == ("fast", 1)
    released.set()
    assert list(found) == [("slow", 1)]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("tasks", "lanes"), [(0, 2), (1, 4), (9, 2), (3, 0)])
def test_lanes_do_every_task_once(tasks: int, lanes: int, threads: None) -> None:
    at_work, most, lock = 0, 0, threading.Lock()

    def work(task: int, stopped: threading.Event) -> int:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.002)
        with lock:
            at_work -= 1
        return task * task

    assert sorted(in_lanes(range(tasks), work, lanes)) == [task * task for task in range(tasks)]
    assert most <= max(1, lanes)


@contextmanager
def soon() -> Iterator[None]:
    """Within a few seconds, where work that nobody stops takes ten."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 8


def patient(task: int, stopped: threading.Event) -> int:
    """Works until it is told to give up; task 0 is done at once and task 1 fails."""
    if task == 1:
        raise ValueError("task 1")
    if task > 1:
        assert stopped.wait(10), "nobody told it to stop"
        raise InterruptedError
    return task


def test_an_error_ends_the_other_lanes_and_is_what_the_caller_sees(threads: None) -> None:
    begun: list[int] = []

    def work(task: int, stopped: threading.Event) -> int:
        begun.append(task)
        return patient(task, stopped)

    with soon(), pytest.raises(ValueError, match="task 1"):
        list(in_lanes([2, 1, *range(3, 20)], work, 2))
    assert len(begun) < 5, "what had not begun never does"
    assert torch.get_num_threads() == 2


def test_a_generator_that_is_left_stops_its_workers(threads: None) -> None:
    before = threading.active_count()
    found = in_lanes([0, 2, 3, 4], patient, 2)
    assert next(found) == 0
    assert torch.get_num_threads() == 1
    with soon():
        found.close()
    assert threading.active_count() == before
    assert torch.get_num_threads() == 2


def test_an_interruption_of_the_caller_stops_the_workers(threads: None) -> None:
    def caller() -> None:
        for _ in in_lanes([0, 2, 3], patient, 2):
            raise KeyboardInterrupt

    with soon(), pytest.raises(KeyboardInterrupt):
        caller()
    assert torch.get_num_threads() == 2


def test_adam_moves_weights_that_lie_turned_as_it_moves_others() -> None:
    """Of three members at two rates, before one of them leaves and after; against torch's own Adam."""
    rng = torch.Generator().manual_seed(0)
    start = torch.randn(3, 4, 5, generator=rng)
    rates = torch.tensor([0.1, 0.02, 0.02], dtype=torch.float64)
    single = [torch.nn.Parameter(one.clone()) for one in start]
    theirs = [torch.optim.Adam([one], rate) for one, rate in zip(single, rates.tolist(), strict=True)]
    params = {"weight": start.mT.contiguous().mT}
    ours = Adam(params, rates)
    left = torch.arange(3)
    for step in range(6):
        if step == 3:
            left = torch.tensor([2, 0])
            params = {"weight": picked(params["weight"], left)}
            ours.keep(left)
            ours.set_rates(rates[left])
        assert params["weight"].mT.is_contiguous()
        slopes = torch.randn(3, 4, 5, generator=rng)
        for one, optimizer, slope in zip(single, theirs, slopes, strict=True):
            one.grad = slope
            optimizer.step()
        ours.step(params, {"weight": slopes[left].mT.contiguous().mT})
        torch.testing.assert_close(params["weight"], torch.stack([single[i].detach() for i in left]))
