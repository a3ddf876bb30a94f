"""Say whether a prior helps, by how much, and whether it could be the seeds.

The unit of comparison is the difference of two priors on the same image at the same seed,

    d[s, i] = NLL of the prior - NLL of the reference       nats per image, negative = better

with the intervals of `bench.intervals`; where the NLLs of single images are not known, the
difference of the means over them stands for one image (see `means`). `summary` compares every arm
of a frame of trials (one row a trial, as `bench.results` reads it back) to the reference, `pairs`
each to each; `sentences` says what was found in words, `resolutions` what more seeds would bring.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flowvae.trial import Trial

from .intervals import (
    ALPHA,
    MOST_SEEDS,
    components,
    crossed,
    half_width_limit,
    holm,
    moments,
    seeds_for,
    seeds_needed,
)
from .levels import POST_HOC, level
from .wording import decimals, nats

__all__ = [
    "BOTH",
    "RESOLUTION",
    "SEEDS",
    "axes",
    "clashes",
    "contexts",
    "differences",
    "means",
    "over",
    "pairs",
    "priors",
    "reference",
    "resolutions",
    "scores",
    "sentences",
    "settings",
    "settle",
    "stages",
    "summary",
    "valued",
    "where",
    "worded",
]

RESOLUTION = 0.1
"""The half-width, nats, that seeds are counted for unless another is asked for."""
BOTH, SEEDS = "seeds and images", "seeds"
"""What the interval of a difference may be over."""
# numbers across these never share a table
ONE_OF = ("dataset", "binarise", "data_hash", "nll_samples", "nll_precision", "nll_images")
# how a prior was trained tells two arms apart already by their label
PARAMETERS = ({field.name for field in fields(Trial)} | {"binarise", "valid"}) - {"training"}


def priors(frame: pd.DataFrame) -> list[str]:
    """Return the priors in the order in which the user typed them."""
    return [str(label) for label in dict.fromkeys(frame["prior"])]


def reference(frame: pd.DataFrame) -> str:
    """Return the prior that the others are compared to: "gauss" where present, else the first."""
    labels = priors(frame)
    if not labels:
        raise ValueError("Expected at least one trial; got an empty frame. Run some trials first.")
    return "gauss" if "gauss" in labels else labels[0]


def axes(frame: pd.DataFrame) -> list[str]:
    """Return the columns besides seed and prior that were crossed: what a pair has in common.

    Always net and latent, and the precision where there are several; another parameter where one
    prior ran with several of its values at one of these. A parameter that only differs from prior
    to prior (a learning rate tuned for each) belongs to the prior and is no axis, or no pair would
    be left.
    """
    always = ["net", "latent"]
    if "precision" in frame and frame["precision"].nunique(dropna=False) > 1:
        always.append("precision")
    others = [c for c in frame.columns if c in PARAMETERS - {*always, "prior", "seed"}]
    others = [c for c in others if frame[c].nunique(dropna=False) > 1]
    if not others:
        return always  # without counting in every group, which is slow and asked for often
    counts = frame.groupby([*always, "prior"])[others].nunique(dropna=False)
    return [*always, *(c for c in others if counts[c].max() > 1)]


def clashes(frame: pd.DataFrame) -> list[str]:
    """Return the columns of which one table may hold one value alone, and the frame holds more.

    Data of other hashes are the same where they are known to differ in nothing but the number of
    images held out for validation: their test images have one hash.
    """
    found = [c for c in ONE_OF if c in frame and frame[c].nunique() > 1]
    if "data_hash" in found and {"test_hash", "valid"} <= set(frame):
        known = frame.dropna(subset="data_hash")
        tests = set(known["test_hash"].fillna(""))
        one_each = (known.groupby("valid")["data_hash"].nunique() == 1).all()
        if len(tests) == 1 and "" not in tests and one_each:
            found.remove("data_hash")
    return found


def settle(frame: pd.DataFrame) -> pd.DataFrame:
    """Check the frame; count a complete trial whose test NLL is no finite number as diverged.

    Raises:
        ValueError: If datasets, binarisations or numbers of importance samples differ, or if two
            rows are one trial.
    """
    reference(frame)  # raises where there is no trial
    for column in clashes(frame):
        values = ", ".join(map(str, frame[column].dropna().unique()))
        raise ValueError(
            f"Expected one {column}; got {values}. These numbers cannot be compared: "
            f"pass the rows of one {column} at a time."
        )
    same = [*axes(frame), "prior", "seed"]
    if (twice := frame.duplicated(same)).any():
        row = frame.loc[twice, same].iloc[0].to_dict()
        raise ValueError(f"Expected one row a trial; got two with {row}. Keep one of them.")
    # MLflow returns infinity as 1.8e308
    nll = frame["test/nll"] if "test/nll" in frame else pd.Series(np.nan, frame.index)
    broken = (frame["status"] == "complete") & ~(nll.abs() < 1e300)
    return frame.assign(status=frame["status"].mask(broken, "diverged"), **{"test/nll": nll})


def contexts(frame: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield each setting of the axes, sorted, with its rows: one family of priors."""
    by = axes(frame)
    for key, rows in frame.groupby(by, dropna=False):
        yield dict(zip(by, key, strict=True)), rows


