"""Say first what a grid was run for: the best prior of each setting, and what it is not told from.

Both are sentences that a person also reads at the end of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from . import stats

__all__ = ["answer", "unresolved"]


def _families(summary: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, pd.Series | None]]:
    """Yield the arms of each setting, and of those compared the one to name first.

    One that is resolved to be better comes before one that is not, one without a diverged seed
    before one that has some; then the paired difference decides.
    """
    by, _ = stats.settings(summary)
    for _, rows in summary.groupby(by, dropna=False):
        order = rows.assign(doubtful=rows["verdict"] != "better", lost=rows["diverged"] > 0)
        order = order[order["difference"].notna()].sort_values(["doubtful", "lost", "difference"])
        yield rows, order.iloc[0] if len(order) else None


def _rivals(first: pd.Series, pairs: pd.DataFrame, by: Sequence[str]) -> list[str]:
    """Return the priors, but for the reference, from which the first is not resolved."""
    given, mine = pairs[[*by]], first[[*by]]
    same = (given == mine) | (given.isna() & mine.isna())  # no clipping is a setting, too
    return [
        other
        for _, row in pairs[same.all(axis=1)].iterrows()
        for one, other in ((row["prior"], row["against"]), (row["against"], row["prior"]))
        if one == first["prior"] and other != first["reference"]
        if row["verdict"] == "not resolved"
    ]


def _sentence(first: pd.Series | None, pairs: pd.DataFrame, summary: pd.DataFrame) -> str:
    """Return from which rivals the best prior of a setting is not resolved, or nothing."""
    if first is None or first["verdict"] != "better":
        return ""
    by, told = stats.settings(summary)
    rivals = _rivals(first, pairs, by)
    if not rivals:
        return ""
    return (
        f"At {stats.where(first, told)}, {first['prior']} is not resolved from "
        f"{', '.join(rivals)} (Holm-adjusted over all pairs)."
    )


def unresolved(summary: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """Return a sentence for each setting whose best prior is not resolved from some other."""
    said = (_sentence(first, pairs, summary) for _, first in _families(summary))
    return [sentence for sentence in said if sentence]


def answer(summary: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """Return what the best prior of each setting brings, and what it is not resolved from.

    Where nothing could be compared, all that is said of the setting.
    """
    told, said = stats.worded(summary), []
    for rows, first in _families(summary):
        found = rows.index if first is None else [first.name]
        said += [told[index] for index in found if index in told]
        said += filter(None, [_sentence(first, pairs, summary)])
    return said
