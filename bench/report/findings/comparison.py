"""Sentences on the comparison: differences, stages, seeds that are needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.statistics.arms import POST_HOC
from bench.statistics.comparison import SEEDS, over
from bench.statistics.formatting import decimals, nats
from bench.statistics.frames import setting_columns, where
from bench.statistics.intervals import (
    MOST_SEEDS,
)

__all__ = ["comparison_sentences", "resolutions", "stages", "worded"]


def p_text(value: float) -> str:
    return "Holm p < 0.001" if value < 0.001 else f"Holm p = {value:.3f}"


def comparison_sentences(summary: pd.DataFrame) -> list[str]:
    """Return what `summary` found in words, one sentence an arm that is not the reference.

    The reference gets a sentence where it stands alone or has lost a seed.
    """
    return [*worded(summary).values()]


def worded(summary: pd.DataFrame) -> dict[Any, str]:
    """Return the `comparison_sentences` by the row that each tells of."""
    by, told = setting_columns(summary)
    company = summary.groupby(by, dropna=False)["prior"].transform("count")
    return {
        index: _sentence(row, told, alone=bool(count == 1))
        for (index, row), count in zip(summary.iterrows(), company, strict=True)
        if row["verdict"] != "reference" or count == 1 or row["mark"]
    }


def _sentence(row: pd.Series, told: Sequence[str], *, alone: bool) -> str:
    place = where(row, told)
    prior, against = row["prior"], row["reference"]
    d, low, high = row["difference"], row["low"], row["high"]
    n = f"{row['pairs']} seeds"
    hint = f"; {row['note']}" if row["note"] == "indicative" else ""
    mark = f"; {row['mark']}" if row["mark"] else ""
    if row["verdict"] == "reference" or alone:
        role = ", the reference," if row["verdict"] == "reference" and not alone else ""
        if not row["seeds"]:
            return f"At {place}, {prior}{role} has no complete seed{mark}."
        low, high = (nats(row[end], ".1f") for end in ("nll_low", "nll_high"))
        span = f" [{low}, {high}]" if row["seeds"] >= 3 else ""
        some = "1 seed" if row["seeds"] == 1 else f"{row['seeds']} seeds"
        value = f"{nats(row['nll'], '.1f')} nats{span} ({some}){mark}"
        return f"At {place}, {prior}{role} has a test NLL of {value}."
    q = f".{decimals(d)}f"
    if row["verdict"] == "too few seeds":
        got = f": {nats(d, f'+{q}')} nats, {row['note']}" if row["pairs"] else ": no complete pair"
        return f"At {place}, {prior} against {against}{got}{mark}."
    if row["verdict"] == "not resolved":
        more = row["seeds_needed"]
        many = f"more than {MOST_SEEDS}" if np.isinf(more) else f"about {more:.0f}"
        return (
            f"At {place}, {prior} against {against} is not resolved: {nats(d, f'+{q}')} nats "
            f"[{nats(low, f'+{q}')}, {nats(high, f'+{q}')}] ({n}, {p_text(row['p_holm'])}{hint}); "
            f"{many} seeds would resolve it{mark}."
        )
    verb, (low, high) = ("lowers", (-high, -low)) if d < 0 else ("raises", (low, high))
    return (
        f"At {place}, {prior} {verb} the test NLL by {nats(abs(d), q)} nats "
        f"[{nats(low, q)}, {nats(high, q)}] against {against} "
        f"({n}, {p_text(row['p_holm'])}{hint}){mark}."
    )


def stages(pairs: pd.DataFrame) -> list[str]:
    """Return, for each prior fitted in both ways, what joint training brings beyond post hoc."""
    found = []
    for _, row in pairs.iterrows():
        if row["prior"] != f"{row['against']}{POST_HOC}" or row["pairs"] < 3:
            continue
        d, low, high = -row["difference"], -row["high"], -row["low"]  # joint minus post hoc
        told = "resolved" if row["verdict"] in ("better", "worse") else "not resolved"
        found.append(
            f"At D = {row['latent']}, {row['against']} trained jointly differs from the same "
            f"prior fitted post hoc by {nats(d, '+.2f')} nats "
            f"[{nats(low, '+.2f')}, {nats(high, '+.2f')}] "
            f"({row['pairs']} seeds, {told}, {p_text(row['p_holm'])} over all pairs)."
        )
    return found


def resolutions(summary: pd.DataFrame) -> list[str]:
    """Return two sentences a setting: what the intervals are made of, and what narrows them.

    Settings without a comparison of at least 3 seeds are left out: nothing can be estimated there.
    """
    by, told = setting_columns(summary)
    known = summary[summary["sd_rest"].notna() & (summary["pairs"] >= 3)]
    return [
        f"At {where(rows.iloc[0], told)}, {_spread(rows)}. {_seeds(rows)}."
        for _, rows in known.groupby(by, dropna=False)
    ]


def _spread(rows: pd.DataFrame) -> str:
    """Return the components of one setting's comparisons in words: each, or ranges if many."""
    parts = ["sd_seed"] if over(rows) == SEEDS else ["sd_seed", "sd_image", "sd_rest"]
    if len(rows) > 3:
        seed, *others = (f"{rows[c].min():.2g} to {rows[c].max():.2g}" for c in parts)
        tail = ""
    else:
        seed, *others = (", ".join(f"{v:.2g}" for v in rows[c]) for c in parts)
        tail = f" ({', '.join(rows['prior'])})"
    first = rows["reference"].iloc[0]
    few = " (rough: 3 seeds)" if (rows["pairs"] == 3).all() else ""
    among = ", {} between images and {} in the rest".format(*others) if others else ""
    return (
        f"the difference to {first} has standard deviations of {seed} nats between seeds{few}"
        f"{among}{tail}"
    )


def _seeds(rows: pd.DataFrame) -> str:
    """Return in words how many seeds the wanted half-width takes, prior by prior."""
    wanted = rows["resolution"].iloc[0]
    finite = np.isfinite(rows["seeds_for_resolution"])
    never = ~finite & (rows["half_width_limit"] >= wanted)
    met = rows["seeds_for_resolution"] <= rows["pairs"]
    counts = [
        f"{row['seeds_for_resolution']:.0f}{'' if k else ' seeds'} for {row['prior']}"
        for k, (_, row) in enumerate(rows[finite & ~met].iterrows())
    ]
    parts = [f"is reached for {', '.join(rows['prior'][met])}"] if met.any() else []
    parts += [f"takes about {', '.join(counts)}"] if counts else []
    if len(beyond := rows["prior"][~finite & ~never]):
        parts.append(f"takes more than {MOST_SEEDS} seeds for {', '.join(beyond)}")
    if never.any():
        left = [
            f"{row['prior']} (\N{PLUS-MINUS SIGN}{row['half_width_limit']:.3g})"
            for _, row in rows[never].iterrows()
        ]
        parts.append(
            f"is out of reach of any number of seeds for {', '.join(left)}, where the test images "
            "alone leave more"
        )
    return f"A 95 % interval of \N{PLUS-MINUS SIGN}{wanted:g} nats " + ", and ".join(parts)
