"""What audits found, read back from MLflow: as a table, as sentences and as a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from bench.audit import quadrature
from bench.audit.read import BOUND, Audited
from bench.statistics.formatting import nats

__all__ = ["_mean", "audit_frame", "audit_sentences", "audit_table"]


def _mean(values: NDArray[np.float64]) -> tuple[float, float]:
    """Returns the mean and its standard error over images; NaN for one image."""
    spread = values.std(ddof=1) if len(values) > 1 else math.nan
    return float(values.mean()), float(spread / math.sqrt(len(values)))


def audit_frame(audited: Sequence[Audited]) -> pd.DataFrame:
    """Returns a row for each quantity: means with standard errors over images, extremes; nats."""
    rows = []
    for each in audited:
        names = {"lower": ("simulated", "lower"), "upper": ("simulated", "upper")}
        names["real_lower"] = ("test", "lower")
        for kind, (_, ladder) in BOUND.items():
            names |= {f"{ladder}_k{k}": (kind, f"iw_k{k}") for k in each.ladder}
        trial, audit = each.trial, each.audit
        of: dict[str, Any] = {"run_id": each.run_id, "name": trial.name, **trial.labels}
        of |= {"latent": trial.latent, "seed": trial.seed}
        sizes = asdict(audit) | {"device": each.device}
        values = {found: each.arrays[name] for name, found in names.items()}
        values["simulated", "width"] = each.width
        values |= quadrature.arrays(each)
        for (kind, quantity), value in values.items():
            mean, error = _mean(value)
            what = {"kind": kind, "quantity": quantity, "mean": mean, "se_images": error}
            what |= {"least": value.min(), "most": value.max()}
            rows.append({**of, **what, **sizes, "images": len(value)})
    return pd.DataFrame(rows)


def audit_table(audited: Sequence[Audited]) -> Table:
    """Returns one row a run, with what the columns mean as the caption."""
    first = audited[0].audit
    found = Table(
        title=f"By annealing: log p(x) of {first.images} images, nats per image",
        caption="Simulated from the model: forward and reverse annealing bracket log p(x).\n"
        f"Test images: the NLL by the forward bound beside importance weighting, K = "
        f"{first.samples}.\n"
        "\N{PLUS-MINUS SIGN}: standard error over images, not over seeds.\n"
        f"{first.chains} chains, {first.temperatures} temperatures, {first.leapfrogs} leapfrog "
        f"steps; {'; '.join(dict.fromkeys(each.device for each in audited))}",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    found.add_column("run")
    columns = ["lower", "IW", "upper", "width", "test NLL", "by IW", "accepted", "s"]
    for column in columns:
        found.add_column(column, justify="right", no_wrap=True)
    for each in audited:
        means, (width, error) = each.means, _mean(each.width)
        found.add_row(
            each.trial.name,
            *(f"{means[f'audit/{name}']:.2f}" for name in ("lower", "iw_simulated", "upper")),
            f"{width:.3f} \N{PLUS-MINUS SIGN} {error:.3f}",
            *(f"{means[f'audit/{name}']:.2f}" for name in ("nll_annealed", "nll_iw")),
            f"{means['audit/acceptance']:.2f}",
            f"{means['audit/seconds']:.0f}",
        )
    return found


def audit_sentences(audited: Sequence[Audited]) -> list[str]:
    """Returns what is exact, and for each run how far importance weighting falls short."""
    found = quadrature.quadrature_sentences(audited)
    sign = "\N{PLUS-MINUS SIGN}"
    for each in audited:
        name, k, failed = each.trial.name, each.audit.samples, each.means["audit/failed_draws"]
        near, error = _mean(each.shortfall("simulated", k))
        width, noise = _mean(each.width)
        where = (
            f"errs by {near:.2f} to {near + width:.2f} nats"
            if 0 < near <= near + width
            else "is not told from the bounds"
        )
        where += f" on simulated images ({sign} {error:.2f})"
        far, error = _mean(each.shortfall("test", k))
        there = (
            f"On test images it errs by at least {far:.2f} {sign} {error:.2f}"
            if far > 0
            else f"On test images the bound shows no error of it ({nats(far)} {sign} {error:.2f})"
        )
        found.append(f"{name}: importance weighting with K = {k} {where}. {there}.")
        if width < 0:
            found.append(
                f"{name}: the lower bound lies above the upper one by {-width:.3f} {sign} "
                f"{noise:.3f} nats, which only chance can do: as far as these images tell, they "
                "meet."
            )
        if failed:
            found.append(f"{name}: {failed:.2%} of the prior's draws were not finite.")
    return found
