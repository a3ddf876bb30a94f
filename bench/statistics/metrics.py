"""Declarations of the numbers of each trial: how one is measured, named, averaged and shown.

A metric is one function with one declaration:

    @measured_by(Metric("test", "nats per image", better="lower", title="rate spread"))
    def rate_spread(evaluated: Evaluated) -> float:
        '''Standard deviation of the rate over the images.'''
        return evaluated.scores.rate.std()

`bench.execution.measurement` calls it when a trial is fitted or evaluated. MLflow and `trials.csv`
then hold `test/rate_spread`, `summary.csv` its mean over seeds as `rate_spread`, and the report's
table has a column of that title. The guide `bench/report/README.md` lists every metric, which a
test checks. This module imports no torch until a trial is measured.

Example:
    >>> METRICS["test/nll"].better, METRICS["test/nll"].unit
    ('lower', 'nats per image')
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pandas as pd

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flowvae.evaluation.elbo_surgery import Surgery
    from flowvae.evaluation.importance_weighting import Scores
    from flowvae.evaluation.quadrature import Evidence
    from flowvae.models.vae import VAE
    from flowvae.training.trainer import Fitted
    from flowvae.trial import Evaluation

__all__ = [
    "METRICS",
    "Evaluated",
    "Metric",
    "Trained",
    "numbers_of",
    "scores_in",
    "share_bad_samples",
    "share_outside",
]


@dataclass(frozen=True)
class Trained:
    """A fit and its peak memory, from which metrics are computed.

    Arguments:
        fitted: The fitted trial; it may have diverged.
        peak_bytes: The peak memory of its fit, bytes.
        peak_since_start: Whether that is the peak since the process started.
    """

    fitted: Fitted
    peak_bytes: int
    peak_since_start: bool


@dataclass(frozen=True)
class Evaluated:
    """An evaluation and its costs, from which metrics are computed.

    Arguments:
        vae: The model.
        evaluation: The description of the scoring.
        scores: The scores of N images.
        surgery: The parts of the bound for these images.
        seconds: The time of scoring, s.
        samples_per_second: The latents drawn from the prior per second.
        peak_bytes: The peak memory of scoring, bytes.
        peak_since_start: Whether that is the peak since the process started.
        exact: log p(x) of the same images by quadrature, where it is known.
    """

    vae: VAE
    evaluation: Evaluation
    scores: Scores
    surgery: Surgery
    seconds: float
    samples_per_second: float
    peak_bytes: int
    peak_since_start: bool
    exact: Evidence | None = None


@dataclass(frozen=True)
class Metric:
    """The declaration of a number of each trial.

    Arguments:
        group: The part before `/` of its name in the store: `test` (the scored split), `train`,
            `valid`, `time`, `model` or `memory`.
        unit: Its unit, or nothing for a plain number.
        name: The part after `/`; by default the name of the function.
        meaning: Its definition, first in one sentence; by default the function's docstring.
        measure: Returns the number from `Trained` or `Evaluated`, or several numbers by the ends
            of their names; none where the trainer logs it by epoch.
        stage: When it is measured.
        better: The direction that is better, where there is one.
        suffixes: The ends of the names of several numbers, as a pattern such as `_k*`.
        optional: Whether it is left out of the store where it is NaN.
        is_score: Whether it is a score: a trial has diverged where a score is not finite.
        seeds: The seeds of an arm whose mean `summary.csv` holds: the complete ones, those of them
            that were timed alone on their device, all, or none for no column there.
        column: The column of `summary.csv`; by default the name.
        per_trial: The number that is averaged, from a frame of trials; by default the metric.
        interval: Whether `summary.csv` holds its 95 % interval over seeds.
        title: The title of its column in the report; none for no column there.
        pattern: How the mean is written.
        core: Whether the narrow table (LaTeX) has it.
        terminal: The least width of a terminal's table that has it.
        short_title: The title on a terminal; by default the title.
    """

    group: str
    unit: str = ""
    name: str = ""
    meaning: str = ""
    measure: Callable[[Any], float | Mapping[str, float]] | None = None
    stage: Literal["fit", "epoch", "evaluation"] = "evaluation"
    better: Literal["lower", "higher", ""] = ""
    suffixes: str = ""
    optional: bool = False
    is_score: bool = False
    seeds: Literal["complete", "timed", "all", "none"] = "complete"
    column: str = ""
    per_trial: Callable[[pd.DataFrame], pd.Series] | None = None
    interval: bool = False
    title: str = ""
    pattern: str = ".2f"
    core: bool = False
    terminal: Literal["narrow", "medium", "wide", "none"] = "none"
    short_title: str = ""

    @property
    def key(self) -> str:
        """Its name in the store and in `trials.csv`, such as `test/nll`."""
        return f"{self.group}/{self.name}"

    @property
    def summary_column(self) -> str:
        """The column of `summary.csv` that holds its mean."""
        return self.column or self.name

    @property
    def brief(self) -> str:
        """The first sentence of its definition, and its unit."""
        first = self.meaning.partition(". ")[0].rstrip(".")
        return f"{first}, {self.unit}" if self.unit else first

    def of_trials(self, trials: pd.DataFrame) -> pd.Series:
        """Returns the number of each trial; NaN where there is none."""
        if self.per_trial is not None:
            return self.per_trial(trials)
        return trials.get(self.key, pd.Series(math.nan, trials.index))


METRICS: dict[str, Metric] = {}
"""All metrics by their names in the store, in the order of the tables."""
STORE_ORDER = (
    *("time/train_seconds", "time/epoch_seconds", "time/images_per_second"),
    *("model/parameters", "model/prior_parameters"),
    *("memory/train_peak_bytes", "memory/train_peak_since_start_bytes"),
    *("time/evaluation_images_per_second", "time/samples_per_second"),
    *("memory/evaluation_peak_bytes", "memory/evaluation_peak_since_start_bytes"),
    *("test/elbo", "test/nll", "test/rate", "test/distortion", "test/ess", "test/khat_high"),
    *("test/nll_bias", "test/nll_se", "test/nll_exact", "test/nll_exact_error"),
    *("test/nll_k", "test/marginal_kl", "test/marginal_kl_out", "test/index_code"),
    *("test/index_code_out", "test/log_images", "test/active_units"),
    *("test/active_units_relative", "test/elbo_gap", "test/elbo_of_train", "test/saturated"),
    *("test/outside_posterior", "test/outside_prior", "test/bad_samples", "test/log_z_error"),
)
"""The order in which a run gets its numbers, and so that of `trials.csv`; others come last."""
Function = TypeVar("Function", bound=Callable[..., float | Mapping[str, float]])


def numbers_of(measured: Trained | Evaluated) -> dict[str, float]:
    """Returns all metrics of a fit, or of an evaluation, by their names in the store."""
    numbers: dict[str, float] = {}
    order = {key: place for place, key in enumerate(STORE_ORDER)}
    for metric in sorted(METRICS.values(), key=lambda m: order.get(m.key, len(order))):
        stage = "fit" if isinstance(measured, Trained) else "evaluation"
        if metric.measure is None or metric.stage != stage:
            continue
        name = metric.key
        if isinstance(measured, Evaluated) and metric.group == "test":
            name = f"{measured.evaluation.split}/{metric.name}"
        value = metric.measure(measured)
        values = value if isinstance(value, Mapping) else {"": value}
        for suffix, number in values.items():
            if not (metric.optional and math.isnan(number)):
                numbers[name + suffix] = float(number)
    return numbers


def scores_in(numbers: Mapping[str, float], split: str) -> dict[str, float]:
    """Returns the scores among the numbers of an evaluation, without the diagnostics."""
    names = {f"{split}/{metric.name}" for metric in METRICS.values() if metric.is_score}
    return {name: value for name, value in numbers.items() if name in names}


def share_outside(
    trials: pd.DataFrame, of: Literal["posterior", "prior"] = "posterior"
) -> pd.Series:
    """Returns the share of samples outside the box at each trial's worst spline; NaN without one.

    Samples are counted coordinate by coordinate, as `flowvae.evaluation.spline_boxes` does.
    """
    layers = [c for c in trials if str(c).startswith(f"test/outside_{of}_l")]
    return trials[layers].max(axis=1).astype(float)


def share_bad_samples(trials: pd.DataFrame) -> pd.Series:
    """Returns the share of each trial's prior samples that are not finite."""
    from flowvae.evaluation.elbo_surgery import PRIOR_SAMPLES  # imports torch

    return trials.get("test/bad_samples", pd.Series(math.nan, trials.index)) / PRIOR_SAMPLES


