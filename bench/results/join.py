"""Join trials of several sources: refuse what cannot be compared, and tell what differs.

    refused     numbers of different data, binarisations or estimators; two trials where there is
                one place
    told        every other thing that differs between the sources, from epochs to the device

A trial that stands in several sources is taken once. Per-image scores pair the trials of all
sources, as inside a grid; where some source has none, intervals are over seeds alone, for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd

from bench.results.read import Results
from bench.results.sources import Source
from bench.statistics import comparison, frames
from bench.statistics.captions import TEST_IMAGES
from bench.store.address import masked
from flowvae.errors import InputError

__all__ = ["Joined", "join_sources"]


REFUSED = {
    "dataset": "data set",
    "binarise": "binarisation",
    "data_hash": "content of the data set (data_hash)",
    "nll_samples": "number K of importance samples (nll_samples)",
    "nll_precision": "precision of the scoring (nll_precision)",
    "nll_images": "test images that are scored (nll_images)",
}
"""What numbers must agree in to stand in one table, in words."""
SCORED = ("nll_samples", "nll_precision", "nll_images")
UNTOLD = {"run_id", "status", "reason", "trial", "prior", "stack", "load", "timing"}


UNTOLD |= {"timing_device", "test_hash", "source", "table", *REFUSED}


"""Columns without a `/` that are no setting of a trial, or are compared, or agree."""


RESULT = {"complete": 0, "diverged": 0, "failed": 1, "missing": 2}
"""Of several rows of a trial, which to take: a result before none."""


class Joined(NamedTuple):
    """Trials of several sources.

    Arguments:
        results: The trials; its frame has a column `source` where there are several, or the only
            one is a table that tells several.
        told: What a reader must know of where they come from, by name.
    """

    results: Results
    told: list[tuple[str, str]]


def join_sources(sources: Sequence[Source]) -> Joined:
    """Joins sources; one alone is held to the same rules.

    Raises:
        InputError: Numbers of them cannot be compared; the message says in what they differ.
    """
    labels = _labels(sources)
    frames = {
        label: _placed(label, source, alone=len(sources) == 1)
        for label, source in zip(labels, sources, strict=True)
    }
    _check_comparable(frames)
    taken, twice = _once(_rows(frames))
    frame = pd.DataFrame(taken).drop(columns="table")
    _check_places(frame)
    told = [*_origins(sources, labels), *([("taken once", twice)] if twice else [])]
    results = _results(sources, frame)
    done = frame[frame["status"] == "complete"]
    if len(blind := done[~done["run_id"].isin(results.loglik)]):
        results = replace(results, loglik=comparison.means(frame))
        told.append((
            "intervals",
            "of differences over seeds alone, on the test images as they are: from "
            f"{_listed(blind['source'])} come no scores of single images, and no curves or "
            "pictures to draw",
        ))  # fmt: skip
    if len(sources) > 1:
        return Joined(results, [*told, *_differences(frames)])
    if "source" not in sources[0].results.frame:
        results = replace(results, frame=frame.drop(columns="source"))
    return Joined(results, told)


def _placed(label: str, source: Source, *, alone: bool) -> pd.DataFrame:
    """Returns the trials of a source, with where each comes from.

    A table of several sources tells that itself, and it stays told: beside others, after the
    table's own label.
    """
    frame = source.results.frame
    if "source" not in frame:
        origin: str | pd.Series = label
    else:
        origin = frame["source"] if alone else f"{label}: " + frame["source"]
    return frame.assign(source=origin, table=source.path is not None)


def _rows(frames: Mapping[str, pd.DataFrame]) -> list[dict[Any, Any]]:
    return [row for frame in frames.values() for row in frame.to_dict("records")]


def _results(sources: Sequence[Source], frame: pd.DataFrame) -> Results:
    """Returns what the sources hold of the trials that were taken."""
    runs = set(frame["run_id"])
    curves = [s.results.curves for s in sources if len(s.results.curves)]
    joined = pd.concat(curves, ignore_index=True) if curves else pd.DataFrame()
    return Results(
        frame,
        joined[joined["run_id"].isin(runs)] if curves else joined,
        *(
            {
                run: value
                for source in sources
                for run, value in getattr(source.results, part).items()
                if run in runs or run == TEST_IMAGES
            }
            for part in ("loglik", "samples", "maps")
        ),
    )


def _labels(sources: Sequence[Source]) -> list[str]:
    """Returns what each source is called: its label, or the whole name where two have that."""
    labels = [source.label for source in sources]
    return [source.label if labels.count(source.label) == 1 else source.name for source in sources]


def _listed(values: pd.Series) -> str:
    return ", ".join(dict.fromkeys(values))


def _values(frame: pd.DataFrame, column: str) -> list[str]:
    """Returns the values of a column in words, in order where they have one."""
    known = list(dict.fromkeys(frame[column])) if column in frame else []
    if column in REFUSED:  # a trial that never ran has none
        known = [value for value in known if not pd.isna(value)]
    with suppress(TypeError):  # words and numbers, or none
        known = sorted(known)
    return [text for text in dict.fromkeys(map(frames.valued, known)) if text]


def _check_comparable(sources: Mapping[str, pd.DataFrame]) -> None:
    """Refuses frames whose numbers never share a table."""
    for column in frames.clashes(pd.DataFrame(_rows(sources))):
        held = {label: _values(frame, column) for label, frame in sources.items()}
        words = REFUSED[column]
        each = "; ".join(f"{', '.join(v)} in {label}" for label, v in held.items() if v)
        several = any(len(values) > 1 for values in held.values())
        cure = f" (--only {column}=VALUE keeps one)" if several else ""
        if column in SCORED:
            cure += "; `python -m bench.run` scores fitted models anew, without training them"
        if column == "data_hash":
            cure += _held_out(sources)
        raise InputError(f"cannot compare numbers that differ in the {words}: {each}{cure}")


def _held_out(frames: Mapping[str, pd.DataFrame]) -> str:
    """Says that it is the split which makes data differ, where that can be all there is to it.

    Of the same test images they would be compared: that those are the same is not known.
    """
    held = {label: _values(frame, "valid") for label, frame in frames.items()}
    tests = {text for frame in frames.values() for text in _values(frame, "test_hash")}
    if len({tuple(counts) for counts in held.values()}) == 1 or len(tests - {"none"}) > 1:
        return ""
    each = ", ".join(
        f"{' or '.join(counts) or 'none told'} in {of}" for of, counts in held.items()
    )
    return (
        f". Their validation sets differ (images held out of the training images: {each}), and "
        "the records do not all tell whether their test images are the same (test_hash)"
    )


def _once(rows: Sequence[dict[Any, Any]]) -> tuple[list[dict[Any, Any]], str]:
    """Takes each trial once, at its first place; returns which were there twice, in words.

    A result goes before none, a store, which holds more of it, before a table, then the first.
    """
    best: dict[str, dict[Any, Any]] = {}
    others: dict[tuple[str, str], list[tuple[Any, Any]]] = {}
    for row in rows:
        kept = best.setdefault(row["trial"], row)
        if kept is row:
            continue
        kept, left = (row, kept) if _order(row) < _order(kept) else (kept, row)
        best[row["trial"]] = kept
        others.setdefault((kept["source"], left["source"]), []).append((kept, left))
    each = [
        f"{len(pairs)} of {kept} that {'is' if len(pairs) == 1 else 'are'} in {left}, too"
        f"{_apart(pairs)}"
        for (kept, left), pairs in others.items()
    ]
    return list(best.values()), "; ".join(each)


def _order(row: Mapping[Any, Any]) -> tuple[int, bool]:
    return RESULT[row["status"]], row["table"]


def _apart(pairs: Sequence[tuple[Mapping[Any, Any], Mapping[Any, Any]]]) -> str:
    """Says how the records of the same trials differ, if they do."""
    facts = []
    nll = [[row.get("test/nll", float("nan")) for row in pair] for pair in pairs]
    most = max((abs(a - b) for a, b in nll if abs(a - b) > 0), default=0.0)
    if most:
        facts.append(f"test NLLs differ by up to {most:.2g} nats")
    if ended := sum(a["status"] != b["status"] for a, b in pairs):
        facts.append(f"{ended} ended otherwise there")
    return f" ({', '.join(facts)})" if facts else ""


def _check_places(frame: pd.DataFrame) -> None:
    """Refuses two trials of the same settings that are not one: of other code, say, or files."""
    same = [*frames.axes(frame), "prior", "seed"]
    twice = frame[frame.duplicated(same, keep=False)]
    if twice.empty:
        return
    (_, pair), *_ = twice.groupby(same, dropna=False)
    first = pair.iloc[0]
    told = [str(c) for c in pair if "/" not in str(c) and c not in UNTOLD]
    apart = ", ".join(c for c in told if pair[c].nunique() > 1) or "the code that ran them"
    raise InputError(
        "cannot compare two trials of the same settings: "
        f"{first['prior']}, D = {first['latent']}, seed {first['seed']} is "
        f"{' and '.join(pair['trial'])} in {_listed(pair['source'])}; they differ in {apart} "
        "(--only COLUMN=VALUE keeps one)"
    )


def _origins(sources: Sequence[Source], labels: Sequence[str]) -> list[tuple[str, str]]:
    """Returns what each source is, and by which command it was run, if that is known."""
    told = []
    for label, source in zip(labels, sources, strict=True):
        told.append((f"source {label}", source.described))
        if command := (source.facts or {}).get("command"):
            told.append((f"last run of {label}", masked(command)))
        told += [
            (
                f"not to be had here: {spec}",
                f"{why}. Its trials in {label} are as their runs tell; a caveat is not known",
            )
            for spec, why in source.unknown.items()
        ]
    return told


def _differences(frames: Mapping[str, pd.DataFrame]) -> list[tuple[str, str]]:
    """Returns every setting and circumstance in which the sources differ."""
    columns = dict.fromkeys(str(column) for frame in frames.values() for column in frame)
    told = []
    for column in columns:
        if "/" in column or column in UNTOLD:
            continue
        held = {label: _values(frame, column) for label, frame in frames.items()}
        if len({tuple(values) for values in held.values()}) > 1:
            each = (f"{', '.join(v) or 'not told'} in {label}" for label, v in held.items())
            told.append((f"differs: {column}", "; ".join(each)))
    return told
