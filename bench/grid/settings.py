"""What flags and an experiment's file can set, and the reading of such a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["SETTINGS", "Kind", "Setting"]


Kind = Literal["axis", "field", "data", "evaluation", "tuning"]


@dataclass(frozen=True)
class Setting:
    """One thing that a flag or an experiment's file sets.

    Arguments:
        field: The field of `Trial` or `Evaluation`, or the option of the data set.
        kind: An `axis` takes a list and multiplies the grid; a `field` of the trial takes one
            value; `data` is an option of the data set; `evaluation` a field of the evaluation;
            `tuning` takes a list of values for that field in the tuning.
        help: What it is.
    """

    field: str
    kind: Kind
    help: str

    @property
    def is_list(self) -> bool:
        """Whether it takes several values."""
        return self.kind in ("axis", "tuning")


SETTINGS = {
    "priors": Setting("prior", "axis", "priors to compare, such as gauss,nsf[bins=16,bound=8]"),
    "latents": Setting("latent", "axis", "numbers of latent features, such as 2,8,16"),
    "seeds": Setting("seed", "axis", "seeds, such as 0:5 (0 to 4) or 0,7"),
    "nets": Setting("net", "axis", "encoder and decoder bodies, such as mlp[hidden=256x256]"),
    "training": Setting(
        "training", "axis", "joint, or post-hoc: the prior fitted to the frozen Gaussian VAE"
    ),
    "dataset": Setting("dataset", "field", "data set, such as digits or mnist"),
    "binarise": Setting(
        "binarise", "data", "threshold (x >= 1/2), stochastic, or fixed where published so"
    ),
    "valid": Setting(
        "valid", "data", "images held out for validation, 0 for none; some sets publish theirs"
    ),
    "epochs": Setting("epochs", "field", "passes over the training images"),
    "batch": Setting("batch", "field", "images a step"),
    "lr": Setting("lr", "field", "Adam's learning rate"),
    "prior-lr": Setting("prior_lr", "field", "the prior's own learning rate, or none"),
    "schedule": Setting("schedule", "field", "learning rate: constant, or cosine (falls to 0)"),
    "warmup": Setting("warmup", "field", "epochs in which the rate's weight rises to 1"),
    "patience": Setting("patience", "field", "epochs without a better one that end it, or none"),
    "precision": Setting("precision", "axis", "float32, tf32 or bf16 (matrix products), float64"),
    "select": Setting("select", "field", "weights to keep: last epoch, or best validation ELBO"),
    "clip": Setting("clip", "field", "largest norm of a gradient, or none"),
    "tune-lr": Setting("lr", "tuning", "learning rates to choose from, prior by prior, first"),
    "tune-seeds": Setting("seed", "tuning", "seeds of that choice, no test seeds (1000:1001)"),
    "nll-samples": Setting("samples", "evaluation", "importance samples K an image"),
    "nll-images": Setting("images", "evaluation", "first test images that are scored, or none"),
    "nll-precision": Setting("precision", "evaluation", "precision of the scoring, as above"),
}
