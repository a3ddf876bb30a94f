"""What audits found, read back from MLflow: as a table, as sentences and as a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from mlflow.entities import Run
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from flowvae.errors import InputError
from flowvae.trial import Audit, Trial

from . import exact
from .clipping import BEYOND, beyond, is_far, limit, span
from .look import COLOURS, DOT, EDGED, HALO, SOFT, panels, theme, thousands
from .tracking import Store
from .wording import nats

__all__ = ["Audited", "audit_bounds", "audit_frame", "read_audit", "sentences", "table"]

SIMULATED, REAL, EXACT_COLOUR = COLOURS[:3]
LOOK = {"simulated": (SIMULATED, "o", 0.93), "test": (REAL, "s", 1.07)}
"""Colour, marker and shift of a kind of images."""
MINUS = "\N{MINUS SIGN}"
BOUND = {"simulated": ("lower", "iw"), "test": ("real_lower", "real_iw")}
"""The forward bound and the estimate, by kind of images."""


@dataclass(frozen=True)
class Audited:
    """An audit of one run.

    Arguments:
        run_id: The run.
        trial: Its trial.
        audit: The description.
        arrays: The arrays of `flowvae.annealing.Bounds`, estimates as `iw_k1000`, and where there
            are few latent features those of `exact.ARRAYS`.
        means: The means by metric.
        device: The hardware.
        scored_samples: The K of the run's own score, or none.
    """

    run_id: str
    trial: Trial
    audit: Audit
    arrays: dict[str, NDArray[Any]]
    means: dict[str, float]
    device: str
    scored_samples: int | None = None

    def shortfall(self, kind: str, samples: int) -> NDArray[np.float64]:
        """Returns the forward bound minus the K-sample estimate, image by image, (N,), nats."""
        lower, ladder = BOUND[kind]
        return self.arrays[lower] - self.arrays[f"{ladder}_k{samples}"]

    @property
    def width(self) -> NDArray[np.float64]:
        """The upper minus the lower bound on simulated images, (N,), nats."""
        return self.arrays["upper"] - self.arrays["lower"]

    @property
    def ladder(self) -> list[int]:
        """The numbers of samples of the estimates."""
        return sorted(int(k.removeprefix("iw_k")) for k in self.arrays if k.startswith("iw_k"))


def read_audit(store: Store, run: Run, trial: Trial, audit: Audit) -> Audited:
    """Reads an audit back.

    Raises:
        InputError: The run does not hold it.
    """
    folder = store.artifact(run, f"audits/{audit.id}")
    if folder is None:
        raise InputError(f"run '{run.info.run_id}' holds no audit {audit.id}: --force makes it")
    means: dict[str, float] = {}
    for path in folder.glob("*means.json"):
        means |= json.loads(path.read_text())
    arrays = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    samples = means.get("audit/scored_samples")
    if samples is None:  # the scores are left from what this audit replaced
        arrays.pop("scored", None)
    return Audited(
        run.info.run_id,
        trial,
        audit,
        arrays,
        means,
        json.loads((folder / "audit.json").read_text())["device"],
        None if samples is None else int(samples),
    )


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
        values |= exact.arrays(each)
        for (kind, quantity), value in values.items():
            mean, error = _mean(value)
            what = {"kind": kind, "quantity": quantity, "mean": mean, "se_images": error}
            what |= {"least": value.min(), "most": value.max()}
            rows.append({**of, **what, **sizes, "images": len(value)})
    return pd.DataFrame(rows)


def table(audited: Sequence[Audited]) -> Table:
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


def sentences(audited: Sequence[Audited]) -> list[str]:
    """Returns what is exact, and for each run how far importance weighting falls short."""
    found = exact.sentences(audited)
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
        if (off := exact.arrays(each).get(("test", "exact_above_annealed"))) is not None
    }
    drawn += truths.values()
    most = limit(drawn)
    facts += [BEYOND] if is_far(drawn, most).any() else []
    facts.append("bars: standard error over images of the paired difference, not over seeds")
    facts += dict.fromkeys(each.device for each in audited)
    figure, cells = panels(
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
                elinewidth=1, mec=EDGED["mec"], mew=EDGED["mew"], zorder=3, label=kind,
            )  # fmt: skip
            above = last[kind] == max(last.values())
            if is_far(last[kind], most):
                beyond(ax, each.ladder[-1], last[kind], colour)
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
                beyond(ax, each.ladder[0], level, EXACT_COLOUR)
            else:
                ax.axhline(level, color=EXACT_COLOUR, lw=1.2, ls="--", zorder=2, gid="exact")
            found = exact.arrays(each)
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
    if is_far(drawn, most).any():
        cells[0].set_ylim(*span(drawn, 0.0, most=most))
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
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, labelcolor=SOFT)
    return figure
