"""Exact evidence by quadrature of audited models with one or two latent dimensions.

log p(x) of all test images is integrated to an error below a hundredth of a nat, as estimated from
the cells, so that the error of an estimate is known without bounds; see
`flowvae.evaluation.quadrature`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from mlflow.entities import Run
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from bench.statistics import comparison, frames
from bench.statistics.formatting import nats
from bench.store.measurements import Estimates, estimates_in, of_model
from bench.store.names import COMPLETE_TAG
from bench.store.run_info import trial_columns
from bench.store.run_writer import RunWriter
from bench.store.runs import Store

if TYPE_CHECKING:
    from bench.audit.read import AuditResult
    from flowvae.evaluation.quadrature import Evidence
    from flowvae.trial import Audit

__all__ = [
    "QUADRATURE_NAMES",
    "TOLERANCE",
    "quadrature_sentences",
    "quadrature_table",
    "quadrature_values",
    "record_exact",
    "stored_scores",
]


TOLERANCE = 1e-2
"""The error of an image at which its cells are fine enough, nats; that of the mean is smaller."""
QUADRATURE_NAMES = ("exact", "exact_error", "scored")
"""Arrays of log p(x) by quadrature, of its error, and of the run's scores of the same images."""
EVALUATION_TAG = "evaluation."


def stored_scores(store: Store, run: Run) -> Estimates | None:
    """Returns the estimates of log p(x) behind a run's finite `test/nll`, or None."""
    nll = run.data.metrics.get("test/nll", math.nan)
    if not math.isfinite(nll):
        return None
    for tag in run.data.tags:
        if not tag.startswith(EVALUATION_TAG):
            continue
        folder = store.artifact(run, f"evaluations/{tag.removeprefix(EVALUATION_TAG)}")
        if folder is None:
            continue
        means = json.loads((folder / "means.json").read_text())
        if math.isclose(means.get("test/nll", math.nan), nll):
            return estimates_in(folder)
    return None


def record_exact(
    writer: RunWriter,
    audit: Audit,
    exact: Evidence,
    scores: Estimates | None,
    *,
    seconds: float,
) -> None:
    """Adds log p(x) by quadrature, its error, and the run's scores of the same images to an audit.

    Arguments:
        writer: The run, which has the rest of the audit.
        audit: The description.
        exact: The evidence of N images.
        scores: The run's estimates, if it is scored.
        seconds: The time that the quadrature took, s.
    """
    files = {"exact": exact.log_p, "exact_error": exact.error}
    means = {
        "audit/nll_exact": -float(exact.log_p.mean()),
        "audit/exact_error": float(exact.error.max()),
        "audit/exact_seconds": seconds,
    }
    if scores:
        files["scored"] = scores.loglik
        means["audit/scored_samples"] = float(scores.samples)
        means["audit/scored_fitted"] = float(scores.estimator == "fitted")
    writer.write(of_model("audit", audit.id, files, means, prefix="exact_"))
    writer.flush()


def quadrature_values(result: AuditResult) -> dict[tuple[str, str], NDArray[np.float64]]:
    """Returns the quantities of quadrature, by kind of images and name, nats; {} without any."""
    if "exact" not in result.arrays:
        return {}
    exact, error = result.arrays["exact"], result.arrays["exact_error"]
    values = {("all test", "exact"): exact, ("all test", "exact_error"): error}
    if (scored := result.arrays.get("scored")) is not None:
        values["all test", f"iw_k{result.scored_samples}"] = scored
        values["all test", "exact_above_iw"] = exact - scored
    chosen = result.arrays["index"]
    integrated = chosen < len(exact)
    if integrated.any():
        lower = result.arrays["real_lower"][integrated]
        values["test", "exact"] = exact[chosen[integrated]]
        values["test", "exact_above_annealed"] = exact[chosen[integrated]] - lower
    return values


