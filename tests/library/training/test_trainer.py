"""The trainer: against a loop written out, models trained alone, and their own histories."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small_priors import narrow
from torch import Tensor

from flowvae.data import Dataset, load_data
from flowvae.errors import InputError
from flowvae.evaluation.importance_weighting import evaluate
from flowvae.models.saved_model import load, save
from flowvae.models.vae import VAE, build
from flowvae.priors import PRIORS
from flowvae.training import optimiser_steps
from flowvae.training import trainer as module
from flowvae.training.batches import Drawn
from flowvae.training.stack import stackable
from flowvae.training.trainer import Fitted, fit, fit_prior
from flowvae.trial import Evaluation, Trial


def make(prior: str = "maf[hidden=8]", **changes: Any) -> Trial:  # noqa: ANN401
    """Describe a small trial in float64; a batch of 64 does not divide 200 images."""
    small = {"latent": 3, "net": "mlp[hidden=24]", "epochs": 2, "batch": 64}
    return Trial(prior=prior, **{**small, "precision": "float64", **changes})


def assert_equal(a: Fitted, b: Fitted, **tolerance: float) -> None:
    """Assert that two outcomes agree, to the bit if no tolerance is given."""
    tolerance = tolerance or {"rtol": 0, "atol": 0}
    assert (a.trial, a.status, a.reason, a.epoch) == (b.trial, b.status, b.reason, b.epoch)
    assert a.history.keys() == b.history.keys()
    for name in a.history:
        np.testing.assert_allclose(a.history[name], b.history[name], **tolerance)
    if a.status == "complete":
        torch.testing.assert_close(dict(a.vae.state_dict()), dict(b.vae.state_dict()), **tolerance)


@contextmanager
def meeting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Record the images and the noise of every training step of a model that trains alone.

    Every step is eager: a CUDA graph's replay calls no function that could be spied on.
    """
    met: list[tuple[Tensor, Tensor]] = []
    elbo = VAE.elbo

    def spy(vae: VAE, x: Tensor, noise: Tensor, *own: Tensor) -> object:
        if torch.is_grad_enabled():
            met.append((x.clone(), noise.clone()))
        return elbo(vae, x, noise, *own)

    with monkeypatch.context() as patch:
        patch.setattr(VAE, "elbo", spy)
        patch.setattr(optimiser_steps, "EAGER_STEPS", math.inf)
        yield met


STACKS = [
    {},
    {"clip": 1.0},
    {"select": "best"},
    {"dataset": "digits[binarise=stochastic]"},
    {"prior": "maf[hidden=8,randperm=true]"},
    {"prior": "nsf[hidden=8,affine=true]"},
    {"schedule": "cosine", "prior_lr": 5e-3, "warmup": 2},
    {"patience": 1, "epochs": 4, "lr": 0.05},
]


def assert_stack_is_alone(trial: Trial, data: Dataset, device: torch.device) -> None:
    trials = [trial.but(seed=seed) for seed in (0, 1, 5)]
    together = fit(trials, data, device=device)
    alone = [fit([t], data, device=device)[0] for t in trials]
    for a, b in zip(together, alone, strict=True):
        assert a.timing.stack == 3
        assert_equal(a, b, rtol=1e-7, atol=1e-9)
    key = "decoder.0.weight"
    assert not torch.equal(together[0].vae.state_dict()[key], together[1].vae.state_dict()[key])


def test_stack_of_any_prior_equals_its_members_alone(
    prior: str, small: Dataset, device: torch.device
) -> None:
    if stackable(make(prior)):
        assert_stack_is_alone(make(prior), small, device)
    else:
        with pytest.raises(InputError, match="cannot be stacked: fit its seeds one by one"):
            fit([make(prior), make(prior, seed=1)], small, device=device)


@pytest.mark.parametrize("changes", STACKS[1:], ids=str)
def test_stack_equals_its_members_alone(
    changes: dict[str, Any], small: Dataset, device: torch.device
) -> None:
    data = small
    if "dataset" in changes:
        grey = load_data(changes["dataset"])
        data = replace(grey, train=grey.train[:200], valid=grey.valid[:60])
    assert_stack_is_alone(make(**changes), data, device)


