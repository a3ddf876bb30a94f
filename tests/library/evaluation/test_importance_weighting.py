"""Test scores: against quadrature, explicit sums, and each other where the order is a theorem."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.oracles import fitted, quadrature
from support.small_priors import narrow
from torch import Tensor

from flowvae.data import Dataset
from flowvae.errors import InputError
from flowvae.evaluation import importance_weighting as module
from flowvae.evaluation import passes
from flowvae.evaluation.importance_weighting import Scores, evaluate
from flowvae.evaluation.pareto import pareto_khat
from flowvae.models.vae import VAE, Terms, build
from flowvae.numerics.streams import generator
from flowvae.trial import Evaluation, Trial


@pytest.fixture(scope="module")
def vae(small: Dataset, device: torch.device) -> VAE:
    return fitted("maf[hidden=8]", small, device)


def score(vae: VAE, images: Tensor, samples: int, precision: str = "float64") -> Scores:
    """Score a model where it is."""
    evaluation = Evaluation(estimator="encoder", samples=samples, precision=precision)
    return evaluate(vae, images, evaluation, seed=0, device=next(vae.parameters()).device)


@pytest.mark.parametrize("name", ["gauss", "maf", "nsf"])
def test_estimate_is_the_evidence_by_quadrature(
    name: str, small: Dataset, device: torch.device
) -> None:
    vae, x, samples = fitted(narrow(name), small, device), small.test[:60], 2000
    with torch.no_grad():  # a wider proposal, so that no weight is heavy-tailed
        vae.encoder[-1].bias[2:] += 0.7
    exact, scores = quadrature(vae, x), score(vae, x, samples)
    spread = np.sqrt(1 / scores.ess - 1 / samples)  # of the log, by the delta method
    light = (spread < 0.15) & (scores.khat < 0.7)
    assert light.mean() > 0.9
    error, spread = (scores.loglik[samples] - exact)[light], spread[light]
    assert (abs(error) < 5 * spread + 1e-3).all()
    assert abs(error.mean()) < 4 * np.sqrt((spread**2).sum()) / len(error)
    assert (scores.elbo < exact).all()
    assert (exact - scores.elbo).mean() > 0.5  # so that the weights have something to close


def test_scores_are_the_explicit_sums(
    vae: VAE, small: Dataset, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """With given log weights, far outside the range of exp; no tile is full."""
    rng, given = np.random.default_rng(0), []

    def stub(vae: VAE, x: Tensor, noise: Tensor, **_: Any) -> Terms:  # noqa: ANN401
        rate, distortion = rng.normal(size=(2, *noise.shape[:2])) * 3 + 5000
        given.append(np.stack([-distortion - rate, rate, distortion]))
        return Terms(*torch.from_numpy(given[-1]).to(device))

    monkeypatch.setattr(module, "log_weights", stub)
    monkeypatch.setitem(passes.PASS_BYTES, device.type, 1)  # each pass takes no more than it must
    scores = score(vae, small.test[:120], 60)
    tiles = [np.concatenate(given[:2], axis=2), np.concatenate(given[2:], axis=2)]
    log_w, rate, distortion = np.concatenate(tiles, axis=1)[..., :60]
    assert log_w.shape == (120, 60)
    top = log_w.max(axis=1)
    w = np.exp(log_w - top[:, None])
    np.testing.assert_allclose(scores.elbo, log_w.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(scores.rate, rate.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(scores.distortion, distortion.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(scores.ess, w.sum(axis=1) ** 2 / (w**2).sum(axis=1), rtol=1e-9)
    assert list(scores.loglik) == [1, 10, 60]
    for k, found in scores.loglik.items():
        np.testing.assert_allclose(found, top + np.log(w[:, :k].mean(axis=1)), rtol=1e-12)


def test_scores_do_not_depend_on_the_memory_of_a_pass(
    vae: VAE, small: Dataset, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    calls: list[int] = []
    real = module.log_weights
    monkeypatch.setattr(
        module, "log_weights", lambda *a, **k: calls.append(a[2].shape[1]) or real(*a, **k)
    )
    found = []
    for budget in (1, 90_000_000, 2**30):
        monkeypatch.setitem(passes.PASS_BYTES, device.type, budget)
        found.append(score(vae, small.test[:3], 130))
    assert calls == [50, 50, 30, 100, 30, 130]
    for other in found[1:]:
        for name in ("elbo", "rate", "distortion", "ess", "khat"):
            np.testing.assert_allclose(getattr(other, name), getattr(found[0], name), rtol=1e-9)


def test_khat_is_that_of_all_weights(vae: VAE, small: Dataset, device: torch.device) -> None:
    scores = score(vae, small.test[:2], 130)
    draws = torch.randn(300, 50, 2, generator=generator(0, "evaluation/0")).double()
    noise = draws.view(3, 100, 50, 2).transpose(0, 1).flatten(1, 2)[:2, :130]
    with torch.no_grad():
        log_w = module.log_weights(vae, small.test[:2].to(device), noise.to(device)).elbo
    np.testing.assert_allclose(scores.khat, pareto_khat(log_w.cpu()), rtol=1e-9)
    assert np.isnan(score(vae, small.test[:2], 20).khat).all()  # too few to tell


def test_larger_k_continues_the_draws_of_a_smaller_one(vae: VAE, small: Dataset) -> None:
    x = small.test[:130]
    by_samples = {k: score(vae, x, k) for k in (1, 10, 100, 200)}
    for k in (1, 10, 100):
        for larger in (10, 100, 200):
            if larger > k:
                np.testing.assert_allclose(
                    by_samples[larger].loglik[k], by_samples[k].loglik[k], rtol=1e-12
                )
    assert by_samples[200].loglik.keys() == {1, 10, 100, 200}


def test_scores_do_not_depend_on_the_images_beside(vae: VAE, small: Dataset) -> None:
    few, many = (score(vae, small.test[:n], 20) for n in (130, 360))
    for name in ("elbo", "rate", "distortion", "ess"):
        found, expected = getattr(few, name), getattr(many, name)[:130]
        assert found.shape == (130,)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert len(np.unique(score(vae, small.test[:1].expand(130, -1), 1).elbo)) == 130


def test_bounds_are_ordered(vae: VAE, small: Dataset) -> None:
    """By Jensen's inequality for each image; the rungs in the mean, from below the evidence."""
    scores = score(vae, small.test, 100)
    np.testing.assert_allclose(scores.elbo, -scores.rate - scores.distortion, rtol=1e-12)
    assert (scores.elbo < scores.loglik[100]).all()
    rungs = [scores.loglik[k].mean() for k in (1, 10, 100)]
    assert (np.diff([*rungs, quadrature(vae, small.test).mean()]) > 0).all()
    assert (scores.ess >= 1 - 1e-9).all()
    assert (scores.ess <= 100 + 1e-9).all()
    assert scores.ess.std() > 0
    one = score(vae, small.test[:10], 1)
    np.testing.assert_allclose(one.ess, 1, rtol=1e-12)
    np.testing.assert_allclose(one.elbo, one.loglik[1], rtol=1e-12)


