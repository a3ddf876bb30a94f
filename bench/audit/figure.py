"""Figure of audits: bounds on the evidence and the audited estimate, run by run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.audit.quadrature import quadrature_values
from bench.audit.read import BOUND_NAMES, AuditResult
from bench.audit.summary import mean_and_error
from bench.figures.axis_limits import beyond_note, cut_y_axis, mark_beyond
from bench.figures.style import (
    COLOURS,
    GREY,
    HALO,
    WHITE_EDGE,
    join_facts,
    make_panels,
    set_log_ticks,
    theme,
    with_minus,
)
from bench.statistics.formatting import thousands
from bench.statistics.outliers import is_far, limit

__all__ = ["audit_bounds"]


SIMULATED_COLOUR, TEST_COLOUR, EXACT_COLOUR = COLOURS[:3]
LOOKS = {"simulated": (SIMULATED_COLOUR, "o", 0.93), "test": (TEST_COLOUR, "s", 1.07)}
"""Colour, marker and shift along x of each kind of images."""


@theme()
def audit_bounds(results: Sequence[AuditResult]) -> Figure:
    """Draws the audited estimate by K against the annealed bounds, a panel for each run."""
    audit = results[0].audit
    drawn = [
        -mean_and_error(result.shortfall(kind, k))[0]
        for result in results
        for kind in BOUND_NAMES
        for k in result.ladder
    ]
    drawn += [mean_and_error(result.width)[0] for result in results]
    exact_gaps = {
        result.run_id: float(gaps.mean())
        for result in results
        if (gaps := quadrature_values(result).get(("test", "exact_above_annealed"))) is not None
    }
    drawn += exact_gaps.values()
    bound = limit(drawn)
    note = join_facts(
        "; ".join(dict.fromkeys(result.trial.labels["dataset"] for result in results)),
        f"{audit.images} simulated and {audit.images} test images",
        "; ".join(dict.fromkeys(f"estimate: {result.describe()}" for result in results)),
        f"annealing: {audit.chains} chains, {audit.temperatures} temperatures, "
        f"{audit.leapfrogs} leapfrog steps",
        beyond_note(drawn, bound),
        "bars: standard error over images of the paired difference, not over seeds",
        *dict.fromkeys(result.device for result in results),
    )
    figure, cells = make_panels(
        len(results),
        note,
        size=(2.15, 3.3 if exact_gaps else 2.7),
        extra=0.9,
        sharex=True,
        sharey=True,
    )
    for ax, result in zip(cells, results, strict=True):
        _draw_estimates(ax, result, bound)
        gap = exact_gaps.get(result.run_id)
        if gap is not None and is_far(gap, bound):
            mark_beyond(ax, result.ladder[0], gap, EXACT_COLOUR)
        elif gap is not None:
            ax.axhline(gap, color=EXACT_COLOUR, lw=1.2, ls="--", zorder=2, gid="exact")
        _write_numbers(ax, result, exact=gap is not None)
        ax.set_title(result.trial.name)
        set_log_ticks(ax.xaxis, result.ladder, thousands)
        ax.set_xlabel("samples K")
        ax.grid(axis="y")
        sns.despine(ax=ax)
    cut_y_axis(cells[0], drawn, 0.0, bound=bound)
    cells[0].set_ylabel("mean log p(x) minus the annealed\nlower bound, nats per image")
    for ax in cells[:-4]:
        ax.set_xlabel("")
    for ax in cells[-4:]:  # the lowest of each column
        ax.tick_params(labelbottom=True)
    handles: list[Any] = [
        Line2D([], [], color=SIMULATED_COLOUR, marker="o", label="estimate, simulated images"),
        Line2D([], [], color=SIMULATED_COLOUR, alpha=0.28, lw=6, label="bracket by annealing"),
        Line2D([], [], color=TEST_COLOUR, marker="s", label="estimate, test images"),
        Line2D([], [], color="#444444", lw=0.8, label="annealed lower bound"),
    ]
    if exact_gaps:
        label = "exact, the same test images"
        handles.append(Line2D([], [], color=EXACT_COLOUR, ls="--", lw=1.2, label=label))
    columns = (3 if exact_gaps else 4) if len(results) > 2 else len(results)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, labelcolor=GREY)
    return figure


def _draw_estimates(ax: Axes, result: AuditResult, bound: float) -> None:
    """Draws the bracket, and the estimates by K with the number of the last one."""
    width, _ = mean_and_error(result.width)
    ax.axhspan(0, width, color=SIMULATED_COLOUR, alpha=0.28, lw=0, zorder=1, gid="bracket")
    ax.axhline(0, color="#444444", lw=0.8, zorder=2)
    samples = result.ladder[-1]
    last = {kind: -mean_and_error(result.shortfall(kind, samples))[0] for kind in BOUND_NAMES}
    for kind, (colour, marker, shift) in LOOKS.items():
        pairs = [mean_and_error(result.shortfall(kind, k)) for k in result.ladder]
        means, errors = np.transpose(pairs)
        ax.errorbar(
            np.array(result.ladder) * shift, -means, errors, color=colour, marker=marker, ms=4.5,
            lw=1.3, elinewidth=1, mec=WHITE_EDGE["mec"], mew=WHITE_EDGE["mew"], zorder=3,
            label=kind,
        )  # fmt: skip
        if is_far(last[kind], bound):
            mark_beyond(ax, samples, last[kind], colour)
            continue
        above = last[kind] == max(last.values())
        ax.annotate(
            with_minus(f"{last[kind]:+.2f}"), (samples, last[kind]), (8, 2 if above else -2),
            textcoords="offset points", size=7.5, color=colour,
            va="bottom" if above else "top", path_effects=HALO, annotation_clip=False,
        )  # fmt: skip


def _write_numbers(ax: Axes, result: AuditResult, *, exact: bool) -> None:
    """Writes bracket, bound and, with `exact`, the exact evidence into a panel, from below."""
    lines = []
    if exact:
        values = quadrature_values(result)
        if result.scored_samples is not None:
            excess = values["all test", "exact_above_iw"].mean()
            text = f"estimate, K = {thousands(result.scored_samples)}: {-excess:+.2f}"
            lines.append((text, EXACT_COLOUR))
        evidence = values["all test", "exact"]
        text = f"{len(evidence):,} test: exact {evidence.mean():.2f}"
        lines.append((text, EXACT_COLOUR))
    width, error = mean_and_error(result.width)
    low, high = result.arrays["lower"].mean(), result.arrays["upper"].mean()
    lines += [
        (f"test bound {result.arrays['real_lower'].mean():.2f}", TEST_COLOUR),
        (f"width {width:.2f} \N{PLUS-MINUS SIGN} {error:.2f}", SIMULATED_COLOUR),
        (f"bracket {low:.2f} to {high:.2f}", SIMULATED_COLOUR),
    ]
    for k, (text, colour) in enumerate(lines):
        ax.text(
            0.97, 0.035 + 0.07 * k, with_minus(text), size=7, color=colour, ha="right",
            transform=ax.transAxes, path_effects=HALO,
        )  # fmt: skip
