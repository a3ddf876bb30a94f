"""Joins trials of several sources; refuses those that cannot be compared.

    refused     numbers of different data, binarisations or estimators; different trials of the
                same prior, setting and seed
    reported    all other differences between the sources, from epochs to the device

A trial that is in several sources is taken once. Per-image scores pair the trials of all sources,
as within a grid; if a source has none, all intervals are over seeds only.
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


SCORING_COLUMNS = ("nll_estimator", "nll_samples", "nll_precision", "nll_images")
UNREPORTED_COLUMNS = {
    *("run_id", "status", "reason", "trial", "prior", "stack", "load", "timing"),
    *("timing_device", "test_hash", "source", "table", *frames.COMPARABLE_COLUMNS),
}
"""Columns without a `/` that are not settings of a trial, or are compared, or agree."""
STATUS_RANKS = {"complete": 0, "diverged": 0, "failed": 1, "missing": 2}
"""Of several rows of one trial, that with the lowest rank is taken."""


class Joined(NamedTuple):
    """Trials of several sources.

    Arguments:
        results: The trials. The frame has a column `source` if there are several sources, or if
            the only one is a table of several.
        origins: Facts on the origin of the trials, by name.
    """

    results: Results
    origins: list[tuple[str, str]]


def join_sources(sources: Sequence[Source]) -> Joined:
    """Joins sources; a single one is checked by the same rules.

    Raises:
        InputError: The numbers cannot be compared; the message says in what they differ.
    """
    labels = _labels(sources)
    frames = {
        label: _add_origin(label, source, alone=len(sources) == 1)
        for label, source in zip(labels, sources, strict=True)
    }
    _check_comparable(frames)
    rows, duplicates = _drop_duplicates(_rows(frames))
    frame = pd.DataFrame(rows).drop(columns="table")
    _check_distinct_settings(frame)
    origins = _source_facts(sources, labels)
    if duplicates:
        origins.append(("taken once", duplicates))
    results = _results(sources, frame)
    complete = frame[frame["status"] == "complete"]
    if len(unscored := complete[~complete["run_id"].isin(results.loglik)]):
        results = replace(results, loglik=comparison.mean_loglik(frame))
        origins.append((
            "intervals",
            "of differences are over seeds only, for these test images: no scores of single "
            f"images, curves or pictures of {_listed(unscored['source'])}",
        ))  # fmt: skip
    if len(sources) > 1:
        return Joined(results, [*origins, *_differences(frames)])
    if "source" not in sources[0].results.frame:
        results = replace(results, frame=frame.drop(columns="source"))
    return Joined(results, origins)


def _add_origin(label: str, source: Source, *, alone: bool) -> pd.DataFrame:
    """Returns the trials of a source with columns `source` and `table`.

    A table of several sources keeps its own column `source`; beside other sources, the label of
    the table is put before it.
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
    """Returns the results of the trials that were taken."""
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
    """Returns the label of each source, or its whole name where two have the same label."""
    labels = [source.label for source in sources]
    return [source.label if labels.count(source.label) == 1 else source.name for source in sources]


def _listed(values: pd.Series) -> str:
    return ", ".join(dict.fromkeys(values))


def _values(frame: pd.DataFrame, column: str) -> list[str]:
    """Returns the values of a column in words, sorted if they can be."""
    known = list(dict.fromkeys(frame[column])) if column in frame else []
    if column in frames.COMPARABLE_COLUMNS:  # NaN for a trial that never ran
        known = [value for value in known if not pd.isna(value)]
    with suppress(TypeError):  # texts and numbers, or None
        known = sorted(known)
    return [text for text in dict.fromkeys(map(frames.value_text, known)) if text]


def _check_comparable(sources: Mapping[str, pd.DataFrame]) -> None:
    """Raises an InputError if the numbers of the frames cannot share a table."""
    for column in frames.conflicting_columns(pd.DataFrame(_rows(sources))):
        values_of = {label: _values(frame, column) for label, frame in sources.items()}
        listed = "; ".join(f"{', '.join(v)} in {label}" for label, v in values_of.items() if v)
        several = any(len(values) > 1 for values in values_of.values())
        cure = f" (--only {column}=VALUE selects one)" if several else ""
        if column in SCORING_COLUMNS:
            cure += "; `python -m bench.run` scores fitted models again without training them"
        if column == "data_hash":
            cure += _split_hint(sources)
        raise InputError(
            f"cannot compare numbers that differ in the {frames.COMPARABLE_COLUMNS[column]}: "
            f"{listed}{cure}"
        )


