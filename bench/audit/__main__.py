"""Audits the evidence of fitted models: `python -m bench.audit RUN_ID...`.

Loads the model of each run from MLflow, brackets its evidence by annealing, and attaches the
bounds to the run, beside the importance-weighted estimate on the same images. If the latent space
has one or two dimensions, log p(x) of all scored test images is also integrated.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.console import make_console
from bench.cli.parser import EXIT_COMPLETE, EXIT_UNFINISHED, Parser, read_flag, run_command
from bench.system.paths import RESULTS_FOLDER
from flowvae.errors import InputError
from flowvae.estimator import EstimatorName
from flowvae.specs.values import Count
from flowvae.trial import Audit

if TYPE_CHECKING:
    from mlflow.entities import Run
    from rich.console import Console

    from bench.audit.read import AuditResult
    from bench.store.measurements import Estimates
    from bench.store.run_writer import RunWriter
    from bench.store.runs import Store
    from flowvae.data import Dataset
    from flowvae.evaluation.annealing import Bounds
    from flowvae.models.vae import VAE
    from flowvae.trial import Trial

__all__ = ["main", "record_audit"]


OPTIONS = {
    "images": "simulated images, and the same number of test images",
    "chains": "chains for each image",
    "temperatures": "annealing steps from the start to p(x, z)",
    "leapfrogs": "leapfrog steps of each transition",
    "samples": "samples of the audited estimate",
}
CHOICES = {
    "start": "where chains start: fitted (the proposal fitted to each image, and q(z|x) beside "
    "it) or encoder (q(z|x) alone); default: fitted",
    "estimator": "the audited estimator: fitted or encoder; default: that of the run's own NLL",
}
PHASES = {
    "forward": "forward chains, simulated images",
    "reverse": "reverse chains, simulated images",
    "real": "forward chains, test images",
    "weights": "audited estimate, simulated images",
    "real weights": "audited estimate, test images",
    "grid": "quadrature, coarse cells",
    "division": "quadrature, images whose cells are fine enough",
}


def _parser() -> Parser:
    parser = Parser(
        prog="python -m bench.audit",
        description="Brackets the evidence of fitted models by annealed importance sampling; at "
        "D <= 2 it is also integrated, for all scored test images.",
        epilog="Exit status: 0 all audited, 1 some cannot be audited, 2 invalid input, "
        "130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_ID", help="ID, as in `mlflow ui`")
    for name, text in OPTIONS.items():
        default = Audit.__dataclass_fields__[name].default
        parser.add_argument(f"--{name}", metavar="N", help=f"{text} (default: {default})")
    add = parser.add_argument
    for name, text in CHOICES.items():
        add(f"--{name}", metavar="X", help=text)
    add("--data-dir", metavar="DIR", help="data sets (default: FLOWVAE_DATA, or data)")
    add("--device", metavar="X", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add("--tracking-uri", metavar="URI", help="default: MLFLOW_TRACKING_URI, or this folder's")
    add("--force", action="store_true", help="repeat audits that are complete")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_run, argv)


def _run(argv: Sequence[str]) -> int:
    arguments = _parser().parse(argv)
    kinds = dict.fromkeys(OPTIONS, Count) | dict.fromkeys(CHOICES, EstimatorName)
    given = {name: getattr(arguments, name) for name in kinds}
    asked = Audit(
        **{
            name: read_flag(name, text, kinds[name])
            for name, text in given.items()
            if text is not None
        }
    )

    from bench.audit.quadrature import stored_scores
    from bench.audit.read import read_audit
    from bench.store.address import tracking_uri
    from bench.store.run_writer import RunWriter
    from bench.store.runs import Store, load_run
    from bench.system.devices import choose_device
    from flowvae.data import data_dir
    from flowvae.evaluation.quadrature import MAX_FEATURES

    console = make_console()
    device = choose_device(arguments.device)
    folder = data_dir(arguments.data_dir)
    store = Store(tracking_uri(arguments.tracking_uri), "")
    # all models are loaded first, so that a bad one is refused before any work
    models = {run_id: load_run(run_id, store.uri) for run_id in dict.fromkeys(arguments.runs)}
    results: dict[str, list[AuditResult]] = {}
    status = EXIT_COMPLETE
    for run_id, (vae, trial) in models.items():
        run = store.client.get_run(run_id)
        scores = stored_scores(store, run)
        audit = asked
        if arguments.estimator is None and scores:
            audit = replace(asked, estimator=scores.estimator)
        annealed = f"audit.{audit.id}" in run.data.tags and not arguments.force
        files = store.artifact(run, f"audits/{audit.id}") if annealed else None
        # an audit that was interrupted, or is of an earlier version, may lack the quadrature
        integrated = trial.latent > MAX_FEATURES or (files and (files / "exact.npy").exists())
        if annealed:
            console.print(f"{trial.name} {run_id}: already audited", soft_wrap=True)
        if not (annealed and integrated):
            data = _load_data(trial, run, folder)
            if audit.images > len(data.test):
                count = f"there are {len(data.test)} in {data.name}"
                raise InputError(f"cannot audit {audit.images} images: {count}")
            writer = RunWriter(store.client, run_id)
            try:
                if not annealed:
                    _anneal(console, vae, trial, data, audit, device, writer)
                    annealed = True
                if not integrated:
                    _integrate(console, vae, trial, data, audit, device, writer, scores)
            except InputError as error:  # concerns this model only
                console.print(f"{trial.name} {run_id}: {error}", markup=False, soft_wrap=True)
                status = EXIT_UNFINISHED
                if not annealed:  # else the report shows annealing without quadrature
                    continue
        experiment = store.client.get_experiment(run.info.experiment_id).name
        results.setdefault(experiment, []).append(read_audit(store, run, trial, audit))
    for name, some in results.items():
        shown = [result.run_id for result in some]
        for audit in {result.audit.id: result.audit for result in some}.values():
            some += _earlier_audits(console, Store(store.uri, name), audit, shown)
        _report(console, RESULTS_FOLDER / name, some)
    return status


def _earlier_audits(
    console: Console, store: Store, audit: Audit, shown: Sequence[str]
) -> Iterator[AuditResult]:
    """Yields the same audit of other runs of an experiment, so that the report includes them.

    A run whose prior cannot be imported is left out, with a message.
    """
    from bench.audit.read import read_audit
    from flowvae.trial import Trial

    for run in store.complete():
        if run.info.run_id in shown or f"audit.{audit.id}" not in run.data.tags:
            continue
        try:
            path = store.artifact(run, "trial.json")
            if path is None:
                raise InputError("it has no trial.json")
            yield read_audit(store, run, Trial.from_json(path.read_text()), audit)
        except InputError as error:
            message = f"{run.info.run_name} {run.info.run_id}: left out, {error}"
            console.print(message, markup=False, soft_wrap=True)


def _load_data(trial: Trial, run: Run, folder: Path) -> Dataset:
    from flowvae.data import load_data

    data = load_data(trial.dataset, folder)
    if run.data.tags.get("data.hash", data.hash) != data.hash:
        raise InputError(
            f"{trial.name} was trained on other data than the {data.name} in {folder}: "
            "pass the folder of its data set as --data-dir"
        )
    return data


def _anneal(
    console: Console,
    vae: VAE,
    trial: Trial,
    data: Dataset,
    audit: Audit,
    device: str,
    writer: RunWriter,
) -> None:
    """Brackets the evidence of one model and records the bounds."""
    from bench.system.devices import device_name
    from flowvae.evaluation.annealing import anneal

    with _progress(console, trial.name) as on_step:
        start = time.perf_counter()  # the bounds come back to the host: no need to synchronise
        bounds = anneal(vae, data.test, audit, seed=trial.seed, device=device, on_step=on_step)
        seconds = time.perf_counter() - start
    record_audit(writer, audit, bounds, seconds=seconds, device=device_name(device))
    console.print(f"{trial.name} {writer.run_id}: audited in {seconds:.0f} s", soft_wrap=True)


def _integrate(
    console: Console,
    vae: VAE,
    trial: Trial,
    data: Dataset,
    audit: Audit,
    device: str,
    writer: RunWriter,
    scores: Estimates | None,
) -> None:
    """Adds the exact evidence of the scored test images to an audit.

    `scores` are the run's own estimates; without them all test images are integrated.
    """
    from bench.audit.quadrature import TOLERANCE, record_exact
    from flowvae.evaluation.quadrature import evidence

    images = data.test[: len(scores.loglik) if scores else None]
    with _progress(console, trial.name) as on_step:
        start = time.perf_counter()  # the sums come back to the host: no need to synchronise
        exact = evidence(vae, images, device=device, tolerance=TOLERANCE, on_step=on_step)
        seconds = time.perf_counter() - start
    record_exact(writer, audit, exact, scores, seconds=seconds)
    words = f"log p(x) of {len(images)} test images integrated in {seconds:.0f} s"
    console.print(f"{trial.name} {writer.run_id}: {words}", soft_wrap=True)


@contextmanager
def _progress(console: Console, name: str) -> Iterator[Callable[[str, int, int], None]]:
    """Shows a progress bar with the current phase, if the output is a terminal."""
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        label = escape(name)
        bar = progress.add_task(f"{label} [dim]step lengths[/]", total=None)
        current = ""

        def on_step(phase: str, done: int, total: int) -> None:
            nonlocal current
            if phase != current:
                progress.reset(bar, description=f"{label} [dim]{PHASES[phase]}[/]")
                current = phase
            progress.update(bar, completed=done, total=total)

        yield on_step


def record_audit(
    writer: RunWriter, audit: Audit, bounds: Bounds, *, seconds: float, device: str
) -> dict[str, float]:
    """Attaches an audit to a run: description, arrays, means by metric, then a completion tag.

    Arguments:
        writer: The run.
        audit: The description; its ID names the folder of the files, `audits/ID`.
        bounds: The bounds and estimates.
        seconds: The time that it took, s.
        device: The hardware.

    Returns:
        The means by metric.
    """
    from bench.store.measurements import of_model

    values = {
        "lower": bounds.lower.mean(),
        "upper": bounds.upper.mean(),
        "gap": (bounds.upper - bounds.lower).mean(),
        "encoder_lower": bounds.encoder_lower.mean(),
        "encoder_upper": bounds.encoder_upper.mean(),
        "nll_annealed_encoder": -bounds.encoder_real_lower.mean(),
        "iw_simulated": bounds.iw[audit.samples].mean(),
        "nll_annealed": -bounds.real_lower.mean(),
        "nll_iw": -bounds.real_iw[audit.samples].mean(),
        "acceptance": bounds.acceptance.mean() if bounds.acceptance.size else 1.0,
        "failed_draws": bounds.failed,
        "seconds": seconds,
    }
    means = {f"audit/{name}": float(value) for name, value in values.items()}
    ladders = ("iw", "real_iw")
    arrays = {k: v for k, v in vars(bounds).items() if k not in (*ladders, "failed")}
    for ladder in ladders:
        arrays |= {f"{ladder}_k{k}": v for k, v in getattr(bounds, ladder).items()}
    text = json.dumps({**asdict(audit), "id": audit.id, "device": device}, indent=2)
    writer.client.log_text(writer.run_id, text, f"audits/{audit.id}/audit.json")
    writer.write(of_model("audit", audit.id, arrays, means))
    writer.flush()
    return means


def _report(console: Console, folder: Path, results: Sequence[AuditResult]) -> None:
    """Prints the tables and the sentences, and writes the figure."""
    from bench.audit.figure import audit_bounds
    from bench.audit.quadrature import quadrature_table
    from bench.audit.summary import audit_frame, audit_sentences, audit_table
    from bench.figures.style import write_figure

    folder.mkdir(parents=True, exist_ok=True)
    console.print()
    if (table := quadrature_table(results)) is not None:
        console.print(table)
    console.print(audit_table(results))
    for sentence in audit_sentences(results):
        console.print(sentence, markup=False, soft_wrap=True)
    console.print()
    paths = write_figure(audit_bounds(results), folder / "audit", audit_frame(results), dpi=200)
    for path in paths:
        console.print(str(path), markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
