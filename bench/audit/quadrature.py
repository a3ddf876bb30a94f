"""What quadrature tells of audited models whose latent space has one or two dimensions.

There log p(x) of all test images is integrated until the cells tell an error below a hundredth of
a nat, and how far an estimate is off needs no bound; see `flowvae.evaluation.quadrature`.
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
from bench.store.measurements import of_model
from bench.store.names import COMPLETE_TAG
from bench.store.run_info import described
from bench.store.run_writer import RunWriter
from bench.store.runs import Store

if TYPE_CHECKING:
    from bench.audit.read import Audited
    from flowvae.evaluation.quadrature import Evidence
    from flowvae.trial import Audit

__all__ = [
    "ARRAYS",
    "TOLERANCE",
    "arrays",
    "quadrature_sentences",
    "quadrature_table",
    "record_exact",
    "stored_scores",
]


TOLERANCE = 1e-2
"""Below which an image's cells are divided no more, nats; the mean over images is far closer."""
ARRAYS = ("exact", "exact_error", "scored")
"""log p(x) by quadrature, its error, and what the run's own score says of the same images."""
EVALUATION = "evaluation."


def stored_scores(store: Store, run: Run) -> tuple[int, NDArray[np.float64]] | None:
    """Returns the K and estimates of log p(x), (N,), behind a run's finite `test/nll`, or none."""
    nll = run.data.metrics.get("test/nll", math.nan)
    if not math.isfinite(nll):
        return None
    for tag in run.data.tags:
        if not tag.startswith(EVALUATION):
            continue
        folder = store.artifact(run, f"evaluations/{tag.removeprefix(EVALUATION)}")
        if folder is None:
            continue
        means = json.loads((folder / "means.json").read_text())
        if math.isclose(means.get("test/nll", math.nan), nll):
            ladder = {
                int(path.stem.removeprefix("loglik_k")): path
                for path in folder.glob("loglik_k*.npy")
            }
            samples = max(ladder)
            return samples, np.load(ladder[samples])
    return None


def record_exact(
    record: RunWriter,
    audit: Audit,
    found: Evidence,
    own: tuple[int, NDArray[np.float64]] | None,
    *,
    seconds: float,
) -> None:
    """Adds to a run's audit log p(x) by quadrature, its error, and the scores of the same images.

    Arguments:
        record: The run, which has the rest of the audit.
        audit: Its description.
        found: The evidence of N images.
        own: The run's K and its estimates, (N,), if it is scored.
        seconds: How long it took, s.
    """
    files = {"exact": found.log_p, "exact_error": found.error}
    means = {
        "audit/nll_exact": -float(found.log_p.mean()),
        "audit/exact_error": float(found.error.max()),
        "audit/exact_seconds": seconds,
    }
    if own:
        samples, files["scored"] = own
        means["audit/scored_samples"] = float(samples)
    record.write(of_model("audit", audit.id, files, means, prefix="exact_"))
    record.flush()


def arrays(each: Audited) -> dict[tuple[str, str], NDArray[np.float64]]:
    """Returns what an audit's table has of quadrature, by kind of images and quantity, nats."""
    if "exact" not in each.arrays:
        return {}
    exact, error, scored = (each.arrays.get(name) for name in ARRAYS)
    assert exact is not None
    assert error is not None
    found = {("all test", "exact"): exact, ("all test", "exact_error"): error}
    if scored is not None:
        found["all test", f"iw_k{each.scored_samples}"] = scored
        found["all test", "exact_above_iw"] = exact - scored
    chosen = each.arrays["index"]
    known = chosen < len(exact)
    if known.any():
        lower = each.arrays["real_lower"][known]
        found["test", "exact"] = exact[chosen[known]]
        found["test", "exact_above_annealed"] = exact[chosen[known]] - lower
    return found


