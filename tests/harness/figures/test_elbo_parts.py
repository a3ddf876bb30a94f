"""Figures of what the numbers are made of: what is drawn is what is in the frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from bench.figures import differences, elbo_parts
from bench.figures.style import NoDataError
from bench.statistics.analysis import Analysis

EFFECT = {"gauss": 0.0, "maf": -4.0, "nsf": -5.0, "maf post-hoc": -1.0, "nsf post-hoc": -1.5}


def make(
    arms: tuple[str, ...] = tuple(EFFECT), seeds: int = 3, latents: tuple[int, ...] = (2, 16)
) -> tuple[pd.DataFrame, dict[str, NDArray[Any]]]:
    """Return trials with every number that the figures take."""
    rng = np.random.default_rng(0)
    base, rows, loglik = 10 * rng.normal(size=50), [], {}
    for latent in latents:
        for prior in arms:
            for seed in range(seeds):
                run = f"{prior}-{latent}-{seed}"
                nll = 90 + EFFECT[prior] + base + rng.normal(size=50)
                loglik[run] = -nll
                mean = nll.mean()
                rows.append(
                    {"run_id": run, "status": "complete", "reason": "", "prior": prior}
                    | {"latent": latent, "seed": seed, "net": "mlp", "dataset": "mnist"}
                    | {
                        "binarise": "threshold",
                        "data_hash": "d",
                        "nll_estimator": "encoder",
                        "nll_samples": 100,
                        "nll_precision": "float32",
                    }
                    | {"training": "post-hoc" if "post-hoc" in prior else "joint"}
                    | {"test/nll": mean, "test/nll_k1": mean + 3, "test/nll_k10": mean + 1}
                    | {"test/nll_k100": mean, "test/khat_high": rng.uniform(0.2, 0.9)}
                    | {"test/distortion": 70.0, "test/index_code": 9.0, "test/marginal_kl": 5.0}
                    | {"test/log_images": 9.2, "test/active_units_relative": float(latent)}
                )
    return pd.DataFrame(rows), loglik


def test_estimate_by_samples_draws_every_rung_and_the_unreliable_share() -> None:
    frame, _ = make()
    figure = elbo_parts.estimate_by_samples(Analysis(frame))
    for latent, above, below in zip((2, 16), figure.axes[:2], figure.axes[2:], strict=True):
        here = frame[frame["latent"] == latent]
        for line, prior in zip(above.lines, EFFECT, strict=True):
            mine = here[here["prior"] == prior]
            assert list(line.get_xdata()) == [1, 10, 100]
            means = mine[["test/nll_k1", "test/nll_k10", "test/nll_k100"]].mean()
            np.testing.assert_allclose(line.get_ydata(), means)
        widths = [bar.get_width() for bar in below.patches]
        expected = here.groupby("prior", sort=False)["test/khat_high"].mean()
        np.testing.assert_allclose(widths, expected)


def test_estimate_by_samples_fills_a_last_row_of_panels() -> None:
    frame, _ = make(("gauss", "maf"), latents=(2, 4, 8, 16, 32))
    figure = elbo_parts.estimate_by_samples(Analysis(frame))
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]
    assert titles == [f"D = {d}" for d in (2, 4, 8, 16, 32)]
    assert len(figure.axes) == 10


def test_where_there_is_one_number_of_samples_the_unreliable_share_is_drawn_alone() -> None:
    frame, _ = make(("gauss", "maf"))
    frame = frame.drop(columns=["test/nll_k1", "test/nll_k10", "test/nll_k100"])
    figure = elbo_parts.estimate_by_samples(Analysis(frame.assign(nll_estimator="fitted")))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["D = 2", "D = 16"]
    assert {ax.get_xlabel() for ax in figure.axes} == {
        "images with k\N{COMBINING CIRCUMFLEX ACCENT} > 0.7"
    }
    for latent, ax in zip((2, 16), figure.axes, strict=True):
        here = frame[frame["latent"] == latent].groupby("prior", sort=False)
        widths = [bar.get_width() for bar in ax.patches]
        np.testing.assert_allclose(widths, here["test/khat_high"].mean())
    assert "every K" not in figure.get_supxlabel()


def test_elbo_surgery_stacks_the_parts_of_minus_the_elbo() -> None:
    frame, _ = make()
    figure = elbo_parts.elbo_surgery(Analysis(frame))
    for ax in figure.axes:
        bars = {
            name: [b for b in ax.patches if b.get_gid() == name] for name in elbo_parts.ELBO_PARTS
        }
        ends = [bar.get_x() + bar.get_width() for bar in bars["marginal_kl"]]
        np.testing.assert_allclose(ends, 70 + 9 + 5)
        assert len(ends) == len(EFFECT)
        np.testing.assert_allclose([b.get_width() for b in bars["index_code"]], 9)
    assert "log N = 9.2" in figure.get_supxlabel()


def test_joint_post_hoc_draws_both_stages() -> None:
    frame, loglik = make()
    figure = differences.joint_post_hoc(Analysis(frame, loglik))
    marks = {line.get_gid(): line for line in figure.axes[1].lines if line.get_gid()}
    assert marks.keys() == EFFECT.keys() - {"gauss"}
    for arm, mark in marks.items():
        assert mark.get_xdata()[0] == pytest.approx(EFFECT[arm], abs=0.5)
        assert (mark.get_markerfacecolor() == "white") == ("post-hoc" in arm)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["maf", "nsf"]


def test_figures_without_their_numbers_are_left_out() -> None:
    frame, loglik = make(("gauss", "maf"))
    with pytest.raises(NoDataError, match="both jointly and post hoc"):
        differences.joint_post_hoc(Analysis(frame, loglik))
    bare = frame.drop(columns=["test/khat_high", "test/marginal_kl"])
    with pytest.raises(NoDataError, match="khat_high"):
        elbo_parts.estimate_by_samples(Analysis(bare))
    with pytest.raises(NoDataError, match="marginal KL"):
        elbo_parts.elbo_surgery(Analysis(bare))
