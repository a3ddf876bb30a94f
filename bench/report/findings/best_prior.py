"""Say first what a grid was run for: the best prior of each setting, and how it stands to others.

Both are sentences that a person also reads at the end of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from bench.report.findings import comparison as comparison_findings
from bench.statistics import frames
from bench.statistics.formatting import decimals, nats

__all__ = ["answer", "rivalry"]


NAMED = 3
"""Up to how many priors are named with their differences where one is better than they are."""


def _families(summary: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, pd.Series | None]]:
    """Yield the arms of each setting, and of those compared the one to name first.

    One that is resolved to be better comes before one that is not, one without a diverged seed
    before one that has some; then the paired difference decides.
    """
    by, _ = frames.setting_columns(summary)
    for _, rows in summary.groupby(by, dropna=False):
        order = rows.assign(doubtful=rows["verdict"] != "better", lost=rows["diverged"] > 0)
        order = order[order["difference"].notna()].sort_values(["doubtful", "lost", "difference"])
        yield rows, order.iloc[0] if len(order) else None


def _against(first: pd.Series, pairs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return how a prior stands to each other one but the reference: by `pairs`, as `prior`."""
    given, mine = pairs[[*by]], first[[*by]]
    same = ((given == mine) | (given.isna() & mine.isna())).all(axis=1)  # no clipping is a setting
    ours = pairs[same & (pairs["prior"] == first["prior"])]
    theirs = pairs[same & (pairs["against"] == first["prior"])]
    turned = theirs.assign(
        prior=theirs["against"], against=theirs["prior"], difference=-theirs["difference"],
        low=-theirs["high"], high=-theirs["low"],
        verdict=theirs["verdict"].replace({"better": "worse", "worse": "better"}),
    )  # fmt: skip
    found = pd.concat([ours, turned])
    return found[found["against"] != first["reference"]]


def _leads(beaten: pd.DataFrame, others: int, reference: str) -> str:
    """Return whom a prior is better than, and by how much: each, or a range of many.

    Arguments:
        beaten: The pairs in which it is better.
        others: The number of all priors but itself and the reference.
        reference: The reference, to which it was compared elsewhere.
    """
    if len(beaten) <= NAMED:
        each = []
        for _, row in beaten.sort_values("difference", ascending=False).iterrows():
            d, low, high = -row["difference"], -row["high"], -row["low"]
            q = f".{decimals(d)}f"
            span = f"[{nats(low, q)}, {nats(high, q)}]"
            each.append(f"{row['against']} by {nats(d, q)} nats {span}")
        return ", ".join(each)
    least, most = -beaten["difference"].max(), -beaten["difference"].min()
    who = f"all {others}" if len(beaten) == others else f"{len(beaten)} of the {others}"
    span = " to ".join(nats(d, f".{decimals(d)}f") for d in (least, most))
    return f"{who} other priors besides {reference} by {span} nats"


def _sentence(first: pd.Series | None, pairs: pd.DataFrame, summary: pd.DataFrame) -> str:
    """Return how the best prior of a setting stands to its rivals, or nothing.

    The best is resolved to be better than the reference, and no other one to be better than it:
    where `first` is not that, the reference may be the best, or one that lost a seed.
    """
    if first is None or first["verdict"] != "better":
        return ""
    by, told = frames.setting_columns(summary)
    rivals = _against(first, pairs, by)
    if (rivals["verdict"] == "worse").any():
        return ""
    beaten = rivals[rivals["verdict"] == "better"]
    equals = rivals[rivals["verdict"] == "not resolved"]
    leads = _leads(beaten, len(rivals), first["reference"])
    parts = [f"better than {leads}"] if len(beaten) else []
    parts += [f"not resolved from {', '.join(equals['against'])}"] if len(equals) else []
    if not parts:
        return ""
    hint = "; indicative" if (beaten["note"] == "indicative").any() else ""
    return (
        f"At {frames.where(first, told)}, {first['prior']} is {', and '.join(parts)} "
        f"(Holm-adjusted over all pairs{hint})."
    )


def rivalry(summary: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """Return which priors the best of each setting is better than, and not resolved from.

    Nothing is said of a setting where no prior is resolved to be better than the reference.
    """
    said = (_sentence(first, pairs, summary) for _, first in _families(summary))
    return [sentence for sentence in said if sentence]


def answer(summary: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """Return what the first prior of each setting brings and, if it is best, its rivals.

    Where nothing could be compared, all that is said of the setting.
    """
    told, said = comparison_findings.worded(summary), []
    for rows, first in _families(summary):
        found = rows.index if first is None else [first.name]
        said += [told[index] for index in found if index in told]
        said += filter(None, [_sentence(first, pairs, summary)])
    return said