def declare(metric: Metric) -> None:
    """Adds a metric at the end of the tables."""
    assert metric.key not in METRICS, metric.key
    METRICS[metric.key] = metric


def measured_by(metric: Metric) -> Callable[[Function], Function]:
    """Adds the metric that a function measures; its docstring is the meaning."""

    def add(function: Function) -> Function:
        meaning = " ".join((function.__doc__ or "").split())
        declare(replace(metric, name=function.__name__, meaning=meaning, measure=function))
        return function

    return add


def _curve(key: str, *, seeds: Literal["complete", "none"] = "none", column: str = "") -> Metric:
    """Returns the declaration of a number that the trainer logs by epoch."""
    group, _, name = key.partition("/")
    images = {"train": "training", "valid": "validation"}[group]
    meaning = f"Mean over the {images} images by epoch, one sample per image."
    return Metric(
        group, "nats per image", name, meaning, stage="epoch",
        better="higher" if name == "elbo" else "", seeds=seeds, column=column,
    )  # fmt: skip


# The metrics, in the order of `summary.csv`, of the report's table and of the guide's.


@measured_by(
    Metric(
        "test", "nats per image", better="lower", is_score=True, interval=True, title="NLL",
        core=True, terminal="narrow",
    )
)  # fmt: skip
def nll(evaluated: Evaluated) -> float:
    """-log p(x), by importance sampling with K draws an image.

    The estimator `fitted` draws from a proposal fitted to each image, `encoder` from q(z|x) (Burda
    et al., 2016). In expectation an upper bound, so estimators and numbers K are never mixed.
    """
    return -evaluated.scores.loglik[evaluated.evaluation.samples].mean()