def test_stack_takes_only_seeds(small: Dataset, device: torch.device) -> None:
    with pytest.raises(InputError, match="differ in nothing but the seed"):
        fit([make(), make(seed=1, lr=0.1)], small, device=device)


def bases(trials: list[Trial], data: Dataset, device: torch.device) -> list[VAE]:
    return [
        fitted.vae
        for fitted in fit([trial.base for trial in trials if trial.base], data, device=device)
    ]


@pytest.mark.parametrize("prior", [p for p in PRIORS if p != "gauss"])
def test_prior_is_fitted_to_a_frozen_encoder_and_decoder(
    prior: str, small: Dataset, device: torch.device
) -> None:
    """The bound rises by what the prior gains, to the bit of everything else."""
    trial = make(narrow(prior), epochs=8, lr=3e-3, training="post-hoc")
    (base,) = bases([trial], small, device)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    (fitted,) = fit_prior([trial], [base], small, device=device)
    after = fitted.vae.state_dict()
    for name, weight in before.items():
        assert torch.equal(base.state_dict()[name], weight)
        if name.startswith(("encoder", "decoder")):
            assert torch.equal(after[name], weight)
    fresh = build(trial, small.shape, small.train).prior.to(device)
    assert all(
        not torch.equal(after[f"prior.{name}"], w)
        for name, w in fresh.named_parameters()
        if w.ndim > 1
    )
    scores = [
        evaluate(v, small.test, Evaluation(samples=20, precision="float64"), seed=0, device=device)
        for v in (base, fitted.vae)
    ]
    np.testing.assert_array_equal(scores[0].distortion, scores[1].distortion)
    assert scores[1].rate.mean() < scores[0].rate.mean() - 0.05
    assert all(p.requires_grad for p in fitted.vae.parameters())


