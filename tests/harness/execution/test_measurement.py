"""What is measured of a fitted model: its scores, and exact values where they can be had."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import flowvae
from bench.execution import measurement
from bench.execution.measurement import measure
from flowvae.checkpoint import Checkpoint
from flowvae.data import Dataset
from flowvae.errors import InputError
from flowvae.trial import Evaluation, Trial

EVALUATION = Evaluation(samples=20, images=30)


def tiny(latent: int) -> Trial:
    return Trial(prior="maf[hidden=8]", latent=latent, net="mlp[hidden=8]")


def test_with_two_features_the_evidence_is_integrated_as_well(
    digits: Dataset, tmp_path: Path
) -> None:
    trial = tiny(2)
    vae = flowvae.build(trial, digits.shape)
    measured = measure(vae, trial, digits, EVALUATION, device="cpu")
    exact = flowvae.evidence(vae, digits.test[:30], tolerance=1e-2)
    measured.save_files(tmp_path)
    folder = tmp_path / "evaluations" / EVALUATION.id
    np.testing.assert_array_equal(np.load(folder / "exact.npy"), exact.log_p)
    np.testing.assert_array_equal(np.load(folder / "exact_error.npy"), exact.error)
    means = json.loads((folder / "means.json").read_text())
    assert means["test/nll_exact"] == measured.metrics["test/nll_exact"] == -exact.log_p.mean()
    assert means["test/nll_exact_error"] == exact.error.max() < 1e-2
    assert means["test/nll"] == pytest.approx(means["test/nll_exact"], abs=0.1)


def test_with_three_features_it_is_not(digits: Dataset) -> None:
    vae = flowvae.build(tiny(3), digits.shape)
    measured = measure(vae, tiny(3), digits, EVALUATION, device="cpu")
    assert not [name for name in (*measured.metrics, *measured.arrays) if "exact" in name]


def test_a_model_that_cannot_be_integrated_is_scored_all_the_same(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InputError("log p(x, z) is not a number at z = (1, 2)")

    monkeypatch.setattr(measurement, "evidence", refuse)
    vae = flowvae.build(tiny(2), digits.shape)
    with pytest.warns(RuntimeWarning, match="maf.*-z2-s0 has no exact NLL: log p"):
        measured = measure(vae, tiny(2), digits, EVALUATION, device="cpu")
    assert np.isfinite(measured.metrics["test/nll"])
    assert "test/nll_exact" not in measured.metrics


def test_what_is_interrupted_in_the_quadrature_is_not_scored_again(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, scored = tiny(2), []
    vae = flowvae.build(trial, digits.shape)

    def run(evaluation: Evaluation = EVALUATION) -> measurement.Measurements:
        checkpoint = Checkpoint(tmp_path / "score.safetensors")
        try:
            return measure(
                vae, trial, digits, evaluation, device="cpu", checkpoint=checkpoint,
                on_chunk=lambda done, _: scored.append(done),
            )  # fmt: skip
        finally:
            assert checkpoint.pending or not scored
            checkpoint.save()  # as a worker does that is interrupted

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measurement, "evidence", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert scored == [30]
    again, whole = run(), measure(vae, trial, digits, EVALUATION, device="cpu")
    assert scored == [30]
    for name in ("test/nll", "test/ess", "test/nll_exact"):
        assert again.metrics[name] == whole.metrics[name]
    run(replace(EVALUATION, samples=21))
    assert scored == [30, 30]
