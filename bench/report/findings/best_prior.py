"""Sentences on the best prior of each setting, and on its differences to the other priors.

They are the answer at the top of a report, and are also printed at the end of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from bench.report.findings import comparison as comparison_findings
from bench.statistics import frames
from bench.statistics.formatting import decimals, nats

__all__ = ["answer_sentences", "rival_sentences"]


MAX_LISTED_PRIORS = 3
"""The largest number of worse priors that a sentence names with their differences."""


def _iterate_settings(
    summary: pd.DataFrame,
) -> Iterator[tuple[pd.DataFrame, pd.Series | None]]:
    """Yields the arms of each setting, and the first of those that are compared.

    An arm that is resolved to be better comes before one that is not, an arm without a diverged
    seed before one with some; then the paired difference decides.
    """
    by, _ = frames.setting_columns(summary)
    for _, rows in summary.groupby(by, dropna=False):
        order = rows.assign(doubtful=rows["verdict"] != "better", lost=rows["diverged"] > 0)
        order = order[order["difference"].notna()].sort_values(["doubtful", "lost", "difference"])
        yield rows, order.iloc[0] if len(order) else None


def _rival_pairs(first: pd.Series, pairs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Returns the pairs of an arm with all arms but the reference, the arm as `prior`."""
    given, wanted = pairs[[*by]], first[[*by]]
    same = ((given == wanted) | (given.isna() & wanted.isna())).all(axis=1)  # NaN is a setting
    forward = pairs[same & (pairs["prior"] == first["prior"])]
    reverse = pairs[same & (pairs["against"] == first["prior"])]
    turned = reverse.assign(
        prior=reverse["against"], against=reverse["prior"], difference=-reverse["difference"],
        low=-reverse["high"], high=-reverse["low"],
        verdict=reverse["verdict"].replace({"better": "worse", "worse": "better"}),
    )  # fmt: skip
    rivals = pd.concat([forward, turned])
    return rivals[rivals["against"] != first["reference"]]


def _worse_priors_text(beaten: pd.DataFrame, others: int, reference: str) -> str:
    """Returns the priors that an arm is better than, and by how much; a range for many.

    Arguments:
        beaten: The pairs in which the arm is better.
        others: The number of all priors except its own and the reference.
        reference: The reference, to which another sentence compares it.
    """
    if len(beaten) <= MAX_LISTED_PRIORS:
        parts = []
        for _, row in beaten.sort_values("difference", ascending=False).iterrows():
            d, low, high = -row["difference"], -row["high"], -row["low"]
            q = f".{decimals(d)}f"
            interval = f"[{nats(low, q)}, {nats(high, q)}]"
            parts.append(f"{row['against']} by {nats(d, q)} nats {interval}")
        return ", ".join(parts)
    least, most = -beaten["difference"].max(), -beaten["difference"].min()
    count = f"all {others}" if len(beaten) == others else f"{len(beaten)} of the {others}"
    span = " to ".join(nats(d, f".{decimals(d)}f") for d in (least, most))
    return f"{count} other priors besides {reference} by {span} nats"


def _sentence(first: pd.Series | None, pairs: pd.DataFrame, summary: pd.DataFrame) -> str:
    """Returns a sentence on the best prior of a setting and its rivals, or nothing.

    The best prior is resolved to be better than the reference, and no other prior is resolved to
    be better than it. Where `first` is not, the best may be the reference, or a prior that lost a
    seed.
    """
    if first is None or first["verdict"] != "better":
        return ""
    by, shown = frames.setting_columns(summary)
    rivals = _rival_pairs(first, pairs, by)
    if (rivals["verdict"] == "worse").any():
        return ""
    beaten = rivals[rivals["verdict"] == "better"]
    equals = rivals[rivals["verdict"] == "not resolved"]
    worse = _worse_priors_text(beaten, len(rivals), first["reference"])
    parts = [f"better than {worse}"] if len(beaten) else []
    if len(equals):
        parts.append(f"not distinguishable from {', '.join(equals['against'])} with these seeds")
    if not parts:
        return ""
    hint = "; indicative" if (beaten["note"] == "indicative").any() else ""
    return (
        f"At {frames.setting_text(first, shown)}, {first['prior']} is {', and '.join(parts)} "
        f"(Holm-adjusted over all pairs{hint})."
    )


def rival_sentences(summary: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """Returns a sentence per setting on the priors that are worse than the best, or equal.

    A setting in which no prior is resolved to be better than the reference has no sentence.
    """
    sentences = (_sentence(first, pairs, summary) for _, first in _iterate_settings(summary))
    return [sentence for sentence in sentences if sentence]


def answer_sentences(summary: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """Returns the sentences on the first prior of each setting and, if it is best, its rivals.

    Where nothing can be compared, they are all comparison sentences of the setting.
    """
    by_row, answer = comparison_findings.sentences_by_row(summary), []
    for rows, first in _iterate_settings(summary):
        indices = rows.index if first is None else [first.name]
        answer += [by_row[index] for index in indices if index in by_row]
        answer += filter(None, [_sentence(first, pairs, summary)])
    return answer