@measured_by(
    Metric(
        "test", "nats per image", better="higher", is_score=True, title="ELBO", terminal="medium"
    )
)
def elbo(evaluated: Evaluated) -> float:
    """E_q[log p(x|z) + log p(z) - log q(z|x)].

    Its gap to -NLL differs between priors, so priors are compared by the NLL.
    """
    return evaluated.scores.elbo.mean()


declare(_curve("train/elbo", seeds="complete", column="train_elbo"))


@measured_by(
    Metric("test", "nats per image", is_score=True, title="rate", core=True, terminal="medium")
)
def rate(evaluated: Evaluated) -> float:
    """E_q[log q(z|x) - log p(z)]."""
    return evaluated.scores.rate.mean()


@measured_by(
    Metric(
        "test", "nats per image", is_score=True, title="distortion", core=True, terminal="medium",
        short_title="dist.",
    )
)  # fmt: skip
def distortion(evaluated: Evaluated) -> float:
    """-E_q[log p(x|z)]. Minus the sum of rate and distortion is the ELBO."""
    return evaluated.scores.distortion.mean()


@measured_by(Metric("test", "samples", better="higher"))
def ess(evaluated: Evaluated) -> float:
    """Effective sample size of the K importance weights of an image."""
    return evaluated.scores.ess.mean()


@measured_by(
    Metric("test", better="lower", title="k-hat>0.7", pattern=".0%", core=True, terminal="medium")
)
def khat_high(evaluated: Evaluated) -> float:
    """Share of images whose importance weights have a Pareto k-hat above 0.7.

    Their NLL is unreliable by this estimator at this K (Vehtari et al., 2024): audit it.
    """
    from flowvae.evaluation.pareto import share_unreliable  # imports torch

    return share_unreliable(evaluated.scores.khat)


@measured_by(Metric("test", "nats per image", better="lower"))
def nll_bias(evaluated: Evaluated) -> float:
    """Estimated bias of the NLL, (1/ess - 1/K) / 2 in the mean over images.

    The NLL is too high by about this, and by more where k-hat is high. It is in no interval.
    """
    return _log_variance(evaluated).mean() / 2


@measured_by(Metric("test", "nats per image", better="lower"))
def nll_se(evaluated: Evaluated) -> float:
    """Monte Carlo standard error of the NLL, sqrt(sum of (1/ess - 1/K)) / N over N images.

    Intervals of differences hold it already.
    """
    return math.sqrt(_log_variance(evaluated).sum()) / len(evaluated.scores.ess)


