"""Autoencoders trained together are what each is alone, and what `pl.Trainer` makes of it."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from lorabench.machine import one_thread_an_operation
from lorabench.representations.autoencoder import AutoEncoder
from lorabench.representations.contrastive import ContrastiveModule
from lorabench.representations.denoising import DenoisingModule
from lorabench.representations.fitting import Course, Schooling, batches, fit_together, split_rows
from lorabench.representations.training_memory import member_bytes
from lorabench.representations.vae import VAEModule
from lorabench.training import epoch_order

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(does not have many workers|lightning_utilities|LeafSpec|callbacks used to create).*"
)

N, D = 65, 20  # 65 - 7 rows to stop by are 58; with batches of 19 one row is left over at the end
PAIRS = [{"down": 0, "up": 8, "rank": 2, "d_in": 4, "d_out": 6}]
KINDS = {
    "vae": (VAEModule, {"beta": 0.1}),
    "denoising": (DenoisingModule, {}),
    "contrastive": (ContrastiveModule, {"projection": [8, 8], "pairs": PAIRS}),
}
SCHOOLING = Schooling(batch_size=19, epochs=30, patience=4, val_share=0.1)


def planted(n: int = N, units: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Standardised rows of three directions and noise, [units, n, D]."""
    generator = torch.Generator().manual_seed(0)
    hidden, axes = (torch.randn(units, *shape, generator=generator, dtype=dtype) for shape in ((n, 3), (3, D)))
    rows = hidden @ axes + 0.3 * torch.randn(units, n, D, generator=generator, dtype=dtype)
    return (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True, correction=0)