def test_prior_alone_is_fitted_by_maximum_likelihood(
    small: Dataset, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """The loop written out: Adam on the mean of log p(z), with the joint training's draws."""
    trial = make(training="post-hoc")
    (base,) = bases([trial], small, device)
    with meeting(monkeypatch) as met:
        (fitted,) = fit_prior([trial], [base], small, device=device)
    with meeting(monkeypatch) as joint:
        fit([trial.but(training="joint")], small, device=device)
    assert all(
        torch.equal(a, b)
        for m, j in zip(met, joint, strict=True)
        for a, b in zip(m, j, strict=True)
    )
    prior = build(trial, small.shape).prior.to(device)
    adam = torch.optim.Adam(prior.parameters(), lr=trial.lr)
    for x, noise in met:
        with torch.no_grad():
            z = base.encode(x).sample(noise)
        loss = -prior().log_prob(z).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    torch.testing.assert_close(
        dict(fitted.vae.prior.state_dict()), dict(prior.state_dict()), rtol=1e-7, atol=1e-9
    )


def test_stack_of_priors_equals_its_members_alone(small: Dataset, device: torch.device) -> None:
    trials = [make(training="post-hoc", seed=seed) for seed in (0, 1)]
    models = bases(trials, small, device)
    together = fit_prior(trials, models, small, device=device)
    for s, trial in enumerate(trials):
        assert_equal(
            together[s],
            fit_prior([trial], [models[s]], small, device=device)[0],
            rtol=1e-7,
            atol=1e-9,
        )


def test_prior_needs_its_own_kind_of_trial_and_base(small: Dataset, device: torch.device) -> None:
    trial = make(training="post-hoc")
    with pytest.raises(InputError, match="has training post-hoc: it is for fit_prior"):
        fit([trial], small, device=device)
    (base,) = bases([trial], small, device)
    with pytest.raises(InputError, match="has training joint: it is for fit"):
        fit_prior([make()], [base], small, device=device)
    with pytest.raises(InputError, match="base does not fit maf.hidden=8.-post-hoc-z4-s0"):
        fit_prior([trial.but(latent=4)], [base], small, device=device)


def test_tf32_is_refused_on_a_cpu(small: Dataset) -> None:
    with pytest.raises(InputError, match="tf32 needs a CUDA device: on 'cpu' take float32"):
        fit([make(precision="tf32")], small)


def test_data_must_be_the_trials(small: Dataset) -> None:
    with pytest.raises(InputError, match="got the data set digits"):
        fit([make(dataset="digits[valid=0]")], small)


@pytest.mark.parametrize("precision", ["float32", "bf16", "float64"])
def test_same_trial_gives_the_same_bits(
    prior: str, precision: str, small: Dataset, device: torch.device
) -> None:
    outcomes, scores = [], []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        (fitted,) = fit([make(prior, precision=precision, epochs=1)], small, device=device)
        outcomes.append(fitted)
        evaluation = Evaluation(samples=20, precision=precision)
        scores.append(evaluate(fitted.vae, small.test[:20], evaluation, seed=0, device=device))
    a, b = (replace(o, timing=outcomes[0].timing) for o in outcomes)
    assert_equal(a, b)
    assert np.array_equal(scores[0].loglik[20], scores[1].loglik[20])


def test_same_stack_gives_the_same_bits(small: Dataset, device: torch.device) -> None:
    trials = [make(seed=seed, precision="float32") for seed in (0, 1)]
    for a, b in zip(
        fit(trials, small, device=device), fit(trials, small, device=device), strict=True
    ):
        assert_equal(a, b)


def test_priors_meet_the_same_images_and_noise(
    prior: str, small: Dataset, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    with meeting(monkeypatch) as expected:
        fit([make("gauss")], small, device=device)
    with meeting(monkeypatch) as found:
        fit([make(prior)], small, device=device)
    assert len(found) == len(expected) == 8
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_epochs_pass_over_every_image_in_a_new_order(
    small: Dataset, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    with meeting(monkeypatch) as met:
        fit([make("gauss")], small, device=device)
    with meeting(monkeypatch) as other:
        fit([make("gauss", seed=1)], small, device=device)
    assert [len(x) for x, _ in met] == 2 * [64, 64, 64, 8]
    first, second = (torch.cat([x for x, _ in met[i : i + 4]]) for i in (0, 4))
    for epoch in (first, second):
        assert sorted(epoch.tolist()) == sorted(small.train.tolist())
    assert not torch.equal(first, second)
    assert not torch.equal(met[0][0], other[0][0])
    noise = torch.cat([n for _, n in met])
    assert len(noise.unique()) == noise.numel()
    assert abs(noise.mean()) < 5 / noise.numel() ** 0.5
    assert noise.var().item() == pytest.approx(1, abs=5 * (2 / noise.numel()) ** 0.5)


@pytest.mark.parametrize("clip", [None, 3.0])
def test_fit_is_adam_on_the_mean_elbo(
    clip: float | None, small: Dataset, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """Against the loop written out, with Adam's update by hand (Kingma and Ba, 2015)."""
    trial = make(lr=2e-3, clip=clip)
    with meeting(monkeypatch) as met:
        (fitted,) = fit([trial], small, device=device)
    vae = build(trial, small.shape, small.train).to(device)
    parameters = list(vae.parameters())
    m = [torch.zeros_like(p) for p in parameters]
    v = [torch.zeros_like(p) for p in parameters]
    norms, elbos = [], []
    for t, (x, noise) in enumerate(met, start=1):
        elbo = vae.elbo(x, noise).elbo
        elbos.append(elbo.detach())
        gradients = torch.autograd.grad(-elbo.mean(), parameters)
        norms.append(sum(g.square().sum() for g in gradients).sqrt().item())
        scale = min(1.0, clip / norms[-1]) if clip else 1.0
        for p, g, a, b in zip(parameters, gradients, m, v, strict=True):
            a.mul_(0.9).add_(0.1 * scale * g)
            b.mul_(0.999).add_(0.001 * (scale * g) ** 2)
            step = (a / (1 - 0.9**t)) / ((b / (1 - 0.999**t)).sqrt() + 1e-8)
            p.data -= 2e-3 * step
    assert clip is None or max(norms) > 1.1 * clip
    for (name, found), p in zip(fitted.vae.named_parameters(), parameters, strict=True):
        torch.testing.assert_close(found, p, rtol=1e-5, atol=1e-7, msg=name)
    by_epoch = torch.cat(elbos).view(2, 200).mean(dim=1).tolist()
    assert fitted.history["train/elbo"] == pytest.approx(by_epoch, rel=1e-9)


def test_clip_bounds_the_gradient_of_each_member(
    small: Dataset, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """A member with a gradient of its own size keeps it whole beside one that is cut."""
    norms: list[list[float]] = []
    step = torch.optim.Adam.step

    def spy(adam: torch.optim.Adam, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        gradients = [p.grad for group in adam.param_groups for p in group["params"]]
        squares = sum(g.flatten(1).square().sum(dim=1) for g in gradients)
        norms.append(squares.sqrt().tolist())
        return step(adam, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    trials = [make(seed=seed, epochs=1) for seed in range(3)]
    fit(trials, small, device=device)
    free, norms[:] = np.array(norms), []
    bound = float(np.median(free[0]))
    fit([t.but(clip=bound) for t in trials], small, device=device)
    cut = np.array(norms)
    assert cut.shape == (4, 3)
    assert (cut <= bound * (1 + 1e-9)).all()
    np.testing.assert_allclose(cut[0], np.minimum(free[0], bound), rtol=1e-5)
    assert free[0].min() < 0.999 * bound < bound < free[0].max()


def test_training_raises_the_bound(prior: str, small: Dataset, device: torch.device) -> None:
    (fitted,) = fit([make(prior, epochs=8, lr=5e-3)], small, device=device)
    for part in ("train", "valid"):
        elbo = fitted.history[f"{part}/elbo"]
        assert elbo[-1] > elbo[0] + 5


def test_history_holds_every_term_of_every_epoch(small: Dataset, device: torch.device) -> None:
    calls: list[tuple[int, list[dict[str, float]]]] = []
    trials = [make(seed=seed, epochs=3) for seed in (0, 1)]
    fitted = fit(
        trials, small, device=device, on_epoch=lambda epoch, means: calls.append((epoch, means))
    )
    terms = [
        f"{part}/{term}" for part in ("train", "valid") for term in ("elbo", "rate", "distortion")
    ]
    assert [epoch for epoch, _ in calls] == [1, 2, 3]
    for s, outcome in enumerate(fitted):
        assert sorted(outcome.history) == sorted(terms)
        for name, values in outcome.history.items():
            assert values == [means[s][name] for _, means in calls]
        elbo, rate, distortion = (
            np.array(outcome.history[f"valid/{t}"]) for t in ("elbo", "rate", "distortion")
        )
        np.testing.assert_allclose(elbo, -rate - distortion, rtol=1e-12)
        assert outcome.epoch == 3


def test_validation_means_are_over_images_not_over_chunks(
    small: Dataset, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    whole = fit([make()], small, device=device)[0].history
    monkeypatch.setattr(module, "VALID_CHUNK", 25)  # 60 = 25 + 25 + 10
    chunked = fit([make()], small, device=device)[0].history
    assert chunked["valid/elbo"] == pytest.approx(whole["valid/elbo"], rel=1e-12)


def test_without_validation_images_there_are_no_such_means(small: Dataset) -> None:
    trial = make(dataset="digits[valid=0]")
    (fitted,) = fit([trial], replace(small, valid=small.valid[:0], spec=trial.dataset))
    assert sorted(fitted.history) == ["train/distortion", "train/elbo", "train/rate"]


def test_best_epoch_is_the_one_that_is_kept(small: Dataset, device: torch.device) -> None:
    """Training for just as many epochs gives the same weights: the kept ones are that epoch's."""
    data = replace(small, train=small.train[:40])  # few images, a high rate: it overfits
    trial = make("gauss", epochs=40, lr=2e-2, batch=20)
    (best,) = fit([trial.but(select="best")], data, device=device)
    elbo = best.history["valid/elbo"]
    assert len(elbo) == 40
    assert best.epoch == 1 + int(np.argmax(elbo))
    assert 1 < best.epoch < 40
    (short,) = fit([trial.but(epochs=best.epoch)], data, device=device)
    assert short.history["valid/elbo"][-1] == max(elbo)
    for name, p in short.vae.state_dict().items():
        assert torch.equal(p, best.vae.state_dict()[name]), name


def test_diverged_member_ends_and_the_other_goes_on(
    small: Dataset, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """The noise of seed 1 turns to NaN in the second epoch."""
    draw, made = module.Feed.epoch, module.Feed.__init__

    def remember(feed: module.Feed, trial: Trial, *rest: Any) -> None:  # noqa: ANN401
        made(feed, trial, *rest)
        feed.seed = trial.seed

    def spoil(feed: module.Feed, number: int) -> Drawn:
        drawn = draw(feed, number)
        if (feed.seed, number) != (1, 2):
            return drawn
        return drawn._replace(epoch=drawn.epoch._replace(noise=drawn.epoch.noise * np.nan))

    trials = [make(seed=seed, epochs=4, clip=5.0) for seed in (0, 1, 2)]
    alone = [fit([t], small, device=device)[0] for t in trials]
    monkeypatch.setattr(module.Feed, "__init__", remember)
    monkeypatch.setattr(module.Feed, "epoch", spoil)
    calls: list[int] = []
    together = fit(trials, small, device=device, on_epoch=lambda epoch, _: calls.append(epoch))
    assert [f.status for f in together] == ["complete", "diverged", "complete"]
    for s in (0, 2):
        assert_equal(together[s], alone[s], rtol=1e-7, atol=1e-9)
    lost = together[1]
    assert lost.reason == "epoch 2: train/elbo is nan"
    assert lost.epoch == 1
    assert {len(values) for values in lost.history.values()} == {2}
    assert lost.history["train/elbo"][0] == pytest.approx(alone[1].history["train/elbo"][0])
    assert calls == [1, 2, 3, 4]


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_huge_learning_rate_diverges_and_stops(
    seeds: list[int], small: Dataset, device: torch.device
) -> None:
    trials = [make(seed=seed, epochs=6, lr=1e30, precision="float32") for seed in seeds]
    calls: list[int] = []
    fitted = fit(trials, small, device=device, on_epoch=lambda epoch, _: calls.append(epoch))
    for outcome in fitted:
        assert outcome.status == "diverged"
        assert outcome.reason.startswith("epoch 1: train/")
        assert outcome.reason.endswith(("is nan", "is inf", "is -inf"))
    assert calls == [1]


def test_stochastic_binarisation_trains(device: torch.device) -> None:
    data = load_data("digits[binarise=stochastic]")
    data = replace(data, train=data.train[:200])
    (fitted,) = fit(
        [make(dataset="digits[binarise=stochastic]", epochs=6, lr=5e-3)], data, device=device
    )
    assert fitted.status == "complete"
    assert fitted.history["valid/elbo"][-1] > fitted.history["valid/elbo"][0] + 3


def test_timing_counts_all_members(small: Dataset, device: torch.device) -> None:
    (fitted, _) = fit([make(seed=seed, epochs=3) for seed in (0, 1)], small, device=device)
    timing = fitted.timing
    assert timing.stack == 2
    assert timing.images_per_second == pytest.approx(2 * 200 / timing.epoch_seconds)
    assert timing.train_seconds >= timing.epoch_seconds > 0


def test_nothing_draws_from_the_global_streams(
    small: Dataset, tmp_path: Path, prior: str, device: torch.device
) -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    trial = make(prior, epochs=1, batch=200)
    load_data("digits[binarise=stochastic]")
    build(trial, small.shape, small.train)
    seeds = (0, 1) if stackable(trial) else (0,)
    fitted, *_ = fit([trial.but(seed=seed) for seed in seeds], small, device=device)
    evaluate(fitted.vae, small.test[:5], Evaluation(samples=3), seed=0, device=device)
    fitted.vae.sample(2)
    load(save(fitted.vae, trial, tmp_path))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
    assert before[2] == random.getstate()
