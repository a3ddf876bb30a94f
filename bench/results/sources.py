"""Reads the sources of a report: experiments of a store, and tables of trials.

    NAME              an experiment of the store that --tracking-uri names
    STORE#NAME        an experiment of another store: the name contains `://`
    FOLDER, FILE      a folder with a `trials.csv`, or a `.csv` file: the name contains `/` or ends
                      with `.csv`

The form of the name decides, not which files exist: a folder beside the command is `./digits`. A
table has no scores of single images, no curves and no pictures.
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
from bench.statistics.captions import estimator_settings
from bench.store.address import masked, tracking_uri
from bench.store.errors import store_errors_as_one_line
from bench.store.measurements import estimates_in
from bench.store.names import EARLIER_ESTIMATOR
from bench.store.run_info import columns_from_json, trial_columns
from bench.store.runs import Store
from flowvae.errors import InputError, unknown
from flowvae.specs.registry import split
from flowvae.trial import Evaluation, Trial, field_types, registries

__all__ = ["Source", "SourceStores", "read_source", "select_trials"]


@dataclass(frozen=True)
class Source:
    """Trials of one experiment or table.

    Arguments:
        name: The name as typed, without passwords.
        label: The last part of it: the name of the experiment or the folder.
        results: The trials and their results.
        store: The store of the trials, or None.
        path: The table of the trials, or None.
        facts: The facts that the store has on the experiment; see `Connection.facts`.
        unknown: Why builders of the trials cannot be imported here, by their specs.
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
        """Number of trials, and their place."""
        count = len(self.results.frame)
        where = f"in {self.store.shown}" if self.store else f"from {self.path}"
        return f"{count} trial{'s' * (count != 1)} {where}"


