"""The bound's parts: against direct sums, quadrature, closed forms and transforms by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.random_inputs import normal, scramble
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.utils._python_dispatch import TorchDispatchMode
from zuko.distributions import NormalizingFlow

from flowvae.data import Dataset, load_data
from flowvae.errors import InputError
from flowvae.evaluation import elbo_surgery as module
from flowvae.evaluation.elbo_surgery import Surgery, dissect, log_aggregate
from flowvae.models.vae import VAE, build
from flowvae.numerics.streams import global_stream
from flowvae.posteriors import DiagonalGaussian
from flowvae.priors import PRIORS, Latent
from flowvae.trial import Trial


def one_hot(count: int) -> Dataset:
    """N images of N pixels, the n-th with its n-th pixel on."""
    x = torch.eye(count, dtype=torch.uint8)
    none = torch.zeros(count, dtype=torch.uint8)
    return Dataset("eye", "eye", "threshold", (1, count), 1, x, x[:0], x, none, "")


def with_posteriors(mean: Tensor, std: Tensor, prior: str = "gauss") -> VAE:
    """A model of one-hot images whose n-th posterior is N(mean_n, std_n^2), given as (N, D)."""
    count, features = mean.shape
    encoder = nn.Linear(count, 2 * features, bias=False)
    decoder = nn.Linear(features, count)
    with torch.no_grad():
        encoder.weight.copy_(torch.cat([mean, std.log()], dim=1).T)
    with global_stream(0, "test"):
        images = torch.eye(count, dtype=torch.uint8)
        built = scramble(
            PRIORS.build(prior, Latent(features, encoder, images, pixels=count)), encoder
        )
    bodies = {"shape": (1, count), "latent": features, "precision": "float64"}
    vae = VAE(encoder, decoder, built, **bodies)
    with torch.no_grad():  # the constructor casts, and the weights came in float32
        encoder.weight.copy_(torch.cat([mean, std.log()], dim=1).T)
    return vae


def mixture(mean: Tensor, std: Tensor) -> MixtureSameFamily:
    return MixtureSameFamily(
        Categorical(torch.ones(len(mean), dtype=mean.dtype)), Independent(Normal(mean, std), 1)
    )


def pair_sum(
    z: Tensor, own: Tensor, mean: Tensor, std: Tensor, device: torch.device, **options: int
) -> tuple[Tensor, ...]:
    """Call `log_aggregate` on the device; return what it does on the CPU."""
    posterior = DiagonalGaussian(mean.to(device), std.log().to(device))
    pair = log_aggregate(z.to(device), own.to(device), posterior, **options)
    return tuple(t.cpu() for t in pair)


def direct(z: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the densities of `torch.distributions`, with and without the n-th, (N, S) each."""
    full = mixture(mean, std).log_prob(z)
    rest = [torch.arange(len(mean)) != n for n in range(len(mean))]
    out = [mixture(mean[r], std[r]).log_prob(z[n]) for n, r in enumerate(rest)]
    return full, torch.stack(out)