def modules(kind: str, count: int = 3, dtype: torch.dtype = torch.float64, **options: object) -> list[AutoEncoder]:
    make, arguments = KINDS[kind]
    # A high rate and little patience: plateaus, early stops and best epochs differ between the units.
    given = {"learning_rate": 2e-2, "plateau_patience": 1, "hidden": [16, 12], **arguments, **options}
    return [make(in_features=D, latent_dim=3, seed=11 + seed, **given).to(dtype) for seed in range(count)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """What is small is slower on several threads, and a hundred times slower where others want the cores too."""
    with one_thread_an_operation():
        yield


class Ordered(torch.utils.data.Dataset[torch.Tensor]):
    """The rows of one unit, in the batches that its seed says; a batch is an item."""

    def __init__(
        self, rows: torch.Tensor, model: AutoEncoder, schooling: Schooling, trainer: pl.Trainer | None
    ) -> None:
        train, val = split_rows(model.seed, len(rows), schooling.val_share)
        self.rows, self.seed, self.trainer = rows[val if trainer is None else train], model.seed, trainer
        self.batches = [slice(None)] if trainer is None else batches(len(self.rows), schooling.batch_size)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.trainer is None:
            return self.rows
        return self.rows[epoch_order(self.seed, self.trainer.current_epoch, len(self.rows))][self.batches[index]]


def by_trainer(model: AutoEncoder, rows: torch.Tensor, schooling: Schooling, folder: Path) -> Course:
    """One fit by Lightning: early stopping, plateau, best checkpoint."""
    history: list[dict[str, float]] = []

    class Rates(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
            history.append({"learning_rate": trainer.optimizers[0].param_groups[0]["lr"]})

        def on_train_epoch_end(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
            history[-1] |= {name: float(trainer.callback_metrics[name]) for name in ("train_loss", "val_loss")}

    best = pl.callbacks.ModelCheckpoint(folder, filename="best", monitor="val_loss")
    stop = pl.callbacks.EarlyStopping("val_loss", patience=schooling.patience)
    trainer = pl.Trainer(
        max_epochs=schooling.epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[best, stop, Rates()], log_every_n_steps=1,
    )  # fmt: skip
    loaders = [
        torch.utils.data.DataLoader(Ordered(rows, model, schooling, given), batch_size=None)
        for given in (trainer, None)
    ]
    trainer.fit(model, *loaders)
    kept = torch.load(best.best_model_path, weights_only=True)
    model.load_state_dict(kept["state_dict"])
    return Course(history, kept["epoch"])


def assert_same_state(ours: AutoEncoder, theirs: AutoEncoder, tolerance: float) -> None:
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_is_one_after_the_other_is_the_trainer(kind: str, tmp_path: Path) -> None:
    """In float64 over whole runs, weights, batch norm's statistics and best epochs: to 1e-7.

    Units stop in different epochs, so this is also what leaving the stack does to those that stay.
    """
    inputs = planted()
    together, alone, single = (modules(kind) for _ in range(3))
    found = fit_together(together, inputs, SCHOOLING)
    singly = [fit_together([one], rows[None], SCHOOLING)[0] for one, rows in zip(alone, inputs, strict=True)]
    for k in range(3):
        theirs = by_trainer(single[k], inputs[k], SCHOOLING, tmp_path / str(k))
        assert found[k].error is None
        assert found[k].best_epoch == singly[k].best_epoch == theirs.best_epoch
        assert len(found[k].history) == len(singly[k].history) == len(theirs.history)
        for ours, one, lightning in zip(found[k].history, singly[k].history, theirs.history, strict=True):
            assert ours == pytest.approx(one, rel=1e-8)
            # Lightning logs its means in float32.
            assert {name: ours[name] for name in lightning} == pytest.approx(lightning, rel=1e-5)
        assert_same_state(together[k], alone[k], 1e-8)
        assert_same_state(together[k], single[k], 1e-7)
    assert len({len(course.history) for course in found}) > 1, "units should stop apart for this test to bite"
    assert any(row["learning_rate"] < 2e-2 for course in found for row in course.history)
    assert any(course.best_epoch < len(course.history) - 1 for course in found)


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_a_stack_is_one_after_the_other_to_rounding(kind: str) -> None:
    """Ten epochs at the default rate: features to 1e-3 of their size."""
    inputs = planted(dtype=torch.float32)
    together, alone = (modules(kind, dtype=torch.float32, learning_rate=1e-3) for _ in range(2))
    schooling = Schooling(19, 10, 15, 0.1)
    fit_together(together, inputs, schooling)
    for k, (one, rows) in enumerate(zip(alone, inputs, strict=True)):
        fit_together([one], rows[None], schooling)
        with torch.no_grad():
            ours, expected = together[k].eval().encode(rows), one.eval().encode(rows)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_each_loss_goes_down_on_planted_rows(kind: str) -> None:
    """Every part that is minimised, on rows that were not trained on, for every seed.

    Views without a gauge: rows that no factors multiply to have no invariant of it.
    """
    inputs = planted(300)
    models = modules(kind, learning_rate=1e-3, **({"pairs": []} if kind == "contrastive" else {}))
    found = fit_together(models, inputs, Schooling(64, 40, 15, 0.1))
    parts = {
        "vae": ("loss", "reconstruction"),
        "denoising": ("loss",),
        "contrastive": ("loss", "reconstruction", "info_nce"),
    }
    for course in found:
        for part in parts[kind]:
            assert course.history[course.best_epoch][f"val_{part}"] < 0.9 * course.history[0][f"val_{part}"]
            assert course.history[-1][f"train_{part}"] < 0.9 * course.history[0][f"train_{part}"]
    for model, rows in zip(models, inputs, strict=True):
        assert model.eval().training is False
        with torch.no_grad():
            assert model.diagnostics(rows)["reconstruction_error"] < 0.75


def test_the_best_epochs_weights_are_kept_as_copies() -> None:
    inputs = planted(units=2)
    models = modules("vae", 2)
    found = fit_together(models, inputs, SCHOOLING)
    for model, course, rows in zip(models, found, inputs, strict=True):
        losses = [row["val_loss"] for row in course.history]
        assert course.best_epoch == losses.index(min(losses)) < len(losses) - 1
        held = rows[split_rows(model.seed, N, 0.1)[1]]
        with torch.no_grad():
            assert float(model.eval().losses(held)["loss"]) == pytest.approx(min(losses), rel=1e-9)


def test_a_unit_that_diverges_says_so_and_the_others_go_on() -> None:
    inputs = planted(units=2)
    alone, models = modules("vae", 1), modules("vae", 2)
    fit_together(alone, inputs[:1], SCHOOLING)
    inputs[1, :, 4] = float("nan")
    found = fit_together(models, inputs, SCHOOLING)
    assert found[0].error is None
    assert found[1].error == "the validation loss became nan in epoch 0"
    assert (len(found[1].history), found[1].best_epoch) == (1, -1)
    assert_same_state(models[0], alone[0], 1e-8)


def test_what_on_epoch_raises_ends_the_training() -> None:
    heard: list[bool] = []
    found = fit_together(modules("vae"), planted(), SCHOOLING, lambda: heard.append(True))
    assert len(heard) == max(len(course.history) for course in found)

    def stop() -> None:
        heard.append(True)
        if len(heard) == 3:
            raise InterruptedError("enough")

    heard.clear()
    with pytest.raises(InterruptedError, match="enough"):
        fit_together(modules("vae"), planted(), SCHOOLING, stop)
    assert len(heard) == 3


@pytest.mark.parametrize("n", [2, 3, 19, 20, 21, 38, 39, 57, 58])
def test_batches_cover_the_rows_and_none_is_of_one(n: int) -> None:
    found = batches(n, 19)
    assert [i for part in found for i in range(n)[part]] == list(range(n))
    sizes = [part.stop - part.start for part in found]
    assert min(sizes) >= 2
    assert max(sizes) <= 20
    assert all(size == 19 for size in sizes[:-1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [4, 22])
def test_one_row_too_many_for_a_batch_is_trained_with_the_last(kind: str, n: int) -> None:
    """Batch norm knows no batch of one; 22 rows less 2 to stop by are a batch of 19 and one."""
    rows = planted(n, 2)
    found = fit_together(modules(kind, 2), rows, Schooling(19, 3, 15, 0.1))
    for course in found:
        assert course.error is None
        assert len(course.history) == 3


@pytest.mark.parametrize(("n", "share", "held"), [(4, 0.1, 2), (30, 0.1, 3), (100, 0.25, 25), (10, 0.99, 10)])
def test_rows_to_stop_by_are_a_seeded_share_and_apart_from_the_rest(n: int, share: float, held: int) -> None:
    train, val = split_rows(3, n, share)
    assert len(val) == held
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(n))
    assert torch.equal(split_rows(3, n, share)[1], val)
    if 4 < held < n:
        assert not torch.equal(split_rows(4, n, share)[1], val)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_round_trip_under_weights_only_loading(kind: str, tmp_path: Path) -> None:
    rows = planted(units=1, dtype=torch.float32)[0]
    (model,) = modules(kind, 1, torch.float32)
    model.calibrate(rows * 3 + 2)
    by_trainer(model, rows, Schooling(19, 2, 5, 0.1), tmp_path)
    path = tmp_path / "best.ckpt"
    assert torch.load(path, weights_only=True)["hyper_parameters"]["in_features"] == D
    again = type(model).load_from_checkpoint(path, weights_only=True)
    assert dict(again.hparams) == dict(model.hparams)
    assert torch.equal(again.eval()(rows), model.eval()(rows))
    again.train()
    trainer = pl.Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, enable_checkpointing=False, log_every_n_steps=1,
    )  # fmt: skip
    schooling = Schooling(19, 4, 5, 0.1)
    loaders = [
        torch.utils.data.DataLoader(Ordered(rows, model, schooling, given), batch_size=None)
        for given in (trainer, None)
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*different from the current.*callbacks.*|.*callbacks.*state.*")
        trainer.fit(again, *loaders, ckpt_path=path, weights_only=True)
    assert trainer.current_epoch == 4


def test_the_estimate_of_memory_grows_with_weights_rows_and_batches() -> None:
    small, large = modules("vae", 1)[0], modules("vae", 1, hidden=[64, 32])[0]
    weights = 4 * sum(p.numel() for p in small.parameters())
    assert (
        member_bytes(small, 100, 19) > 4 * weights + 4 * 100 * D
    )  # parameters, gradients, two moments, best; its rows
    assert member_bytes(large, 100, 19) > member_bytes(small, 100, 19)
    assert member_bytes(small, 200, 19) - member_bytes(small, 100, 19) >= 4 * 100 * D
    assert member_bytes(small, 100, 38) > member_bytes(small, 100, 19)