def _log_variance(evaluated: Evaluated) -> NDArray[np.float64]:
    """Returns the Monte Carlo variance of each image's estimate of log p(x), (N,), nats^2."""
    excess = 1 / evaluated.scores.ess - 1 / evaluated.evaluation.samples
    return excess.clip(min=0)  # of equal weights the size exceeds K by rounding


@measured_by(Metric("test", "nats per image", better="lower", optional=True))
def nll_exact(evaluated: Evaluated) -> float:
    """-log p(x) of the same images by quadrature, where D is 1 or 2.

    It needs no samples: how far `test/nll` is from it is the error of the estimator.
    """
    return math.nan if evaluated.exact is None else -evaluated.exact.log_p.mean()


@measured_by(Metric("test", "nats", better="lower", optional=True))
def nll_exact_error(evaluated: Evaluated) -> float:
    """Estimated error of the quadrature of an image, the largest one."""
    return math.nan if evaluated.exact is None else evaluated.exact.error.max()


@measured_by(Metric("test", "nats per image", better="lower"))
def elbo_gap(evaluated: Evaluated) -> float:
    """Training ELBO minus test ELBO, by the same estimator."""
    return evaluated.surgery.elbo_gap


@measured_by(Metric("test", "nats"))
def log_images(evaluated: Evaluated) -> float:
    """The most that `test/index_code` can be, log N for N scored images."""
    return evaluated.surgery.log_images


@measured_by(Metric("test", "nats", title="marginal KL"))
def marginal_kl(evaluated: Evaluated) -> float:
    """KL(q(z) || p(z)), the part of the rate that a better prior can remove.

    With `test/index_code` it adds up to the rate (Hoffman and Johnson, 2016).
    """
    return evaluated.surgery.marginal_kl


@measured_by(Metric("test", "nats"))
def marginal_kl_out(evaluated: Evaluated) -> float:
    """The same without the image's own posterior in q(z). A lower bound; it can be negative."""
    return evaluated.surgery.marginal_kl_out


@measured_by(Metric("test", "nats"))
def index_code(evaluated: Evaluated) -> float:
    """I(n; z), what z says about which of the N images it encodes.

    At most log N, and near log N it only reflects N.
    """
    return evaluated.surgery.index_code


@measured_by(Metric("test", "nats"))
def index_code_out(evaluated: Evaluated) -> float:
    """The same without the image's own posterior in q(z). An upper bound, with no ceiling."""
    return evaluated.surgery.index_code_out


@measured_by(Metric("test"))
def saturated(evaluated: Evaluated) -> float:
    """1 where `test/index_code` is near log N and the rate far above it, else 0."""
    return float(evaluated.surgery.saturated)


@measured_by(Metric("test", "dimensions"))
def active_units(evaluated: Evaluated) -> float:
    """Latent dimensions with Var(E[z|x]) > 0.01 (Burda et al., 2016)."""
    return float(evaluated.surgery.active_units)


@measured_by(Metric("test", "dimensions", title="active units", pattern=".1f"))
def active_units_relative(evaluated: Evaluated) -> float:
    """Latent dimensions with Var(E[z|x]) > 0.01 Var(z), whatever the scale of z."""
    return float(evaluated.surgery.active_units_relative)


@measured_by(Metric("test", "nats", better="lower", optional=True))
def log_z_error(evaluated: Evaluated) -> float:
    """Standard error of the prior's log normalising constant, where that is estimated (`lars`).

    It shifts the NLL of all images alike and is in no interval.
    """
    return evaluated.surgery.log_z_error


@measured_by(
    Metric("test", "samples", better="lower", column="bad_share", per_trial=share_bad_samples)
)
def bad_samples(evaluated: Evaluated) -> float:
    """Prior samples, of 2,000, that are not finite. `bad_share` is their share."""
    return float(evaluated.surgery.bad_samples)


@measured_by(Metric("test", suffixes="_l*", per_trial=share_outside))
def outside_posterior(evaluated: Evaluated) -> dict[str, float]:
    """Share of posterior samples outside the box of each spline of a flow, 1 the one next to z.

    `summary.csv` holds that of the worst one.
    """
    return _by_layer(evaluated.surgery.outside_posterior)


@measured_by(
    Metric("test", suffixes="_l*", per_trial=lambda trials: share_outside(trials, "prior"))
)
def outside_prior(evaluated: Evaluated) -> dict[str, float]:
    """The same for prior samples."""
    return _by_layer(evaluated.surgery.outside_prior)


