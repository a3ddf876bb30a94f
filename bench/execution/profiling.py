"""Where the time goes, operation by operation: what `python -m bench.run --profile` shows.

A stack is trained by the trainer itself for two short epochs, the first as warm-up, the second
under torch's profiler; then a tile of test images is scored twice, the second time profiled. An
operation's *self* time is that in which no other operation runs inside it: self times add up to
the whole. What Python does between operations is in the traces and in no table, and the profiler
slows every operation down: believe the shares rather than the milliseconds. Draws that are made
ahead, in other threads, are not in the profile.
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
from flowvae.evaluation.importance_weighting import TILE_IMAGES, evaluate
from flowvae.models.vae import VAE
from flowvae.training.trainer import OnEpoch, fit, fit_prior
from flowvae.trial import Evaluation, Trial

__all__ = ["Profile", "profile", "profiler", "show"]


STEPS = 10
"""Steps of an epoch: enough to average over, few enough for a trace that a browser opens."""
ROWS = 10
"""Operations that are printed."""
LISTED = 100
"""Operations in the text beside a trace."""


@dataclass(frozen=True)
class Profile:
    """What was recorded of one block.

    Arguments:
        what: The block, such as `train: 10 steps, 640 images`.
        table: The costliest operations by self time, as torch prints them.
        trace: The file of the chrome trace.
    """

    what: str
    table: str
    trace: Path


def profile(
    trials: Sequence[Trial], data: Dataset, evaluation: Evaluation, *, device: str, folder: Path
) -> list[Profile]:
    """Profiles the training of a stack and the scoring of its first model.

    Writes `train.json` and `evaluate.json`, chrome traces, and beside each a table as text.

    Arguments:
        trials: The stack.
        data: Its data set.
        evaluation: How a model is scored.
        device: Where to compute.
        folder: Where to write; what lies there by these names is overwritten.

    Returns:
        The training and the scoring.

    Raises:
        InputError: The folder cannot be written, the training diverges, or the profiler cannot see
            what runs on the device.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    few = _cut(data, trials[0].batch)
    steps = -(-len(few.train) // trials[0].batch)
    training = profiler(device)
    with ExitStack() as recording:

        def on_epoch(epoch: int, _: object) -> None:
            if epoch == 1:
                recording.enter_context(training)
            else:
                recording.close()

        vae = _fit(trials, few, device, on_epoch)
    seeds = f", {len(trials)} seeds together" if len(trials) > 1 else ""
    what = f"train: {steps} steps, {len(few.train)} images{seeds}"
    found = [_write(training, what, device, folder / "train.json")]

    def score() -> None:
        evaluate(vae, few.test, evaluation, seed=trials[0].seed, device=device)

    score()
    with profiler(device) as scoring:
        score()
    what = f"evaluate: {len(few.test)} images, K = {evaluation.samples}"
    return [*found, _write(scoring, what, device, folder / "evaluate.json")]


def _cut(data: Dataset, batch: int) -> Dataset:
    """Keeps a few batches and one tile of test images; its hash, which is not recorded, is stale.

    There are no validation images: between two calls of `on_epoch` there is then training alone.
    """
    return replace(
        data,
        train=data.train[: STEPS * batch],
        valid=data.valid[:0],
        test=data.test[:TILE_IMAGES],
    )


def _fit(trials: Sequence[Trial], data: Dataset, device: str, on_epoch: OnEpoch) -> VAE:
    """Fits the stack for two epochs, a post-hoc one to bases made as briefly."""
    short = [trial.but(epochs=2, select="last") for trial in trials]
    bases = [trial.base for trial in short if trial.base]
    if bases:
        models = [base.vae for base in fit(bases, data, device=device)]
        fitted = fit_prior(short, models, data, device=device, on_epoch=on_epoch)
    else:
        fitted = fit(short, data, device=device, on_epoch=on_epoch)
    for each in fitted:
        if each.status == "diverged":
            raise InputError(
                f"{each.trial.name} diverged ({each.reason}): there is nothing to profile; "
                "try a smaller --lr"
            )
    return fitted[0].vae


def profiler(device: str | torch.device) -> torch.profiler.profile:
    """Returns torch's profiler of the host's operations and, on a CUDA device, of its kernels."""
    activities = [ProfilerActivity.CPU]
    if torch.device(device).type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    else:  # torch's recorder tells, as an error, that there is no GPU
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    return torch.profiler.profile(activities=activities)


def _write(seen: torch.profiler.profile, what: str, device: str, trace: Path) -> Profile:
    """Writes a trace and its table; returns the table's first rows."""
    events = seen.key_averages()
    kind = torch.device(device).type
    if kind != "cpu" and all(event.device_type == DeviceType.CPU for event in events):
        raise InputError(
            "the profiler saw no kernel on the device: is CUPTI there, and allowed? "
            "KINETO_LOG_LEVEL=0 shows what it says; --device cpu profiles the CPU"
        )
    order = f"self_{'cpu' if kind == 'cpu' else 'device'}_time_total"
    with writing(trace.parent):
        text = events.table(sort_by=order, row_limit=LISTED, max_name_column_width=100)
        trace.with_suffix(".txt").write_text(f"{what}\n{text}")
        trace.unlink(missing_ok=True)
        seen.export_chrome_trace(str(trace))
        trace.stat()  # the profiler does not raise where it could not write
    return Profile(what, events.table(sort_by=order, row_limit=ROWS), trace)


def show(console: Console, profiles: Sequence[Profile]) -> None:
    """Prints each profile's table with its trace, and how to open one."""
    for each in profiles:
        for text in (f"{each.what}, by self time", each.table, f"{each.trace}\n"):
            console.print(text, markup=False, soft_wrap=True)
    console.print(
        "open a trace in https://ui.perfetto.dev or chrome://tracing; more rows: .txt",
        soft_wrap=True,
    )
