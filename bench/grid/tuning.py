"""Chooses each prior's learning rate on validation images, at equal budget, before the comparison.

For every prior at every setting (latent size, net, precision) and each learning rate r of a list,

    V(r) = (1/S) sum_s  validation ELBO of the weights kept, fitted with r at tuning seed s

in nats per image. The rate with the largest V is chosen; of equal ones the smallest, and never one
at which a seed diverged. Each prior gets the same list and the same seeds, none of them a seed of
the comparison, and no test image is used: the runs record the fit alone. A prior fitted post hoc
keeps the rate of the model that it starts from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pandas as pd

from bench.grid.grid import Grid
from bench.grid.job import UnfinishedError
from flowvae.errors import InputError
from flowvae.trial import Trial

__all__ = [
    "SETTING_COLUMNS",
    "edge_warnings",
    "mark_chosen",
    "mean_elbos",
    "tuned",
    "tuned_settings",
    "tuning_trials",
]


SETTING_COLUMNS = ["prior", "latent", "net", "precision"]
"""Columns of a setting: a learning rate is chosen for each."""
ENDED_STATUSES = ("complete", "diverged")


def _setting(trial: Trial) -> Trial:
    """Returns the setting that a trial's rate is chosen for, as a trial of fixed rate and seed."""
    return (trial.base or trial).but(seed=0, lr=1.0)


def tuning_trials(grid: Grid) -> list[Trial]:
    """Returns the trials of the tuning, each once; all of a seed before the next seed."""
    settings = list(dict.fromkeys(map(_setting, grid.trials)))
    return [
        setting.but(seed=seed, lr=rate)
        for seed in grid.tune_seeds
        for setting in settings
        for rate in grid.rates
    ]


def tuned(grid: Grid, frame: pd.DataFrame) -> Grid:
    """Returns the grid, its trials with the chosen learning rates.

    Arguments:
        grid: The grid.
        frame: The trials of its tuning, see `read_tuning`.

    Raises:
        UnfinishedError: Some trial of the tuning neither completed nor diverged.
        InputError: A prior diverged at each of its rates.
    """
    unfinished = frame[~frame["status"].isin(ENDED_STATUSES)]
    if len(unfinished):
        raise UnfinishedError(
            f"{len(unfinished)} of the {len(frame)} trials of the tuning are missing or failed: "
            "no learning rate can be chosen yet; the same command, without --figures-only, runs "
            "them"
        )
    for where, rows in tuned_settings(frame):
        if not rows["chosen"].any():
            tried = ", ".join(f"{rate:g}" for rate in grid.rates)
            raise InputError(
                f"tuning {where}: a seed diverged at each learning rate ({tried}); add smaller "
                "ones to --tune-lr"
            )
    rates = {
        _setting(trial): trial.lr
        for trial, chosen in zip(tuning_trials(grid), frame["chosen"], strict=True)
        if chosen
    }
    trials = tuple(trial.but(lr=rates[_setting(trial)]) for trial in grid.trials)
    return dataclasses.replace(grid, trials=trials)


def mark_chosen(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds a column `chosen`: whether a trial has the best learning rate of its setting.

    Arguments:
        frame: One row per trial, with the columns of `SETTING_COLUMNS`, `lr`, `seed`,
            `valid_elbo` (nan if it did not complete).
    """
    chosen = pd.Series(False, index=frame.index)
    for _, rows in frame.groupby(SETTING_COLUMNS, sort=False):
        means = mean_elbos(rows).dropna()
        if len(means):
            best = means.idxmax()  # the first: the smallest of equal ones
            chosen |= frame.index.isin(rows.index[rows["lr"] == best])
    return frame.assign(chosen=chosen)


def mean_elbos(rows: pd.DataFrame) -> pd.Series:
    """Returns the mean validation ELBO by rate, increasing; nan if a seed has none."""
    return rows.pivot(index="lr", columns="seed", values="valid_elbo").mean(axis=1, skipna=False)


def tuned_settings(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yields each setting in words (prior, latent size, columns that vary) with its rows."""
    varying = [c for c in ("net", "precision") if frame[c].nunique() > 1]
    for _, rows in frame.groupby(SETTING_COLUMNS, sort=False):
        first = rows.iloc[0]
        words = [f"D = {first['latent']}", *(str(first[c]) for c in varying)]
        yield f"{first['prior']} ({', '.join(words)})", rows


def edge_warnings(frame: pd.DataFrame) -> list[str]:
    """Returns a sentence for each end of the list that was chosen for some setting."""
    sentences = []
    rates = sorted(frame["lr"].unique())
    for rate, word, more in ((rates[0], "smallest", "smaller"), (rates[-1], "largest", "larger")):
        settings = [
            where
            for where, rows in tuned_settings(frame)
            if (rows["chosen"] & (rows["lr"] == rate)).any()
        ]
        if settings:
            sentences.append(
                f"The learning rate chosen for {', '.join(settings)} is the {word} of the list, "
                f"{rate:g}: a {more} one may be better; widen --tune-lr."
            )
    return sentences