def quadrature_table(results: Sequence[AuditResult]) -> Table | None:
    """Returns a table of the runs with exact evidence, beside their own scores, or None."""
    exact_results = [result for result in results if "exact" in result.arrays]
    if not exact_results:
        return None
    table = Table(
        title="By quadrature: the NLL of all scored test images, nats per image",
        caption="estimate: the run's own test NLL, by "
        f"{' or '.join(dict.fromkeys(result.scored_by.name for result in exact_results))}\nwith K "
        "samples; above: its excess over the exact NLL, the mean and the largest of an image.",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("run")
    for column in ("images", "exact", "estimate", "K", "above", "at most", "s"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in exact_results:
        values = quadrature_values(result)
        exact, excess = values["all test", "exact"], values.get(("all test", "exact_above_iw"))
        own = ["", "", "", ""]
        if excess is not None:
            score = -result.arrays["scored"].mean()
            own = [f"{score:.3f}", f"{result.scored_samples:,}", nats(excess.mean(), ".3f")]
            own.append(nats(excess.max(), ".1f"))
        seconds = result.means.get("audit/exact_seconds", math.nan)
        table.add_row(
            result.trial.name, f"{len(exact):,}", f"{-exact.mean():.3f}", *own, f"{seconds:.0f}"
        )
    return table


def quadrature_sentences(results: Sequence[AuditResult]) -> list[str]:
    """Returns a sentence on each run with exact evidence, then the differences between priors."""
    exact_results = [result for result in results if "exact" in result.arrays]
    return [*map(_run_sentence, exact_results), *_difference_sentences(exact_results)]


def _run_sentence(result: AuditResult) -> str:
    values = quadrature_values(result)
    exact, error = values["all test", "exact"], values["all test", "exact_error"]
    sentence = (
        f"{result.trial.name}: by quadrature the NLL of {len(exact):,} test images is "
        f"{nats(-exact.mean(), '.3f')} (estimated error: at most {error.max():.2g} on each)."
    )
    excess, samples = values.get(("all test", "exact_above_iw")), result.scored_samples
    if excess is not None and samples is not None:
        sentence += (
            f" The run's own score ({result.scored_by.describe(samples)}) is "
            f"{nats(excess.mean())} nats above it, {nats(excess.max(), '.1f')} at most."
        )
    if (above := values.get(("test", "exact_above_annealed"))) is not None:
        errors = np.abs(above)
        sentence += (
            f" The annealed bound is off by {np.median(errors):.3f} nats in the median and "
            f"{nats(errors.max(), '.1f')} at most, on {len(errors)} of them."
        )
    return sentence


def _difference_sentences(results: Sequence[AuditResult]) -> Iterator[str]:
    """Yields how priors differ, exactly and by importance weighting, at the same seeds and D."""

    def kind(result: AuditResult) -> tuple[Any, ...]:
        exact = result.arrays["exact"]
        return result.trial.dataset, len(exact), result.scored_by.name, result.scored_samples or 0

    for (*_, estimator, samples), group in groupby(sorted(results, key=kind), key=kind):
        latest = {result.trial.id: result for result in group}.values()  # one for each trial
        rows = [
            {**trial_columns(result.trial), "run_id": result.run_id, "status": COMPLETE_TAG}
            | {"test/nll": -result.arrays["exact"].mean()}
            for result in latest
        ]
        tables = [
            comparison.pairs(
                pd.DataFrame(rows), {result.run_id: result.arrays[name] for result in latest}
            )
            for name in ("exact", *(["scored"] if samples else []))
        ]
        if tables[0].empty:  # one prior only
            continue
        _, settings = frames.setting_columns(tables[0])
        for number, (_, row) in enumerate(tables[0].iterrows()):
            if not row["pairs"]:
                continue
            differences = [f"{_difference_text(row)} by quadrature"]
            if samples:
                estimated = _difference_text(tables[1].iloc[number])
                differences.append(f"{estimated} by {estimator}, K = {samples}")
            seeds = "1 seed" if row["pairs"] == 1 else f"{row['pairs']} seeds"
            over = "no interval"
            if row["pairs"] >= 3:
                over = "; ".join(filter(None, [f"intervals over {row['covers']}", row["note"]]))
            yield (
                f"At {frames.setting_text(row, settings)}, the NLL of {row['prior']} minus that "
                f"of {row['against']}: {', '.join(differences)} ({seeds}: {over})."
            )


def _difference_text(row: pd.Series) -> str:
    difference = f"{nats(row['difference'], '+.3f')} nats"
    if math.isnan(row["low"]):
        return difference
    return f"{difference} [{nats(row['low'], '+.3f')}, {nats(row['high'], '+.3f')}]"