def posteriors(count: int, features: int, samples: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Overlapping and lone posteriors of all scales: means, deviations, draws, log-densities."""
    mean = 2 * normal(count, features, of="mean")
    std = (normal(count, features, of="std") - 1).exp()
    noise = normal(count, samples, features, of="noise")
    return mean, std, mean[:, None] + std[:, None] * noise, own_density(noise, std)


def own_density(noise: Tensor, std: Tensor) -> Tensor:
    return (Normal(0.0, 1.0).log_prob(noise) - std.log()[:, None]).sum(dim=-1)


# The pair sum


@pytest.mark.parametrize("features", [1, 2, 16])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_pair_sum_is_the_direct_sum(features: int, offset: float, device: torch.device) -> None:
    mean, std, z, own = posteriors(40, features, 3)
    found = pair_sum(z + offset, own, mean + offset, std, device)
    for log_q, expected in zip(found, direct(z, mean, std), strict=True):
        assert log_q.shape == (40, 3)
        torch.testing.assert_close(log_q, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("std", [1e-2, 1e-4])
def test_pair_sum_survives_narrow_posteriors_far_away(std: float, device: torch.device) -> None:
    """Twins at 1e4 deviations from the middle: the squares cancel to nearly nothing."""
    mean = normal(20, 4).repeat(2, 1)
    mean[20:] += std * normal(20, 4, of="twin")
    noise, wide = normal(40, 2, 4, of="noise"), torch.full((40, 4), std, dtype=torch.float64)
    z = mean[:, None] + std * noise
    found = pair_sum(z, own_density(noise, wide), mean, wide, device)
    for log_q, expected in zip(found, direct(z, mean, wide), strict=True):
        torch.testing.assert_close(log_q, expected, rtol=0, atol=1e-5 if std < 1e-3 else 1e-9)


@pytest.mark.parametrize("std", [1e-12, 1e-40, 1e-200])
def test_pair_sum_of_posteriors_that_shrank_to_points_is_finite_and_right(
    std: float, device: torch.device
) -> None:
    """A rate of hundreds of nats: by the matrix product the index code would be -1 / std^2."""
    mean, count = normal(30, 2).repeat(2, 1), 60  # every point twice
    wide = torch.full((count, 2), std, dtype=torch.float64)
    z, own = mean[:, None].expand(-1, 3, -1), own_density(torch.zeros(count, 3, 2), wide)
    log_q, log_q_out = pair_sum(z, own, mean, wide, device)
    assert (own.double() - log_q).mean() == pytest.approx(math.log(count / 2))
    assert (own.double() - log_q_out).mean() == pytest.approx(math.log(count - 1))
    alone, out = pair_sum(z[:30], own[:30], mean[:30], wide[:30], device)
    assert (own[:30].double() - alone).mean() == pytest.approx(math.log(30))
    assert out.isfinite().all()


@pytest.mark.parametrize("pairs", [1, 97, 40 * 7, 10**6])
def test_block_size_changes_nothing(pairs: int, device: torch.device) -> None:
    mean, std, z, own = posteriors(40, 3, 3)
    expected = pair_sum(z, own, mean, std, device)
    found = pair_sum(z, own, mean, std, device, pairs=pairs)
    # A CUDA device multiplies matrices of each shape by another kernel, which rounds otherwise.
    near = 1e-12 if device.type == "cpu" else 1e-10
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=near, atol=near)


def test_no_table_of_all_pairs_is_held(device: torch.device) -> None:
    """Of 4 million pairs at most 10,000 in any tensor that any operation returns."""
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> object:  # noqa: ANN001
            result = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in [result] if isinstance(t, Tensor))
            return result

    mean, std, z, own = posteriors(2000, 2, 1)
    with Watch():
        pair_sum(z, own, mean, std, device, pairs=10_000)
    assert max(sizes) == 10_000


def test_information_lies_between_the_two_sums(device: torch.device) -> None:
    """With x ~ N(0, 1), q(z|x) = N(x, s^2): I(x; z) = log(1 + 1 / s^2) / 2."""
    std, count = 0.1, 3000
    mean, noise = normal(count, 1, of="x"), normal(count, 1, 1)
    wide = torch.full((count, 1), std, dtype=torch.float64)
    own = own_density(noise, wide)
    log_q, log_q_out = pair_sum(mean[:, None] + std * noise, own, mean, wide, device)
    exact = 0.5 * math.log(1 + std**-2)
    low, high = (own - log_q).mean(), (own - log_q_out).mean()
    error = float((own - log_q).std()) / math.sqrt(count)
    assert low < high
    assert low < exact + 3 * error
    assert high > exact - 3 * error
    assert high - low < 0.02


# The parts of a model's bound


def test_equal_posteriors_tell_nothing(device: torch.device) -> None:
    """And the marginal KL is that of two Gaussians."""
    mean, std = torch.tensor([0.5, -1.0]).double(), torch.tensor([0.6, 1.5]).double()
    vae = with_posteriors(mean.expand(50, 2), std.expand(50, 2))
    surgery = dissect(vae, one_hot(50), seed=0, samples=400, device=device)
    assert surgery.index_code == pytest.approx(0, abs=1e-12)
    assert surgery.index_code_out == pytest.approx(0, abs=1e-12)
    exact = float((std.square() / 2 + mean.square() / 2 - 0.5 - std.log()).sum())
    assert surgery.marginal_kl == pytest.approx(exact, abs=5 * 2 / math.sqrt(50 * 400))
    assert surgery.marginal_kl == pytest.approx(surgery.rate.mean(), abs=1e-12)
    assert surgery.active_units == surgery.active_units_relative == 0
    assert not surgery.saturated
    assert not surgery.saturated_out
    assert surgery.caveat == ""


def test_posteriors_far_apart_tell_the_number_of_images(device: torch.device) -> None:
    mean = 3 * torch.arange(30, dtype=torch.float64)[:, None] - 40
    surgery = dissect(
        with_posteriors(mean, torch.full_like(mean, 0.05)), one_hot(30), seed=0, device=device
    )
    assert surgery.log_images == math.log(30)
    assert surgery.index_code == pytest.approx(math.log(30), abs=1e-9)
    assert surgery.marginal_kl == pytest.approx(surgery.rate.mean() - math.log(30), abs=1e-9)
    assert surgery.index_code_out > 1000
    assert surgery.saturated
    assert surgery.saturated_out
    for word in ("log N = 3.40 for 30 images", "lower bound", "upper bound", "no divergence is"):
        assert word in surgery.caveat


def of(rate: float, index_code: float, index_code_out: float) -> Surgery:
    """A surgery of 100 images, log N = 4.6, with given means."""
    blank, none = np.zeros(100), np.zeros(0)
    parts = {"log_q": rate - index_code + blank, "log_q_out": rate - index_code_out + blank}
    return Surgery(
        distortion=blank,
        log_posterior=blank + rate,
        log_prior=blank,
        **parts,
        mean_variance=none,
        noise_variance=none,
        train_elbo=blank,
        outside_posterior=none,
        outside_prior=none,
        bad_samples=0,
        prior_samples=0,
    )


@pytest.mark.parametrize(
    ("surgery", "saturated", "saturated_out"),
    [
        (of(20.0, 4.5, 12.0), True, True),
        (of(20.0, 4.3, 4.5), True, False),
        (of(20.0, 4.0, 4.8), False, True),
        (of(20.0, 3.0, 3.5), False, False),
        (of(4.7, 4.5, 4.7), False, False),  # the rate is no higher: the number is right
    ],
)
def test_saturation(surgery: Surgery, saturated: bool, saturated_out: bool) -> None:
    assert (surgery.saturated, surgery.saturated_out) == (saturated, saturated_out)
    assert ("near its ceiling" in surgery.caveat) == saturated
    assert ("made of tails" in surgery.caveat) == saturated_out
    assert "no divergence is" not in surgery.caveat


def test_marginal_kl_is_the_integral(prior: str, device: torch.device) -> None:
    """On a grid, D = 2: KL(q(z) || p(z)), and the information H(q(z)) - H(q(z|n))."""
    mean, std = 1.5 * normal(6, 2, of="mean"), 0.3 + 0.3 * normal(6, 2, of="std").abs()
    vae, samples = with_posteriors(mean, std, prior), 1000
    surgery = dissect(vae, one_hot(6), seed=0, samples=samples, device=device)
    step = 0.1
    axis = torch.arange(-8 + step / 2, 8, step, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    log_q = mixture(mean, std).log_prob(grid)
    grid, log_q = grid[log_q > -30], log_q[log_q > -30]
    with torch.no_grad():
        log_p = torch.cat([vae.prior().log_prob(z) for z in grid.split(20_000)])
    q = log_q.exp() * step**2
    assert q.sum().item() == pytest.approx(1, abs=1e-6)
    entropy = -float((q * log_q).sum())
    inside = float((0.5 + 0.5 * math.log(2 * math.pi) + std.log()).sum(dim=1).mean())
    for found, exact, ratio in [
        (surgery.marginal_kl, -entropy - float((q * log_p).sum()), log_q - log_p),
        (surgery.index_code, entropy - inside, log_q),
    ]:
        spread = float((q * ratio.square()).sum() - (q * ratio).sum().square()) ** 0.5
        assert found == pytest.approx(exact, abs=5 * max(spread, 1) / math.sqrt(6 * samples))
    assert 0 < surgery.index_code < math.log(6)


@pytest.fixture
def noises(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """The images and the noise that were given to the model."""
    seen: list[tuple[Tensor, Tensor]] = []
    real = module.log_weights
    monkeypatch.setattr(
        module,
        "log_weights",
        lambda v, x, e, **k: seen.append((x.cpu(), e.cpu())) or real(v, x, e, **k),
    )
    return seen


def test_parts_are_the_explicit_means(
    noises: list[tuple[Tensor, Tensor]], device: torch.device
) -> None:
    """Two tiles of images, two of draws."""
    mean, std, *_ = posteriors(120, 2, 1)
    vae = with_posteriors(mean, std, "maf[hidden=8]")
    surgery = dissect(vae, one_hot(120), seed=3, samples=60, device=device)
    chunks = [noise for _, noise in noises]
    assert [tuple(c.shape) for c in chunks[:4]] == [(100, 50, 2), (100, 10, 2)] + [
        (20, 50, 2),
        (20, 10, 2),
    ]
    noise = torch.cat([torch.cat(chunks[:2], dim=1), torch.cat(chunks[2:4], dim=1)])
    z = mean[:, None] + std[:, None] * noise
    log_q, log_q_out = direct(z, mean, std)
    with torch.no_grad():
        log_p = vae.prior().log_prob(z.flatten(0, 1)).view(120, 60)
        log_x = Independent(
            torch.distributions.Bernoulli(logits=vae.decoder(z)), 1, validate_args=False
        ).log_prob(torch.eye(120, dtype=torch.float64)[:, None])
    expected = {
        "log_posterior": own_density(noise, std),
        "log_prior": log_p,
        "log_q": log_q,
        "log_q_out": log_q_out,
        "distortion": -log_x,
        "rate": own_density(noise, std) - log_p,
        "elbo": log_x + log_p - own_density(noise, std),
    }
    for name, values in expected.items():
        found = getattr(surgery, name)
        assert found.shape == (120,)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, values.mean(dim=1), rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def tiny(small: Dataset) -> Dataset:
    return replace(small, test=small.test[:130], labels=small.labels[:130])


def make(prior: str, data: Dataset, precision: str = "float64") -> VAE:
    trial = Trial(prior=prior, latent=2, net="mlp[hidden=8]", precision=precision)
    vae = build(trial, data.shape, data.train)
    scramble(vae.prior, vae.encoder)
    return vae


def test_every_prior_is_dissected(prior: str, tiny: Dataset, device: torch.device) -> None:
    vae = make(prior, tiny, "float32")
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    surgery = dissect(vae, tiny, seed=0, samples=3, device=device)
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert vae.precision == "float32"
    vae.elbo(tiny.train[:5], torch.zeros(5, 2)).elbo.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())

    for name in ("distortion", "log_posterior", "log_prior", "log_q", "log_q_out", "rate"):
        found = getattr(surgery, name)
        assert found.shape == (130,)
        assert found.dtype == np.float64
        assert np.isfinite(found).all()
    rate = surgery.rate.mean()
    assert surgery.marginal_kl == pytest.approx(rate - surgery.index_code, abs=1e-9)
    assert surgery.marginal_kl_out == pytest.approx(rate - surgery.index_code_out, abs=1e-9)
    assert 0 < surgery.index_code < surgery.index_code_out
    assert surgery.index_code < surgery.log_images
    layers = len(surgery.outside_posterior)
    assert len(surgery.outside_prior) == layers
    assert (layers > 0) == ("bound" in PRIORS[prior.partition("[")[0]].options)
    assert np.isfinite([*surgery.outside_posterior, *surgery.outside_prior]).all()
    assert np.isfinite([surgery.elbo_gap, surgery.train_elbo.mean()]).all()
    assert math.isfinite(surgery.log_z_error) == prior.startswith("lars")


def test_seed_decides_the_draws_and_priors_share_them(
    tiny: Dataset, noises: list[tuple[Tensor, Tensor]], device: torch.device
) -> None:
    surgeries, draws = [], []
    for spec, seed in [("nsf[hidden=8]", 0), ("nsf[hidden=8]", 0), ("nsf[hidden=8]", 1)]:
        torch.manual_seed(len(draws))
        state = torch.get_rng_state()
        surgery = dissect(make(spec, tiny), tiny, seed=seed, device=device)
        surgeries.append(
            {name: repr(np.asarray(part).tolist()) for name, part in vars(surgery).items()}
        )
        assert torch.equal(torch.get_rng_state(), state)
        draws.append(noises.copy())
        noises.clear()
    dissect(make("gauss", tiny), tiny, seed=0, device=device)
    assert surgeries[0] == surgeries[1] != surgeries[2]
    for (x, noise), (x_other, noise_other) in zip(draws[0], noises, strict=True):
        assert torch.equal(noise, noise_other)
        assert torch.equal(x, x_other)
    for (x, noise), (x_other, noise_other) in zip(draws[0], draws[2], strict=True):
        assert not torch.equal(noise, noise_other)
        assert torch.equal(x, x_other)  # the training images are the same for all seeds


def test_noise_of_an_image_does_not_depend_on_the_number_of_images(
    tiny: Dataset, noises: list[tuple[Tensor, Tensor]], device: torch.device
) -> None:
    dissect(make("gauss", tiny), replace(tiny, test=tiny.test[:110]), seed=0, device=device)
    few = torch.cat([noise for _, noise in noises[:2]])
    noises.clear()
    dissect(make("gauss", tiny), tiny, seed=0, device=device)
    assert torch.equal(few, torch.cat([noise for _, noise in noises[:2]])[:110])


def test_precision_of_the_model_decides(tiny: Dataset, device: torch.device) -> None:
    single, half = (
        dissect(make("gauss", tiny, p), tiny, seed=0, device=device) for p in ("float32", "bf16")
    )
    assert np.array_equal(single.elbo, half.elbo)  # bfloat16 is for training
    double = dissect(make("gauss", tiny, "float64"), tiny, seed=0, device=device)
    np.testing.assert_allclose(single.log_q, double.log_q, rtol=1e-4)
    assert not np.array_equal(single.log_q, double.log_q)


# Active units


def test_active_units_by_both_definitions(device: torch.device) -> None:
    signs = torch.tensor([1.0, -1.0] * 20, dtype=torch.float64)[:, None]
    spread = torch.tensor([1.0, 0.05, 0.3, 1e-3], dtype=torch.float64)  # of the means
    noise = torch.tensor([0.1, 0.01, 5.0, 1.0], dtype=torch.float64)
    mean = 4 + signs * spread
    surgery = dissect(
        with_posteriors(mean, noise.expand(40, 4)), one_hot(40), seed=0, device=device
    )
    np.testing.assert_allclose(surgery.mean_variance, [1, 0.0025, 0.09, 1e-6], rtol=1e-9)
    np.testing.assert_allclose(surgery.noise_variance, [0.01, 1e-4, 25, 1], rtol=1e-9)
    np.testing.assert_array_equal(surgery.active, [True, False, True, False])
    np.testing.assert_allclose(
        surgery.relative_activity, [1 / 1.01, 25 / 26, 0.09 / 25.09, 1e-6 / (1 + 1e-6)], rtol=1e-9
    )
    assert surgery.active_units == 2
    assert surgery.active_units_relative == 2


def test_relative_activity_alone_is_free_of_scale(device: torch.device) -> None:
    mean, std, *_ = posteriors(40, 3, 1)
    whole, shrunk = (
        dissect(with_posteriors(c * mean, c * std), one_hot(40), seed=0, device=device)
        for c in (1.0, 0.01)
    )
    np.testing.assert_allclose(whole.relative_activity, shrunk.relative_activity, rtol=1e-9)
    assert (whole.active_units, shrunk.active_units) == (3, 0)
    assert shrunk.active_units_relative == 3


def test_posterior_and_prior_are_held_against_the_box(
    tiny: Dataset, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """The prior's samples without the rows that are not finite."""
    mean, std, *_ = posteriors(30, 2, 1)
    vae = with_posteriors(mean * 1e-3 + 0.4, std * 1e-3, "nsf[hidden=8,bound=0.5]")
    assert dissect(vae, one_hot(30), seed=0, device=device).outside_posterior[0] == 0
    vae = with_posteriors(mean * 1e-3 + 0.6, std * 1e-3, "nsf[hidden=8,bound=0.5]")
    assert dissect(vae, one_hot(30), seed=0, device=device).outside_posterior[0] == 1

    fair = dissect(vae, one_hot(30), seed=0, device=device)
    assert (fair.bad_samples, fair.prior_samples) == (0, 2000)
    assert 0.1 < fair.outside_prior[0] < 0.9  # the standard normal's, of a scrambled flow

    def rsample(self: NormalizingFlow, shape: tuple[int, ...] = ()) -> Tensor:
        z = torch.full((*shape, 2), 0.2, dtype=torch.float64)
        z[0], z[1, 0], z[2, 1], z[3, 1] = 3.0, math.nan, math.inf, -math.inf
        return z

    monkeypatch.setattr(NormalizingFlow, "rsample", rsample)
    bad = dissect(vae, one_hot(30), seed=0, device=device)
    assert bad.bad_samples == 6  # two chunks
    assert bad.outside_prior[0] == pytest.approx(2 / 1994)


# The generalisation gap


def test_gap_is_between_the_same_estimates(
    tiny: Dataset, noises: list[tuple[Tensor, Tensor]], device: torch.device
) -> None:
    vae = make("gauss", tiny)
    surgery = dissect(vae, tiny, seed=0, samples=4, device=device)
    scored, trained = noises[:2], noises[2:]
    assert torch.equal(torch.cat([x for x, _ in scored]), tiny.test)
    chosen = torch.cat([x for x, _ in trained])
    assert chosen.shape == tiny.test.shape
    rows = {bytes(x.tolist()) for x in tiny.train}
    assert {bytes(x.tolist()) for x in chosen} <= rows
    assert not torch.equal(chosen, tiny.train[:130])
    with torch.no_grad():
        elbos = [
            torch.stack([vae.elbo(x, noise[:, k]).elbo for k in range(4)]).mean(dim=0)
            for x, noise in trained
        ]
    np.testing.assert_allclose(surgery.train_elbo, torch.cat(elbos), rtol=1e-9)
    assert surgery.elbo_gap == surgery.train_elbo.mean() - surgery.elbo.mean()
    assert not torch.equal(scored[0][1], trained[0][1])


def test_fewer_training_images_are_all_taken(
    tiny: Dataset, noises: list[tuple[Tensor, Tensor]], device: torch.device
) -> None:
    surgery = dissect(
        make("gauss", tiny), replace(tiny, train=tiny.train[:20]), seed=0, device=device
    )
    assert surgery.train_elbo.shape == (20,)
    chosen = torch.cat([x for x, _ in noises[2:]])
    assert sorted(map(bytes, chosen.numpy())) == sorted(map(bytes, tiny.train[:20].numpy()))


def test_grey_training_images_are_binarised_once(
    noises: list[tuple[Tensor, Tensor]],
    device: torch.device,
) -> None:
    data = load_data("digits[binarise=stochastic]")
    vae = make("gauss", data)
    for seed in (0, 1):
        dissect(vae, data, seed=seed, samples=1, device=device)
    half = len(noises) // 2
    first, again = (torch.cat([x for x, _ in part]) for part in (noises[:half], noises[half:]))
    assert torch.equal(first, again)
    assert int(first.max()) == 1
    rate = data.train.double().mean(dim=0) / data.levels
    found = first[360:].double().mean(dim=0)
    assert (found - rate).abs().max() < 5 * 0.5 / math.sqrt(360)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_split_is_scored(split: str, tiny: Dataset, device: torch.device) -> None:
    surgery = dissect(make("gauss", tiny), tiny, seed=0, split=split, device=device)
    assert surgery.log_images == math.log({"valid": 60, "test": 130}[split])
    assert surgery.train_elbo.shape == surgery.elbo.shape


def test_bad_input_is_refused(tiny: Dataset, device: torch.device) -> None:
    vae = make("gauss", tiny)
    with pytest.raises(InputError, match="two valid images or more to compare; got 1"):
        dissect(vae, replace(tiny, valid=tiny.valid[:1]), seed=0, split="valid", device=device)
    with pytest.raises(InputError, match="got samples=0"):
        dissect(vae, tiny, seed=0, samples=0, device=device)
