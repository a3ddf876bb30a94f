"""Audits the evidence of fitted models: `python -m bench.audit RUN_ID...`.

Each run's model is loaded from MLflow, its evidence bracketed by annealing, and what is found is
attached to the run, beside the importance-weighted estimate on the same images. Where the latent
space has one or two dimensions, log p(x) of all scored test images is integrated as well.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.console import make_console
from bench.cli.parser import EXIT_COMPLETE, EXIT_UNFINISHED, Parser, read_flag, run_command
from bench.system.paths import RESULTS_FOLDER
from flowvae.errors import InputError
from flowvae.specs.values import Count
from flowvae.trial import Audit

if TYPE_CHECKING:
    import numpy as np
    from mlflow.entities import Run
    from numpy.typing import NDArray
    from rich.console import Console

    from bench.audit.read import Audited
    from bench.store.run_writer import RunWriter
    from bench.store.runs import Store
    from flowvae.data import Dataset
    from flowvae.evaluation.annealing import Bounds
    from flowvae.models.vae import VAE
    from flowvae.trial import Trial

__all__ = ["main", "record_audit"]


OPTIONS = {
    "images": "simulated images, and as many real test images",
    "chains": "chains an image",
    "temperatures": "increments from the posterior to p(x, z)",
    "leapfrogs": "leapfrog steps of a transition",
    "samples": "importance samples of the audited estimate",
}
PHASES = {
    "forward": "forward chains, simulated images",
    "reverse": "reverse chains, simulated images",
    "real": "forward chains, test images",
    "weights": "importance weights, simulated images",
    "real weights": "importance weights, test images",
    "grid": "quadrature, coarse cells",
    "division": "quadrature, images whose cells are divided no more",
}


def _parser() -> Parser:
    parser = Parser(
        prog="python -m bench.audit",
        description="Brackets the evidence of fitted models by annealed importance sampling; at "
        "D <= 2 it is also integrated, for all scored test images.",
        epilog="Exit status: 0 all audited, 1 some cannot be, 2 usage or input, 130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_ID", help="as `mlflow ui` shows it")
    for name, text in OPTIONS.items():
        default = Audit.__dataclass_fields__[name].default
        parser.add_argument(f"--{name}", metavar="N", help=f"{text} (default: {default})")
    add = parser.add_argument
    add("--data-dir", metavar="DIR", help="data sets (default: FLOWVAE_DATA, or data)")
    add("--device", metavar="X", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add("--tracking-uri", metavar="URI", help="default: MLFLOW_TRACKING_URI, or this folder's")
    add("--force", action="store_true", help="audit again what holds this audit")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_run, argv)


def _run(argv: Sequence[str]) -> int:
    arguments = _parser().parse(argv)
    given = {name: getattr(arguments, name) for name in OPTIONS}
    audit = Audit(
        **{name: read_flag(name, text, Count) for name, text in given.items() if text is not None}
    )

    from bench.audit.quadrature import stored_scores
    from bench.audit.read import read_audit
    from bench.store.address import tracking_uri
    from bench.store.run_writer import RunWriter
    from bench.store.runs import Store, load_run
    from bench.system.devices import choose_device
    from flowvae.data import data_dir
    from flowvae.evaluation.quadrature import MOST_FEATURES

    console = make_console()
    device = choose_device(arguments.device)
    folder = data_dir(arguments.data_dir)
    store = Store(tracking_uri(arguments.tracking_uri), "")
    wanted = list(dict.fromkeys(arguments.runs))
    models = {run_id: load_run(run_id, store.uri) for run_id in wanted}  # refuse before working
    audited: dict[str, list[Audited]] = {}
    status = EXIT_COMPLETE
    for run_id, (vae, trial) in models.items():
        run = store.client.get_run(run_id)
        held = f"audit.{audit.id}" in run.data.tags and not arguments.force
        files = store.artifact(run, f"audits/{audit.id}") if held else None
        # An audit that was interrupted, or is of an earlier version, may have all but this.
        exact = trial.latent <= MOST_FEATURES and not (files and (files / "exact.npy").exists())
        if held:
            console.print(f"{trial.name} {run_id}: already audited", soft_wrap=True)
        if exact or not held:
            data = _data(trial, run, folder)
            if audit.images > len(data.test):
                count = f"there are {len(data.test)} in {data.name}"
                raise InputError(f"cannot audit {audit.images} images: {count}")
            record = RunWriter(store.client, run_id)
            try:
                if not held:
                    _audit(console, vae, trial, data, audit, device, record)
                    held = True
                if exact:
                    own = stored_scores(store, run)
                    _integrate(console, vae, trial, data, audit, device, record, own)
            except InputError as error:  # of this model: the others go on
                console.print(f"{trial.name} {run_id}: {error}", markup=False, soft_wrap=True)
                status = EXIT_UNFINISHED
                if not held:  # else annealing succeeded, and is shown without quadrature
                    continue
        experiment = store.client.get_experiment(run.info.experiment_id).name
        audited.setdefault(experiment, []).append(read_audit(store, run, trial, audit))
    for name, found in audited.items():
        known = [each.run_id for each in found]
        found += _earlier(console, Store(store.uri, name), audit, known)
        _conclude(console, RESULTS_FOLDER / name, found)
    return status


def _earlier(
    console: Console, store: Store, audit: Audit, known: Sequence[str]
) -> Iterator[Audited]:
    """Yields the other runs of an experiment that hold an audit: what is written shows them, too.

    One whose prior cannot be had here is left out, and told.
    """
    from bench.audit.read import read_audit
    from flowvae.trial import Trial

    for run in store.complete():
        if run.info.run_id in known or f"audit.{audit.id}" not in run.data.tags:
            continue
        try:
            path = store.artifact(run, "trial.json")
            if path is None:
                raise InputError("it does not tell its trial")
            yield read_audit(store, run, Trial.from_json(path.read_text()), audit)
        except InputError as error:
            told = f"{run.info.run_name} {run.info.run_id}: left out, {error}"
            console.print(told, markup=False, soft_wrap=True)


def _data(trial: Trial, run: Run, folder: Path) -> Dataset:
    from flowvae.data import load_data

    data = load_data(trial.dataset, folder)
    if run.data.tags.get("data.hash", data.hash) != data.hash:
        raise InputError(
            f"{trial.name} was trained on other data than the {data.name} in {folder}: "
            "give the folder of its data set by --data-dir"
        )
    return data


def _audit(
    console: Console,
    vae: VAE,
    trial: Trial,
    data: Dataset,
    audit: Audit,
    device: str,
    record: RunWriter,
) -> None:
    """Audits one model and records what is found."""
    from bench.system.devices import device_name
    from flowvae.evaluation.annealing import anneal

    with _progress(console, trial.name) as on_step:
        start = time.perf_counter()  # the bounds come back to the host: no need to synchronise
        bounds = anneal(vae, data.test, audit, seed=trial.seed, device=device, on_step=on_step)
        seconds = time.perf_counter() - start
    record_audit(record, audit, bounds, seconds=seconds, device=device_name(device))
    console.print(f"{trial.name} {record.run_id}: audited in {seconds:.0f} s", soft_wrap=True)


def _integrate(
    console: Console,
    vae: VAE,
    trial: Trial,
    data: Dataset,
    audit: Audit,
    device: str,
    record: RunWriter,
    own: tuple[int, NDArray[np.float64]] | None,
) -> None:
    """Adds the exact evidence to an audit, beside the run's own K and estimates, (N,).

    It is that of the same test images; of all of them if the run is not scored.
    """
    from bench.audit.quadrature import TOLERANCE, record_exact
    from flowvae.evaluation.quadrature import evidence

    images = data.test[: len(own[1]) if own else None]
    with _progress(console, trial.name) as on_step:
        start = time.perf_counter()  # the sums come back to the host: no need to synchronise
        found = evidence(vae, images, device=device, tolerance=TOLERANCE, on_step=on_step)
        seconds = time.perf_counter() - start
    record_exact(record, audit, found, own, seconds=seconds)
    told = f"log p(x) of {len(images)} test images integrated in {seconds:.0f} s"
    console.print(f"{trial.name} {record.run_id}: {told}", soft_wrap=True)


@contextmanager
def _progress(console: Console, name: str) -> Iterator[Callable[[str, int, int], None]]:
    """Shows a bar, its text the phase; nothing where the output is no terminal."""
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
    record: RunWriter, audit: Audit, bounds: Bounds, *, seconds: float, device: str
) -> dict[str, float]:
    """Attaches an audit to a run: description, arrays, means by metric, then that it is complete.

    Arguments:
        record: The run.
        audit: The description, by whose id the files lie under `audits/ID`.
        bounds: What was found.
        seconds: How long it took, s.
        device: The hardware.

    Returns:
        The means by metric.
    """
    from bench.store.measurements import of_model

    values = {
        "lower": bounds.lower.mean(),
        "upper": bounds.upper.mean(),
        "gap": (bounds.upper - bounds.lower).mean(),
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
    record.client.log_text(record.run_id, text, f"audits/{audit.id}/audit.json")
    record.write(of_model("audit", audit.id, arrays, means))
    record.flush()
    return means


def _conclude(console: Console, folder: Path, audited: Sequence[Audited]) -> None:
    """Prints the table and the sentences, and writes the figure."""
    from bench.audit import quadrature
    from bench.audit.figure import audit_bounds
    from bench.audit.summary import audit_frame, audit_sentences, audit_table
    from bench.figures.style import write_figure

    folder.mkdir(parents=True, exist_ok=True)
    console.print()
    if (known := quadrature.quadrature_table(audited)) is not None:
        console.print(known)
    console.print(audit_table(audited))
    for sentence in audit_sentences(audited):
        console.print(sentence, markup=False, soft_wrap=True)
    console.print()
    written = write_figure(audit_bounds(audited), folder / "audit", audit_frame(audited), dpi=200)
    for path in written:
        console.print(str(path), markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
