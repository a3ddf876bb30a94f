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

import pandas as pd

from bench.grid.grid import Grid
from bench.grid.job import UnfinishedError
from flowvae.errors import InputError
from flowvae.trial import Trial

__all__ = ["SETTING", "choose", "edges", "mean_elbos", "tuned", "tuned_settings", "tuning_trials"]


SETTING = ["prior", "latent", "net", "precision"]
"""What a learning rate is chosen for."""
ENDED = ("complete", "diverged")


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
    for where, rows in tuned_settings(found):
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


def choose(found: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows with a column `chosen`: those of the best learning rate of their setting.

    Arguments:
        found: A row a trial, with the columns of `SETTING`, `lr`, `seed`, `valid_elbo` (nan where
            it did not complete).
    """
    chosen = pd.Series(False, index=found.index)
    for _, rows in found.groupby(SETTING, sort=False):
        means = mean_elbos(rows).dropna()
        if len(means):
            best = means.idxmax()  # the first: the smallest of equal ones
            chosen |= found.index.isin(rows.index[rows["lr"] == best])
    return found.assign(chosen=chosen)


def mean_elbos(rows: pd.DataFrame) -> pd.Series:
    """Returns the mean validation ELBO by rate, rising; nan where a seed has none."""
    return rows.pivot(index="lr", columns="seed", values="valid_elbo").mean(axis=1, skipna=False)


def tuned_settings(found: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
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
            for where, rows in tuned_settings(found)
            if (rows["chosen"] & (rows["lr"] == rate)).any()
        ]
        if at:
            told.append(
                f"The learning rate chosen for {', '.join(at)} is the {word} of the list, "
                f"{rate:g}: a {more} one may be better; widen --tune-lr."
            )
    return told