def _split_hint(frames: Mapping[str, pd.DataFrame]) -> str:
    """Returns a hint where the data may differ only in the images held out for validation.

    Trials on the same test images could be compared, but these may not be the same.
    """
    counts_of = {label: _values(frame, "valid") for label, frame in frames.items()}
    tests = {text for frame in frames.values() for text in _values(frame, "test_hash")}
    if len({tuple(counts) for counts in counts_of.values()}) == 1 or len(tests - {"none"}) > 1:
        return ""
    listed = ", ".join(
        f"{' or '.join(counts) or 'unknown'} in {label}" for label, counts in counts_of.items()
    )
    return (
        f". Their validation sets differ (images held out of the training images: {listed}), and "
        "not all records say whether their test images are the same (test_hash)"
    )


def _drop_duplicates(rows: Sequence[dict[Any, Any]]) -> tuple[list[dict[Any, Any]], str]:
    """Returns each trial once, at its first place, and the duplicates in words.

    A result is preferred to none, then a store, which has more of it, to a table, then the first.
    """
    best: dict[str, dict[Any, Any]] = {}
    duplicates: dict[tuple[str, str], list[tuple[Any, Any]]] = {}
    for row in rows:
        taken = best.setdefault(row["trial"], row)
        if taken is row:
            continue
        taken, other = (row, taken) if _rank(row) < _rank(taken) else (taken, row)
        best[row["trial"]] = taken
        duplicates.setdefault((taken["source"], other["source"]), []).append((taken, other))
    texts = [
        f"{len(pairs)} of {taken} that {'is' if len(pairs) == 1 else 'are'} also in {other}"
        f"{_record_differences(pairs)}"
        for (taken, other), pairs in duplicates.items()
    ]
    return list(best.values()), "; ".join(texts)


def _rank(row: Mapping[Any, Any]) -> tuple[int, bool]:
    return STATUS_RANKS[row["status"]], row["table"]


def _record_differences(pairs: Sequence[tuple[Mapping[Any, Any], Mapping[Any, Any]]]) -> str:
    """Returns how two records of the same trials differ, or ''."""
    facts = []
    nll = [[row.get("test/nll", float("nan")) for row in pair] for pair in pairs]
    largest = max((abs(a - b) for a, b in nll if abs(a - b) > 0), default=0.0)
    if largest:
        facts.append(f"test NLLs differ by up to {largest:.2g} nats")
    if changed := sum(a["status"] != b["status"] for a, b in pairs):
        facts.append(f"{changed} with another status there")
    return f" ({', '.join(facts)})" if facts else ""


def _check_distinct_settings(frame: pd.DataFrame) -> None:
    """Raises an InputError for two different trials of the same prior, setting and seed.

    Such trials differ in code or files, for example.
    """
    settings = [*frames.axes(frame), "prior", "seed"]
    duplicates = frame[frame.duplicated(settings, keep=False)]
    if duplicates.empty:
        return
    (_, pair), *_ = duplicates.groupby(settings, dropna=False)
    first = pair.iloc[0]
    columns = [str(c) for c in pair if "/" not in str(c) and c not in UNREPORTED_COLUMNS]
    differing = ", ".join(c for c in columns if pair[c].nunique() > 1) or "the code that ran them"
    raise InputError(
        "cannot compare two trials of the same settings: "
        f"{first['prior']}, D = {first['latent']}, seed {first['seed']} is "
        f"{' and '.join(pair['trial'])} in {_listed(pair['source'])}; they differ in {differing} "
        "(--only COLUMN=VALUE selects one)"
    )


def _source_facts(sources: Sequence[Source], labels: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the place of each source, its last command if known, and its missing builders."""
    facts = []
    for label, source in zip(labels, sources, strict=True):
        facts.append((f"source {label}", source.described))
        if command := (source.facts or {}).get("command"):
            facts.append((f"last run of {label}", masked(command)))
        facts += [
            (
                f"not available here: {spec}",
                f"{reason}. Its trials in {label} are described by their runs, without caveats",
            )
            for spec, reason in source.unknown.items()
        ]
    return facts


def _differences(frames: Mapping[str, pd.DataFrame]) -> list[tuple[str, str]]:
    """Returns every setting and circumstance in which the sources differ."""
    columns = dict.fromkeys(str(column) for frame in frames.values() for column in frame)
    facts = []
    for column in columns:
        if "/" in column or column in UNREPORTED_COLUMNS:
            continue
        values_of = {label: _values(frame, column) for label, frame in frames.items()}
        if len({tuple(values) for values in values_of.values()}) > 1:
            texts = (f"{', '.join(v) or 'unknown'} in {label}" for label, v in values_of.items())
            facts.append((f"differs: {column}", "; ".join(texts)))
    return facts
