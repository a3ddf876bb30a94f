"""What the reference results come from: the stages of `bench.reference`, in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .command import RESULTS

__all__ = ["STAGES", "Stage"]

TESTED = (
    "annealing", "boxes", "checkpoint", "evaluation", "linear", "memory", "nets", "priors",
    "quadrature", "splines", "steps", "surgery", "train", "vae",
)  # fmt: skip
"""The test modules that a device decides."""
RACES = (
    "(training_race and (float32 or (gauss and tf32))) or (nll and float32 and gauss) or "
    "(elbo_step and z16)"
)
"""The benchmarks that the speed table is made of."""
SCORED = "--nll-precision tf32 --nll-samples 5000"
FAST = (
    "gauss,diagonal,gmm,gmm[covariance=diagonal],vamp,vamp[start=images],exemplar,nice,realnvp,"
    "maf,iaf,nsf,nsf[coupling=true]"
)
SLOW = "gauss,lars,sospf,bpf,naf,unaf,cnf"
TINY = "--dataset digits --nets mlp[hidden=8] --latents 2 --epochs 2 --seeds 0:3"
TINY += " --nll-samples 20 --nll-precision float32 --priors"
"""What makes a grid a rehearsal."""


@dataclass(frozen=True)
class Stage:
    """A part of the comparison.

    Arguments:
        what: What it tells.
        commands: Its commands, without `python -m`. `{device}`, `{root}` (of this repository),
            `{processes}` (that share the device in tests), and as words of their own `{several}`
            (how a grid shares the device) and `{models}` (run ids) are filled in.
        tiny: What is appended to each of them for a rehearsal.
        models: The experiment whose models are audited, and which: values by column.
        least: It is not begun with less time left, s, because it cannot go on where it was.
    """

    what: str
    commands: tuple[str, ...]
    tiny: tuple[str, ...]
    models: tuple[str, Mapping[str, Sequence[int]]] | None = None
    least: float = 0.0


def _grid(what: str, arguments: str, tiny: str) -> Stage:
    """Returns a stage that runs an experiment."""
    return Stage(what, (f"bench.run {arguments} --device {{device}} {{several}}",), (tiny,))


def _audit(what: str, experiment: str, flags: str = "", **models: Sequence[int]) -> Stage:
    """Returns a stage that audits models of an experiment."""
    return Stage(
        what,
        (f"bench.audit {flags} --device {{device}} {{models}}",),
        ("--images 4 --chains 2 --temperatures 4 --leapfrogs 2 --samples 10",),
        (experiment, models),
    )


def _sweep(precision: str) -> Stage:
    """Returns a stage that times steps by stack."""
    return Stage(
        f"steps by stack in {precision}, and what they are bound by",
        (
            "bench.sweep --latents 16 --batches 256 --stacks 1,2,4,8,16,32 --seconds-per-point 0.4"
            f" --precision {precision} --device {{device}} --out {RESULTS}/sweep-{precision}",
        ),
        (
            "--net mlp[hidden=8] --priors gauss --latents 2 --batches 16 --stacks 1 "
            "--seconds-per-point 0.01 --precision float32",
        ),
        least=60,
    )


STAGES = {
    "tests": Stage(
        "what a device decides is right on it",
        (
            "pytest -vv -p no:cacheprovider --device {device} -n {processes} --maxprocesses "
            "{processes} " + " ".join(f"{{root}}/tests/test_{name}.py" for name in TESTED),
        ),
        ("-n 0 -k test_linear",),
        least=300,
    ),
    "races": Stage(
        "a step and an NLL, in turns with the tutorial's loop, Pythae's and the floor",
        (
            "pytest {root}/bench/test_elbo_step.py {root}/bench/test_evaluation.py "
            "-p no:cacheprovider --benchmark-enable --device {device} "
            f"--benchmark-json speed.json -k '{RACES}'",
            "bench.speed speed.json",
        ),
        ("-k gauss-z2-forward", ""),
        least=200,
    ),
    "sweep": _sweep("float32"),
    "sweep-tf32": _sweep("tf32"),
    "tutorial": _grid(
        "zuko's tutorial: five seeds of its prior and two rivals",
        "tutorial --seeds 0:5 --nll-samples 5000 --timing exclusive",
        f"{TINY} gauss,maf[hidden=8]",
    ),
    "latents": _grid(
        "the gain by latent size", f"latents {SCORED}", f"{TINY} gauss,maf[hidden=8]"
    ),
    "latents-exact": _audit(
        "the evidence itself at D = 2, by quadrature", "latents", "--images 20", latent=[2]
    ),
    "latents-audit": _audit(
        "brackets of the evidence at D = 16", "latents", latent=[16], seed=[0]
    ),
    "priors": _grid(
        "every prior that is fast, at one latent size, on 1,000 test images",
        f"priors --priors '{FAST}' {SCORED} --nll-images 1000",
        f"{TINY} gauss,gmm[components=2] --nll-images 100",
    ),
    "gated": _grid(
        "the VampPrior by its published protocol",
        "gated --nll-precision tf32",
        f"{TINY} gauss,vamp[components=2] --warmup 0 --dataset digits[binarise=stochastic]",
    ),
    "priors-slow": _grid(
        "the slow priors beside the Gaussian, on the same images",
        f"priors --priors '{SLOW}' {SCORED} --nll-images 1000",
        f"{TINY} gauss,lars[hidden=8] --nll-images 100",
    ),
}
"""In the order in which they run."""
