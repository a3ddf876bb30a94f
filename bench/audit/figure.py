"""The figure of an audit: bounds on the evidence, model by model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.audit import quadrature
from bench.audit.read import BOUND, Audited
from bench.audit.summary import _mean
from bench.figures.axis_limits import BEYOND_AXIS, cut_y_axis, mark_beyond
from bench.figures.style import COLOURS, GREY, HALO, WHITE_EDGE, make_panels, theme
from bench.statistics.captions import DOT
from bench.statistics.formatting import thousands
from bench.statistics.outliers import is_far, limit

__all__ = ["audit_bounds"]


SIMULATED, REAL, EXACT_COLOUR = COLOURS[:3]
LOOK = {"simulated": (SIMULATED, "o", 0.93), "test": (REAL, "s", 1.07)}
"""Colour, marker and shift of a kind of images."""
MINUS = "\N{MINUS SIGN}"


@theme()
def audit_bounds(audited: Sequence[Audited]) -> Figure:
    """Draw importance weighting by K against the annealed bounds, a panel for each run."""
    first = audited[0]
    data = "; ".join(dict.fromkeys(each.trial.labels["dataset"] for each in audited))
    facts = [data, f"{first.audit.images} simulated and {first.audit.images} test images"]
    facts.append(
        f"annealing: {first.audit.chains} chains, {first.audit.temperatures} temperatures, "
        f"{first.audit.leapfrogs} leapfrog steps"
    )
    drawn = [
        -_mean(each.shortfall(kind, k))[0]
        for each in audited
        for kind in BOUND
        for k in each.ladder
    ]
    drawn += [_mean(each.width)[0] for each in audited]
    truths = {
        each.run_id: float(off.mean())
        for each in audited
        if (off := quadrature.arrays(each).get(("test", "exact_above_annealed"))) is not None
    }
    drawn += truths.values()
    most = limit(drawn)
    facts += [BEYOND_AXIS] if is_far(drawn, most).any() else []
    facts.append("bars: standard error over images of the paired difference, not over seeds")
    facts += dict.fromkeys(each.device for each in audited)
    figure, cells = make_panels(
        len(audited),
        DOT.join(facts),
        size=(2.15, 3.3 if truths else 2.7),
        extra=0.9,
        sharex=True,
        sharey=True,
    )
    for ax, each in zip(cells, audited, strict=True):
        width, error = _mean(each.width)
        ax.axhspan(0, width, color=SIMULATED, alpha=0.28, lw=0, zorder=1, gid="bracket")
        ax.axhline(0, color="#444444", lw=0.8, zorder=2)
        last = {kind: -_mean(each.shortfall(kind, each.ladder[-1]))[0] for kind in BOUND}
        for kind, (colour, marker, shift) in LOOK.items():
            means, errors = np.transpose([_mean(each.shortfall(kind, k)) for k in each.ladder])
            x = np.array(each.ladder) * shift
            ax.errorbar(
                x, -means, errors, color=colour, marker=marker, ms=4.5, lw=1.3,
                elinewidth=1, mec=WHITE_EDGE["mec"], mew=WHITE_EDGE["mew"], zorder=3, label=kind,
            )  # fmt: skip
            above = last[kind] == max(last.values())
            if is_far(last[kind], most):
                mark_beyond(ax, each.ladder[-1], last[kind], colour)
                continue
            ax.annotate(
                f"{last[kind]:+.2f}".replace("-", MINUS), (each.ladder[-1], last[kind]),
                (8, 2 if above else -2), textcoords="offset points", size=7.5, color=colour,
                va="bottom" if above else "top", path_effects=HALO, annotation_clip=False,
            )  # fmt: skip
        lines = []
        if each.run_id in truths:
            level = truths[each.run_id]
            if is_far(level, most):
                mark_beyond(ax, each.ladder[0], level, EXACT_COLOUR)
            else:
                ax.axhline(level, color=EXACT_COLOUR, lw=1.2, ls="--", zorder=2, gid="exact")
            found = quadrature.arrays(each)
            if each.scored_samples is not None:
                over = found["all test", "exact_above_iw"]
                text = f"IW, K = {thousands(each.scored_samples)}: {-over.mean():+.2f}"
                lines.append((text.replace("-", MINUS), EXACT_COLOUR))
            truth = found["all test", "exact"]
            text = f"{len(truth):,} test: exact {truth.mean():.2f}"
            lines.append((text.replace("-", MINUS), EXACT_COLOUR))
        low, high = each.arrays["lower"].mean(), each.arrays["upper"].mean()
        bracket = f"{low:.2f} to {high:.2f}".replace("-", MINUS)
        real = f"{each.arrays['real_lower'].mean():.2f}".replace("-", MINUS)
        ax.set_title(each.trial.name)
        lines += [
            (f"test bound {real}", REAL),
            (f"width {width:.2f} \N{PLUS-MINUS SIGN} {error:.2f}", SIMULATED),
            (f"bracket {bracket}", SIMULATED),
        ]
        for k, (text, colour) in enumerate(lines):
            ax.text(
                0.97, 0.035 + 0.07 * k, text, size=7, color=colour, ha="right",
                transform=ax.transAxes, path_effects=HALO,
            )  # fmt: skip
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator(each.ladder))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda k, _: thousands(k)))
        ax.set_xlabel("importance samples K")
        ax.grid(axis="y")
        sns.despine(ax=ax)
    cut_y_axis(cells[0], drawn, 0.0, bound=most)
    cells[0].set_ylabel("mean log p(x) minus the annealed\nlower bound, nats per image")
    handles: list[Any] = [
        Line2D([], [], color=SIMULATED, marker="o", label="IW, simulated images"),
        Line2D([], [], color=SIMULATED, alpha=0.28, lw=6, label="bracket by annealing"),
        Line2D([], [], color=REAL, marker="s", label="IW, test images"),
        Line2D([], [], color="#444444", lw=0.8, label="annealed lower bound"),
    ]
    if truths:
        label = "exact, the same test images"
        handles.append(Line2D([], [], color=EXACT_COLOUR, ls="--", lw=1.2, label=label))
    columns = (3 if truths else 4) if len(audited) > 2 else len(audited)
    for ax in cells[:-4]:
        ax.set_xlabel("")
    for ax in cells[-4:]:  # below which there is none
        ax.tick_params(labelbottom=True)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, labelcolor=GREY)
    return figure