def _by_layer(shares: Any) -> dict[str, float]:  # noqa: ANN401
    """Names the share of each layer, (L,), counted from 1 next to z."""
    return {f"_l{layer}": float(share) for layer, share in enumerate(shares, start=1)}


@measured_by(
    Metric(
        "time", "images/s", stage="fit", better="higher", seeds="timed", title="images/s",
        pattern=",.0f", core=True, terminal="medium",
    )
)  # fmt: skip
def images_per_second(trained: Trained) -> float:
    """Training images per second, without warm-up, validation and logging."""
    return trained.fitted.timing.images_per_second


@measured_by(
    Metric(
        "time", "latents/s", better="higher", seeds="timed", title="samples/s", pattern=",.0f",
        terminal="wide",
    )
)  # fmt: skip
def samples_per_second(evaluated: Evaluated) -> float:
    """Latents drawn from the prior per second."""
    return evaluated.samples_per_second


@measured_by(
    Metric(
        "time", "s", stage="fit", better="lower", seeds="timed", title="seconds", pattern=",.1f"
    )
)
def train_seconds(trained: Trained) -> float:
    """Time of training, all epochs, without validation and logging."""
    return trained.fitted.timing.train_seconds


@measured_by(
    Metric(
        "model", stage="fit", seeds="all", title="prior par.", pattern=",.0f", core=True,
        terminal="wide",
    )
)  # fmt: skip
def prior_parameters(trained: Trained) -> float:
    """Parameters of the prior."""
    return sum(p.numel() for p in trained.fitted.vae.prior.parameters())


@measured_by(Metric("model", stage="fit", seeds="all", title="parameters", pattern=",.0f"))
def parameters(trained: Trained) -> float:
    """Parameters of the whole model."""
    return sum(p.numel() for p in trained.fitted.vae.parameters())


@measured_by(Metric("test", "nats per image", better="lower", suffixes="*", seeds="none"))
def nll_k(evaluated: Evaluated) -> dict[str, float]:
    """-log p(x) by the first 1, 10, 100 and so on of the K samples of the estimator `encoder`."""
    if not evaluated.evaluation.method.nested:
        return {}
    return {str(k): -loglik.mean() for k, loglik in evaluated.scores.loglik.items()}


@measured_by(Metric("test", "nats per image", better="higher", seeds="none"))
def elbo_of_train(evaluated: Evaluated) -> float:
    """ELBO of as many training images, by the estimator of `test/elbo_gap`."""
    return float(evaluated.surgery.train_elbo.mean())


@measured_by(Metric("time", "s", stage="fit", better="lower", seeds="none"))
def epoch_seconds(trained: Trained) -> float:
    """Time of the median epoch."""
    return trained.fitted.timing.epoch_seconds


@measured_by(Metric("time", "images/s", better="higher", seeds="none"))
def evaluation_images_per_second(evaluated: Evaluated) -> float:
    """Images scored per second."""
    return len(evaluated.scores.elbo) / evaluated.seconds


@measured_by(Metric("memory", "bytes", stage="fit", better="lower", optional=True, seeds="none"))
def train_peak_bytes(trained: Trained) -> float:
    """Peak memory of training a stack: allocated by torch (CUDA), or of the process (CPU)."""
    return math.nan if trained.peak_since_start else trained.peak_bytes


@measured_by(Metric("memory", "bytes", stage="fit", better="lower", optional=True, seeds="none"))
def train_peak_since_start_bytes(trained: Trained) -> float:
    """The same since the process started, where the system counts no other peak."""
    return trained.peak_bytes if trained.peak_since_start else math.nan


@measured_by(Metric("memory", "bytes", better="lower", optional=True, seeds="none"))
def evaluation_peak_bytes(evaluated: Evaluated) -> float:
    """Peak memory of scoring: allocated by torch (CUDA), or of the process (CPU)."""
    return math.nan if evaluated.peak_since_start else evaluated.peak_bytes


@measured_by(Metric("memory", "bytes", better="lower", optional=True, seeds="none"))
def evaluation_peak_since_start_bytes(evaluated: Evaluated) -> float:
    """The same since the process started, where the system counts no other peak."""
    return evaluated.peak_bytes if evaluated.peak_since_start else math.nan


for _key in ("train/rate", "train/distortion", "valid/elbo", "valid/rate", "valid/distortion"):
    declare(_curve(_key))
