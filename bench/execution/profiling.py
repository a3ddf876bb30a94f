"""Profiles training and scoring by operation: `python -m bench.run --profile`.

The trainer trains a stack for two short epochs, the first as warm-up, the second under torch's
profiler; then a tile of test images is scored twice, the second time under the profiler. An
operation's *self* time excludes the operations inside it, so that self times add up to the whole.
Python's own time between operations is in the traces but in no table. The profiler slows every
operation down: trust the shares more than the milliseconds. Random draws that other threads make
ahead are not in the profile.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from bench.system.paths import writing
from flowvae.data import Dataset
from flowvae.errors import InputError
from flowvae.evaluation.importance_weighting import evaluate
from flowvae.evaluation.passes import TILE_IMAGES
from flowvae.models.vae import VAE
from flowvae.training.trainer import OnEpoch, fit, fit_prior
from flowvae.trial import Evaluation, Trial

__all__ = ["Profile", "profile", "profiler", "show"]


MAX_STEPS = 10
"""Steps of an epoch: enough for an average, few enough for a trace that a browser opens."""
PRINTED_ROWS = 10
"""Operations in the printed table."""
SAVED_ROWS = 100
"""Operations in the table beside a trace."""


@dataclass(frozen=True)
class Profile:
    """The profile of one block of code.

    Arguments:
        title: The block, such as `train: 10 steps, 640 images`.
        table: The operations with the largest self times, as torch prints them.
        trace: The file of the Chrome trace.
    """

    title: str
    table: str
    trace: Path


def profile(
    trials: Sequence[Trial], data: Dataset, evaluation: Evaluation, *, device: str, folder: Path
) -> list[Profile]:
    """Profiles the training of a stack and the scoring of its first model.

    Writes the Chrome traces `train.json` and `evaluate.json`, and a table beside each.

    Arguments:
        trials: The stack.
        data: The data set.
        evaluation: How a model is scored.
        device: The device that computes.
        folder: The folder of the files, which replace those of an earlier profile.

    Returns:
        The profiles of the training and of the scoring.

    Raises:
        InputError: The folder is not writable, the training diverges, or the profiler does not
            see the device's kernels.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    excerpt = _excerpt(data, trials[0].batch)
    steps = -(-len(excerpt.train) // trials[0].batch)
    training = profiler(device)
    with ExitStack() as recording:

        def on_epoch(epoch: int, _: object) -> None:
            if epoch == 1:
                recording.enter_context(training)
            else:
                recording.close()

        vae = _fit(trials, excerpt, device, on_epoch)
    seeds = f", {len(trials)} seeds together" if len(trials) > 1 else ""
    title = f"train: {steps} steps, {len(excerpt.train)} images{seeds}"
    profiles = [_write(training, title, device, folder / "train.json")]

    def score() -> None:
        evaluate(vae, excerpt.test, evaluation, seed=trials[0].seed, device=device)

    score()
    with profiler(device) as scoring:
        score()
    title = f"evaluate: {len(excerpt.test)} images, K = {evaluation.samples}"
    return [*profiles, _write(scoring, title, device, folder / "evaluate.json")]


def _excerpt(data: Dataset, batch: int) -> Dataset:
    """Returns a few batches and one tile of test images; the hash, which is not used, is stale.

    Without validation images, there is only training between two calls of `on_epoch`.
    """
    return replace(
        data,
        train=data.train[: MAX_STEPS * batch],
        valid=data.valid[:0],
        test=data.test[:TILE_IMAGES],
    )


def _fit(trials: Sequence[Trial], data: Dataset, device: str, on_epoch: OnEpoch) -> VAE:
    """Fits the stack for two epochs; a post-hoc one to bases that are fitted as briefly."""
    short = [trial.but(epochs=2, select="last") for trial in trials]
    bases = [trial.base for trial in short if trial.base]
    if bases:
        models = [base.vae for base in fit(bases, data, device=device)]
        fitted = fit_prior(short, models, data, device=device, on_epoch=on_epoch)
    else:
        fitted = fit(short, data, device=device, on_epoch=on_epoch)
    for one in fitted:
        if one.status == "diverged":
            raise InputError(
                f"{one.trial.name} diverged ({one.reason}): there is nothing to profile; "
                "try a smaller --lr"
            )
    return fitted[0].vae


def profiler(device: str | torch.device) -> torch.profiler.profile:
    """Returns torch's profiler of the host's operations and, on a CUDA device, of its kernels."""
    activities = [ProfilerActivity.CPU]
    if torch.device(device).type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    else:  # otherwise torch's recorder logs the missing GPU as an error
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    return torch.profiler.profile(activities=activities)


def _write(record: torch.profiler.profile, title: str, device: str, trace: Path) -> Profile:
    """Writes a trace and its table; returns the table's first rows."""
    events = record.key_averages()
    kind = torch.device(device).type
    if kind != "cpu" and all(event.device_type == DeviceType.CPU for event in events):
        raise InputError(
            "the profiler saw no kernel on the device: is CUPTI installed, and permitted? "
            "KINETO_LOG_LEVEL=0 shows its messages; --device cpu profiles the CPU"
        )
    order = f"self_{'cpu' if kind == 'cpu' else 'device'}_time_total"
    with writing(trace.parent):
        text = events.table(sort_by=order, row_limit=SAVED_ROWS, max_name_column_width=100)
        trace.with_suffix(".txt").write_text(f"{title}\n{text}")
        trace.unlink(missing_ok=True)
        record.export_chrome_trace(str(trace))
        trace.stat()  # raises if the profiler could not write, which it does not report
    return Profile(title, events.table(sort_by=order, row_limit=PRINTED_ROWS), trace)


def show(console: Console, profiles: Sequence[Profile]) -> None:
    """Prints each profile's table and trace file, and how to open a trace."""
    for one in profiles:
        for text in (f"{one.title}, by self time", one.table, f"{one.trace}\n"):
            console.print(text, markup=False, soft_wrap=True)
    console.print(
        "open a trace in https://ui.perfetto.dev or chrome://tracing; the .txt has more rows",
        soft_wrap=True,
    )
