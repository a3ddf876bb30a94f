"""Warm-up, schedule, a rate for the prior and patience: against the loop written out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from flowvae.data import Dataset
from flowvae.errors import InputError
from flowvae.models.vae import build
from flowvae.numerics.streams import generator
from flowvae.training import trainer as module
from flowvae.training.trainer import Fitted, fit
from flowvae.trial import Trial, field_info


def make(**changes: Any) -> Trial:  # noqa: ANN401
    small = {"latent": 2, "net": "mlp[hidden=8]", "epochs": 3, "batch": 64, "lr": 3e-3}
    return Trial(prior="maf[hidden=8]", precision="float64", **{**small, **changes})


def written_out(trial: Trial, data: Dataset) -> dict[str, torch.Tensor]:
    """Train with torch's own Adam, a Python number for each rate and weight."""
    vae = build(trial, data.shape)
    own = list(vae.prior.parameters())
    bodies = [*vae.encoder.parameters(), *vae.decoder.parameters()]
    adam = torch.optim.Adam([{"params": bodies}, {"params": own}], foreach=False)
    order, noise = (generator(trial.seed, p) for p in ("order", "posterior noise"))
    done, total = 0, trial.epochs * len(data.train)
    for epoch in range(1, trial.epochs + 1):
        at = torch.randperm(len(data.train), generator=order)
        eps = torch.randn(len(data.train), trial.latent, generator=noise, dtype=torch.float64)
        beta = min(1, epoch / trial.warmup) if trial.warmup else 1
        for first in range(0, len(at), trial.batch):
            batch = slice(first, first + trial.batch)
            terms = vae.elbo(data.train[at[batch]], eps[batch])
            adam.zero_grad()
            (terms.distortion + beta * terms.rate).mean().backward()
            falls = (1 + math.cos(math.pi * done / total)) / 2
            factor = falls if trial.schedule == "cosine" else 1
            for group, rate in zip(adam.param_groups, (trial.lr, trial.prior_lr), strict=True):
                group["lr"] = factor * (rate or trial.lr)
            adam.step()
            done += len(at[batch])
    return dict(vae.state_dict())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedule": "cosine"},
        {"prior_lr": 3e-2},
        {"warmup": 2},
        {"warmup": 3, "schedule": "cosine", "prior_lr": 1e-4},
    ],
    ids=str,
)
def test_fit_is_the_recipe_written_out(changes: dict[str, Any], small: Dataset) -> None:
    trial = make(**changes)
    found = dict(fit([trial], small)[0].vae.state_dict())
    torch.testing.assert_close(found, written_out(trial, small), rtol=1e-5, atol=1e-7)
    if changes:
        plain = written_out(make(), small)
        assert any((found[k] - plain[k]).abs().max() > 1e-4 for k in found)


OTHER = {
    "epochs": 9,
    "batch": 100,
    "lr": 0.2,
    "select": "best",
    "clip": 1e-3,
    "prior_lr": 1e-4,
    "schedule": "cosine",
    "warmup": 5,
    "patience": 1,
}
"""Another value for every field of the recipe, at which the validation ELBO falls at times."""


@pytest.mark.parametrize(
    "field", [name for name, info in field_info(Trial).items() if info.role == "recipe"]
)
def test_every_field_of_the_recipe_changes_the_model(field: str, small: Dataset) -> None:
    trial = make(epochs=6, lr=0.3)
    pair = (trial, trial.but(**{field: OTHER[field]}))
    weights = [next(fit([one], small)[0].vae.decoder.parameters()) for one in pair]
    assert not torch.equal(*weights)


def test_reported_terms_are_the_bounds_during_the_warm_up(small: Dataset) -> None:
    (fitted,) = fit([make(warmup=3)], small)
    history = fitted.history
    for part in ("train", "valid"):
        for elbo, rate, distortion in zip(
            *(history[f"{part}/{t}"] for t in ("elbo", "rate", "distortion")), strict=True
        ):
            assert elbo == pytest.approx(-rate - distortion)


def told(monkeypatch: pytest.MonkeyPatch, *elbos: list[float]) -> None:
    """Let validation tell these bounds, epoch by epoch, each for all members of the stack."""
    left = iter(elbos)

    def validate(*_: object) -> dict[str, list[float]]:
        now = next(left)
        return {"valid/elbo": now, "valid/rate": now, "valid/distortion": now}

    monkeypatch.setattr(module, "_validate", validate)


@pytest.mark.parametrize("select", ["best", "last"])
@pytest.mark.parametrize(
    ("changes", "epochs", "best"),
    [
        ({"patience": 2}, 4, 2),  # 2 is best; 3 and 4 are not better
        ({"patience": 3}, 6, 6),  # 5 is better again
        ({"patience": 2, "warmup": 4}, 6, 6),  # waits from the warm-up's end
        ({}, 6, 6),
    ],
)
def test_patience_ends_the_training(
    changes: dict[str, Any],
    epochs: int,
    best: int,
    select: str,
    small: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told(monkeypatch, *([e] for e in (-9.0, -5.0, -6.0, -6.0, -4.0, -3.0)))
    (fitted,) = fit([make(epochs=6, select=select, **changes)], small)
    assert len(fitted.history["valid/elbo"]) == epochs
    assert fitted.epoch == (best if select == "best" else epochs)
    assert fitted.status == "complete"
    monkeypatch.undo()
    (shorter,) = fit([make(epochs=fitted.epoch)], small) if "warmup" not in changes else (None,)
    if shorter:
        weights = dict(shorter.vae.state_dict())
        torch.testing.assert_close(dict(fitted.vae.state_dict()), weights, rtol=1e-12, atol=1e-12)


def test_a_member_that_ended_keeps_its_weights_in_a_stack(
    small: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, [-9.0, -9.0], [-8.0, -9.5], [-7.0, -9.6], [-6.0, -9.7])
    met: list[list[bool]] = []
    trials = [make(epochs=4, patience=1, seed=seed) for seed in (0, 1)]
    long, short = fit(
        trials, small, on_epoch=lambda _, means: met.append([m is not None for m in means])
    )
    monkeypatch.undo()
    assert (long.epoch, short.epoch) == (4, 2)
    assert met == [[True, True], [True, True], [True, False], [True, False]]

    def same(a: Fitted, b: Fitted) -> None:
        state = dict(b.vae.state_dict())
        torch.testing.assert_close(dict(a.vae.state_dict()), state, rtol=1e-8, atol=1e-10)

    same(short, fit([make(epochs=2, seed=1)], small)[0])
    same(long, fit([make(epochs=4, seed=0)], small)[0])


@pytest.mark.parametrize("changes", [{"patience": 3}, {"select": "best"}], ids=str)
def test_validation_images_are_needed(changes: dict[str, Any], small: Dataset) -> None:
    """Also of a set whose options do not tell whether it has some."""
    with pytest.raises(InputError, match="needs validation images"):
        make(dataset="digits[valid=0]", **changes)
    with pytest.raises(InputError, match="patience need validation images, and digits has none"):
        fit([make(**changes)], replace(small, valid=small.valid[:0]))


def test_a_warm_up_must_end() -> None:
    with pytest.raises(InputError, match="a warm-up of 9 epochs does not end in 3"):
        make(warmup=9)


def test_earlier_trials_keep_their_ids() -> None:
    plain = make()
    assert plain.id == make(schedule="constant", warmup=0, patience=None, prior_lr=None).id
    others = [{"schedule": "cosine"}, {"warmup": 1}, {"patience": 9}, {"prior_lr": 3e-3}]
    assert len({plain.id, *(make(**other).id for other in others)}) == 5