class Scores(NamedTuple):
    """Per-image NLL of one arm's complete seeds: nll (S, N), nats."""

    seeds: list[int]
    nll: NDArray[np.float64]


def scores(arm: pd.DataFrame, loglik: Mapping[str, NDArray[Any]]) -> Scores:
    """Return what the complete trials of an arm scored, by seed."""
    done = arm[arm["status"] == "complete"]
    found = dict(zip(done["seed"], done["run_id"], strict=True))
    seeds = sorted(seed for seed, run in found.items() if run in loglik)
    each = [loglik[found[seed]] for seed in seeds]
    if len({len(one) for one in each}) > 1:
        raise ValueError("Expected the same test images in all runs; got different numbers.")
    return Scores(seeds, -np.asarray(each, dtype=np.float64))


def differences(a: Scores, b: Scores) -> NDArray[np.float64]:
    """Return NLL of `a` minus NLL of `b` on their common seeds, (S, N) nats per image."""
    seeds = set(a.seeds) & set(b.seeds)
    if not seeds:
        return np.empty((0, 0))
    ours, theirs = (
        side.nll if len(seeds) == len(side.seeds) else side.nll[[s in seeds for s in side.seeds]]
        for side in (a, b)
    )
    if ours.shape != theirs.shape:
        raise ValueError("Expected the same test images in all runs; got different numbers.")
    return ours - theirs


def _verdict(difference: float, p_holm: float) -> str:
    if np.isnan(p_holm):
        return "too few seeds"
    if p_holm >= ALPHA:
        return "not resolved"
    return "better" if difference < 0 else "worse"


def _compared(each: Iterable[NDArray[np.float64]], resolution: float) -> list[dict[str, Any]]:
    """Return the columns of a comparison for each array of differences of one Holm family."""
    tables = [moments(d) for d in each]
    found = [crossed(m) for m in tables]
    p = np.array([i.p for i in found])
    rows = []
    for m, i, p_holm in zip(tables, found, holm(p), strict=True):
        verdict = _verdict(i.mean, p_holm)
        # Holm divides alpha by the number of hypotheses that are no easier than this one
        alpha = ALPHA / max(int((p >= i.p).sum()), 1)
        needed = seeds_needed(m, alpha=alpha) if verdict == "not resolved" else float("nan")
        spread = {f"sd_{name}": sd for name, sd in components(m)._asdict().items()}
        rows.append(
            {"difference": i.mean, "low": i.low, "high": i.high, "p": i.p, "p_holm": p_holm}
            | {"df": i.df, "pairs": i.seeds, "images": i.images, "note": i.note}
            | {"covers": BOTH if i.images > 1 else SEEDS if i.images else ""}
            | {"verdict": verdict, "seeds_needed": needed, **spread, "resolution": resolution}
            | {"seeds_for_resolution": seeds_for(m, resolution)}
            | {"half_width_limit": half_width_limit(m)}
        )
    return rows


def summary(
    frame: pd.DataFrame, loglik: Mapping[str, NDArray[Any]], *, resolution: float = RESOLUTION
) -> pd.DataFrame:
    """Return one row an arm: its level, and its paired difference in NLL to the reference.

    An arm is a prior at one setting of `axes`; `levels.level` describes each. `low` and `high` are
    `crossed`; `covers` tells whether they are over seeds and images or over seeds alone. The Holm
    family of `p_holm` is the priors compared to the reference within one setting, usually one
    latent size: each is its own question.

    `verdict` is "reference", "better", "worse" (`p_holm` below 0.05), "not resolved", or "too few
    seeds" (under three pairs). `seeds_needed` is for a not resolved one, at the level that Holm
    tests it at. `mark` counts diverged and failed seeds; their pairs are out. `rank`, by
    NLL within a setting, is missing for an arm with a diverged seed: its survivors are not all.

    `sd_seed`, `sd_image`, `sd_rest` (nats) are the difference's `components`. From them,
    `seeds_for_resolution` is the number of seeds whose 95 % interval, not adjusted, has a
    half-width below `resolution`; `inf` where it takes more than 1,000, or where
    `half_width_limit`, which the images leave with any number of seeds, is not below it.

    Arguments:
        frame: One row a trial.
        loglik: From run id to per-image test log-likelihoods, (N,) nats, images in one order.
        resolution: The wanted half-width, nats.

    Raises:
        ValueError: If the rows cannot be compared (see `settle`) or the numbers of images differ.
    """
    frame = settle(frame)
    first, table = reference(frame), []
    for setting, rows in contexts(frame):
        arms = {label: rows[rows["prior"] == label] for label in priors(frame)}
        arms = {label: arm for label, arm in arms.items() if len(arm)}
        base = scores(arms.get(first, rows.iloc[:0]), loglik)
        compared = [label for label in arms if label != first]
        each = (differences(scores(arms[label], loglik), base) for label in compared)
        told = dict(zip(compared, _compared(each, resolution), strict=True))
        for label, arm in arms.items():
            paired = told.get(label, {"pairs": 0, "note": "", "verdict": "reference"})
            table.append(setting | {"prior": label} | level(arm) | paired)
    numbers = ["difference", "low", "high", "p", "p_holm", "df", "images", "seeds_needed"]
    numbers += ["sd_seed", "sd_image", "sd_rest", "seeds_for_resolution", "half_width_limit"]
    numbers += ["covers"]
    out = pd.DataFrame(table).assign(resolution=resolution)
    out = out.reindex(columns=list(dict.fromkeys([*out.columns, *numbers])))
    sound = out["nll"].where(out["diverged"] == 0)
    out["rank"] = sound.groupby([out[c] for c in axes(frame)], dropna=False).rank()
    shared = {c: frame[c].iloc[0] for c in ONE_OF if c in frame}
    if "data_hash" in shared and frame["data_hash"].nunique() > 1:  # see `clashes`
        shared["data_hash"] = ", ".join(frame["data_hash"].dropna().unique())
    return out.assign(reference=first, **shared)


