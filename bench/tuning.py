"""Choose each prior's learning rate on validation images, at equal budget, before the comparison.

For every prior at every setting (latent size, net, precision) and each learning rate r of a list,

    V(r) = (1/S) sum_s  validation ELBO of the weights kept, fitted with r at tuning seed s

in nats per image. The rate with the largest V is taken; of equal ones the smallest, and none at
which a seed diverged. Each prior gets the same list and the same seeds, which are none of the
comparison's, and no test image is looked at: what is recorded is the fit alone. A prior fitted
post hoc keeps the rate of the model that it starts from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from mlflow.entities import Run
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flowvae.errors import InputError
from flowvae.trial import Trial

from .clipping import BEYOND, beyond, is_far, limit, span
from .command import RESULTS
from .grid import Grid, UnfinishedError
from .look import (
    CROSS,
    DOT,
    EDGED,
    SOFT,
    NoDataError,
    Style,
    crosses,
    panels,
    styles,
    theme,
    write,
)
from .opening import described
from .tracking import Store
from .wording import nats

__all__ = [
    "choose",
    "conclude_tuning",
    "edges",
    "read_tuning",
    "tuned",
    "tuning_curves",
    "tuning_trials",
]

SETTING = ["prior", "latent", "net", "precision"]
"""What a learning rate is chosen for."""
SHOWN = ("trial", *SETTING, "lr", "seed", "dataset", "binarise", "epochs", "select")
ENDED = ("complete", "diverged")
UNKNOWN = float("nan")


def _setting(trial: Trial) -> Trial:
    """Returns what a trial's rate is chosen for, as a trial of no rate and seed of its own."""
    return (trial.base or trial).but(seed=0, lr=1.0)


def tuning_trials(grid: Grid) -> list[Trial]:
    """Returns the trials to choose by, each once; all of a seed before the next seed."""
    settings = list(dict.fromkeys(map(_setting, grid.trials)))
    return [
        setting.but(seed=seed, lr=rate)
        for seed in grid.tune_seeds
        for setting in settings
        for rate in grid.rates
    ]


def tuned(grid: Grid, found: pd.DataFrame) -> Grid:
    """Returns the grid, its trials with the learning rates that were chosen.

    Arguments:
        grid: The grid.
        found: What `read_tuning` returned for it.

    Raises:
        UnfinishedError: Some trial of the tuning neither completed nor diverged.
        InputError: A prior diverged at each of its rates.
    """
    left = found[~found["status"].isin(ENDED)]
    if len(left):
        raise UnfinishedError(
            f"{len(left)} of the {len(found)} trials of the tuning are missing or failed: nothing "
            "can be chosen yet; the same command, without --figures-only, runs them"
        )
    for where, rows in _settings(found):
        if not rows["chosen"].any():
            tried = ", ".join(f"{rate:g}" for rate in grid.rates)
            raise InputError(
                f"tuning {where}: a seed diverged at each learning rate ({tried}); add smaller "
                "ones to --tune-lr"
            )
    rates = {
        _setting(trial): trial.lr
        for trial, chosen in zip(tuning_trials(grid), found["chosen"], strict=True)
        if chosen
    }
    trials = tuple(trial.but(lr=rates[_setting(trial)]) for trial in grid.trials)
    return dataclasses.replace(grid, trials=trials)


def read_tuning(store: Store, grid: Grid) -> pd.DataFrame:
    """Reads what the store holds of a grid's tuning, a row a trial, as `choose` marks it.

    Columns: `trial`, those of `SETTING`, `lr`, `seed`, the recipe, `epoch` whose weights were
    kept, its `valid_elbo` (nats per image), `status`, `reason`, `run_id`, `device`, `chosen`.
    """
    trials = tuning_trials(grid)
    runs = store.runs(trials)
    return choose(pd.DataFrame([_row(store, trial, runs.get(trial.id)) for trial in trials]))


def _row(store: Store, trial: Trial, run: Run | None) -> dict[str, Any]:
    known = described(trial)
    row = {name: known.get(name, "") for name in SHOWN}
    tags = run.data.tags if run else {}
    status = tags.get("status", "killed")
    row |= {"epoch": int(tags.get("selected_epoch", 0)), "valid_elbo": UNKNOWN}
    row |= {"status": "missing" if status == "killed" else status}
    row |= {"reason": tags.get("reason", ""), "device": tags.get("device", "")}
    if run is None:
        return {**row, "run_id": ""}
    if status == "complete":
        curve = store.client.get_metric_history(run.info.run_id, "valid/elbo")
        row["valid_elbo"] = next(p.value for p in curve if p.step == row["epoch"])
    return {**row, "run_id": run.info.run_id}


