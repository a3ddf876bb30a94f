"""What a name stands for, read: an experiment of a store, or a table of trials that was written.

    NAME              an experiment of the store that --tracking-uri names
    STORE#NAME        an experiment of another store: what holds `://`
    FOLDER, FILE      the folder of a `trials.csv`, or a `.csv` itself: what holds `/` or ends so

An experiment's name never holds a `/`, and what is there decides nothing: a folder beside the
command is `./digits`. Of a table the scores of single images, the curves and the pictures are not
known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.entities import Run

from bench.results.read import Results, collect, scored
from bench.results.trials_csv import read_table
from bench.statistics.captions import estimator
from bench.store.address import masked, tracking_uri
from bench.store.errors import store_errors_as_one_line
from bench.store.run_info import described, retold
from bench.store.runs import Store
from flowvae.errors import InputError, unknown
from flowvae.specs.registry import split
from flowvae.trial import Evaluation, Trial, field_types, registries

__all__ = ["Shelf", "Source", "keep", "read_source"]


LADDER = "loglik_k"
"""How the files of an evaluation begin that hold per-image log-likelihoods, before their K."""


@dataclass(frozen=True)
class Source:
    """Trials, and where they come from.

    Arguments:
        name: What a person typed, without passwords.
        label: The last part of it: the experiment's name, or the folder's.
        results: What is known of the trials.
        store: The store that holds them, or none.
        path: The table that holds them, or none.
        facts: What the store tells of the experiment; see `Connection.facts`.
        unknown: Why builders of its trials are not to be had here, by their specs.
    """

    name: str
    label: str
    results: Results
    store: Store | None = None
    path: Path | None = None
    facts: Mapping[str, str] | None = None
    unknown: Mapping[str, str] = field(default_factory=dict)

    @property
    def described(self) -> str:
        """What it is, and where."""
        count = len(self.results.frame)
        where = f"in {self.store.shown}" if self.store else f"from {self.path}"
        return f"{count} trial{'s' * (count != 1)} {where}"


def read_source(name: str, uri: str | None, wanted: Mapping[str, Any]) -> Source:
    """Reads what a name stands for.

    Arguments:
        name: The name.
        uri: The store of a name without one; see `tracking_uri`.
        wanted: The fields of the evaluation that are asked for, where a store holds several.

    Raises:
        InputError: There is nothing of that name, it holds no finished trial, or several
            evaluations that were asked for.
    """
    if "://" in name:
        place, sign, experiment = name.rpartition("#")
        if not sign:
            raise InputError(f"{masked(name)} names a store: expected STORE#EXPERIMENT")
        return _from_store(name, place, experiment, wanted)
    if "/" in name or name.endswith(".csv"):
        path = Path(name) if name.endswith(".csv") else Path(name) / "trials.csv"
        frame = read_table(path)
        folder = path.resolve().parent.name
        label = folder if path.name == "trials.csv" else path.stem
        results = Results(frame, pd.DataFrame(), {}, {}, {})
        return Source(name, label, results, path=path)
    return _from_store(name, uri, name, wanted)


def _from_store(name: str, uri: str | None, experiment: str, wanted: Mapping[str, Any]) -> Source:
    store = Store(tracking_uri(uri), experiment)
    with store_errors_as_one_line(store):
        store.check_experiment()
        runs = store.every()
        facts = store.facts()
        evaluation = _evaluation(store, runs, wanted, facts)
        tag = f"evaluation.{evaluation.id}"
        # A trial of a tuning is none of the comparison, unless it was scored, too.
        runs = [r for r in runs if r.data.tags.get("role") != "tuning" or tag in r.data.tags]
        lost: dict[str, str] = {}
        trials = [(told, run) for run in runs if (told := _told(store, run, lost))]
        results = collect(store, trials, evaluation)
    results = replace(results, frame=_ordered(results.frame, facts))
    return Source(masked(name), experiment, results, store=store, facts=facts, unknown=lost)


def _told(store: Store, run: Run, lost: dict[str, str]) -> dict[str, Any] | None:
    """Reads what a run is of; nothing where it was cut off before it had written that down.

    A builder that is not to be had here (a module of somebody's own) need not be: what a report
    takes of it, the run tells. Its spec is put into `lost`, with the reason.
    """
    path = store.artifact(run, "trial.json")
    if path is None:
        return None
    text = path.read_text()
    try:
        return described(Trial.from_json(text))  # what this store holds, its own commands ran
    except InputError as error:
        if gone := _gone(text):
            lost |= gone
            return retold(json.loads(text), run.data.params)
        raise InputError(
            f"run {run.info.run_id} of {store.name} cannot be read: {error}"
        ) from None


def _gone(text: str) -> dict[str, str]:
    """Returns which builders of a trial's JSON are not to be had here, and why, by their specs."""
    gone = {}
    try:
        content = json.loads(text)
        for name, registry in registries().items():
            try:
                registry.resolve(content[name])
            except InputError as error:
                gone[f"{name} {content[name]}"] = str(error)
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # it is no trial's
    return gone


def _ordered(frame: pd.DataFrame, facts: Mapping[str, str]) -> pd.DataFrame:
    """Puts trials in the order of a grid: the seed changes slowest, priors stand as typed.

    Where the store does not tell what was typed, priors stand as they were first started.
    """
    known = dict.fromkeys([*json.loads(facts.get("priors", "[]")), *frame["prior"]])
    place = frame["prior"].map({arm: k for k, arm in enumerate(known)})
    order = np.lexsort((place, frame["latent"], frame["seed"]))
    return frame.iloc[order].reset_index(drop=True)


def _evaluation(
    store: Store, runs: Sequence[Run], wanted: Mapping[str, Any], facts: Mapping[str, str]
) -> Evaluation:
    """Returns the evaluation to read: the only one that is as wanted.

    Where no trial came to be scored, that which its last command asked for.
    """
    held: dict[str, list[Run]] = {}
    for run in runs:
        for tag in run.data.tags:
            if tag.startswith("evaluation."):
                held.setdefault(tag.removeprefix("evaluation."), []).append(run)
    each = (
        next(filter(None, (_recognised(store, run, key) for run in some)), None)
        for key, some in held.items()
    )
    found = [evaluation for evaluation in each if evaluation]
    if runs and not found and "evaluation" in facts:
        found = [Evaluation(**json.loads(facts["evaluation"]))]
    chosen = [e for e in found if all(getattr(e, k) == v for k, v in wanted.items())]
    if len(chosen) == 1:
        return chosen[0]
    where = f"experiment {store.name} in {store.shown}"
    if not found:
        raise InputError(f"{where} holds no scored trial: nothing to report")
    ordered = sorted(found, key=lambda each: each.samples)
    listed = "; ".join(estimator(pd.Series(scored(each))) for each in ordered)
    if not chosen:
        raise InputError(f"{where} holds no such evaluation: it holds {listed}")
    raise InputError(
        f"{where} holds several evaluations ({listed}), and numbers of two never share a table: "
        "take one by --nll-samples, --nll-precision and --nll-images"
    )


def _recognised(store: Store, run: Run, key: str) -> Evaluation | None:
    """Returns the evaluation of an id, which is a hash: the candidates are few.

    Nothing for one of an earlier estimator, or of a file that went.
    """
    folder = store.artifact(run, f"evaluations/{key}")
    if folder is None:
        return None
    ladder = {int(p.stem.removeprefix(LADDER)): p for p in folder.glob(f"{LADDER}*.npy")}
    if not ladder:
        return None
    samples = max(ladder)
    images = len(np.load(ladder[samples], mmap_mode="r"))
    precisions = field_types(Evaluation)["precision"].__args__
    candidates = (
        Evaluation(samples=samples, precision=precision, images=count)
        for precision in precisions
        for count in (None, images)
    )
    return next((each for each in candidates if each.id == key), None)


def keep(source: Source, column: str, values: str) -> Source | None:
    """Keeps the trials of a source that have one of some values in a column; none if none has.

    Arguments:
        source: The source.
        column: The column of its frame.
        values: The values, comma-separated.

    Raises:
        InputError: There is no such column.
    """
    frame = source.results.frame
    if column not in frame:
        raise unknown("column", column, frame.columns, of=source.name)
    wanted = split(values)
    kept = frame[[any(_same(value, text) for text in wanted) for value in frame[column]]]
    if kept.empty:
        return None
    results = replace(source.results, frame=kept.reset_index(drop=True))
    return replace(source, results=results)


def _same(value: Any, text: str) -> bool:  # noqa: ANN401
    """Tells whether a value of a frame is what a person typed."""
    if isinstance(value, str):
        return value == text
    if value is None or pd.isna(value):
        return text == "none"
    try:
        return float(value) == float(text)
    except ValueError:
        return False


class Shelf:
    """The stores of several sources, as one place where runs can be looked at.

    Arguments:
        sources: The sources; those without a store are left out.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.stores = [source.store for source in sources if source.store]
        self._of = {
            run: source.store
            for source in sources
            if source.store
            for run in source.results.frame["run_id"]
        }

    def browse(self) -> str:
        """Says how to open the runs of each."""
        if len(self.stores) == 1:
            return self.stores[0].browse()
        first = {store.uri: store for store in reversed(self.stores)}
        told = (f"{store.shown}: {store.browse()}" for store in reversed(first.values()))
        return " (one at a time, or each with a --port); ".join(told)

    def link(self, run: str = "") -> str:
        """Returns the address of a run where MLflow is served; nothing for one of a table."""
        return self._of[run].link(run) if run in self._of else ""