def pairs(
    frame: pd.DataFrame, loglik: Mapping[str, NDArray[Any]], *, resolution: float = RESOLUTION
) -> pd.DataFrame:
    """Return every pair of priors within every setting, Holm-adjusted over the pairs of a setting.

    Columns as in `summary`, with `prior` and `against`: the matrix, in long form, each pair once.
    `diverged` counts the seeds at which one of the two diverged.
    """
    frame, table = settle(frame), []
    for setting, rows in contexts(frame):
        arms = [rows[rows["prior"] == label] for label in priors(rows)]
        lost = [set(arm["seed"][arm["status"] == "diverged"]) for arm in arms]
        found = [scores(arm, loglik) for arm in arms]
        labels = priors(rows)
        each = [(b, a) for a in range(len(arms)) for b in range(a + 1, len(arms))]
        told = _compared((differences(found[b], found[a]) for b, a in each), resolution)
        for (b, a), row in zip(each, told, strict=True):
            both = {"prior": labels[b], "against": labels[a]}
            table.append(setting | both | row | {"diverged": len(lost[a] | lost[b])})
    return pd.DataFrame(table)


def means(frame: pd.DataFrame) -> dict[str, NDArray[Any]]:
    """Return the mean log-likelihood of each complete trial, (1,) nats, by run: as of one image.

    For trials whose per-image scores are not at hand: intervals are then over seeds alone.
    """
    done = frame[frame["status"] == "complete"]
    each = zip(done["run_id"], done["test/nll"], strict=True)
    return {run: -np.array([nll]) for run, nll in each}


def over(table: pd.DataFrame) -> str:
    """Return what intervals in `summary` or `pairs` are over; nothing where there is no pair."""
    return next((words for words in (SEEDS, BOTH) if words in set(table["covers"])), "")


def _p(value: float) -> str:
    return "Holm p < 0.001" if value < 0.001 else f"Holm p = {value:.3f}"


def sentences(summary: pd.DataFrame) -> list[str]:
    """Return what `summary` found in words, one sentence an arm that is not the reference.

    The reference gets a sentence where it stands alone or has lost a seed.
    """
    return [*worded(summary).values()]


def worded(summary: pd.DataFrame) -> dict[Any, str]:
    """Return the `sentences` by the row that each tells of."""
    by, told = settings(summary)
    company = summary.groupby(by, dropna=False)["prior"].transform("count")
    return {
        index: _sentence(row, told, alone=bool(count == 1))
        for (index, row), count in zip(summary.iterrows(), company, strict=True)
        if row["verdict"] != "reference" or count == 1 or row["mark"]
    }


def settings(summary: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return the columns that set arms apart, and those of them worth telling a reader."""
    columns = list(summary.columns)
    by = columns[: columns.index("prior")]
    return by, [c for c in by if c == "latent" or summary[c].nunique(dropna=False) > 1]


def valued(value: Any) -> str:  # noqa: ANN401
    """Return a setting's value in words: `none` where there is none."""
    return "none" if pd.isna(value) else str(value)


def where(row: pd.Series, told: Sequence[str]) -> str:
    """Return an arm's setting in words."""
    return ", ".join(f"{'D' if c == 'latent' else c} = {valued(row[c])}" for c in told)


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
            f"[{nats(low, f'+{q}')}, {nats(high, f'+{q}')}] ({n}, {_p(row['p_holm'])}{hint}); "
            f"{many} seeds would resolve it{mark}."
        )
    verb, (low, high) = ("lowers", (-high, -low)) if d < 0 else ("raises", (low, high))
    return (
        f"At {place}, {prior} {verb} the test NLL by {nats(abs(d), q)} nats "
        f"[{nats(low, q)}, {nats(high, q)}] against {against} "
        f"({n}, {_p(row['p_holm'])}{hint}){mark}."
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
            f"({row['pairs']} seeds, {told}, {_p(row['p_holm'])} over all pairs)."
        )
    return found


def resolutions(summary: pd.DataFrame) -> list[str]:
    """Return two sentences a setting: what the intervals are made of, and what narrows them.

    Settings without a comparison of at least 3 seeds are left out: nothing can be estimated there.
    """
    by, told = settings(summary)
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