def quadrature_table(audited: Sequence[Audited]) -> Table | None:
    """Returns one row a run that has it, with the run's own score beside it, or none."""
    known = [each for each in audited if "exact" in each.arrays]
    if not known:
        return None
    found = Table(
        title="By quadrature: the NLL of all scored test images, nats per image",
        caption="IW: the run's own test NLL, by importance weighting with K samples; how far it "
        "is above,\nin the mean and at most on an image.",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    found.add_column("run")
    for column in ("images", "exact", "IW", "K", "above", "at most", "s"):
        found.add_column(column, justify="right", no_wrap=True)
    for each in known:
        values = arrays(each)
        truth, over = values["all test", "exact"], values.get(("all test", "exact_above_iw"))
        own = ["", "", "", ""]
        if over is not None:
            score = -each.arrays["scored"].mean()
            own = [f"{score:.3f}", f"{each.scored_samples:,}", nats(over.mean(), ".3f")]
            own.append(nats(over.max(), ".1f"))
        seconds = each.means.get("audit/exact_seconds", math.nan)
        found.add_row(
            each.trial.name, f"{len(truth):,}", f"{-truth.mean():.3f}", *own, f"{seconds:.0f}"
        )
    return found


def quadrature_sentences(audited: Sequence[Audited]) -> list[str]:
    """Returns for each run what quadrature found, then the differences between priors."""
    known = [each for each in audited if "exact" in each.arrays]
    return [*(_alone(each) for each in known), *_differences(known)]


def _alone(each: Audited) -> str:
    found = arrays(each)
    exact, error = found["all test", "exact"], found["all test", "exact_error"]
    said = (
        f"{each.trial.name}: by quadrature the NLL of {len(exact):,} test images is "
        f"{nats(-exact.mean(), '.3f')} (the cells tell an error of {error.max():.2g} at most on "
        "each)."
    )
    if (over := found.get(("all test", "exact_above_iw"))) is not None:
        said += (
            f" Importance weighting with the run's K = {each.scored_samples} is "
            f"{nats(over.mean())} nats above it, {nats(over.max(), '.1f')} at most."
        )
    if (off := found.get(("test", "exact_above_annealed"))) is not None:
        off = np.abs(off)
        said += (
            f" Annealing's bound is off by {np.median(off):.3f} nats in the median and "
            f"{nats(off.max(), '.1f')} at most, on {len(off)} of them."
        )
    return said


def _differences(known: Sequence[Audited]) -> Iterator[str]:
    """Says how priors differ, exactly and by importance weighting, at the same seeds and D."""

    def kind(each: Audited) -> tuple[Any, ...]:
        return each.trial.dataset, len(each.arrays["exact"]), each.scored_samples or 0

    for (*_, samples), some in groupby(sorted(known, key=kind), key=kind):
        runs = {each.trial.id: each for each in some}  # of two runs of a trial the last
        rows = [
            {**described(each.trial), "run_id": each.run_id, "status": COMPLETE_TAG}
            | {"test/nll": -each.arrays["exact"].mean()}
            for each in runs.values()
        ]
        frame = pd.DataFrame(rows)
        names = ("exact", *(["scored"] if samples else []))
        tables = [
            comparison.pairs(frame, {each.run_id: each.arrays[name] for each in runs.values()})
            for name in names
        ]
        if tables[0].empty:  # one prior alone
            continue
        _, told = frames.setting_columns(tables[0])
        for number, (_, row) in enumerate(tables[0].iterrows()):
            if not row["pairs"]:
                continue
            said = [f"{_difference(row)} by quadrature"]
            if samples:
                estimated = _difference(tables[1].iloc[number])
                said.append(f"{estimated} by importance weighting with K = {samples}")
            seeds = "1 seed" if row["pairs"] == 1 else f"{row['pairs']} seeds"
            over = "no interval"
            if row["pairs"] >= 3:
                over = "; ".join(filter(None, [f"intervals over {row['covers']}", row["note"]]))
            yield (
                f"At {frames.where(row, told)}, the NLL of {row['prior']} minus that of "
                f"{row['against']}: {', '.join(said)} ({seeds}: {over})."
            )


def _difference(row: pd.Series) -> str:
    said = f"{nats(row['difference'], '+.3f')} nats"
    if math.isnan(row["low"]):
        return said
    return f"{said} [{nats(row['low'], '+.3f')}, {nats(row['high'], '+.3f')}]"
