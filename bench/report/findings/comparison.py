"""Sentences on the comparison: differences, joint and post-hoc training, needed seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.statistics.arms import POST_HOC
from bench.statistics.comparison import OVER_SEEDS, sampled_over
from bench.statistics.formatting import decimals, nats
from bench.statistics.frames import setting_columns, setting_text
from bench.statistics.intervals import MAX_SEEDS

__all__ = [
    "comparison_sentences",
    "joint_training_sentences",
    "precision_sentences",
    "sentences_by_row",
]


def p_text(value: float) -> str:
    """Returns a Holm-adjusted p-value as text, never as zero."""
    return "Holm p < 0.001" if value < 0.001 else f"Holm p = {value:.3f}"


def comparison_sentences(summary: pd.DataFrame) -> list[str]:
    """Returns one sentence per arm that is compared to the reference.

    The reference has a sentence where it has no rival or has lost a seed.
    """
    return [*sentences_by_row(summary).values()]


def sentences_by_row(summary: pd.DataFrame) -> dict[Any, str]:
    """Returns the `comparison_sentences` by the index of their rows."""
    by, shown = setting_columns(summary)
    counts = summary.groupby(by, dropna=False)["prior"].transform("count")
    return {
        index: _sentence(row, shown, alone=bool(count == 1))
        for (index, row), count in zip(summary.iterrows(), counts, strict=True)
        if row["verdict"] != "reference" or count == 1 or row["mark"]
    }


def _sentence(row: pd.Series, shown: Sequence[str], *, alone: bool) -> str:
    setting = setting_text(row, shown)
    prior, against = row["prior"], row["reference"]
    d, low, high = row["difference"], row["low"], row["high"]
    n = f"{row['pairs']} seeds"
    hint = f"; {row['note']}" if row["note"] == "indicative" else ""
    mark = f"; {row['mark']}" if row["mark"] else ""
    if row["verdict"] == "reference" or alone:
        role = ", the reference," if row["verdict"] == "reference" and not alone else ""
        if not row["seeds"]:
            return f"At {setting}, {prior}{role} has no complete seed{mark}."
        low, high = (nats(row[end], ".1f") for end in ("nll_low", "nll_high"))
        interval = f" [{low}, {high}]" if row["seeds"] >= 3 else ""
        seeds = "1 seed" if row["seeds"] == 1 else f"{row['seeds']} seeds"
        value = f"{nats(row['nll'], '.1f')} nats{interval} ({seeds}){mark}"
        return f"At {setting}, {prior}{role} has a test NLL of {value}."
    if row["verdict"] == "too few seeds" and not row["pairs"]:
        return (
            f"At {setting}, {prior} and {against} cannot be compared: no seed is complete for "
            f"both{mark}."
        )
    q = f".{decimals(d)}f"
    difference = f"the test NLL of {prior} minus that of {against} is {nats(d, f'+{q}')} nats"
    if row["verdict"] == "too few seeds":
        return f"At {setting}, {difference} ({row['note']}){mark}."
    if row["verdict"] == "not resolved":
        needed = row["seeds_needed"]
        count = f"more than {MAX_SEEDS}" if np.isinf(needed) else f"about {needed:.0f}"
        return (
            f"At {setting}, {difference} [{nats(low, f'+{q}')}, {nats(high, f'+{q}')}] "
            f"({n}, {p_text(row['p_holm'])}{hint}), which is not resolved; {count} seeds would "
            f"resolve it{mark}."
        )
    verb, (low, high) = ("lowers", (-high, -low)) if d < 0 else ("raises", (low, high))
    return (
        f"At {setting}, {prior} {verb} the test NLL by {nats(abs(d), q)} nats "
        f"[{nats(low, q)}, {nats(high, q)}] against {against} "
        f"({n}, {p_text(row['p_holm'])}{hint}){mark}."
    )


def joint_training_sentences(pairs: pd.DataFrame) -> list[str]:
    """Returns one sentence per prior fitted in both ways: joint training minus post hoc."""
    sentences = []
    for _, row in pairs.iterrows():
        if row["prior"] != f"{row['against']}{POST_HOC}" or row["pairs"] < 3:
            continue
        d, low, high = -row["difference"], -row["high"], -row["low"]  # joint minus post hoc
        verdict = "resolved" if row["verdict"] in ("better", "worse") else "not resolved"
        sentences.append(
            f"At D = {row['latent']}, the test NLL of {row['against']} trained jointly minus that "
            f"of the same prior fitted post hoc is {nats(d, '+.2f')} nats "
            f"[{nats(low, '+.2f')}, {nats(high, '+.2f')}] "
            f"({row['pairs']} seeds, {verdict}, {p_text(row['p_holm'])} over all pairs)."
        )
    return sentences


def precision_sentences(summary: pd.DataFrame) -> list[str]:
    """Returns two sentences per setting: the parts of the differences' variance, and needed seeds.

    Settings without a comparison of at least 3 seeds are omitted: their variance is not known.
    """
    by, shown = setting_columns(summary)
    compared = summary[summary["sd_rest"].notna() & (summary["pairs"] >= 3)]
    return [
        f"At {setting_text(rows.iloc[0], shown)}, {_deviations_text(rows)}. {_seeds_text(rows)}."
        for _, rows in compared.groupby(by, dropna=False)
    ]


def _deviations_text(rows: pd.DataFrame) -> str:
    """Returns the components of a setting's comparisons as text: all, or ranges of many."""
    parts = ["sd_seed"] if sampled_over(rows) == OVER_SEEDS else ["sd_seed", "sd_image", "sd_rest"]
    if len(rows) > 3:
        seed, *others = (f"{rows[c].min():.2g} to {rows[c].max():.2g}" for c in parts)
        priors = ""
    else:
        seed, *others = (", ".join(f"{v:.2g}" for v in rows[c]) for c in parts)
        priors = f" ({', '.join(rows['prior'])})"
    reference = rows["reference"].iloc[0]
    caution = " (rough: 3 seeds)" if (rows["pairs"] == 3).all() else ""
    residuals = ", {} between images and {} in the residuals".format(*others) if others else ""
    return (
        f"the difference to {reference} has standard deviations of {seed} nats between "
        f"seeds{caution}{residuals}{priors}"
    )


def _seeds_text(rows: pd.DataFrame) -> str:
    """Returns the number of seeds that each prior needs for the wanted half-width, as text."""
    wanted = rows["resolution"].iloc[0]
    finite = np.isfinite(rows["seeds_for_resolution"])
    unreachable = ~finite & (rows["half_width_limit"] >= wanted)
    reached = rows["seeds_for_resolution"] <= rows["pairs"]
    counts = [
        f"{row['seeds_for_resolution']:.0f}{'' if k else ' seeds'} for {row['prior']}"
        for k, (_, row) in enumerate(rows[finite & ~reached].iterrows())
    ]
    parts = [f"is reached for {', '.join(rows['prior'][reached])}"] if reached.any() else []
    parts += [f"needs about {', '.join(counts)}"] if counts else []
    if len(beyond := rows["prior"][~finite & ~unreachable]):
        parts.append(f"needs more than {MAX_SEEDS} seeds for {', '.join(beyond)}")
    if unreachable.any():
        limits = [
            f"{row['prior']} (\N{PLUS-MINUS SIGN}{row['half_width_limit']:.3g})"
            for _, row in rows[unreachable].iterrows()
        ]
        parts.append(
            f"cannot be reached with any number of seeds for {', '.join(limits)}, because of the "
            "variance between test images"
        )
    return f"A 95 % interval of \N{PLUS-MINUS SIGN}{wanted:g} nats " + ", and ".join(parts)