def read_source(name: str, uri: str | None, wanted: Mapping[str, Any]) -> Source:
    """Reads an experiment or a table by its name.

    Arguments:
        name: The name; see the module.
        uri: The store of an experiment whose name has none; see `tracking_uri`.
        wanted: Fields of the evaluation to read, if a store has several.

    Raises:
        InputError: The source does not exist, has no finished trial, or has several evaluations
            with these fields.
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
        evaluation = _choose_evaluation(store, runs, wanted, facts)
        tag = f"evaluation.{evaluation.id}"
        # trials of a tuning are not compared, unless they were scored as well
        runs = [r for r in runs if r.data.tags.get("role") != "tuning" or tag in r.data.tags]
        unknown: dict[str, str] = {}
        pairs = ((_describe_trial(store, run, unknown), run) for run in runs)
        trials = [(trial, run) for trial, run in pairs if trial]
        results = collect(store, trials, evaluation)
    results = replace(results, frame=_sort_trials(results.frame, facts))
    return Source(masked(name), experiment, results, store=store, facts=facts, unknown=unknown)


def _describe_trial(store: Store, run: Run, unknown: dict[str, str]) -> dict[str, Any] | None:
    """Returns the trial of a run, or None if the run was interrupted before it recorded it.

    If a builder cannot be imported (a user's own module), the params of the run are used instead,
    and its spec and the reason are added to `unknown`.
    """
    path = store.artifact(run, "trial.json")
    if path is None:
        return None
    text = path.read_text()
    try:
        return trial_columns(Trial.from_json(text))  # the store ran these builders itself
    except InputError as error:
        if missing := _missing_builders(text):
            unknown |= missing
            return columns_from_json(json.loads(text), run.data.params)
        raise InputError(
            f"run {run.info.run_id} of {store.name} cannot be read: {error}"
        ) from None


def _missing_builders(text: str) -> dict[str, str]:
    """Returns why builders of a trial's JSON cannot be imported, by their specs."""
    missing = {}
    try:
        content = json.loads(text)
        for name, registry in registries().items():
            try:
                registry.resolve(content[name])
            except InputError as error:
                missing[f"{name} {content[name]}"] = str(error)
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # not the JSON of a trial
    return missing


def _sort_trials(frame: pd.DataFrame, facts: Mapping[str, str]) -> pd.DataFrame:
    """Returns trials in the order of a grid: by seed, latent size, and prior as typed.

    If the store does not have the typed order, priors are in the order of their first runs.
    """
    priors = dict.fromkeys([*json.loads(facts.get("priors", "[]")), *frame["prior"]])
    place = frame["prior"].map({arm: k for k, arm in enumerate(priors)})
    order = np.lexsort((place, frame["latent"], frame["seed"]))
    return frame.iloc[order].reset_index(drop=True)


def _choose_evaluation(
    store: Store, runs: Sequence[Run], wanted: Mapping[str, Any], facts: Mapping[str, str]
) -> Evaluation:
    """Returns the only evaluation of the runs that has the wanted fields.

    If no trial is scored, it is the evaluation of the experiment's last command.
    """
    scored_runs: dict[str, list[Run]] = {}
    for run in runs:
        for tag in run.data.tags:
            if tag.startswith("evaluation."):
                scored_runs.setdefault(tag.removeprefix("evaluation."), []).append(run)
    evaluations = (
        next(filter(None, (_read_evaluation(store, run, key) for run in some)), None)
        for key, some in scored_runs.items()
    )
    known = [evaluation for evaluation in evaluations if evaluation]
    if runs and not known and "evaluation" in facts:
        last = {"estimator": EARLIER_ESTIMATOR, **json.loads(facts["evaluation"])}
        known = [Evaluation(**last)]
    chosen = [e for e in known if all(getattr(e, k) == v for k, v in wanted.items())]
    if len(chosen) == 1:
        return chosen[0]
    experiment = f"experiment {store.name} in {store.shown}"
    if not known:
        raise InputError(f"{experiment} has no scored trial: there is nothing to report")
    known.sort(key=lambda evaluation: (evaluation.estimator, evaluation.samples))
    listed = "; ".join(
        f"{evaluation.estimator}: {estimator_settings(pd.Series(scored(evaluation)))}"
        for evaluation in known
    )
    if not chosen:
        raise InputError(f"{experiment} has no such evaluation: it has {listed}")
    raise InputError(
        f"{experiment} has several evaluations ({listed}), whose numbers cannot share a table: "
        "choose one by --estimator, --nll-samples, --nll-precision and --nll-images"
    )


def _read_evaluation(store: Store, run: Run, key: str) -> Evaluation | None:
    """Returns the evaluation with an ID, which is a hash, by trying the few candidates.

    Returns None for an earlier version of an estimator, or if the file is missing.
    """
    folder = store.artifact(run, f"evaluations/{key}")
    estimates = estimates_in(folder) if folder else None
    if estimates is None:
        return None
    precisions = field_types(Evaluation)["precision"].__args__
    candidates = (
        Evaluation(
            estimator=estimates.estimator,
            samples=estimates.samples,
            precision=precision,
            images=count,
        )
        for precision in precisions
        for count in (None, len(estimates.loglik))
    )
    return next((candidate for candidate in candidates if candidate.id == key), None)


def select_trials(source: Source, column: str, values: str) -> Source | None:
    """Returns a source with the trials that have certain values in a column; None if none has.

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
    texts = split(values)
    selected = frame[[any(_matches(value, text) for text in texts) for value in frame[column]]]
    if selected.empty:
        return None
    results = replace(source.results, frame=selected.reset_index(drop=True))
    return replace(source, results=results)


def _matches(value: Any, text: str) -> bool:  # noqa: ANN401
    """Tells whether a typed text denotes a value of a frame."""
    if isinstance(value, str):
        return value == text
    if value is None or pd.isna(value):
        return text == "none"
    try:
        return float(value) == float(text)
    except ValueError:
        return False


class SourceStores:
    """The stores of several sources, in which their runs can be opened.

    Arguments:
        sources: The sources; those without a store are left out.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.stores = [source.store for source in sources if source.store]
        self._store_of = {
            run: source.store
            for source in sources
            if source.store
            for run in source.results.frame["run_id"]
        }

    def browse(self) -> str:
        """Returns how to open the runs of each store."""
        if len(self.stores) == 1:
            return self.stores[0].browse()
        first = {store.uri: store for store in reversed(self.stores)}
        commands = (f"{store.shown}: {store.browse()}" for store in reversed(first.values()))
        return " (one at a time, or each with a --port); ".join(commands)

    def link(self, run: str = "") -> str:
        """Returns the address of a run where MLflow is served; '' for a run of a table."""
        return self._store_of[run].link(run) if run in self._store_of else ""
