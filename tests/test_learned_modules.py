"""What the three autoencoders minimise and say, against independent implementations."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from lorabench.errors import LorabenchError
from lorabench.machine import one_thread_an_operation
from lorabench.representations.autoencoder import AutoEncoder, relative_error
from lorabench.representations.contrastive import Contrastive, ContrastiveModule, alignment, info_nce, uniformity
from lorabench.representations.denoising import Denoising, DenoisingModule
from lorabench.representations.vae import VAE, VAEModule
from lorabench.training import Keyed, SeededDropout, draw_keys, normal, set_keys

D, LATENT = 20, 3
KINDS: dict[str, type[AutoEncoder]] = {"vae": VAEModule, "denoising": DenoisingModule, "contrastive": ContrastiveModule}
PAIRS = [{"down": 0, "up": 8, "rank": 2, "d_in": 4, "d_out": 6}]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def module(kind: str, **options: object) -> AutoEncoder:
    found = KINDS[kind](in_features=D, latent_dim=LATENT, seed=5, hidden=[16, 12], **options).double()
    found.calibrate(random(40, D, seed=9) * 3 + 1)
    set_keys(found, found.seed, 8)
    return found


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """What is small is slower on several threads, and a hundred times slower where others want the cores too."""
    with one_thread_an_operation():
        yield


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("beta", [0.0, 0.1, 3])
@pytest.mark.parametrize("training", [True, False])
def test_the_vae_minimises_squared_error_and_kl_summed_and_averaged_over_the_batch(training: bool, beta: float) -> None:
    vae, x = module("vae", beta=beta), random(11, D)
    vae.train(training)
    found = vae.losses(x)
    hidden = vae.encoder(x)
    mean, log_variance = hidden[:, :LATENT], hidden[:, LATENT:]
    posterior = Normal(mean, (log_variance / 2).exp())
    noise = normal(vae.noise.key, 11, LATENT, torch.float64)
    z = posterior.loc + posterior.scale * noise if training else posterior.loc
    squared = ((vae.decoder(z) - x) ** 2).sum() / 11
    kl = kl_divergence(posterior, Normal(torch.zeros(LATENT), torch.ones(LATENT))).sum() / 11
    assert found.keys() == {"loss", "reconstruction", "kl"}
    torch.testing.assert_close(found["reconstruction"], squared)
    torch.testing.assert_close(found["kl"], kl)
    torch.testing.assert_close(found["loss"], squared + beta * kl)


def test_the_vaes_diagnostics_are_error_kl_by_dimension_and_active_dimensions() -> None:
    vae, x = module("vae").eval(), random(50, D)
    with torch.no_grad():
        vae.encoder[-1].weight[1] *= 1e-4  # a dimension that says nothing
        mean, log_variance = vae.posterior(x)
        found = vae.diagnostics(x)
        kl = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).mean(0)
        error = ((x - vae.decoder(mean)) ** 2).sum() / (x**2).sum()
    assert found["kl"] == pytest.approx(kl.tolist())
    assert found["active_dims"] == int((mean.var(0, correction=0) > 0.01).sum()) < LATENT
    assert found["reconstruction_error"] == pytest.approx(float(error))
    torch.testing.assert_close(vae.encode(x), mean)


def test_the_spread_of_the_posterior_stands_behind_its_mean() -> None:
    x = random(7, D)
    narrow, wide = module("vae").eval(), module("vae", posterior="mean_and_spread").eval()
    torch.testing.assert_close(wide.features(x), torch.cat(narrow.posterior(x), 1), rtol=0, atol=0)
    torch.testing.assert_close(narrow.features(x), narrow.encode(x), rtol=0, atol=0)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_denoiser_is_held_against_the_clean_input(noise: float) -> None:
    """Validation adds noise too; features do not."""
    denoiser, x = module("denoising", noise=noise, dropout=0.0), random(9, D)
    added = noise * normal(denoiser.draw.key, 9, D, torch.float64)
    for training in (True, False):
        denoiser.train(training)
        expected = ((denoiser.decoder(denoiser.encoder(x + added)) - x) ** 2).sum() / 9
        assert denoiser.losses(x).keys() == {"loss"}
        torch.testing.assert_close(denoiser.losses(x)["loss"], expected)
    torch.testing.assert_close(denoiser.encode(x), denoiser.encoder(x))
    with torch.no_grad():
        found = denoiser.diagnostics(x)
        for name, shift in (("reconstruction_error", 0), ("denoising_error", added)):
            error = ((denoiser.decoder(denoiser.encode(x + shift)) - x) ** 2).sum() / (x**2).sum()
            assert found[name] == pytest.approx(float(error))


def test_skip_connections_carry_nothing_round_the_bottleneck(kind: str) -> None:
    """Linear maps of rank `latent_dim` at most: whatever gets past the latent vector would add to the rank."""
    model = module(kind).eval()

    def reconstructed(x: torch.Tensor) -> torch.Tensor:
        return model.decoder(model.encode(x[None]))[0]

    for seed in range(3):
        jacobian = torch.autograd.functional.jacobian(reconstructed, random(D, seed=seed))
        sizes = torch.linalg.svdvals(jacobian)
        assert float(sizes[LATENT - 1]) > 1e-4 * float(sizes[0]), "a test without a signal"
        assert float(sizes[LATENT]) < 1e-12 * float(sizes[0])


def test_the_denoiser_has_skips_within_encoder_and_decoder() -> None:
    """A layer and a linear map of what goes into it."""
    denoiser = module("denoising", dropout=0.0).eval()
    x = random(4, 16)
    for coder, at in ((denoiser.encoder, 1), (denoiser.decoder, 1)):
        one = coder[at]
        given = x if one.skip.in_features == 16 else x[:, : one.skip.in_features]
        torch.testing.assert_close(one(given), one.layer(given) + given @ one.skip.weight.mT)
        assert one.skip.weight.abs().min() > 0


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2])
@pytest.mark.parametrize("n", [2, 7])
def test_info_nce_is_a_plain_double_loop(n: int, temperature: float) -> None:
    first, second = random(n, 6), random(n, 6, seed=1)
    views, total = [*first, *second], 0.0
    for i, view in enumerate(views):
        likeness = [math.exp(float(torch.cosine_similarity(view, other, 0)) / temperature) for other in views]
        others = sum(value for j, value in enumerate(likeness) if j != i)
        total -= math.log(likeness[(i + n) % (2 * n)] / others)
    assert float(info_nce(first, second, temperature)) == pytest.approx(total / (2 * n), rel=1e-10)


def test_info_nce_knows_good_views_from_bad() -> None:
    """All alike: log(2n - 1). Positives in one place and negatives far: near 0. Length does not count."""
    same = torch.ones(5, 3, dtype=torch.float64)
    assert float(info_nce(same, same, 0.5)) == pytest.approx(math.log(9))
    apart = torch.eye(5, dtype=torch.float64)
    assert float(info_nce(apart, apart, 0.01)) < 1e-9
    assert float(info_nce(apart, apart.roll(1, 0), 0.01)) > 50
    x, y = random(5, 3), random(5, 3, seed=1)
    assert float(info_nce(3 * x, y / 7, 0.5)) == pytest.approx(float(info_nce(x, y, 0.5)))


def test_alignment_and_uniformity_are_plain_loops() -> None:
    """Wang & Isola 2020, eq. 5 and 6, with α = 2 and t = 2."""
    first, second = random(8, 4), random(8, 4, seed=1)
    a, b = ([row / row.norm() for row in rows] for rows in (first, second))
    assert float(alignment(first, second)) == pytest.approx(
        sum(float((p - q).norm()) ** 2 for p, q in zip(a, b, strict=True)) / 8
    )
    pairs = [math.exp(-2 * float((a[i] - a[j]).norm()) ** 2) for i in range(8) for j in range(i)]
    assert float(uniformity(first)) == pytest.approx(math.log(sum(pairs) / len(pairs)))
    assert float(alignment(first, 2 * first)) == pytest.approx(0, abs=1e-12)
    assert float(uniformity(torch.ones(4, 3, dtype=torch.float64))) == 0


@pytest.mark.parametrize("pairs", [[], PAIRS])
def test_the_contrastive_loss_is_that_of_two_views(pairs: list[dict[str, int]]) -> None:
    model, x = module("contrastive", pairs=pairs, alpha=0.7, temperature=0.3, dropout=0.0), random(6, D)
    found = model.losses(x)
    views = [view(x, model.mean, model.scale) for view in model.views]
    assert not torch.allclose(*views), "a positive that is the sample itself teaches nothing"
    latent = model.encoder(torch.cat(views))
    clean = [view.regauged(x, model.mean, model.scale) for view in model.views]
    assert all(torch.equal(one, x) for one in clean) is not bool(pairs), "a gauge is the target too, noise is not"
    squared = sum(((model.decoder(half) - to) ** 2).sum() for half, to in zip(latent.chunk(2), clean, strict=True))
    squared = squared / (2 * x.numel())
    contrast = info_nce(*model.head(latent).chunk(2), 0.3)
    assert found.keys() == {"loss", "reconstruction", "info_nce"}
    torch.testing.assert_close(found["reconstruction"], squared)
    torch.testing.assert_close(found["info_nce"], contrast)
    torch.testing.assert_close(found["loss"], squared + 0.7 * contrast)


def test_the_contrastive_diagnostics_are_of_two_views() -> None:
    model, x = module("contrastive", pairs=PAIRS).eval(), random(30, D)
    with torch.no_grad():
        found = model.diagnostics(x)
        first, second = (model.head(model.encoder(view(x, model.mean, model.scale))) for view in model.views)
        assert found["alignment"] == pytest.approx(float(alignment(first, second)))
        assert found["alignment"] > 0
        assert found["uniformity"] == pytest.approx((float(uniformity(first)) + float(uniformity(second))) / 2)
        error = ((model.decoder(model.encoder(x)) - x) ** 2).sum() / (x**2).sum()
        assert found["reconstruction_error"] == pytest.approx(float(error))


def test_gradients_flow_to_every_parameter(kind: str) -> None:
    model = module(kind, **({"pairs": PAIRS} if kind == "contrastive" else {})).train()
    model.losses(random(32, D))["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # Batch norm takes away what shifts a layer: no parameter may have a gradient that is rounding alone.
        assert float(parameter.grad.abs().max()) > 1e-6, name


def test_everything_random_follows_from_the_seed(kind: str) -> None:
    before = torch.random.get_rng_state()
    one, two = module(kind), module(kind)
    other = KINDS[kind](in_features=D, latent_dim=LATENT, seed=6, hidden=[16, 12])
    x = random(10, D)
    losses = [model.train().losses(x)["loss"].item() for model in (one, two)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert losses[0] == losses[1]
    for a, b, c in zip(one.parameters(), two.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim == 1 or not torch.equal(a.float(), c)
    set_keys(two, two.seed, 9)
    assert two.losses(x)["loss"].item() != losses[0]
    keyed = [int(m.key) for m in one.modules() if isinstance(m, Keyed)]
    assert keyed == draw_keys(torch.tensor([5]), [8], range(len(keyed)))[0, :, 0].tolist()


def test_layers_are_those_of_the_issue() -> None:
    """Widths, batch norm, dropout, and latent lengths by default."""
    for representation, inputs, latent in (
        (VAE, 1000, 64), (VAE, 200, 20), (VAE, 7, 2),
        (Denoising, 1000, 64), (Denoising, 200, 20),
        (Contrastive, 1000, 128), (Contrastive, 200, 40), (Contrastive, 7, 2),
    ):  # fmt: skip
        assert representation.default_latent(inputs) == latent
    for representation, widths, dropouts in (
        (VAE, (512, 256), 0),
        (Denoising, (512, 256), 2),
        (Contrastive, (512, 512), 2),
    ):
        model = representation.kind()(in_features=100, latent_dim=10, seed=0)
        norms = [m.num_features for m in model.encoder.modules() if isinstance(m, torch.nn.BatchNorm1d)]
        assert tuple(norms) == widths
        assert [m.p for m in model.encoder.modules() if isinstance(m, SeededDropout)] == [0.2] * dropouts
        x = torch.randn(3, 100)
        assert model.eval().encode(x).shape == (3, 10)
        assert model.decoder(model.encode(x)).shape == (3, 100)
        assert torch.equal(model(x * 2 + 1), model.encode(x * 2 + 1)), "uncalibrated: mean 0, scale 1"
    assert ContrastiveModule(in_features=100, latent_dim=10, seed=0).head(torch.randn(2, 10)).shape == (2, 64)
    with pytest.raises(LorabenchError, match=r"p=1\.5"):
        DenoisingModule(in_features=9, latent_dim=2, seed=0, dropout=1.5)


def test_weights_come_standardised_by_what_was_calibrated(kind: str) -> None:
    model = module(kind).eval()
    raw = random(200, D, seed=4) * torch.linspace(0.1, 50, D) + torch.linspace(-5, 1000, D)
    raw[:, 3] = 7
    model.calibrate(raw)
    mean, std = raw.numpy().mean(0), raw.numpy().std(0)
    std[3] = 1
    expected = torch.from_numpy((raw.numpy() - mean) / std)
    torch.testing.assert_close(model.standardised(raw), expected, rtol=1e-9, atol=1e-9)
    assert float(model.standardised(raw)[:, 3].abs().max()) == 0
    torch.testing.assert_close(model(raw), model.encode(expected), rtol=1e-9, atol=1e-9)


def test_relative_error_is_one_for_the_mean_and_zero_for_the_thing_itself() -> None:
    x = random(6, 4)
    assert relative_error(x, torch.zeros_like(x)) == 1
    assert relative_error(x, x) == 0
    assert relative_error(torch.zeros(2, 4), torch.zeros(2, 4)) == 0
