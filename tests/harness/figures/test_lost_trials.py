"""No figure of a grid loses a trial: what diverged, failed or is missing is drawn or said in each.

A figure that is added to `figures.FIGURES` is held to it without a test of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from support.synthetic_grids import Made, make

from bench.execution import artifacts
from bench.execution.measurement import sampling_speed
from bench.figures import axis_limits, catalogue, latent_maps
from bench.figures import samples as figures_samples
from bench.figures import style as figure_style
from bench.report.findings import failures as failures_findings
from bench.statistics import outliers
from bench.statistics.analysis import Analysis
from flowvae.data import load_data
from flowvae.evaluation.elbo_surgery import dissect
from flowvae.models.vae import build
from flowvae.trial import Trial

ARMS = ("gauss", "maf", "nsf", "gmm", "vamp", "maf post-hoc")
LOST = (("maf", 2, 1), *(("nsf", 2, seed) for seed in range(4)))
# of one seed each: a seed that was lost is not missed
PICTURES = {"latent_maps", "prior_manifold", "sample_sheet"}
DRAW = pytest.mark.parametrize("name", catalogue.FIGURES)


def sizes(name: str) -> tuple[int, ...]:
    """Return the latent sizes that a figure needs at least."""
    return (2, 4) if name == "gain_by_latent" else (2,)


@cache
def full(latents: tuple[int, ...], diverged: tuple[tuple[str, int, int], ...] = ()) -> Made:
    """Return a grid with every number that any figure takes."""
    made = make(ARMS, latents, seeds=4, diverged=diverged, images=20)
    frame, done = made.frame, made.frame["status"] == "complete"
    rng = np.random.default_rng(1)
    numbers: dict[str, Any] = {f"test/nll_k{k}": frame["test/nll"] + 3 / k for k in (1, 10, 1000)}
    numbers |= {"test/khat_high": rng.uniform(0.2, 0.4, len(frame)), "test/log_images": 5.9}
    numbers |= {"test/index_code": 3.0, "test/marginal_kl": frame["test/rate"] - 3.0}
    numbers["model/prior_parameters"] = 1000.0 * (1 + frame["prior"].map(list(ARMS).index))
    for name, values in numbers.items():
        frame[name] = pd.Series(values, frame.index).where(done | (name[:5] == "model"))
    return made


@cache
def some_diverged(latents: tuple[int, ...]) -> Made:
    return full(latents, LOST)


@cache
def some_failed(latents: tuple[int, ...]) -> Made:
    """Return the same grid in which what diverged failed, or is missing."""
    made = deepcopy(some_diverged(latents))
    made.frame.loc[made.frame["prior"] == "nsf", "status"] = "failed"
    made.frame.loc[made.frame["status"] == "diverged", "status"] = "missing"
    return made


@cache
def all_of_one_size_diverged(latents: tuple[int, ...]) -> Made:
    return full(latents, tuple((arm, 4, seed) for arm in ARMS for seed in range(4)))


@cache
def one_absurd(latents: tuple[int, ...]) -> Made:
    """Return the grid of `some_diverged` in which a run of maf has numbers that are far off."""
    made = deepcopy(some_diverged(latents))
    frame = made.frame
    (bad, *_) = frame.index[(frame["prior"] == "maf") & (frame["seed"] == 0)]
    run = frame.loc[bad, "run_id"]
    names = [c for c in frame if str(c).startswith("test/nll")]
    names += ["test/rate", "test/distortion", "test/marginal_kl"]
    frame.loc[bad, names] = 1e12
    made.loglik[run] = np.full_like(made.loglik[run], -1e12)
    mine = made.curves["run_id"] == run
    made.curves.loc[mine, "value"] = -1e12
    return made


Grid = Callable[[tuple[int, ...]], Made]


@cache
def analysis(grid: Grid, latents: tuple[int, ...]) -> Analysis:
    return grid(latents).analysis()


@cache
def drawn(name: str, grid: Grid, latents: tuple[int, ...]) -> Figure:
    """Return a figure as `draw_all` draws it."""
    return catalogue.FIGURES[name].draw(analysis(grid, latents))


def marks(figure: Figure, gid: str) -> list[Any]:
    return [a for a in figure.findobj(include_self=False) if a.get_gid() == gid]


def foot(figure: Figure) -> str:
    return figure.get_supxlabel().replace("\n", " ")


def colour(artist: Any) -> str:  # noqa: ANN401
    return to_hex(
        artist.get_facecolor() if hasattr(artist, "get_facecolor") else artist.get_color()
    )


@DRAW
def test_what_diverged_is_marked_in_every_figure(name: str) -> None:
    figure = drawn(name, some_diverged, sizes(name))
    assert "diverged: maf at D = 2 (1); nsf at D = 2 (4)" in foot(figure)
    found = marks(figure, "diverged")
    if name in PICTURES:
        assert len(found) == 1
    elif name == "joint_post_hoc":
        assert len(found) == 1  # of maf: nsf was not fitted post hoc
    elif name == "pair_matrix":
        assert len(found) == 5 + 4  # a cell has two priors, and the ink of neither
    else:
        style = figure_style.styles(ARMS)
        assert {style["maf"].colour.lower(), style["nsf"].colour.lower()} <= {*map(colour, found)}
    assert not marks(drawn(name, full, sizes(name)), "diverged")


@DRAW
def test_what_failed_or_is_missing_is_said_in_every_figure(name: str) -> None:
    figure = drawn(name, some_failed, sizes(name))
    assert "failed: nsf at D = 2 (4)" in foot(figure)
    assert "missing: maf at D = 2 (1)" in foot(figure)
    assert not marks(figure, "diverged")  # a cross means that a trial diverged, and no more
    if name in PICTURES:
        assert marks(figure, "absent")[0].get_text() == "no complete seed\n4 of 4 failed"


@DRAW
def test_a_latent_size_at_which_all_was_lost_keeps_its_place(name: str) -> None:
    figure = drawn(name, all_of_one_size_diverged, (2, 4))
    if name in PICTURES:  # drawn at one latent size
        assert figure.axes
        return
    words = " ".join(t.get_text() for t in figure.findobj(mpl.text.Text))
    assert "D = 4" in words
    assert marks(figure, "diverged")


@DRAW
def test_an_absurd_number_flattens_nothing(name: str) -> None:
    def height(figure: Figure) -> list[float]:
        return [max(np.ptp(ax.get_xlim()), np.ptp(ax.get_ylim())) for ax in figure.axes]

    calm = drawn(name, some_diverged, sizes(name))
    figure = drawn(name, one_absurd, sizes(name))
    figure.draw_without_rendering()  # the layout holds: warnings are errors
    if name in PICTURES | {"pair_matrix", "failures"}:  # no axis has its unit
        assert np.allclose(height(figure), height(calm), rtol=0.5)
        return
    assert max(height(figure)) < 1e6
    assert axis_limits.BEYOND_AXIS in foot(figure)
    told = [t.get_text() for t in marks(figure, "beyond")]
    assert told
    assert all("e+1" in text for text in told)
    assert axis_limits.BEYOND_AXIS not in foot(calm)


def test_an_axis_ends_before_what_is_far_off() -> None:
    assert outliers.limit([1.0, 2.0]) == 20 * outliers.MIN_QUARTILE
    assert outliers.limit([], [np.nan]) == np.inf
    most = outliers.limit([85.0, 90.0, -1e12, 1e30, np.inf])
    assert most == 20 * 85.0
    low, high = axis_limits.limits_within([85.0, 90.0, 1e30, np.nan], [-1e12], bound=most)
    assert 80 < low < 85
    assert 90 < high < 95


def test_a_map_survives_codes_and_densities_that_are_no_numbers() -> None:
    made = make(("gauss", "maf", "nsf"), (2,), seeds=1)
    for run, value in (("maf-z2-s0", np.nan), ("nsf-z2-s0", 1e30)):
        known = made.maps[run]
        known["codes"] = known["codes"].copy()
        known["codes"][:: 1 if value > 0 else 2] *= value  # of maf every second one
        known["log_density"] = np.full_like(known["log_density"], -np.inf)
    made.maps["maf-z2-s0"]["log_density"][3, 4] = np.nan
    figure = latent_maps.latent_maps(made.analysis())
    figure.draw_without_rendering()
    assert figure.axes[0].get_xlim()[1] < 6
    assert "points outside the panel, or not finite: nsf" in foot(figure)


def test_a_sheet_is_drawn_at_the_largest_size_that_survived() -> None:
    made = make(("gauss", "maf"), (2, 16), diverged=())
    large = made.frame["latent"] == 16
    made.frame.loc[large, ["status", "test/nll"]] = "diverged", np.inf
    assert foot(figures_samples.sample_sheet(made.analysis())).startswith("D = 2")


def test_an_absurd_score_and_a_collapsed_seed_are_said_with_their_seeds() -> None:
    frame = make(seeds=3).frame
    maf = (frame["prior"] == "maf") & (frame["latent"] == 16)
    frame.loc[maf & (frame["seed"] == 1), "test/nll"] = 3.2e12
    frame.loc[maf & (frame["seed"] == 2), "test/rate"] = 0.04  # its mean is far from zero
    far, empty = failures_findings.failure_sentences(Analysis(frame))
    assert "maf seed 1 (3.2e+12)" in far
    assert "maf seed 2 (0.04)" in empty


def test_causes_are_told_once_with_epochs_and_seeds() -> None:
    made = make(("gauss", "maf"), (2,), seeds=4, diverged=tuple(("maf", 2, s) for s in range(4)))
    reasons = ["epoch 12: valid/elbo is -inf", "epoch 2: train/elbo is nan"]
    reasons += ["epoch 1: train/elbo is nan", "gauss-z2-s3, which it starts from, diverged"]
    made.frame.loc[made.frame["prior"] == "maf", "reason"] = reasons
    (said,) = failures_findings.failure_sentences(made.analysis())
    assert said.endswith(
        "maf: 4 of 4 seeds diverged (valid/elbo is -inf, in epoch 12 at seed 0; train/elbo is "
        "nan, in epoch 1 at seed 2, in epoch 2 at seed 1; the model, which it starts from, "
        "diverged, at seed 3)."
    )


@pytest.mark.parametrize("prior", ["gauss", "maf[hidden=8]", "nsf[hidden=8]", "gmm[components=4]"])
@pytest.mark.parametrize("part", ["encoder", "decoder", "prior"])
def test_pictures_of_a_model_whose_weights_exploded_are_drawn(prior: str, part: str) -> None:
    """Scales that overflow, latents and pixels that are no numbers: looked at, not raised."""
    data = load_data("digits")
    vae = build(Trial(prior=prior, latent=2, net="mlp[hidden=8]"), data.shape, data.train)
    with torch.no_grad():
        for weight in getattr(vae, part).parameters():
            weight.mul_(1e20).add_(1e18)
    drawn = artifacts.samples(vae)
    assert drawn.shape == (64, 8, 8)
    assert artifacts.sheet(drawn).size == artifacts.sheet(np.zeros((64, 8, 8), np.float32)).size
    artifacts.sheet(artifacts.reconstructions(vae, data))
    found = artifacts.latent_map(vae, data, seed=0, points=20)
    assert np.isfinite(found["axis_x"]).all()
    assert sampling_speed(vae, "cpu") > 0
    assert dissect(vae, data, seed=0).prior_samples > 0  # its numbers are what they are
    made = make(("gauss",), (2,), seeds=1)
    made.maps["gauss-z2-s0"] = found
    latent_maps.latent_maps(made.analysis()).draw_without_rendering()
