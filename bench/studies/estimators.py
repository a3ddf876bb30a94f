"""Measures estimators of log p(x) side by side: `python -m bench.studies.estimators MODEL...`.

Every estimator scores the same images with the same fitted model, in turns of one process: the
encoder as proposal with K = 1000 and 5000, and the fitted proposal with K = 1000. At D <= 2 they
are held against the exact value, by quadrature of all images; at larger D, if asked for, against
the forward bound of annealing on some of the images, from the fitted proposal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.console import make_console
from bench.cli.parser import EXIT_COMPLETE, Parser, read_flag, run_command
from bench.system.paths import RESULTS_FOLDER, writing
from flowvae.errors import InputError
from flowvae.specs.values import Count, Natural
from flowvae.trial import Audit, Evaluation

if TYPE_CHECKING:
    import torch

    from flowvae.models.vae import VAE

__all__ = ["main"]


EVALUATIONS = (
    Evaluation(estimator="encoder", samples=1000),
    Evaluation(estimator="encoder", samples=5000),
    Evaluation(estimator="fitted", samples=1000),
)
PATTERNS = {
    "nll": "{:.3f}", "above_exact": "{:+.4f}", "above_annealed": "{:+.3f}",
    "annealed_se": "{:.3f}", "khat_high": "{:.1%}", "median_ess": "{:.0f}", "bias": "{:.4f}",
    "seconds": "{:.1f}",
}  # fmt: skip
"""The columns of numbers, and how a terminal shows them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; returns the exit status."""
    return run_command(_run, argv, resumes=False)


def _run(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="python -m bench.studies.estimators",
        description="Scores fitted models by every estimator of log p(x): error, k-hat, seconds.",
    )
    add = parser.add_argument
    add(
        "models", nargs="+", type=Path, metavar="MODEL",
        help="folders of fitted models: `model` among a run's artifacts, or by flowvae.save",
    )  # fmt: skip
    add("--images", default="200", metavar="N", help="test images, the first (default: 200)")
    add("--annealed", default="0", metavar="N", help="of them annealed at D > 2 (default: 0)")
    add("--seed", default="0", help="seed of the draws (default: 0)")
    add("--data-dir", type=Path, metavar="DIR", help="folder of the data set")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add(
        "--out", type=Path, metavar="DIR", default=RESULTS_FOLDER / "estimators",
        help="folder of the table (default: %(default)s)",
    )  # fmt: skip
    arguments = parser.parse(argv)
    images = read_flag("images", arguments.images, Count)
    annealed = read_flag("annealed", arguments.annealed, Natural)
    seed = read_flag("seed", arguments.seed, Natural)
    if annealed > images:
        raise InputError(f"bad --annealed '{annealed}': expected at most --images, {images}")

    import pandas as pd

    from bench.system.devices import choose_device
    from flowvae.data import load_data
    from flowvae.models.saved_model import load

    device = choose_device(arguments.device)
    fitted = [load(folder, trusted=True) for folder in arguments.models]
    console = make_console()
    rows: list[dict[str, object]] = []
    with writing(arguments.out):
        arguments.out.mkdir(parents=True, exist_ok=True)
    for vae, trial in fitted:
        data = load_data(trial.dataset, arguments.data_dir)
        model = {"prior": trial.prior, "latent": trial.latent, "dataset": trial.dataset}
        model |= {"epochs": trial.epochs, "images": min(images, len(data.test))}
        for scored in _scores(vae, data.test[:images], seed, annealed, device):
            rows.append(model | scored)
            console.print(_line(rows[-1]), markup=False, highlight=False, soft_wrap=True)
        path = arguments.out / "estimators.csv"
        with writing(path):
            pd.DataFrame(rows).to_csv(path, index=False)
    console.print(str(path), markup=False, soft_wrap=True)
    return EXIT_COMPLETE


def _line(row: dict[str, object]) -> str:
    """Writes a row for a terminal."""
    numbers = [f"{name} {p.format(row[name])}" for name, p in PATTERNS.items() if name in row]
    return f"{row['prior']}, D = {row['latent']}, {row['estimator']}: {', '.join(numbers)}"


def _scores(
    vae: VAE, images: torch.Tensor, seed: int, annealed: int, device: str
) -> list[dict[str, object]]:
    """Returns a row for each estimator of one model."""
    import numpy as np

    from flowvae.evaluation.annealing import anneal
    from flowvae.evaluation.importance_weighting import evaluate
    from flowvae.evaluation.pareto import share_unreliable
    from flowvae.evaluation.quadrature import evidence

    exact = evidence(vae, images, device=device).log_p if vae.latent <= 2 else None
    bounds = None
    if annealed and exact is None:
        bounds = anneal(vae, images, Audit(images=annealed), seed=seed, device=device)
    rows = []
    for evaluation in EVALUATIONS:
        start = time.perf_counter()
        scores = evaluate(vae, images, evaluation, seed=seed, device=device)
        seconds = time.perf_counter() - start
        samples = evaluation.samples
        loglik = scores.loglik[samples]
        row: dict[str, object] = {
            "estimator": evaluation.method.describe(samples),
            "nll": -loglik.mean(),
            "khat_high": share_unreliable(scores.khat),
            "median_ess": np.median(scores.ess),
            "bias": ((1 / scores.ess - 1 / samples) / 2).mean(),
            "seconds": seconds,
        }
        if exact is not None:
            row["above_exact"] = (exact - loglik).mean()
        if bounds is not None:
            gap = bounds.real_lower - loglik[bounds.index]
            row |= {"above_annealed": gap.mean(), "annealed_se": gap.std() / len(gap) ** 0.5}
        rows.append(row)
    return rows


if __name__ == "__main__":
    sys.exit(main())