def test_seed_decides_the_draws_and_priors_share_them(
    vae: VAE, small: Dataset, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    noises: list[Tensor] = []
    real = module.log_weights
    monkeypatch.setattr(
        module, "log_weights", lambda *a, **k: noises.append(a[2]) or real(*a, **k)
    )
    x, other = small.test[:3], fitted("gauss", small, device)
    evaluation = Evaluation(estimator="encoder", samples=5, precision="float64")
    for model, seed in [(vae, 0), (other, 0), (vae, 1)]:
        torch.manual_seed(len(noises))
        evaluate(model, x, evaluation, seed=seed, device=device)
    assert torch.equal(noises[0], noises[1])
    assert not torch.equal(noises[0], noises[2])


def test_bf16_runs_and_is_close(small: Dataset, device: torch.device) -> None:
    vae = fitted("nsf[hidden=8]", small, device, precision="float32")
    x = small.test[:50]
    exact, half = (score(vae, x, 50, precision) for precision in ("float32", "bf16"))
    error = abs(half.loglik[50] - exact.loglik[50])
    assert 0 < error.max() < 1
    assert abs((half.loglik[50] - exact.loglik[50]).mean()) < 0.1
    again = score(vae, x, 50, "float32")
    assert np.array_equal(again.elbo, exact.elbo)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_scoring_leaves_the_model_trainable(
    small: Dataset, precision: str, device: torch.device
) -> None:
    vae = fitted("gauss", small, device, precision="float32")
    score(vae, small.test[:5], 5, precision)
    noise = torch.zeros(5, 2, dtype=next(vae.parameters()).dtype, device=device)
    vae.elbo(small.train[:5].to(device), noise).elbo.mean().backward()
    assert all(p.grad.isfinite().all() for p in vae.parameters())


def test_progress_is_reported(vae: VAE, small: Dataset, device: torch.device) -> None:
    calls: list[tuple[int, int]] = []
    evaluate(
        vae,
        small.test[:250],
        Evaluation(estimator="encoder", samples=1),
        seed=0,
        device=device,
        on_chunk=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(100, 250), (200, 250), (250, 250)]


def test_no_images_is_an_input_error(vae: VAE, small: Dataset) -> None:
    with pytest.raises(InputError):
        score(vae, small.valid[:0], 5)


def test_grey_pixels_are_refused() -> None:
    """A Bernoulli log-likelihood takes them without a word."""
    trial = Trial(prior="gauss", latent=2, net="mlp[hidden=4]")
    grey = torch.full((3, 64), 2, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"uint8 in 0..1; got torch.uint8 up to 2"):
        evaluate(build(trial, (8, 8)), grey, Evaluation(estimator="encoder", samples=2), seed=0)
    with pytest.raises(InputError, match="got torch.float32"):
        evaluate(build(trial, (8, 8)), grey / 2, Evaluation(samples=2), seed=0)


def test_where_memory_runs_out_fewer_samples_are_taken_at_once(
    vae: VAE, small: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, taken = score(vae, small.test[:120], 60), []
    weigh = module.log_weights

    def starved(vae: VAE, x: Tensor, noise: Tensor, **known: Any) -> Terms:  # noqa: ANN401
        taken.append(noise.shape[1])
        if len(x) * noise.shape[1] > 1500:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")
        return weigh(vae, x, noise, **known)

    monkeypatch.setattr(module, "log_weights", starved)
    with pytest.warns(RuntimeWarning, match="continues with 1500 latents at a time"):
        scores = score(vae, small.test[:120], 60)
    assert max(taken[2:]) == 15  # it is not tried again with more
    for k in whole.loglik:
        np.testing.assert_allclose(scores.loglik[k], whole.loglik[k], rtol=1e-12)
    np.testing.assert_allclose(scores.elbo, whole.elbo, rtol=1e-12)

    def broke(*_: object, **__: object) -> Terms:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(module, "log_weights", broke)
    with pytest.warns(RuntimeWarning), pytest.raises(torch.OutOfMemoryError):
        score(vae, small.test[:120], 60)


@pytest.mark.parametrize("latents", [1, 5, passes.TILE_IMAGES])
def test_where_not_even_one_unit_fits_the_error_is_passed_on(vae: VAE, latents: int) -> None:
    def full(_: slice) -> None:
        raise MemoryError

    with pytest.warns(RuntimeWarning, match="out of memory"), pytest.raises(MemoryError):
        passes.Passes(vae, torch.device("cpu")).over(full, 4000, latents=latents)