def choose(found: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows with a column `chosen`: those of the best learning rate of their setting.

    Arguments:
        found: A row a trial, with the columns of `SETTING`, `lr`, `seed`, `valid_elbo` (nan where
            it did not complete).
    """
    chosen = pd.Series(False, index=found.index)
    for _, rows in found.groupby(SETTING, sort=False):
        means = _means(rows).dropna()
        if len(means):
            best = means.idxmax()  # the first: the smallest of equal ones
            chosen |= found.index.isin(rows.index[rows["lr"] == best])
    return found.assign(chosen=chosen)


def _means(rows: pd.DataFrame) -> pd.Series:
    """Returns the mean validation ELBO by rate, rising; nan where a seed has none."""
    return rows.pivot(index="lr", columns="seed", values="valid_elbo").mean(axis=1, skipna=False)


def _settings(found: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yields each setting's rows, and the setting in words: the latent size, and what varies."""
    varying = [c for c in ("net", "precision") if found[c].nunique() > 1]
    for _, rows in found.groupby(SETTING, sort=False):
        first = rows.iloc[0]
        words = [f"D = {first['latent']}", *(str(first[c]) for c in varying)]
        yield f"{first['prior']} ({', '.join(words)})", rows


def edges(found: pd.DataFrame) -> list[str]:
    """Returns a sentence for each end of the list at which a chosen rate lies."""
    told = []
    rates = sorted(found["lr"].unique())
    for rate, word, more in ((rates[0], "smallest", "smaller"), (rates[-1], "largest", "larger")):
        at = [
            where
            for where, rows in _settings(found)
            if (rows["chosen"] & (rows["lr"] == rate)).any()
        ]
        if at:
            told.append(
                f"The learning rate chosen for {', '.join(at)} is the {word} of the list, "
                f"{rate:g}: a {more} one may be better; widen --tune-lr."
            )
    return told


def conclude_tuning(console: Console, name: str, found: pd.DataFrame) -> None:
    """Writes the tuning's table and figure under `results/local/NAME`, and prints what it chose.

    Arguments:
        console: Where to print.
        name: The grid's name.
        found: What `read_tuning` returned for it.
    """
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    console.print(_table(found))
    for sentence in edges(found):
        console.print(sentence, markup=False, soft_wrap=True)
    try:
        written = write(tuning_curves(found), folder / "tuning", found, 200)
    except NoDataError:  # all diverged, as the table says
        found.to_csv(folder / "tuning.csv", index=False)
        written = []
    for path in written:
        if path.suffix != ".svg":
            console.print(str(path), markup=False, soft_wrap=True)
    console.print()


def _table(found: pd.DataFrame) -> Table:
    """The validation ELBO by setting and rate, and the rate that was chosen."""
    seeds, rates = found["seed"].nunique(), sorted(found["lr"].unique())
    table = Table(
        title=f"Tuning: validation ELBO, nats per image, higher is better "
        f"(mean over {seeds} seed{'s' if seeds > 1 else ''})",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("prior", no_wrap=True)
    for rate in rates:
        table.add_column(f"lr {rate:g}", justify="right", no_wrap=True)
    table.add_column("chosen", justify="right", no_wrap=True)
    for where, rows in _settings(found):
        means, chosen = _means(rows), rows["lr"][rows["chosen"]]
        cells = [_cell(rows[rows["lr"] == rate], means[rate]) for rate in rates]
        table.add_row(Text(where), *cells, f"{chosen.iloc[0]:g}" if len(chosen) else "none")
    return table


def _cell(rows: pd.DataFrame, mean: float) -> str:
    lost = rows["status"][rows["status"] != "complete"]
    return nats(mean) if not len(lost) else str(lost.iloc[0])


@theme()
def tuning_curves(found: pd.DataFrame) -> Figure:
    """Draw the validation ELBO against the learning rate: a line a prior, the chosen one ringed.

    Small dots are the tuning seeds, the line is their mean, and a cross stands where one diverged.

    Arguments:
        found: A row a trial, as `read_tuning` returns.
    """
    if not (found["status"] == "complete").any():
        raise NoDataError("Expected a trial of the tuning that completed; got none.")
    look = styles([str(label) for label in dict.fromkeys(found["prior"])])
    where = ["latent", "net", "precision"]
    varying = [c for c in where if found[c].nunique() > 1]
    groups = list(found.groupby(where, sort=True))
    most = limit(found["valid_elbo"])
    note = _note(found) + (f"{DOT}{BEYOND}" if is_far(found["valid_elbo"], most).any() else "")
    figure, cells = panels(len(groups), note, size=(3.0, 2.6), extra=1.3)
    for ax, (key, rows) in zip(cells, groups, strict=True):
        for prior, style in look.items():
            _line(ax, rows[rows["prior"] == prior], style, most)
        names = dict(zip(where, key, strict=True))
        told = [f"D = {names[c]}" if c == "latent" else str(names[c]) for c in varying]
        _axes(ax, sorted(found["lr"].unique()), ", ".join(told))
        if is_far(rows["valid_elbo"], most).any():
            ax.set_ylim(*span(rows["valid_elbo"], most=most))
    for ax in cells[:: min(len(cells), 4)]:
        ax.set_ylabel("validation ELBO, nats per image\n(higher is better)")
    handles = [
        Line2D([], [], color=s.colour, ls=s.dash, marker=s.marker, ms=4, mfc=s.face, label=p)
        for p, s in look.items()
    ]
    handles.append(Line2D([], [], ls="", marker="o", ms=9, mfc="none", mec=SOFT, label="chosen"))
    figure.legend(handles=handles, loc="outside right upper", handlelength=2.6)
    return figure


def _note(found: pd.DataFrame) -> str:
    """Returns what the figure carries at its foot, as `look.footer` does for test scores."""
    first = found.iloc[0]
    epochs = ", ".join(f"{n}" for n in sorted(found["epochs"].unique()))
    seeds = ", ".join(f"{n}" for n in sorted(found["seed"].unique()))
    facts = [
        f"{first['dataset']}, {first['binarise']} binarisation",
        f"validation images, one sample an image, weights of the {first['select']} epoch",
        f"net {', '.join(found['net'].unique())}",
        f"epochs {epochs}",
        f"tuning seeds {seeds}, none of them in the comparison",
        *dict.fromkeys(device for device in found["device"] if device),
    ]
    lost = int((found["status"] == "diverged").sum())
    return DOT.join(facts + ([f"{CROSS} diverged: {lost} of {len(found)}"] if lost else []))


def _line(ax: Axes, rows: pd.DataFrame, style: Style, most: float) -> None:
    """Draws one prior in one panel; what lies beyond `most` is told at the edge."""
    if not len(rows):
        return
    means, colour = _means(rows), style.colour
    ax.plot(rows["lr"], rows["valid_elbo"], ".", color=colour, alpha=0.35, ms=4, mew=0)
    ax.plot(
        means.index, means, color=colour, ls=style.dash, marker=style.marker, ms=5,
        mfc=style.face, **EDGED,
    )  # fmt: skip
    for rate in means.index:
        seeds = rows["valid_elbo"][rows["lr"] == rate]
        if is_far(seeds, most).any():
            value = means[rate] if is_far(means[rate], most) else seeds.min()
            beyond(ax, float(rate), float(value), colour)
    best = rows["lr"][rows["chosen"]]
    if len(best):
        at = best.iloc[0]
        ax.plot(at, means[at], "o", ms=10, mfc="none", mec=colour, mew=1.2, gid="chosen")
    lost = rows["lr"][rows["status"] == "diverged"].unique()
    crosses(ax, lost, [colour] * len(lost))


def _axes(ax: Axes, rates: list[float], title: str) -> None:
    """Makes the x axis logarithmic, with ticks at the rates that were tried and no others."""
    ax.set(xscale="log", xlabel="learning rate", title=title)
    ax.set_xlim(rates[0] / 1.5, rates[-1] * 1.5)
    ax.margins(y=0.12)
    ax.xaxis.set_major_locator(FixedLocator(rates))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.grid(axis="y")
    sns.despine(ax=ax)
