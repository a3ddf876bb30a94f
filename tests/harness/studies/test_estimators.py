"""The study of estimators of log p(x)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from support.oracles import fitted

from bench.studies import estimators
from flowvae import Trial, save
from flowvae.data import Dataset
from flowvae.trial import Audit, Evaluation


@pytest.fixture
def models(tmp_path: Path, digits: Dataset) -> list[str]:
    """Folders of models with D = 2 and 3."""
    folders = []
    for latent in (2, 3):
        vae = fitted("gauss", digits, torch.device("cpu"), latent=latent)
        trial = Trial(prior="gauss", latent=latent, net="mlp[hidden=32]", dataset="digits")
        folders.append(str(save(vae.float(), trial, tmp_path / f"d{latent}")))
    return folders


def test_each_estimator_is_held_against_what_is_known(
    models: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = tuple(Evaluation(estimator=e.estimator, samples=60) for e in estimators.EVALUATIONS[1:])
    monkeypatch.setattr(estimators, "EVALUATIONS", few)
    small = {"chains": 4, "temperatures": 20, "leapfrogs": 2, "samples": 10}
    monkeypatch.setattr(estimators, "Audit", lambda images: Audit(images=images, **small))
    out = tmp_path / "out"
    flags = ["--images", "30", "--annealed", "10", "--device", "cpu", "--out", str(out)]
    assert estimators.main([*models, *flags]) == 0
    printed = capsys.readouterr().out
    assert "gauss, D = 2, importance sampling, fitted proposal, K = 60: nll" in printed
    table = pd.read_csv(out / "estimators.csv")
    assert table["latent"].to_list() == [2, 2, 3, 3]
    assert table["above_exact"].notna().to_list() == [True, True, False, False]
    assert table["above_annealed"].notna().to_list() == [False, False, True, True]
    encoder, own = table["above_exact"][:2]
    assert abs(encoder) < 0.1
    assert abs(own) < 0.02
    assert np.isfinite(table["nll"]).all()


def test_more_annealed_images_than_scored_are_refused(
    models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert estimators.main([*models, "--images", "5", "--annealed", "6"]) == 2
    assert "bad --annealed '6': expected at most --images, 5" in capsys.readouterr().err
