"""Table, sentences and data frame of audits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from bench.audit.quadrature import quadrature_sentences, quadrature_values
from bench.audit.read import BOUND_NAMES, AuditResult
from bench.statistics.formatting import PLUS_MINUS, nats

__all__ = ["audit_frame", "audit_sentences", "audit_table", "mean_and_error"]


DISAGREEMENTS = {
    "lower": ("simulated", "lower"),
    "upper": ("simulated", "upper"),
    "real_lower": ("test", "lower"),
}
"""Kind of images and meaning of each bound that both starts give."""
CLEAR = 2.0
"""From how many standard errors on two bounds differ."""


def mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    """Returns the mean over images and its standard error, which is NaN for one image."""
    spread = values.std(ddof=1) if len(values) > 1 else math.nan
    return float(values.mean()), float(spread / math.sqrt(len(values)))


def audit_frame(results: Sequence[AuditResult]) -> pd.DataFrame:
    """Returns a row for each quantity: mean, standard error over images, extremes; nats."""
    rows = []
    for result in results:
        names = {"lower": ("simulated", "lower"), "upper": ("simulated", "upper")}
        names["real_lower"] = ("test", "lower")
        for kind, (_, ladder) in BOUND_NAMES.items():
            names |= {f"{ladder}_k{k}": (kind, f"iw_k{k}") for k in result.ladder}
        trial = result.trial
        run: dict[str, Any] = {"run_id": result.run_id, "name": trial.name, **trial.labels}
        run |= {"latent": trial.latent, "seed": trial.seed}
        sizes = asdict(result.audit) | {"device": result.device}
        values = {key: result.arrays[name] for name, key in names.items()}
        values["simulated", "width"] = result.width
        for name, (kind, quantity) in DISAGREEMENTS.items():
            if (difference := result.disagreement(name)) is not None:
                values[kind, f"{quantity}_above_encoder"] = difference
        values |= quadrature_values(result)
        for (kind, quantity), value in values.items():
            mean, error = mean_and_error(value)
            numbers = {"kind": kind, "quantity": quantity, "mean": mean, "se_images": error}
            numbers |= {"least": value.min(), "most": value.max()}
            rows.append({**run, **numbers, **sizes, "images": len(value)})
    return pd.DataFrame(rows)


def _disagreements(result: AuditResult) -> Iterator[str]:
    """Yields where chains from the proposal and from the encoder differ beyond their error."""
    for name, (kind, bound) in DISAGREEMENTS.items():
        if (difference := result.disagreement(name)) is None:
            continue
        mean, error = mean_and_error(difference)
        if not abs(mean) > CLEAR * error:
            continue
        # the tighter bound is the higher of two lower ones, and the lower of two upper ones
        starts = ["fitted proposal", "encoder"]
        tighter, looser = starts if (mean < 0) == (bound == "upper") else starts[::-1]
        yield (
            f"{result.trial.name}: on {kind} images the {bound} bound by the {tighter}'s chains "
            f"is tighter by {abs(mean):.3f} {PLUS_MINUS} {error:.3f} nats than by the {looser}'s, "
            "which want more temperatures or leave out part of the posterior."
        )


def audit_table(results: Sequence[AuditResult]) -> Table:
    """Returns a table with a row for each run, and the meaning of the columns as its caption."""
    audit = results[0].audit
    table = Table(
        title=f"By annealing: log p(x) of {audit.images} images, nats per image",
        caption="Simulated from the model: forward and reverse annealing bracket log p(x).\n"
        f"Test images: the NLL by the forward bound, beside the estimate.\n"
        f"Estimate: {'; '.join(dict.fromkeys(result.describe() for result in results))}.\n"
        f"{PLUS_MINUS}: standard error over images, not over seeds.\n"
        f"{audit.chains} chains, {audit.temperatures} temperatures, {audit.leapfrogs} leapfrog "
        f"steps; {'; '.join(dict.fromkeys(result.device for result in results))}",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("run")
    columns = ["lower", "estimate", "upper", "width", "test NLL", "estimate", "accepted", "s"]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        means, (width, error) = result.means, mean_and_error(result.width)
        table.add_row(
            result.trial.name,
            *(f"{means[f'audit/{name}']:.2f}" for name in ("lower", "iw_simulated", "upper")),
            f"{width:.3f} {PLUS_MINUS} {error:.3f}",
            *(f"{means[f'audit/{name}']:.2f}" for name in ("nll_annealed", "nll_iw")),
            f"{means['audit/acceptance']:.2f}",
            f"{means['audit/seconds']:.0f}",
        )
    return table


def audit_sentences(results: Sequence[AuditResult]) -> list[str]:
    """Returns the sentences on exact evidence, then those on each run's estimate and chains."""
    sentences = quadrature_sentences(results)
    for result in results:
        name, k = result.trial.name, result.audit.samples
        low, error = mean_and_error(result.shortfall("simulated", k))
        width, width_error = mean_and_error(result.width)
        simulated = (
            f"errs by {low:.2f} to {low + width:.2f} nats"
            if 0 < low <= low + width
            else "has no error that the bounds resolve"
        )
        simulated += f" on simulated images ({PLUS_MINUS} {error:.2f})"
        low, error = mean_and_error(result.shortfall("test", k))
        test = (
            f"it errs by at least {low:.2f} {PLUS_MINUS} {error:.2f}"
            if low > 0
            else f"the bound shows no error of it ({nats(low)} {PLUS_MINUS} {error:.2f})"
        )
        sentences.append(f"{name}: {result.describe()} {simulated}. On test images {test}.")
        sentences += _disagreements(result)
        if width < 0:
            sentences.append(
                f"{name}: the lower bound lies above the upper one by {-width:.3f} {PLUS_MINUS} "
                f"{width_error:.3f} nats, which is possible only by chance: within the error "
                "over these images the bounds meet."
            )
        if failed := result.means["audit/failed_draws"]:
            sentences.append(f"{name}: {failed:.2%} of the prior's draws were not finite.")
    return sentences
